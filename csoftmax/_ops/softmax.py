"""softmax, log_softmax, logsumexp, entropy, and the gradients of the first two."""

from __future__ import annotations

from typing import Any, NamedTuple, SupportsIndex, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _cuda
from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.layouts import Rows, check_out, lay_out_rows
from .._arguments.numbers import check_flag, check_temperatures, number_and_rows
from .._arguments.places import check_kernels, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._arguments.sinks import append_sink
from .._cpu import binding
from .weighted_sum import plan_weighted_sum

__all__ = ["entropy", "log_softmax", "log_softmax_vjp", "logsumexp", "softmax", "softmax_vjp"]

_Float = TypeVar("_Float", bound=np.floating[Any])
_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None


class SoftmaxPlan(NamedTuple):
    """A checked call of an operation of the family."""

    operation: int
    temperature: float | Any  # a number, or an array with one for each row
    rows: Rows
    num_threads: int | None

    def execute(self) -> Any:
        """Compute, and return the result."""
        rows = self.rows
        arguments = self.operation, rows.dtype, rows.first, rows.second, rows.result.rows, rows.where
        number, each = number_and_rows(self.temperature, rows.first.shape[:-1], 1.0)
        if not rows.result.place.on_cuda:
            binding.run_softmax(*arguments, number, self.num_threads, each)
            return rows.result.finish()
        with rows.first.device:
            _cuda.launch_softmax(*arguments, number, each)
            return rows.result.finish()


def plan_softmax(
    name: str,
    x: Any,
    axis: Any,
    *,
    y: Any = None,
    temperature: Any = 1.0,
    where: Any = None,
    out: Any = None,
    device: str | None = None,
    num_threads: int | None = None,
    keepdims: Any = None,
) -> SoftmaxPlan:
    """Check a call of the operation `name`; x is dy in a gradient."""
    gradient = name.endswith("_vjp")
    place = place_of(device, x)
    if place.on_cuda:
        check_kernels(name)
    with place.context():
        rows = lay_out_rows(place, x, y, axis, where, out, gradient=gradient, keepdims=keepdims)
        (temperature,) = to_host(temperature)
        temperature = check_temperatures(temperature, rows.row_shape, gradient)
    return SoftmaxPlan(binding.OPS[name], temperature, rows, num_threads)


def _run_with_sink(
    name: str,
    x: Any,
    axis: Any,
    sink: Any,
    *,
    temperature: Any,
    where: Any,
    device: Any,
    num_threads: Any,
    out: Any = None,
    keepdims: Any = None,
) -> Any:
    """Compute rows that have the sink as one more element, and leave its result out."""
    place = place_of(device, x)
    if device is not None and not place.on_cuda:
        x, sink, where, temperature = to_host(x, sink, where, temperature)
    with place.context():
        s = append_sink(place, x, sink, axis, where)
        if out is not None:  # before anything is computed
            check_out(out, out.shape, s.rows.dtype, place)
        options = {"temperature": s.temperature(temperature), "where": s.where, "num_threads": num_threads}
        y = plan_softmax(name, s.rows, -1, keepdims=None if keepdims is None else False, **options).execute()
        return s.result_of_classes(y, out) if keepdims is None else s.result_of_rows(y, keepdims, out)


@accept_foreign
@keep_labels()
def _run_softmax(x: Any, axis: Any, name: str, sink: Any = None, **options: Any) -> Any:
    if sink is not None:
        return _run_with_sink(name, x, axis, sink, **options)
    return plan_softmax(name, x, axis, **options).execute()


@accept_foreign
def _run_weighted(
    x: Any, axis: Any, b: Any, sink: Any, return_sign: bool, *, out: Any, keepdims: bool, **options: Any
) -> Any:
    value, sign = plan_weighted_sum(x, axis, b, sink, **options).finish(keepdims, out, return_sign)
    return (value, sign) if return_sign else value


@accept_foreign  # no labels: with keepdims a sum of one column has the shape of x, but is no column
def _run_reduction(x: Any, axis: Any, name: str, sink: Any = None, **options: Any) -> Any:
    if sink is not None:
        return _run_with_sink(name, x, axis, sink, **options)
    return plan_softmax(name, x, axis, **options).execute()


