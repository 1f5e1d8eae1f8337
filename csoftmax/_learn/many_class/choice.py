"""The heads by name."""

from __future__ import annotations

from typing import Any

from ..._arguments.numbers import check_choice
from ..clustered_head import ClusteredHead
from ..int8_head import Int8Head
from .adaptive import AdaptiveHead
from .hashed import HashedHead
from .heads import FullHead, LinearHead
from .hierarchical import HierarchicalHead
from .parameters import check_parameters
from .sampled import SampledHead

HEADS: dict[str, Any] = {
    "sampled": SampledHead,
    "full": FullHead,
    "hierarchical": HierarchicalHead,
    "adaptive": AdaptiveHead,
    "hashed": HashedHead,
}


def find_name(head: Any) -> str:
    """The name of a head that is there."""
    return next(name for name, kind in HEADS.items() if type(head) is kind)


def continue_head(estimator: Any) -> None:
    """Let steps train the head that the parameter names: the one that is there, or one of its parameters.

    A linear layer can go on with the other loss; the parameters of the other heads do not become one another's.
    """
    if isinstance(estimator.head, str) and type(estimator.head_) is HEADS.get(estimator.head):
        return
    check_parameters(estimator)
    estimator.head_ = HEADS[estimator.head].begin_again(estimator.head_)
    estimator.__dict__.pop("_trainer", None)


def make_serving(head: Any, kind: str, num_threads: Any) -> Any:
    """A copy of the one matrix of classes and features that serving needs; heads without it are refused."""
    check_choice("kind", kind, ("int8", "clustered"))
    if not isinstance(head, LinearHead):
        raise ValueError(
            f'head is "{find_name(head)}", which has no matrix with a row for each class: serving is for "sampled" '
            'and "full"'
        )
    if kind == "clustered":
        return ClusteredHead(head.w, head.bias, rng=0, num_threads=num_threads)
    return Int8Head(head.w, head.bias, num_threads=num_threads)
