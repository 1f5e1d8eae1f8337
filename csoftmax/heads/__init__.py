"""Parts of layers with very many classes: the optimiser of rows, and the adaptive softmax."""

from .._learn.adaptive.head import AdaptiveSoftmax
from .._learn.head_result import HeadResult
from .._ops.row_optimizer import RowOptimizer

__all__ = ["AdaptiveSoftmax", "HeadResult", "RowOptimizer"]

for _class in (AdaptiveSoftmax, HeadResult, RowOptimizer):
    _class.__module__ = __name__
