"""Cross-entropy and its gradient, fused, with hard or soft labels."""

from typing import Any, NamedTuple

from . import _cpu
from ._args import as_array, check_ignore_index, plan_loss, raise_bad_label


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
        For a label that is neither a class nor `ignore_index`, with the first position and value.
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    With labels, without smoothing and z-loss, the relative error is at most 4 ULP however certain the row is: where the
    label has the largest logit the loss is log1p of the sum of the others, which other implementations round to 0.

    A class with ``w * q = 0`` contributes 0 even where its logit is -inf; another class there makes the loss +inf. A
    row with NaN or +inf, or nothing but -inf, has loss NaN. The mean over no row is NaN. The result has the same bits
    for every thread count, layout and instruction set; rows are added in a fixed tree in float64.

    PyTorch differs: with soft labels its mean divides by the number of rows; smoothing combined with class weights is
    normalised by ``w[target]`` there too, but spreads epsilon with the weights of all classes, as here.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> logits = np.array([[2.0, 1.0, 0.0], [0.0, 40.0, 0.0], [5.0, 5.0, 5.0]])
    >>> csoftmax.cross_entropy(logits, [0, 1, -100], reduction="none")
    array([4.07605964e-01, 8.49670851e-18, 0.00000000e+00])
    """
    done = _cpu.fast_loss(
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
    return plan_loss(
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
    ).run()[0]


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
    minus the sum of the other probabilities, never a difference from 1. Else the bound is 4 ULP of the larger of the
    two terms that are subtracted. The gradient of an ignored row is 0 whatever its logits hold.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> logits = np.float32([[17.5, 0.0, 0.0]])
    >>> csoftmax.cross_entropy_with_grad(logits, [0]).grad
    array([[-5.021998e-08,  2.510999e-08,  2.510999e-08]], dtype=float32)
    """
    done = _cpu.fast_loss(
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
        return CrossEntropyResult(*done)
    return CrossEntropyResult(
        *plan_loss(
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
        ).run()
    )


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
    TypeError
        If the labels are not integers.

    Examples
    --------
    >>> import csoftmax
    >>> csoftmax.check_labels([0, 2, -100], 3)
    """
    target = as_array("target", target)
    if target.size and target.dtype.kind not in "iu":
        raise TypeError(f"target must hold integer labels, got dtype {target.dtype}")
    if target.size:
        raise_bad_label(target, n_classes, check_ignore_index(ignore_index))
