"""``python -m csoftmax bench --device cuda``: bandwidth beside a copy on the device, CuPy and PyTorch.

Contenders take turns; each turn is timed by two events around enough calls to last 2 ms, so that launches overlap as
they do in use.  GB/s counts one read and one write of the logits (for top-k one read), the least that anyone can do;
"of copy" is the share of the GB/s of a copy from device memory to device memory in the same round.
"""

import json
import sys

import numpy as np

import csoftmax

from .. import _cuda
from .optional import UnusableError, progress
from .table import layout
from .timing import geometric_mean

SHAPES = ((32768, 256), (16384, 1024), (4096, 4096), (2048, 16384), (1024, 50257), (512, 131072), (8, 4194304))
SAMPLE = 0.002  # seconds
OPS = ("softmax", "log_softmax", "cross_entropy", "topk", "sparsemax", "entmax")
K = 50  # of top-k


def run(options):
    if options.op not in OPS:
        raise UnusableError(f"--device cuda measures {', '.join(OPS)}, not {options.op}")
    try:
        cupy = _cuda.require(None)
    except _cuda.Unavailable as error:
        raise UnusableError(str(error)) from None
    shapes, dtype = options.shapes or SHAPES, options.dtype or "float32"
    lines = []
    with progress(len(shapes), "bench") as bar:
        for shape in shapes:
            bar.set_postfix_str(f"{shape} {dtype}")
            lines.append(measure(cupy, options.op, shape, dtype, options.rounds or 9))
            bar.update()
    header = {"device": _cuda.state()["reason"], "csoftmax": csoftmax.__version__, "op": options.op, "dtype": dtype}
    report = {"header": header, "cases": lines, "summary": summary(lines)}
    if options.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        show(report)
    return 0


def contenders(cupy, op, shape, dtype):
    """name: a call without arguments, for everyone who can do it."""
    rng = np.random.default_rng(0)
    x = cupy.asarray(rng.standard_normal(shape, dtype=np.float32).astype(dtype))
    out = cupy.empty_like(x)
    labels = cupy.asarray(rng.integers(0, shape[-1], shape[0]))
    function = getattr(csoftmax, op if op != "cross_entropy" else "cross_entropy_with_grad")
    calls = {"copy": lambda: cupy.copyto(out, x)}
    k = min(K, shape[-1])
    if op == "cross_entropy":
        calls["csoftmax"] = lambda: function(x, labels, out=out)
    elif op == "topk":
        calls["csoftmax"] = lambda: function(x, k)
    else:
        calls["csoftmax"] = lambda: function(x, out=out)
    if op in ("softmax", "log_softmax"):
        try:
            from cupyx.scipy import special

            calls["cupyx"] = lambda: getattr(special, op)(x, axis=-1)
        except ImportError:
            pass
    try:
        import torch
    except ImportError:
        return calls
    if not torch.cuda.is_available():
        return calls
    theirs, target = torch.from_dlpack(x), torch.from_dlpack(labels)
    if op == "cross_entropy":
        theirs = theirs.clone().requires_grad_()

        def both():
            theirs.grad = None
            torch.nn.functional.cross_entropy(theirs, target).backward()

        calls["torch"] = both
    elif op == "topk":
        calls["torch"] = lambda: torch.topk(theirs, k)
    elif hasattr(torch, op):
        calls["torch"] = lambda: getattr(torch, op)(theirs, -1)
    return calls


def seconds(cupy, call, number):
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    for _ in range(number):
        call()
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(begin, end) / 1000 / number


def measure(cupy, op, shape, dtype, rounds):
    """Median over the rounds: GB/s of everyone, and csoftmax's speed as a multiple of theirs."""
    calls = contenders(cupy, op, shape, dtype)
    numbers = {}
    for name, call in calls.items():
        seconds(cupy, call, 3)  # compiled, memory at hand
        numbers[name] = max(1, min(1000, int(SAMPLE / max(seconds(cupy, call, 3), 1e-9))))
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(cupy, call, numbers[name]))
    times = {name: np.array(t) for name, t in times.items()}
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    traffic = {name: size if op == "topk" and name != "copy" else 2 * size for name in calls}
    return {
        "shape": list(shape),
        "gb_per_s": {name: float(traffic[name] / np.median(t) / 1e9) for name, t in times.items()},
        "faster_than": {
            name: float(np.median(t / times["csoftmax"])) * traffic["csoftmax"] / traffic[name]
            for name, t in times.items()
            if name != "csoftmax"
        },
    }


def summary(lines):
    names = sorted({name for line in lines for name in line["faster_than"]})
    return {
        name: geometric_mean([line["faster_than"][name] for line in lines if name in line["faster_than"]])
        for name in names
    }


def show(report):
    h = report["header"]
    print(f"csoftmax {h['csoftmax']}, {h['op']}, {h['dtype']}; {h['device']}\n")
    names = list(report["summary"])
    rows = [["shape", "GB/s", *(f"of {n}" if n == "copy" else f"faster than {n}" for n in names)]]
    for line in report["cases"]:
        cells = [f"{line['faster_than'][n]:.2f}" if n in line["faster_than"] else "-" for n in names]
        rows.append([str(tuple(line["shape"])), f"{line['gb_per_s']['csoftmax']:.0f}", *cells])
    rows.append(["geometric mean", "", *(f"{report['summary'][n]:.2f}" for n in names)])
    print("\n".join(layout(rows, "<" + ">" * (len(names) + 1))))
