"""Parts of layers with very many classes: output layers, trees, hashes, exact top-k through int8, an optimiser."""

from .._learn.adaptive.head import AdaptiveSoftmax
from .._learn.clustered_head import ClusteredHead, ClusteredTopK
from .._learn.clustered_intervals import ClusteredInterval
from .._learn.hashed.bloom import BloomSoftmax
from .._learn.hashed.head import HashedSoftmax
from .._learn.head_result import HeadResult
from .._learn.hierarchical.head import HierarchicalSoftmax
from .._learn.hierarchical.tree import Tree
from .._learn.int8_head import Int8Head
from .._learn.int8_intervals import Interval, TopKInterval
from .._ops.hashed import hash_buckets
from .._ops.int8_topk import int8_topk
from .._ops.row_optimizer import RowOptimizer

__all__ = [
    "AdaptiveSoftmax",
    "BloomSoftmax",
    "ClusteredHead",
    "ClusteredInterval",
    "ClusteredTopK",
    "HashedSoftmax",
    "HeadResult",
    "HierarchicalSoftmax",
    "Int8Head",
    "Interval",
    "RowOptimizer",
    "TopKInterval",
    "Tree",
    "hash_buckets",
    "int8_topk",
]

for _name in set(__all__) - {"int8_topk"}:  # which is a function of the package itself
    globals()[_name].__module__ = __name__
