"""Problems of ``bench`` for the output layers of `csoftmax.heads`.

Losses are measured with their gradients, int8 and hashed layers by their predictions. NumPy's time is that of the
product with all classes, which these layers avoid, and for hashes that of gathers from a table; PyTorch has an
adaptive softmax of its own, and takes the top-k of the product.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ..heads import AdaptiveSoftmax, HashedSoftmax, HierarchicalSoftmax, Int8Head, Tree
from ..samplers import UnigramSampler
from .cases import LENGTHS, Case
from .problems import Array, LeftOutError, Problem, as_tensor, check_many_class_case
from .timing import Contender

MAX_SCORES = 2**27  # of the product that NumPy computes


class HeadProblem(Problem):
    """Features of some rows, for a layer of K classes with Zipf's frequencies."""

    is_comparable = False  # tests/commands/test_bench_sampled.py compares the results

    def __init__(self, case: Case, fresh: bool) -> None:
        lengths = LENGTHS[case.op]
        if len(case.shape) != len(lengths):
            raise LeftOutError(f"{case.op} needs shapes {'x'.join(map(str.upper, lengths))}")
        check_many_class_case(case)
        self.rows, self.features, self.classes, *self.others = case.shape
        self.rng = np.random.default_rng(0)
        self.counts = 1 / np.arange(1, self.classes + 1)
        x: Array = self.rng.standard_normal((self.rows, self.features), dtype=np.float32)
        super().__init__(case, fresh, x, x.copy())

    def fill(self, parameters: dict[str, Array]) -> None:
        """Draw the parameters of a layer."""
        for parameter in parameters.values():
            parameter[...] = 0.1 * self.rng.standard_normal(parameter.shape, dtype=np.float32)

    def draw_labels(self) -> Array:
        """Labels with the frequencies of the classes."""
        return UnigramSampler(self.counts, power=1.0).draw(self.rows, rng=self.rng)

    def draw_weights(self) -> Array:
        """Weights of a layer with a row for each class."""
        return 0.1 * self.rng.standard_normal((self.classes, self.features), dtype=np.float32)

    def prepare_numpy(self) -> Contender:
        """Return the product with all classes, into an existing array."""
        if self.rows * self.classes > MAX_SCORES:
            raise LeftOutError(f"a product of more than {MAX_SCORES:,} elements")
        w, scores = self.draw_weights(), np.empty((self.rows, self.classes), np.float32)
        return Contender("numpy", "f(x, w.T, z)", {"f": np.matmul, "x": self.x, "w": w, "z": scores})

    def prepare_torch(self, torch: Any) -> Contender:
        """Refuse: PyTorch has no such layer."""
        raise LeftOutError(f"has no layer like {self.case.op}")


class TreeProblem(HeadProblem):
    """The loss and gradients of a hierarchical softmax, shape (rows, features, classes)."""

    def __init__(self, case: Case, fresh: bool) -> None:
        super().__init__(case, fresh)
        self.layer = HierarchicalSoftmax(self.features, Tree.huffman(self.counts))
        self.fill(self.layer.parameters)
        self.target = self.draw_labels()

    def prepare_csoftmax(self) -> Contender:
        """Return csoftmax's statement."""
        return Contender("csoftmax", "f(x, t)", {"f": self.layer.loss_with_grad, "x": self.x, "t": self.target})


