"""The output layer that is trained on sampled classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._ops.in_batch import in_batch_softmax_loss_with_grad
from ..._ops.rows import RowGradient
from ..._ops.sampled import sampled_softmax_loss_with_grad
from ...samplers import ClusterSampler, LogUniformSampler, UniformSampler, UnigramSampler
from ..tree_sampler import TreeSampler
from .counts import smooth
from .heads import LinearHead, Step, as_dense
from .inputs import spread_gradient
from .parameters import IN_BATCH

if TYPE_CHECKING:
    from .optimizers import Optimizers

OF_ROWS = ClusterSampler, TreeSampler  # samplers whose draws depend on the features of a row


class SampledHead(LinearHead):
    """Trained by softmax over the classes of the minibatch and a sample of others."""

    def check(self, estimator: Any) -> None:
        """Refuse a sampler of other classes or, for its clusters, of other features."""
        sampler = estimator.sampler
        if isinstance(sampler, str):
            return
        if sampler.n_classes != self.n_classes:
            raise ValueError(f"sampler has {sampler.n_classes} classes, but the model has {self.n_classes}")
        if isinstance(sampler, OF_ROWS) and sampler.n_features != self.w.shape[1]:
            raise ValueError(f"sampler has {sampler.n_features} features, but the model has {self.w.shape[1]}")

    def start(self, estimator: Any, rng: np.random.Generator, *, grows: bool) -> None:
        """Read the parameters; grows: whether counts of classes are added while training, which changes the sampler."""
        self.spec, self.rng, self.grows = estimator.sampler, rng, grows
        self.n_sampled, self.power = int(estimator.n_sampled), float(estimator.power)
        self.correction: Any = estimator.correction
        self.counts: NDArray[np.float64] | None = getattr(estimator, "class_count_", None)
        self.sampler: Any = None
        # sums of counts: now (None: of no step yet), and when the sampler was made
        self.total: float | None = None
        self.made_at = 0.0
        if not isinstance(self.spec, str):
            self.sampler = self.spec

    def _choose_sampler(self, total: float) -> Any:
        """The sampler, made anew where counts have doubled since it was made: its log q are exact at any time."""
        if self.sampler is not None and not (self.grows and total > 2 * self.made_at > 0):
            return self.sampler
        self.made_at = total
        if self.spec == "uniform":
            self.sampler = UniformSampler(self.n_classes)
            return self.sampler
        assert self.counts is not None
        if self.spec == "loguniform":
            self.sampler = LogUniformSampler(self.n_classes, order=np.argsort(-self.counts, kind="stable"))
        else:
            self.sampler = UnigramSampler(self.counts, power=self.power, smoothing=smooth(self.counts))
        return self.sampler

    def step(
        self, x: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None, optimizers: Optimizers
    ) -> Step:
        """Train on one minibatch, with the cross-entropy over sampled classes."""
        x, total = as_dense(x), self.total
        if total is None:  # the counts have the rows of this step
            total = 0.0 if self.counts is None else float(self.counts.sum())
        elif self.grows and self.counts is not None:
            total += float(len(y) if sample_weight is None else sample_weight.sum())
        before = self.sampler, self.made_at
        try:
            take_step = self._step_in_batch if self.spec == IN_BATCH else self._step
            step = take_step(x, y, sample_weight, optimizers, total)
        except BaseException:  # a step that fails is not counted
            self.sampler, self.made_at = before
            raise
        self.total = total
        return step

    def _step(
        self, x: NDArray[Any], y: NDArray[np.intp], sample_weight: Any, optimizers: Optimizers, total: float
    ) -> Step:
        """The step with a sampler."""
        sampler = self._choose_sampler(total)
        at = (x,) if isinstance(sampler, OF_ROWS) else ()
        negatives = sampler.sample(*at, self.n_sampled, target=y, rng=self.rng)
        result = sampled_softmax_loss_with_grad(
            x,
            self.w,
            y,
            negatives,
            bias=self.bias,
            correction=self.correction,
            # with independent draws the expected loss has its minimum at the true model only if hits stay
            accidental_hits="keep" if negatives.scheme == "iid" and self.correction == "ranking" else "mask",
            sample_weight=sample_weight,
            num_threads=optimizers.num_threads,
        )
        self.update(optimizers, result.grad_w, result.grad_bias)
        return Step(float(result.loss), result.grad_x)

    def _step_in_batch(
        self, x: NDArray[Any], y: NDArray[np.intp], sample_weight: Any, optimizers: Optimizers, total: float
    ) -> Step:
        """The other labels of the minibatch are the sample; the bias is one column more of the weights."""
        assert self.counts is not None
        n = len(y)
        expected = max(1, n - 1) if self.correction == "partition" else 1  # else any factor cancels
        result = in_batch_softmax_loss_with_grad(
            np.concatenate([x, np.ones((n, 1), x.dtype)], axis=1),
            np.concatenate([self.w[y], self.bias[y, None]], axis=1),
            ids=y,
            log_q=np.log(expected * self.counts[y] / total),
            correction=self.correction,
            sample_weight=sample_weight,
            num_threads=optimizers.num_threads,
        )
        rows, values = spread_gradient(y[:, None], result.grad_y)
        self.update(optimizers, RowGradient(rows, values[:, :-1]), RowGradient(rows, values[:, -1]))
        return Step(float(result.loss), result.grad_x[:, :-1])
