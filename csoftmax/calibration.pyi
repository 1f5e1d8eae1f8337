from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DirichletCalibration",
    "IsotonicCalibration",
    "MatrixScaling",
    "PlattScaling",
    "TemperatureScaling",
    "VectorScaling",
]

INVERSE_TEMPERATURES: tuple[float, float]
NO_LOSS: float
FLOOR: float

class _Calibrator:
    n_classes_: int
    n_iter_: int
    converged_: bool
    history_: list[dict[str, float]]
    def get_params(self, deep: bool = True) -> dict[str, Any]: ...
    def set_params(self, **params: Any) -> Self: ...
    def fit_transform(self, logits: ArrayLike, y: ArrayLike) -> NDArray[np.float64]: ...

class TemperatureScaling(_Calibrator):
    temperature_: float
    max_iter: int
    def __init__(self, *, max_iter: int = 100) -> None: ...
    def fit(self, logits: ArrayLike, y: ArrayLike) -> Self: ...
    def transform(self, logits: ArrayLike) -> NDArray[np.float64]: ...

class _Affine(_Calibrator):
    temperature_: float
    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]
    def transform(self, logits: ArrayLike) -> NDArray[np.float64]: ...

class VectorScaling(_Affine):
    penalty_diagonal: float
    penalty_intercept: float
    max_iter: int
    tol: float
    def __init__(
        self,
        *,
        penalty_diagonal: float = 1.0,
        penalty_intercept: float = 0.1,
        max_iter: int = 1000,
        tol: float = 1e-7,
    ) -> None: ...
    def fit(self, logits: ArrayLike, y: ArrayLike) -> Self: ...

class MatrixScaling(_Affine):
    penalty_off_diagonal: float
    penalty_diagonal: float
    penalty_intercept: float
    max_iter: int
    tol: float
    def __init__(
        self,
        *,
        penalty_off_diagonal: float = 10.0,
        penalty_diagonal: float = 1.0,
        penalty_intercept: float = 0.1,
        max_iter: int = 1000,
        tol: float = 1e-7,
    ) -> None: ...
    def fit(self, logits: ArrayLike, y: ArrayLike) -> Self: ...

class DirichletCalibration(MatrixScaling): ...

class IsotonicCalibration(_Calibrator):
    regression_: Any
    def fit(self, logits: ArrayLike, y: ArrayLike) -> Self: ...
    def transform(self, logits: ArrayLike) -> NDArray[np.float64]: ...

class PlattScaling(_Calibrator):
    calibrator_: Any
    def fit(self, logits: ArrayLike, y: ArrayLike) -> Self: ...
    def transform(self, logits: ArrayLike) -> NDArray[np.float64]: ...
