"""The objective of softmax regression over a data set: value, gradient and Hessian.

f(coef, intercept) = weighted mean of the rows' cross-entropy + penalty / 2 * |coef|^2.  Value and gradient take one
pass over X: while a block of rows is in cache, a product (BLAS, or SciPy for sparse X) gives its logits, a kernel
replaces them by their gradient, and a second product adds to the gradient of coef.

The rows are divided into a few groups of fixed size.  Python threads work on the groups, each with one BLAS thread, and
the results are added in the order of the groups, so they depend on the shapes but not on the number of threads.
Alternating multithreaded products and kernels would wait for each other's threads (docs/decisions/learning.md).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import operator
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._arguments.places import CPU, Place, is_cupy
from .._cpu.apart import run_apart
from .._ops.cross_entropy import cross_entropy, cross_entropy_with_grad
from .._ops.softmax import softmax
from .._runtime.threads import get_num_threads

BLOCK_BYTES = 2 << 20  # of a block of X and its logits
MIN_BLOCK_ROWS, MAX_BLOCK_ROWS = 128, 1024
GROUPS = 4
GROUPED_BYTES = 2**28  # of the gradients of all groups; with more, the rows form one group and BLAS keeps its threads

Result = TypeVar("Result")
Method = TypeVar("Method", bound=Callable[..., Any])


class Options(NamedTuple):
    """Options of the cross-entropy."""

    weight: NDArray[Any] | None = None  # of the classes, in the dtype of the logits
    label_smoothing: float = 0.0
    temperature: float = 1.0

    def at(self, place: Place) -> Options:
        """Move the weights to where the logits are."""
        return self if self.weight is None else self._replace(weight=place.array("class_weight", self.weight))


class Evaluation(NamedTuple):
    """Weighted means over the rows: loss and its gradients without penalty, and share of correctly classified rows."""

    loss: float
    accuracy: float
    grad_coef: NDArray[Any]  # None, like grad_intercept, if no gradient was requested
    grad_intercept: NDArray[np.float64]


def is_sparse(x: Any) -> bool:
    """Whether x is a sparse matrix or array of SciPy."""
    return hasattr(x, "tocsr")


def runs_at_place(method: Method) -> Method:
    """Run a method with the device of its object's place as the current one, on which CuPy allocates results."""

    @functools.wraps(method)
    def run_method(self: Any, *arguments: Any, **options: Any) -> Any:
        with self.place.context():
            return method(self, *arguments, **options)

    return run_method  # type: ignore[return-value]


