"""The loss of a conditional random field for JAX."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._arguments.numbers import check_integer
from .._cpu import binding
from .calls import check_floating, is_equal, like


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
    results = [like(emissions), like(transitions), like(start), like(end)]
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
    x, _ = check_floating("emissions", emissions, -1)
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
    unknown = is_equal(labels, check_integer("ignore_index", ignore_index))
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
