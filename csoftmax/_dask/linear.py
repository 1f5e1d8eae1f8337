"""Cross-entropy of a linear layer of Dask collections, x in chunks of rows and w in chunks of classes.

The logits of some rows and the classes of one chunk of w exist at a time, as products of panels of 4096 classes. Their
losses and gradients are those of `cross_entropy_with_grad`; each chunk of these makes its part of the gradients of x, w
and the bias, which trees add up.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, SupportsIndex

import numpy as np

from .._arguments.layers import check_bias, check_layer
from .._arguments.numbers import check_count, check_non_negative
from .._arguments.places import as_float
from .._cpu import binding
from .._cpu.apart import multiply
from .._cpu.dtypes import compute_dtype
from .._cpu.linear import CHUNK_BYTES
from .._ops import cross_entropy as losses
from .._ops.linear_cross_entropy import LinearCrossEntropyResult
from .blocks import check_split_every, map_chunks, merge_chunks
from .collections import align_classes, as_lazy, give_frame, in_one_chunk, is_unknown, rechunk
from .losses import run_loss

__all__ = ["linear_cross_entropy", "linear_cross_entropy_with_grad"]

_FEATURES = -2  # the letter of the features


def _try_out(x: Any, w: Any, bias: Any) -> Any:
    """Check kinds and shapes; the dtype of x in native byte order."""
    tiny = np.ones((1,) * x.ndim, x.dtype), np.ones((1,) * w.ndim, w.dtype)
    (first, _), (second, _) = (as_float(name, a) for name, a in zip("xw", tiny, strict=True))
    check_layer(first, second)
    if x.shape[-1] != w.shape[1]:
        raise ValueError(f"x has shape {x.shape} and w {w.shape}; allowed are (..., D) and (K, D)")
    if bias is not None:
        check_bias(np.ones((1,) * bias.ndim, bias.dtype), 1)
        if bias.shape != (w.shape[0],):
            raise ValueError(f"bias has shape {bias.shape}; w has {w.shape[0]} rows, so ({w.shape[0]},) is allowed")
    return first.dtype


def _split_rows(x: Any, classes: int, itemsize: int, chunk_bytes: int) -> Any:
    """The features in chunks of rows whose logits, of the longest chunk of classes, have at most that many bytes."""
    if x.ndim == 1 or is_unknown(x.shape[0]):
        return x
    others = int(np.prod([max(c, default=1) for c in x.chunks[1:-1]], dtype=np.int64))
    limit = max(1, chunk_bytes // max(1, others * classes * itemsize))
    return rechunk(x, {0: tuple(n for c in x.chunks[0] for n in _pieces(c, limit))}) if max(x.chunks[0]) > limit else x


def _pieces(length: int, limit: int) -> list[int]:
    count = max(1, -(-length // limit))
    return [(i + 1) * length // count - i * length // count for i in range(count)]


def _run(
    x: Any, w: Any, target: Any, *, bias: Any, chunk_bytes: Any, filter_eps: Any, gradient: bool, split_every: Any,
    device: Any, **options: Any,
) -> LinearCrossEntropyResult:  # fmt: skip
    arity = check_split_every(split_every)
    limit = CHUNK_BYTES if chunk_bytes is None else check_count("chunk_bytes", chunk_bytes, 1, "an int or None")
    if check_non_negative("filter_eps", filter_eps):
        raise NotImplementedError("filter_eps is not implemented for collections of Dask: it must be 0")
    given = x
    x, w = (as_lazy(name, a) for name, a in (("x", x), ("w", w)))
    bias = None if bias is None else as_lazy("bias", bias)
    dtype = _try_out(x, w, bias)
    compute = compute_dtype(dtype)
    x, w = in_one_chunk(x, [x.ndim - 1]), align_classes(in_one_chunk(w, [1]), 0)
    before = x.chunks
    x = _split_rows(x, max(w.chunks[0], default=1), compute.itemsize, limit)
    rows, k = tuple(range(x.ndim - 1)), x.ndim - 1
    of_x, of_w = (x, (*rows, _FEATURES)), (w, (k, _FEATURES))
    arguments = [of_x, of_w]
    if bias is not None:
        arguments.append((rechunk(bias, {0: w.chunks[0]}), (k,)))
    logits = map_chunks(functools.partial(_logits, compute), (*rows, k), arguments, dtype=compute, like=x)
    function = losses.cross_entropy_with_grad if gradient else losses.cross_entropy
    options |= {"axis": -1, "device": device, "split_every": split_every}
    loss, grad = run_loss(function, logits, target, **options)
    loss = give_frame(given, loss) if loss.ndim else loss
    if not gradient:
        return LinearCrossEntropyResult(loss, None, None, None)
    if grad.chunks[k] != w.chunks[0]:  # one chunk, as some options need
        of_w = rechunk(w, {0: grad.chunks[k]}), (k, _FEATURES)
    of_grad = (grad, (*rows, k))
    add = functools.partial(merge_chunks, _add, split_every=arity)
    parts = map_chunks(_grad_x, (*rows, k), [of_grad, of_w], dtype=object, chunks={k: 1})
    width = x.shape[-1]
    cast = functools.partial(_cast, dtype)
    layout: dict[str, Any] = {"dtype": dtype, "like": x, "new": {_FEATURES: width}}
    grad_x = map_chunks(cast, (*rows, _FEATURES), [(add(parts, axis=k), rows)], **layout)
    grad_x = rechunk(grad_x, {0: before[0]}) if before != x.chunks else grad_x
    ones = dict.fromkeys(rows, 1)
    parts = map_chunks(_grad_w, (*rows, k), [of_grad, of_x], dtype=object, chunks=ones)
    of_parts = (add(parts, axis=rows) if rows else parts), (k,)
    grad_w = map_chunks(functools.partial(_cast_one, dtype, 0), (k, _FEATURES), [of_parts], **layout)
    grad_bias = None
    if bias is not None:
        grad_bias = map_chunks(functools.partial(_cast_one, dtype, 1), (k,), [of_parts], dtype=dtype, like=x)
    return LinearCrossEntropyResult(loss, give_frame(given, grad_x), grad_w, grad_bias)


def _logits(compute: Any, x: Any, w: Any, bias: Any = None) -> Any:
    rows = as_float("x", x)[0].astype(compute, copy=False).reshape(-1, x.shape[-1])
    w = as_float("w", w)[0]
    logits = binding.empty((len(rows), len(w)), compute)
    with np.errstate(all="ignore"):
        for panel in _panels(len(w)):
            multiply(rows, w[panel].astype(compute, copy=False).T, logits[:, panel])
        if bias is not None:
            logits += bias.astype(compute, copy=False)
    return logits.reshape(*x.shape[:-1], len(w))


def _panels(classes: int) -> list[slice]:
    """Classes from one multiple of 4096 to the next, so that products have the same shapes in any chunks."""
    size = binding.BLOCK_ELEMENTS
    return [slice(i, i + size) for i in range(0, classes, size)]


def _grad_x(grad: Any, w: Any) -> Any:
    rows = grad.reshape(-1, grad.shape[-1])
    result = np.zeros((len(rows), w.shape[1]), grad.dtype)
    w = as_float("w", w)[0]
    with np.errstate(all="ignore"):
        for panel in _panels(len(w)):
            result += multiply(rows[:, panel], w[panel].astype(grad.dtype, copy=False))
    return result.reshape(*grad.shape[:-1], w.shape[1])


def _grad_w(grad: Any, x: Any) -> tuple[Any, Any]:
    """The part of a chunk in the gradients of w and the bias."""
    rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    is_used = grads.any(axis=-1)  # rows that are left out may hold infinities
    if not is_used.all():
        rows, grads = rows[is_used], grads[is_used]
    rows = as_float("x", rows)[0].astype(grad.dtype, copy=False)
    result = np.empty((grads.shape[1], rows.shape[1]), grad.dtype)
    with np.errstate(all="ignore"):
        for panel in _panels(grads.shape[1]):
            multiply(grads[:, panel].T, rows, result[panel])
        return result, grads.sum(0, dtype=np.float64)


def _add(parts: list[Any]) -> Any:
    """The sum of parts, in their order."""
    with np.errstate(all="ignore"):
        if isinstance(parts[0], tuple):
            return tuple(map(_add, map(list, zip(*parts, strict=True))))
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        return total


def _cast(dtype: Any, a: Any) -> Any:
    with np.errstate(all="ignore"):
        return a.astype(dtype, copy=False)


def _cast_one(dtype: Any, number: int, parts: tuple[Any, Any]) -> Any:
    return _cast(dtype, parts[number])


def linear_cross_entropy(
    x: Any,
    w: Any,
    target: Any,
    *,
    bias: Any = None,
    chunk_bytes: SupportsIndex | None = None,
    weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: Any = 1.0,
    softcap: float | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    filter_eps: float = 0.0,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> Any:
    """Cross-entropy of the logits ``x @ w.T + bias`` of Dask collections, lazily.

    Parameters
    ----------
    x : dask.array.Array, dask.dataframe.DataFrame, or array_like of shape (..., D)
        Features, in chunks of rows; their axis is brought into one chunk.
    w : dask.array.Array or array_like of shape (K, D) and the dtype of x
        One row for each class, in chunks of classes, which are moved to end at multiples of 4096.
    target : as in `cross_entropy`
        Labels, or soft labels.
    bias : dask.array.Array or array_like of shape (K,), optional
        Added to the logits.
    chunk_bytes : int, optional
        Upper bound on the bytes of the logits of a task, which are those of at least 1 row; chunks of rows are split
        for it where their lengths are known. The default is 64 MiB.
    weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, softcap, reduction, device, \
