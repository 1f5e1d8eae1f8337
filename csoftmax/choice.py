"""Models of choices and rankings; requires the extra ``learn``.

`ConditionalLogit` is the discrete-choice model of McFadden (1974), whose choice sets may have any sizes, with standard
errors; with several choices a group it is the conditional logistic regression of matched case-control studies.
`PlackettLuce` fits worths of items, or coefficients of features, to rankings with ties.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    import scipy.optimize  # noqa: F401
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError(
        f"csoftmax.choice needs SciPy and scikit-learn >= 1.6 ({error}); install them with: "
        "pip install 'csoftmax[learn]'"
    ) from error

from . import plackett_luce_loss_with_grad
from ._arguments.kinds import refuse_kind
from ._arguments.labels import check_weight
from ._arguments.numbers import check_choice, check_count, check_non_negative, check_num_threads
from ._arguments.places import as_array
from ._arguments.segments import Segments
from ._learn import choice_newton as newton
from ._learn.choice_groups import (
    Groups,
    check_columns,
    check_matrix,
    check_names,
    check_vector,
    find_groups,
    number,
    read_array,
)
from ._learn.choice_items import find_compared, find_components
from ._learn.choice_objective import Sums, add_products, add_up, evaluate, make_classes
from ._learn.choice_report import summarize
from ._ops.rankings import check_relevance

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ConditionalLogit", "PlackettLuce"]

_MAX_DIFFERENCES = 300  # coefficients whose covariance is computed from differences


def _check_settings(model: Any) -> None:
    check_non_negative("penalty_l2", model.penalty_l2)
    check_count("max_iter", model.max_iter, 1)
    check_non_negative("tol", model.tol)
    check_num_threads(model.num_threads)


def _keep_names(model: Any, X: Any, names: list[str]) -> None:
    """Set feature_names_in_ if X has names."""
    if hasattr(X, "columns"):
        model.feature_names_in_ = np.array(names, object)
    elif hasattr(model, "feature_names_in_"):
        del model.feature_names_in_


def _drop(groups: Groups, keep: Any, rows: int) -> tuple[Any, Any]:
    """Rows of the groups that are kept, by group, and the offsets of these."""
    lengths = np.diff(groups.offsets)
    order = np.arange(rows) if groups.order is None else groups.order
    if not keep.all():
        order = order[np.repeat(keep, lengths)]
        lengths = lengths[keep]
    return order, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class ConditionalLogit(BaseEstimator):
    """Conditional logit: the probability that an alternative is chosen is the softmax of its utility within its group.

    The utility is ``X @ coef_`` plus an offset. Groups may have any sizes; there is no intercept, which would cancel:
    constants of alternatives are columns of X. `fit` maximises the log-likelihood minus
    ``penalty_l2 / 2 * sum(coef**2)`` by Newton's method.

    Parameters
    ----------
    penalty_l2 : float, default 0.0
        Factor of half the squared coefficients, at least 0.
    max_iter : int, default 50
        Largest number of Newton steps.
    tol : float, default 1e-8
        The fit ends after a step that was expected to raise the log-likelihood by no more than this.
    covariance : {"hessian", "robust", "cluster"}, default "hessian"
        Covariance of the coefficients: the inverse of the information; the sandwich of it with the outer products of
        the groups' gradients (White 1982); or with those of clusters of groups.
    num_threads : int, optional, default None
        Upper bound on the threads of csoftmax's kernels; the BLAS has its own.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,)
        Coefficients.
    covariance_ : ndarray of shape (n_features, n_features)
        Their covariance.
    std_err_ : ndarray of shape (n_features,)
        Their standard errors.
    loglik_ : float
        Log-likelihood, without the penalty.
    loglik_null_ : float
        That of coefficients 0.
    n_iter_ : int
        Steps taken; with several choices in a group L-BFGS comes first.
    groups_ : ndarray
        Distinct groups of the fit in the order of their first appearance, the dropped ones included.
    n_features_in_ : int
        Number of columns.
    feature_names_in_ : ndarray of str
        Names of the columns; only if X had names.

    Notes
    -----
    One choice a group: gradients are probabilities less choices from `cross_entropy_with_grad`, exact where a
    probability is near 1; the information is a product of centred rows. m choices a group: the probability of a set
    of m is that among all sets of m, by `subset_logsumexp`, L-BFGS on its exact gradient, then Newton steps with
    central differences of that, from which the covariance comes too. Sources: McFadden, "Conditional logit analysis
    of qualitative choice behavior" (1974); Breslow & Day (1980) for matched sets.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.choice import ConditionalLogit
    >>> rng = np.random.default_rng(0)
    >>> X, groups = rng.normal(size=(3000, 2)), np.repeat(np.arange(1000), 3)
    >>> utility = (X @ [1.0, -0.5] + rng.gumbel(size=3000)).reshape(1000, 3)
    >>> y = np.zeros((1000, 3))
    >>> y[np.arange(1000), utility.argmax(1)] = 1
    >>> model = ConditionalLogit().fit(X, y.ravel(), groups=groups)
    >>> model.coef_.round(1)
    array([ 1.1, -0.5])
    >>> model.std_err_.round(2)
    array([0.06, 0.05])
    """

    def __init__(
        self,
        *,
        penalty_l2: float = 0.0,
        max_iter: int = 50,
        tol: float = 1e-8,
        covariance: Literal["hessian", "robust", "cluster"] = "hessian",
        num_threads: int | None = None,
    ):
        self.penalty_l2 = penalty_l2
        self.max_iter = max_iter
        self.tol = tol
        self.covariance = covariance
        self.num_threads = num_threads

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        indptr: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        clusters: ArrayLike | None = None,
    ) -> Self:
        """Fit the coefficients.

        Parameters
        ----------
        X : array_like of shape (n_rows, n_features)
            One row for each alternative of each group; a table's columns keep their names.
        y : array_like of shape (n_rows,)
            1 where the alternative was chosen, else 0; or shares of the choices, which sum to 1 in each group.
        groups : array_like of shape (n_rows,), optional
            Any hashable ids but NaN, in any order.
        indptr : array_like of int, of shape (n_groups + 1,), optional
            In place of groups: group i has the rows indptr[i] to indptr[i + 1] - 1.
        sample_weight : array_like of shape (n_groups,), optional
            Factors of the groups, at least 0, in the order of ``groups_``.
        offset : array_like of shape (n_rows,), optional
            Added to the utilities, with a coefficient of 1.
        clusters : array_like of shape (n_groups,), optional
            Any hashable ids but NaN, for ``covariance="cluster"``, in the order of ``groups_``.

        Returns
        -------
        ConditionalLogit
            The fitted model itself.

        Raises
        ------
        TypeError, ValueError
            If an argument is not allowed.
        LinAlgError
            If columns are collinear within the groups; the message names them.

        Warns
        -----
        UserWarning
            If groups without a choice or without alternatives have been dropped; if the fit has not converged; if the
            choices are separable, so that coefficients grow without bound: `covariance_` may be NaN then.

        Examples
        --------
        >>> from csoftmax.choice import ConditionalLogit
        >>> X = [[1.0], [0.0], [3.0], [1.0], [2.0]]
        >>> ConditionalLogit().fit(X, [1, 0, 0, 0, 1], groups=["a", "a", "b", "b", "b"]).coef_.round(3)
        array([0.571])
        """
        _check_settings(self)
        check_choice("covariance", self.covariance, ("hessian", "robust", "cluster"))
        x, names = check_matrix(X)
        check_columns(x, names)
        chosen = check_vector("y", y, len(x), "rows")
        found = find_groups(groups, indptr, len(x))
        shares = bool(((chosen != 0) & (chosen != 1)).any())
        if (chosen < 0).any() or (chosen > 1).any():
            raise ValueError(f"y must be from 0 to 1, got {chosen[(chosen < 0) | (chosen > 1)][0]}")
        count = len(found.labels)
        weight = None if sample_weight is None else check_weight("sample_weight", sample_weight, (count,), np.float64)
        cluster = self._check_clusters(clusters, count)
        sorted_y = chosen if found.order is None else chosen[found.order]
        sums = np.concatenate([[0.0], np.cumsum(sorted_y)])[found.offsets]
        keep = np.diff(sums) > 0
        if not keep.all():
            message = f"{count - int(keep.sum())} of {count} groups have no choice or no alternatives, and were dropped"
            warnings.warn(message, UserWarning, stacklevel=2)
        if not keep.any():
            raise ValueError(f"none of {count} groups has a choice in y")
        if weight is not None and not weight[keep].any():
            raise ValueError("sample_weight is 0 for every group with a choice; a positive one is needed")
        rows, offsets = _drop(found, keep, len(x))
        moved = x if len(rows) == len(x) and found.order is None else x[rows]
        within = np.add.reduceat(chosen[rows], offsets[:-1]) if len(offsets) > 1 else np.zeros(0)
        if shares and not np.allclose(within, 1, rtol=0, atol=1e-6):
            at = int(np.argmax(~np.isclose(within, 1, rtol=0, atol=1e-6)))
            raise ValueError(
                f"shares in y must sum to 1 in each group; those of {found.labels[keep][at]} sum to {within[at]}"
            )
        choices = np.ones(len(within), np.int64) if shares else np.rint(within).astype(np.int64)
        beside = None if offset is None else check_vector("offset", offset, len(x), "rows")[rows]
        kept_weight = None if weight is None else np.ascontiguousarray(weight[keep])
        classes = make_classes(moved, chosen[rows], beside, offsets, choices, kept_weight, shares=shares)
        self._fit(classes, x.shape[1], names, None if cluster is None else cluster[keep])
        self.groups_ = found.labels
        self.n_features_in_ = x.shape[1]
        self._names = names
        _keep_names(self, X, names)
        self._counts = len(within), len(rows)
        return self

    def _check_clusters(self, clusters: Any, count: int) -> Any:
        if (self.covariance == "cluster") != (clusters is not None):
            raise ValueError('clusters is needed with covariance="cluster", and allowed only there')
        if clusters is None:
            return None
        ids, _ = number(clusters, "clusters")
        if len(ids) != count:
            raise ValueError(f"clusters has {len(ids)} elements; there is one for each of {count} groups")
        return ids

    def _fit(self, classes: list[Any], columns: int, names: list[str], clusters: Any) -> None:
        threads, penalty = self.num_threads, float(self.penalty_l2)
        has_hessian = all(c.choices == 1 for c in classes)

        def at(beta: Any) -> Sums:
            return add_up(classes, beta, threads, hessian=has_hessian)

        start = np.zeros(columns)
        null: Any = at(start)
        squares = sum((np.einsum("gjd,gjd->d", c.x, c.x) for c in classes), start.copy())
        is_known = has_hessian and all(c.offset is None for c in classes)  # the information at the start is exact
        if is_known:
            spread = newton.find_scales(null.information.diagonal(), sum(len(c.groups) for c in classes))
        else:
            products = np.zeros((columns, columns)) + add_products(classes)
            spread = newton.find_scales(products.diagonal(), sum(c.x.shape[0] * c.x.shape[1] for c in classes))
        columns_of = newton.Columns(names, squares, spread)
        if not is_known and penalty == 0:
            newton.factor(products, columns_of)
        climb = newton.ascend if is_known else newton.ascend_far if has_hessian else newton.ascend_without_hessian
        end = climb(at, start, penalty, columns_of, int(self.max_iter), float(self.tol))
        if end.warning:
            warnings.warn(end.warning, UserWarning, stacklevel=3)
        inverse = newton.invert(end, columns_of)
        if self.covariance != "hessian":
            scores = add_up(classes, end.beta, threads, hessian=False, scores=True).scores
            inverse = newton.sandwich(inverse, scores, clusters)
        self.coef_, self.covariance_, self.loglik_ = end.beta, inverse, end.sums.loglik
        self.loglik_null_ = null.loglik
        self.std_err_ = np.sqrt(np.maximum(np.diag(inverse), 0))
        self.n_iter_ = end.iterations

    def predict_proba(
        self,
        X: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        indptr: ArrayLike | None = None,
        offset: ArrayLike | None = None,
    ) -> NDArray[np.float64]:
        """Return the probability of each alternative to be the choice of its group.

        Parameters
        ----------
        X : array_like of shape (n_rows, n_features)
            Alternatives.
        groups, indptr, offset
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_rows,)
            Probabilities, which sum to 1 in each group.

        Raises
        ------
        TypeError, ValueError
            If an argument is not allowed.

        Examples
        --------
        >>> from csoftmax.choice import ConditionalLogit
        >>> X = [[1.0], [0.0], [3.0], [1.0], [2.0]]
        >>> model = ConditionalLogit().fit(X, [1, 0, 0, 0, 1], groups=["a", "a", "b", "b", "b"])
        >>> model.predict_proba(X, groups=["a", "a", "b", "b", "b"]).round(2)
        array([0.64, 0.36, 0.53, 0.17, 0.3 ])
        """
        check_is_fitted(self)
        x, _ = check_matrix(X)
        check_names(X, getattr(self, "feature_names_in_", None))
        if x.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {x.shape[1]} columns; the model was fitted with {self.n_features_in_}")
        found = find_groups(groups, indptr, len(x))
        order = np.arange(len(x)) if found.order is None else found.order
        beside = None if offset is None else check_vector("offset", offset, len(x), "rows")[order]
        offsets = np.unique(found.offsets)  # without empty groups
        first = np.zeros(len(x))
        first[offsets[:-1]] = 1
        result = np.empty(len(x))
        ones = np.ones(len(offsets) - 1, np.int64)
        for whole in make_classes(x[order], first, beside, offsets, ones, None, shares=False):
            for _, residual, part in evaluate([whole], self.coef_, self.num_threads):
                residual[:, 0] += 1  # the probability less the choice, as if the first had been chosen
                rows = offsets[part.groups][:, None] + np.arange(residual.shape[1])
                result[order[rows]] = residual
        return result

    def predict(
        self,
        X: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        indptr: ArrayLike | None = None,
        offset: ArrayLike | None = None,
    ) -> NDArray[np.int64]:
        """Return 1 for the most probable alternative of each group, of equal ones the first, else 0.

        Parameters
        ----------
        X : array_like of shape (n_rows, n_features)
            Alternatives.
        groups, indptr, offset
            As in `fit`.

        Returns
        -------
        ndarray of int64 of shape (n_rows,)
            Predicted choices, in the form of y.

        Raises
        ------
        TypeError, ValueError
            If an argument is not allowed.

        Examples
        --------
        >>> from csoftmax.choice import ConditionalLogit
        >>> X = [[1.0], [0.0], [3.0], [1.0], [2.0]]
        >>> model = ConditionalLogit().fit(X, [1, 0, 0, 0, 1], groups=["a", "a", "b", "b", "b"])
        >>> model.predict(X, groups=["a", "a", "b", "b", "b"])
        array([1, 0, 1, 0, 0])
        """
        p = self.predict_proba(X, groups=groups, indptr=indptr, offset=offset)
        found = find_groups(groups, indptr, len(p))
        order = np.arange(len(p)) if found.order is None else found.order
        chosen = np.zeros(len(p), np.int64)
        lengths = np.diff(found.offsets)
        for length in np.unique(lengths[lengths > 0]):
            rows = order[found.offsets[:-1][lengths == length][:, None] + np.arange(length)]
            chosen[rows[np.arange(len(rows)), p[rows].argmax(1)]] = 1
        return chosen

    def summary(self) -> str:
        """Return a table of the coefficients with standard errors, z, p-values and intervals of 95 %.

        Returns
        -------
        str
            Lines of text.

        Examples
        --------
        >>> from csoftmax.choice import ConditionalLogit
        >>> X = [[1.0], [0.0], [3.0], [1.0], [2.0]]
        >>> model = ConditionalLogit().fit(X, [1, 0, 0, 0, 1], groups=["a", "a", "b", "b", "b"])
        >>> print(model.summary())
        Conditional logit, 2 groups, 5 alternatives
        log-likelihood -1.65233, without coefficients -1.79176, pseudo R2 0.0778
        covariance: hessian
                        coef    std err         z   P>|z|     [0.025     0.975]
        x0           0.57058    1.11774     0.510   0.610   -1.62016    2.76132
        """
        check_is_fitted(self)
        ratio = 1 - self.loglik_ / self.loglik_null_ if self.loglik_null_ else math.nan
        lines = [
            f"log-likelihood {self.loglik_:.6g}, without coefficients {self.loglik_null_:.6g}, pseudo R2 {ratio:.4f}",
            f"covariance: {self.covariance}",
        ]
        groups, rows = self._counts
        title = f"Conditional logit, {groups} groups, {rows} alternatives"
        return summarize(title, lines, self._names, self.coef_, self.std_err_)


def _has_items(X: Any) -> bool:
    """Whether X holds items, not features."""
    if X is None:
        refuse_kind("X", X)
    try:
        given = as_array("X", X) if isinstance(X, list | tuple) else X
    except (TypeError, ValueError):
        given = None
    if given is None or (isinstance(X, list | tuple) and given.ndim > 1 and given.dtype.kind in "OSU"):
        raise TypeError(
            "X holds sequences that are not rows of numbers: items that are tuples go into an array of one axis with "
            "dtype object"
        )
    return np.ndim(X) == 1


def _check_observed(observed: Any, size: int) -> Any:
    given = read_array("observed", observed)
    if given.dtype != np.bool_:
        raise TypeError(f"observed must be boolean, got dtype {given.dtype}")
    if given.ndim and given.shape != (size,):
        raise ValueError(f"observed has shape {given.shape}; there is one for each of {size} rows")
    return np.broadcast_to(given, (size,))


def _check_components(component: Any, is_connected: bool, names: list[str]) -> bool:
    """Whether some items have won, or lost, all comparisons with the others; a LinAlgError if there were none."""
    some = [name for name, of in zip(names, component, strict=True) if of != component[0]]
    if some and not is_connected:
        shown = ", ".join(some[:5]) + (", ..." if len(some) > 5 else "")
        raise np.linalg.LinAlgError(
            f"the items are not connected: no comparison joins {names[0]} and {shown}. Fit the parts apart, or use "
            "penalty_l2"
        )
    if some:
        warnings.warn(newton.SEPARABLE, UserWarning, stacklevel=3)
    return bool(some)


class PlackettLuce(BaseEstimator):
    """Plackett-Luce model of rankings: worths of items, or coefficients of features, with ties.

    A ranking is a sequence of choices, the best first, each with the softmax of the log-worths of the items that are
    left. With features, the log-worth of a row is ``X @ coef_``.

    Parameters
    ----------
    ties : {"breslow", "efron", "exact", "order"}, default "breslow"
        As in `plackett_luce_loss`.
    penalty_l2 : float, default 0.0
        Factor of half the squared coefficients, at least 0. Items that win, or lose, all of their comparisons need it.
    max_iter : int, default 50
        Largest number of Newton steps; L-BFGS, which comes first, takes at most 20 times as many.
    tol : float, default 1e-8
        The fit ends after a step that was expected to raise the log-likelihood by no more than this.
    num_threads : int, optional, default None
        Upper bound on the threads.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,) or (n_items,)
        Coefficients, or log-worths of ``items_``, which have the mean 0.
    items_ : ndarray
        Distinct items in the order of their first appearance; only if X held items.
    covariance_ : ndarray, or None
        Covariance of the coefficients, that of log-worths with the constraint of their mean; None for more than 300,
        NaN if some items win, or lose, all comparisons with the others.
    std_err_ : ndarray, or None
        Standard errors.
    loglik_ : float
        Log-likelihood, without the penalty.
    n_iter_ : int
        Steps taken.
    n_features_in_ : int
        Number of columns; only if X held features.

    Notes
    -----
    The likelihood is that of `plackett_luce_loss`, and its gradient is exact; second derivatives are central
    differences of it. Sources: Plackett, "The analysis of permutations" (1975); Luce (1959).

    Examples
    --------
    >>> from csoftmax.choice import PlackettLuce
    >>> items = ["a", "b", "c", "b", "a", "c", "c", "a", "b"]
    >>> places = [1, 2, 3, 1, 2, 3, 1, 2, 3]
    >>> model = PlackettLuce().fit(items, [-p for p in places], groups=[0, 0, 0, 1, 1, 1, 2, 2, 2])
    >>> [str(item) for item in model.items_], model.coef_.round(3)
    (['a', 'b', 'c'], array([ 0.591,  0.073, -0.664]))
    """

    def __init__(
        self,
        *,
        ties: Literal["breslow", "efron", "exact", "order"] = "breslow",
        penalty_l2: float = 0.0,
        max_iter: int = 50,
        tol: float = 1e-8,
        num_threads: int | None = None,
    ):
        self.ties = ties
        self.penalty_l2 = penalty_l2
        self.max_iter = max_iter
        self.tol = tol
        self.num_threads = num_threads

    def fit(
        self,
        X: ArrayLike,
        relevance: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        indptr: ArrayLike | None = None,
        observed: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Fit worths or coefficients to rankings.

        Parameters
        ----------
        X : array_like of shape (n_rows,) or (n_rows, n_features)
            Items, as any hashable ids but NaN, or the features of each row.
        relevance : array_like of shape (n_rows,)
            Larger is better; equal values of a group are ties.
        groups : array_like of shape (n_rows,), optional
            The ranking that each row belongs to, as any hashable ids but NaN, in any order.
        indptr : array_like of int, of shape (n_groups + 1,), optional
            In place of groups: ranking i has the rows indptr[i] to indptr[i + 1] - 1.
        observed : array_like of bool, of shape (n_rows,), optional
            Rows that have a place; the others are only known to come after those that do.
        sample_weight : array_like of shape (n_groups,), optional
            Factors of the rankings, at least 0, in the order of their first appearance.

        Returns
        -------
        PlackettLuce
            The fitted model itself.

        Raises
        ------
        TypeError, ValueError
            If an argument is not allowed.
        LinAlgError
            If columns are collinear within the groups, or items are not connected by comparisons.

        Warns
        -----
        UserWarning
            If the fit has not converged; if the rankings are separable, so that log-worths or coefficients grow
            without bound: `covariance_` may be NaN then.

        Examples
        --------
        >>> from csoftmax.choice import PlackettLuce
        >>> X = [[0.0], [1.0], [2.0], [0.0], [2.0], [1.0]]
        >>> PlackettLuce().fit(X, [0, 1, 2, 1, 0, 2], indptr=[0, 3, 6]).coef_.round(3)
        array([0.195])
        """
        _check_settings(self)
        check_choice("ties", self.ties, ("breslow", "efron", "exact", "order"))
        is_items = _has_items(X)
        if is_items:
            ids, items = number(X, "X")
            names, design = [str(item) for item in items], None
        else:
            design, names = check_matrix(X)
            check_columns(design, names)
            ids, items = np.zeros(len(design), np.int64), None
        size = len(ids)
        values = read_array("relevance", relevance)
        if values.shape != (size,):
            raise ValueError(f"relevance has shape {values.shape}; there is one for each of {size} rows")
        if size == 0:
            raise ValueError("X has no rows; at least one is needed")
        weight = None if sample_weight is None else read_array("sample_weight", sample_weight)
        if weight is not None and not weight.any():
            raise ValueError("sample_weight is 0 for every group; a positive one is needed")
        observed = None if observed is None else _check_observed(observed, size)
        found = find_groups(groups, indptr, size)
        order = found.order
        if order is not None:
            values, ids = values[order], ids[order]
            design = None if design is None else design[order]
            observed = None if observed is None else observed[order]
        segments = Segments(indptr=found.offsets)

        def at(beta: Any) -> Sums:
            v = beta[ids] if design is None else design @ beta
            loss, grad = plackett_luce_loss_with_grad(
                v,
                values,
                segments=segments,
                observed=observed,
                ties=self.ties,
                sample_weight=weight,
                reduction="sum",
                num_threads=self.num_threads,
            )
            slope = np.bincount(ids, grad, len(beta)) if design is None else design.T @ grad
            return Sums(-float(loss), -slope, None, None)

        at(np.zeros(len(names)))  # which checks the arguments
        parts = check_relevance(values, values.shape), observed, found.offsets, weight, self.ties
        compared = find_compared(*parts)
        scales, is_separable = np.ones(len(names)), False
        if design is not None:
            scales = self._find_scales(design[compared.rows], compared.group, names)
        elif self.penalty_l2 == 0:
            is_separable = _check_components(*find_components(ids, compared, self.ties), names)
        self._climb(at, newton.Columns(names, np.zeros(len(names)), scales), is_items, is_separable)
        if is_items:
            self.items_ = items
        else:
            self.n_features_in_ = len(names)
        for absent in {"items_", "n_features_in_"} - {"items_" if is_items else "n_features_in_"}:
            if hasattr(self, absent):
                delattr(self, absent)
        _keep_names(self, X if design is not None else None, names)
        return self

    def _find_scales(self, design: Any, group: Any, names: list[str]) -> Any:
        """Deviations of the columns within rankings; a LinAlgError without a penalty if they are collinear there."""
        begins = np.flatnonzero(np.diff(group, prepend=-1))
        lengths = np.diff(np.append(begins, len(group)))
        means = np.add.reduceat(design, begins) / lengths[:, None] if len(begins) else design
        centred = design - np.repeat(means, lengths, axis=0)
        scales = newton.find_scales(np.einsum("ij,ij->j", centred, centred), len(design))
        if self.penalty_l2 == 0 and len(names) <= _MAX_DIFFERENCES:
            squares = np.einsum("ij,ij->j", design, design)
            newton.factor(centred.T @ centred, newton.Columns(names, squares, scales))
        return scales

    def _climb(self, at: Any, columns: newton.Columns, is_items: bool, is_separable: bool) -> None:
        """Ascend; log-worths are held at the mean 0 by a penalty on it, which changes nothing else."""
        penalty, count = float(self.penalty_l2), len(columns.names)

        def held(beta: Any) -> Sums:
            sums = at(beta)
            if not is_items or not count:
                return sums
            mean = float(beta.sum())
            return Sums(sums.loglik - 0.5 * mean * mean, sums.gradient - mean, None, None)

        polishes = count <= _MAX_DIFFERENCES and not is_separable
        settings = columns, int(self.max_iter), float(self.tol)
        end = newton.ascend_without_hessian(held, np.zeros(count), penalty, *settings, polishes=polishes)
        if end.warning and not is_separable:  # which has been told
            warnings.warn(end.warning, UserWarning, stacklevel=3)
        beta = end.beta - end.beta.mean() if is_items and count else end.beta
        inverse = None
        if end.information is not None:
            inverse = newton.invert(end, columns)
            if is_items and count:  # without the variance along the mean, which the penalty on it gave
                centre = np.eye(count) - 1 / count
                inverse = centre @ inverse @ centre
        elif count <= _MAX_DIFFERENCES:
            inverse = np.full((count, count), np.nan)
        self.coef_, self.loglik_, self.n_iter_ = beta, at(beta).loglik, end.iterations
        self.covariance_ = inverse
        self.std_err_ = None if inverse is None else np.sqrt(np.maximum(np.diag(inverse), 0))
