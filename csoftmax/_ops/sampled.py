"""Softmax over the label and a few sampled classes, for linear layers with very many classes."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, SupportsIndex

from numpy.typing import ArrayLike

from .._arguments.negatives import Negatives
from .._arguments.recorded import hand_over_recorded
from .rows import RowGradient
from .sampled_layer import SOFTMAX, run_sampled, with_row_gradients

__all__ = [
    "SampledLossResult",
    "sampled_softmax_loss",
    "sampled_softmax_loss_with_grad",
]


class SampledLossResult(NamedTuple):
    """The result of `sampled_softmax_loss_with_grad` and `negative_sampling_loss_with_grad`.

    Attributes
    ----------
    loss : scalar, or ndarray of the shape of the rows with reduction "none"
        The loss: float64 for float64 and integer x, else float32.
    grad_x : ndarray of shape (..., D)
        The gradient of x, in the dtype of x (float64 for integers).
    grad_w : RowGradient with values of shape (R, D)
        The gradient of w, in the dtype of x: R rows, those of the labels and negatives of the batch.
    grad_bias : RowGradient with values of shape (R,), or None
        The gradient of the bias for the same rows, in the dtype of x; None without a bias.
    """

    loss: Any
    grad_x: Any
    grad_w: RowGradient
    grad_bias: RowGradient | None


@hand_over_recorded
def sampled_softmax_loss(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    negatives: Negatives | ArrayLike,
    *,
    bias: ArrayLike | None = None,
    correction: Literal["ranking", "partition", "none"] = "ranking",
    accidental_hits: Literal["mask", "keep"] = "mask",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    chunk_bytes: SupportsIndex | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Cross-entropy of the label among itself and sampled classes, an estimate of that among all classes.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features, in one of the dtypes of `softmax`.
    w : array_like of shape (K, D) and the dtype of x
        One row for each class, of which only those of labels and negatives are read.
    target : array_like of int of shape (...)
        Labels.
    negatives : Negatives, or array_like of int of shape (m,) or (..., m)
        What a sampler of `csoftmax.samplers` returns; or plain classes, with correction "none". Those of the shape (m,)
        serve all rows and are multiplied by the BLAS; those of each row are gathered.
    bias : array_like of shape (K,), optional
        Added to the logits.
    correction : {"ranking", "partition", "none"}, default "ranking"
        What the logits of classes are corrected by; see Notes. Negatives without log_q are never corrected for.
    accidental_hits : {"mask", "keep"}, default "mask"
        Whether negatives that are the row's label are left out. "keep" is right for draws with replacement ("iid") with
        "ranking".
    weight, sample_weight, ignore_index, reduction, device, num_threads
        As in `cross_entropy`. There are no kernels for CUDA: CuPy arrays need device="cpu".
    temperature : float, default 1.0
        Divides the logits of all rows: one number, not one for each row.
    label_smoothing : float, default 0.0
        Must be 0: smoothing needs the logits of all classes.
    chunk_bytes : int, optional
        Upper bound on the bytes of the logits that exist at a time, which are those of 1 to 1024 rows; the default is
        4 MiB. Classes of each row are not chunked.

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        float64 for float64 and integer input, else float32.

    Raises
    ------
    IndexError
        If a label or a negative is no class.
    DeviceError
        If the call would compute on a CUDA device.
    TypeError, ValueError, MemoryError
        As in `linear_cross_entropy`, for soft labels, and if negatives lack what the correction needs.

    Notes
    -----
    With z the logits, c_j the count of a negative and l_j = log_q_j - log(c_j), the loss is the cross-entropy of the
    label y among u_y and the u_j:

    ============= ============ =================
    correction    u_j          u_y
    ============= ============ =================
    "ranking"     z_j - l_j    z_y - log_q_y
    "partition"   z_j - l_j    z_y
    "none"        z_j          z_y
    ============= ============ =================

    "ranking": softmax(u) is the posterior probability that a candidate is the label, and at the true model the expected
    gradient is 0, for any number of negatives (Jean et al. 2015; Ma & Collins 2018). "partition": exp(u_y) + sum
    exp(u_j) is an unbiased estimate of the partition function, and the expected loss is at most the full one. "none"
    learns pointwise mutual information (InfoNCE).

    Without any negative left, loss and gradient of a row are exactly 0. Results repeat with the same BLAS, number of
    BLAS threads and `chunk_bytes`. Sampled softmax is due to Bengio & Senécal (2003).

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> from csoftmax.samplers import UnigramSampler
    >>> w, x, y = np.eye(5), np.eye(5)[:2], np.array([0, 1])
    >>> negatives = UnigramSampler([5, 4, 3, 2, 1]).sample(3, target=y, rng=0)
    >>> csoftmax.sampled_softmax_loss(x, w, y, negatives).round(4)
    np.float64(0.6576)
    """
    return run_sampled(
        x,
        w,
        target,
        negatives,
        kind=SOFTMAX,
        gradient=False,
        correction=correction,
        log_z=None,
        bias=bias,
        accidental_hits=accidental_hits,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        temperature=temperature,
        label_smoothing=label_smoothing,
        reduction=reduction,
        chunk_bytes=chunk_bytes,
        device=device,
        num_threads=num_threads,
    )[0]


