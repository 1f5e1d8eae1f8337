import os
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["SoftmaxRegression"]

SOLVERS: tuple[str, ...]
INITS: tuple[str, ...]
CLASS_WEIGHTS: tuple[str, ...]
TOLERANCE: dict[np.dtype[Any], float]
SMALL_DATA: int

class SoftmaxRegression:
    coef_: NDArray[Any]
    intercept_: NDArray[Any]
    classes_: NDArray[Any]
    n_iter_: int
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    history_: dict[str, list[float]]
    def __init__(
        self,
        *,
        solver: Literal["lbfgs", "adamw"] = "lbfgs",
        penalty_l2: float = 1e-4,
        fit_intercept: bool = True,
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        batch_size: int = 256,
        max_epochs: int = 200,
        learning_rate: float = 1e-2,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 20,
        batch_norm: bool = False,
        init: Literal["xavier", "zeros"] = "xavier",
        warm_start: bool = False,
        callbacks: Any = None,
        random_state: Any = None,
        device: str | None = None,
        num_threads: int | None = None,
        tol: float | None = None,
        output_learning_rate: float | None = None,
    ) -> None: ...
    def get_params(self, deep: bool = True) -> dict[str, Any]: ...
    def set_params(self, **params: Any) -> Self: ...
    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self: ...
    def fit_batches(
        self, batches: Iterable[Any] | Callable[[], Iterable[Any]], classes: ArrayLike, *, epochs: int | None = None
    ) -> Self: ...
    def partial_fit(
        self, X: Any, y: ArrayLike, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self: ...
    def add_classes(self, classes: ArrayLike) -> Self: ...
    def freeze(self, classes: ArrayLike | None = None) -> Self: ...
    def decision_function(self, X: Any) -> NDArray[Any]: ...
    def predict(self, X: Any) -> NDArray[Any]: ...
    def predict_proba(self, X: Any) -> NDArray[np.float64]: ...
    def predict_log_proba(self, X: Any) -> NDArray[np.float64]: ...
    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float: ...
    def save(self, path: str | os.PathLike[str]) -> None: ...
    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self: ...
