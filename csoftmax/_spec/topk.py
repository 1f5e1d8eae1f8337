"""topk, topk_softmax and to_csr: records, and a stable sort as the oracle."""

from __future__ import annotations

import numpy as np

from .formats import Bounds, Exact, wide
from .record import CLASSES, TOP, WHOLE, Argument, BadCall, Operation, Result, Variant, numbers_of_rows
from .samples import logits
from .softmax import SOFTMAX_LIMITS, TEMPERATURES, exact_forward, make_logits, mask_of


def stable_topk(x, k, largest=True):
    """Return values and indices of a stable sort: NaN is the greatest, the lowest index comes first among equals."""
    x = np.asarray(x)
    if x.dtype.kind in "iu":  # ~x has the opposite order
        indices = np.argsort(~x if largest else x, axis=-1, kind="stable")[..., :k]
        return np.take_along_axis(x, indices, -1), indices
    numbers = wide(x) + 0  # -0 counts as 0
    is_nan = np.isnan(numbers)
    numbers = np.where(is_nan, 0, numbers)
    keys = (-numbers, ~is_nan) if largest else (numbers, is_nan)
    indices = np.lexsort(keys, axis=-1)[..., :k]
    return np.take_along_axis(x, indices, -1), indices


def exact_topk(x, k, largest=True):
    values, indices = stable_topk(x, k, largest)
    return Bounds(values, values), Bounds(indices, indices)


def exact_topk_softmax(x, k, temperature=1.0, normalize="topk", where=None):
    """Return the probabilities of the k largest logits, of the full softmax or renormalised over the k."""
    x = np.asarray(x)
    if where is not None:
        x = np.where(where, x, np.array(-np.inf, x.dtype))
    values, indices = stable_topk(x, k)
    if normalize == "full":
        p = np.take_along_axis(exact_forward(x, temperature)[0], indices, -1)
    else:
        p = exact_forward(values, temperature)[0]
    return Exact(p), Bounds(indices, indices)


def exact_csr(values, indices, n_classes):
    """Return data, column indices and row pointers, each row in the order of its classes."""
    order = np.argsort(indices, axis=-1, kind="stable")
    data, columns = (np.take_along_axis(a, order, -1).ravel() for a in (np.asarray(values), indices))
    pointers = np.arange(0, columns.size + 1, max(indices.shape[-1], 1))
    return tuple(Bounds(a, a) for a in (data, columns, pointers))


def count_of(limit, **more):
    return lambda shape, dtype, seed: {"k": min(limit, shape[-1]), **more}


def count_with_temperatures(shape, dtype, seed):
    return numbers_of_rows("temperature", TEMPERATURES, **count_of(5, normalize="full")(shape, dtype, seed))(
        shape, dtype, seed
    )


def masked_count(shape, dtype, seed):
    mask = mask_of(shape, dtype, seed)["where"]
    return {"k": int(mask.sum(-1).min(initial=5)), "where": mask}


def make_topk(shape, dtype, seed, sigma, soft):
    return stable_topk(logits(shape, dtype, seed, sigma), min(5, shape[-1]))


ALL = 10**9
LIMITS = ("k must be at most the length of the axis, 4, got 5", "k must be at least 0, got -1", "k must be an int")
COUNT_ERRORS = tuple(
    BadCall({"k": k}, error, message)
    for k, error, message in (
        (5, ValueError, LIMITS[0]),
        (-1, ValueError, LIMITS[1]),
        (1.5, TypeError, LIMITS[2]),
        (True, TypeError, LIMITS[2]),
    )
)
SPARSE = tuple(f"sparse, alpha={alpha}" for alpha in (1.25, 1.5, 2.0))
SPARSE_MEMORY = "its results, k numbers a row, are too small for the memory that is kept"
NO_QUICK_PATH = "it has no quick path"


def exact_values(dtype, options):
    return 0.0, 0.0


RECORDS = (
    Operation(
        "topk",
        "topk",
        (Argument("x", CLASSES),),
        (Result("values", TOP), Result("indices", TOP, "index")),
        make_logits,
        exact_topk,
        exact_values,
        {
            "plain": Variant(count_of(5)),
            "smallest": Variant(count_of(40, largest=False)),
            "all": Variant(count_of(ALL)),
        },
        {"NaN": (None, None), "+inf": (None, None), "all -inf": (-np.inf, None)},
        COUNT_ERRORS,
        SPARSE,
        exempt={"overlap": "it has no out", "quick": NO_QUICK_PATH, "memory": SPARSE_MEMORY},
    ),
    Operation(
        "topk_softmax",
        "topk",
        (Argument("x", CLASSES),),
        (Result("values", TOP), Result("indices", TOP, "index")),
        make_logits,
        exact_topk_softmax,
        lambda dtype, options: (*SOFTMAX_LIMITS[dtype], 0.0),
        {
            "plain": Variant(count_of(5)),
            "full, T = 0.3": Variant(count_of(40, normalize="full", temperature=0.3)),
            "all, full": Variant(count_of(ALL, normalize="full")),
            "full, T a row": Variant(count_with_temperatures),
            "mask": Variant(masked_count),
        },
        {"NaN": (np.nan, None), "+inf": (np.nan, None), "all -inf": (np.nan, None)},
        (
            *COUNT_ERRORS,
            BadCall({"normalize": "all"}, ValueError, 'normalize must be "topk" or "full"'),
            BadCall({"temperature": -1}, ValueError, "temperature must be at least 0"),
            BadCall({"out": np.zeros((3, 2), np.float32)}, TypeError, "out must be a pair of arrays"),
        ),
        SPARSE,
        exempt={"quick": NO_QUICK_PATH, "memory": SPARSE_MEMORY},
    ),
    Operation(
        "to_csr",
        "topk",
        (Argument("values", TOP), Argument("indices", TOP)),
        (Result("data", WHOLE, "loss"), Result("indices", WHOLE, "index"), Result("indptr", WHOLE, "index")),
        make_topk,
        exact_csr,
        lambda dtype, options: (0.0, 0.0, 0.0),
        {"plain": Variant(lambda shape, dtype, seed: {"n_classes": shape[-1]})},
        {},
        (
            BadCall(
                {"topk": ([1.0], [3]), "n_classes": 3}, IndexError, "indices have 3 in row 0: the classes are 0 to 2"
            ),
            BadCall({"topk": ([1.0], [1.0])}, TypeError, "indices must be integers"),
            BadCall({"topk": ([1.0, 2], [1, 1])}, ValueError, "twice in one row"),
            BadCall({"topk": ([1.0, 2], [1])}, ValueError, "values have shape"),
            BadCall({"topk": ([1.0, 2],)}, TypeError, "topk must be a TopK or a pair of arrays"),
        ),
        invoke=lambda function, values, indices, **options: function((values, indices), **options),
        name_arguments=lambda sample: {"topk": tuple(sample.arrays.values()), **sample.options},
        unpack=lambda matrix: (matrix.data, matrix.indices, matrix.indptr),
        exempt={
            "special_values": "it moves values and computes nothing from them",
            "golden": "it moves the results of topk and topk_softmax, whose bits are recorded",
            "overlap": "it has no out",
            "interrupt": "it is NumPy's sort of k numbers a row",
            "allocation": "it calls nothing of the C core",
            "float_environment": "it computes nothing in floating point",
            "big": "SciPy chooses the index type, and 2^31 stored numbers do not fit the memory of a test",
            "quick": NO_QUICK_PATH,
            "memory": SPARSE_MEMORY,
        },
        devices=("cpu",),
        needs=("scipy",),
    ),
)
