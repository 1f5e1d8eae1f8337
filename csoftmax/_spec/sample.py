"""sample: its record, and the interval of classes in which the inverse of the distribution must lie."""

from __future__ import annotations

import numpy as np

from .formats import EXACT, Bounds
from .record import CLASSES, DRAWS, Argument, BadCall, Operation, Result, Variant
from .samples import FixedUniform
from .softmax import exact_forward, make_logits, mask_of
from .topk import NO_QUICK_PATH, SPARSE

DRAWS_OF_A_ROW = 9


ORDER = ("temperature", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p")


def distribution(x, temperature=1.0, order=ORDER, **filters):
    """Return the probabilities of one row after all filters, each as its definition says."""
    x = np.asarray(x).astype(EXACT)
    left, t = np.isfinite(x), EXACT(1)
    for name in order:
        value = temperature if name == "temperature" else filters.get(name)
        if value is None:
            continue
        classes = np.flatnonzero(left)
        falling = classes[np.argsort(-x[classes], kind="stable")]
        if name == "temperature":
            t = EXACT(value)
            keep = falling[:1] if value == 0 else classes
        elif name == "top_n_sigma":
            sigma = np.sqrt(np.mean((x[classes] - x[classes].mean()) ** 2))
            keep = classes[x[classes] >= x[classes].max() - EXACT(value) * sigma]
        else:
            p = _softmax(np.where(left, x, -np.inf), t)
            keep = _keep(name, value, x, p, classes, falling)
        left = np.zeros(len(x), bool)
        left[keep] = True
    return _softmax(np.where(left, x, -np.inf), t)


def _softmax(x, t):
    return np.where(x == x.max(), 1, 0).astype(EXACT) if t == 0 else exact_forward(x, float(t))[0]


def _keep(name, value, x, p, classes, falling):
    """Return the classes that a filter by rank or by probability keeps."""
    if name == "top_k":
        return falling[:value] if value > 0 else classes
    if name == "min_p":
        return classes[p[classes] >= EXACT(value) * p.max()]
    if name == "typical_p":
        from_mean = np.abs(x[classes] - np.sum(p[classes] * x[classes]))
        falling = classes[np.argsort(from_mean, kind="stable")]
    before = np.concatenate([[0], np.cumsum(p[falling])[:-1]])
    return falling[before < value] if value < 1 else classes


def exact_draws(logits, rng, size, where=None, **filters):
    """Return the classes at which the sums of the probabilities may pass the uniform numbers.

    Sums of float32 exponentials are accurate to about 1e-6, those of float64 ones to 1e-12; so is the number of classes
    that top_p and min_p keep, in which ties at the boundary count.
    """
    logits = np.asarray(logits)
    tolerance = 1e-12 if logits.dtype == np.float64 else 1e-6
    wide = logits.astype(np.float64)
    if where is not None:
        wide = np.where(where, wide, -np.inf)
    uniforms = rng.random((len(logits), size))
    low, high = np.empty((2, len(logits), size), np.int64)
    for row, numbers in enumerate(uniforms):
        found = []
        for sign in (-1, 1):
            near = {
                name: value * (1 + sign * tolerance)
                for name, value in filters.items()
                if name in ("top_p", "min_p", "typical_p", "top_n_sigma")
            }
            p = distribution(wide[row], **{**filters, **near})
            sums, last = np.cumsum(p), np.flatnonzero(p)[-1]
            found += [
                np.minimum(np.searchsorted(sums, numbers + shift, "right"), last) for shift in (-tolerance, tolerance)
            ]
        low[row], high[row] = np.min(found, axis=0), np.max(found, axis=0)
    return (Bounds(low, high),)


def draw(**filters):
    """Return options that draw with fixed uniform numbers."""

    def options(shape, dtype, seed):
        size = (int(np.prod(shape[:-1])), DRAWS_OF_A_ROW)
        given = {"rng": FixedUniform(np.random.default_rng(seed + 7).random(size)), "size": DRAWS_OF_A_ROW}
        return given | filters

    return options


def draw_few(shape, dtype, seed):
    """Return options of draws without replacement, as many as the row has classes."""
    given = draw()(shape, dtype, seed)
    size = min(DRAWS_OF_A_ROW, shape[-1])
    return given | {"rng": FixedUniform(given["rng"].uniforms[:, :size]), "size": size, "replace": False}


def draw_masked(shape, dtype, seed):
    return draw()(shape, dtype, seed) | mask_of(shape, dtype, seed)


NO_MASS = "no mass to draw from in row"
RECORDS = (
    Operation(
        "sample",
        "sample",
        (Argument("logits", CLASSES),),
        (Result("indices", DRAWS, "index"),),
        make_logits,
        exact_draws,
        lambda dtype, options: (0.0,),
        {
            "plain": Variant(draw()),
            "T = 0.5": Variant(draw(temperature=0.5)),
            "T = 0": Variant(draw(temperature=0.0)),
            "top-k": Variant(draw(top_k=12)),
            "no top-k": Variant(draw(top_k=-1)),
            "top-p": Variant(draw(top_p=0.8)),
            "min-p": Variant(draw(min_p=0.2)),
            "every filter": Variant(draw(temperature=2.0, top_k=30, top_p=0.7, min_p=0.1)),
            "mask": Variant(draw_masked),
            "typical-p": Variant(draw(typical_p=0.7)),
            "top-n-sigma": Variant(draw(top_n_sigma=1.3)),
            "another order": Variant(
                draw(temperature=2.0, top_p=0.9, top_k=40, order=("top_p", "temperature", "top_k"))
            ),
            "no replacement": Variant(draw_few, is_accurate=False),
        },
        {"NaN": NO_MASS, "+inf": NO_MASS, "all -inf": NO_MASS},
        (
            BadCall({"temperature": -1}, ValueError, "temperature must be at least 0, got -1"),
            BadCall(
                {"temperature": [1, np.nan, 1]}, ValueError, r"temperature must be at least 0, got nan for row \(1\)"
            ),
            BadCall({"temperature": [1, 2]}, ValueError, r"temperature has shape \(2,\), which does not broadcast"),
            BadCall({"temperature": "1"}, TypeError, "temperature must hold real numbers"),
            BadCall({"temperature": 10**400}, TypeError, "temperature must hold real numbers"),
            BadCall({"top_k": -2}, ValueError, "top_k must be at least 1, or 0 or -1 for no limit, got -2"),
            BadCall({"top_k": [3, 0, -9]}, ValueError, r"top_k must be .*, got -9 for row \(2\)"),
            BadCall({"top_k": -(2**70)}, ValueError, "top_k must be at least 1, or 0 or -1"),
            BadCall({"top_k": 1.5}, TypeError, "top_k must hold integers"),
            BadCall({"top_p": 0.0}, ValueError, "top_p must be greater than 0 and at most 1, got 0.0"),
            BadCall({"top_p": 1.01}, ValueError, "top_p must be greater than 0"),
            BadCall({"min_p": -0.1}, ValueError, "min_p must be at least 0 and at most 1"),
            BadCall({"min_p": np.nan}, ValueError, "min_p must be at least 0"),
            BadCall({"typical_p": 0}, ValueError, "typical_p must be greater than 0 and at most 1, got 0"),
            BadCall({"top_n_sigma": [1, -1, 1]}, ValueError, r"top_n_sigma must be at least 0, got -1 for row \(1\)"),
            BadCall({"order": "top_p"}, TypeError, "order must be a sequence of the names"),
            BadCall({"order": ("top_q",)}, ValueError, "order must hold names among .*, got 'top_q'"),
            BadCall({"order": ("top_p", "top_p")}, ValueError, 'order must name each filter once, got "top_p" 2 times'),
            BadCall({"top_k": 3, "order": ("top_p",)}, ValueError, 'order must name every filter .* without "top_k"'),
            BadCall({"temperature": [1, 2, 1], "order": ()}, ValueError, 'order must name .* without "temperature"'),
            BadCall(
                {"uniforms": np.zeros((3, 2)), "rng": None, "size": None},
                ValueError,
                r"uniforms have shape \(3, 2\); .* has \(3,\)",
            ),
            BadCall(
                {"uniforms": [0, 1, 0], "rng": None, "size": None},
                ValueError,
                r"uniforms must be .* less than 1, got 1.0 for row \(1\)",
            ),
            BadCall(
                {"uniforms": [0, np.nan, 0], "rng": None, "size": None},
                ValueError,
                r"uniforms must be .* got nan for row \(1\)",
            ),
            BadCall({"uniforms": ["0"] * 3, "rng": None, "size": None}, TypeError, "uniforms must hold real numbers"),
            BadCall({"uniforms": np.zeros(3), "rng": 1}, ValueError, "rng must be None where uniforms are given"),
            BadCall({"replace": 0}, TypeError, "replace must be a bool"),
            BadCall({"return_log_prob": "no"}, TypeError, "return_log_prob must be a bool"),
            BadCall(
                {"replace": False, "size": 5, "rng": None},
                ValueError,
                r"size must be at most .*, got 5: row \(0\) has fewer",
            ),
            BadCall(
                {"replace": False, "size": 2, "temperature": [1, 1, 0], "rng": None},
                ValueError,
                r"temperature must be greater than 0 for 2 draws without replacement, got 0 for row \(2\)",
            ),
            BadCall({"size": -1}, ValueError, "size must be at least 0"),
            BadCall({"size": True}, TypeError, "size must be an int"),
            BadCall({"size": 1.5}, TypeError, "size must be an int, a tuple of ints or None"),
            BadCall({"rng": -1}, ValueError, "rng must be at least 0 where it is an int, got -1"),
            BadCall(
                {"rng": "x"}, TypeError, "rng must be an int, a numpy.random.SeedSequence, Generator or RandomState"
            ),
            BadCall({"rng": True}, TypeError, "rng must be an int, .* got True"),
            BadCall({"rng": 1.5}, TypeError, "rng must be an int, .* got 1.5"),
            BadCall({"rng": [0, 1]}, ValueError, "rng has length 2; .* there are 3 rows"),
            BadCall({"rng": [0, 1, -2]}, ValueError, r"rng\[2\] must be at least 0 where it is an int, got -2"),
            BadCall({"rng": [0, "x", 1]}, TypeError, r"rng\[1\] must be an int, .* got 'x'"),
            BadCall({"rng": np.zeros(3)}, TypeError, r"rng\[0\] must be an int"),
            BadCall({"out": np.empty((3, 9))}, TypeError, "out has dtype float64"),
            BadCall({"out": np.empty(4, np.int64)}, ValueError, r"out has shape \(4,\)"),
            BadCall({"where": np.zeros((3, 4), bool)}, ValueError, r"row \(0\): where leaves none of its classes"),
            BadCall({"logits": np.zeros((3, 0), np.float32)}, ValueError, r"row \(0\): its axis has no classes"),
        ),
        (*SPARSE, "sampler"),
        exempt={
            "overlap": "its out holds class numbers: the bits of logits would be meaningless as integers",
            "quick": NO_QUICK_PATH,
            "memory": "its results, a few numbers a row, are too small for the memory that is kept",
        },
    ),
)
