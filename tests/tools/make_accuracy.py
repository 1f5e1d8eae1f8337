"""Writes ACCURACY.md: the largest errors found, for every function, dtype and instruction set.

    python tests/tools/make_accuracy.py [--effort 0.5] [--out ACCURACY.md]

Everything in the main table is sampled.  The float32 exp is measured over every number by tests/c, which leaves
tests/records/exp_exhaustive.json (tests/c/run.sh exp-all); its figures are quoted with their own date and command.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes  # noqa: F401
import mpmath
import numpy as np

import csoftmax
from csoftmax._cpu import binding
from csoftmax._spec.cross_entropy import exact_rows
from csoftmax._spec.formats import (
    DTYPES,
    EXACT,
    JUDGES_FLOAT64,
    dtype_of,
    loss_dtype,
    measure_error,
    smallest_normal,
    spacing,
    ulp_error,
    wide,
)
from csoftmax._spec.operations import BACKWARD, BY_NAME, FORWARD, SOFTMAX_FAMILY
from csoftmax._spec.sample import distribution
from csoftmax._spec.samples import ROW_KINDS, SIZES, logits
from csoftmax._spec.softmax import exact_forward, exact_log_softmax_vjp

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from oracles import crf as crf_oracle  # noqa: E402
from oracles import entmax as entmax_oracle  # noqa: E402
from oracles import softmax as softmax_oracle  # noqa: E402
from oracles import subsets as subset_oracle  # noqa: E402
from oracles.entmax_alpha import exact_alpha_gradient  # noqa: E402

EXHAUSTIVE = ROOT / "tests" / "records" / "exp_exhaustive.json"
SIGMAS = (0, 0.1, 1, 3, 5, 8, 20, 50, 100)
OFFSETS = {
    "float32": (0, -1e3, 1e6, 1e7),
    "float64": (0, -1e3, 1e6, 2.0**46),
    "float16": (0, 1e3),
    "bfloat16": (0, 1e5),
}
TEMPERATURES = (1.0, 0.3, 7.0)


def inputs(op, dtype, k, sigma, offset, temperature, elements):
    """Return rows of logits, or of dy and y; sigma: a scale or a kind of rows."""
    rows = max(1, elements // k)
    scale = sigma if isinstance(sigma, str) else sigma * temperature
    x = logits((rows, k), dtype, seed=k, sigma=scale, offset=offset * temperature)
    if op.inputs == 1:
        return (x,)
    forward = csoftmax.log_softmax if op.log else csoftmax.softmax
    return logits((rows, k), dtype, seed=k + 1, sigma=1.0), forward(x, temperature=temperature)


def cases(op, dtype, effort):
    for temperature in TEMPERATURES:
        for k in SIZES:
            for sigma in SIGMAS:
                for offset in OFFSETS[dtype] if op.inputs == 1 else (0,):
                    if temperature != 1 and (k > 1000 or offset):
                        continue
                    if abs(offset) + 6 * sigma * temperature > 6e4 and dtype == "float16":
                        continue
                    yield k, sigma, offset, temperature, int(effort * 4000)
            for kind in ROW_KINDS:
                yield k, kind, 0, temperature, int(effort * 8000)
    if op.name == "softmax":  # these have the largest errors: one lane contains most of the sum
        for k in (100, 128, 129, 200, 256, 300):
            for sigma in (4, 5, 6):
                yield k, sigma, 0, 1.0, int(effort * 200_000)


def measure(effort):
    """{(op, dtype, isa): (worst, where, elements)}; the oracle runs once for all instruction sets."""
    worst, before = {}, binding.isa()
    for op in SOFTMAX_FAMILY:
        for dtype in DTYPES:
            if op.name.endswith("vjp") and dtype == "float64":
                continue  # long double is not exact enough for a sum of float64 products: see exact_gradients
            for case in cases(op, dtype, effort):
                arrays, temperature = inputs(op, dtype, *case), case[3]
                (expected,) = op.oracle(*arrays, temperature)
                for isa in binding.isa_available():
                    binding.select_isa(isa)
                    result = op.function()(*arrays, temperature=temperature)
                    found = measure_error(result, expected, dtype)
                    top, where, count = worst.get((op.name, dtype, isa), (-1.0, None, 0))
                    if found > top:
                        top, where = found, case
                    worst[op.name, dtype, isa] = (top, where, count + arrays[0].size)
                binding.select_isa(before)
    return worst


def exact_gradients(rows):
    """Compare the float64 gradients with rational arithmetic and mpmath."""
    worst = {}
    for op in BACKWARD:
        for seed in range(rows):
            k, sigma = (3, 17, 65, 130)[seed % 4], (0.3, 3, 20)[seed % 3]
            dy = logits((k,), "float64", seed, 1.0)
            y = (csoftmax.log_softmax if op.log else csoftmax.softmax)(logits((k,), "float64", seed + 999, sigma))
            truth, scale = softmax_oracle.exact(op.name, dy, y), None
            if op.log:
                scale = exact_log_softmax_vjp(dy, y)[0].scale
            for isa in binding.isa_available():
                before = binding.isa()
                binding.select_isa(isa)
                found = softmax_oracle.exact_ulps(op.function()(dy, y), truth, "float64", scale)
                binding.select_isa(before)
                top, where, count = worst.get((op.name, "float64", isa), (-1.0, None, 0))
                if found > top:
                    top, where = found, (k, sigma, 0, 1.0, k)
                worst[op.name, "float64", isa] = (top, where, count + k)
    return worst


def losses(effort):
    """Cross-entropy: {(what, dtype, isa): (worst, elements)}; errors as test_cross_entropy.py measures them."""
    worst, before, rng = {}, binding.isa(), np.random.default_rng(0)
    kinds = ("labels, no options", "weights, smoothing", "soft labels, z-loss")
    for dtype in DTYPES:
        for k in SIZES:
            rows = max(2, int(effort * 4000) // k)
            for sigma in (0, 1, 5, 20, 50, *ROW_KINDS):
                for kind in kinds:
                    x, target, options = logits((rows, k), dtype, k, sigma), rng.integers(0, k, rows), {}
                    target[::2] = x.astype(np.float64).argmax(1)[::2]
                    if "smoothing" in kind:
                        options = {"weight": rng.random(k).astype(np.float32), "label_smoothing": 0.1}
                    if "soft" in kind:
                        target, options = rng.random((rows, k), np.float32), {"z_loss": 1e-3}
                    truth = exact_rows(x, target, **options)
                    for isa in binding.isa_available():
                        binding.select_isa(isa)
                        loss, grad = csoftmax.cross_entropy_with_grad(x, target, reduction="none", **options)
                        found = {
                            f"loss, {kind}": ulp_error(loss, truth.loss, loss_dtype(dtype), truth.loss_scale),
                            f"gradient, {kind}": ulp_error(grad, truth.gradient, dtype, truth.scale),
                        }
                        for what, error in found.items():
                            top, count = worst.get((what, dtype, isa), (0.0, 0))
                            count += rows if what.startswith("loss") else x.size
                            worst[what, dtype, isa] = max(top, error), count
    binding.select_isa(before)
    return worst


def loss_table(worst):
    isas = binding.isa_available()
    lines = ["| cross-entropy | dtype | " + " | ".join(isas) + " | elements |", "|---|---|" + "---|" * (len(isas) + 1)]
    for what, dtype in dict.fromkeys(key[:2] for key in worst):
        found = [worst[what, dtype, isa] for isa in isas]
        figures = " | ".join(f"{f[0]:.3f}" for f in found)
        lines.append(f"| {what} | {dtype} | {figures} | {found[0][1]:,} |")
    return lines


def sparse():
    """Return lines of the table: alpha-entmax of the rows of test_entmax.py, and their losses."""
    isas, before = binding.isa_available(), binding.isa()
    lines = ["| function | dtype | " + " | ".join(isas) + " | elements |", "|---|---|" + "---|" * (len(isas) + 1)]
    for alpha in (1.2, 1.5, 2.0, 3.0, 30.0, 1000.0):
        for dtype in DTYPES:
            worst, loss, elements = dict.fromkeys(isas, 0.0), dict.fromkeys(isas, 0.0), 0
            wide_dtype = loss_dtype(dtype)
            for x in entmax_oracle.rows(dtype):
                truth, elements = entmax_oracle.exact(x, alpha), elements + len(x)
                target = int(np.argmin(x))
                true_loss = entmax_oracle.exact_loss(x, np.eye(len(x))[target], alpha)
                for isa in isas:
                    binding.select_isa(isa)
                    y, value = csoftmax.entmax(x, alpha), csoftmax.entmax_loss(x, target, alpha)
                    # a result that is too small for the type may also be 0
                    judged = [(g, p) for g, p in zip(y, truth) if g > 0 or p > smallest_normal(dtype)]
                    errors = [entmax_oracle.ulps(g, p, dtype) for g, p in judged]
                    worst[isa] = max(worst[isa], *errors)
                    if true_loss > 0:
                        loss[isa] = max(loss[isa], entmax_oracle.ulps(value, true_loss, wide_dtype))
                binding.select_isa(before)
            name = {1.5: "entmax", 2.0: "sparsemax"}.get(alpha, f"entmax, alpha = {alpha:g}")
            for what, found in ((name, worst), (f"loss of {name}", loss)):
                figures = " | ".join(f"{found[isa]:.3f}" for isa in isas)
                lines.append(f"| {what} | {dtype} | {figures} | {elements:,} |")
    return lines


def alpha_gradients():
    """Return lines of the table: dL/dalpha, in units of 2^-50 of the sum of its terms' magnitudes."""
    isas, before = binding.isa_available(), binding.isa()
    lines = ["| dL/dalpha at alpha | dtype | " + " | ".join(isas) + " | rows |", "|---|---|" + "---|" * (len(isas) + 1)]
    for alpha, dtype in itertools.product((1.0, 1 + 1e-7, 1.2, 1.5, 2.0, 3.0, 1000.0), ("float32", "float64")):
        worst, rows = dict.fromkeys(isas, 0.0), 0
        for seed, x in enumerate(entmax_oracle.rows(dtype)):
            y, dy, rows = csoftmax.entmax(x, alpha), logits((len(x),), dtype, seed, 1.0), rows + 1
            value, unit = exact_alpha_gradient(dy, y, alpha)
            for isa in isas:
                binding.select_isa(isa)
                got = csoftmax.entmax_vjp(dy, y, alpha, return_alpha_grad=True).alpha_grad
                if unit:
                    worst[isa] = max(worst[isa], float(abs(got - value) / unit * 2**50))
            binding.select_isa(before)
        figures = " | ".join(f"{worst[isa]:.3f}" for isa in isas)
        lines.append(f"| {alpha:.8g} | {dtype} | {figures} | {rows} |")
    return lines


