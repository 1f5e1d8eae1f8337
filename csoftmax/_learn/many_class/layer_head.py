"""What heads of `ManyClassRegression` have in common that hold a layer of `csoftmax.heads`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class LayerHead:
    """A head whose parameters are those of its `layer`."""

    layer: Any

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        """The arrays that training changes."""
        return self.layer.parameters

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return self.layer.n_classes

    @property
    def n_features(self) -> int:
        """The number of features."""
        return self.layer.n_features

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self.layer.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the layer."""
        return self.layer.nbytes
