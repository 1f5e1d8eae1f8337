from typing import Any, Literal, NamedTuple, SupportsIndex

from numpy.typing import ArrayLike, NDArray

_Reduction = Literal["none", "sum", "mean"]

class CrossEntropyResult(NamedTuple):
    loss: Any
    grad: Any

class LinearCrossEntropyResult(NamedTuple):
    loss: Any
    grad_x: Any
    grad_w: Any
    grad_bias: Any

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
    temperature: float = 1.0,
    reduction: _Reduction = "mean",
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any: ...
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
    temperature: float = 1.0,
    reduction: _Reduction = "mean",
    upstream: ArrayLike = 1.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> CrossEntropyResult: ...
def linear_cross_entropy(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    chunk_bytes: SupportsIndex | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: _Reduction = "mean",
    filter_eps: float = 0.0,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any: ...
def linear_cross_entropy_with_grad(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    chunk_bytes: SupportsIndex | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: _Reduction = "mean",
    upstream: ArrayLike = 1.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    filter_eps: float = 0.0,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> LinearCrossEntropyResult: ...
def check_labels(target: ArrayLike, n_classes: int, ignore_index: SupportsIndex = -100) -> None: ...
