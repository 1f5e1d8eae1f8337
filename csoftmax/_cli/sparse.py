"""Sparse softmax in bench: top-k against torch.topk, sparsemax and entmax against the package entmax (PyTorch)."""

import importlib

import numpy as np

import csoftmax

from .timing import Contender

LENGTHS = {
    "topk": ("rows", "classes", "k"),
    "topk_softmax": ("rows", "classes", "k"),
    "sparsemax": ("rows", "classes"),
    "entmax": ("rows", "classes"),
}
# Inputs that are not in random order; of top-k.
ORDERS = {
    "ascending": lambda x: np.sort(x, axis=-1),
    "descending": lambda x: -np.sort(-x, axis=-1),
    "constant": np.ones_like,
}


class Problem:
    """Logits of a case, and k."""

    def __init__(self, case, dtype):
        self.x = np.random.default_rng(0).standard_normal(case.shape[:2], dtype=dtype)
        if case.kind in ORDERS:
            self.x = np.ascontiguousarray(ORDERS[case.kind](self.x))
        self.k = case.shape[2] if len(case.shape) == 3 else None


def ours(problem):
    special, op = problem.special, problem.case.op
    names = {"f": getattr(csoftmax, op), "x": special.x, "k": special.k, "out": problem.out}
    if special.k is not None:
        return Contender("csoftmax", "f(x, k).values", names)
    return Contender("csoftmax", "f(x)" if problem.fresh else "f(x, out=out)", names)


def torchs(torch, problem):
    """PyTorch, where the results are in new memory."""
    x, op = torch.from_numpy(problem.special.x), problem.case.op
    names = {"x": x, "k": problem.special.k}
    if op == "topk":
        return Contender("torch", "f(x, k).values", names | {"f": torch.topk}, torch.inference_mode)
    if op == "topk_softmax":
        names |= {"f": lambda x, k: torch.softmax(torch.topk(x, k).values, -1)}
        return Contender("torch", "f(x, k)", names, torch.inference_mode)
    entmax = importlib.import_module("entmax")
    names |= {"f": entmax.sparsemax if op == "sparsemax" else entmax.entmax15}
    return Contender("torch", "f(x)", names, torch.inference_mode)
