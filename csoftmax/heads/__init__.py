"""Parts of layers with very many classes: the optimiser of rows."""

from .._ops.row_optimizer import RowOptimizer

__all__ = ["RowOptimizer"]

RowOptimizer.__module__ = __name__
