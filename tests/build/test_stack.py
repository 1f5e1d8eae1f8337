"""A call needs at most 32 KB of stack in any thread: coroutines and embedded code may have small ones."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.build, pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")]


def flags_of(file):
    rows = [line.split() for line in (ROOT / "src_c" / "flags.txt").read_text().splitlines() if line[:1].isalpha()]
    kinds = {"gnu", "gcc", "release"} | ({"gnu-x86"} if "x86" in subprocess.getoutput("uname -m") else set())
    return [flag for kind, name, *flags in rows if kind in kinds and name in ("*", file) for flag in flags]


def frames_of(file, folder):
    """Compile a file of the core; return the bytes of stack of each function."""
    out = folder / (file.replace("/", "_") + ".o")
    command = ["gcc", "-fopenmp", *flags_of(file), "-fstack-usage", "-c", ROOT / "src_c" / file, "-o", out]
    subprocess.run(command, check=True, capture_output=True)
    lines = out.with_suffix(".su").read_text().splitlines()
    return {re.sub(r".*:", "", line.split("\t")[0]): int(line.split("\t")[1]) for line in lines}


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    files = [
        str(p.relative_to(ROOT / "src_c")) for part in ("core", "ops", "isa") for p in ROOT.glob(f"src_c/{part}/*.c")
    ]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(files, pool.map(lambda file: frames_of(file, folder), files), strict=True))


def largest(frames, part, count=1):
    """The bytes of the largest frames of the files whose names begin with part."""
    return sum(sorted(n for file, by in frames.items() if file.startswith(part) for n in by.values())[-count:])


BETWEEN = 2048  # for the frames that are not counted
MOST = 32 * 1024


def test_the_largest_frames(frames):
    """Those of a driver, a parallel region and a kernel."""
    sizes = {part: largest(frames, part) for part in ("ops", "core/parallel", "isa")}
    assert sum(sizes.values()) + BETWEEN <= MOST, sizes


def test_the_frames_of_a_call_within_a_call(frames):
    """Those of both drivers, of which the outer one has two large ones, and of one parallel region: the inner call is
    serial within it. Sampling selects with top-k, whose largest kernel is the sort; top-k calls softmax."""
    region = largest(frames, "core/parallel")
    sort = max(by["v64_sort"] for by in frames.values() if "v64_sort" in by)
    sample = largest(frames, "ops/sample", 2), largest(frames, "ops/topk"), region, sort
    topk = largest(frames, "ops/topk", 2), largest(frames, "ops/softmax"), region, largest(frames, "isa")
    assert sum(sample) + BETWEEN <= MOST, sample
    assert sum(topk) + BETWEEN <= MOST, topk