@overload
def softmax(
    x: NDArray[_Float],
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    out: NDArray[_Float] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> NDArray[_Float]: ...
@overload
def softmax(
    x: ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any: ...
@binding.quick
@hand_over_recorded
def softmax(
    x: Any,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: Any = None,
    sink: Any = None,
    out: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Softmax, ``exp(x / T) / sum(exp(x / T))``, along one or more axes.

    Parameters
    ----------
    x : array_like of shape (...)
        Logits: float16, bfloat16 (``ml_dtypes``), float32, float64, or integers (computed in float64), with any
        strides, alignment and byte order. A NumPy or CuPy array, a PyTorch tensor (one that requires grad is computed
        by `csoftmax.torch`), or another library's array; these are read without a copy, and the result is one of their
        kind on their device. Tables of pandas and arrays of xarray keep their labels. Anything else is what
        ``numpy.asarray`` makes of it: a list of masked arrays loses its masks, a quantity its unit.
    axis : int, tuple of ints or None, default -1
        The axis or axes that sum to 1; None means all. A bool is refused.
    temperature : float or array_like, default 1.0
        T >= 0. 0 is the limit, uniform over the maxima; infinity is uniform over the entries greater than -inf. An
        array, of length 1 along `axis`, broadcasts to the rows, each of which then has the bits that it has alone.
    where : array_like of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out, whatever their value, and their result is exactly 0, in rows that
        are NaN too.
    sink : float or array_like, optional
        A logit that takes part in the denominator, divided by T like the others, and has no output: a number or, as
        with `temperature`, one a row, rounded to the dtype of `x`, in which a finite one must be finite. 0 is
        softmax-plus-one; attention sinks (Xiao et al. 2023) are learnt. `where` never masks it. The rows are copied,
        with the sink as one more element.
    out : ndarray of the shape and dtype of the result, optional
        Array that receives the result. It may be `x` itself, or overlap it in any way.
    device : {None, "cpu", "cuda", "cuda:<index>"}, optional
        Device that computes. None follows `x`: a CuPy array is computed on its device and gives a CuPy array. If the
        named device is another one, all arguments are copied to it.
    num_threads : int, optional
        Upper bound on the threads of this call. The result has the same bits for every value.

    Returns
    -------
    ndarray of the shape of x
        In the dtype of `x` (float64 for integers); `out` if given. A scalar for 0-d `x`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed; the message names it, what was received and what is allowed. Nothing has been
        written.
    DeviceError
        If `device` cannot be used.
    MemoryError
        If scratch memory cannot be allocated.

    Notes
    -----
    Every element is within 3 ULP (float32; a search for the hardest row ends at 3.02) or 4 ULP (float64) of the exact
    result, tails and subnormal results included; half types are within 0.51 ULP. ``x - max(x)`` is never formed,
    because its rounding error costs other implementations tens of ULP. The bits are the same for every thread count,
    batch, layout and instruction set.

    A row with NaN or +inf is NaN, and so is a row with only -inf; in other rows -inf gives exactly 0. Elements that
    `where` masks are 0 in every row, so a row that it masks completely is 0. Blanchard, Higham & Higham, "Accurately
    computing the log-sum-exp and softmax functions", IMA J. Numer. Anal. 41 (2021), analyse the shifted softmax.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.softmax(np.array([[1.0, 2.0, 3.0], [1000.0, 0.0, 1000.0]])).round(4)
    array([[0.09  , 0.2447, 0.6652],
           [0.5   , 0.    , 0.5   ]])
    >>> csoftmax.softmax([0.0, 1.0], temperature=0)
    array([0., 1.])
    """
    return _run_softmax(
        x, axis, "softmax", sink, temperature=temperature, where=where, out=out, device=device, num_threads=num_threads
    )


@overload
def log_softmax(
    x: NDArray[_Float],
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    out: NDArray[_Float] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> NDArray[_Float]: ...
@overload
def log_softmax(
    x: ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any: ...
@binding.quick
@hand_over_recorded
def log_softmax(
    x: Any,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: Any = None,
    sink: Any = None,
    out: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Logarithm of the softmax, ``x / T - log(sum(exp(x / T)))``, along one or more axes.

    Parameters
    ----------
    x, axis, temperature, sink, out, device, num_threads
        As in `softmax`.
    where : array_like of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out; their result is -inf.

    Returns
    -------
    ndarray of the shape of x
        In the dtype of `x` (float64 for integers); `out` if given.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Every element has a *relative* error of at most 4 ULP: with m the maximum, c the number of maxima and S the sum of
    the other ``exp(x - m)``, the result is ``(x - m) - log1p((c - 1) + S)``, two terms of one sign. The
    log-probability of a near-certain class keeps all its digits, where forming ``log(sum)`` would leave 0.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.log_softmax(np.float32([16.9, 0.0]))
    array([-4.5753403e-08, -1.6900000e+01], dtype=float32)
    """
    return _run_softmax(
        x,
        axis,
        "log_softmax",
        sink,
        temperature=temperature,
        where=where,
        out=out,
        device=device,
        num_threads=num_threads,
    )


@binding.quick
@hand_over_recorded
def logsumexp(
    x: ArrayLike,
    axis: _Axis = -1,
    *,
    b: ArrayLike | None = None,
    return_sign: bool = False,
    keepdims: bool = False,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Logarithm of the sum of exponentials, ``log(sum(exp(x / T)))``, along one or more axes.

    Parameters
    ----------
    x, axis, temperature, device, num_threads
        As in `softmax`.
    b : array_like, broadcastable to x, optional
        Factors of the exponentials, of any sign, as in SciPy: ``log(abs(sum(b * exp(x / T))))``. An element with b = 0
        is left out, whatever it holds; a factor that is not finite gives NaN; a bool is 0 or 1. T must be positive and
        finite. On the CPU only, and some hundred times slower than without.
    return_sign : bool, default False
        If True, also return the sign of the sum, 1, -1, 0 or NaN; if False, a negative sum gives NaN.
    keepdims : bool, default False
        If True, the reduced axes stay in the result with length 1.
    where : array_like of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out; if none is left, the result is -inf.
    sink : float or array_like, optional
        As in `softmax`; it is part of the sum.
    out : ndarray of the shape and dtype of the result, optional
        Array that receives the result.

    Returns
    -------
    ndarray or scalar
        `x` without `axis`, in the dtype of `x` (float64 for integers); `out` if given. With `return_sign` a tuple of
        that and the signs.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    The error is at most 4 ULP of max(abs(m), abs(result)), with m the maximum of ``x / T``; with `b`, at most 4 ULP of
    the larger of abs(result) and ``abs(log(sum(abs(b) * exp(x / T))))`` where nothing cancels. NaN anywhere gives NaN,
    +inf gives +inf; a row with only -inf, or without classes, gives -inf. Temperature 0 gives ``sign(max) * inf``, or
    the logarithm of the number of maxima if they are 0.

    `scipy.special.logsumexp` (1.17) differs in its default, which is all axes, and with `b` or `return_sign` in two
    cases: the sign of an empty sum is -1 there and 0 here, and an infinite factor may give +inf there and is NaN here.
    In both, elements with b = 0 are left out even where they hold NaN or infinity, ``b=[1, -1]`` over ``x=[inf, 2]``
    gives +inf, and without `return_sign` a negative factor of a single element gives NaN.

    Examples
    --------
    >>> import csoftmax
    >>> csoftmax.logsumexp([1000.0, 1000.0])
    np.float64(1000.6931471805599)
    """
    if b is not None or check_flag("return_sign", return_sign):
        return _run_weighted(
            x,
            axis,
            1.0 if b is None else b,
            sink,
            return_sign,
            temperature=temperature,
            where=where,
            keepdims=check_flag("keepdims", keepdims),
            out=out,
            device=device,
            num_threads=num_threads,
        )
    return _run_reduction(
        x,
        axis,
        "logsumexp",
        sink,
        temperature=temperature,
        where=where,
        out=out,
        device=device,
        num_threads=num_threads,
        keepdims=check_flag("keepdims", keepdims),
    )


@binding.quick
@hand_over_recorded
def entropy(
    x: ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Shannon entropy of ``softmax(x / T)`` in nats, from logits, along one or more axes.

    Parameters
    ----------
    x, axis, temperature, device, num_threads
        As in `softmax`.
    where : array_like of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out; if none is left, the result is 0.
    keepdims : bool, default False
        If True, the reduced axes stay in the result with length 1.
    out : ndarray of the shape and dtype of the result, optional
        Array that receives the result.

    Returns
    -------
    ndarray or scalar
        ``-sum(p * log(p))`` with ``p = softmax(x / T)``: `x` without `axis`, in the dtype of `x` (float64 for
        integers); `out` if given. At least 0; classes of probability 0 contribute 0.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`. There are no kernels for CUDA.

    Notes
    -----
    The *relative* error is at most 4 ULP, also where one class has nearly all of the probability and the entropy nearly
    vanishes: the result is ``log1p(S) + sum(p * (m - x)) / T``, with m the maximum and S the sum of the other
    ``exp((x - m) / T)``, and none of these terms is negative. NaN or +inf anywhere, or a row with only -inf, gives NaN;
    a row without classes gives 0. Temperature 0 gives the logarithm of the number of maxima. Shannon, "A mathematical
    theory of communication", Bell System Technical Journal 27 (1948).

    Examples
    --------
    >>> import csoftmax
    >>> csoftmax.entropy([0.0, 0.0])
    np.float64(0.6931471805599453)
    >>> csoftmax.entropy([40.0, 0.0])
    np.float64(1.7418252446695514e-16)
    """
    return _run_reduction(
        x,
        axis,
        "entropy",
        temperature=temperature,
        where=where,
        out=out,
        device=device,
        num_threads=num_threads,
        keepdims=check_flag("keepdims", keepdims),
    )


@overload
def softmax_vjp(
    dy: NDArray[_Float],
    y: NDArray[_Float],
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[_Float] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> NDArray[_Float]: ...
@overload
def softmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any: ...
@binding.quick
@hand_over_recorded
def softmax_vjp(
    dy: Any,
    y: Any,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: Any = None,
    out: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Gradient of a loss through `softmax`: dL/dx from dL/dy and ``y = softmax(x)``.

    Parameters
    ----------
    dy : array_like of shape (...)
        dL/dy, in one of the dtypes of `softmax`.
    y : array_like of the shape and dtype of dy
        The result of ``softmax(x, axis, temperature=temperature, where=where)``.
    axis : int, tuple of ints or None, default -1
        As in the call of `softmax`.
    temperature : float or array_like, default 1.0
        As in the call of `softmax`; positive and finite.
    where : array_like of bool, broadcastable to dy, optional
        Mask. Elements where it is False are left out; their gradient is 0.
    out : ndarray of the shape and dtype of the result, optional
        Array that receives the result. It may be `dy` or `y`.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of the shape of dy
        ``y * (dy - sum(dy * y)) / T``.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Elements with y = 0 are left out: their gradient is 0, whatever `dy` holds there. The sum is exact to float64
    (float32 input) or twice float64 (float64 input), and the difference keeps its digits where one class dominates.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> y = csoftmax.softmax(np.array([1.0, 2.0, 3.0]))
    >>> csoftmax.softmax_vjp(np.array([0.0, 0.0, 1.0]), y).round(4)
    array([-0.0599, -0.1628,  0.2227])
    """
    return _run_softmax(
        dy,
        axis,
        "softmax_vjp",
        y=y,
        temperature=temperature,
        where=where,
        out=out,
        device=device,
        num_threads=num_threads,
    )


@overload
def log_softmax_vjp(
    dy: NDArray[_Float],
    y: NDArray[_Float],
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[_Float] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> NDArray[_Float]: ...
@overload
def log_softmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any: ...
@binding.quick
@hand_over_recorded
def log_softmax_vjp(
    dy: Any,
    y: Any,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: Any = None,
    out: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Gradient of a loss through `log_softmax`: dL/dx from dL/dy and ``y = log_softmax(x)``.

    Parameters
    ----------
    dy : array_like of shape (...)
        dL/dy, in one of the dtypes of `softmax`.
    y : array_like of the shape and dtype of dy
        The result of ``log_softmax(x, axis, temperature=temperature, where=where)``.
    axis, temperature, where, out, device, num_threads
        As in `softmax_vjp`.

    Returns
    -------
    ndarray of the shape of dy
        ``(dy - exp(y) * sum(dy)) / T``.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Elements with y = -inf are left out: their gradient is 0, whatever `dy` holds there. exp(y) enters as 2**n plus a
    remainder, so that the gradient of a near-certain class, ``1 - exp(y)``, keeps the digits that `log_softmax` kept.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> y = csoftmax.log_softmax(np.float32([17.5, 0.0, 0.0]))
    >>> csoftmax.log_softmax_vjp(np.float32([-1.0, 0.0, 0.0]), y)
    array([-5.021998e-08,  2.510999e-08,  2.510999e-08], dtype=float32)
    """
    return _run_softmax(
        dy,
        axis,
        "log_softmax_vjp",
        y=y,
        temperature=temperature,
        where=where,
        out=out,
        device=device,
        num_threads=num_threads,
    )
