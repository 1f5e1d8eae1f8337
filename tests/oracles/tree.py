"""Hierarchical softmax by its definition: paths in Python, sums in mpmath."""

import mpmath
import numpy as np


def paths(tree):
    """The path to each class: (node, side) from the root."""
    found, waiting = [None] * tree.n_classes, [(tree.root, ())] if tree.n_classes > 1 else []
    if tree.n_classes == 1:
        found[0] = ()
    while waiting:
        node, path = waiting.pop()
        for side in (0, 1):
            below = int(tree.children[node, side])
            if below < 0:
                found[~below] = (*path, (node, side))
            else:
                waiting.append((below, (*path, (node, side))))
    return found


def softplus(u):
    return mpmath.log1p(mpmath.exp(u)) if u < 0 else u + mpmath.log1p(mpmath.exp(-u))


def loss_of_path(path, logits):
    """The exact sum of softplus(-s u) of the nodes' logits, which are floats."""
    with mpmath.workdps(60):
        return mpmath.fsum(softplus(mpmath.mpf(float(logits[n])) * (-1 if side else 1)) for n, side in path)


def logits_of(head, x):
    """The kernel's logits of all nodes, (N, K - 1): 16 lanes, each a chain of fma, added in a fixed tree."""
    dtype, theta = head.dtype, head.theta
    wide = np.longdouble if dtype == np.float64 else np.float64
    padded = -(-x.shape[1] // 16) * 16
    a, b = np.zeros((len(x), padded), dtype), np.zeros((len(theta), padded), dtype)
    a[:, : x.shape[1]], b[:, : x.shape[1]] = x, theta
    lanes = np.zeros((len(x), len(theta), 16), dtype)
    for k in range(0, padded, 16):
        product = a[:, None, k : k + 16].astype(wide) * b[None, :, k : k + 16].astype(wide)
        lanes = (lanes.astype(wide) + product).astype(dtype)
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0] + (0 if head.bias is None else head.bias)
