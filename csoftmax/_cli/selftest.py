"""``python -m csoftmax selftest``: the package's promises, a fast sample of them, checked on the user's machine.

Each section yields lines (what, figure, limit): a figure is a number of ULP that must not exceed its limit, or a
count of differences that must be 0.  The tests that come with the sources check far more of the same.
"""

import json
import sys
import time
from typing import NamedTuple

import numpy as np

import csoftmax

from .._cpu import binding
from . import oracle
from .optional import progress
from .table import layout

SIZES = (1, 2, 3, 5, 7, 10, 16, 17, 31, 33, 64, 65, 97, 131, 1000, 4099, 20000)
# The offsets of f32 and f64 lie on both sides of where the special path for large logits begins.
OFFSETS = {
    "float16": (0, 3e4),
    "bfloat16": (0, 1e4, -3e8),
    "float32": (0, 9e5, -9e5, 3e8),
    "float64": (0, 9e5, -3e13, 1e15),
}
LIMITS = {
    "softmax": {"float16": 0.51, "bfloat16": 0.51, "float32": 3, "float64": 4},
    "log_softmax": dict.fromkeys(oracle.FORMATS, 4),
    "logsumexp": dict.fromkeys(oracle.FORMATS, 4),
    # of the terms that cancel; with a temperature there are two roundings more
    "softmax_vjp": dict.fromkeys(oracle.FORMATS, 5),
    "log_softmax_vjp": dict.fromkeys(oracle.FORMATS, 5),
}
FORWARD = ("softmax", "log_softmax", "logsumexp")


class Line(NamedTuple):
    """One line of the table; a limit of None marks what cannot be checked here."""

    section: str
    what: str
    figure: float | str
    limit: float | None

    @property
    def ok(self):
        return self.limit is None or (not isinstance(self.figure, str) and self.figure <= self.limit)


def dtypes():
    """The dtypes that can be had: bfloat16 arrays exist only with ml_dtypes."""
    found = {name: np.dtype(name) for name in ("float16", "float32", "float64")}
    try:
        import ml_dtypes
    except ImportError:
        return found
    return found | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


