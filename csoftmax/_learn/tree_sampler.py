"""Adversarial negatives from a balanced tree of logistic models: the TreeSampler of `csoftmax.adversarial`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native
from .._arguments.generators import as_generator, restore_states, save_states
from .._arguments.negatives import Negatives, as_ids, check_classes
from .._arguments.numbers import as_number, check_count
from .._arguments.places import as_float
from .._cpu import binding
from .hierarchical import loss as losses
from .hierarchical.state import Parts, make_parts
from .hierarchical.tree import Tree, shape_of
from .hierarchical.tree import check_classes as check_tree
from .principal import Components, find_components
from .tree_newton import Rows, fit_tree

if TYPE_CHECKING:
    from typing import Self

MAX_LOGIT = 1e307  # beyond it a sum may overflow
PIECE_NODES = 1 << 20  # nodes on the ways of the draws of one piece: 8 MB of uniform numbers

_Random = int | np.random.SeedSequence | np.random.Generator | None


class _Fitted(NamedTuple):
    """What `fit` has learnt; replaced as a whole."""

    components: Components
    parts: Parts
    n_features: int


class TreeSampler:
    """Draws for each row classes that its features make probable: adversarial negatives, which are hard to tell apart.

    The classes are the leaves of a balanced binary tree. Each node has a logistic model of the leading principal
    components z of the features: it goes to its side 1 with the probability ``sigma(w . z + b)``. Draws take about
    log2 K decisions, and their probabilities are known exactly (Bamler & Mandt 2020, "Extreme Classification via
    Adversarial Softmax Approximation").

    Parameters
    ----------
    n_classes : int
        Number of classes K, 1 to 2**31 - 1.
    n_components : int, default 16
        Number of principal components that the nodes see, at most that of the features.
    penalty : float > 0, default 0.1
        Factor of the penalty ``penalty / 2 * (|w|**2 + b**2)`` of each node. The components have the unit in which the
        first has the variance 1, so that it does not depend on the units of the features.
    random_state : int, SeedSequence or Generator, optional
        Source of the random numbers for the principal components of more than 2,048 features; with fewer, none are
        used.

    Notes
    -----
    The tree is fitted from the root down. At each node, two steps alternate until neither changes anything: the half of
    its classes with the larger sums ``sum of (w . z + b)`` over their rows goes to side 1, which is the best choice for
    these w and b, and a step of Newton's method improves w and b for these classes. Rows of weight 0 and classes
    without rows change no model; the scores of such classes are 0.

    A model that is trained against these negatives by `csoftmax.negative_sampling_loss` with ``accidental_hits="keep"``
    learns ``xi = log p(y | x) - log p_n(y | x) + const``, so that predictions need ``xi + log_prob_all(x)``: without
    the second term they rank the classes by what the sampler does not know. `csoftmax.sampled_softmax_loss` corrects
    the logits while it trains; its model predicts without the sampler.

    Draws, log_q and probabilities of a fitted sampler have the same bits for every number of threads, batch and
    instruction set. `fit` computes with NumPy's BLAS and LAPACK, limited to one thread if threadpoolctl is installed.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.adversarial import TreeSampler
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 8, 2000)
    >>> X = np.eye(8)[y] + rng.normal(0, 0.3, (2000, 8))
    >>> sampler = TreeSampler(8).fit(X, y)
    >>> negatives = sampler.sample(X[:5], 100, target=y[:5], rng=0)
    >>> negatives.ids.shape
    (5, 100)
    >>> bool((negatives.ids == y[:5, None]).mean() > 0.7)  # probable classes, the row's own among them
    True
    >>> bool(abs(np.exp(sampler.log_prob_all(X)).sum(axis=1) - 1).max() < 1e-14)
    True
    """

    def __init__(
        self,
        n_classes: SupportsIndex,
        *,
        n_components: SupportsIndex = 16,
        penalty: float = 0.1,
        random_state: _Random = None,
    ):
        self._n_classes = check_tree(check_count("n_classes", n_classes, 1))
        self._n_components = check_count("n_components", n_components, 1)
        self._penalty = as_number("penalty", penalty)
        if not 0 < self._penalty < np.inf:
            raise ValueError(f"penalty must be positive and finite, got {penalty!r}: without it nodes have no minimum")
        try:
            as_generator(0 if random_state is None else random_state)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("rng", "random_state", 1)) from None
        self._random_state = random_state
        self._fitted: _Fitted | None = None

    def fit(self, X: ArrayLike, y: ArrayLike, *, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the tree to the labels of rows; a sampler that is fitted already begins anew.

        Parameters
        ----------
        X : array_like of shape (N, D)
            Finite features, at least one row.
        y : array_like of int of shape (N,)
            Labels from 0 to K - 1. Classes may lack rows.
        sample_weight : array_like of shape (N,), optional
            Weights of the rows, finite and at least 0, not all 0; default: 1.

        Returns
        -------
        TreeSampler
            The sampler itself.

        Raises
        ------
        IndexError
            If a label is no class.
        DeviceError, TypeError, ValueError
            If an argument has another device, type or shape, or is not finite; the sampler then stays as it was, as
            it does after KeyboardInterrupt.

        Notes
        -----
        The time grows with N log2 K times the square of the number of components: 0.1 s for 10,000 rows of 100 classes.

        Examples
        --------
        >>> from csoftmax.adversarial import TreeSampler
        >>> sampler = TreeSampler(3).fit([[0.0], [1.0], [5.0], [6.0]], [0, 0, 2, 2])
        >>> sampler.log_prob([[0.0], [6.0]], [0, 2]).round(2)
        array([-0.04, -0.1 ])
        """
        x = _check_rows("X", X, None)
        labels = as_ids("y", as_native(y, "y"))
        if labels.shape != (len(x),):
            raise ValueError(f"y has shape {labels.shape}; ({len(x)},) is needed")
        check_classes("y", labels, self._n_classes)
        weights = _check_weights(sample_weight, len(x))
        with _one_thread(), np.errstate(under="ignore"):
            components = find_components(x, weights, self._n_components, self._make_generator)
            p = len(components.axes)
            z = np.ones((len(x), p + 1))
            z[:, :p] = components.project(x)
            begin, order = binding.sort_rows(labels, self._n_classes)
            sums = _sum_classes(z, weights, order, begin)
            leaves, v = fit_tree(Rows(z, weights, order, begin, sums), self._penalty)
        tree = Tree.balanced(self._n_classes, leaves)
        parts = make_parts(tree, np.ascontiguousarray(v[:, :p]), np.ascontiguousarray(v[:, p]))
        self._fitted = _Fitted(components, parts, x.shape[1])
        return self

    def _make_generator(self) -> np.random.Generator:
        return as_generator(self._random_state)  # type: ignore[no-any-return]

    def _state(self) -> _Fitted:
        if self._fitted is None:
            raise ValueError("this TreeSampler is not fitted: call fit(X, y) first")
        return self._fitted

    @property
    def n_classes(self) -> int:
        """The number of classes.

        Examples
        --------
        >>> from csoftmax.adversarial import TreeSampler
        >>> TreeSampler(1000).n_classes
        1000
        """
        return self._n_classes

    @property
    def n_features(self) -> int:
        """The number of columns of the X that it is fitted to.

        Examples
        --------
        >>> from csoftmax.adversarial import TreeSampler
        >>> TreeSampler(2).fit([[0.0, 1.0], [2.0, 2.0]], [0, 1]).n_features
        2
        """
        return self._state().n_features

    @property
    def nbytes(self) -> int:
        """The bytes that the fitted sampler holds: 8 (p + 1) + 24 for each class with p components, 8 D (p + 1) more.

        Examples
        --------
        >>> from csoftmax.adversarial import TreeSampler
        >>> TreeSampler(2).fit([[0.0, 1.0], [2.0, 2.0]], [0, 1]).nbytes
        104
        """
        components, parts, _ = self._state()
        shape = shape_of(parts.tree)
        tree = sum(a.nbytes for a in (shape.child, shape.leaf_parent, shape.node_parent, shape.order, shape.depth))
        assert parts.bias is not None
        return int(components.nbytes + parts.theta.nbytes + parts.bias.nbytes + tree)

    def sample(
        self, x: ArrayLike, size: SupportsIndex, *, target: ArrayLike | None = None, rng: _Random = None
    ) -> Negatives:
        """Draw classes for each row, with replacement.

        Parameters
        ----------
        x : array_like of shape (N, D)
            Features.
        size : int
            Number of draws for each row, m.
        target : array_like of int of shape (N,), optional
            Labels of the rows, for `target_log_q`. Negative ones, which a loss may ignore, get NaN.
        rng : int, SeedSequence or Generator, optional
            Source of the random numbers: ceil(log2 K) uniform ones for each draw, in order, of which the last may be
            left over.

        Returns
        -------
        Negatives
            ids and log_q of shape (N, m); equal classes are not merged, and count is None.

        Raises
        ------
        IndexError
            If a label is too large.
        DeviceError, TypeError, ValueError
            If an argument has another device, type or shape, x is not finite, or the sampler is not fitted. A
            Generator is then as it was.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.adversarial import TreeSampler
        >>> sampler = TreeSampler(2).fit(np.arange(8.0)[:, None], np.arange(8) // 4)
        >>> negatives = sampler.sample([[1.0], [5.0]], 4, target=[0, 1], rng=0)
        >>> negatives.ids
        array([[0, 0, 0, 0],
               [1, 1, 1, 1]])
        >>> negatives.target_log_q.round(2)
        array([1.36, 1.28])
        """
        state = self._state()
        m = check_count("size", size)
        z = _project(state, "x", x)
        labels = None
        if target is not None:
            labels = as_ids("target", as_native(target, "target"))
            if labels.shape != (len(z),):
                raise ValueError(f"target has shape {labels.shape}; ({len(z)},) is needed")
            check_classes("target", np.maximum(labels, 0), self._n_classes)
        states = save_states(rng)
        try:
            ids, log_p = _draw(state.parts, z, m, as_generator(rng))
        except BaseException:
            restore_states(states)
            raise
        with np.errstate(divide="ignore"):
            log_size = np.log(float(m))
        target_log_q = None
        if labels is not None:
            target_log_q = losses.compute_log_proba_of(state.parts, z, np.maximum(labels, 0), None) + log_size
            target_log_q[labels < 0] = np.nan
        return Negatives(ids, log_p + log_size, None, target_log_q, "iid")

    def log_q(self, x: ArrayLike, ids: ArrayLike, size: SupportsIndex) -> NDArray[np.float64]:
        """Return the logarithms of the expected counts of classes in the draws of each row.

        Parameters
        ----------
        x : array_like of shape (N, D)
            Features.
        ids : array_like of int of shape (N, m)
            Classes of each row.
        size : int
            Number of draws.

        Returns
        -------
        ndarray of float64
            ``log(size p(j | x))``, of the shape of ids.

        Raises
        ------
        IndexError
            If an id is no class.
        DeviceError, TypeError, ValueError
            If an argument has another device, type or shape, x is not finite, size is negative, or the sampler is not
            fitted.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.adversarial import TreeSampler
        >>> sampler = TreeSampler(2).fit(np.arange(8.0)[:, None], np.arange(8) // 4)
        >>> np.exp(sampler.log_q([[2.0]], [[0, 1]], 10)).round(2)  # expected counts
        array([[9.02, 0.98]])
        """
        state = self._state()
        m = check_count("size", size)
        z = _project(state, "x", x)
        at = as_ids("ids", as_native(ids, "ids"))
        if at.ndim != 2 or len(at) != len(z):
            raise ValueError(f"ids has shape {at.shape}; ({len(z)}, m) is needed")
        check_classes("ids", at, self._n_classes)
        with np.errstate(divide="ignore"):
            return _log_p_of(state.parts, z, at) + np.log(float(m))

    def log_prob(self, X: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        """Log-probabilities of one class for each row, as they are drawn.

        Parameters
        ----------
        X : array_like of shape (N, D)
            Features.
        y : array_like of int of shape (N,)
            Classes.

        Returns
        -------
        ndarray of float64, shape (N,)
            The same bits as in `log_prob_all`.

        Raises
        ------
        IndexError
            If an element of y is no class.
        DeviceError, TypeError, ValueError
            If an argument has another device, type or shape, X is not finite, or the sampler is not fitted.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.adversarial import TreeSampler
        >>> sampler = TreeSampler(2).fit(np.arange(8.0)[:, None], np.arange(8) // 4)
        >>> sampler.log_prob([[0.0], [3.5]], [1, 1]).round(2)
        array([-5.18, -0.69])
        """
        state = self._state()
        z = _project(state, "X", X)
        at = as_ids("y", as_native(y, "y"))
        if at.shape != (len(z),):
            raise ValueError(f"y has shape {at.shape}; ({len(z)},) is needed")
        check_classes("y", at, self._n_classes)
        return _log_p_of(state.parts, z, at[:, None])[:, 0]

    def log_prob_all(self, X: ArrayLike) -> NDArray[np.float64]:
        """Log-probabilities of all classes: what predictions of a model of negative sampling need beside its logits.

        Parameters
        ----------
        X : array_like of shape (N, D)
            Features.

        Returns
        -------
        ndarray of float64, shape (N, K)
            Their exponentials sum to 1, within about 1e-15 for each level of the tree.

        Raises
        ------
        DeviceError, TypeError, ValueError
            If X has another device, type or shape or is not finite, or the sampler is not fitted.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.adversarial import TreeSampler
        >>> sampler = TreeSampler(2).fit(np.arange(8.0)[:, None], np.arange(8) // 4)
        >>> sampler.log_prob_all([[0.0], [3.5]]).round(2)
        array([[-0.01, -5.18],
               [-0.69, -0.69]])
        """
        state = self._state()
        result: NDArray[np.float64] = losses.compute_log_proba(state.parts, _project(state, "X", X), None)
        return result

    def __repr__(self) -> str:
        return f"<TreeSampler: {self._n_classes} classes, {'not ' if self._fitted is None else ''}fitted>"


def _check_rows(name: str, given: Any, n_features: int | None) -> Any:
    """Finite features (N, D)."""
    if hasattr(given, "toarray"):
        raise TypeError(f"{name} is a sparse matrix; pass {name}.toarray()")
    x = as_float(name, as_native(given, name))[0]
    if x.ndim != 2 or n_features not in (None, x.shape[1]):
        needed = "(N, D)" if n_features is None else f"(N, {n_features})"
        raise ValueError(f"{name} has shape {x.shape}; {needed} is needed")
    if n_features is None and not len(x):
        raise ValueError(f"{name} has no rows; at least one is needed")
    is_finite = np.isfinite(x)
    if not is_finite.all():
        at = np.unravel_index(int(np.argmin(is_finite)), x.shape)
        raise ValueError(f"{name} must be finite, got {x[at]} at {name}[{', '.join(map(str, at))}]")
    return x


def _check_weights(given: Any, rows: int) -> NDArray[np.float64]:
    """Weights of the rows in float64."""
    if given is None:
        return np.ones(rows)
    weights = as_float("sample_weight", as_native(given, "sample_weight"))[0].astype(np.float64)
    if weights.shape != (rows,):
        raise ValueError(f"sample_weight has shape {weights.shape}; ({rows},) is needed")
    is_good = np.isfinite(weights) & (weights >= 0)
    if not is_good.all():
        at = int(np.argmin(is_good))
        raise ValueError(f"sample_weight[{at}] is {weights[at]}; weights are finite and at least 0")
    total = float(weights.sum())
    if not 0 < total < 1e300:
        raise ValueError(f"sample_weight has the sum {total}; it must be positive and below 1e300")
    return weights


def _sum_classes(z: Any, weights: Any, order: Any, begin: Any) -> NDArray[np.float64]:
    """Sums of weight * z over the rows of each class, (K, p)."""
    sums = np.zeros((len(begin) - 1, z.shape[1]))
    has_rows = begin[1:] > begin[:-1]
    sums[has_rows] = np.add.reduceat((z * weights[:, None])[order], begin[:-1][has_rows])
    return sums


def _project(state: _Fitted, name: str, x: Any) -> Any:
    """The components of rows whose logits at every node are numbers."""
    rows = _check_rows(name, x, state.n_features)
    z = state.components.project(rows)
    limit = np.float64(MAX_LOGIT) / max(1.0, float(np.abs(state.parts.theta).sum(axis=1).max(initial=0)))
    too_large = ~(np.abs(z) <= limit).all(axis=1)  # NaN is too large
    if too_large.any():
        row = int(too_large.argmax())
        raise ValueError(
            f"{name}[{row}] is too large: its largest element is {np.abs(rows[row]).max()}, and logits of the tree may "
            f"overflow where a component exceeds {limit:.3g}"
        )
    return z


def _draw(parts: Parts, z: Any, m: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Classes and their log-probabilities, (N, m): a walk for each, with one uniform number for each level."""
    total, depth = len(z) * m, parts.tree.depth
    ids, log_p = np.empty(total, np.int64), np.empty(total)
    call = losses.make_call(parts, z, 1.0, None)
    step = max(1, PIECE_NODES // max(1, depth))
    for begin in range(0, total, step):
        at = slice(begin, min(begin + step, total))
        rows = np.arange(at.start, at.stop) // m
        places = np.full(len(rows), parts.tree.root)
        if depth and not call.walk(rows, rng.random((len(rows), depth)), places):
            raise ValueError("x has a row that is so large that a logit of the tree is NaN")
        ids[at] = ~places
        log_p[at] = losses.compute_log_proba_of(parts, z[rows], ids[at], None)
    return ids.reshape(len(z), m), log_p.reshape(len(z), m)


def _log_p_of(parts: Parts, z: Any, ids: Any) -> NDArray[np.float64]:
    """Log-probabilities of classes of each row, (N, m)."""
    flat, m = np.ascontiguousarray(ids).reshape(-1), ids.shape[1]
    log_p = np.empty(len(flat))
    step = max(1, PIECE_NODES // max(1, parts.tree.depth))
    for begin in range(0, len(flat), step):
        rows = np.arange(begin, min(begin + step, len(flat))) // m
        log_p[begin : begin + step] = losses.compute_log_proba_of(parts, z[rows], flat[begin : begin + step], None)
    return log_p.reshape(ids.shape)


def _one_thread() -> Any:
    """BLAS with one thread, if it can be limited, so that the fit does not depend on the number of threads."""
    from .objective import find_libraries, limit_blas_to_one_thread

    try:
        find_libraries()
    except ImportError:  # threadpoolctl comes with scikit-learn, which samplers do not need
        return contextlib.nullcontext()
    return limit_blas_to_one_thread()
