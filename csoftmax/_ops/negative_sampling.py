"""Negative sampling and noise-contrastive estimation, for linear layers with very many classes."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, SupportsIndex

from numpy.typing import ArrayLike

from .._arguments.negatives import Negatives
from .._arguments.recorded import hand_over_recorded
from .rows import RowGradient
from .sampled import SampledLossResult
from .sampled_layer import NCE, NEGATIVE_SAMPLING, run_sampled, with_row_gradients

__all__ = [
    "NCELossResult",
    "nce_loss",
    "nce_loss_with_grad",
    "negative_sampling_loss",
    "negative_sampling_loss_with_grad",
]


class NCELossResult(NamedTuple):
    """The result of `nce_loss_with_grad`.

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
    grad_log_z : scalar, or ndarray of the shape of the rows
        The gradient of log_z, in the dtype of loss: a number if log_z is one, else one for each row.
    """

    loss: Any
    grad_x: Any
    grad_w: RowGradient
    grad_bias: RowGradient | None
    grad_log_z: Any


@hand_over_recorded
def negative_sampling_loss(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    negatives: Negatives | ArrayLike,
    *,
    bias: ArrayLike | None = None,
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
    """Logistic loss that tells the label from negatives (Mikolov et al. 2013).

    The logits learn ``log p(y | x) - log p_n(y) - log m``, where p_n is the distribution of the negatives: this is no
    normalised model of the labels, and its logits are no estimate of log-probabilities. `nce_loss` and
    `sampled_softmax_loss` train one.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features, in one of the dtypes of `softmax`.
    w : array_like of shape (K, D) and the dtype of x
        One row for each class, of which only those of labels and negatives are read.
    target : array_like of int of shape (...)
        Labels.
    negatives : Negatives, or array_like of int of shape (m,) or (..., m)
        What a sampler of `csoftmax.samplers` returns, or plain classes. Only ids and counts are used.
    bias : array_like of shape (K,), optional
        Added to the logits.
    accidental_hits : {"mask", "keep"}, default "mask"
        Whether negatives that are the row's label are left out.
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
        As in `linear_cross_entropy`, and for soft labels.

    Notes
    -----
    With z the logits and c_j the count of a negative, a row's loss is ``softplus(-z_y) + sum_j c_j softplus(z_j)``,
    ``softplus(u) = max(u, 0) + log1p(exp(-abs(u)))``. Its derivatives are exact to 4 ULP for any logit; none is cut off
    and none comes from a table.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.negative_sampling_loss(np.eye(3)[:1], np.eye(3), [0], [[1, 2]]).round(4)
    np.float64(1.6996)
    """
    return run_sampled(
        x,
        w,
        target,
        negatives,
        kind=NEGATIVE_SAMPLING,
        gradient=False,
        correction="none",
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
def negative_sampling_loss_with_grad(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    negatives: Negatives | ArrayLike,
    *,
    bias: ArrayLike | None = None,
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
    """The loss of `negative_sampling_loss` and its gradients, which touch only rows of labels and negatives.

    Parameters
    ----------
    x, w, target, negatives, bias, accidental_hits, chunk_bytes
        As in `negative_sampling_loss`.
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
        As from `sampled_softmax_loss_with_grad`.

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
    With classes of each row, of the shape (N, m), and `add_rows`, this is a step of word2vec on a batch.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> w, x = np.ones((4, 2)), np.ones((1, 2))
    >>> result = csoftmax.negative_sampling_loss_with_grad(x, w, [0], [[2, 3]])
    >>> csoftmax.add_rows(w, result.grad_w, -0.1).round(3)
    array([[1.012, 1.012],
           [1.   , 1.   ],
           [0.912, 0.912],
           [0.912, 0.912]])
    """
    results = run_sampled(
        x,
        w,
        target,
        negatives,
        kind=NEGATIVE_SAMPLING,
        gradient=True,
        correction="none",
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


@hand_over_recorded
def nce_loss(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    negatives: Negatives | ArrayLike,
    *,
    bias: ArrayLike | None = None,
    log_z: ArrayLike = 0.0,
    accidental_hits: Literal["mask", "keep"] = "keep",
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
    """Noise-contrastive estimation: logistic loss that tells the label from noise of a known distribution.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features, in one of the dtypes of `softmax`.
    w : array_like of shape (K, D) and the dtype of x
        One row for each class, of which only those of labels and negatives are read.
    target : array_like of int of shape (...)
        Labels.
    negatives : Negatives
        What a sampler of `csoftmax.samplers` returns for these targets.
    bias : array_like of shape (K,), optional
        Added to the logits.
    log_z : float or array_like of the shape of the rows, default 0.0
        Logarithm of the partition function, which is subtracted from the logits.
    accidental_hits : {"mask", "keep"}, default "keep"
        Whether negatives that are the row's label are left out.
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
        As in `linear_cross_entropy`, for soft labels, and if negatives are plain classes.

    Notes
    -----
    With z the logits, q the expected counts and c_j the counts, ``d = z - log_z - log(q)`` and a row's loss is
    ``softplus(-d_y) + sum_j c_j softplus(d_j)`` (Gutmann & Hyvärinen 2010; Mnih & Teh 2012). The model learns to
    normalise itself: start the bias at the logarithm of the classes' frequencies, because training from 0 may diverge.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> from csoftmax.samplers import UniformSampler
    >>> negatives = UniformSampler(3).sample(2, target=[0], rng=0, scheme="iid")
    >>> csoftmax.nce_loss(np.eye(3)[:1], np.eye(3), [0], negatives).round(4)
    np.float64(2.7604)
    """
    return run_sampled(
        x,
        w,
        target,
        negatives,
        kind=NCE,
        gradient=False,
        correction="ranking",
        log_z=log_z,
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
def nce_loss_with_grad(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    negatives: Negatives | ArrayLike,
    *,
    bias: ArrayLike | None = None,
    log_z: ArrayLike = 0.0,
    accidental_hits: Literal["mask", "keep"] = "keep",
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
) -> NCELossResult:
    """The loss of `nce_loss` and its gradients, which touch only rows of labels and negatives.

    Parameters
    ----------
    x, w, target, negatives, bias, log_z, accidental_hits, chunk_bytes
        As in `nce_loss`.
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
    NCELossResult
        loss, grad_x, grad_w, grad_bias as from `sampled_softmax_loss_with_grad`; grad_log_z, a number or one for each
        row, as log_z.

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
    As in `nce_loss`.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> from csoftmax.samplers import UniformSampler
    >>> negatives = UniformSampler(3).sample(2, target=[0], rng=0, scheme="iid")
    >>> csoftmax.nce_loss_with_grad(np.eye(3)[:1], np.eye(3), [0], negatives).grad_log_z.round(4)
    np.float64(-1.2061)
    """
    results = run_sampled(
        x,
        w,
        target,
        negatives,
        kind=NCE,
        gradient=True,
        correction="ranking",
        log_z=log_z,
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
    return NCELossResult(*with_row_gradients(results))