def same(a, b):
    """How many elements differ in their bits."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    kind = f"u{a.itemsize}"
    return a.size if a.shape != b.shape else int(np.count_nonzero(a.view(kind) != b.view(kind)))


def logits(dtype, shape, seed, scale=5.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def apply(op, x, axis=-1, dy=None, **options):
    """Any operation on logits: a gradient gets the result of its own forward operation."""
    if not op.endswith("_vjp"):
        return getattr(csoftmax, op)(x, axis, **options)
    forward = {key: value for key, value in options.items() if key != "out"}
    y = getattr(csoftmax, op.removesuffix("_vjp"))(x, axis, **forward)
    dy = logits(x.dtype, x.shape, 99, 1.0) if dy is None else dy
    return getattr(csoftmax, op)(dy, y, axis, **options)


def accuracy():
    """Against long double, in ULP."""
    for name, dtype in dtypes().items():
        if name == "float64" and not oracle.JUDGES_FLOAT64:
            yield "float64", "no long double here", None
            continue
        worst = dict.fromkeys(binding.OPS, 0.0)
        for i, n in enumerate(SIZES):
            for scale in (0, 1, 20, 50):
                for offset in OFFSETS[name]:
                    for temperature in (1.0, 0.7) if offset == 0 else (1.0,):
                        x = (logits("float64", (1 if n > 1000 else 5, n), i, scale) + offset).astype(dtype)
                        for op, error in errors(x, temperature):
                            worst[op] = max(worst[op], error)
        for op, error in worst.items():
            yield f"{op} {name}", error, LIMITS[op][name]
    for name, reach in (("float32", 100), ("float64", 700)):
        if name == "float32" or oracle.JUDGES_FLOAT64:
            gaps = np.linspace(0, reach, 1001)
            x = np.stack([gaps, np.zeros_like(gaps)], axis=-1).astype(name)
            error = oracle.ulp_error(csoftmax.log_softmax(x), oracle.forward(x)[1])
            yield f"log_softmax {name}, gaps to {reach}", error, 4
            p, log_p = oracle.forward(x)[:2]
            loss, grad = csoftmax.cross_entropy_with_grad(x, np.zeros(len(x), int), reduction="none")
            yield f"cross_entropy {name}, gaps to {reach}", oracle.ulp_error(loss, -log_p[:, 0]), 4
            yield f"its gradient {name}, gaps to {reach}", oracle.ulp_error(grad[:, 0], -p[:, 1]), 4


def errors(x, temperature=1.0, where=None):
    """Errors in ULP of every operation."""
    p, log_p, lse, scale = oracle.forward(x, temperature, where)
    taking = {"temperature": temperature, "where": where}
    y, log_y = csoftmax.softmax(x, **taking), csoftmax.log_softmax(x, **taking)
    kept = np.ones(x.shape, bool) if where is None else np.broadcast_to(where, x.shape)
    yield "softmax", oracle.ulp_error(y, p)
    yield "log_softmax", oracle.ulp_error(log_y[kept], log_p[kept])
    yield "logsumexp", oracle.ulp_error(csoftmax.logsumexp(x, **taking), lse, scale)
    dy = logits(x.dtype, x.shape, x.shape[-1], 1.0)
    yield (
        "softmax_vjp",
        oracle.ulp_error(csoftmax.softmax_vjp(dy, y, **taking), *oracle.softmax_vjp(dy, y, temperature)),
    )
    if where is None:
        exact = oracle.log_softmax_vjp(dy, log_y, temperature)
        yield "log_softmax_vjp", oracle.ulp_error(csoftmax.log_softmax_vjp(dy, log_y, **taking), *exact)


def instruction_sets():
    """The same bits on each; scalar is the specification."""
    before = binding.isa()
    shapes = [((3, n), -1) for n in SIZES] + [((3, 70, 33), 1), ((2, 50, 4), 1), ((40, 130), 0), ((5, 6, 7), (0, 2))]
    try:
        for isa in sorted(set(binding.isa_available()) - {"scalar"}):
            for name, dtype in dtypes().items():
                different = 0
                for op in binding.OPS:
                    for i, (shape, axis) in enumerate(shapes):
                        x = logits(dtype, shape, i, (1, 20)[i % 2])
                        results = []
                        for each in ("scalar", isa):
                            binding.select_isa(each)
                            results.append(apply(op, x, axis))
                        different += same(*results)
                yield f"{isa} equals scalar, {name}", different, 0
    finally:
        binding.select_isa(before)


def threads():
    """The same bits for every number of threads, and for every split of the batch."""
    most = max(4, csoftmax.get_num_threads())
    for name, dtype in dtypes().items():
        different = 0
        for op in binding.OPS:
            for i, (shape, axis) in enumerate([((24, 3001), -1), ((1, 100003), -1), ((10, 100, 40), 1)]):
                x = logits(dtype, shape, i)
                one = apply(op, x, axis, num_threads=1)
                for count in {2, 3, most}:
                    different += same(one, apply(op, x, axis, num_threads=count))
                dy = logits(dtype, shape, 99, 1.0)
                alone = [apply(op, x[j : j + 1], axis, dy[j : j + 1]) for j in range(shape[0])]
                different += same(one, np.concatenate(alone))
        yield f"1 to {most} threads, batch split, {name}", different, 0


def layouts():
    """The same bits for every layout in memory, and in place."""
    for name, dtype in dtypes().items():
        different = dict.fromkeys(("strides", "unaligned", "byte order", "axes", "in place and overlapping"), 0)
        for op in binding.OPS:
            for n in (3, 16, 45, 300):
                x, dy = logits(dtype, (6, n), n), logits(dtype, (6, n), n + 1, 1.0)
                plain = apply(op, x, dy=dy)
                wide = np.empty((12, 3 * n), dtype)
                wide[::2, ::3] = x
                reverse = np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
                for view in (np.asfortranarray(x), wide[::2, ::3], reverse):
                    different["strides"] += same(plain, apply(op, view, dy=dy))
                raw = np.empty(x.nbytes + 1, np.uint8)[1:]
                raw[:] = np.frombuffer(x.tobytes(), np.uint8)
                different["unaligned"] += same(plain, apply(op, raw.view(dtype).reshape(x.shape), dy=dy))
                if name != "bfloat16":  # ml_dtypes has no other byte order
                    swapped = x.astype(x.dtype.newbyteorder())
                    different["byte order"] += same(plain, apply(op, swapped, dy=dy.astype(swapped.dtype)))
                across = apply(op, np.ascontiguousarray(x.T), 0, np.ascontiguousarray(dy.T))
                different["axes"] += same(plain, across if op == "logsumexp" else across.T)
                if op == "logsumexp":
                    continue
                first = dy if op.endswith("_vjp") else x
                for shift in (0, 1):
                    whole = np.zeros(x.size + shift, dtype)
                    source, target = whole[: x.size].reshape(x.shape), whole[shift:].reshape(x.shape)
                    source[:] = first
                    apply(op, x if op.endswith("_vjp") else source, dy=source, out=target)
                    different["in place and overlapping"] += same(plain, target)
        for what, count in different.items():
            yield f"{what}, {name}", count, 0


def special_rows():
    """Logits, temperature, and what the three functions give: softmax, log_softmax, logsumexp."""
    inf, nan = np.inf, np.nan
    log2 = np.log(2)
    return [
        ("NaN", [1, nan, 2], 1, [nan] * 3, [nan] * 3, nan),
        ("NaN and +inf", [inf, nan, 2], 1, [nan] * 3, [nan] * 3, nan),
        ("+inf", [1, inf, 2], 1, [nan] * 3, [nan] * 3, inf),
        ("+inf and -inf", [-inf, inf, 2], 1, [nan] * 3, [nan] * 3, inf),
        ("some -inf", [3, -inf, 3], 1, [0.5, 0, 0.5], [-log2, -inf, -log2], 3 + log2),
        ("all -inf", [-inf] * 3, 1, [nan] * 3, [nan] * 3, -inf),
        ("one class", [7], 1, [1], [0], 7),
        ("temperature 0", [2, 1, 2], 0, [0.5, 0, 0.5], [-log2, -inf, -log2], inf),
        ("temperature 0, maximum below 0", [-2, -1, -1], 0, [0, 0.5, 0.5], [-inf, -log2, -log2], -inf),
        ("temperature 0, maximum 0", [0, -1, 0], 0, [0.5, 0, 0.5], [-log2, -inf, -log2], log2),
        ("temperature inf", [5, -inf, -9], inf, [0.5, 0, 0.5], [-log2, -inf, -log2], log2),
    ]


def special_values():
    """The table of special values, at every place of rows of several lengths."""
    for what, row, temperature, *expected in special_rows():
        wrong = 0
        for dtype in dtypes().values():
            for shift in range(len(row)):
                x = np.roll(np.array(row, np.float64), shift).astype(dtype)[np.newaxis]
                for op, exact in zip(FORWARD, expected, strict=True):
                    got = apply(op, x, temperature=temperature)[0]
                    exact = (np.roll(exact, shift) if op != "logsumexp" else np.float64(exact)).astype(dtype)
                    agree = np.isclose(oracle.wide(got), oracle.wide(exact), rtol=1e-2, atol=0, equal_nan=True)
                    exactly = np.isin(oracle.wide(exact), [0, 1, np.inf, -np.inf])
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
    """What `where` leaves out is never looked at, and comes out as 0 or -inf."""
    for name, dtype in dtypes().items():
        worst, wrong = 0.0, 0
        for n in (1, 5, 16, 40, 300, 5000):
            rng = np.random.default_rng(n)
            x, where = logits(dtype, (5, n), n), rng.random((5, n)) < 0.6
            where[0], where[1:, 0] = False, True
            dirty = np.where(where, x, np.resize(np.array([np.nan, np.inf, -np.inf, 6e4]).astype(dtype), x.shape))
            for op in binding.OPS:
                results = [apply(op, each, where=where) for each in (x, dirty)]
                wrong += same(*results)
                left_out = results[1][0] if op == "logsumexp" else results[1][~where]
                wrong += int(np.count_nonzero(left_out != (-np.inf if op in ("log_softmax", "logsumexp") else 0)))
            if name != "float64" or oracle.JUDGES_FLOAT64:
                worst = max(worst, *(error / LIMITS[op][name] for op, error in errors(x[1:], where=where[1:])))
        yield f"masked values change nothing, {name}", wrong, 0
        yield f"error, as a part of the limit, {name}", worst, 1


def gradients():
    """Of softmax and log_softmax: elements that take no part, and a near-certain class."""
    dy, y = np.array([np.nan, 1.0, 2.0]), np.array([0.0, 0.5, 0.5])
    yield "y = 0 takes no part", int(np.count_nonzero(csoftmax.softmax_vjp(dy, y) != [0, -0.25, 0.25])), 0
    dy, y = np.array([np.inf, -1.0, 0.0]), np.array([-np.inf, -np.log(2), -np.log(2)])
    yield "y = -inf takes no part", int(csoftmax.log_softmax_vjp(dy, y)[0] != 0), 0
    x = np.float32([[17.5, 0, 0]])
    dx = csoftmax.log_softmax_vjp(np.float32([[-1, 0, 0]]), csoftmax.log_softmax(x))
    exact = oracle.forward(x)[0] - np.eye(1, 3, dtype=oracle.EXACT)
    # the target's gradient is minus the sum of the others; forming 1 - p there would lose it
    exact[0, 0] = -exact[0, 1:].sum()
    yield "cross-entropy at logits (17.5, 0, 0)", oracle.ulp_error(dx, exact), 4


def sparse():
    """Top-k is a stable sort; sparsemax is the projection; the same bits on every instruction set."""
    before = binding.isa()
    for name, dtype in dtypes().items():
        wrong = different = 0
        worst = 0.0
        for i, n in enumerate(SIZES):
            x = np.round(logits(dtype, (3, n), i, 2.0) * dtype.type(4))
            k = min(n, 20)
            order = np.argsort(-x.astype(np.float64), axis=-1, kind="stable")[:, :k]
            wrong += int(np.count_nonzero(csoftmax.topk(x, k).indices != order))
            y = csoftmax.sparsemax(x / dtype.type(4))
            z = np.sort(x.astype(np.longdouble) / 4, axis=-1)[:, ::-1]
            tau = (np.cumsum(z, axis=-1) - 1) / np.arange(1, n + 1)
            tau = np.take_along_axis(tau, np.sum(z > tau, axis=-1, keepdims=True) - 1, -1)
            exact = np.maximum(x.astype(np.longdouble) / 4 - tau, 0)
            worst = max(worst, oracle.ulp_error(y, exact, np.maximum(exact, 1e-3)))
            for isa in binding.isa_available():
                binding.select_isa(isa)
                different += same(csoftmax.sparsemax(x / dtype.type(4)), y)
            binding.select_isa(before)
        yield f"topk {name} against a stable sort", wrong, 0
        yield f"sparsemax {name}, ULP", worst, 0.51 if name != "float64" or oracle.JUDGES_FLOAT64 else None
        yield f"sparsemax {name}, instruction sets", different, 0


SECTIONS = {
    "accuracy, ULP": accuracy,
    "instruction sets": instruction_sets,
    "threads": threads,
    "layouts": layouts,
    "special values": special_values,
    "masks": masks,
    "gradients": gradients,
    "sparse": sparse,
}


def check(section):
    """The lines of a section; an exception in it is a line too."""
    try:
        yield from (Line(section, *line) for line in SECTIONS[section]())
    except Exception as error:
        yield Line(section, "stopped", f"{type(error).__name__}: {error}", 0)


def run(options):
    begin = time.perf_counter()
    lines = []
    with progress(len(SECTIONS), "selftest") as bar:
        for section in SECTIONS:
            bar.set_postfix_str(section)
            lines += check(section)
            bar.update()
    ok = all(line.ok for line in lines)
    report = {
        "ok": ok,
        "csoftmax": csoftmax.__version__,
        "isa": binding.isa(),
        "threads": csoftmax.get_num_threads(),
        "seconds": round(time.perf_counter() - begin, 2),
        "checks": [{**line._asdict(), "ok": line.ok} for line in lines],
    }
    if options.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        show(report, lines)
    return 0 if ok else 1


def show(report, lines):
    rows = [("section", "check", "found", "limit", "")]
    for before, line in zip([None, *lines], lines):
        section = line.section if before is None or before.section != line.section else ""
        found = line.figure if isinstance(line.figure, str) else f"{line.figure:.3g}"
        state = "not checked" if line.limit is None else "ok" if line.ok else "FAIL"
        rows.append((section, line.what, found, "" if line.limit is None else f"{line.limit:g}", state))
    print("\n".join(layout(rows, "<<>><")))
    failed = sum(not line.ok for line in lines)
    print(
        f"\ncsoftmax {report['csoftmax']} on {report['isa']}, {report['threads']} threads: "
        f"{len(lines)} checks, {failed or 'none'} failed, in {report['seconds']} s"
    )
