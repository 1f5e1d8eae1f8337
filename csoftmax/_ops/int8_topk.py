"""The exact top-k of a linear layer in one call."""

from __future__ import annotations

from typing import Any, SupportsIndex

from numpy.typing import ArrayLike

from .._arguments.foreign import accept_foreign
from .._arguments.numbers import check_num_threads
from .._arguments.places import check_kernels, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from . import int8
from .topk import TopK

__all__ = ["int8_topk"]


@accept_foreign
def _run(
    x: Any, w: Any, k: Any, *, bias: Any, where: Any, exclude: Any, device: str | None, num_threads: Any
) -> tuple[Any, Any]:
    if place_of(device, x).on_cuda:
        check_kernels("int8_topk")
    if device is not None:
        x, w, bias, where = to_host(x, w, bias, where)
    num_threads = check_num_threads(num_threads)
    weights, dtype = int8.check_weights(w)
    # without the leading bits of codes, which would be made for a single query
    layer = int8.quantise(weights, dtype, int8.read_bias(bias, len(weights)), 1, num_threads)
    found, batch = int8.find_best(layer, x, k, where, exclude, num_threads=num_threads)
    shape = (*batch, found.values.shape[1])
    return int8.round_scores(found.values, weights.dtype).reshape(shape), found.indices.reshape(shape)


@hand_over_recorded
def int8_topk(
    x: ArrayLike,
    w: ArrayLike,
    k: SupportsIndex,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    exclude: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> TopK:
    """Return the k largest scores ``x @ w.T + bias`` of each row, exactly, through codes that are made for this call.

    Making codes takes longer than one query does: keep a `csoftmax.heads.Int8Head` for more.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features.
    w : array_like of shape (K, D)
        Weights.
    k : int
        Number of classes, 0 to K.
    bias, where, exclude
        As in `csoftmax.heads.Int8Head` and its `topk`.
    device, num_threads
        As in `softmax`. There are no kernels for CUDA: CuPy arrays need device="cpu".

    Returns
    -------
    TopK
        values and indices (..., k), as from `csoftmax.heads.Int8Head.topk`.

    Raises
    ------
    TypeError, ValueError, IndexError, DeviceError
        As from `csoftmax.heads.Int8Head` and its `topk`.

    Examples
    --------
    >>> import csoftmax
    >>> csoftmax.int8_topk([[2.0, 1.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], 2)
    TopK(values=array([[3., 2.]]), indices=array([[2, 0]]))
    """
    return TopK(
        *_run(
            x, w, k, bias=bias, where=where, exclude=exclude, device=device, num_threads=num_threads,
        )
    )  # fmt: skip
