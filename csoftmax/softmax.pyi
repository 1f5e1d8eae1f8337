from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

_F = TypeVar("_F", bound=np.floating[Any])
_Axis = int | tuple[int, ...] | None

@overload
def softmax(
    x: NDArray[_F],
    axis: _Axis = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[_F] | None = None,
    device: str | None = None,
    num_threads: int | None = None,
) -> NDArray[_F]: ...
@overload
def softmax(
    x: ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: int | None = None,
) -> Any: ...
@overload
def log_softmax(
    x: NDArray[_F],
    axis: _Axis = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[_F] | None = None,
    device: str | None = None,
    num_threads: int | None = None,
) -> NDArray[_F]: ...
@overload
def log_softmax(
    x: ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: int | None = None,
) -> Any: ...
def logsumexp(
    x: ArrayLike,
    axis: _Axis = -1,
    *,
    keepdims: bool = False,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    device: str | None = None,
    num_threads: int | None = None,
) -> Any: ...
@overload
def softmax_vjp(
    dy: NDArray[_F],
    y: NDArray[_F],
    axis: _Axis = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[_F] | None = None,
    device: str | None = None,
    num_threads: int | None = None,
) -> NDArray[_F]: ...
@overload
def softmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: int | None = None,
) -> Any: ...
@overload
def log_softmax_vjp(
    dy: NDArray[_F],
    y: NDArray[_F],
    axis: _Axis = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[_F] | None = None,
    device: str | None = None,
    num_threads: int | None = None,
) -> NDArray[_F]: ...
@overload
def log_softmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: int | None = None,
) -> Any: ...
