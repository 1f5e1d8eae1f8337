"""Checks of the parameters of `csoftmax.linear_model.ManyClassRegression`."""

from __future__ import annotations

import math
import numbers
from itertools import pairwise
from typing import Any

import numpy as np

from ..._arguments.numbers import check_num_threads
from ..._arguments.places import DeviceError, place_of
from ..._ops.row_optimizer import KINDS
from ..adaptive.head import AdaptiveSoftmax
from ..hashed.head import HashedSoftmax
from ..hierarchical.head import HierarchicalSoftmax
from ..hierarchical.tree import Tree
from ..messages import show
from ..parameters import (
    check_choice,
    check_number,
    check_seed,
    check_switches,
    list_callbacks,
    make_random_state,
)

HEADS = ("sampled", "full", "hierarchical", "adaptive", "hashed")
LAYERS: dict[str, type[Any]] = {
    "hierarchical": HierarchicalSoftmax,
    "adaptive": AdaptiveSoftmax,
    "hashed": HashedSoftmax,
}  # that the parameter head may be an object of
TREES = ("huffman", "balanced", "two_means")
IN_BATCH = "in_batch"
BY_COUNTS = ("unigram", "loguniform", IN_BATCH)  # samplers that need to know how frequent classes are
SAMPLERS = (*BY_COUNTS, "uniform")
CORRECTIONS = ("ranking", "partition", "none")
INIT_BIASES = ("log_prior", "zero")


def check_parameters(estimator: Any) -> None:
    """Refuse parameters that no training could use."""
    if not isinstance(estimator.head, tuple(LAYERS.values())):
        names = ", ".join(kind.__name__ for kind in LAYERS.values())
        check_choice(estimator, "head", HEADS, or_also=f" or a layer of csoftmax.heads ({names})")
    check_choice(estimator, "correction", CORRECTIONS)
    check_choice(estimator, "optimizer", KINDS)
    check_choice(estimator, "init_bias", INIT_BIASES)
    if not isinstance(estimator.tree, Tree):
        check_choice(estimator, "tree", TREES, or_also=" or a csoftmax.heads.Tree")
    if not is_sampler(estimator.sampler):
        check_choice(estimator, "sampler", SAMPLERS, or_also=" or a sampler of csoftmax.samplers")
    check_switches(estimator, ("early_stopping", "warm_start"))
    for name in ("n_sampled", "batch_size", "max_epochs", "patience"):
        check_number(estimator, name, 1, math.inf, whole=True)
    check_number(estimator, "power", 0, math.inf, open_high=True)
    check_number(estimator, "validation_fraction", 0, 1, open_low=True, open_high=True)
    check_number(estimator, "penalty_l2", 0, math.inf, open_high=True)
    check_parameters_of_steps(estimator)
    _check_cutoffs(estimator.cutoffs)
    check_number(estimator, "n_hashes", 1, math.inf, whole=True)
    if estimator.n_buckets is not None and not (_is_count(estimator.n_buckets) and 2 <= estimator.n_buckets < 2**31):
        raise ValueError(f"n_buckets must be None or an int from 2 to 2**31 - 1, got {show(estimator.n_buckets)}")
    _check_embedding(estimator.embedding)
    list_callbacks(estimator)
    check_seed(estimator.random_state)
    check_num_threads(estimator.num_threads)
    if estimator.device is not None and place_of(estimator.device, None).on_cuda:
        raise DeviceError(f"device is {estimator.device!r}, but ManyClassRegression trains on the CPU only")


def check_parameters_of_steps(estimator: Any) -> None:
    """Refuse those parameters that each step reads anew."""
    check_number(estimator, "learning_rate", 0, math.inf, open_low=True, open_high=True)
    if estimator.learning_rate * estimator.penalty_l2 > 1:
        raise ValueError(
            "learning_rate * penalty_l2 must be at most 1, or weights change sign; got "
            f"{show(estimator.learning_rate)} * {show(estimator.penalty_l2)}"
        )


def is_sampler(given: Any) -> bool:
    """Whether a value is a sampler object, of csoftmax.samplers or with the same methods."""
    return not isinstance(given, str) and callable(getattr(given, "sample", None)) and hasattr(given, "n_classes")


def name_head(head: Any) -> str:
    """The name of a head that the parameter names or is."""
    return head if isinstance(head, str) else next(name for name, kind in LAYERS.items() if isinstance(head, kind))


def needs_counts(estimator: Any) -> bool:
    """Whether a step of training needs the counts of the classes, which are 8 bytes for each class."""
    head = estimator.head
    if not isinstance(head, str):  # of the given layers, a hashed one has no probabilities without them
        return name_head(head) == "hashed"
    if head in ("adaptive", "hashed"):
        return True
    if head == "hierarchical":
        return isinstance(estimator.tree, str) and estimator.tree != "balanced"
    return head == "sampled" and isinstance(estimator.sampler, str) and estimator.sampler in BY_COUNTS


def keeps_counts(estimator: Any) -> bool:
    """Whether rows are counted: where a step or a new head needs it, and wherever earlier rows have been."""
    is_new = not hasattr(estimator, "head_")
    return (
        hasattr(estimator, "class_count_") or needs_counts(estimator) or (is_new and estimator.init_bias == "log_prior")
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_) and int(value) >= 1


def _check_cutoffs(given: Any) -> None:
    """Refuse what is neither "auto" nor ascending ranks; how many classes there are is not known yet."""
    if isinstance(given, str) and given == "auto":
        return
    if isinstance(given, list | tuple | np.ndarray):
        values = list(given)
        if all(map(_is_count, values)) and all(a < b for a, b in pairwise(values)):
            return
    raise ValueError(f'cutoffs must be "auto" or ascending ints from 1, got {show(given)}')


def _check_embedding(given: Any) -> None:
    """Refuse what is neither None, a dimension, nor a pair of the number of ids and a dimension."""
    pair = given if isinstance(given, tuple | list) else (given,)
    if given is None or (len(pair) in (1, 2) and all(map(_is_count, pair)) and (len(pair) == 2 or pair[0] is given)):
        return
    raise ValueError(f"embedding must be None, a dimension D >= 1 or a pair (n_ids, D), got {show(given)}")


def make_generator(estimator: Any) -> np.random.Generator:
    """The random numbers of a training, from the parameter `random_state`."""
    given = estimator.random_state
    if isinstance(given, np.random.Generator):
        return given
    return np.random.default_rng(make_random_state(estimator).randint(0, 2**32, 4, np.uint64))
