"""Differentiable functions for JAX: XLA calls the kernels itself (jax.ffi), under jit, grad and vmap; on the CPU only.

Results have the bits of the functions of the same names in `csoftmax`, except where XLA computes: means and sums of
losses, and products with upstream gradients.  A call uses the number of threads that is set when it is traced.
There is no `linear_cross_entropy`: its matrix products are NumPy's, and XLA's would have other bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, SupportsIndex

import numpy as np

try:
    import jax
    import jax.numpy as jnp
    from jax.typing import ArrayLike
except ImportError as error:
    raise ImportError(f"csoftmax.jax needs JAX >= 0.5 ({error}); install it with: pip install jax") from error

from ._arguments.numbers import check_flag, check_integer, is_bool
from ._cpu import binding

__all__ = ["crf_loss", "cross_entropy", "entmax", "log_softmax", "logsumexp", "softmax", "sparsemax"]

MAX_NUMBER = float(np.finfo(np.float64).max)

for _name, _target in binding.XLA_TARGETS.items():
    jax.ffi.register_ffi_target(f"csoftmax_{_name}", _target, platform="cpu")


def _call_kernel(name: str, results: Any, *arrays: jax.Array, **attributes: Any) -> Any:
    """Call a kernel on rows along the last axis; vmap prepends axes to all arrays."""
    call = jax.ffi.ffi_call(f"csoftmax_{name}", results, vmap_method="broadcast_all")
    return call(*arrays, threads=np.int64(binding.get_threads()), **attributes)


def _like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _check_floating(name: str, x: ArrayLike, axis: SupportsIndex) -> tuple[jax.Array, int]:
    """The array, and the axis counted from the front."""
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize < 2:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {array.dtype}")
    if array.ndim == 0:
        raise ValueError(f"{name} must have at least one axis")
    index = check_integer("axis", axis)
    if not -array.ndim <= index < array.ndim:
        raise ValueError(f"axis must be from {-array.ndim} to {array.ndim - 1}, got {index}")
    return array, index % array.ndim


def _check_number(name: str, value: Any, low: float, high: float = MAX_NUMBER, *, open_low: bool = True) -> float:
    """A float: JAX compiles it into the call, so it cannot be traced."""
    try:
        if is_bool(value):
            raise TypeError
        value = float(value)
    except (TypeError, jax.errors.ConcretizationTypeError):
        raise TypeError(f"{name} must be a number that is known when the function is traced, got {value!r}") from None
    if not (low < value if open_low else low <= value) or not value <= high:
        raise ValueError(f"{name} must be in {'(' if open_low else '['}{low}, {high}], got {value}")
    return value


def _define_row_function(name: str, parameter: str) -> Callable[[jax.Array, float], jax.Array]:
    """Define a function of rows and of the number `parameter`, with its gradient from dy and y."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
    def rows(x: jax.Array, number: float) -> jax.Array:
        return _call_kernel(name, _like(x), x, **{parameter: np.float64(number)})

    def forward(x: jax.Array, number: float) -> tuple[jax.Array, jax.Array]:
        y = rows(x, number)
        return y, y

    def backward(number: float, y: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
        return (_call_kernel(f"{name}_vjp", _like(y), dy, y, **{parameter: np.float64(number)}),)

    rows.defvjp(forward, backward)
    return rows


_softmax = _define_row_function("softmax", "temperature")
_log_softmax = _define_row_function("log_softmax", "temperature")
_entmax = _define_row_function("entmax", "alpha")


def _apply_along(rows: Callable[[jax.Array, float], jax.Array], x: jax.Array, axis: int, number: float) -> jax.Array:
    """Apply a function of rows along an axis."""
    return jnp.moveaxis(rows(jnp.moveaxis(x, axis, -1), number), -1, axis)


def _leave_out(x: jax.Array, where: ArrayLike | None) -> jax.Array:
    """The logits with -inf where the mask is False, which is how the kernels leave elements out."""
    return x if where is None else jnp.where(where, x, jnp.asarray(-jnp.inf, x.dtype))


def _check_mask(where: ArrayLike | None, x: jax.Array) -> jax.Array | None:
    if where is None:
        return None
    mask = jnp.asarray(where)
    if mask.dtype != bool:
        raise TypeError(f"where must hold bools, got {mask.dtype}")
    try:
        return jnp.broadcast_to(mask, x.shape)
    except ValueError:
        raise ValueError(f"where has shape {mask.shape}, which does not broadcast to {x.shape}") from None


def _apply_masked(
    rows: Callable[[jax.Array, float], jax.Array],
    x: jax.Array,
    axis: int,
    number: float,
    where: ArrayLike | None,
    absent: float,
) -> jax.Array:
    """Apply a function of rows along an axis to the elements where the mask is True; the others become `absent`.

    The second selection is for rows with NaN or with nothing left, which are NaN without a mask.
    """
    mask = _check_mask(where, x)
    result = _apply_along(rows, _leave_out(x, mask), axis, number)
    return result if mask is None else jnp.where(mask, result, jnp.asarray(absent, x.dtype))


def softmax(
    x: ArrayLike, axis: SupportsIndex = -1, *, temperature: float = 1.0, where: ArrayLike | None = None
) -> jax.Array:
    """`csoftmax.softmax` with a gradient.

    Parameters
    ----------
    x : jax.Array
        float16, bfloat16, float32 or float64.
    axis : int, default -1
        The axis that sums to 1.
    temperature : float > 0, default 1.0
        T, which cannot be traced.
    where : jax.Array of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out: their result and their gradient are exactly 0.

    Returns
    -------
    jax.Array
        Probabilities, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax
    >>> import csoftmax.jax as cj
    >>> jax.grad(lambda x: cj.softmax(x)[1])(jax.numpy.array([0.0, 1.0]))
    Array([-0.19661194,  0.19661193], dtype=float32)
    """
    x, axis = _check_floating("x", x, axis)
    return _apply_masked(_softmax, x, axis, _check_number("temperature", temperature, 0), where, 0.0)


def log_softmax(
    x: ArrayLike, axis: SupportsIndex = -1, *, temperature: float = 1.0, where: ArrayLike | None = None
) -> jax.Array:
    """`csoftmax.log_softmax` with a gradient.

    Parameters
    ----------
    x, axis, temperature, where
        As in `softmax`; the result is -inf where the mask is False.

    Returns
    -------
    jax.Array
        Logarithms of the probabilities, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> cj.log_softmax(jnp.array([0.0, 0.0]))
    Array([-0.6931472, -0.6931472], dtype=float32)
    """
    x, axis = _check_floating("x", x, axis)
    return _apply_masked(_log_softmax, x, axis, _check_number("temperature", temperature, 0), where, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _logsumexp(x: jax.Array, temperature: float) -> jax.Array:
    result = jax.ShapeDtypeStruct(x.shape[:-1], x.dtype)
    return _call_kernel("logsumexp", result, x, temperature=np.float64(temperature))


def _logsumexp_backward(temperature: float, x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    p = _softmax(x, temperature)
    if temperature == 1:
        return (p * dy[..., None],)
    exponent = math.frexp(temperature)[1]
    dy = dy.astype(jnp.promote_types(x.dtype, jnp.float32))
    if abs(exponent) <= 60:
        return ((p * (dy / temperature)[..., None]).astype(x.dtype),)
    # 1/T can be beyond the range of the dtype: mantissas are multiplied, exponents added, and joined at the end
    p, p_exponent = jnp.frexp(p.astype(dy.dtype))
    dy, dy_exponent = jnp.frexp(dy)
    product = p * (dy / math.ldexp(temperature, -exponent))[..., None]
    exponents = p_exponent + dy_exponent[..., None] - exponent
    half = exponents // 2
    return (jnp.ldexp(jnp.ldexp(product, half), exponents - half).astype(x.dtype),)


_logsumexp.defvjp(lambda x, temperature: (_logsumexp(x, temperature), x), _logsumexp_backward)


def logsumexp(
    x: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    keepdims: bool = False,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`csoftmax.logsumexp` with a gradient.

    Parameters
    ----------
    x, axis, temperature, where
        As in `softmax`; a row with nothing left gives -inf.
    keepdims : bool, default False
        Keep `axis` with length 1.

    Returns
    -------
    jax.Array
        Logarithms of the sums, of the dtype of x and its shape without `axis`.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> cj.logsumexp(jnp.array([[0.0, 0.0], [1.0, 1.0]])).round(4)
    Array([0.6931, 1.6931], dtype=float32)
    """
    x, axis = _check_floating("x", x, axis)
    x = _leave_out(x, _check_mask(where, x))
    result = _logsumexp(jnp.moveaxis(x, axis, -1), _check_number("temperature", temperature, 0))
    return jnp.expand_dims(result, axis) if check_flag("keepdims", keepdims) else result


def entmax(x: ArrayLike, alpha: float = 1.5, axis: SupportsIndex = -1, *, where: ArrayLike | None = None) -> jax.Array:
    """`csoftmax.entmax` with a gradient.

    Parameters
    ----------
    x : jax.Array
        float16, bfloat16, float32 or float64.
    alpha : float >= 1, default 1.5
        1 is softmax, 2 is sparsemax. It can be neither traced nor differentiated.
    axis : int, default -1
        The axis that sums to 1.
    where : jax.Array of bool, broadcastable to x, optional
        Mask, as in `softmax`.

    Returns
    -------
    jax.Array
        Probabilities, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> cj.entmax(jnp.array([3.0, 0.0]))
    Array([1., 0.], dtype=float32)
    """
    x, axis = _check_floating("x", x, axis)
    alpha = _check_number("alpha", alpha, 1, open_low=False)
    return softmax(x, axis, where=where) if alpha == 1 else _apply_masked(_entmax, x, axis, alpha, where, 0.0)


def sparsemax(x: ArrayLike, axis: SupportsIndex = -1, *, where: ArrayLike | None = None) -> jax.Array:
    """`csoftmax.sparsemax` with a gradient: `entmax` with alpha = 2.

    Parameters
    ----------
    x, axis, where
        As in `entmax`.

    Returns
    -------
    jax.Array
        Probabilities, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> cj.sparsemax(jnp.array([0.5, 0.0]))
    Array([0.75, 0.25], dtype=float32)
    """
    return entmax(x, 2.0, axis, where=where)


def _is_equal(labels: jax.Array, value: int) -> jax.Array:
    """Whether each label has the value, which may be outside the range of their dtype."""
    bounds = jnp.iinfo(labels.dtype)
    return labels == value if bounds.min <= value <= bounds.max else jnp.zeros(labels.shape, bool)


def _compute_losses(logits: jax.Array, labels: jax.Array, options: Any, gradient: bool) -> list[jax.Array]:
    """Loss of each row and, if `gradient`, its gradient."""
    results = [jax.ShapeDtypeStruct(labels.shape, jnp.promote_types(logits.dtype, jnp.float32))]
    results += [_like(logits)] * gradient
    return _call_kernel("cross_entropy", results, logits, labels, **dict(options))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _loss(logits: jax.Array, labels: jax.Array, options: Any) -> jax.Array:
    return _compute_losses(logits, labels, options, gradient=False)[0]


def _loss_forward(logits: jax.Array, labels: jax.Array, options: Any) -> tuple[jax.Array, jax.Array]:
    loss, gradient = _compute_losses(logits, labels, options, gradient=True)
    return loss, gradient


def _loss_backward(options: Any, gradient: jax.Array, upstream: jax.Array) -> tuple[jax.Array, None]:
    return (gradient * upstream[..., None]).astype(gradient.dtype), None


_loss.defvjp(_loss_forward, _loss_backward)


def _check_weights(sample_weight: ArrayLike, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Weights of rows in the dtype of losses; numbers below 0 and infinity, which may be traced, become NaN."""
    given = jnp.asarray(sample_weight)
    if not jnp.issubdtype(given.dtype, jnp.floating) and not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(f"sample_weight must hold real numbers, got {given.dtype}")
    try:
        weights = jnp.broadcast_to(given, shape).astype(jnp.promote_types(dtype, jnp.float32))
    except ValueError:
        raise ValueError(f"sample_weight has shape {given.shape}, which does not broadcast to {shape}") from None
    return jax.lax.stop_gradient(jnp.where((weights >= 0) & (weights < jnp.inf), weights, jnp.nan))


def _scale_weights(weights: jax.Array) -> jax.Array:
    """Weights of a mean times a power of two, which cancels there, where their sum or their products leave the range.

    XLA on the CPU takes subnormal numbers for 0, so that they are read by their bits, multiples of the smallest one.
    """
    limits = jnp.finfo(weights.dtype)
    half = 2.0 ** (limits.maxexp // 2)
    bits = jnp.maximum(jax.lax.bitcast_convert_type(weights, f"int{limits.bits}"), 0)  # -0.0 has negative ones
    multiples = bits.astype(weights.dtype) * (half * float(limits.smallest_subnormal))
    enlarged = jnp.where(bits < 1 << limits.nmant, multiples, weights * half)
    is_large, is_small = (weights > half).any(), ~(weights >= 1 / half).any()
    return jnp.where(is_large, weights / half, jnp.where(is_small, enlarged, weights))


def cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> jax.Array:
    """`csoftmax.cross_entropy` of labels, with a gradient that is computed with the loss in one pass.

    Parameters
    ----------
    logits : jax.Array of shape (..., K)
        float16, bfloat16, float32 or float64.
    labels : jax.Array of int
        Class indices, of the shape of logits without `axis`. A label that is not a class raises JAX's runtime error.
    axis : int, default -1
        The axis of the classes.
    sample_weight : jax.Array, broadcastable to labels, optional
        Weights of rows, at least 0. No gradient flows to them. A row of weight 0 contributes 0, whatever it holds; a
        negative or infinite weight makes the loss NaN.
    label_smoothing, ignore_index, z_loss, temperature
        As in `csoftmax.cross_entropy`; they cannot be traced.
    reduction : {"mean", "sum", "none"}
        The mean is over the rows that are not ignored, weighted.

    Returns
    -------
    jax.Array
        The loss, float64 for float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> jax.grad(cj.cross_entropy)(jnp.array([[2.0, 0.0]]), jnp.array([0])).round(4)
    Array([[-0.1192,  0.1192]], dtype=float32)
    """
    z, position = _check_floating("logits", logits, axis)
    t = jnp.asarray(labels)
    expected = z.shape[:position] + z.shape[position + 1 :]
    if t.shape != expected or not jnp.issubdtype(t.dtype, jnp.integer):
        hint = f"; of one-hot rows pass labels.argmax({axis})" if t.shape == z.shape else ""
        raise TypeError(f"labels must be integers of shape {expected}, got {t.dtype} of shape {t.shape}{hint}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    ignore_index = check_integer("ignore_index", ignore_index)
    options = (
        ("label_smoothing", np.float64(_check_number("label_smoothing", label_smoothing, 0, 1, open_low=False))),
        ("temperature", np.float64(_check_number("temperature", temperature, 0))),
        ("z_loss", np.float64(_check_number("z_loss", z_loss, 0, open_low=False))),
    )
    ignored = _is_equal(t, ignore_index)
    classes = z.shape[position]
    bad = t < 0
    if classes <= jnp.iinfo(t.dtype).max:
        bad |= t >= classes
    # Labels outside the classes are replaced by one that the kernel refuses: the cast could turn them into a class.
    weights = None if sample_weight is None else _check_weights(sample_weight, expected, z.dtype)
    if weights is not None:  # whatever the weights of ignored rows are
        weights = jnp.where(ignored, 0, weights)
        weights = _scale_weights(weights) if reduction == "mean" else weights
    absent = ignored if weights is None else ignored | (~bad & (weights == 0))
    indices = jnp.where(absent, -1, jnp.where(bad, classes, t.astype(jnp.int32)))
    losses = _loss(jnp.moveaxis(z, position, -1), indices, options)
    kept = ~ignored
    if weights is not None:
        kept = weights
        losses *= weights
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    total = kept.sum()
    # a mean over no row is NaN with a gradient of 0, which the derivative of a division by 0 would not be
    return jnp.where(total == 0, jnp.nan, losses.sum() / jnp.where(total == 0, 1, total)).astype(losses.dtype)


def _call_chain(name: str, results: Any, *arrays: jax.Array) -> Any:
    """Call a kernel of the CRF; vmap calls it once for each element, because parameters have no batch axes."""
    call = jax.ffi.ffi_call(f"csoftmax_{name}", results, vmap_method="sequential")
    return call(*arrays, threads=np.int64(binding.get_threads()))


@jax.custom_vjp
def _crf(
    emissions: jax.Array, labels: jax.Array, transitions: jax.Array, start: jax.Array, end: jax.Array, kept: jax.Array
) -> jax.Array:
    result = jax.ShapeDtypeStruct(labels.shape[:-1], jnp.promote_types(emissions.dtype, jnp.float32))
    return _call_chain("crf", result, emissions, labels, transitions, start, end, kept)  # type: ignore[no-any-return]


def _crf_backward(given: tuple[jax.Array, ...], upstream: jax.Array) -> tuple[jax.Array | None, ...]:
    emissions, _, transitions, start, end, _ = given
    results = [_like(emissions), _like(transitions), _like(start), _like(end)]
    grads = _call_chain("crf_vjp", results, *given, upstream)
    return grads[0], None, grads[1], grads[2], grads[3], None


_crf.defvjp(lambda *given: (_crf(*given), given), _crf_backward)


def crf_loss(
    emissions: ArrayLike,
    tags: ArrayLike,
    transitions: ArrayLike,
    *,
    start: ArrayLike | None = None,
    end: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none", "token_mean"] = "mean",
) -> jax.Array:
    """`csoftmax.crf_loss` of labels, with gradients with respect to emissions and parameters.

    Parameters
    ----------
    emissions : jax.Array of shape (..., T, L)
        float16, bfloat16, float32 or float64.
    tags : jax.Array of int
        Labels of shape (..., T). A label that is no tag raises JAX's runtime error.
    transitions : jax.Array of shape (L, L)
        float32 or float64; other dtypes are converted to float32.
    start, end : jax.Array of shape (L,), optional
        Scores of the first and the last tag.
    mask : jax.Array of bool of shape (..., T), optional
        Positions where it is False are taken out of the chain.
    ignore_index : int, default -100
        A label equal to it is unknown. It cannot be traced.
    reduction : {"mean", "sum", "none", "token_mean"}
        As in `csoftmax.crf_loss`.

    Returns
    -------
    jax.Array
        The loss, float64 for float64 emissions, else float32.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> emissions = jnp.array([[[2.0, 0.0], [0.0, 1.0]]])
    >>> jax.grad(cj.crf_loss)(emissions, jnp.array([[0, 1]]), jnp.zeros((2, 2))).round(4)
    Array([[[-0.1192,  0.1192],
            [ 0.2689, -0.2689]]], dtype=float32)
    """
    x, _ = _check_floating("emissions", emissions, -1)
    if x.ndim < 2:
        raise ValueError(f"emissions has shape {x.shape}; allowed are (..., positions, tags)")
    labels, n = jnp.asarray(tags), x.shape[-1]
    if labels.shape != x.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"tags must be integers of shape {x.shape[:-1]}, got {labels.dtype} of shape {labels.shape}")
    if reduction not in ("mean", "sum", "none", "token_mean"):
        raise ValueError(f'reduction must be "mean", "sum", "none" or "token_mean", got {reduction!r}')
    ends = (jnp.zeros(n, jnp.float32) if p is None else p for p in (start, end))
    parameters = [_check_parameter("transitions", transitions, (n, n))]
    parameters += [_check_parameter(name, p, (n,)) for name, p in zip(("start", "end"), ends, strict=True)]
    kept = jnp.ones(labels.shape, bool) if mask is None else jnp.broadcast_to(jnp.asarray(mask), labels.shape)
    if kept.dtype != bool:
        raise TypeError(f"mask must be boolean, got {kept.dtype}")
    unknown = _is_equal(labels, check_integer("ignore_index", ignore_index))
    bad = (labels < 0) | (labels >= n) if n <= jnp.iinfo(labels.dtype).max else labels < 0
    indices = jnp.where(unknown, -1, jnp.where(bad, n, labels.astype(jnp.int32)))
    losses = _crf(x, indices, *parameters, kept.astype(jnp.int32))
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    count = kept.sum() if reduction == "token_mean" else kept.any(-1).sum()
    return jnp.where(count == 0, jnp.nan, losses.sum() / jnp.maximum(count, 1)).astype(losses.dtype)


def _check_parameter(name: str, value: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """A parameter of the CRF as float32 or float64."""
    array = jnp.asarray(value)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; the emissions have {shape[0]} tags, so {shape} is allowed")
    return array if array.dtype == jnp.float64 else array.astype(jnp.float32)