num_threads, split_every
        As in `cross_entropy`.
    filter_eps : float, default 0.0
        Must be 0.

    Returns
    -------
    dask.array.Array without axes, or of the shape of the rows with reduction "none"
        ``csoftmax.linear_cross_entropy`` of the whole to rounding: the product of a chunk of x and 4096 classes has the
        bits that BLAS gives it. Its bits do not depend on the chunks of w.

    Raises
    ------
    IndexError, TypeError, ValueError, NotImplementedError
        As in `cross_entropy`.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> x, w = da.ones((4, 3), chunks=2), da.zeros((8, 3), chunks=4)
    >>> float(cd.linear_cross_entropy(x, w, da.from_array([0, 1, 2, 3], chunks=2)).compute())
    2.0794415416798357
    """
    return _run(
        x, w, target, bias=bias, chunk_bytes=chunk_bytes, weight=weight, sample_weight=sample_weight,
        label_smoothing=label_smoothing, ignore_index=ignore_index, z_loss=z_loss, temperature=temperature,
        softcap=softcap, reduction=reduction, filter_eps=filter_eps, device=device, num_threads=num_threads,
        split_every=split_every, gradient=False,
    ).loss  # fmt: skip


def linear_cross_entropy_with_grad(
    x: Any,
    w: Any,
    target: Any,
    *,
    bias: Any = None,
    chunk_bytes: SupportsIndex | None = None,
    weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: Any = 1.0,
    softcap: float | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: Any = 1.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    filter_eps: float = 0.0,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> LinearCrossEntropyResult:
    """Cross-entropy of the logits ``x @ w.T + bias`` of Dask collections, and its gradients, lazily.

    Parameters
    ----------
    x, w, target, bias, chunk_bytes, weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, \
