"""The objective of softmax regression over a data set: value, gradient, Hessian.

mean cross-entropy + penalty / 2 |coef|^2, the mean weighted.  X is read once for value and gradient: while a block of
its rows is in cache, its logits, their loss and gradient in place (our kernel) and the products with X (BLAS, or SciPy
for sparse X) are done.

The rows are dealt to a few groups of fixed size, which our own threads work on, each with one BLAS thread, and the
groups are added in their order: the result depends on shapes only, not on the number of threads.  Threads of BLAS and
of our kernels that take turns wait for each other (CONTRIBUTING.md, "Decisions").
"""

import contextlib
import functools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from .._arguments.places import Place, is_cupy
from .._runtime.threads import get_num_threads
from ..cross_entropy import cross_entropy, cross_entropy_with_grad
from ..softmax import softmax

BLOCK_BYTES = 2 << 20  # of a block of X and its logits
FEWEST, MOST = 128, 1024  # rows of a block
GROUPS = 4
GROUPED_BYTES = 2**28  # of the gradients of all groups; beyond, the rows are one group, and BLAS has its threads


class Options(NamedTuple):
    """Of the cross-entropy."""

    weight: np.ndarray | None = None  # of classes, in the dtype of the logits
    label_smoothing: float = 0.0
    temperature: float = 1.0

    def at(self, place):
        """With the weights where the logits are."""
        return self if self.weight is None else self._replace(weight=place.array("class_weight", self.weight))


class Evaluation(NamedTuple):
    """Weighted means over the rows: the loss and its gradients (all without penalty), and of rows classified right."""

    loss: float
    accuracy: float
    grad_coef: np.ndarray | None
    grad_intercept: np.ndarray | None


def is_sparse(x):
    return hasattr(x, "tocsr")


def at_place(method):
    """With the place's device as the current one, on which CuPy makes the results of its arithmetic."""

    @functools.wraps(method)
    def there(self, *arguments, **options):
        with self.place.context():
            return method(self, *arguments, **options)

    return there


