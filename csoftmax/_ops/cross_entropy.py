"""Cross-entropy and its gradient in one pass over the logits, with hard or soft labels."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _cuda
from .._arguments.foreign import accept_foreign, as_native
from .._arguments.kinds import keep_labels
from .._arguments.labels import (
    LossOptions,
    as_label_bits,
    check_ignore_index,
    check_loss_options,
    check_on_device,
    check_target,
    raise_bad_label,
)
from .._arguments.layers import scale_products
from .._arguments.layouts import (
    Result,
    batch_shape,
    lay_out_gradient,
    normalize_axes,
)
from .._arguments.numbers import check_count
from .._arguments.places import Place, as_array, as_float, is_cupy, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.dtypes import as_buffer, compute_dtype

__all__ = ["CrossEntropyResult", "check_labels", "cross_entropy", "cross_entropy_with_grad"]


class CrossEntropyResult(NamedTuple):
    """The result of `cross_entropy_with_grad`.

    Attributes
    ----------
    loss : scalar, or ndarray of the shape of the rows with reduction "none"
        The loss, as from `cross_entropy`: float64 for float64 and integer logits, else float32.
    grad : ndarray of the shape of the logits
        Their gradient, in their dtype (float64 for integers); `out`, if it was given.
    """

    loss: Any
    grad: Any


class CrossEntropyPlan(NamedTuple):
    """A checked call of cross_entropy or cross_entropy_with_grad."""

    dtype: int
    logits: Any  # the class axis last; bfloat16 as its bits
    labels: Any | None  # one for each row, or None with soft labels
    soft: Any | None  # soft labels, the class axis last
    ignore: int | None  # the ignored label as 64 bits; None if no label can equal it
    options: LossOptions
    reduction: int
    loss: Any  # written by the backend: float64, on CUDA the compute type
    gradient: Result | None
    num_threads: int | None
    compute: np.dtype[Any]
    place: Place

    def _arguments(self) -> tuple[Any, ...]:
        """The arrays and options that both backends expect, in their order."""
        rows = None if self.gradient is None else self.gradient.rows
        o = self.options
        arrays = self.logits, rows, self.loss, self.labels, self.ignore, self.soft
        return self.dtype, *arrays, o.weight, o.sample_weight, o.upstream, *o.factors, self.reduction

    def execute(self) -> tuple[Any, Any]:
        """Compute, and return the loss (a scalar unless there is one for each row) and the gradient or None."""
        if self.place.on_cuda:
            return self._run_on_cuda()
        arguments = [*self._arguments(), self.num_threads, self.options.temperatures, self.options.softcap]
        if binding.run_cross_entropy(*arguments) is not None:
            self._raise_bad_label()
            raise RuntimeError("target was changed by another thread during the call; nothing has been written")
        gradient = None if self.gradient is None else self.gradient.finish()
        with np.errstate(over="ignore", under="ignore"):
            return self.loss.astype(self.compute, copy=False)[()], gradient

    def _raise_bad_label(self) -> None:
        raise_bad_label(self._target(), self.logits.shape[-1], self.options.ignore_index)

    def _target(self) -> Any:
        return self.soft if self.labels is None else self.labels

    def _run_on_cuda(self) -> tuple[Any, Any]:
        """Run on a CUDA device, where a bad label makes its row NaN unless CSOFTMAX_SYNC_CHECKS requests a check."""
        check_on_device(self._target(), self.logits.shape[-1], self.options.ignore_index)
        with self.logits.device:
            if self.logits.size:
                given = [*self._arguments(), self.options.temperatures, self.options.softcap]
                _cuda.launch_cross_entropy(*given)
            else:  # no row, or no class: nothing to compute, and the CPU gives the result
                dtype, logits, rows, _, *rest = to_host(*self._arguments(), None)
                host = np.empty(self.loss.shape, np.float64)
                if binding.run_cross_entropy(dtype, logits, rows, host, *rest) is not None:
                    host[...] = math.nan
                self.loss.set(host.astype(self.loss.dtype))
            return self.loss, None if self.gradient is None else self.gradient.finish()


def plan_cross_entropy(
    logits: Any,
    target: Any,
    axis: Any,
    *,
    gradient: bool,
    reduction: str,
    out: Any = None,
    device: str | None = None,
    num_threads: int | None = None,
    **options: Any,
) -> CrossEntropyPlan:
    """Check a call of cross_entropy or, with `gradient`, of cross_entropy_with_grad."""
    place = place_of(device, logits)
    if not place.on_cuda and device is not None:
        logits, target, *values = to_host(logits, target, *options.values())
        options = dict(zip(options, values, strict=True))
    with place.context():
        return _lay_out_loss(place, logits, target, axis, gradient, reduction, out, num_threads, options)


def _lay_out_loss(
    place: Place,
    logits: Any,
    target: Any,
    axis: Any,
    gradient: bool,
    reduction: str,
    out: Any,
    num_threads: int | None,
    options: dict[str, Any],
) -> CrossEntropyPlan:
    x, dtype = as_float("logits", logits, place)
    axes = normalize_axes(axis, x.ndim)
    compute, batch = compute_dtype(x.dtype), batch_shape(x, axes)
    labels, soft = check_target(target, x.shape, batch, compute, place)
    n_classes = math.prod(x.shape[i] for i in axes) if x.ndim else 1
    is_number = type(options["temperature"]) is float  # as in most calls, which this saves the shape of the rows
    row_shape = None if is_number else tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    checked = check_loss_options(n_classes, batch, compute, reduction, place=place, row_shape=row_shape, **options)
    if reduction == "mean" and not place.on_cuda and not (checked.clip_norm or checked.clip_value):
        weight, s = scale_products(checked.weight, checked.sample_weight, batch)
        checked = checked._replace(weight=weight, sample_weight=s)
    x, soft, result = lay_out_gradient(x, soft, axes, gradient, out, place)
    return CrossEntropyPlan(
        dtype,
        as_buffer(x),
        labels,
        soft,
        as_label_bits(checked.ignore_index, labels),
        checked,
        binding.REDUCTIONS[reduction],
        place.xp.empty(batch if reduction == "none" else (), compute if place.on_cuda else np.float64),
        result,
        num_threads,
        compute,
        place,
    )


@accept_foreign
@keep_labels(1)
def _run_loss(logits: Any, target: Any, **options: Any) -> tuple[Any, Any]:
    return plan_cross_entropy(logits, target, **options).execute()


@binding.quick
@hand_over_recorded
def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: SupportsIndex | tuple[SupportsIndex, ...] | None = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: ArrayLike = 1.0,
    softcap: float | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Cross-entropy of the softmax of logits and labels.

    With z = logits / T, lse = log(sum(exp(z))) and the label's distribution q (one-hot or soft, then smoothed), the
    loss of a row is ``s * (sum(w * q * (lse - z)) + z_loss * lse**2)``.

    Parameters
    ----------
    logits : array_like of shape (..., K)
        In one of the dtypes of `softmax`; K is the length of `axis`.
    target : array_like
        Labels, integers of any dtype in the shape of `logits` without `axis`; or soft labels, floating-point numbers in
        the shape of `logits`, at least 0 and finite, whose rows need not sum to 1. One-hot rows are soft labels, and
        have to be floating-point as well.
    axis : int, tuple of ints or None, default -1
        Axis or axes of the classes. PyTorch's (N, C, d1, ...) has ``axis=1``.
    weight : array_like of shape (K,), optional
        Class weights w, at least 0 and finite.
    sample_weight : array_like, broadcastable to the rows, optional
        s, at least 0 and finite. A row of weight 0 is left out.
    label_smoothing : float in [0, 1], default 0.0
        epsilon: q becomes ``(1 - epsilon) * q + epsilon / K`` (Szegedy et al. 2016).
    ignore_index : int, default -100
        Rows with this label are left out: their logits are not read, and their loss is 0. It does not apply to soft
        labels.
    z_loss : float, default 0.0
        Factor of ``lse**2``, which keeps logits from drifting (Chowdhery et al. 2022).
    temperature : float or array_like, default 1.0
        T, positive and finite. An array, of length 1 along `axis`, broadcasts to the rows, each of which then has the
        bits that it has alone. On CUDA rows of the same temperature are a launch.
    softcap : float, optional
        c, positive and finite: the logits become ``c * tanh(logits / c)`` before anything else (Gemma 2, 2024), in the
        compute type, so that half types are rounded once. -inf, +inf and NaN stay what they are.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean divides by the sum of ``s * sum(w * q)`` over the rows that are not ignored, with q before smoothing;
        for labels that is the sum of s * w[target]. Where that sum is 0, the mean is NaN.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        float64 for float64 and integer logits, else float32.

    Raises
    ------
    IndexError
        If a label is neither a class nor `ignore_index`; the message names the first position and value. On CUDA
        such a row is NaN instead, because the call does not wait for the device; with the environment variable
        ``CSOFTMAX_SYNC_CHECKS=1`` it waits and raises.
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    For labels without smoothing and z-loss the relative error is at most 4 ULP, however certain the row is: where the
    label has the largest logit, the loss is log1p of the sum of the others, which other implementations round to 0.
    Soft labels, weights and smoothing add terms of one sign, and the bound is the same (measured: 1.6 ULP in float32,
    2.2 in float64; with z-loss 1.2 and 2.4). z-loss adds the square of lse, which is known to 4 ULP of the larger of
    abs(lse) and the largest abs(z): where it cancels, the square is small beside that.

    A class with ``w * q = 0`` contributes 0 even where its logit is -inf; any other class with that logit makes the
    loss +inf. A row with NaN or +inf, or with only -inf, has loss NaN. A mean that divides by 0, because all rows are
    ignored or weigh 0, is NaN whatever the other options add to the losses. The result has the
    same bits for every thread count, layout and instruction set: row losses are added in a fixed tree in float64.

    ``torch.nn.functional.cross_entropy`` agrees for labels with weights, smoothing and `ignore_index`, and for soft
    labels unless they are averaged. The differences, and their reasons:

    - PyTorch's mean over soft labels divides by the number of rows; this one divides by the weight of the rows, as both
      do for labels, so that labels and their one-hot rows always agree.
    - In PyTorch a class of weight 0 with the logit -inf makes the loss NaN (0 times inf); here it contributes 0.
    - In PyTorch ignored rows that hold NaN have a gradient of NaN; here they are not read.
    - In PyTorch the loss and the label's gradient of a near-certain row round to 0; here they keep their digits.
    - PyTorch's loss of half types has their dtype; here it is float32, the type that the kernel computes in.
    - With soft labels PyTorch refuses an `ignore_index` that is not negative; here it has no effect.
    - PyTorch accepts negative weights; here they are refused, because the error bounds rest on sums of terms of one
      sign.
    - A mean over rows that all weigh 0 is NaN in both. PyTorch's gradient is then NaN or infinite; here it is 0, with
      label smoothing and z-loss too, so that such a batch changes no parameter.

    PyTorch has no sample weights, temperature, soft cap or z-loss.

    With `softcap` the bounds hold for the capped logits, which are within 2 ULP of ``c * tanh(logits / c)``: relative
    to the exact loss, a probability changes by a factor of up to ``exp(4 * eps * c / T)``, eps the spacing of 1.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> logits = np.array([[2.0, 1.0, 0.0], [0.0, 40.0, 0.0], [5.0, 5.0, 5.0]])
    >>> csoftmax.cross_entropy(logits, [0, 1, -100], reduction="none")
    array([4.07605964e-01, 8.49670851e-18, 0.00000000e+00])
    """
    loss, _ = _run_loss(
        logits,
        target,
        gradient=False,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        z_loss=z_loss,
        temperature=temperature,
        softcap=softcap,
        reduction=reduction,
        device=device,
        num_threads=num_threads,
    )
    return loss


