"""The heads by name."""

from __future__ import annotations

import copy
from typing import Any

from ..._arguments.numbers import check_choice
from ..clustered_head import ClusteredHead
from ..int8_head import Int8Head
from .adaptive import AdaptiveHead
from .hashed import HashedHead
from .heads import FullHead, LinearHead
from .hierarchical import HierarchicalHead
from .parameters import check_parameters, name_head
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


def take_layer(estimator: Any, features: int) -> Any:
    """The head of a copy of the layer that is the parameter: training changes parameters in place."""
    given, k = estimator.head, len(estimator.classes_)
    kind = type(given).__name__
    if given.n_features != features or given.n_classes != k:
        raise ValueError(
            f"head ({kind}) has {given.n_features} features and {given.n_classes} classes, but the data have "
            f"{features} and {k}"
        )
    if given.frozen is not None and given.frozen.any():
        raise ValueError(f"head has frozen classes ({kind}): call freeze of the model instead")
    return HEADS[name_head(given)].take(copy.deepcopy(given), estimator)


def continue_head(estimator: Any) -> None:
    """Let steps train the head that the parameter names: the one that is there, or one of its parameters.

    A linear layer can go on with the other loss; the parameters of the other heads do not become one another's.
    """
    if isinstance(estimator.head, str) and type(estimator.head_) is HEADS.get(estimator.head):
        return
    check_parameters(estimator)
    kind = HEADS[name_head(estimator.head)]
    if type(estimator.head_) is kind:
        return
    estimator.head_ = kind.begin_again(estimator.head_)
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
