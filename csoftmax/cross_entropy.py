"""Cross-entropy and its gradient, fused, with hard or soft labels."""

from typing import Any, NamedTuple

from ._args import (
    as_array,
    check_chunk_bytes,
    check_count,
    check_ignore_index,
    check_non_negative,
    check_num_threads,
    is_cupy,
    plan_linear,
    plan_loss,
    raise_bad_label,
)
from ._cpu import binding
from ._cpu.linear import linear_loss
from ._foreign import native, running, takes_foreign

_run = running(plan_loss)


class CrossEntropyResult(NamedTuple):
    """What `cross_entropy_with_grad` returns."""

    loss: Any
    grad: Any


def cross_entropy(
    logits,
    target,
    *,
    axis=-1,
    weight=None,
    sample_weight=None,
    label_smoothing=0.0,
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    reduction="mean",
    device=None,
    num_threads=None,
):
    """Cross-entropy of the softmax of logits and labels.

    With z = logits / T, lse = log(sum(exp(z))) and the label's distribution q (one-hot or soft, then smoothed), the
    loss of a row is ``s * (sum(w * q * (lse - z)) + z_loss * lse**2)``.

    Parameters
    ----------
    logits : array_like of shape (..., K)
        In one of the dtypes of `softmax`; K is the length of `axis`.
    target : array_like
        Labels: integers of any dtype, of the shape of `logits` without `axis`. Or soft labels: floating point, of the
        shape of `logits`, at least 0 and finite; their rows need not sum to 1.
    axis : int, tuple of ints or None, default -1
        Of the classes. PyTorch's (N, C, d1, ...) has ``axis=1``.
    weight : array_like of shape (K,), optional
        Class weights w, at least 0 and finite.
    sample_weight : array_like, broadcastable to the rows, optional
        s, at least 0 and finite. A row of weight 0 takes no part.
    label_smoothing : float in [0, 1], default 0.0
        epsilon: q becomes ``(1 - epsilon) * q + epsilon / K`` (Szegedy et al. 2016).
    ignore_index : int, default -100
        Rows with this label take no part: their logits are not read, their loss is 0. Not for soft labels.
    z_loss : float, default 0.0
        Factor of ``lse**2``, which keeps logits from drifting (Chowdhery et al. 2022).
    temperature : float, default 1.0
        T, positive and finite.
    reduction : {"mean", "sum", "none"}
        The mean divides by the sum over the rows that take part of ``s * sum(w * q)``, q before smoothing: with labels
        s * w[target].
    device, num_threads
        As in `softmax`.

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        float64 for float64 and integer logits, else float32.

    Raises
    ------
    IndexError
        For a label that is neither a class nor `ignore_index`, with the first position and value. On a CUDA device
        such a row is NaN instead, because nothing waits for the device; the environment variable
        ``CSOFTMAX_SYNC_CHECKS=1`` makes it wait and raise.
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    With labels, without smoothing and z-loss, the relative error is at most 4 ULP however certain the row is: where the
    label has the largest logit the loss is log1p of the sum of the others, which other implementations round to 0.

    A class with ``w * q = 0`` contributes 0 even where its logit is -inf; another class there makes the loss +inf. A
    row with NaN or +inf, or nothing but -inf, has loss NaN. The mean over no row is NaN. The result has the same bits
    for every thread count, layout and instruction set; rows are added in a fixed tree in float64.

    ``torch.nn.functional.cross_entropy`` agrees for labels with weights, smoothing and `ignore_index`, and for soft
    labels unless they are averaged. It differs in these, and why:

    - The mean over soft labels divides by the number of rows there, here by the weight that the rows have, as both do
      for labels: one-hot rows and labels are the same thing, and so are a row and its weight halved and doubled.
    - A class of weight 0 with the logit -inf makes its loss NaN (0 times inf): here it takes no part.
    - Ignored rows that hold NaN have a gradient of NaN there: here they are not read.
    - The loss and the label's gradient of a near-certain row are 0 there: here they keep their digits.
    - The loss of half types has their dtype there: here it is float32, which the kernel computes in anyway.
    - `ignore_index` with soft labels: it refuses one that is not negative and ignores the others; here all are ignored.
    - Negative weights are computed with there: here they are refused, because sums of terms of one sign are what the
      bounds of the error rest on.
    - Rows that all weigh 0 under a mean are 0 / 0 in both; the gradient is NaN there, and 0 here, so that such a batch
      changes no parameter.

    It has no sample weights, temperature and z-loss.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> logits = np.array([[2.0, 1.0, 0.0], [0.0, 40.0, 0.0], [5.0, 5.0, 5.0]])
    >>> csoftmax.cross_entropy(logits, [0, 1, -100], reduction="none")
    array([4.07605964e-01, 8.49670851e-18, 0.00000000e+00])
    """
    done = binding.fast_loss(
        logits,
        target,
        False,
        None,
        reduction,
        ignore_index,
        axis,
        weight,
        sample_weight,
        label_smoothing,
        z_loss,
        temperature,
        1.0,
        None,
        None,
        device,
        num_threads,
    )
    if done is not None:
        return done[0]
    return _run(
        logits,
        target,
        axis,
        gradient=False,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        z_loss=z_loss,
        temperature=temperature,
        reduction=reduction,
        device=device,
        num_threads=num_threads,
    )[0]


