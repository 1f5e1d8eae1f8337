from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None
_Reduction = Literal["none", "sum", "mean"]

class TopK(NamedTuple):
    values: Any
    indices: Any

class EntmaxLossResult(NamedTuple):
    loss: Any
    grad: Any

def topk(
    x: ArrayLike,
    k: SupportsIndex,
    axis: _Axis = -1,
    *,
    largest: bool = True,
    sorted: bool = True,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> TopK: ...
def topk_softmax(
    x: ArrayLike,
    k: SupportsIndex,
    axis: _Axis = -1,
    *,
    temperature: float = 1.0,
    normalize: Literal["topk", "full"] = "topk",
    sorted: bool = True,
    where: ArrayLike | None = None,
    out: tuple[NDArray[Any], NDArray[np.int64]] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> TopK: ...
def to_csr(topk: TopK | tuple[ArrayLike, ArrayLike], n_classes: SupportsIndex) -> Any: ...
def sparsemax(
    x: ArrayLike,
    axis: _Axis = -1,
    *,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any: ...
def entmax(
    x: ArrayLike,
    alpha: float = 1.5,
    axis: _Axis = -1,
    *,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any: ...
def entmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    alpha: float = 1.5,
    axis: _Axis = -1,
    *,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any: ...
def entmax_loss(
    x: ArrayLike,
    target: ArrayLike,
    alpha: float = 1.5,
    *,
    axis: _Axis = -1,
    reduction: _Reduction = "mean",
    where: ArrayLike | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any: ...
def entmax_loss_with_grad(
    x: ArrayLike,
    target: ArrayLike,
    alpha: float = 1.5,
    *,
    axis: _Axis = -1,
    reduction: _Reduction = "mean",
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> EntmaxLossResult: ...
def sample(
    logits: ArrayLike,
    *,
    axis: _Axis = -1,
    temperature: ArrayLike = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    min_p: ArrayLike | None = None,
    size: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
    rng: int | np.random.Generator | None = None,
    where: ArrayLike | None = None,
    out: NDArray[np.int64] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any: ...
