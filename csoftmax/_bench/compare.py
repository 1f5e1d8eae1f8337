"""Comparing csoftmax with the installed peers and a plain copy in one interleaved run.

Inputs and outputs are allocated and touched first, all contenders work on the same arrays, and the result of each is
compared with csoftmax's before it is timed.  timing.py takes the samples; peers.py has the contenders.
"""

from __future__ import annotations

import datetime
import gc
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import csoftmax

from .._cpu import binding
from .._runtime.optional import UnusableError, progress
from .cases import CHAINS, LENGTHS, LOSSES, MANY_CLASSES, ROW_OPS, SPARSE, SUMMARIES, WITHOUT_OUT, Case
from .heads import HEADS
from .peers import ALWAYS, PEERS, Copy, Csoftmax, Peer, allow_all_cpus, default_threads
from .problems import ChainProblem, LeftOutError, LossProblem, Problem, RecordProblem, RowProblem, SparseProblem
from .sampled import AliasProblem, SampledProblem
from .timing import Contender, OtherProcesses, geometric_mean, interleave, ratio

# Tolerances within which two results count as those of the same function.
TOLERANCE = {"float16": 2e-2, "bfloat16": 2e-1, "float32": 1e-3, "float64": 1e-6}
NOTES = {
    "threads": "Each thread pool keeps its own waiting policy; no sample begins while threads of another pool spin.",
    "scipy": "SciPy has no out= and one thread.",
    "jax": "JAX has no out=.",
    "isa": "PyTorch is held to the same instruction set; ONNX Runtime, NumPy and SciPy cannot be.",
}
# by "numpy" and the operation, where NumPy's time is not that of a solution of the same problem
NOTES |= dict.fromkeys(
    ("numpy hs", "numpy adaptive", "numpy int8"),
    "NumPy's time is that of the product with all classes alone, without a loss, a gradient or a top-k.",
)
NOTES["numpy sampled"] = "NumPy's time is that of the three products alone, the bound of every implementation."
NOTES["numpy mach"] = "NumPy's time is that of the gathers alone, without the product and the softmax."
EXAMPLE_LENGTHS = {"rows": "32", "classes": "100", "features": "64", "k": "5"}
EXAMPLE_LENGTHS |= {"sequences": "32", "positions": "40", "tags": "9", "draws": "1000", "negatives": "16"}
EXAMPLE_LENGTHS |= {"buckets": "16", "hashes": "4"}
MANY_CLASS_PROBLEMS: dict[str, Any] = {"alias": AliasProblem, "sampled": SampledProblem, **HEADS}
LeftOut = dict[tuple[str, str], list[str]]  # by contender and reason: the cases


class Request(NamedTuple):
    """A requested comparison."""

    op: str
    cases: Sequence[Case]
    peers: Sequence[str]  # names in PEERS
    threads: Sequence[int] | None = None  # None: 1, and as many as csoftmax uses here
    fresh: bool = False  # also with results in new memory
    rounds: int | None = None  # None: as many as fit in the budget of a line
    isa: str | None = None  # the instruction set that was forced
    command: Sequence[str] = ()  # the arguments of the command line, for the report


@allow_all_cpus()
def compare(request: Request) -> dict[str, Any]:
    """Measure every case, in every mode, with every number of threads; returns the report."""
    max_threads = default_threads()
    counts = request.threads or sorted({1, max_threads})
    if max(counts) > max_threads:
        raise UnusableError(f"--threads {max(counts)}: csoftmax uses no more than {max_threads} threads here")
    for case in request.cases:
        check_shape(case)
    others = OtherProcesses()
    left_out: LeftOut = {}
    contenders = find_contenders(request.peers, left_out)
    modes = find_modes(request)
    lines = []
    with progress(len(request.cases) * len(modes) * len(counts), "bench") as bar:
        for case in request.cases:
            for mode in modes:
                for threads in counts:
                    bar.set_postfix_str(f"{case}, {threads} threads")
                    line = measure(case, mode, threads, contenders, left_out, request.rounds)
                    lines += [line] if line else []
                    bar.update()
    return {
        "header": describe(request, contenders, counts, others),
        "left_out": [
            {"name": name, "reason": reason, "cases": where if len(where) < len(request.cases) else []}
            for (name, reason), where in left_out.items()
        ],
        "cases": lines,
        "summaries": summarize(lines, request.cases),
    }