DRAWS = {"no filter": {}, "top-k": {"top_k": 5}, "top-p": {"top_p": 0.5}, "typical-p": {"typical_p": 0.8}}


def draws_table():
    """Return lines of the table: log-probabilities of draws, against log_softmax of the classes that are left."""
    isas, before = binding.isa_available(), binding.isa()
    lines = ["| log_prob | dtype | " + " | ".join(isas) + " | draws |", "|---|---|---|" + "---|" * len(isas)]
    for (name, filters), dtype in itertools.product(DRAWS.items(), ("float32", "float64")):
        worst, draws = dict.fromkeys(isas, 0.0), 0
        for k, sigma, t in itertools.product((2, 7, 40, 300, 5000), (1, 3, 8, 20), (1.0, 0.3, 7.0)):
            x = logits((4, k), dtype, seed=k, sigma=sigma * t)
            left = np.stack([distribution(row.astype(np.float64), t, **filters) > 0 for row in x])
            exact = exact_forward(x, t, left)[1]
            for isa in isas:
                binding.select_isa(isa)
                got = csoftmax.sample(x, temperature=t, size=200, rng=k, return_log_prob=True, **filters)
                value = np.take_along_axis(exact, got.indices, -1)
                judged = np.isfinite(value.astype(np.float64))  # float masses may keep one class more
                worst[isa] = max(worst[isa], ulp_error(got.log_prob[judged], value[judged]))
            draws += x.shape[0] * 200
        figures = " | ".join(f"{worst[isa]:.3f}" for isa in isas)
        lines.append(f"| {name} | {dtype} | {figures} | {draws:,} |")
    binding.select_isa(before)
    return lines


