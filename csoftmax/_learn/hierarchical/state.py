"""The parts of a hierarchical softmax that belong together: tree, parameters, and what is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import store

if TYPE_CHECKING:
    from .tree import Tree

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
LARGE_COUNTS = 2.0**900  # with counts below it, no sum of them and no ratio with half a count overflows


class Parts(NamedTuple):
    """One consistent set: a call reads it once, and so works on one state whatever another thread replaces."""

    tree: Tree
    theta: NDArray[Any]  # (K - 1, D)
    bias: NDArray[Any] | None  # (K - 1,)
    frozen: NDArray[np.bool_] | None  # (K,), classes
    frozen_nodes: NDArray[np.uint8] | None  # (K - 1,), numbers that the kernels read
    num_threads: int | None

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return self.tree.n_classes

    @property
    def n_features(self) -> int:
        """The number of features."""
        return int(self.theta.shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self.theta.dtype

    def with_frozen(self, frozen: NDArray[np.bool_] | None) -> Parts:
        """The same layer with other frozen classes, and with the nodes that no class may change."""
        if frozen is None or not frozen.any():
            return self._replace(frozen=None, frozen_nodes=None)
        free = self.tree._side_sums((~frozen).astype(np.float64)).sum(axis=1)
        return self._replace(frozen=frozen, frozen_nodes=(free == 0).astype(np.uint8))


def make_parts(tree: Tree, theta: Any, bias: Any, frozen: Any = None, num_threads: Any = None) -> Parts:
    """The parts of arrays that have been checked."""
    return Parts(tree, theta, bias, None, None, num_threads).with_frozen(frozen)


def log_odds(of_one: NDArray[np.float64], of_zero: NDArray[np.float64], half: float = 0.5) -> NDArray[np.float64]:
    """log((one + half) / (zero + half)) of counts, also where the ratio overflows."""
    one, zero = of_one + half, of_zero + half
    if max(one.max(initial=0), zero.max(initial=0)) < LARGE_COUNTS:
        odds: NDArray[np.float64] = np.log(one / zero)
    else:
        odds = np.log(one) - np.log(zero)
    return odds


def check_layer(tree: Tree, arrays: dict[str, NDArray[Any]]) -> tuple[Any, Any, Any]:
    """theta, bias and frozen classes in a file, after every check."""
    nodes, theta, bias = tree.n_classes - 1, arrays.get("theta"), arrays.get("bias")
    store.need(theta is not None, "the array theta is missing")
    assert theta is not None
    store.need(
        theta.ndim == 2 and len(theta) == nodes and theta.shape[1] > 0 and theta.dtype in FLOATS,
        f"theta has shape {theta.shape}, dtype {theta.dtype}; the tree has {nodes} nodes",
    )
    if bias is not None:
        store.need(
            bias.shape == (nodes,) and bias.dtype == theta.dtype,
            f"bias has shape {bias.shape}, dtype {bias.dtype}; theta has {theta.shape}, {theta.dtype}",
        )
    frozen = arrays.get("frozen")
    if frozen is not None:
        store.need(frozen.shape == (tree.n_classes,), f"frozen has shape {frozen.shape}")
        frozen = frozen.astype(bool)
    return theta, bias, frozen


def refuse_others(arrays: dict[str, NDArray[Any]], allowed: tuple[str, ...]) -> None:
    """Refuse arrays in a file that it has no use for."""
    others = sorted(arrays.keys() - set(allowed))
    store.need(not others, f"there are arrays that do not belong to it: {others}")
