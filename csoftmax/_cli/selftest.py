"""``python -m csoftmax selftest``: the package's promises, a fast sample of them, checked on the user's machine.

Each section yields lines (what, figure, limit): a figure is a number of ULP that must not exceed its limit, or a
count of differences that must be 0.  The tests that come with the sources check the same promises far more widely.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

import csoftmax
from csoftmax import distributed

from .._bench.table import layout
from .._cpu import binding
from .._runtime.optional import progress
from .._spec.formats import EXACT, JUDGES_FLOAT64, available_dtypes, count_different_bits, ulp_error, wide
from .._spec.layouts import LAYOUTS, compute_in
from .._spec.operations import BY_NAME, FORWARD, OPERATIONS, SOFTMAX_FAMILY
from .._spec.record import CLASSES, Operation, Sample
from .._spec.samples import logits
from .._spec.softmax import exact_forward

SIZES = (1, 2, 3, 5, 10, 16, 17, 33, 65, 131, 1000, 4099)
# The offsets of float32 and float64 lie on both sides of where the special path for large logits begins.
OFFSETS = {
    "float16": (3e4,),
    "bfloat16": (1e4, -3e8),
    "float32": (9e5, -9e5, 3e8),
    "float64": (9e5, -3e13, 1e15),
}
BITWISE = "reproducibility"
LOSSES = ("loss", "gradient")


class Line(NamedTuple):
    """One line of the table; a limit of None marks a check that cannot be made here."""

    section: str
    what: str
    figure: float | str
    limit: float | None

    @property
    def has_passed(self) -> bool:
        """Whether the figure is within its limit."""
        return self.limit is None or (not isinstance(self.figure, str) and self.figure <= self.limit)


@contextlib.contextmanager
def keep_isa():
    """Restore the instruction set on leaving the context, whatever happens."""
    before = binding.isa()
    try:
        yield
    finally:
        binding.select_isa(before)


def operations(promise: str) -> list[Operation]:
    """Return the operations that make a promise and can be called here."""
    return [op for op in OPERATIONS if op.is_available and promise not in op.exempt]


def count_differences(results, expected) -> int:
    """Count the elements of several results that differ in their bits."""
    return sum(map(count_different_bits, results, expected))


def samples(op: Operation, dtype: str) -> Iterator[Sample]:
    """Yield calls of several sizes and scales with every set of options, and forward ones with logits far from 0."""
    for variant, chosen in op.variants.items():
        if chosen.is_accurate:
            for seed, n in enumerate(SIZES if variant == "plain" else SIZES[1::3]):
                for sigma in (1, 20) if variant == "plain" else (5,):
                    yield op.sample((1 if n > 100 else 4, n), dtype, seed, sigma, variant)
    if op in FORWARD:
        for offset in OFFSETS[dtype]:
            for seed, n in enumerate(SIZES):
                yield Sample({"x": logits((1 if n > 100 else 4, n), dtype, seed, 5.0, offset)}, {})


def accuracy():
    """Compare with long double, in ULP."""
    for dtype in available_dtypes():
        if dtype == "float64" and not JUDGES_FLOAT64:
            yield "float64", "no long double here", None
            continue
        for op in operations("accuracy"):
            worst, figure = -1.0, (0.0, 0.0)
            for sample in samples(op, dtype):
                found = op.errors(sample, op.compute(sample), dtype)
                for error, limit in zip(found, op.limits(dtype, sample.options)):
                    part = error / limit if limit else error
                    if part > worst:
                        worst, figure = part, (error, limit)
            yield f"{op.name} {dtype}", *figure
    for dtype, reach in (("float32", 100), ("float64", 700)):
        if dtype == "float32" or JUDGES_FLOAT64:
            gaps = np.linspace(0, reach, 1001)
            x = np.stack([gaps, np.zeros_like(gaps)], axis=-1).astype(dtype)
            p, log_p = exact_forward(x)[:2]
            yield f"log_softmax {dtype}, gaps to {reach}", ulp_error(csoftmax.log_softmax(x), log_p), 4
            loss, grad = csoftmax.cross_entropy_with_grad(x, np.zeros(len(x), int), reduction="none")
            yield f"cross_entropy {dtype}, gaps to {reach}", ulp_error(loss, -log_p[:, 0]), 4
            yield f"its gradient {dtype}, gaps to {reach}", ulp_error(grad[:, 0], -p[:, 1]), 4


def instruction_sets():
    """Compare the bits of each with those of scalar, which is the specification."""
    with keep_isa():
        for isa in sorted(set(binding.isa_available()) - {"scalar"}):
            for dtype in available_dtypes():
                different = 0
                for op in operations(BITWISE):
                    for seed, n in enumerate(SIZES):
                        for layout_name in ("last axis", "axis 0", "3-d middle")[: 1 + 2 * (n in (5, 33))]:
                            sample = op.sample((9 if n < 100 else 2, n), dtype, seed, (1, 20)[seed % 2])
                            results = []
                            for each in ("scalar", isa):
                                binding.select_isa(each)
                                results.append(compute_in(op, sample, layout_name))
                            different += count_differences(*results)
                yield f"{isa} equals scalar, {dtype}", different, 0


def threads():
    """Compare the bits of every number of threads, and of every split of the batch."""
    largest = max(4, csoftmax.get_num_threads())
    for dtype in available_dtypes():
        different = 0
        for op in operations(BITWISE):
            for seed, shape in enumerate([(24, 3001), (1, 100003)]):
                sample = op.sample(shape, dtype, seed)
                taken = {"num_threads": 1} if op.accepts("num_threads") else {}
                serial = op.compute(sample, **taken)
                for count in {2, 3, largest} if taken else ():
                    different += count_differences(serial, op.compute(sample, num_threads=count))
                for row in range(0, shape[0], 23):
                    alone = op.compute(op.rows(sample, row, row + 1))
                    rows = (result[row : row + 1] for result in op.by_row(serial))
                    different += count_differences(op.by_row(alone), rows) if op.name != "to_csr" else 0
        yield f"1 to {largest} threads, batch split, {dtype}", different, 0


def byte_swapped(op: Operation, sample: Sample) -> Sample:
    """Return the call with arrays of the other byte order."""
    return Sample({name: a.astype(a.dtype.newbyteorder()) for name, a in sample.arrays.items()}, sample.options)


def compute_in_place(op: Operation, sample: Sample, shift: int) -> np.ndarray:
    """Return the result that has the classes, written over the first array, `shift` elements after its start."""
    arrays = dict(sample.arrays)
    name, x = next(iter(arrays.items()))
    whole = np.zeros(x.size + shift, x.dtype)
    arrays[name], out = whole[: x.size].reshape(x.shape), whole[shift:].reshape(x.shape)
    arrays[name][...] = x
    op.call(Sample(arrays, sample.options), out=out)
    return out


def layouts():
    """Compare the bits of every layout in memory, and of calls in place."""
    for dtype in available_dtypes():
        different = dict.fromkeys(["strides and axes", "unaligned", "byte order", "in place and overlapping"], 0)
        for op in operations(BITWISE):
            for n in (3, 45, 300):
                sample = op.sample((6, n), dtype, n)
                plain = op.compute(sample)
                for name in LAYOUTS:
                    what = "unaligned" if "misaligned" in name else "strides and axes"
                    different[what] += count_differences(compute_in(op, sample, name), plain)
                if dtype != "bfloat16":  # ml_dtypes has no other byte order
                    different["byte order"] += count_differences(op.compute(byte_swapped(op, sample)), plain)
                if op.accepts("out") and op.results[-1].role == CLASSES:
                    for shift in (0, 1):
                        found = count_different_bits(compute_in_place(op, sample, shift), plain[-1])
                        different["in place and overlapping"] += found
        for what, count in different.items():
            yield f"{what}, {dtype}", count, 0


def special_rows():
    """Return names, logits, temperatures, and the special value of a record that they hold (None: use the oracle)."""
    inf, nan = np.inf, np.nan
    return [
        ("NaN", [1, nan, 2], 1, "NaN"),
        ("NaN and +inf", [inf, nan, 2], 1, "NaN"),
        ("+inf", [1, inf, 2], 1, "+inf"),
        ("+inf and -inf", [-inf, inf, 2], 1, "+inf"),
        ("some -inf", [3, -inf, 3], 1, None),
        ("all -inf", [-inf] * 3, 1, "all -inf"),
        ("one class", [7], 1, None),
        ("temperature 0", [2, 1, 2], 0, None),
        ("temperature 0, maximum below 0", [-2, -1, -1], 0, None),
        ("temperature 0, maximum 0", [0, -1, 0], 0, None),
        ("temperature inf", [5, -inf, -9], inf, None),
    ]


def special_values():
    """Check the table of special values, at every position in rows of several lengths."""
    for what, row, temperature, special in special_rows():
        wrong = 0
        for dtype in available_dtypes().values():
            for shift in range(len(row)):
                x = np.roll(np.array(row, np.float64), shift).astype(dtype)[np.newaxis]
                for op in FORWARD:
                    got = op.function()(x, temperature=temperature)[0]
                    known = op.special[special][0] if special else op.oracle(x, temperature)[0].value[0]
                    exact = np.broadcast_to(known, np.shape(got)).astype(dtype)
                    agree = np.isclose(wide(got), wide(exact), rtol=1e-2, atol=0, equal_nan=True)
                    exactly = np.isin(wide(exact), [0, 1, np.inf, -np.inf])
                    wrong += int(np.count_nonzero(~agree | (exactly & (got != exact))))
        yield what, wrong, 0
    wrong = 0
    for n in (1, 5, 16, 70, 131):
        for index in range(n):
            x = np.zeros((1, n), np.float32)
            x[0, index] = np.nan
            wrong += not np.isnan(csoftmax.softmax(x)).all()
            x[0, index] = -np.inf
            y = csoftmax.softmax(x)
            wrong += not (np.isnan(y).all() if n == 1 else y[0, index] == 0 and np.count_nonzero(y) == n - 1)
    yield "NaN and -inf at every place", wrong, 0
    empty = [csoftmax.softmax(np.zeros((3, 0))).shape == (3, 0), csoftmax.softmax(np.zeros((0, 3))).shape == (0, 3)]
    empty.append(bool((csoftmax.logsumexp(np.zeros((3, 0))) == -np.inf).all()))
    empty.append(csoftmax.softmax(np.float64(4)) == 1 and csoftmax.log_softmax(np.float64(4)) == 0)
    yield "no classes, no rows, 0-d", empty.count(False), 0


def masks():
    """Check that elements that `where` leaves out are never read, and become 0 or -inf."""
    for dtype, kind in available_dtypes().items():
        worst, wrong = 0.0, 0
        for n in (1, 5, 16, 40, 300, 5000):
            rng = np.random.default_rng(n)
            where = rng.random((5, n)) < 0.6
            where[0], where[1:, 0] = False, True
            garbage = np.resize(np.array([np.nan, np.inf, -np.inf, 6e4]).astype(kind), where.shape)
            for op in SOFTMAX_FAMILY:
                sample = op.sample((5, n), dtype, n)
                dirty = {name: np.where(where, a, garbage) for name, a in sample.arrays.items()}
                (clean,), (result,) = op.compute(sample, where=where), op.compute(Sample(dirty, {}), where=where)
                wrong += count_different_bits(result, clean)
                left_out = result[~where] if op.keeps_axis else result[0]
                absent = -np.inf if op.log and op in FORWARD else 0
                wrong += int(np.count_nonzero(left_out != absent))
                if dtype != "float64" or JUDGES_FLOAT64:
                    kept = Sample(op.rows(sample, 1, 5).arrays, {"where": where[1:]})
                    worst = max(worst, op.errors(kept, (result[1:],), dtype)[0] / op.limits(dtype, {})[0])
        yield f"masked values change nothing, {dtype}", wrong, 0
        yield f"error, as a part of the limit, {dtype}", worst, 1


def gradients():
    """Check elements of gradients that take no part, and a near-certain class."""
    dy, y = np.array([np.nan, 1.0, 2.0]), np.array([0.0, 0.5, 0.5])
    yield "y = 0 takes no part", int(np.count_nonzero(csoftmax.softmax_vjp(dy, y) != [0, -0.25, 0.25])), 0
    dy, y = np.array([np.inf, -1.0, 0.0]), np.array([-np.inf, -np.log(2), -np.log(2)])
    yield "y = -inf takes no part", int(csoftmax.log_softmax_vjp(dy, y)[0] != 0), 0
    x = np.float32([[17.5, 0, 0]])
    dx = csoftmax.log_softmax_vjp(np.float32([[-1, 0, 0]]), csoftmax.log_softmax(x))
    exact = exact_forward(x)[0] - np.eye(1, 3, dtype=EXACT)
    # the target's gradient is minus the sum of the others; forming 1 - p there would lose it
    exact[0, 0] = -exact[0, 1:].sum()
    yield "cross-entropy at logits (17.5, 0, 0)", ulp_error(dx, exact), 4


def sparse():
    """Check rows of many ties: top-k is a stable sort, sparsemax the projection."""
    for dtype, kind in available_dtypes().items():
        for name, options in (("topk", {"k": 20}), ("sparsemax", {})):
            op, worst = BY_NAME[name], 0.0
            for seed, n in enumerate(SIZES):
                x = np.round(logits((3, n), dtype, seed, 2.0) * kind.type(4)) / kind.type(4)
                sample = Sample({"x": x}, {key: min(value, n) for key, value in options.items()})
                worst = max(worst, *op.errors(sample, op.compute(sample), dtype))
            limit = op.limits(dtype, {})[0]
            yield f"{name} {dtype}, ties", worst, limit if dtype != "float64" or JUDGES_FLOAT64 else None


def over_shards(name: str, x, y, target, bounds: tuple[int, ...]):
    """The result of a function, and the same from shards of the classes whose sums are merged in another order."""
    gradient = name.endswith("_vjp")
    kind = {"log_softmax": "log", "logsumexp": "log"}.get(name, "loss" if name in LOSSES else name)
    cuts, row_max = [slice(a, b) for a, b in itertools.pairwise(bounds)], None
    labels = {"target": target} if kind == "loss" else {}
    for _ in range(2):
        options = {"n_classes": bounds[-1], "kind": kind, "row_max": row_max, **labels}
        parts = [
            distributed.partial(x[:, cut], offset=cut.start, **options, **({"y": y[:, cut]} if gradient else {}))
            for cut in cuts
        ]
        merged = distributed.merge(parts[-1], distributed.merge(parts[::-1]))
        if (row_max := merged.second_round) is None:
            break
    finish = getattr(distributed, "finish_vjp" if gradient else f"finish_{name}")
    found = [finish(x[:, c], *([y[:, c]] if gradient else []), p, merged) for c, p in zip(cuts, parts)]
    if kind == "loss":
        whole = csoftmax.cross_entropy_with_grad(x, target, reduction="none")
        expected = whole.loss if name == "loss" else whole.grad
    else:
        expected = getattr(csoftmax, name)(*((x, y) if gradient else (x,)))
    return np.concatenate(found, axis=1) if found[0].ndim == 2 else found[-1], expected


def shards():
    """Compare rows whose classes are divided with whole ones: every dtype, at and between multiples of 4096."""
    for name in ("softmax", "log_softmax", "logsumexp", "softmax_vjp", "log_softmax_vjp", *LOSSES):
        wrong = cases = 0
        for dtype in available_dtypes():
            for seed, bounds in enumerate(((0, 4096, 8192, 9000), (0, 1000, 5000, 9000), (0, 30, 100))):
                x = logits((2, bounds[-1]), dtype, seed, 5.0)
                if name not in ("softmax_vjp", "log_softmax_vjp"):
                    x[1, 7] = 6e4 if dtype == "float16" else 1e30  # takes a second round but in float16
                y = csoftmax.softmax(x) if name == "softmax_vjp" else csoftmax.log_softmax(x)
                found, expected = over_shards(name, x, y, [bounds[1], 0], bounds)
                wrong += count_different_bits(found, expected)
                cases += 1
        yield f"{name}, {cases} divisions of rows", wrong, 0


SECTIONS = {
    "accuracy, ULP": accuracy,
    "instruction sets": instruction_sets,
    "threads": threads,
    "layouts": layouts,
    "special values": special_values,
    "masks": masks,
    "gradients": gradients,
    "sparse": sparse,
    "shards": shards,
}


def check(section):
    """Yield the lines of a section; an exception in it becomes a line too."""
    try:
        yield from (Line(section, *line) for line in SECTIONS[section]())
    except Exception as error:
        yield Line(section, "stopped", f"{type(error).__name__}: {error}", 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def main(arguments: argparse.Namespace) -> int:
    """Check every section and show the lines."""
    begin = time.perf_counter()
    lines = []
    with progress(len(SECTIONS), "selftest") as bar:
        for section in SECTIONS:
            bar.set_postfix_str(section)
            lines += check(section)
            bar.update()
    has_passed = all(line.has_passed for line in lines)
    report = {
        "ok": has_passed,
        "csoftmax": csoftmax.__version__,
        "isa": binding.isa(),
        "threads": csoftmax.get_num_threads(),
        "seconds": round(time.perf_counter() - begin, 2),
        "checks": [{**line._asdict(), "ok": line.has_passed} for line in lines],
    }
    if arguments.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        show(report, lines)
    return 0 if has_passed else 1


def show(report, lines):
    rows = [("section", "check", "found", "limit", "")]
    for before, line in zip([None, *lines], lines):
        section = line.section if before is None or before.section != line.section else ""
        found = line.figure if isinstance(line.figure, str) else f"{line.figure:.3g}"
        state = "not checked" if line.limit is None else "ok" if line.has_passed else "FAIL"
        rows.append((section, line.what, found, "" if line.limit is None else f"{line.limit:g}", state))
    print("\n".join(layout(rows, "<<>><")))
    failed = sum(not line.has_passed for line in lines)
    print(
        f"\ncsoftmax {report['csoftmax']} on {report['isa']}, {report['threads']} threads: "
        f"{len(lines)} checks, {failed or 'none'} failed, in {report['seconds']} s"
    )
