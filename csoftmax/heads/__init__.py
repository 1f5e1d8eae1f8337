"""Parts of layers with very many classes: output layers, exact top-k through int8, the optimiser of rows."""

from .._learn.adaptive.head import AdaptiveSoftmax
from .._learn.head_result import HeadResult
from .._learn.int8_head import Int8Head, int8_topk
from .._learn.int8_intervals import Interval, TopKInterval
from .._ops.row_optimizer import RowOptimizer

__all__ = ["AdaptiveSoftmax", "HeadResult", "Int8Head", "Interval", "RowOptimizer", "TopKInterval", "int8_topk"]

for _member in (AdaptiveSoftmax, HeadResult, Int8Head, Interval, RowOptimizer, TopKInterval, int8_topk):
    _member.__module__ = __name__
