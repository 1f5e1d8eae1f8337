"""Problems of ``bench`` for very many classes: draws from a distribution, and the sampled softmax with its gradients.

A peer solves the same problem with its own means: NumPy draws by bisection of the cumulative sum, and its time for the
sampled softmax is that of the three products alone, the bound of every implementation; PyTorch draws by multinomial,
and computes the loss from gathered rows with sparse gradients.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import csoftmax
from csoftmax.samplers import UnigramSampler

from .cases import Case
from .problems import Array, LeftOutError, Problem, as_tensor, check_many_class_case
from .timing import Contender


class AliasProblem(Problem):
    """Draws with replacement from K classes with Zipf's frequencies, shape (classes, draws)."""

    is_comparable = False

    def __init__(self, case: Case, fresh: bool) -> None:
        if len(case.shape) != 2:
            raise LeftOutError("alias needs shapes CLASSESxDRAWS")
        check_many_class_case(case)
        self.classes, self.draws = case.shape
        self.sampler = UnigramSampler(1 / np.arange(1, self.classes + 1))
        super().__init__(case, fresh, np.empty(self.draws, np.int64), np.empty(self.draws, np.int64))

    def prepare_csoftmax(self) -> Contender:
        """Return csoftmax's statement."""
        names = {"f": self.sampler.draw, "n": self.draws, "rng": np.random.default_rng(0)}
        return Contender("csoftmax", "f(n, rng=rng)", names)

    def prepare_numpy(self) -> Contender:
        """Return the bisection of the cumulative sum."""
        names = {"f": np.searchsorted, "sums": np.cumsum(self.sampler.probability()), "n": self.draws}
        return Contender("numpy", "f(sums, random(n))", names | {"random": np.random.default_rng(0).random})

    def prepare_torch(self, torch: Any) -> Contender:
        """Return PyTorch's draws, of at most 2**24 classes."""
        if self.classes > 2**24:
            raise LeftOutError("draws from at most 2**24 classes")
        names = {"f": torch.multinomial, "p": as_tensor(torch, self.sampler.probability()), "n": self.draws}
        return Contender("torch", "f(p, n, replacement=True)", names, torch.inference_mode)


class SampledProblem(Problem):
    """A batch, a layer of K classes and negatives that the batch shares, shape (rows, features, negatives, classes)."""

    is_comparable = False  # tests/commands/test_bench_sampled.py compares the gradients

    def __init__(self, case: Case, fresh: bool) -> None:
        if len(case.shape) != 4:
            raise LeftOutError("sampled needs shapes ROWSxFEATURESxNEGATIVESxCLASSES")
        check_many_class_case(case)
        rows, features, size, classes = case.shape
        rng = np.random.default_rng(0)
        x: Array = rng.standard_normal((rows, features), dtype=np.float32)
        self.w: Array = 0.1 * rng.standard_normal((classes, features), dtype=np.float32)
        self.bias = np.zeros(classes, np.float32)
        sampler = UnigramSampler(1 / np.arange(1, classes + 1))
        self.target = sampler.draw(rows, rng=rng)
        self.negatives = sampler.sample(size, target=self.target, rng=rng)
        super().__init__(case, fresh, x, x.copy())

    def prepare_csoftmax(self) -> Contender:
        """Return csoftmax's statement."""
        names = {"f": csoftmax.sampled_softmax_loss_with_grad, "x": self.x, "w": self.w, "t": self.target}
        return Contender("csoftmax", "f(x, w, t, s, bias=b)", names | {"s": self.negatives, "b": self.bias})

    def prepare_numpy(self) -> Contender:
        """Return the three products, into existing arrays."""
        w = self.w[self.negatives.ids]
        logits = np.empty((len(self.x), len(w)), np.float32)
        names = {"f": np.matmul, "x": self.x, "w": w, "z": logits, "dx": np.empty_like(self.x), "dw": np.empty_like(w)}
        return Contender("numpy", "f(x, w.T, z), f(z, w, dx), f(z.T, x, dw)", names)

    def prepare_torch(self, torch: Any) -> Contender:
        """Return a forward and backward step with sparse gradients, as it is usually written by hand."""
        x = torch.tensor(self.x, requires_grad=True)
        w = torch.tensor(self.w, requires_grad=True)
        b = torch.tensor(self.bias[:, None], requires_grad=True)
        target, ids = torch.from_numpy(self.target), torch.from_numpy(self.negatives.ids)
        log_q, own_log_q = (
            torch.from_numpy(v.astype(np.float32)) for v in (self.negatives.log_q, self.negatives.target_log_q)
        )
        hits = target[:, None] == ids
        label = torch.zeros(len(target), dtype=torch.int64)
        embedding, loss = torch.nn.functional.embedding, torch.nn.functional.cross_entropy

        def step() -> Any:
            x.grad = w.grad = b.grad = None
            rows = embedding(torch.cat((target, ids)), w, sparse=True)
            biases = embedding(torch.cat((target, ids)), b, sparse=True)[:, 0]
            n = len(target)
            own = (x * rows[:n]).sum(1) + biases[:n] - own_log_q
            others = x @ rows[n:].T + (biases[n:] - log_q)
            others = others.masked_fill(hits, -torch.inf)
            loss(torch.cat((own[:, None], others), 1), label).backward()
            return w.grad.coalesce(), b.grad.coalesce()

        return Contender("torch", "step()", {"step": step})