def cross_entropy_with_grad(
    logits,
    target,
    *,
    axis=-1,
    weight=None,
    sample_weight=None,
    label_smoothing=0.0,
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    reduction="mean",
    upstream=1.0,
    clip_norm=None,
    clip_value=None,
    out=None,
    device=None,
    num_threads=None,
):
    """Cross-entropy and its gradient with respect to the logits, in one pass over them.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, reduction
        As in `cross_entropy`.
    upstream : float, or with reduction "none" array_like that broadcasts to the rows; default 1.0
        What the gradient is multiplied by.
    clip_norm : float, optional
        Each row's gradient, of the row loss before reduction, is scaled down to this Euclidean norm at most.
    clip_value : float, optional
        Each element of a row's gradient, before reduction and after `clip_norm`, is clipped to this magnitude.
    out : ndarray of the shape and dtype of the gradient, optional
        Where the gradient goes; may be `logits`.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    CrossEntropyResult
        loss, as from `cross_entropy`, and grad, in the shape and dtype of the logits (float64 for integers): of the
        reduced loss, with reduction "none" of the sum of the losses times `upstream`.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `cross_entropy`; nothing has been written.

    Notes
    -----
    With labels, without smoothing and z-loss, every element has a relative error of at most 4 ULP: the label's own is
    minus the sum of the other probabilities, never a difference from 1. Else the bound is 4 ULP of the largest of the
    element, ``p * (Q + 2 * z_loss * M)`` and ``w * q``, p the probability, Q the sum of ``w * q``, and M the larger of
    abs(lse) and the largest abs(z), to whose magnitude lse is known (float64 with both
    temperature and z-loss: 4.1). The gradient of an ignored row is 0 whatever its logits hold.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> logits = np.float32([[17.5, 0.0, 0.0]])
    >>> csoftmax.cross_entropy_with_grad(logits, [0]).grad
    array([[-5.021998e-08,  2.510999e-08,  2.510999e-08]], dtype=float32)
    """
    done = binding.fast_loss(
        logits,
        target,
        True,
        out,
        reduction,
        ignore_index,
        axis,
        weight,
        sample_weight,
        label_smoothing,
        z_loss,
        temperature,
        upstream,
        clip_norm,
        clip_value,
        device,
        num_threads,
    )
    if done is not None:
        return tuple.__new__(CrossEntropyResult, done)  # half the time of CrossEntropyResult(*done)
    return CrossEntropyResult(
        *_run(
            logits,
            target,
            axis,
            gradient=True,
            weight=weight,
            sample_weight=sample_weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            z_loss=z_loss,
            temperature=temperature,
            reduction=reduction,
            upstream=upstream,
            clip_norm=clip_norm,
            clip_value=clip_value,
            out=out,
            device=device,
            num_threads=num_threads,
        )
    )


@takes_foreign
def _linear(x, w, target, *, bias, gradient, chunk_bytes, filter_eps, num_threads, **options):
    """(loss, grad_x, grad_w, grad_bias)."""
    return linear_loss(
        plan_linear(x, w, target, bias, **options),
        gradient=gradient,
        reduction=options["reduction"],
        chunk_bytes=check_chunk_bytes(chunk_bytes),
        filter_eps=check_non_negative("filter_eps", filter_eps),
        num_threads=check_num_threads(num_threads),
    )


class LinearCrossEntropyResult(NamedTuple):
    """What `linear_cross_entropy_with_grad` returns."""

    loss: Any
    grad_x: Any
    grad_w: Any
    grad_bias: Any


