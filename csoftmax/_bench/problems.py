"""Losses in bench: forward and gradient of cross-entropy, of logits or of a linear layer."""

import numpy as np

import csoftmax

from .timing import Contender

LENGTHS = {
    "cross_entropy": ("rows", "classes"),
    "linear_cross_entropy": ("rows", "features", "classes"),
}


class Problem:
    """Logits or features, weights of the layer, labels and options of a case."""

    def __init__(self, case, dtype):
        rng = np.random.default_rng(0)
        rows, classes = case.shape[0], case.shape[-1]
        self.linear = case.op == "linear_cross_entropy"
        self.x = rng.standard_normal(case.shape[:2] if self.linear else case.shape, dtype=dtype)
        self.w = rng.standard_normal((classes, case.shape[1]), dtype=dtype) if self.linear else None
        self.soft = case.kind == "soft"
        self.target = rng.random((rows, classes), dtype=dtype) if self.soft else rng.integers(0, classes, rows)
        if self.soft:
            self.target /= self.target.sum(axis=1, keepdims=True)
        self.options = {}
        if case.kind == "weights+smoothing":
            self.options = {"weight": rng.random(classes, dtype=dtype), "label_smoothing": 0.1}


def ours(problem):
    loss = problem.special
    f = csoftmax.linear_cross_entropy_with_grad if loss.linear else csoftmax.cross_entropy_with_grad
    names = {"f": f, "x": loss.x, "w": loss.w, "t": loss.target, "more": loss.options, "out": problem.out}
    if loss.linear:
        return Contender("csoftmax", "f(x, w, t, **more).grad_x", names)
    return Contender("csoftmax", f"f(x, t{'' if problem.fresh else ', out=out'}, **more).grad", names)


def torchs(torch, problem, fused=False):
    """Forward and backward; PyTorch makes the gradient in new memory."""
    loss = problem.special
    x = torch.tensor(loss.x, requires_grad=True)
    w = torch.tensor(loss.w, requires_grad=True) if loss.linear else None
    target = torch.from_numpy(loss.target)
    options = {k: torch.from_numpy(v) if k == "weight" else v for k, v in loss.options.items()}
    functional = torch.nn.functional

    def step():
        x.grad = None
        if loss.linear:
            w.grad = None
        if fused:
            value = functional.linear_cross_entropy(x, w, target, **options)
        else:
            value = functional.cross_entropy(x @ w.T if loss.linear else x, target, **options)
        value.backward()
        return x.grad

    return Contender("torch_fused" if fused else "torch", "step()", {"step": step})
