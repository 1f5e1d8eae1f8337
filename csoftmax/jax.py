"""Differentiable functions for JAX: XLA calls the kernels itself (jax.ffi), under jit, grad and vmap; on the CPU only.

Results have the bits of the functions of the same names in `csoftmax`, but what XLA computes: the mean and the sum of
losses, and the products with upstream gradients.  How many threads calls use is decided when they are traced.
`linear_cross_entropy` is not here: its products are NumPy's there, and XLA's would be others.
"""

import functools
import operator

import numpy as np

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError(f"csoftmax.jax needs JAX >= 0.5 ({error}); install it with: pip install jax") from error

from ._cpu import binding

__all__ = ["cross_entropy", "entmax", "log_softmax", "logsumexp", "softmax", "sparsemax"]

for _name, _target in binding.XLA_TARGETS.items():
    jax.ffi.register_ffi_target(f"csoftmax_{_name}", _target, platform="cpu")


def _call(name, results, *arrays, **attributes):
    """Rows along the last axis; vmap adds axes in front, to all arrays."""
    call = jax.ffi.ffi_call(f"csoftmax_{name}", results, vmap_method="broadcast_all")
    return call(*arrays, threads=np.int64(binding.get_threads()), **attributes)


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _floating(name, x, axis):
    """The array, and axis counted from the front."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype.itemsize < 2:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.ndim == 0:
        raise ValueError(f"{name} must have at least one axis")
    axis = operator.index(axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis must be from {-x.ndim} to {x.ndim - 1}, got {axis}")
    return x, axis % x.ndim


def _number(name, value, low, high, *, open_low=True):
    """A float: JAX compiles it in, so that it cannot be traced."""
    try:
        value = float(value)
    except (TypeError, jax.errors.ConcretizationTypeError):
        raise TypeError(f"{name} must be a number that is known when the function is traced, got {value!r}") from None
    if not (low < value if open_low else low <= value) or not value <= high:
        raise ValueError(f"{name} must be in {'(' if open_low else '['}{low}, {high}], got {value}")
    return value


def _family(name):
    """A function of rows and its gradient, from dy and y."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
    def rows(x, temperature):
        return _call(name, _like(x), x, temperature=np.float64(temperature))

    def forward(x, temperature):
        y = rows(x, temperature)
        return y, y

    def backward(temperature, y, dy):
        return (_call(f"{name}_vjp", _like(y), dy, y, temperature=np.float64(temperature)),)

    rows.defvjp(forward, backward)
    return rows


_softmax, _log_softmax = _family("softmax"), _family("log_softmax")


def _along(rows, x, axis):
    """rows(x) with the axis at the end."""
    return jnp.moveaxis(rows(jnp.moveaxis(x, axis, -1)), -1, axis)


def softmax(x, axis=-1, *, temperature=1.0):
    """`csoftmax.softmax` with a gradient.

    Parameters
    ----------
    x : jax.Array
        float16, bfloat16, float32 or float64.
    axis : int, default -1
        The axis that sums to 1.
    temperature : float > 0, default 1.0
        T, not traced.

    Returns
    -------
    jax.Array
        Of the shape and dtype of x.

    Examples
    --------
    >>> import jax
    >>> import csoftmax.jax as cj
    >>> jax.grad(lambda x: cj.softmax(x)[1])(jax.numpy.array([0.0, 1.0]))
    Array([-0.19661194,  0.19661193], dtype=float32)
    """
    x, axis = _floating("x", x, axis)
    t = _number("temperature", temperature, 0, np.finfo(np.float64).max)
    return _along(lambda rows: _softmax(rows, t), x, axis)