def make_chain(rng, n, tags, scale):
    """Return emissions, labels, transitions, start and end; half of the labels have the largest emission."""
    x = rng.standard_normal((n, tags)) * scale
    labels = np.where(rng.random(n) < 0.5, x.argmax(1), rng.integers(0, tags, n))
    return x, labels, rng.standard_normal((tags, tags)) * 2, *rng.standard_normal((2, tags))


def chains():
    """Return lines of the table: the linear-chain CRF against forward-backward in 400 digits."""
    isas, before = binding.isa_available(), binding.isa()
    worst, numbers = {}, dict.fromkeys(("float32", "float64"), 0)
    for seed, (n, tags, scale) in enumerate(itertools.product((1, 2, 7, 40), (2, 5, 9, 26), (0.3, 3, 30))):
        x, labels, transitions, start, end = make_chain(np.random.default_rng(seed), n, tags, scale)
        for dtype in numbers:
            emissions = x.astype(dtype)
            truth = crf_oracle.Forward(emissions, transitions, start, end, labels)
            gradient, by_pair, terms = truth.gradients()
            size = np.spacing(max(abs(float(truth.log_z)), float(np.abs(emissions).max(1).sum()) + 10)) * 2.0**53
            numbers[dtype] += emissions.size
            for isa in isas:
                binding.select_isa(isa)
                options = {"start": start, "end": end}
                marginals = csoftmax.crf_marginals(emissions, transitions, **options)
                loss = csoftmax.crf_loss_with_grad(emissions, labels, transitions, **options)
                found = {
                    "log Z": (marginals.log_partition, truth.log_z, size),
                    "marginals": (marginals.tags, truth.mu, None),
                    "loss": (loss.loss, truth.loss, None),
                    "gradient of emissions": (loss.grad_emissions, gradient, None),
                    "gradient of transitions": (loss.grad_transitions, by_pair, terms),
                }
                for what, (got, exact, scale_of) in found.items():
                    eps = 2.0**-24 if np.asarray(got).dtype == np.float32 else 2.0**-53
                    allowed = 1.04 if eps > 2.0**-53 else 3 if what == "log Z" else 8 * n + 8
                    if scale_of is None:  # subnormal results have a unit of their own
                        scale_of = np.maximum(np.abs(exact), smallest_normal(np.asarray(got).dtype.name))
                    error = crf_oracle.relative(got, exact, scale_of) / eps
                    key = what, dtype, isa
                    worst[key] = max(worst.get(key, (0.0, 0.0)), (error / allowed, error))
            binding.select_isa(before)
    lines = [
        "| linear-chain CRF | dtype | " + " | ".join(isas) + " | elements |",
        "|---|---|" + "---|" * (len(isas) + 1),
    ]
    for what, dtype in dict.fromkeys(key[:2] for key in worst):
        figures = " | ".join("{:.2f} ({:.1f})".format(*worst[what, dtype, isa]) for isa in isas)
        lines.append(f"| {what} | {dtype} | {figures} | {numbers[dtype]:,} |")
    return lines


