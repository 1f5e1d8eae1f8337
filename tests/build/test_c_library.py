"""The C library without Python: built, tested, installed and used with CMake; its symbols; its binary interface.

It needs the sources: the tests of an installed package are test_embedding.py and test_build.py.  CSM_CMAKE_BUILD: the
build directory (default: temporary).
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import HAS_CMAKE, ROOT

import csoftmax
from csoftmax._cpu import binding

fcntl = pytest.importorskip("fcntl", reason="Unix only")
pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU ld and ELF"),
    pytest.mark.skipif(not HAS_CMAKE, reason="needs cmake, cc, binutils"),
]
# Symbols of the compiler, and the table of position-independent code.
HARMLESS = {"__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}


def output(*command, cwd=None):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600, check=False, cwd=cwd
    )
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A build directory, shared by all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = Path(os.environ.get("CSM_CMAKE_BUILD", shared / "cmake"))
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        output("cmake", "-S", ROOT / "src_c", "-B", folder)
        output("cmake", "--build", folder, "-j", "2")
    return folder


@pytest.fixture(scope="module")
def symbols(built):
    """{object of the library: [(kind, name), ...]}; lower-case kinds are local."""
    table, member = {}, None
    for line in output("nm", built / "libcsoftmax.a").splitlines():
        if line.endswith(".o:"):
            member = line[:-5]  # name.c.o
            table[member] = []
        elif line:
            *_, kind, name = line.split()
            table[member].append((kind, name))
    return table


@pytest.mark.parametrize("unit", binding.ISAS)
def test_unit(symbols, unit):
    """A unit exports one symbol and uses none of libc."""
    found = symbols[unit]
    exported = [name for kind, name in found if kind.isupper() and kind != "U"]
    assert exported == [f"csm_table_{unit}"]
    undefined = {name for kind, name in found if kind == "U"} - HARMLESS
    assert undefined <= ({"fma", "fmaf"} if unit == "scalar" else set())


def test_names(symbols):
    """Every exported name begins with csm_, and all functions of the public header are exported."""
    exported = {name for found in symbols.values() for kind, name in found if kind.isupper() and kind != "U"}
    assert [name for name in exported if not name.startswith("csm_")] == []
    header = runpy.run_path(str(ROOT / "src_c" / "make_interface.py"))["header_text"]()
    declared = set(re.findall(r"^(?:csm_status|size_t|int|const char \*) ?(csm_\w+)\(", header, re.MULTILINE))
    assert len(declared) >= 26
    assert declared <= exported


def test_only_one_file_has_threads(symbols):
    with_openmp = {
        member for member, found in symbols.items() if any(re.match("GOMP_|omp_", name) for _, name in found)
    }
    assert with_openmp == {"parallel"}


def test_its_own_tests(built):
    assert "100% tests passed" in output("ctest", "--test-dir", built, "--output-on-failure")


@pytest.mark.parametrize("way", ["cmake", "pkg-config"])
def test_installed(built, tmp_path, way):
    """A program finds the installed library without Python."""
    embed, installed = ROOT / "tests" / "build" / "embed", tmp_path / "moved"
    output("cmake", "--install", built, "--prefix", installed)
    if way == "cmake":
        output("cmake", "-S", embed, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={installed}")
        output("cmake", "--build", tmp_path)
    else:
        if shutil.which("pkg-config") is None:
            pytest.skip("pkg-config is not installed")
        (description,) = installed.rglob("csoftmax.pc")
        where = f"PKG_CONFIG_PATH={description.parent}"
        flags = output("env", where, "pkg-config", "--static", "--cflags", "--libs", "csoftmax").split()
        output("cc", embed / "embed.c", "-o", tmp_path / "embed", *flags)
    first = output(tmp_path / "embed", 3, 10).splitlines()[0]
    assert first.split()[1] == binding.ABI


def test_flags_are_for_files_that_exist():
    """A line of flags.txt for a file that has been moved would have no effect."""
    lines = [
        line.split() for line in (ROOT / "src_c" / "flags.txt").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    assert {kind for kind, *_ in lines} == {"gnu", "gnu-x86", "gcc", "release", "wheel", "msvc", "msvc-x86"}
    assert all(flags for _, _, *flags in lines)
    sources = {"*", "csoftmax/_cpu/binding.c"}  # Cython writes the latter
    assert {file for _, file, *_ in lines if file not in sources and not (ROOT / "src_c" / file).is_file()} == set()
    assert (ROOT / "csoftmax/_cpu/binding.pyx").is_file()


def test_abi():
    """Compiled programs continue to work; additions have a new minor version (see make_interface.py)."""
    script = runpy.run_path(str(ROOT / "src_c" / "make_interface.py"))
    now = script["generate"]()[script["ABI"]].splitlines()
    then = script["ABI"].read_text().splitlines()
    gone = [line for line in then if line not in now and not line.startswith(("abi ", "struct "))]
    assert gone == [], "CSM_ABI_MAJOR and SONAME must change"
    assert now == then, "run make generate"


def test_symbols():
    """The library exports what the header declares."""
    symbols = output("nm", "-D", "--defined-only", csoftmax.get_library()).split("\n")
    exported = [line.split()[-1] for line in symbols if "@@CSOFTMAX_" in line and not line.endswith("_PRIVATE")]
    then = (ROOT / "tests" / "records" / "abi.txt").read_text().splitlines()
    assert [f"symbol {name}" for name in sorted(exported)] == [line for line in then if line.startswith("symbol ")]
