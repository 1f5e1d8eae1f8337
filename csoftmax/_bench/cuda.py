"""Comparing csoftmax on a CUDA device with a copy on the device, CuPy and PyTorch.

Contenders take turns; two events time each turn, of enough calls to last 2 ms, so that launches overlap as they do in
use.  GB/s counts one read and one write of the logits (for top-k one read), which is the minimum traffic; "of copy" is
the share of the GB/s of a copy from device memory to device memory in the same round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import csoftmax

from .. import _cuda
from .._runtime.optional import UnusableError, progress
from .table import layout, layout_markdown
from .timing import SAMPLE_SECONDS, geometric_mean

SHAPES = ((32768, 256), (16384, 1024), (4096, 4096), (2048, 16384), (1024, 50257), (512, 131072), (8, 4194304))
OPS = ("softmax", "log_softmax", "cross_entropy", "topk", "sparsemax", "entmax")
TOPK_K = 50
Call = Callable[[], Any]


def compare_on_device(
    op: str, shapes: Sequence[tuple[int, ...]] | None, dtype: str, rounds: int, command: str
) -> dict[str, Any]:
    """Measure an operation on the device; returns the report."""
    if op not in OPS:
        raise UnusableError(f"--device cuda measures {', '.join(OPS)}, not {op}")
    try:
        cupy = _cuda.require(None)
    except _cuda.Unavailable as error:
        raise UnusableError(str(error)) from None
    shapes = SHAPES if shapes is None else shapes
    lines = []
    with progress(len(shapes), "bench") as bar:
        for shape in shapes:
            bar.set_postfix_str(f"{shape} {dtype}")
            lines.append(measure(cupy, op, shape, dtype, rounds))
            bar.update()
    header = {
        "command": command,
        "device": _cuda.state()["reason"],
        "csoftmax": csoftmax.__version__,
        "op": op,
        "dtype": dtype,
    }
    return {"header": header, "cases": lines, "summary": summarize(lines)}


def prepare_calls(cupy: Any, op: str, shape: tuple[int, ...], dtype: str) -> dict[str, Call]:
    """Return, by name, a call without arguments for each contender that has the operation."""
    rng = np.random.default_rng(0)
    x = cupy.asarray(rng.standard_normal(shape, dtype=np.float32).astype(dtype))
    out = cupy.empty_like(x)
    labels = cupy.asarray(rng.integers(0, shape[-1], shape[0]))
    k = min(TOPK_K, shape[-1])
    function = getattr(csoftmax, op if op != "cross_entropy" else "cross_entropy_with_grad")
    calls: dict[str, Call] = {"copy": lambda: cupy.copyto(out, x)}
    if op == "cross_entropy":
        calls["csoftmax"] = lambda: function(x, labels, out=out)
    elif op == "topk":
        calls["csoftmax"] = lambda: function(x, k)
    else:
        calls["csoftmax"] = lambda: function(x, out=out)
    if op in ("softmax", "log_softmax"):
        try:
            from cupyx.scipy import special
        except ImportError:
            pass
        else:
            calls["cupyx"] = lambda: getattr(special, op)(x, axis=-1)
    return calls | prepare_torch(op, x, labels, k)


def prepare_torch(op: str, x: Any, labels: Any, k: int) -> dict[str, Call]:
    """Return PyTorch's call on the same arrays, if it is installed with CUDA and has the operation."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    logits, target = torch.from_dlpack(x), torch.from_dlpack(labels)
    if op == "cross_entropy":
        logits = logits.clone().requires_grad_()

        def step() -> None:
            logits.grad = None
            torch.nn.functional.cross_entropy(logits, target).backward()

        return {"torch": step}
    if op == "topk":
        return {"torch": lambda: torch.topk(logits, k)}
    if hasattr(torch, op):
        return {"torch": lambda: getattr(torch, op)(logits, -1)}
    return {}


def time_calls(cupy: Any, call: Call, number: int) -> float:
    """Return the seconds per call, of `number` calls between two events."""
    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    for _ in range(number):
        call()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(begin, end) / 1000 / number)


def measure(cupy: Any, op: str, shape: tuple[int, ...], dtype: str, rounds: int) -> dict[str, Any]:
    """Return the GB/s of each contender and csoftmax's speed as a multiple of its speed: medians over the rounds."""
    calls = prepare_calls(cupy, op, shape, dtype)
    numbers = {}
    for name, call in calls.items():
        time_calls(cupy, call, 3)  # compiles, and allocates the memory of results
        numbers[name] = max(1, min(1000, int(SAMPLE_SECONDS / max(time_calls(cupy, call, 3), 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(time_calls(cupy, call, numbers[name]))
    seconds = {name: np.array(sample) for name, sample in samples.items()}
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    traffic = {name: size if op == "topk" and name != "copy" else 2 * size for name in calls}
    return {
        "shape": list(shape),
        "gb_per_s": {name: float(traffic[name] / np.median(each) / 1e9) for name, each in seconds.items()},
        "faster_than": {
            name: float(np.median(each / seconds["csoftmax"])) * traffic["csoftmax"] / traffic[name]
            for name, each in seconds.items()
            if name != "csoftmax"
        },
    }


def summarize(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the geometric mean of csoftmax's speed over that of each other contender."""
    names = sorted({name for line in lines for name in line["faster_than"]})
    return {
        name: geometric_mean([line["faster_than"][name] for line in lines if name in line["faster_than"]])
        for name in names
    }


def format_device_report(report: dict[str, Any], markdown: bool) -> str:
    """Format the report of `compare_on_device` as a page of text or of Markdown."""
    head = report["header"]
    names = list(report["summary"])
    rows = [["shape", "GB/s", *(f"of {name}" if name == "copy" else f"faster than {name}" for name in names)]]
    for line in report["cases"]:
        cells = [f"{line['faster_than'][name]:.2f}" if name in line["faster_than"] else "-" for name in names]
        rows.append([str(tuple(line["shape"])), f"{line['gb_per_s']['csoftmax']:.0f}", *cells])
    rows.append(["geometric mean", "", *(f"{report['summary'][name]:.2f}" for name in names)])
    about = f"csoftmax {head['csoftmax']}, {head['op']}, {head['dtype']}; {head['device']}"
    lines = (layout_markdown if markdown else layout)(rows, "<" + ">" * (len(names) + 1))
    return "\n".join([*([f"`{head['command']}`", ""] if markdown else []), about, "", *lines])