def choose_block_rows(features: int, classes: int, itemsize: int) -> int:
    """Rows of a block: few enough for X and logits to stay in cache, enough for BLAS to be fast."""
    return max(MIN_BLOCK_ROWS, min(MAX_BLOCK_ROWS, BLOCK_BYTES // max(1, (features + classes) * itemsize)))


def _product(a: Any, b: Any) -> Any:
    if is_cupy(b):
        return a @ b
    amount = a.nnz if is_sparse(a) else a.shape[0] * float(a.shape[1])
    return run_apart(amount * b.shape[-1], operator.matmul, a, b)


def compute_logits(x: Any, coef: NDArray[Any], intercept: NDArray[Any] | None) -> Any:
    """X coef' + intercept, for X of NumPy, CuPy or SciPy (sparse)."""
    logits = _product(x, coef.T)
    if is_sparse(x):
        logits = np.ascontiguousarray(logits)
    if intercept is not None:
        logits += intercept
    return logits


def multiply_by_rows(grad: Any, x: Any) -> Any:
    """Gradient of coef, grad' X, from the gradient of the logits."""
    return np.ascontiguousarray(_product(x.T, grad).T) if is_sparse(x) else _product(grad.T, x)


def to_host(a: Any) -> Any:
    """Return a as a NumPy array or scalar, after waiting for the device that computes it."""
    return a.get() if is_cupy(a) else a


def _square(x: Any) -> Any:
    """Squares; those of a dense x replace it."""
    return x.multiply(x) if is_sparse(x) else np.square(x, out=x)


def _add_to(totals: Any, parts: Any) -> None:
    for total, part in zip(totals, parts, strict=True):
        total += part


@functools.cache
def find_libraries() -> Any:
    """The BLAS libraries of the process; searched once, because it takes milliseconds."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


_LOCK = threading.Lock()
_LIMIT: dict[str, Any] = {"users": 0, "limiter": None}


@contextlib.contextmanager
def limit_blas_to_one_thread() -> Iterator[None]:
    """Limit BLAS in the whole process while any training needs it; the last training to end restores the old limit."""
    with _LOCK:
        if _LIMIT["users"] == 0:
            _LIMIT["limiter"] = find_libraries().limit(limits=1, user_api="blas")
            _LIMIT["limiter"].__enter__()
        _LIMIT["users"] += 1
    try:
        yield
    finally:
        with _LOCK:
            _LIMIT["users"] -= 1
            if _LIMIT["users"] == 0:
                _LIMIT["limiter"].__exit__(None, None, None)


class Sums(NamedTuple):
    """Sums over rows of the losses and of the weights of those classified correctly; gradients of the mean, or None."""

    loss: float
    right: float
    grads: tuple[Any, NDArray[np.float64]] | None  # by coef and by intercept


def part_sums(
    blocks: Iterable[tuple[slice, Any, Any, Any]],
    coef: Any,
    intercept: Any,
    options: Options,
    divisor: float,
    *,
    gradient: bool,
    shift: Any = None,
) -> Sums:
    """Sums over blocks of rows (place, X, class indices, sample weights), in their order and on one thread.

    The gradients are divided by the divisor of the mean.  shift: of the logits, by a bound, or None.
    """
    loss = right = 0.0
    grads: Any = None
    for part, x, y, weight in blocks:
        logits = compute_logits(x, coef, intercept)
        hits = logits.argmax(axis=1) == y
        right += float(to_host(hits.sum() if weight is None else (hits * weight).sum()))
        if shift is not None:
            shift.add_to(logits, part)
        given = {**options._asdict(), "sample_weight": weight, "reduction": "sum", "num_threads": 1}
        if not gradient:
            loss += float(to_host(cross_entropy(logits, y, **given)))
            continue
        result = cross_entropy_with_grad(logits, y, upstream=1 / divisor, out=logits, **given)
        loss += float(to_host(result.loss))
        if shift is not None:
            shift.take(logits, part)
        block_grads = multiply_by_rows(logits, x), logits.sum(axis=0, dtype=np.float64)
        if grads is None:
            grads = block_grads
        else:
            _add_to(grads, block_grads)
    return Sums(loss, right, grads)


def find_moments(
    measure: Callable[[NDArray[np.float64] | None], tuple[NDArray[np.float64], NDArray[np.float64]]],
    find_largest: Callable[[], NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column, also where squares overflow.

    measure(unit): mean and variance of the columns divided by their units, if any; find_largest(): their largest
    magnitudes.
    """
    mean, variance = measure(None)
    if np.isfinite(variance).all():
        return mean, np.sqrt(variance)
    largest = find_largest()
    largest[largest == 0] = 1
    mean, variance = measure(largest)
    return mean * largest, np.sqrt(variance) * largest


def find_largest_magnitudes(x: Any) -> NDArray[np.float64]:
    """The largest magnitude in each column; a dense x is not copied."""
    x = to_host(x)
    if is_sparse(x):
        return np.asarray(abs(x).max(axis=0).toarray(), np.float64).ravel()
    return np.abs(np.maximum(x.max(axis=0), -x.min(axis=0))).astype(np.float64)


def find_mass(options: Options, divisor: float, total_weight: float) -> float:
    """Sum of the factors of the rows' curvature."""
    if options.weight is None:
        return divisor
    flat = options.label_smoothing * float(options.weight.mean())
    return (1 - options.label_smoothing) * divisor + flat * total_weight


def hessian_sums(
    x: Any,
    y: NDArray[np.intp],
    weight: NDArray[np.float64],
    parameters: tuple[Any, Any],
    options: Options,
    origin: NDArray[np.float64] | float,
    map_parts: Callable[[Callable[[Any], None], list[Any]], Any],
) -> tuple[NDArray[np.float64], float]:
    """Sum of the Hessians of the rows' losses by (coef, shift), flat, times temperature^2, and of their factors.

    The logits are coef (x - origin) + shift.  map_parts: calls a function for each item of a list.
    """
    coef, intercept = parameters
    k, d = coef.shape
    columns = d + (intercept is not None)
    smoothing, class_weight = options.label_smoothing, to_host(options.weight)
    if class_weight is not None:
        weight = weight * ((1 - smoothing) * class_weight[y] + smoothing * class_weight.mean())
    logits = compute_logits(x, coef, intercept)
    p = softmax(logits.astype(np.float64, copy=False), temperature=options.temperature)
    x = x.toarray() if is_sparse(x) else x
    design = np.empty((len(y), columns))
    np.subtract(x, origin, out=design[:, :d])
    design[:, d:] = 1
    hessian = np.empty((k, columns, k, columns))

    def fill_pair(pair: tuple[int, int]) -> None:
        i, j = pair
        curvature = p[:, i] * ((i == j) - p[:, j]) * weight
        block = design.T @ (design * curvature[:, None])
        hessian[i, :, j, :] = block
        hessian[j, :, i, :] = block.T

    map_parts(fill_pair, [(i, j) for i in range(k) for j in range(i + 1)])
    return hessian.reshape(k * columns, k * columns), weight.sum()


class Objective:
    """The mean loss of rows X with class indices y as a function of coef and intercept.

    sample_weight is None or float64; sums use the weights in float64, whatever the dtype of X.
    """

    def __init__(
        self,
        x: Any,
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64] | None,
        classes: int,
        options: Options,
        num_threads: int | None = None,
        place: Place = CPU,
        bound: Any = None,
    ):
        """Divide the rows into groups of blocks and move the data to the place.

        bound: an adversary.Bound over perturbations of the rows, which replaces the loss, or None.
        """
        self.bound, self.groups_of_y = bound, (np.arange(classes), y)
        self.classes, self.num_threads, self.place = classes, num_threads, place
        self.rows, self.features = x.shape
        self.dtype = x.dtype
        weights = np.ones(self.rows) if sample_weight is None else np.asarray(sample_weight, np.float64)
        self.total_weight = math.fsum(weights)
        # The divisor of the mean, as in cross_entropy: with class weights, the sum of those of the labels.
        self.divisor = self.total_weight if options.weight is None else math.fsum(weights * options.weight[y])
        self.mass = find_mass(options, self.divisor, self.total_weight)
        step = choose_block_rows(self.features, classes, x.dtype.itemsize)
        gradient_bytes = GROUPS * classes * self.features * x.dtype.itemsize
        self.is_grouped = place.number is None and gradient_bytes <= GROUPED_BYTES
        blocks = [slice(begin, min(begin + step, self.rows)) for begin in range(0, self.rows, step)]
        per_group = -(-len(blocks) // GROUPS) if self.is_grouped else len(blocks)
        self.groups = [blocks[i : i + per_group] for i in range(0, len(blocks), max(1, per_group))]
        self.pool: ThreadPoolExecutor | None = None
        self.is_stopped = False  # by an exception, such as that of Ctrl-C
        self.x = x if place.number is None else place.array("X", x)  # a sparse X is no ndarray
        self.y, self.options = place.array("y", y), options.at(place)
        self.sample_weight = None if sample_weight is None else place.array("sample_weight", weights)

    @contextlib.contextmanager
    def use_threads(self) -> Iterator[None]:
        """Context in which the groups have a thread each, and BLAS has one thread."""
        if not self.is_grouped:
            yield
            return
        workers = min(len(self.groups), self.num_threads or get_num_threads())
        with limit_blas_to_one_thread():
            if workers < 2:
                yield
                return
            with ThreadPoolExecutor(workers) as self.pool:
                try:
                    yield
                finally:
                    self.pool = None

    def map_parts(self, function: Callable[[Any], Result], items: list[Any]) -> list[Result]:
        """Call the function for each item, on the threads if there are any; results in the order of the items."""
        self.is_stopped = False
        try:
            return list(self.pool.map(function, items) if self.pool else map(function, items))
        except BaseException:
            self.is_stopped = True
            raise

    def block(self, part: slice) -> tuple[Any, Any, Any]:
        """X, y and sample_weight of one block of rows."""
        weight = None if self.sample_weight is None else self.sample_weight[part]
        return self.x[part], self.y[part], weight

    def _blocks_of(self, group: list[slice]) -> Iterator[tuple[slice, Any, Any, Any]]:
        """The blocks of a group, until an exception in another thread stops the evaluation."""
        return ((part, *self.block(part)) for part in itertools.takewhile(lambda _: not self.is_stopped, group))

    @runs_at_place
    def evaluate(self, coef: Any, intercept: Any, *, gradient: bool = True) -> Evaluation:
        """Evaluate at coef (K, D) and intercept (K,) or None, both of X's dtype."""
        coef = self.place.array("coef", coef)
        intercept = None if intercept is None else self.place.array("intercept", intercept)
        whole = None if self.bound is None else self.bound.shift(coef, self.y, self.groups_of_y)
        shifts = [None if whole is None else whole.part() for _ in self.groups]
        given: Any = (coef, intercept, self.options, self.divisor)
        parts = self.map_parts(
            lambda group: part_sums(self._blocks_of(group[0]), *given, gradient=gradient, shift=group[1]),
            list(zip(self.groups, shifts)),
        )
        loss, right = math.fsum(part.loss for part in parts), math.fsum(part.right for part in parts)
        grads: Any = parts[0].grads or (None, None)
        for part in parts[1:] if gradient else ():
            _add_to(grads, part.grads)
        if whole is not None and gradient:
            for shift in shifts:
                whole.add_part(shift)
            whole.finish(grads[0])
        return Evaluation(loss / self.divisor, right / self.total_weight, *map(to_host, grads))

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weighted mean and standard deviation of each column of X, in float64."""
        return find_moments(self._moments, lambda: find_largest_magnitudes(self.x))

    def _moments(self, unit: NDArray[np.float64] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weighted mean and variance of each column of X divided by its unit, by distances from the first row.

        Those of a constant column, such as one of ones or of a date, are exact, which x^2 - mean^2 is not.  A sparse X
        is not shifted.
        """
        first = np.zeros(self.features)
        if not is_sparse(self.x) and self.rows:
            first = to_host(self.x[0]).astype(np.float64)
            first = first if unit is None else first / unit
        mean, square = np.zeros(self.features), np.zeros(self.features)
        with np.errstate(over="ignore", invalid="ignore"):
            for part in (part for blocks in self.groups for part in blocks):
                x, _, w = self.block(part)
                w = np.ones(x.shape[0]) if w is None else to_host(w)
                x = to_host(x).astype(np.float64)
                if unit is not None:
                    x = x.multiply(1 / unit).tocsr() if is_sparse(x) else x / unit
                if not is_sparse(x):
                    x -= first
                mean += x.T @ w / self.total_weight
                square += _square(x).T @ w / self.total_weight
            return mean + first, np.maximum(square - mean**2, 0)

    def hessian(
        self,
        coef: NDArray[Any],
        intercept: NDArray[Any] | None,
        max_rows: int,
        origin: NDArray[np.float64] | float = 0.0,
    ) -> NDArray[np.float64]:
        """Hessian of the loss without penalty by (coef, shift), flat, for the logits coef (x - origin) + shift.

        With more than max_rows rows, a sample of the rows stands for all of them.
        """
        step = max(1, self.rows // max_rows)
        x, y = to_host(self.x[::step]), to_host(self.y[::step])
        weight = np.ones(len(y)) if self.sample_weight is None else to_host(self.sample_weight[::step])
        hessian, total = hessian_sums(x, y, weight, (coef, intercept), self.options, origin, self.map_parts)
        scale, t = self.divisor * (total / self.mass), self.options.temperature
        return hessian / (scale * t * t)
