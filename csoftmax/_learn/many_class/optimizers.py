"""The optimisers of a training."""

from __future__ import annotations

from typing import Any

from ..._arguments.numbers import check_num_threads
from ..._ops.row_optimizer import RowOptimizer


class Optimizers:
    """The optimisers of a training: weights and embeddings decay, biases do not."""

    def __init__(self, estimator: Any) -> None:
        """Read the parameters of the estimator."""
        self.num_threads = check_num_threads(estimator.num_threads)
        kind, rate = estimator.optimizer, float(estimator.learning_rate)
        self.weights = RowOptimizer(kind, rate, penalty_l2=estimator.penalty_l2, num_threads=self.num_threads)
        self.biases = RowOptimizer(kind, rate, num_threads=self.num_threads)

    def set_learning_rate(self, rate: float) -> None:
        """Use this learning rate from now on."""
        self.weights.learning_rate = self.biases.learning_rate = rate