def log_softmax(x, axis=-1, *, temperature=1.0):
    """`csoftmax.log_softmax` with a gradient; parameters as in `softmax`."""
    x, axis = _floating("x", x, axis)
    t = _number("temperature", temperature, 0, np.finfo(np.float64).max)
    return _along(lambda rows: _log_softmax(rows, t), x, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _logsumexp(x, temperature):
    result = jax.ShapeDtypeStruct(x.shape[:-1], x.dtype)
    return _call("logsumexp", result, x, temperature=np.float64(temperature))


def _logsumexp_backward(temperature, x, dy):
    p = _softmax(x, temperature)
    return ((p * (dy / temperature)[..., None]).astype(x.dtype),)


_logsumexp.defvjp(lambda x, temperature: (_logsumexp(x, temperature), x), _logsumexp_backward)


def logsumexp(x, axis=-1, *, temperature=1.0):
    """`csoftmax.logsumexp` with a gradient; parameters as in `softmax`, the axis is gone from the result."""
    x, axis = _floating("x", x, axis)
    t = _number("temperature", temperature, 0, np.finfo(np.float64).max)
    return _logsumexp(jnp.moveaxis(x, axis, -1), t)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _entmax(x, alpha):
    return _call("entmax", _like(x), x, alpha=np.float64(alpha))


def _entmax_forward(x, alpha):
    y = _entmax(x, alpha)
    return y, y


def _entmax_backward(alpha, y, dy):
    return (_call("entmax_vjp", _like(y), dy, y, alpha=np.float64(alpha)),)


_entmax.defvjp(_entmax_forward, _entmax_backward)


def entmax(x, alpha=1.5, axis=-1):
    """`csoftmax.entmax` with a gradient.

    Parameters
    ----------
    x : jax.Array
        float16, bfloat16, float32 or float64.
    alpha : float > 1, default 1.5
        2 is sparsemax; not traced, and not differentiated.
    axis : int, default -1
        The axis that sums to 1.

    Returns
    -------
    jax.Array
        Of the shape and dtype of x.
    """
    x, axis = _floating("x", x, axis)
    alpha = _number("alpha", alpha, 1, np.finfo(np.float64).max)
    return _along(lambda rows: _entmax(rows, alpha), x, axis)


def sparsemax(x, axis=-1):
    """`csoftmax.sparsemax` with a gradient; parameters as in `entmax`."""
    return entmax(x, 2.0, axis)


def _equal(labels, value):
    """Where labels have it; a value that their dtype does not have is equal to none of them."""
    bounds = jnp.iinfo(labels.dtype)
    return labels == value if bounds.min <= value <= bounds.max else jnp.zeros(labels.shape, bool)


def _loss_rows(logits, labels, options, gradient):
    """Of each row: the loss, and its gradient."""
    results = [jax.ShapeDtypeStruct(labels.shape, jnp.promote_types(logits.dtype, jnp.float32))]
    results += [_like(logits)] * gradient
    return _call("cross_entropy", results, logits, labels, **dict(options))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _loss(logits, labels, options):
    return _loss_rows(logits, labels, options, gradient=False)[0]


def _loss_backward(options, gradient, upstream):
    return (gradient * upstream[..., None]).astype(gradient.dtype), None


_loss.defvjp(lambda logits, labels, options: tuple(_loss_rows(logits, labels, options, gradient=True)), _loss_backward)


def cross_entropy(
    logits, labels, axis=-1, *, label_smoothing=0.0, ignore_index=-100, z_loss=0.0, temperature=1.0, reduction="mean"
):
    """`csoftmax.cross_entropy` of labels, with a gradient that is computed with the loss in one pass.

    Parameters
    ----------
    logits : jax.Array of shape (..., K)
        float16, bfloat16, float32 or float64.
    labels : jax.Array of int
        Of the shape of logits without `axis`. A label that is no class raises jax's runtime error.
    axis : int, default -1
        Of the classes.
    label_smoothing, ignore_index, z_loss, temperature
        As in `csoftmax.cross_entropy`; not traced.
    reduction : {"mean", "sum", "none"}
        The mean is over the rows that are not ignored.

    Returns
    -------
    jax.Array
        The loss, float64 for float64 logits, else float32.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> jax.grad(cj.cross_entropy)(jnp.array([[2.0, 0.0]]), jnp.array([0])).round(4)
    Array([[-0.1192,  0.1192]], dtype=float32)
    """
    logits, axis = _floating("logits", logits, axis)
    labels = jnp.asarray(labels)
    expected = logits.shape[:axis] + logits.shape[axis + 1 :]
    if labels.shape != expected or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers of shape {expected}, got {labels.dtype} of shape {labels.shape}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    if not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an int, got {ignore_index!r}")
    most = np.finfo(np.float64).max
    options = (
        ("label_smoothing", np.float64(_number("label_smoothing", label_smoothing, 0, 1, open_low=False))),
        ("temperature", np.float64(_number("temperature", temperature, 0, most))),
        ("z_loss", np.float64(_number("z_loss", z_loss, 0, most, open_low=False))),
    )
    ignored = _equal(labels, ignore_index)
    classes = logits.shape[axis]
    bad = labels < 0
    if classes <= jnp.iinfo(labels.dtype).max:
        bad |= labels >= classes
    # what is no class stays none, though a cast may have turned it into one
    labels = jnp.where(ignored, -1, jnp.where(bad, classes, labels.astype(jnp.int32)))
    losses = _loss(jnp.moveaxis(logits, axis, -1), labels, options)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / (~ignored).sum()