def linear_cross_entropy(
    x,
    w,
    target,
    *,
    bias=None,
    chunk_bytes=None,
    weight=None,
    sample_weight=None,
    label_smoothing=0.0,
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    reduction="mean",
    filter_eps=0.0,
    device=None,
    num_threads=None,
):
    """Cross-entropy of the logits ``x @ w.T + bias``, which never exist as a whole.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features, in one of the dtypes of `softmax`.
    w : array_like of shape (K, D) and the dtype of x
        One row a class.
    target : array_like of shape (...) or (..., K)
        As in `cross_entropy`.
    bias : array_like of shape (K,), optional
        Added to the logits.
    chunk_bytes : int, optional
        Upper bound for the logits that exist at a time, at least those of one row; default 64 MiB (48 MiB for half
        types), and never more than 1024 rows.
    filter_eps : float, default 0.0
        Only gradients know it; see `linear_cross_entropy_with_grad`.
    weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, reduction, device, num_threads
        As in `cross_entropy`; num_threads does not bound the BLAS (threadpoolctl does).

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        float64 for float64 and integer input, else float32.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `cross_entropy`.

    Notes
    -----
    The logits are as exact as the BLAS of NumPy makes them; from them on `cross_entropy` counts. The result is
    repeatable for a fixed BLAS, its number of threads and `chunk_bytes`. Ignored rows are dropped before the product.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.linear_cross_entropy(np.array([[1.0, 0.0]]), np.array([[1.0, 5.0], [3.0, 5.0]]), [1]).round(4)
    np.float64(0.1269)
    """
    return _linear(
        x,
        w,
        target,
        bias=bias,
        gradient=False,
        chunk_bytes=chunk_bytes,
        filter_eps=filter_eps,
        num_threads=num_threads,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        z_loss=z_loss,
        temperature=temperature,
        reduction=reduction,
        device=device,
    )[0]


def linear_cross_entropy_with_grad(
    x,
    w,
    target,
    *,
    bias=None,
    chunk_bytes=None,
    weight=None,
    sample_weight=None,
    label_smoothing=0.0,
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    reduction="mean",
    upstream=1.0,
    clip_norm=None,
    clip_value=None,
    filter_eps=0.0,
    device=None,
    num_threads=None,
):
    """Cross-entropy of the logits ``x @ w.T + bias`` and its gradients, without the matrix of all logits.

    Parameters
    ----------
    x, w, target, bias, chunk_bytes
        As in `linear_cross_entropy`.
    weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, reduction
        As in `cross_entropy`.
    upstream, clip_norm, clip_value
        As in `cross_entropy_with_grad`; clipping is of the gradient of a row's logits.
    filter_eps : float, default 0.0
        Classes for which no element of the gradient of the row losses exceeds it in a whole chunk of rows are left out
        of that chunk's products; faster where few classes count. On a CUDA device none is.
    device, num_threads
        As in `linear_cross_entropy`.

    Returns
    -------
    LinearCrossEntropyResult
        loss, grad_x of the shape of `x`, grad_w (K, D), grad_bias (K,) or None; in the dtype of `x` (float64 for
        integers). Sums are made in the compute type (float32 for half types), chunk by chunk in order.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `cross_entropy`.

    Notes
    -----
    Beside the results a call needs chunk_bytes and a panel of 4 MiB; for half types also grad_w, a panel of w and a
    chunk's rows of x and grad_x in float32; with filter_eps another panel. A CUDA device needs chunk_bytes, x once
    more and twice grad_w, for half types w in float32 as well.

    With c the factor of a row (sample weight aside: upstream over the mean's divisor), `filter_eps` changes grad_x of
    the row by at most ``filter_eps * abs(c) * sum(abs(w), axis=0)``, grad_w of a class by at most
    ``filter_eps * sum(abs(c)[:, None] * abs(x), axis=0)``.

    The idea of gradients in the forward pass, chunk by chunk, is that of Liger Kernel (Hsu et al. 2024); filtering that
    of Cut Cross-Entropy (Wijmans et al. 2024).

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> x, w = np.array([[1.0, 0.0]]), np.array([[1.0, 5.0], [3.0, 5.0]])
    >>> csoftmax.linear_cross_entropy_with_grad(x, w, [1], bias=[0.0, 0.0]).grad_w.round(4)
    array([[ 0.1192,  0.    ],
           [-0.1192,  0.    ]])
    """
    result = _linear(
        x,
        w,
        target,
        bias=bias,
        gradient=True,
        chunk_bytes=chunk_bytes,
        filter_eps=filter_eps,
        num_threads=num_threads,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        z_loss=z_loss,
        temperature=temperature,
        reduction=reduction,
        upstream=upstream,
        clip_norm=clip_norm,
        clip_value=clip_value,
        device=device,
    )
    return LinearCrossEntropyResult(*result)


def check_labels(target, n_classes, ignore_index=-100):
    """Raise an exception unless every label is a class or `ignore_index`.

    Parameters
    ----------
    target : array_like of integers
        Labels, of any shape.
    n_classes : int
        The classes are 0 to n_classes - 1.
    ignore_index : int, default -100
        The one other label that is allowed.

    Raises
    ------
    IndexError
        Naming the first position and value.
    TypeError, ValueError
        If the labels or n_classes are not integers, or n_classes is negative.

    Examples
    --------
    >>> import csoftmax
    >>> csoftmax.check_labels([0, 2, -100], 3)
    """
    target = native(target, "target")
    target = as_array("target", target.get() if is_cupy(target) else target)
    n_classes = check_count("n_classes", n_classes)
    if target.size and target.dtype.kind not in "iu":
        raise TypeError(f"target must hold integer labels, got dtype {target.dtype}")
    if target.size:
        raise_bad_label(target, n_classes, check_ignore_index(ignore_index))
