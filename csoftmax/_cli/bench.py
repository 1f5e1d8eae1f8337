"""``python -m csoftmax bench``: speed beside the installed peers and a plain copy, in one interleaved run.

Input and output are allocated and touched first, everyone works on the same arrays, and everyone's result is
compared with csoftmax's before it is timed.  timing.py says how the samples are taken, peers.py who takes part.
"""

import datetime
import gc
import json
import os
import platform
import shlex
import sys
from pathlib import Path

import numpy as np

from .._cpu import binding
from . import choices, peers, roofline
from .optional import UnusableError, check_picture, load, progress
from .table import layout
from .timing import Bystanders, geometric_mean, interleave, ratio

# How to hold PyTorch to the same instruction set.
ATEN = {"scalar": "default", "avx2": "avx2", "avx512": "avx512"}
# Results may differ from csoftmax's by this much and still be the same function.
TOLERANCE = {"float16": 2e-2, "bfloat16": 2e-1, "float32": 1e-3, "float64": 1e-6}
NOTES = {
    "threads": "Each thread pool keeps its own waiting policy; nobody is timed while the threads of another spin.",
    "scipy": "SciPy has no out= and one thread.",
    "jax": "JAX has no out=.",
    "isa": "PyTorch is held to the same instruction set; ONNX Runtime, NumPy and SciPy cannot be.",
}


def run(options):
    if options.plot:
        load("matplotlib", "bench")
        check_picture(options.plot)
    if options.isa and os.environ.get("CSOFTMAX_ISA") != options.isa:
        restart(options)
    with peers.any_threads():
        report = compare_all(options)
    if options.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        show(report)
    if options.plot:
        roofline.draw(report, options.plot)
        print(f"picture: {options.plot}", file=sys.stderr)
    return 0


def compare_all(options):
    """The report: every case, in every mode, with every number of threads."""
    most = peers.csoftmax_default_threads()
    counts = options.threads or sorted({1, most})
    if max(counts) > most:
        raise UnusableError(f"--threads {max(counts)}: csoftmax uses no more than {most} threads here")
    cases = choices.cases(options.op, options.group, options.shapes, options.axis, options.dtype)
    for case in cases:
        if not -len(case.shape) <= case.axis < len(case.shape):
            raise UnusableError(f"--axis {case.axis} is out of range for the shape {case.shape}")
    others = Bystanders()
    taking, left_out = gather(options.peers)
    lines = []
    # a log-sum-exp is small and always new
    without_out = ("logsumexp", "linear_cross_entropy", "topk", "topk_softmax")
    modes = ["fresh"] if options.op in without_out else ["out", "fresh"] if options.fresh else ["out"]
    with progress(len(cases) * len(modes) * len(counts), "bench") as bar:
        for case in cases:
            for mode in modes:
                for threads in counts:
                    bar.set_postfix_str(f"{case}, {threads} threads")
                    line = measure(case, mode, threads, taking, left_out, options.rounds)
                    lines += [line] if line else []
                    bar.update()
    return {
        "header": header(options, taking, counts, others),
        "left_out": [
            {"name": name, "reason": reason, "cases": where if len(where) < len(cases) else []}
            for (name, reason), where in left_out.items()
        ],
        "cases": lines,
        "summaries": summaries(lines, cases),
    }


def restart(options):
    """Begin again with the instruction set forced: libraries choose theirs when they are loaded."""
    environment = os.environ | {"CSOFTMAX_ISA": options.isa}
    if options.isa in ATEN:
        environment["ATEN_CPU_CAPABILITY"] = ATEN[options.isa]
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "csoftmax", *options.argv], environment)


def gather(names):
    """Everyone who takes part, and a place for the reasons why others do not."""
    left_out = {}
    taking = [peer() for peer in peers.OWN]
    for name in choices.PEERS if names is None else names:
        try:
            taking.append(peers.INSTALLED[name]())
        except ImportError as error:
            left_out[name, f"cannot be imported: {error}"] = []
    return taking, left_out


def measure(case, mode, threads, taking, left_out, rounds):
    """One line of the table, or None if not even csoftmax can do it."""

    def leave_out(name, reason):
        where = left_out.setdefault((name, reason), [])
        where += [str(case)] if str(case) not in where else []

    try:
        problem = peers.problem(case, mode == "fresh")
    except peers.LeftOutError as reason:
        leave_out("everyone", str(reason))
        return None
    reference = None
    contenders = []
    for peer in taking:
        try:
            peer.threads(threads)
            contender = peer.contender(problem)
            result = once(contender, problem)
            if isinstance(peer, peers.Csoftmax):
                reference = result
            elif not isinstance(peer, peers.Copy):
                compare(result, reference, case.dtype)
        except peers.LeftOutError as reason:
            if not isinstance(peer, peers.Copy):
                leave_out(peer.name, str(reason))
        except Exception as error:
            if isinstance(peer, peers.Csoftmax):
                raise
            # a peer's own refusal, such as a dtype that it does not know
            leave_out(peer.name, f"{str(error).splitlines()[0]:.100}")
        else:
            contenders.append(contender)
    gc.collect()
    seconds = interleave(contenders, rounds, threads)
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
        "results": {
            contender.name: {
                "us": float(np.median(seconds[contender.name]) * 1e6),
                "ratio": ratio(seconds, contender.name, "csoftmax"),
                "gb_per_s": float(bytes_of(contender.name, problem) / np.median(seconds[contender.name]) / 1e9),
                "call": contender.statement,
            }
            for contender in contenders
        },
    }