@hand_over_recorded
def sampled_softmax_loss_with_grad(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    negatives: Negatives | ArrayLike,
    *,
    bias: ArrayLike | None = None,
    correction: Literal["ranking", "partition", "none"] = "ranking",
    accidental_hits: Literal["mask", "keep"] = "mask",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike = 1.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    chunk_bytes: SupportsIndex | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> SampledLossResult:
    """The loss of `sampled_softmax_loss` and its gradients, which touch only rows of labels and negatives.

    Parameters
    ----------
    x, w, target, negatives, bias, correction, accidental_hits, chunk_bytes
        As in `sampled_softmax_loss`.
    weight, sample_weight, ignore_index, reduction, device, num_threads
        As in `cross_entropy`.
    temperature : float, default 1.0
        Divides the logits of all rows: one number, not one for each row.
    label_smoothing : float, default 0.0
        Must be 0: smoothing needs the logits of all classes.
    upstream, clip_norm, clip_value
        As in `cross_entropy_with_grad`; clipping applies to the gradient of a row's logits.

    Returns
    -------
    SampledLossResult
        loss, grad_x of the shape of x, grad_w and grad_bias (None without a bias): `RowGradient` of the same rows, in
        the dtype of x (float64 for integers).

    Raises
    ------
    IndexError
        If a label or a negative is no class.
    DeviceError
        If the call would compute on a CUDA device.
    TypeError, ValueError, MemoryError
        As in `linear_cross_entropy`.

    Notes
    -----
    Sums are computed in the compute type (float32 for half types). Into a row of grad_w, the sampled part is added
    first, then the labels in the order of the batch. Besides results, a call needs `chunk_bytes` and the gathered rows.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> x, w = np.array([[1.0, 0.0]]), np.array([[1.0, 5.0], [3.0, 5.0], [9.0, 9.0]])
    >>> result = csoftmax.sampled_softmax_loss_with_grad(x, w, [1], [0], correction="none")
    >>> result.grad_w.rows
    array([0, 1])
    >>> result.grad_w.values.round(4)
    array([[ 0.1192,  0.    ],
           [-0.1192,  0.    ]])
    """
    results = run_sampled(
        x,
        w,
        target,
        negatives,
        kind=SOFTMAX,
        gradient=True,
        correction=correction,
        log_z=None,
        bias=bias,
        accidental_hits=accidental_hits,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        temperature=temperature,
        label_smoothing=label_smoothing,
        reduction=reduction,
        chunk_bytes=chunk_bytes,
        device=device,
        num_threads=num_threads,
        upstream=upstream,
        clip_norm=clip_norm,
        clip_value=clip_value,
    )
    return SampledLossResult(*with_row_gradients(results))
