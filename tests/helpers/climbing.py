"""A search for the rows whose results have the largest errors: hill climbing on the error in ULP."""

import numpy as np

from csoftmax._spec.formats import loss_dtype, ulp_errors
from csoftmax._spec.record import Sample
from csoftmax._spec.samples import ROW_KINDS, logits


def sample_of(record, x):
    """Return a call on rows of logits; the label of a loss is the largest logit."""
    arrays = {record.arguments[0].name: x}
    options = {}
    if record.family == "cross_entropy":
        arrays["target"] = x.astype(np.float64).argmax(axis=-1)
        options["reduction"] = "none"
    return Sample(arrays, options)


def errors_of_rows(record, x, dtype):
    """Return the largest error of each row, as a fraction of the bound of its result."""
    sample = sample_of(record, x)
    expected = record.oracle(*sample.arrays.values(), **sample.options)
    worst = np.zeros(len(x))
    for result, got, exact, limit in zip(
        record.results, record.compute(sample), expected, record.limits(dtype, sample.options), strict=False
    ):
        kind = loss_dtype(dtype) if result.dtype == "loss" else dtype
        errors = ulp_errors(got, exact.value, kind, exact.scale, exact.slack).reshape(len(x), -1)
        worst = np.maximum(worst, errors.max(axis=1) / limit)
    return worst


def mutated(x, rng):
    """Return rows with one change each: of an element, of a tie, of the level, of all steps, of the largest's gap."""
    rows, k = x.shape
    x, which, at = x.copy(), rng.integers(0, 5, rows), np.arange(rows)
    one, other = rng.integers(0, k, (2, rows))
    size = 10.0 ** rng.uniform(-6, 1, rows)
    x[at, one] += np.where(which == 0, rng.standard_normal(rows) * size, 0)
    x[at, one] = np.where(which == 1, x[at, other], x[at, one])
    x += np.where(which == 2, rng.standard_normal(rows) * size, 0)[:, None]
    mean = x.mean(axis=1, keepdims=True)
    x = np.where((which == 3)[:, None], mean + (x - mean) * (1 + rng.standard_normal(rows) * size / 10)[:, None], x)
    x[at, x.argmax(axis=1)] += np.where(which == 4, np.abs(rng.standard_normal(rows)) * size, 0)
    return x


def climb(record, dtype, k, seed, rounds=40, rows=400):
    """Return the hardest row of k elements found, and its error as a fraction of the bound."""
    rng = np.random.default_rng(seed)
    starts = [logits((max(rows // 10, 1), k), dtype, seed + i, kind) for i, kind in enumerate((*ROW_KINDS, 1.0, 8.0))]
    x = np.concatenate(starts)
    errors = errors_of_rows(record, x, dtype)
    for _ in range(rounds):
        best = np.argsort(-errors)[: max(rows // 20, 1)]
        children = mutated(x[rng.choice(best, rows)].astype(np.float64), rng).astype(x.dtype)
        x = np.concatenate([x[best], children])
        errors = np.concatenate([errors[best], errors_of_rows(record, children, dtype)])
    hardest = int(errors.argmax())
    return x[hardest], float(errors[hardest])