softcap, reduction, filter_eps, device, num_threads, split_every
        As in `linear_cross_entropy`.
    upstream, clip_norm, clip_value
        As in `csoftmax.linear_cross_entropy_with_grad`; `upstream` may be a Dask collection.

    Returns
    -------
    LinearCrossEntropyResult
        ``csoftmax.linear_cross_entropy_with_grad`` of the whole to rounding: `loss`, `grad_x` in the chunks of x,
        `grad_w` and `grad_bias` in those of w; None without a bias. Parts of the gradients are added in the order of
        the chunks, so that their bits depend on chunks and `split_every`, not on the scheduler. Compute them together,
        with ``dask.compute(*result)``.

    Raises
    ------
    IndexError, TypeError, ValueError, NotImplementedError
        As in `cross_entropy`.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> x, w = da.from_array([[1.0, 0.0]]), da.zeros((2, 2))
    >>> cd.linear_cross_entropy_with_grad(x, w, da.from_array([1])).grad_w.compute()
    array([[ 0.5,  0. ],
           [-0.5,  0. ]])
    """
    return _run(
        x, w, target, bias=bias, chunk_bytes=chunk_bytes, weight=weight, sample_weight=sample_weight,
        label_smoothing=label_smoothing, ignore_index=ignore_index, z_loss=z_loss, temperature=temperature,
        softcap=softcap, reduction=reduction, upstream=upstream, clip_norm=clip_norm, clip_value=clip_value,
        filter_eps=filter_eps, device=device, num_threads=num_threads, split_every=split_every, gradient=True,
    )  # fmt: skip