@binding.quick_returning(CrossEntropyResult)
@hand_over_recorded
def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: SupportsIndex | tuple[SupportsIndex, ...] | None = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: ArrayLike = 1.0,
    softcap: float | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike = 1.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> CrossEntropyResult:
    """Cross-entropy and its gradient with respect to the logits, in one pass over them.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, softcap, reduction
        As in `cross_entropy`.
    upstream : float, or with reduction "none" array_like that broadcasts to the rows; default 1.0
        Factor of the gradient.
    clip_norm : float, optional
        Upper bound on the Euclidean norm of each row's gradient (that of the row loss, before reduction); a larger
        gradient is scaled down to it.
    clip_value : float, optional
        Each element of a row's gradient, before reduction and after `clip_norm`, is clipped to this magnitude.
    out : ndarray of the shape and dtype of the gradient, optional
        Array that receives the gradient. It may be `logits`.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    CrossEntropyResult
        `loss`, as from `cross_entropy`, and `grad`, in the shape and dtype of the logits (float64 for integers): the
        gradient of the reduced loss, or, with reduction "none", of the sum of the losses, times `upstream`.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `cross_entropy`; nothing has been written.

    Notes
    -----
    For labels without smoothing and z-loss every element has a relative error of at most 4 ULP: that of the label is
    minus the sum of the other probabilities, never a difference from 1. Otherwise the bound is 4 ULP of the largest of
    the element, ``p * (Q + 2 * z_loss * M)`` and ``w * q``, p the probability, Q the sum of ``w * q``, and M the larger
    of abs(lse) and the largest abs(z), to whose magnitude lse is known (float64 with both temperature and z-loss: 4.1).
    The gradient of an ignored row is 0 whatever its logits hold, and so is that of all rows where a mean divides by 0.
    A class with the logit -inf has gradient 0, unless it has w * q > 0: then it is -w * q times the factor of the row
    (with label smoothing -epsilon / K times that factor), beside a loss of +inf.

    With `softcap` the gradient is that of the logits before the cap: times ``1 - tanh(logits / c)**2``, 6 ULP further,
    which keeps its digits where tanh is near 1. The clips apply to this product. A class with the logit -inf has the
    gradient that it has without `softcap`.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> logits = np.float32([[17.5, 0.0, 0.0]])
    >>> csoftmax.cross_entropy_with_grad(logits, [0]).grad
    array([[-5.021998e-08,  2.510999e-08,  2.510999e-08]], dtype=float32)
    """
    result = _run_loss(
        logits,
        target,
        gradient=True,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        z_loss=z_loss,
        temperature=temperature,
        softcap=softcap,
        reduction=reduction,
        upstream=upstream,
        clip_norm=clip_norm,
        clip_value=clip_value,
        out=out,
        device=device,
        num_threads=num_threads,
    )
    return CrossEntropyResult(*result)


@hand_over_recorded
def check_labels(target: ArrayLike, n_classes: SupportsIndex, ignore_index: SupportsIndex = -100) -> None:
    """Raise an exception unless every label is a class or `ignore_index`.

    Parameters
    ----------
    target : array_like of integers
        Labels, of any shape.
    n_classes : int
        The classes are 0 to n_classes - 1.
    ignore_index : int, default -100
        The only other label that is allowed.

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
    labels: Any = as_native(target, "target")
    labels = as_array("target", labels.get() if is_cupy(labels) else labels)
    count, ignored = check_count("n_classes", n_classes), check_ignore_index(ignore_index)
    if labels.size and labels.dtype.kind not in "iu":
        raise TypeError(f"target must hold integer labels, got dtype {labels.dtype}")
    if labels.size:
        raise_bad_label(labels, count, ignored)