def of_record(record):
    """Return lines of a table: all options of an operation's record against its oracle in long double."""
    isas, before = binding.isa_available(), binding.isa()
    worst, numbers = {}, {}
    variants = [name for name, variant in record.variants.items() if variant.is_accurate]
    for dtype, k, sigma, variant in itertools.product(DTYPES, (2, 3, 17, 129, 1000), (0.3, 5, *ROW_KINDS), variants):
        sample = record.sample((max(2, min(20, 4000 // k)), k), dtype, k, sigma, variant)
        expected = record.oracle(*sample.arrays.values(), **sample.options)
        for isa in isas:
            binding.select_isa(isa)
            for kind, got, exact, limit in zip(
                record.results, record.compute(sample), expected, record.limits(dtype, sample.options)
            ):
                unit_of = loss_dtype(dtype) if kind.dtype == "loss" else dtype
                error = np.abs(wide(got) - exact.value)
                # some kinds of rows have parallel weights, and gradients of 0
                allowed = limit * spacing(exact.value if exact.scale is None else exact.scale, unit_of) + exact.slack
                units = 0.0 if isinstance(sigma, str) else (error / spacing(np.abs(exact.value).max(), unit_of)).max()
                found = (error / allowed).max(), units
                key = kind.name, dtype, isa
                worst[key] = tuple(map(max, worst.get(key, (0.0, 0.0)), found))
                numbers[key] = numbers.get(key, 0) + np.size(got)
        binding.select_isa(before)
    lines = [
        f"| {record.name} | dtype | " + " | ".join(isas) + " | elements |",
        "|---|---|" + "---|" * (len(isas) + 1),
    ]
    for what, dtype in dict.fromkeys(key[:2] for key in worst):
        figures = " | ".join("{:.2f} ({:.1f})".format(*worst[what, dtype, isa]) for isa in isas)
        lines.append(f"| {what} | {dtype} | {figures} | {numbers[what, dtype, isas[0]]:,} |")
    return lines


def record_tables():
    """Return the tables of operations whose record has an oracle for all options, with their explanations."""
    return [
        "Margin softmax: K = 2 to 1,000 classes, logits of scale 0.3 and 5 and rows of other kinds, all options of",
        "the record but past_pi, which jumps. Largest error as a share of the promise, which is 4 ULP of a loss and 1",
        "of a gradient beside a bound of the rounding of lengths and products (`csoftmax/_spec/margins.py`); in",
        "brackets, for the scales, in ULP of the largest element of the result. The scale of the cosines, 8 to 64,",
        "multiplies their rounding. Oracle: longdouble (64 bits), all logits, angles and tangents.",
        "",
        *of_record(BY_NAME["margin_cross_entropy_with_grad"]),
        "",
        "Kullback-Leibler divergence, on the same rows, every other student close to its teacher: as a share of the",
        "promise (`csoftmax/_spec/divergence.py`); the figures in brackets are large where the divergence is small",
        "beside its terms.",
        "",
        *of_record(BY_NAME["kl_divergence_with_grad"]),
        "",
        "Plackett-Luce loss, on the same rows, all options of the record.",
        "",
        *of_record(BY_NAME["plackett_luce_loss_with_grad"]),
    ]


def of_segments(dtype, sigma):
    """Yield name, results and errors of segments of different lengths, as ULP of what a segment has alone."""
    lengths = np.r_[np.random.default_rng(7).poisson(20, 200), 5000]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    x = logits((1, offsets[-1]), dtype, 7, sigma)[0]
    parts = [exact_forward(x[a:b]) for a, b in itertools.pairwise(offsets) if b > a]
    expected = [np.concatenate([np.atleast_1d(part[i]) for part in parts]) for i in range(4)]
    yield "segment_softmax", csoftmax.segment_softmax(x, indptr=offsets), expected[0], None
    yield "segment_log_softmax", csoftmax.segment_log_softmax(x, indptr=offsets), expected[1], None
    sums = csoftmax.segment_logsumexp(x, indptr=offsets)
    yield "segment_logsumexp", sums[lengths > 0], expected[2], expected[3]


def of_streams(dtype, sigma):
    """Yield the same of rows that come in pieces."""
    x, values = logits((3, 9000), dtype, 8, sigma), logits((3, 9000), dtype, 9, 1.0)
    state = csoftmax.SoftmaxState(3, dtype_of(dtype), values=())
    for begin, end in itertools.pairwise((0, 1, 4097, 9000)):
        state.update(x[:, begin:end], values=values[:, begin:end])
    p, _, lse, scale = exact_forward(x)
    yield "SoftmaxState.probabilities", state.probabilities(x), p, None
    yield "SoftmaxState.logsumexp", state.logsumexp(), lse, scale
    means = (p * wide(values)).sum(axis=1)
    yield "SoftmaxState.weighted_mean", state.weighted_mean(), means, (p * np.abs(wide(values))).sum(axis=1)


def long_double(x):
    """A number of mpmath with more digits than its precision outside of the oracle shows."""
    return EXACT(mpmath.nstr(x, 25))


def of_subsets(dtype, sigma):
    """Yield the same of subsets of k, against the recurrence in 50 digits."""
    for k, n in ((2, 5), (3, 20), (20, 40)):
        x = logits((1, n), dtype, n, sigma)[0]
        total, each = subset_oracle.subset_sums(x, k)
        largest = max(abs(float(total)), float(np.abs(np.sort(wide(x))[-k:]).sum()))
        yield "subset_logsumexp", csoftmax.subset_logsumexp(x, k), long_double(total), largest
        yield "subset_marginals", csoftmax.subset_marginals(x, k), np.array([long_double(v) for v in each]), None


def rows_of_other_shapes():
    """Return lines of the table: segments, rows in pieces, subsets."""
    isas, before = binding.isa_available(), binding.isa()
    worst, numbers = {}, {}
    for measure_one, dtype, sigma, isa in itertools.product(
        (of_segments, of_streams, of_subsets), DTYPES, (0.3, 1, 5, 20), isas
    ):
        binding.select_isa(isa)
        for name, got, expected, scale in measure_one(dtype, sigma):
            key = name, dtype, isa
            worst[key] = max(worst.get(key, 0.0), ulp_error(got, expected, dtype, scale))
            numbers[key] = numbers.get(key, 0) + np.size(got)
    binding.select_isa(before)
    lines = ["| function | dtype | " + " | ".join(isas) + " | elements |", "|---|---|" + "---|" * (len(isas) + 1)]
    for name, dtype in dict.fromkeys(key[:2] for key in worst):
        figures = " | ".join(f"{worst[name, dtype, isa]:.3f}" for isa in isas)
        lines.append(f"| {name} | {dtype} | {figures} | {numbers[name, dtype, isas[0]]:,} |")
    return lines


def output_of(*command):
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def cpu_name():
    for line in output_of("lscpu").splitlines():
        if line.startswith("Model name:"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def table(worst):
    isas = binding.isa_available()
    lines = ["| function | dtype | promise | " + " | ".join(isas) + " | elements | worst at |",
             "|---|---|---|" + "---|" * (len(isas) + 2)]  # fmt: skip
    for op in SOFTMAX_FAMILY:
        for dtype in DTYPES:
            found = [worst.get((op.name, dtype, isa)) for isa in isas]
            if None in found:
                continue
            k, sigma, offset, temperature, _ = found[0][1]
            scale = sigma if isinstance(sigma, str) else f"σ={sigma:g}"
            place = f"K={k}, {scale}" + (f", offset {offset:g}" if offset else "")
            place += f", T={temperature:g}" if temperature != 1 else ""
            promise = f"{op.limits(dtype, {})[0]:g}" if op in FORWARD else "-"
            figures = " | ".join(f"{f[0]:.3f}" for f in found)
            lines.append(f"| {op.name} | {dtype_of(dtype).name} | {promise} | {figures} | {found[0][2]:,} | {place} |")
    return lines


def exhaustive():
    if not EXHAUSTIVE.is_file():
        return ["Not run yet: `tests/c` holds the test, which leaves `tests/records/exp_exhaustive.json`."]
    found = json.loads(EXHAUSTIVE.read_text())
    lines = [
        f"The core e^x = P·2^n at **every** finite float32 with |x| ≤ 10⁶ ({found['count']:,} numbers).",
        "",
        "| instruction set | largest error (ULP) | non-decreasing | same bits as scalar | run on |",
        "|---|---|---|---|---|",
    ]
    for isa, row in found["isa"].items():
        answers = ["yes" if row[key] else "**no**" for key in ("monotone", "equal")]
        lines.append(f"| {isa} | {row['max_ulp']:.4f} | {' | '.join(answers)} | {row['how']} |")
    lines += [
        "",
        f"Command: `{found['command']}`, {found['date']}, commit {found['commit']}, {found['seconds']} s.",
    ]
    return lines


def onnxruntime_softmax(shape):
    import onnx
    import onnxruntime

    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Softmax", ["x"], ["y"], axis=-1)], "softmax", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda values: session.run(None, {"x": values})[0]


def peers():
    """Return the largest errors of float32 softmax and of the installed peers, over the same rows."""
    functions = {"csoftmax": csoftmax.softmax}
    with contextlib.suppress(ImportError):
        import scipy.special

        functions["SciPy"] = lambda x: scipy.special.softmax(x, axis=-1)
    with contextlib.suppress(ImportError):
        import torch

        functions["PyTorch"] = lambda x: torch.softmax(torch.from_numpy(x), -1).numpy()
    with contextlib.suppress(ImportError):
        functions["ONNX Runtime"] = onnxruntime_softmax((256, 1000))
    lines = ["| float32, (256, 1000), σ | " + " | ".join(functions) + " |", "|---" * (len(functions) + 1) + "|"]
    for sigma in (1, 5, 20, 50):
        x = logits((256, 1000), "float32", seed=7, sigma=sigma)
        reference = exact_forward(x)[0]
        errors = [f"{ulp_error(f(x), reference):.1f}" for f in functions.values()]
        lines.append(f"| {sigma} | " + " | ".join(errors) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--effort", type=float, default=0.5, help="multiplies the number of elements")
    parser.add_argument("--out", type=Path, default=ROOT / "ACCURACY.md")
    arguments = parser.parse_args()
    if not JUDGES_FLOAT64:
        raise SystemExit("longdouble is float64 on this machine: no oracle for the table")
    begin = time.time()
    worst = measure(arguments.effort)
    worst.update(exact_gradients(int(24 * max(1, arguments.effort))))
    of_losses = losses(arguments.effort)
    of_sparse = sparse()
    of_chains = chains()
    of_records = record_tables()
    of_others = rows_of_other_shapes()
    seconds = time.time() - begin
    commit = output_of("git", "rev-parse", "--short=12", "HEAD") or "unknown"
    if output_of("git", "status", "--porcelain", "--", "src_c", "csoftmax"):
        commit += " (with uncommitted changes)"
    command = "python tests/tools/make_accuracy.py"
    command += f" --effort {arguments.effort:g}" if arguments.effort != 0.5 else ""
    page = [
        "# Accuracy",
        "",
        "Generated; do not edit. Errors are in units in the last place (ULP) of the exact result in the type of the",
        "result, subnormal results included: 0.5 is a correctly rounded result.",
        "",
        f"- command: `{command}` ({seconds:.0f} s)",
        f"- date: {datetime.date.today().isoformat()}, commit {commit}, csoftmax {csoftmax.__version__}",
        f"- machine: {cpu_name()}, {platform.machine()}, {platform.system()}, NumPy {np.__version__}",
        "",
        "## Largest errors found (sampled)",
        "",
        f"Normal logits of scale σ = {', '.join(f'{s:g}' for s in SIGMAS)}, K = {SIZES[0]} … {SIZES[-1]:,}, offsets to",
        "10⁷ (float32) and 2⁴⁶ (float64), temperatures 1, 0.3 and 7; and rows of other kinds, in which one class is",
        f"ahead by any gap up to 60: {', '.join(ROW_KINDS)}. Sampled: the true maximum is at least",
        "this; the hardest rows of a search are in `tests/records/hardest_rows.json`. Oracle: longdouble (64 bits);",
        "gradients in float64: exact rational arithmetic and mpmath.",
        "",
        "- softmax: ULP of each element. log_softmax: ULP of each element (relative error, tails included).",
        "- logsumexp: ULP of max(|m|, |result|), m the maximum of x / T.",
        "- softmax_vjp: ULP of each element, in excess of the effect of rounding s = Σ dy y: y Σ|dy y| / T times 2⁻⁴⁶",
        "  (float32 and half types), 2⁻⁹⁸ (float64).",
        "- log_softmax_vjp: ULP of the largest of |dx|, |dy - s 2ⁿ|/T and |s (e^y - 2ⁿ)|/T, s = Σ dy.",
        "",
        *table(worst),
        "",
        "Cross-entropy with gradient, σ = 0 to 50; half of the labels are the largest logit. The promise is 4 ULP,",
        "relative, for labels without smoothing and z-loss (0.51 for the gradient in half types, whose loss is",
        "float32), otherwise 4 ULP of the larger of the two terms that are subtracted.",
        "",
        *loss_table(of_losses),
        "",
        "Sparse softmax (rows of 1 to 60 numbers, many scales and ties; the loss of the smallest logit as the label)",
        "against a root in 600 bits. The promise is 0.51 ULP of every element, and of every loss in float32 (float64:",
        "1 ULP). Harder rows are in tests/ops/test_entmax_worst.py.",
        "",
        *of_sparse,
        "",
        "The gradient of entmax with respect to alpha, the same rows, against mpmath. The promise is 1 unit: 2⁻⁵⁰ of",
        "the sum of the magnitudes of its terms (`entmax_vjp`).",
        "",
        *alpha_gradients(),
        "",
        "Log-probabilities of draws (`sample`, K = 2 to 5000, σ = 1 to 20, T = 1, 0.3 and 7). The promise is that of",
        "log_softmax, 4 ULP.",
        "",
        *draws_table(),
        "",
        "Linear-chain CRF: sequences of n = 1 to 40 positions and 2 to 26 tags, emissions of scale 0.3 to 30,",
        "parameters in float64. Largest error as a share of the promise, and, in brackets, in units of 2⁻²⁴ (float32",
        "results) or 2⁻⁵³ of the exact value; for gradients of transitions, of the sum of the magnitudes of what is",
        "added; for log Z in ULP of the larger of |log Z| and Σ max |e| + 10. The promise is 0.52 ULP in float32; in",
        "float64 3 for log Z and 8 n + 8 units for all others. Oracle: forward-backward in 400 digits.",
        "",
        *of_chains,
        "",
        *of_records,
        "",
        "Segments of 0 to 5,000 elements, rows of 9,000 elements that come in pieces, subsets of 2 to 20 of at most 40",
        "numbers; σ = 0.3 to 20. Segments and pieces have the bits, and so the promises, of whole rows. The unit of",
        "weighted means is the ULP of the mean of the magnitudes, that of sums over subsets the ULP of the larger of",
        "the sum and Σ |x| of the k largest. The promise of subset_marginals in float64 is 7e-15, 63 units of 2⁻⁵³.",
        "",
        *of_others,
        "",
        "## Softmax beside its peers (sampled)",
        "",
        *peers(),
        "",
        "## float32 exp (exhaustive)",
        "",
        *exhaustive(),
    ]
    arguments.out.write_text("\n".join(page) + "\n")
    print(f"wrote {arguments.out} in {seconds:.0f} s")


if __name__ == "__main__":
    main()