def rows_of_block(features, classes, itemsize):
    """As many as keep X and logits in cache, but enough for BLAS to be fast."""
    return max(FEWEST, min(MOST, BLOCK_BYTES // max(1, (features + classes) * itemsize)))


def logits_of(x, coef, intercept):
    """X coef' + intercept; X of NumPy, CuPy, or sparse."""
    logits = x @ coef.T
    if is_sparse(x):
        logits = np.ascontiguousarray(logits)
    if intercept is not None:
        logits += intercept
    return logits


def host(a):
    """A NumPy array or scalar; waits for the device that computes it."""
    return a.get() if is_cupy(a) else a


def _square(x):
    """In float64, so that it does not overflow."""
    if not is_sparse(x):
        return np.square(x, dtype=np.float64)
    x = x.astype(np.float64)
    return x.multiply(x)


def product(grad, x):
    """Grad' X."""
    return np.ascontiguousarray((x.T @ grad).T) if is_sparse(x) else grad.T @ x


@functools.cache
def _libraries():
    """Looking for the BLAS libraries takes milliseconds: once."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


_LOCK, _LIMIT = threading.Lock(), {"users": 0, "limiter": None}


@contextlib.contextmanager
def _one_blas_thread():
    """For the whole process: the first who comes limits, the last who goes restores."""
    with _LOCK:
        if _LIMIT["users"] == 0:
            _LIMIT["limiter"] = _libraries().limit(limits=1, user_api="blas")
            _LIMIT["limiter"].__enter__()
        _LIMIT["users"] += 1
    try:
        yield
    finally:
        with _LOCK:
            _LIMIT["users"] -= 1
            if _LIMIT["users"] == 0:
                _LIMIT["limiter"].__exit__(None, None, None)


class Objective:
    """Rows X, labels y (numbers of classes), sample_weight (None or float64) as a function of coef and intercept."""

    def __init__(self, x, y, sample_weight, classes, options, num_threads=None, place=Place()):  # noqa: B008
        self.classes, self.num_threads, self.place = classes, num_threads, place
        self.rows, self.features = x.shape
        weights = np.ones(self.rows) if sample_weight is None else np.asarray(sample_weight, np.float64)
        self.total_weight = math.fsum(weights)
        # the mean's divisor is that of cross_entropy: with class weights, of the labels
        self.divisor = self.total_weight if options.weight is None else math.fsum(weights * options.weight[y])
        self.mass = self.divisor  # the sum of what multiplies the rows' curvature
        if options.weight is not None:
            flat = options.label_smoothing * float(options.weight.mean())
            self.mass = (1 - options.label_smoothing) * self.divisor + flat * self.total_weight
        step = rows_of_block(self.features, classes, x.dtype.itemsize)
        of_gradients = GROUPS * classes * self.features * x.dtype.itemsize
        self.grouped = place.number is None and of_gradients <= GROUPED_BYTES
        blocks = [slice(begin, min(begin + step, self.rows)) for begin in range(0, self.rows, step)]
        per_group = -(-len(blocks) // GROUPS) if self.grouped else len(blocks)
        self.groups = [blocks[i : i + per_group] for i in range(0, len(blocks), max(1, per_group))]
        self.pool = None
        self.x = x if place.number is None else place.array("X", x)  # sparse X is no array
        self.y, self.options = place.array("y", y), options.at(place)
        self.sample_weight = None if sample_weight is None else place.array("sample_weight", weights)

    @contextlib.contextmanager
    def working(self):
        """Threads for the groups, and BLAS with one thread."""
        if not self.grouped:
            yield
            return
        workers = min(len(self.groups), self.num_threads or get_num_threads())
        with _one_blas_thread():
            if workers < 2:
                yield
                return
            with ThreadPoolExecutor(workers) as self.pool:
                try:
                    yield
                finally:
                    self.pool = None

    def map(self, function):
        """function(blocks) of each group, in their order."""
        return list(self.pool.map(function, self.groups) if self.pool else map(function, self.groups))

    def block(self, part):
        weight = None if self.sample_weight is None else self.sample_weight[part]
        return self.x[part], self.y[part], weight

    @at_place
    def evaluate(self, coef, intercept, *, gradient=True):
        """At coef (K, D) and intercept (K,) or None, of X's dtype."""
        coef = self.place.array("coef", coef)
        intercept = None if intercept is None else self.place.array("intercept", intercept)

        def of_group(blocks):
            loss = right = 0.0
            grads = None
            for part in blocks:
                x, y, weight = self.block(part)
                logits = logits_of(x, coef, intercept)
                hits = logits.argmax(axis=1) == y
                right += float(host(hits.sum() if weight is None else (hits * weight).sum()))
                given = {**self.options._asdict(), "sample_weight": weight, "reduction": "sum", "num_threads": 1}
                if not gradient:
                    loss += float(host(cross_entropy(logits, y, **given)))
                    continue
                result = cross_entropy_with_grad(logits, y, upstream=1 / self.divisor, out=logits, **given)
                loss += float(host(result.loss))
                own = product(logits, x), logits.sum(axis=0, dtype=np.float64)
                if grads is None:
                    grads = own
                else:
                    for total, one in zip(grads, own, strict=True):
                        total += one
            return loss, right, grads

        parts = self.map(of_group)
        loss, right = (math.fsum(part[i] for part in parts) for i in (0, 1))
        grads = parts[0][2] or (None, None)
        for part in parts[1:] if gradient else ():
            for total, one in zip(grads, part[2], strict=True):
                total += one
        return Evaluation(loss / self.divisor, right / self.total_weight, *map(host, grads))

    def moments(self):
        """Weighted mean and variance of each column of X, in float64."""
        mean, square = np.zeros(self.features), np.zeros(self.features)
        for part in (part for blocks in self.groups for part in blocks):
            x, _, w = self.block(part)
            w = np.ones(x.shape[0]) if w is None else w
            x = host(x) if is_cupy(x) else x
            mean += x.T @ host(w) / self.total_weight
            square += _square(x).T @ host(w) / self.total_weight
        return mean, np.maximum(square - mean**2, 0)

    def hessian(self, coef, intercept, most_rows):
        """Of the loss without penalty at rows of columns (coef, intercept); a sample of the rows if there are more."""
        k, d = coef.shape
        columns = d + (intercept is not None)
        step = max(1, self.rows // most_rows)
        x, y = host(self.x[::step]), host(self.y[::step])
        weight = np.ones(len(y)) if self.sample_weight is None else host(self.sample_weight[::step])
        smoothing, of_class = self.options.label_smoothing, host(self.options.weight)
        if of_class is not None:
            weight = weight * ((1 - smoothing) * of_class[y] + smoothing * of_class.mean())
        scale = self.divisor * (weight.sum() / self.mass)
        t = self.options.temperature
        logits = logits_of(x, coef, intercept)
        p = softmax(logits.astype(np.float64, copy=False), temperature=t)
        x = x.toarray() if is_sparse(x) else x
        design = np.empty((len(y), columns))
        design[:, :d] = x
        design[:, d:] = 1
        hessian = np.empty((k, columns, k, columns))

        def of_pair(pair):
            i, j = pair
            curvature = p[:, i] * ((i == j) - p[:, j]) * weight
            block = design.T @ (design * curvature[:, None])
            hessian[i, :, j, :] = block
            hessian[j, :, i, :] = block.T

        pairs = [(i, j) for i in range(k) for j in range(i + 1)]
        list(self.pool.map(of_pair, pairs) if self.pool else map(of_pair, pairs))
        return hessian.reshape(k * columns, k * columns) / (scale * t * t)