def check_shape(case: Case) -> None:
    """Refuse a shape that the operation or the axis does not fit."""
    if not -len(case.shape) <= case.axis < len(case.shape):
        raise UnusableError(f"--axis {case.axis} is out of range for the shape {case.shape}")
    lengths = LENGTHS.get(case.op, ())
    if not lengths:
        return
    given = f"--shapes {'x'.join(map(str, case.shape))}"
    if len(case.shape) != len(lengths):
        example = "x".join(EXAMPLE_LENGTHS[name] for name in lengths)
        raise UnusableError(f"{given}: the shape of {case.op} is {' x '.join(lengths)}, such as {example}")
    sizes = dict(zip(lengths, case.shape, strict=True))
    if sizes.get("k", 0) > sizes.get("classes", 0):
        raise UnusableError(f"{given}: k, the last length, must be at most the number of classes, {sizes['classes']}")
    if sizes.get("buckets", 2) < 2:
        raise UnusableError(f"{given}: there must be at least 2 buckets")


def find_modes(request: Request) -> list[str]:
    """Return the modes that are measured: results in given memory, in new memory, or both."""
    if request.op in WITHOUT_OUT:
        return ["fresh"]
    return ["out", "fresh"] if request.fresh else ["out"]


def find_contenders(names: Sequence[str], left_out: LeftOut) -> list[Peer]:
    """Return csoftmax, the copies, and the peers that can be imported; the others are entered in `left_out`."""
    found = [peer() for peer in ALWAYS]
    for name in names:
        try:
            found.append(PEERS[name]())
        except ImportError as error:
            left_out[name, f"cannot be imported: {error}"] = []
    return found


def leave_out(left_out: LeftOut, name: str, reason: str, case: Case) -> None:
    """Enter a contender that cannot take part in a case."""
    where = left_out.setdefault((name, reason), [])
    if str(case) not in where:
        where.append(str(case))


def make_problem(case: Case, fresh: bool) -> Problem:
    """Make the arrays of a case, or raise `LeftOutError`."""
    if case.op in MANY_CLASSES:
        return MANY_CLASS_PROBLEMS[case.op](case, fresh)
    if case.op in LOSSES:
        return LossProblem(case, fresh)
    if case.op in SPARSE:
        return SparseProblem(case, fresh)
    if case.op in CHAINS:
        return ChainProblem(case, fresh)
    try:
        return RowProblem(case, fresh) if case.op in ROW_OPS else RecordProblem(case, fresh)
    except ImportError:
        raise LeftOutError("NumPy has bfloat16 only with ml_dtypes, which is not installed") from None


def measure(
    case: Case, mode: str, threads: int, contenders: Sequence[Peer], left_out: LeftOut, rounds: int | None
) -> dict[str, Any] | None:
    """Measure one line of the table; None if csoftmax itself cannot take part."""
    try:
        problem = make_problem(case, mode == "fresh")
    except LeftOutError as reason:
        leave_out(left_out, "all contenders", str(reason), case)
        return None
    prepared = prepare(problem, threads, contenders, left_out)
    gc.collect()
    seconds = interleave(prepared, rounds, threads)
    results = {}
    for contender in prepared:
        median = np.median(seconds[contender.name])
        moved = 2 * problem.x.nbytes if contender.name.startswith("copy") else problem.nbytes
        results[contender.name] = {
            "us": float(median * 1e6),
            "ratio": ratio(seconds, contender.name, "csoftmax"),
            "gb_per_s": float(moved / median / 1e9),
            "call": contender.statement,
        }
    return {
        "case": str(case),
        "group": case.group,
        "op": case.op,
        "shape": list(case.shape),
        "axis": case.axis,
        "dtype": case.dtype,
        "mode": mode,
        "threads": threads,
        "bytes": problem.nbytes,
        "rounds": len(seconds["csoftmax"]),
        "results": results,
    }