class AdaptiveProblem(HeadProblem):
    """The loss and gradients of an adaptive softmax with a shortlist and two clusters, of the same shape."""

    def __init__(self, case: Case, fresh: bool) -> None:
        super().__init__(case, fresh)
        self.cutoffs = [self.classes // 50, self.classes // 5]
        if self.cutoffs[0] < 1:
            raise LeftOutError("adaptive needs at least 50 classes")
        self.layer = AdaptiveSoftmax(self.features, self.classes, cutoffs=self.cutoffs, rng=0)
        self.fill(self.layer.parameters)
        self.target = self.draw_labels()

    def prepare_csoftmax(self) -> Contender:
        """Return csoftmax's statement."""
        return Contender("csoftmax", "f(x, t)", {"f": self.layer.loss_with_grad, "x": self.x, "t": self.target})

    def prepare_torch(self, torch: Any) -> Contender:
        """Return a forward and backward step of PyTorch's layer with the same parameters."""
        if self.features < 16:
            raise LeftOutError("needs 16 features for two clusters")
        layer = torch.nn.AdaptiveLogSoftmaxWithLoss(self.features, self.classes, self.cutoffs, head_bias=True)
        given = {name: as_tensor(torch, a) for name, a in self.layer.parameters.items()}
        with torch.no_grad():
            layer.head.weight.copy_(given["head"])
            layer.head.bias.copy_(given["head_bias"])
            for c, tail in enumerate(layer.tail):
                tail[0].weight.copy_(given[f"projection{c}"])
                tail[1].weight.copy_(given[f"tail{c}"])
        x = torch.tensor(self.x, requires_grad=True)
        target = torch.from_numpy(self.target)

        def step() -> Any:
            x.grad = None
            layer.zero_grad()
            layer(x, target).loss.backward()
            return x.grad

        return Contender("torch", "step()", {"step": step})


class Int8Problem(HeadProblem):
    """The exact top-k of a linear layer, shape (rows, features, classes, k)."""

    def __init__(self, case: Case, fresh: bool) -> None:
        super().__init__(case, fresh)
        self.w, self.k = self.draw_weights(), self.others[0]

    def prepare_csoftmax(self) -> Contender:
        """Return csoftmax's statement."""
        names = {"f": Int8Head(self.w, copy=False).topk, "x": self.x, "k": self.k}
        return Contender("csoftmax", "f(x, k)", names)

    def draw_weights(self) -> Array:
        """The weights of this layer, for every contender."""
        return self.w if hasattr(self, "w") else super().draw_weights()

    def prepare_torch(self, torch: Any) -> Contender:
        """Return the top-k of the product."""
        x, w = (as_tensor(torch, a) for a in (self.x, self.w))
        return Contender("torch", "f(x @ w.T, k)", {"f": torch.topk, "x": x, "w": w, "k": self.k}, torch.inference_mode)


class HashProblem(HeadProblem):
    """The scores of all classes from those of buckets, shape (rows, features, classes, buckets, hashes)."""

    def __init__(self, case: Case, fresh: bool) -> None:
        super().__init__(case, fresh)
        buckets, hashes = self.others
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few hashes: only time counts here
            self.layer = HashedSoftmax(self.features, self.classes, n_buckets=buckets, n_hashes=hashes, rng=0)
        self.fill(self.layer.parameters)

    def prepare_csoftmax(self) -> Contender:
        """Return csoftmax's statement."""
        return Contender("csoftmax", "f(x)", {"f": self.layer.scores, "x": self.x})

    def prepare_numpy(self) -> Contender:
        """Return the mean of what each class has in a table of its buckets, without the product and the softmax."""
        buckets, hashes = self.others
        logits = self.x @ self.layer.parameters["w"].T + self.layer.parameters["bias"]
        logits = logits.reshape(self.rows, hashes, buckets)
        shifted = logits - logits.max(axis=2, keepdims=True)
        tables = shifted - np.log(np.exp(shifted).sum(axis=2, keepdims=True))
        places = np.ascontiguousarray(self.layer.buckets(np.arange(self.classes)).T)

        def gather() -> Array:
            total = np.take(tables[:, 0], places[0], axis=1)
            for r in range(1, hashes):
                total += np.take(tables[:, r], places[r], axis=1)
            total /= np.float32(hashes)
            return total

        return Contender("numpy", "gather()", {"gather": gather})


HEADS: dict[str, type[HeadProblem]] = {
    "hs": TreeProblem,
    "adaptive": AdaptiveProblem,
    "int8": Int8Problem,
    "mach": HashProblem,
}
