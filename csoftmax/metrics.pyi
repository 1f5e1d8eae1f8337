from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._learn.report import Report

__all__ = [
    "ReliabilityCurve",
    "brier_score",
    "classwise_calibration_error",
    "evaluate",
    "expected_calibration_error",
    "maximum_calibration_error",
    "plot_reliability",
    "reliability_curve",
]

STRATEGIES: tuple[str, ...]
_Strategy = Literal["uniform", "quantile"]

class ReliabilityCurve(NamedTuple):
    accuracy: NDArray[np.float64]
    confidence: NDArray[np.float64]
    counts: NDArray[np.int64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    edges: NDArray[np.float64]

def expected_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: _Strategy = "uniform",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float: ...
def maximum_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: _Strategy = "uniform",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float: ...
def classwise_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: _Strategy = "uniform",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float: ...
def brier_score(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    scale_by_half: bool | Literal["auto"] = "auto",
) -> float: ...
def reliability_curve(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: _Strategy = "uniform",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    confidence_level: float = 0.95,
) -> ReliabilityCurve: ...
def plot_reliability(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    ax: Any = None,
    name: str | None = None,
    n_bins: int = 15,
    strategy: _Strategy = "uniform",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    confidence_level: float = 0.95,
) -> Any: ...
def evaluate(model: Any, X: Any, y: ArrayLike, *, calibrator: Any = None, n_bins: int = 15) -> Report: ...
