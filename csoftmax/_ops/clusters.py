"""Clusters of the classes of an output layer, its codes in lists of one cluster each, and top-k within some lists.

k-means (Lloyd 1982) with steps that no number of threads, BLAS or instruction set can change: the nearest mean of a row
is the exact answer of an int8 layer whose weights are the means, with the bias -|mean|^2 / 2, and sums of rows have a
fixed order.  A third of the time is that of a product of matrices in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arguments.numbers import check_count
from .._cpu import binding
from .._cpu.dtypes import dtype_code
from . import int8
from .int8 import Layer, make_biases, quantise

TRAINED_ROWS = 64  # for each cluster: k-means takes no more, the last assignment takes all
BLOCK_ELEMENTS = 1 << 20  # of rows in float64 at a time
NORMAL_RANGE = 2.0**40  # classes with a norm this many times the median are in the list that is always searched
UP = 1 + 2.0**-30  # covers the roundings of a norm in float64
TINY_NORM = 2.0**-520  # above that of a row whose squares are all 0
SCORE_ROUNDING = 2.0**-51  # of an exact score, for each feature, relative to |w| |x|
MAX_COVARIANCE = 1024  # rows or columns: beyond it the trace bounds the largest eigenvalue
MAX_GIVEN_BACK = 4  # exact search of more than 1 / 4 of the codes: all codes at once, for all queries together


class Lists(NamedTuple):
    """Lists of the codes of a layer; the arrays have an element for each list.

    The last two have no mean: classes that every query has to look at, because they have no codes or are far away, and
    classes that are switched off.
    """

    layer: Layer  # with an order
    centers: Layer  # its weights, float64, are the means of all lists but the last two
    begin: NDArray[np.int64]  # (lists + 1,)
    radius: NDArray[np.float64]  # largest distance to the mean, and the rounding of exact scores for |x| = 1
    largest: NDArray[np.float64]  # bias; of the last two infinity and -infinity, which are their bounds
    typical: NDArray[np.float64]  # mean of the bias
    spread: NDArray[np.float64]  # square of what a score is likely to have above that of the mean, across it, |x| = 1
    along: NDArray[np.float64]  # the same along the mean less that across it, for a score of the mean of 1
    least: NDArray[np.float64]  # bias
    mean_error: NDArray[np.float64]  # of the mean, as a distance
    variance: NDArray[np.float64]  # bound of that of a score for |x| = 1, without the bias
    bias_variance: NDArray[np.float64]

    @property
    def n_lists(self) -> int:
        """The number of lists with a mean."""
        return self.centers.n_classes

    @property
    def nbytes(self) -> int:
        """Bytes of everything but w."""
        layer, centers = self.layer, self.centers
        result = layer.nbytes + centers.nbytes + centers.w.nbytes + sum(a.nbytes for a in self[2:])
        result += 0 if layer.order is None else layer.order.nbytes
        if layer.plain.bias is not layer.bias:
            result += layer.plain.bias.nbytes
        exact = layer.plain.exact_bias
        return result + (0 if exact is None else exact.nbytes)

    def members(self, ids: Any) -> NDArray[np.int64]:
        """The codes of some lists."""
        parts = [np.arange(self.begin[i], self.begin[i + 1]) for i in ids]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


class FoundInLists(NamedTuple):
    """The result of `find_in_lists`; values are float64."""

    values: NDArray[np.float64]
    indices: NDArray[np.int64]
    certified: NDArray[np.bool_]
    rescored: NDArray[np.int64]  # exact scores of each query
    scanned: NDArray[np.int64]  # codes
    probed: NDArray[np.int64]  # lists
    is_scan: NDArray[np.bool_]  # all scores were computed


def _rows_of(w: Any, ids: Any) -> NDArray[np.float64]:
    return np.asarray(w[ids], np.float64)


def _blocks(count: int, width: int) -> Any:
    """Slices of rows, BLOCK_ELEMENTS at a time."""
    step = max(1, BLOCK_ELEMENTS // width)
    return (slice(begin, begin + step) for begin in range(0, count, step))


class _Points:
    """The rows that are clustered: weights, and the bias as one more number where it varies; about of norm 1."""

    def __init__(self, w: Any, bias: Any, ids: NDArray[np.int64], size: float):
        self.w, self.ids, self.factor = w, ids, 2.0 ** -round(np.log2(size)) if size > 0 else 1.0
        is_varied = bias is not None and len(ids) and np.ptp(bias[ids]) > 0 and w.shape[1] < binding.INT8_MAX_FEATURES
        self.bias = bias if is_varied else None
        self.width = w.shape[1] + (self.bias is not None)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, at: Any) -> NDArray[np.float64]:
        ids = self.ids[at]
        rows = _rows_of(self.w, ids)
        if self.bias is not None:
            rows = np.column_stack((rows, self.bias[ids]))
        return (rows * self.factor).clip(-NORMAL_RANGE, NORMAL_RANGE)  # a bias may be beyond it


def _nearest(points: _Points, at: Any, means: NDArray[np.float32], num_threads: Any) -> NDArray[np.int64]:
    """The nearest mean of each point, of equal ones the first."""
    half = -0.5 * np.square(means, dtype=np.float64).sum(axis=1)
    layer = quantise(means, binding.DTYPES["float32"], half, 1, num_threads)
    result = np.empty(len(at), np.int64)
    for block in _blocks(len(at), points.width):
        found, _ = int8.find_best(layer, points.take(at[block]), 1, num_threads=num_threads)
        result[block] = found.indices[:, 0]
    return result


def _sums(rows: Any, offsets: Any, order: Any, num_threads: Any) -> NDArray[Any]:
    """Sums of rows by a counting sort of their clusters, in ascending order of the rows."""
    sums = np.empty((len(offsets) - 1, rows.shape[1]), rows.dtype)
    ones = np.ones(len(order), rows.dtype)
    binding.run_row_sums(dtype_code(rows.dtype), offsets, ones, rows, order, None, None, sums, num_threads)
    return sums


def cluster(points: _Points, count: int, iterations: int, generator: Any, num_threads: Any) -> NDArray[np.int64]:
    """The cluster of each point by k-means; some of `count` clusters may be empty."""
    n = len(points)
    trained = np.sort(generator.permutation(n)[: TRAINED_ROWS * count])
    sample = np.concatenate([points.take(trained[b]).astype(np.float32) for b in _blocks(len(trained), points.width)])
    first = np.sort(generator.permutation(len(trained))[:count])
    means = sample[first]
    for _ in range(iterations):
        labels = _nearest(points, trained, means, num_threads)
        offsets, order = binding.sort_rows(labels, count)
        sizes = np.diff(offsets)
        filled = sizes > 0
        means = np.where(
            filled[:, None], _sums(sample, offsets, order, num_threads) / np.maximum(sizes, 1)[:, None], means
        ).astype(np.float32)
    return _nearest(points, np.arange(n), means, num_threads)


def _norms(w: Any) -> NDArray[np.float64]:
    norms = np.empty(len(w))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for block in _blocks(len(w), w.shape[1]):
            rows = _rows_of(w, block)
            norms[block] = np.sqrt(np.square(rows).sum(axis=1))
            norms[block][(norms[block] == 0) & rows.any(axis=1)] = TINY_NORM
    return norms


def _sort(norms: Any, bias: Any) -> tuple[NDArray[np.bool_], NDArray[np.bool_], float]:
    """Which classes are clustered, which are switched off, and the median norm of the former."""
    is_usual = (norms < 2.0**97) & ((norms > 2.0**-400) | (norms == 0))
    is_off = np.zeros(len(norms), np.bool_)
    if bias is not None:
        is_off = is_usual & np.isneginf(bias)
        is_usual &= np.abs(bias) < 2.0**100
    sizes = norms[is_usual & (norms > 0)]
    size = float(np.median(sizes)) if len(sizes) else 0.0
    return is_usual & (norms <= NORMAL_RANGE * size), is_off, size


@np.errstate(under="ignore")
def make_lists(
    w: Any, dtype: int, bias: Any, n_clusters: int, iterations: int, generator: Any, num_threads: Any
) -> Lists:
    """Cluster the classes of a layer, and make their codes."""
    norms = _norms(w)
    is_usual, is_off, size = _sort(norms, bias)
    points = _Points(w, bias, np.flatnonzero(is_usual), size)
    labels = np.where(is_off, -1, -2)
    if len(points):
        count = min(n_clusters, len(points))
        labels[points.ids] = cluster(points, count, iterations, generator, num_threads)
    used, list_of = np.unique(labels[is_usual], return_inverse=True)
    n = max(1, len(used))
    labels[is_usual] = list_of.reshape(-1)
    labels[labels < 0] += n + 2  # -2: always searched, -1: switched off
    begin, order = binding.sort_rows(labels, n + 2)
    return finish_lists(make_codes(w, dtype, bias, order, num_threads), bias, begin, norms, num_threads)


def make_codes(w: Any, dtype: int, bias: Any, order: NDArray[np.int64], num_threads: Any) -> Layer:
    """The layer whose codes are in the given order."""
    layer = int8.empty_layer(w, dtype, int8.choose_exponents(w), 1)
    at = np.empty_like(order)
    at[order] = np.arange(len(order))
    binding.run_int8_quantise(layer, layer.w, at, num_threads)
    return set_order(layer, bias, order)


def set_order(layer: Layer, bias: Any, order: NDArray[np.int64]) -> Layer:
    """The layer, whose codes are in the given order, with its bias in that order and in that of the classes."""
    ordered = int8.finish(layer, None if bias is None else bias[order])
    plain = ordered
    if bias is not None:
        single, exact = make_biases(bias, len(order))
        plain = ordered._replace(bias=single, exact_bias=exact)
    return ordered._replace(order=order, plain=plain)


def finish_lists(layer: Layer, bias: Any, begin: Any, norms: Any, num_threads: Any) -> Lists:
    """The lists with what bounds the scores of their classes; norms: of the rows of w."""
    n, d = len(begin) - 3, layer.n_features
    means = np.zeros((n, d))
    numbers = {name: np.zeros(n + 2) for name in Lists._fields[3:]}
    w = layer.w if layer.dtype != binding.DTYPES["bfloat16"] else _from_bits(layer.w)
    for i in range(n):
        ids = layer.order[begin[i] : begin[i + 1]]  # type: ignore[index]
        if len(ids):
            means[i], found = _describe(_rows_of(w, ids), None if bias is None else bias[ids], norms[ids].max())
            for name, value in found.items():
                numbers[name][i] = value
    numbers["largest"][n:] = np.inf, -np.inf
    centers = quantise(means, binding.DTYPES["float64"], None, 1, num_threads)
    return Lists(layer, centers, begin, **numbers)


def _from_bits(bits: NDArray[np.uint16]) -> Any:
    import ml_dtypes

    return bits.view(ml_dtypes.bfloat16)


def _describe(rows: NDArray[np.float64], bias: Any, norm: float) -> tuple[NDArray[np.float64], dict[str, float]]:
    """The mean of a list, and bounds, rounded up, of how its classes differ from it; norm: the largest of the rows."""
    n, d = rows.shape
    mean = rows.sum(axis=0) / n
    rows = rows - mean
    squares = np.square(rows).sum(axis=1)
    total = squares.sum() / n
    found = {
        "radius": np.sqrt(squares.max()) * UP + norm * (d * SCORE_ROUNDING + 2.0**-49),
        "mean_error": (n + 4) * 2.0**-53 * norm * UP,
        "variance": _bound_variance(rows, total) + (2.0**-49 * norm) ** 2,
        **_describe_spread(rows, mean, total),
    }
    if bias is not None:
        found["typical"] = bias.sum() / n
        found["bias_variance"] = np.square(bias - found["typical"]).sum() / n * UP
        found["largest"], found["least"] = bias.max(), bias.min()
    return mean, found


def _describe_spread(rows: NDArray[np.float64], mean: Any, total: float) -> dict[str, float]:
    """2 log n times the variance of a score, across the mean and along it: the best of n is about its root above."""
    n, d = rows.shape
    square = float(np.square(mean).sum())
    if not 2.0**-500 < square < 2.0**500 or d == 1:
        return {"spread": total / d * 2 * np.log(n), "along": 0.0}
    of_mean = float(np.square((rows * mean).sum(axis=1)).sum() / n / square)
    across = max(total - of_mean, 0.0) / (d - 1)
    return {"spread": across * 2 * np.log(n), "along": (of_mean - across) * 2 * np.log(n) / square}


def _bound_variance(rows: NDArray[np.float64], total: float) -> float:
    """An upper bound of the largest eigenvalue of the covariance, whose trace is `total`.

    It is the eighth root of the trace of its eighth power, at most n^(1/8) of the truth.  Rounded up to eight bits, so
    that the last bits of the BLAS do not show.
    """
    if not 2.0**-900 < total < 2.0**900 or min(rows.shape) > MAX_COVARIANCE:
        result = total
    else:
        thin = rows if rows.shape[0] >= rows.shape[1] else rows.T
        gram = thin.T @ thin / (len(rows) * total)  # of trace 1
        power = gram @ gram
        power = power @ power
        result = total * min(1.0, np.square(power).sum() ** 0.125 * (1 + 2.0**-20))
    fraction, exponent = np.frexp(result * UP)
    return float(np.ldexp(np.ceil(fraction * 256) / 256, exponent))


def find_in_lists(
    lists: Lists, x: Any, k: Any, where: Any, exclude: Any, n_probe: int, is_exact: bool, num_threads: Any
) -> tuple[FoundInLists, tuple[int, ...]]:
    """The k best classes of each row of x within some lists, and the shape of the batch."""
    layer = lists.layer
    k = check_count("k", k)
    if k > layer.n_classes:
        raise ValueError(f"k must be at most the number of classes, {layer.n_classes}, got {k}")
    x, batch = int8.read_queries(layer, x)
    mask = int8.read_where(layer, where, batch)
    excluded = int8.read_exclude(layer, exclude, len(x))
    n = len(x)
    values, indices = np.full((n, k), -np.inf), np.zeros((n, k), np.int64)
    found, rescored, scanned, probed = (np.zeros(n, np.int64) for _ in range(4))
    certified = np.ones(n, np.bool_)
    results = values, indices, found, rescored
    if n and k:
        numbers = lists.begin, lists.radius, lists.largest, lists.typical, lists.spread, lists.along
        limit = layer.n_classes // MAX_GIVEN_BACK
        binding.run_int8_lists(layer, lists.centers, numbers, x, k, n_probe, is_exact, limit, mask, *excluded, *results,
                               certified.view(np.uint8), scanned, probed, num_threads)  # fmt: skip
    is_scan, back = rescored == -1, np.flatnonzero(rescored == -2)
    if len(back):
        part = int8.search(layer, x[back], k, *_choose(mask, excluded, back), 0, num_threads)
        values[back], indices[back], rescored[back] = part.values, part.indices, part.rescored
        found[back] = k  # `search` has filled what fewer classes left
        is_scan[back] = part.is_scan
    is_whole = rescored == -1
    if is_whole.any() or (found < k).any():
        int8.complete(layer, x, mask, excluded, is_whole, results, num_threads)
    is_whole[back] = True
    if is_whole.any():
        scanned[is_whole], probed[is_whole] = layer.n_classes, len(lists.radius)
    return FoundInLists(values, indices, certified, rescored, scanned, probed, is_scan), batch


def _choose(mask: Any, excluded: Any, rows: Any) -> tuple[Any, Any]:
    """Masks and excluded classes of some queries."""
    mask = mask if mask is None or len(mask) == 1 else mask[rows]
    indptr, ids = excluded
    if indptr is None:
        return mask, excluded
    parts = [ids[indptr[i] : indptr[i + 1]] for i in rows]
    return mask, (np.concatenate(([0], np.cumsum([len(p) for p in parts]))), np.concatenate(parts))