def bytes_of(name, problem):
    return 2 * problem.x.nbytes if name.startswith("copy") else problem.nbytes


def once(contender, problem):
    """What a contender computes, as a NumPy array of its own."""
    problem.out.view(np.uint8).fill(0xFF)  # NaN: whoever writes nothing is found out
    with contender.context():
        result = eval(contender.statement, contender.names)
    if "out" in contender.statement or "binding" in contender.statement:
        result = problem.out
    elif isinstance(result, list):
        result = result[0]
    elif type(result).__module__ == "torch" and problem.out.dtype.name == "bfloat16":
        result = result.float()
    return None if result is None else np.array(result, dtype=np.float64)


def compare(result, reference, dtype):
    if not np.allclose(result, reference, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 1e-2):
        raise peers.LeftOutError("gives another result")


def summaries(lines, cases):
    """Geometric means of the ratios."""
    case_of = {str(case): case for case in cases}
    found = []
    runs = dict.fromkeys((line["mode"], line["threads"]) for line in lines)
    for what, belongs in choices.SUMMARIES.items():
        for mode, threads in runs:
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


def cpu_model():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def header(options, taking, counts, others):
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "csoftmax", *options.argv]),
        "op": options.op,
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "isa": binding.isa(),
        "threads": counts,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "versions": {peer.name: peer.version for peer in taking if not isinstance(peer, peers.Copy)},
        "seconds": round(others.seconds(), 1),
        "other_processes_cpus": others.cpus(),
        "notes": [
            text
            for key, text in NOTES.items()
            if (key == "threads" and max(counts) > 1)
            or (key == "isa" and options.isa)
            or key in {peer.name for peer in taking}
        ],
    }


MODES = {"out": "results into memory that exists (out=)", "fresh": "results in new memory"}


def show(report):
    head = report["header"]
    print(f"{head['command']}\n{head['date']}, {head['cpu']} ({head['cpus']} CPUs), ISA {head['isa']}")
    print(", ".join(f"{name} {version}" for name, version in {"numpy": head["numpy"], **head["versions"]}.items()))
    for line in head["notes"]:
        print(line)
    for each in report["left_out"]:
        where = f" [{'; '.join(each['cases'])}]" if each["cases"] else ""
        print(f"left out: {each['name']}, {each['reason']}{where}")
    for mode, text in MODES.items():
        for threads in head["threads"]:
            chosen = [line for line in report["cases"] if (line["mode"], line["threads"]) == (mode, threads)]
            means = [each for each in report["summaries"] if (each["mode"], each["threads"]) == (mode, threads)]
            if chosen:
                print(f"\n{head['op']}, {threads} thread{'s' * (threads > 1)}, {text}")
                print("microseconds per call; behind them time / csoftmax's time (above 1: csoftmax is faster)")
                print("\n".join(tabulate(chosen, means)))
    others = head["other_processes_cpus"]
    print(f"\n{head['seconds']} s" + ("" if others is None else f"; meanwhile other processes used {others:.2f} CPUs"))
    if others is not None and others > 0.1:
        print("The machine was not idle: do not rely on these figures, on those with several threads least of all.")


def tabulate(lines, means):
    names = list(dict.fromkeys(name for line in lines for name in line["results"] if name != "csoftmax"))
    rows = [("", "csoftmax", "GB/s", *(cell for name in names for cell in (name, "")), "rounds")]
    for line in lines:
        own = line["results"]["csoftmax"]
        cells = [line["case"], number(own["us"]), f"{own['gb_per_s']:.1f}"]
        for name in names:
            result = line["results"].get(name)
            cells += [number(result["us"]), f"{result['ratio']:.2f}"] if result else ["-", ""]
        rows.append((*cells, str(line["rounds"])))
    for what in dict.fromkeys(each["what"] for each in means):
        by_name = {each["peer"]: each for each in means if each["what"] == what}
        for text, key in (("geometric mean", "geometric_mean"), ("lowest", "lowest")):
            cells = [f"{text}, {what}", "", ""]
            for name in names:
                cells += ["", f"{by_name[name][key]:.2f}" if name in by_name else ""]
            rows.append((*cells, ""))
    return layout(rows, "<" + ">" * (len(rows[0]) - 1))


def number(us):
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 1000 else f"{us:,.0f}"
