"""Parts of layers with very many classes: the optimiser of rows, trees and the hierarchical softmax."""

from .._learn.head_result import HeadResult
from .._learn.hierarchical.head import HierarchicalSoftmax
from .._learn.hierarchical.tree import Tree
from .._ops.row_optimizer import RowOptimizer

__all__ = ["HeadResult", "HierarchicalSoftmax", "RowOptimizer", "Tree"]

for _class in (HeadResult, HierarchicalSoftmax, RowOptimizer, Tree):
    _class.__module__ = __name__