def prepare(problem: Problem, threads: int, contenders: Sequence[Peer], left_out: LeftOut) -> list[Contender]:
    """Return the statements of the contenders that can take part and whose results agree with csoftmax's."""
    reference = None
    prepared = []
    for peer in contenders:
        try:
            peer.set_threads(threads)
            contender = peer.prepare(problem)
            result = run_once(contender, problem)
            if isinstance(peer, Csoftmax):
                reference = result
            elif problem.is_comparable and not isinstance(peer, Copy):
                check_result(result, reference, problem.case.dtype)
        except LeftOutError as reason:
            if not isinstance(peer, Copy):
                leave_out(left_out, peer.name, str(reason), problem.case)
        except Exception as error:
            if isinstance(peer, Csoftmax):
                raise
            # a peer's own refusal, for example of a dtype
            leave_out(left_out, peer.name, f"{str(error).splitlines()[0]:.100}", problem.case)
        else:
            prepared.append(contender)
    return prepared


def run_once(contender: Contender, problem: Problem) -> Any:
    """Return the result of a contender as a new float64 array; None if there is nothing to compare."""
    problem.out.view(np.uint8).fill(0xFF)  # NaN, so that a contender that writes nothing is detected
    with contender.context():
        result = eval(contender.statement, contender.names)
    if contender.fills_out:
        result = problem.out
    elif isinstance(result, list):
        result = result[0]
    elif type(result).__module__ == "torch" and problem.out.dtype.name == "bfloat16":
        result = result.float()
    # random draws, and operations that no peer has
    return None if result is None or not problem.is_comparable else np.array(result, dtype=np.float64)


def check_result(result: Any, reference: Any, dtype: str) -> None:
    """Refuse a contender whose result differs from csoftmax's."""
    if not np.allclose(result, reference, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 1e-2):
        raise LeftOutError("its result differs")


def summarize(lines: Sequence[dict[str, Any]], cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return the geometric means and the lowest of the ratios, for each group of SUMMARIES, mode and thread count."""
    case_of = {str(case): case for case in cases}
    found = []
    for what, belongs in SUMMARIES.items():
        for mode, threads in dict.fromkeys((line["mode"], line["threads"]) for line in lines):
            chosen = [
                line["results"]
                for line in lines
                if (line["mode"], line["threads"]) == (mode, threads) and belongs(case_of[line["case"]])
            ]
            for name in dict.fromkeys(name for results in chosen for name in results if name != "csoftmax"):
                ratios = [results[name]["ratio"] for results in chosen if name in results]
                found.append(
                    {
                        "what": what,
                        "mode": mode,
                        "threads": threads,
                        "peer": name,
                        "geometric_mean": geometric_mean(ratios),
                        "lowest": min(ratios),
                        "cases": len(ratios),
                    }
                )
    return found


def describe(
    request: Request, contenders: Sequence[Peer], counts: Sequence[int], others: OtherProcesses
) -> dict[str, Any]:
    """Return the header of the report: when, where and on what it was measured."""
    wanted = {peer.name for peer in contenders}
    wanted |= {f"numpy {request.op}"} if "numpy" in wanted else set()
    wanted |= {"threads"} if max(counts) > 1 else set()
    wanted |= {"isa"} if request.isa else set()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "csoftmax", *request.command]),
        "commit": find_commit(),
        "op": request.op,
        "cpu": find_cpu_model(),
        "cpus": os.cpu_count(),
        "isa": binding.isa(),
        "threads": list(counts),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "versions": {peer.name: peer.version for peer in contenders if not isinstance(peer, Copy)},
        "seconds": round(others.elapsed(), 1),
        "other_processes_cpus": others.cpus(),
        "notes": [text for key, text in NOTES.items() if key in wanted],
    }


def find_cpu_model() -> str:
    """Return the name of the CPU."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def find_commit() -> str | None:
    """Return the commit of the checkout that the package lies in, marked if it has changes; None elsewhere."""
    root = Path(csoftmax.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
