"""What `HashedSoftmax` and `BloomSoftmax` have in common: losses, steps, scores, files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._arguments.methods import accept_foreign_features
from ..._ops.row_optimizer import RowOptimizer
from ..._ops.topk import TopK
from ..head_result import HeadResult
from ..layer_file import StoredLayer
from ..store import Arrays
from . import files
from .decode import as_topk, name_places, read_query, score, search
from .loss import compute_gradients, compute_loss, compute_step
from .state import BucketLayer

if TYPE_CHECKING:
    from typing import Self


class HashedLayer(BucketLayer, StoredLayer):
    """The methods of a layer over buckets."""

    @accept_foreign_features
    def loss(
        self,
        x: ArrayLike,
        target: ArrayLike,
        *,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: SupportsIndex | None = -100,
        temperature: float = 1.0,
        reduction: Literal["none", "sum", "mean"] = "mean",
        label_smoothing: float = 0.0,
        num_threads: SupportsIndex | None = None,
    ) -> Any:
        """The mean over the hashes of the cross-entropy of the buckets of the labels.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        target : array_like of int of shape (...)
            Labels, from 0 to K - 1 (without a number of classes any integers), or `ignore_index`.
        weight : array_like of shape (K,), optional
            Weights of the classes, at least 0: that of a row's label multiplies the row.
        sample_weight : array_like, broadcastable to the rows, optional
            Weights of the rows, at least 0. Rows of weight 0 take no part.
        ignore_index : int or None, default -100
            Rows with this label take no part. None: every label is one of a class, such as -100 where every 64-bit
            integer is a class.
        temperature : float > 0, default 1.0
            Divides the logits.
        reduction : {"none", "sum", "mean"}, default "mean"
            The mean divides by the sum of the weights of the rows.
        label_smoothing : float, default 0.0
            Must be 0: smoothing needs the logits of all classes.
        num_threads : int, optional
            Upper bound on the number of threads; default: that of the constructor.

        Returns
        -------
        scalar, or ndarray of the shape of the rows with reduction "none"
            In the dtype of the parameters.

        Raises
        ------
        IndexError
            If a label is no class.
        TypeError, ValueError
            The message names the argument, its value and what is allowed.
        """
        return compute_loss(
            self, x, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
            temperature=temperature, reduction=reduction, label_smoothing=label_smoothing, num_threads=num_threads,
        )  # fmt: skip

    @accept_foreign_features
    def loss_with_grad(
        self,
        x: ArrayLike,
        target: ArrayLike,
        *,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: SupportsIndex | None = -100,
        temperature: float = 1.0,
        reduction: Literal["none", "sum", "mean"] = "mean",
        label_smoothing: float = 0.0,
        upstream: ArrayLike = 1.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> HeadResult:
        """The loss, and its gradients with respect to features and parameters.

        Parameters
        ----------
        x, target, weight, sample_weight, ignore_index, temperature, reduction, label_smoothing, num_threads
            As in `loss`.
        upstream : float, or array_like broadcastable to the rows with reduction "none", default 1.0
            Multiplies the gradients: the gradient of what the loss is used for.
        clip_norm, clip_value : float, optional
            As in `csoftmax.cross_entropy_with_grad`; they apply to the derivatives of a row by the
            logits of all buckets together.

        Returns
        -------
        HeadResult
            loss, grad_x of the shape and dtype of `x` (float64 for integers), and gradients, a dict of arrays with the
            names and shapes of `parameters`.

        Raises
        ------
        IndexError, TypeError, ValueError
            As in `loss`.
        """
        return compute_gradients(
            self, x, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
            temperature=temperature, reduction=reduction, label_smoothing=label_smoothing, upstream=upstream,
            clip_norm=clip_norm, clip_value=clip_value, num_threads=num_threads,
        )  # fmt: skip

    @accept_foreign_features
    def step(
        self, x: ArrayLike, target: ArrayLike, optimizer: RowOptimizer, *, sample_weight: ArrayLike | None = None
    ) -> tuple[Any, Any]:
        """Train on one minibatch, with the mean loss of its rows.

        Parameters
        ----------
        x, target, sample_weight
            As in `loss`. Labels of -100 take no part; without a number of classes they are those of a class.
        optimizer : RowOptimizer
            Its state is kept under the names of the parameters.

        Returns
        -------
        loss, grad_x
            Before the step, as `loss_with_grad` returns them.

        Raises
        ------
        IndexError, TypeError, ValueError
            As in `loss`, or if the optimiser has the state of other shapes; nothing has been changed then.
        """
        if not isinstance(optimizer, RowOptimizer):
            raise TypeError(f"optimizer must be a RowOptimizer, got {type(optimizer).__name__}")
        result = compute_step(self, x, target, sample_weight, None)
        self._update(result.gradients, optimizer, optimizer)
        return result.loss, result.grad_x

    # Predictions

    @accept_foreign_features
    def scores(
        self, x: ArrayLike, classes: ArrayLike | None = None, *, num_threads: SupportsIndex | None = None
    ) -> NDArray[np.float32]:
        """Scores of all classes, or of given ones: larger ones are more probable.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        classes : array_like of int of shape (m,), or (..., m) for classes of each row, optional
            Default: all classes, 0 to K - 1; required without a number of classes.
        num_threads : int, optional
            As in `loss`.

        Returns
        -------
        ndarray of float32 of shape (..., m)
            NaN in rows whose logits have no softmax.

        Raises
        ------
        IndexError
            If a class does not exist.
        TypeError, ValueError
            The message names the argument, its value and what is allowed.

        Notes
        -----
        Numbers of the buckets are added in float32 in the order of the hashes: scores of a row do not depend on other
        rows and classes, threads and the instruction set, but on the product of the BLAS that gives the logits.
        """
        query = read_query(self, x, classes, num_threads)
        return score(self, query).reshape(*query.batch, query.width)

    @accept_foreign_features
    def predict(
        self, x: ArrayLike, classes: ArrayLike | None = None, *, num_threads: SupportsIndex | None = None
    ) -> Any:
        """The class with the largest score; of equal ones the first.

        Parameters
        ----------
        x, classes, num_threads
            As in `scores`.

        Returns
        -------
        ndarray of int64 of shape (...), or a scalar for one row
            Classes (uint64 if these are given so); the first one for a row whose scores are NaN.

        Raises
        ------
        IndexError, TypeError, ValueError
            As in `scores`; if there is no class.
        """
        query = read_query(self, x, classes, num_threads)
        if not query.width:
            raise ValueError("classes is empty; at least one class is needed")
        return name_places(query, search(self, query, 1)[1]).reshape(query.batch)[()]

    @accept_foreign_features
    def topk(
        self,
        x: ArrayLike,
        k: SupportsIndex,
        classes: ArrayLike | None = None,
        *,
        num_threads: SupportsIndex | None = None,
    ) -> TopK:
        """The k classes with the largest scores; of equal ones the first.

        Parameters
        ----------
        x, classes, num_threads
            As in `scores`.
        k : int
            From 0 to the number of classes.

        Returns
        -------
        TopK
            values, the scores, and indices, the classes (uint64 if these are given so); of shape (..., k).

        Raises
        ------
        IndexError, TypeError, ValueError
            As in `scores`; if k is out of range.

        Notes
        -----
        No array has a number for each class: classes are scored some thousand at a time.
        """
        query = read_query(self, x, classes, num_threads)
        return as_topk(query, *search(self, query, k))

    # Files

    def _contents(self) -> tuple[Arrays, dict[str, Any]]:
        return files.describe(self)

    @classmethod
    def _from_contents(cls, arrays: Arrays, header: dict[str, Any]) -> Self:
        return files.restore(cls, arrays, header)
