"""Cross-entropy of Dask collections, and its gradient."""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex

from .._ops import cross_entropy as whole
from .._ops.cross_entropy import CrossEntropyResult
from .losses import run_loss

__all__ = ["cross_entropy", "cross_entropy_with_grad"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    axis: _Axis = -1,
    weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: Any = 1.0,
    softcap: float | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> Any:
    """Cross-entropy of the softmax of logits and labels that are Dask collections, lazily.

    Parameters
    ----------
    logits : as x in `softmax`
        Of shape (..., K); in any chunks.
    target : dask.array.Array, dask.dataframe.Series, or array_like
        Labels as numbers, in the shape of the rows; or soft labels, in the shape of the logits.
    axis, device, num_threads, split_every
        As in `softmax`.
    weight, sample_weight, label_smoothing, ignore_index, z_loss, reduction
        As in `csoftmax.cross_entropy`; weights may be Dask collections.
    temperature, softcap
        As in `csoftmax.cross_entropy`; temperatures of rows may be a Dask collection. With these, or with `softcap`,
        the class axis is brought into one chunk.

    Returns
    -------
    dask.array.Array without axes, or of the shape of the rows with reduction "none"
        ``csoftmax.cross_entropy`` of the whole, equal in every bit for any chunks, tree and scheduler.

    Raises
    ------
    IndexError
        While the result is computed, if a label is neither a class nor `ignore_index`: the message has its value and
        its place among all rows or, where lengths of chunks are unknown, the number of its chunk, from 0, and its place
        in it.
    TypeError, ValueError
        As in `softmax`. Labels that are text are for estimators only.
    NotImplementedError
        On a GPU, for a mean or sum.

    Notes
    -----
    A sum over rows has the order of a tree over all rows that does not depend on the chunks; a task for each chunk
    makes the sums of the rows that it has (`csoftmax.distributed.Nodes`). Where lengths of chunks are unknown, they are
    found as part of the computation, so that ``compute_chunk_sizes()`` is not needed.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> logits, target = da.zeros((6, 4), chunks=(2, 4)), da.from_array([0, 1, 2, 3, 0, -100], chunks=2)
    >>> float(cd.cross_entropy(logits, target).compute())
    1.3862943611198906
    """
    options = {
        "weight": weight,
        "sample_weight": sample_weight,
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
        "z_loss": z_loss,
        "temperature": temperature,
        "softcap": softcap,
        "device": device,
        "num_threads": num_threads,
    }
    call = {"axis": axis, "reduction": reduction, "split_every": split_every}
    loss, _ = run_loss(whole.cross_entropy, logits, target, **call, **options)
    return loss


def cross_entropy_with_grad(
    logits: Any,
    target: Any,
    *,
    axis: _Axis = -1,
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
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> CrossEntropyResult:
    """Cross-entropy of Dask collections, and its gradient with respect to the logits, lazily.

    Parameters
    ----------
    logits, target, axis, weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, softcap, \
reduction, device, num_threads, split_every
        As in `cross_entropy`.
    upstream, clip_norm, clip_value
        As in `csoftmax.cross_entropy_with_grad`; `upstream` may be a Dask collection.

    Returns
    -------
    CrossEntropyResult
        `loss`, as from `cross_entropy`, and `grad`, in the chunks of the logits as `softmax` would give: both lazy, and
        equal in every bit to those of the whole. Compute them together, with ``dask.compute(*result)``.

    Raises
    ------
    IndexError, TypeError, ValueError, NotImplementedError
        As in `cross_entropy`.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> loss, grad = dask.compute(*cd.cross_entropy_with_grad(da.zeros((1, 2)), da.from_array([1])))
    >>> grad
    array([[ 0.5, -0.5]])
    """
    options = {
        "weight": weight,
        "sample_weight": sample_weight,
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
        "z_loss": z_loss,
        "temperature": temperature,
        "softcap": softcap,
        "upstream": upstream,
        "clip_norm": clip_norm,
        "clip_value": clip_value,
        "device": device,
        "num_threads": num_threads,
    }
    call = {"axis": axis, "reduction": reduction, "split_every": split_every}
    return CrossEntropyResult(*run_loss(whole.cross_entropy_with_grad, logits, target, **call, **options))
