"""Parts of layers with very many classes: the optimiser of rows, and the adaptive softmax."""

from .._learn.adaptive.head import AdaptiveSoftmax
from .._ops.row_optimizer import RowOptimizer

__all__ = ["AdaptiveSoftmax", "RowOptimizer"]

AdaptiveSoftmax.__module__ = RowOptimizer.__module__ = __name__
