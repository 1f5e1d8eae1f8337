from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["effective_number", "inverse_frequency"]

NORMALIZE: tuple[str, ...]

def inverse_frequency(
    y: ArrayLike, n_classes: int | None = None, normalize: Literal["n_over_kn", "n_over_n", "max_over_n"] = "n_over_kn"
) -> NDArray[np.float64]: ...
def effective_number(y: ArrayLike, beta: float = 0.999, n_classes: int | None = None) -> NDArray[np.float64]: ...
