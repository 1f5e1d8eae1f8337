"""Codes of an output layer in int8, the exact top-k that they make fast, and certain bounds of all scores."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arguments.foreign import as_native
from .._arguments.layers import check_bias
from .._arguments.negatives import as_ids, check_classes
from .._arguments.numbers import check_count
from .._arguments.places import as_array, as_float
from .._cpu import binding
from .._cpu.dtypes import as_buffer, is_bfloat16
from .topk import topk

MAX_CLASSES = 2**31 - 1
MAX_EXPONENT = 30  # of the scales of columns, as powers of two: both w' and x' stay within range
SAMPLED_ROWS = 16384  # most rows from which the scales of columns are found
BLOCK_ELEMENTS = 1 << 18  # of these rows, which are float64 at a time
_OFF_BIAS = -(2.0**126)  # of src_c/ops/int8.h
MAX_FILTERED_BIAS = 2.0**126  # with a larger one bounds of the scan overflow, and it keeps what coarse codes drop


class Leading:
    """The leading four bits of the codes of a layer: half as many bytes, which single queries read first.

    They are made by the first such query, and take half as much memory as the codes.
    """

    def __init__(self) -> None:
        """Begin without them."""
        self.nibbles: NDArray[np.uint8] | None = None  # (groups, D / 8, 16, 4): two dimensions in a byte
        self.gap, self.reach = np.zeros(0, np.float32), np.zeros(0, np.float32)  # a bound for each group
        self.part = np.zeros(0, np.uint8)  # of the gap of its group that a class has, in 1 / 256

    @property
    def nbytes(self) -> int:
        """Bytes of what has been made."""
        numbers = self.gap.nbytes + self.reach.nbytes + self.part.nbytes
        return numbers + (0 if self.nibbles is None else self.nibbles.nbytes)

    def __reduce__(self) -> Any:
        """Leave everything out of copies."""
        return Leading, ()

    def make(self, layer: Layer, num_threads: Any) -> None:
        """Make them of the layer."""
        if self.nibbles is not None:
            return
        new, groups = Leading(), len(layer.codes)
        new.gap, new.reach = np.empty(groups, np.float32), np.empty(groups, np.float32)
        new.part = np.empty(groups * binding.INT8_GROUP, np.uint8)
        new.nibbles = empty_codes((groups, -(-layer.n_features // 8), binding.INT8_GROUP, 4))
        binding.run_int8_nibbles(layer._replace(leading=new), None, num_threads)
        self.gap, self.reach, self.part, self.nibbles = new.gap, new.reach, new.part, new.nibbles

    def forget(self, groups: NDArray[np.int64]) -> None:
        """Let groups, whose codes will change, always be searched by all bits, until `renew`."""
        if self.nibbles is not None:
            self.gap[groups] = np.inf

    def renew(self, layer: Layer, groups: NDArray[np.int64], num_threads: Any) -> None:
        """Make them of groups whose codes have changed."""
        if self.nibbles is not None:
            binding.run_int8_nibbles(layer, groups, num_threads)


class Layer(NamedTuple):
    """Codes of w with what bounds their errors; arrays of a number for each class are padded to whole groups."""

    n_classes: int
    n_features: int
    w: Any  # (K, D) of a dtype of csoftmax, bfloat16 as its bits
    dtype: int
    codes: NDArray[np.uint8]  # (groups, D / 4, 16, 4)
    second: NDArray[np.uint8] | None
    scale: NDArray[np.float32]
    residual: NDArray[np.float32]
    second_residual: NDArray[np.float32] | None
    norm: NDArray[np.float32]
    bias: NDArray[np.float32]
    exact_bias: NDArray[np.float64] | None
    exponent: NDArray[np.int16]
    ratio: float  # norm / residual of a usual class
    order: NDArray[np.int64] | None = None  # the row of w, which is the class, of each code; None: their own
    plain: Any = None  # with an order, the layer with the biases in the order of the classes, for exact scores
    largest: float = 0.0  # finite norm, or 0 where coarse codes must not be used: see `find_largest`
    leading: Leading | None = None  # None: there are never any
    is_biased: bool = True  # False: all biases are 0

    @property
    def nbytes(self) -> int:
        """Bytes of everything but w."""
        arrays = self.codes, self.second, self.scale, self.residual, self.second_residual, self.norm, self.bias
        leading = 0 if self.leading is None else self.leading.nbytes
        return sum(a.nbytes for a in (*arrays, self.exact_bias, self.exponent) if a is not None) + leading


class Found(NamedTuple):
    """The result of `find_best`; values are float64."""

    values: NDArray[np.float64]
    indices: NDArray[np.int64]
    rescored: NDArray[np.int64]  # exact scores of each query
    is_scan: NDArray[np.bool_]  # all scores were computed


def padded(n: int) -> int:
    """A number of classes, rounded up to whole groups."""
    return -(-n // binding.INT8_GROUP) * binding.INT8_GROUP


def pad(values: Any, dtype: Any = np.float32) -> NDArray[Any]:
    """A number for each class, followed by zeros up to a whole group."""
    result = np.zeros(padded(len(values)), dtype)
    result[: len(values)] = values
    return result


def check_weights(w: Any, name: str = "w") -> tuple[Any, int]:
    """Weights as an array of shape (K, D) of a dtype of csoftmax, and the code of the dtype."""
    w, dtype = as_float(name, as_native(w, name))
    if w.ndim != 2 or not 1 <= len(w) <= MAX_CLASSES or not 1 <= w.shape[1] <= binding.INT8_MAX_FEATURES:
        raise ValueError(
            f"{name} has shape {w.shape}; allowed is (K, D) with 1 to {MAX_CLASSES} classes and 1 to "
            f"{binding.INT8_MAX_FEATURES} features"
        )
    return w, dtype


def read_bias(bias: Any, n: int, name: str = "bias", of: str = "w") -> NDArray[np.float64] | None:
    """The bias of n classes as float64, or None where it is 0; name and of: the arguments, and that with n rows."""
    if bias is None:
        return None
    return check_bias(as_array(name, as_native(bias, name)), n, name, of).astype(np.float64)


def make_biases(bias: NDArray[np.float64] | None, n: int) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    """The bias that the scan adds, padded, and the exact one where that differs from it.

    The scan takes -2**126 for -infinity, so that classes that are switched off do not have infinite bounds: it is an
    upper bound as it stands, and the scan takes -infinity for the lower bound of a class with such a bias.
    """
    if bias is None:
        return np.zeros(padded(n), np.float32), None
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = bias.astype(np.float32)
        single[np.isneginf(bias)] = _OFF_BIAS
        is_exact = np.array_equal(single, bias)
    return pad(single), None if is_exact else bias


def choose_exponents(w: Any) -> NDArray[np.int16]:
    """Powers of two that give the columns of w about equal sizes, measured relative to each row's largest element."""
    sampled = w[:: -(-len(w) // SAMPLED_ROWS)]
    block = max(1, BLOCK_ELEMENTS // w.shape[1])
    squares, count, exponent = np.zeros(w.shape[1]), 0, np.zeros(w.shape[1], np.int16)
    for begin in range(0, len(sampled), block):
        rows = sampled[begin : begin + block].astype(np.float64)
        size = np.abs(rows).max(axis=1)
        usual = np.isfinite(size) & (size > 0)
        count += int(usual.sum())
        with np.errstate(under="ignore", over="ignore"):
            squares += np.square(rows[usual] / size[usual, None]).sum(axis=0)
    if not count:
        return exponent
    spread = np.sqrt(squares / count)
    used = spread > 0
    if used.any():
        exponent[used] = np.rint(np.log2(spread[used] / np.median(spread[used]))).clip(-MAX_EXPONENT, MAX_EXPONENT)
    return exponent


def empty_layer(w: Any, dtype: int, exponent: Any, limbs: int) -> Layer:
    """A layer without codes and bias."""
    n, d = w.shape
    shape = (padded(n) // binding.INT8_GROUP, -(-d // 4), binding.INT8_GROUP, 4)
    codes = [empty_codes(shape) for _ in range(limbs)]
    numbers = [np.zeros(padded(n), np.float32) for _ in range(2 + limbs)]
    second = (codes[1], numbers[3]) if limbs == 2 else (None, None)
    bias, _ = make_biases(None, n)
    return Layer(n, d, as_buffer(w), dtype, codes[0], second[0], numbers[0], numbers[1], second[1], numbers[2], bias,
                 None, exponent, 1.0)  # fmt: skip


def empty_codes(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Codes of 0 at an address that is a multiple of 64."""
    size = int(np.prod(shape))
    memory = np.full(size + 63, 128, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + size].reshape(shape)


def copy_codes(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes in memory of their own."""
    result = empty_codes(codes.shape)
    result[...] = codes
    return result


def quantise(w: Any, dtype: int, bias: Any, limbs: int, num_threads: Any, exponent: Any = None) -> Layer:
    """The layer of the weights w."""
    layer = empty_layer(w, dtype, choose_exponents(w) if exponent is None else exponent, limbs)
    binding.run_int8_quantise(layer, layer.w, None, num_threads)
    return finish(layer, bias)


def finish(layer: Layer, bias: Any) -> Layer:
    """The layer with its bias and the ratio of norms."""
    single, exact = make_biases(bias, layer.n_classes)
    residual, norm = (a[: layer.n_classes] for a in (layer.residual, layer.norm))
    usual = np.isfinite(norm) & (residual > 0)
    ratio = 1.0
    if usual.any():  # in float64, in which the mean of the two in the middle does not overflow
        ratio = float(np.median(norm[usual].astype(np.float64)) / np.median(residual[usual].astype(np.float64)))
    largest = find_largest(norm, single)
    return layer._replace(
        bias=single, exact_bias=exact, ratio=min(ratio, 1e30), largest=largest, is_biased=bias is not None
    )


def find_largest(norm: Any, bias: Any) -> float:
    """The largest finite norm; 0, which switches coarse codes off, with NaN or a number beyond 2**126 as a bias."""
    if not (np.abs(bias) <= MAX_FILTERED_BIAS).all():
        return 0.0
    return float(norm.max(initial=0.0, where=np.isfinite(norm)))


def read_queries(layer: Layer, x: Any) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Features as contiguous rows of float64, and the shape of the batch."""
    x, _ = as_float("x", as_native(x, "x"))
    if x.ndim == 0 or x.shape[-1] != layer.n_features:
        raise ValueError(f"x has shape {x.shape}; allowed is (..., {layer.n_features})")
    batch = x.shape[:-1]
    return np.ascontiguousarray(x.astype(np.float64).reshape(int(np.prod(batch)), layer.n_features)), batch


def read_where(layer: Layer, where: Any, batch: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Which classes take part: one row for all queries, or one for each."""
    if where is None:
        return None
    mask = as_array("where", as_native(where, "where"))
    if mask.dtype != np.bool_:
        raise TypeError(f"where must be boolean, got dtype {mask.dtype}")
    k = layer.n_classes
    if mask.shape not in ((k,), (*batch, k)):
        raise ValueError(f"where has shape {mask.shape}; allowed are ({k},) and {(*batch, k)}")
    rows = 1 if mask.ndim == 1 else int(np.prod(batch))
    return np.ascontiguousarray(mask.reshape(rows, k)).view(np.uint8)


def read_exclude(layer: Layer, exclude: Any, rows: int) -> tuple[Any, Any]:
    """Offsets and ascending classes of each row, from a sparse matrix or a pair of arrays."""
    if exclude is None:
        return None, None
    k = layer.n_classes
    if hasattr(exclude, "tocsr"):
        if exclude.shape != (rows, k):
            raise ValueError(f"exclude has shape {exclude.shape}; ({rows}, {k}) is needed")
        exclude = exclude.tocsr()
        exclude = exclude.indptr, exclude.indices
    if not isinstance(exclude, tuple) or len(exclude) != 2:
        raise TypeError(
            f"exclude must be a sparse matrix of SciPy or a pair (indptr, ids), got {type(exclude).__name__}"
        )
    indptr, ids = as_ids("indptr of exclude", exclude[0]), as_ids("ids of exclude", exclude[1])
    if indptr.shape != (rows + 1,) or ids.ndim != 1:
        raise ValueError(
            f"indptr and ids of exclude have shapes {indptr.shape} and {ids.shape}; ({rows + 1},) and (n,) are needed"
        )
    if indptr[0] != 0 or indptr[-1] != len(ids) or (np.diff(indptr) < 0).any():
        raise ValueError(f"indptr of exclude must rise from 0 to the number of ids, {len(ids)}")
    bad = np.flatnonzero((ids < 0) | (ids >= k))
    if len(bad):
        raise IndexError(f"ids[{bad[0]}] of exclude is {ids[bad[0]]}: the classes are 0 to {k - 1}")
    row = np.repeat(np.arange(rows), np.diff(indptr))
    if not ((ids[1:] > ids[:-1]) | (row[1:] > row[:-1])).all():
        ids = ids[np.lexsort((ids, row))]
    return indptr, ids


def find_best(
    layer: Layer, x: Any, k: Any, where: Any = None, exclude: Any = None, limbs: int = 0, num_threads: Any = None
) -> tuple[Found, tuple[int, ...]]:
    """The k best classes of each row of x, and the shape of the batch."""
    k = check_count("k", k)
    if k > layer.n_classes:
        raise ValueError(f"k must be at most the number of classes, {layer.n_classes}, got {k}")
    x, batch = read_queries(layer, x)
    mask = read_where(layer, where, batch)
    return search(layer, x, k, mask, read_exclude(layer, exclude, len(x)), limbs, num_threads), batch


def search(layer: Layer, x: Any, k: int, mask: Any, exclude: Any, limbs: int, num_threads: Any) -> Found:
    """The k best classes of each row of x, from arguments that have been read."""
    indptr, excluded = exclude
    n = len(x)
    values, indices = np.full((n, k), -np.inf), np.zeros((n, k), np.int64)
    found, rescored = np.zeros(n, np.int64), np.zeros(n, np.int64)
    arguments = mask, indptr, excluded, values, indices, found, rescored
    if layer.leading is not None and n == 1 and k:
        layer.leading.make(layer, num_threads)
    if n and k:
        binding.run_int8_topk(layer, x, k, limbs, *arguments, num_threads)
    is_scan = rescored < 0
    complete(layer, x, mask, exclude, is_scan, (values, indices, found, rescored), num_threads)
    return Found(values, indices, rescored, is_scan)


def complete(layer: Layer, x: Any, mask: Any, exclude: Any, is_scan: Any, results: Any, num_threads: Any) -> None:
    """Compute all scores of queries where `is_scan` says so, and fill results where fewer than k classes take part."""
    values, indices, found, rescored = results
    indptr, ids = exclude
    k = values.shape[1]
    for i in np.flatnonzero(is_scan | (found < k)):
        allowed = None if mask is None else mask[i if len(mask) > 1 else 0].astype(bool)
        if indptr is not None:
            allowed = np.ones(layer.n_classes, bool) if allowed is None else allowed
            allowed[ids[indptr[i] : indptr[i + 1]]] = False
        if is_scan[i]:
            plain = layer.plain or layer
            found[i], rescored[i] = _scan(plain, x[i], allowed, values[i], indices[i], num_threads)
        if found[i] < k:
            values[i, found[i] :] = -np.inf
            indices[i, found[i] :] = np.flatnonzero(~allowed)[: k - found[i]]  # type: ignore[operator]


def _scan(layer: Layer, x: Any, allowed: Any, values: Any, indices: Any, num_threads: Any) -> tuple[int, int]:
    """The best classes from the exact scores of all that take part; returns how many there are, and of how many."""
    ids = None if allowed is None else np.flatnonzero(allowed)
    scores = compute_scores(layer, x, ids, num_threads)
    count = min(len(scores), len(values))
    best = topk(scores, count, num_threads=num_threads)
    values[:count] = best.values
    indices[:count] = best.indices if ids is None else ids[best.indices]
    return count, len(scores)


def compute_scores(layer: Layer, x: Any, ids: Any, num_threads: Any) -> NDArray[np.float64]:
    """Exact scores of one query, of classes (int64) or of all."""
    scores = np.empty(layer.n_classes if ids is None else len(ids))
    binding.run_int8_scores(layer, x, ids, scores, num_threads)
    return scores


def compute_logits(layer: Layer, x: Any, ids: Any, num_threads: Any) -> NDArray[np.float64]:
    """Exact scores of given classes, (m,) the same for all rows of x or (..., m) some for each: (..., m)."""
    rows, batch = read_queries(layer, x)
    at = as_ids("ids", as_native(ids, "ids"))
    if at.ndim == 0 or (at.ndim != 1 and at.shape[:-1] != batch):
        rows_too = f" and {(*batch, 'm')}".replace("'", "") if batch else ""
        raise ValueError(f"ids has shape {at.shape}; allowed: (m,){rows_too}")
    check_classes("ids", at, layer.n_classes)
    m = at.shape[-1]
    each = np.broadcast_to(at, (*batch, m)).reshape(len(rows), m)
    scores = np.empty((len(rows), m))
    for i, row in enumerate(rows):
        scores[i] = compute_scores(layer, row, np.ascontiguousarray(each[i]), num_threads)
    return scores.reshape(*batch, m)


def compute_bounds(layer: Layer, x: Any, num_threads: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Scores of all classes for one query, bounds of their errors, and a bound of the norm of the scaled query."""
    scores, bounds = np.empty(layer.n_classes), np.empty(layer.n_classes)
    size = binding.run_int8_bounds(layer, x, scores, bounds, num_threads)
    return scores, bounds, size


def round_scores(scores: NDArray[np.float64], dtype: Any) -> NDArray[Any]:
    """Scores in the dtype of the weights, rounded once."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if not is_bfloat16(dtype):
            return scores.astype(dtype)
        # NumPy rounds to bfloat16 by way of float32: rounding to odd there leaves the second rounding correct
        single = scores.astype(np.float32)
        bits = single.view(np.uint32)
        is_finite = np.isfinite(single)
        bits -= (is_finite & (np.abs(single) > np.abs(scores))).astype(np.uint32)
        bits |= (is_finite & (single != scores)).astype(np.uint32)
        return single.astype(dtype)
