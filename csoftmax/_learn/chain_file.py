"""Contents of a file of `csoftmax.sequence.CRFTagger`, beside those of all estimators.

Arrays: state (weights), state_labels, state_offsets; transitions, start, end; vocabulary (the names in the order of
their columns, as UTF-8 without gaps) and vocabulary_offsets, both absent without a vocabulary.  Header: "history",
"columns" (number of attributes).
"""

from __future__ import annotations

import itertools
from os import PathLike
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import store
from .chain_features import Vocabulary
from .chain_pairs import MAX_LABELS, Pairs, as_csr
from .chain_parameters import check_parameters
from .estimator_file import describe_estimator, restore_estimator
from .store import Arrays, need

Estimator = TypeVar("Estimator")


def save(tagger: Any, path: str | PathLike[str]) -> None:
    """Write a fitted tagger."""
    random_state = tagger.random_state if isinstance(tagger.random_state, int | np.integer) else None
    arrays, header = describe_estimator(tagger, callbacks=None, random_state=random_state)
    state = tagger.state_
    arrays |= {
        "state": state.data,
        "state_labels": state.indices.astype(np.uint16),
        "state_offsets": state.indptr.astype(np.int64),
        "transitions": tagger.transitions_,
        "start": tagger.start_,
        "end": tagger.end_,
    }
    if tagger.vocabulary_ is not None:
        arrays |= _pack(tagger.vocabulary_)
    header["columns"] = int(state.shape[0])
    header["history"] = {name: list(map(float, values)) for name, values in tagger.history_.items()}
    if hasattr(tagger, "command_"):
        header["command"] = tagger.command_
    store.write(path, type(tagger).__name__, arrays, header)


def _pack(vocabulary: Vocabulary) -> Arrays:
    names = [name.encode("utf-8", "surrogatepass") for name in sorted(vocabulary, key=vocabulary.__getitem__)]
    offsets = np.concatenate([[0], np.cumsum([len(name) for name in names])]).astype(np.int64)
    return {"vocabulary": np.frombuffer(b"".join(names), np.uint8), "vocabulary_offsets": offsets}


def _unpack(arrays: Arrays, columns: int) -> Vocabulary:
    text, offsets = arrays["vocabulary"], arrays.get("vocabulary_offsets", np.zeros(0))
    need(text.ndim == 1 and text.dtype == np.uint8, "the vocabulary is not text")
    _check_offsets(offsets, columns, len(text), "vocabulary")
    whole, edges = text.tobytes(), offsets.tolist()
    names = [whole[a:b].decode("utf-8", "surrogatepass") for a, b in itertools.pairwise(edges)]
    need(len(set(names)) == columns, "a name occurs twice in the vocabulary")
    return {name: i for i, name in enumerate(names)}


def _check_offsets(offsets: NDArray[Any], count: int, total: int, name: str) -> None:
    """Refuse offsets that do not rise from 0 to total in count steps."""
    need(offsets.dtype == np.int64 and offsets.shape == (count + 1,), f"the offsets of {name} have another shape")
    need(offsets[0] == 0 and offsets[-1] == total and (np.diff(offsets) >= 0).all(), f"the offsets of {name} are wrong")


def load(cls: type[Estimator], path: str | PathLike[str], *, mmap: bool = False, verify: bool = True) -> Estimator:
    """Read a fitted tagger."""
    arrays, header = store.read(path, cls.__name__, mmap=mmap, verify=verify)
    with store.reading(path):
        return _make(cls, arrays, header)


def _make(cls: type[Any], arrays: Arrays, header: dict[str, Any]) -> Any:
    names = ("state", "state_labels", "state_offsets", "transitions", "start", "end")
    missing = [name for name in names if name not in arrays]
    need(not missing, f"it lacks the arrays {missing}")
    columns, history = header.get("columns"), header.get("history")
    need(type(columns) is int and columns >= 0, "the number of columns is not a number")
    assert isinstance(columns, int)
    is_history = isinstance(history, dict) and all(isinstance(v, list) for v in history.values())
    need(is_history, "history is not a dict of lists")
    tagger = restore_estimator(cls, arrays, header, check_parameters, n_features=columns)
    n = len(tagger.classes_)
    need(n <= MAX_LABELS, f"it has {n} classes")
    weights, labels, offsets = (arrays[name] for name in names[:3])
    need(weights.dtype == np.float64 and weights.ndim == 1, f"state has dtype {weights.dtype}")
    need(labels.dtype == np.uint16 and labels.shape == weights.shape, "state_labels does not fit state")
    need(not labels.size or int(labels.max()) < n, "state_labels has a label that is no class")
    _check_offsets(offsets, columns, len(weights), "state")
    rises = np.diff(labels.astype(np.int32)) > 0
    inner = offsets[1:-1]
    rises[inner[(inner > 0) & (inner < len(labels))] - 1] = True
    need(rises.all(), "state_labels does not rise")
    for name, shape in (("transitions", (n, n)), ("start", (n,)), ("end", (n,))):
        need(arrays[name].shape == shape and arrays[name].dtype == np.float64, f"{name} does not fit the classes")
    tagger.state_ = as_csr(Pairs(offsets, labels, n), weights)
    tagger.transitions_, tagger.start_, tagger.end_ = (arrays[name] for name in names[3:])
    tagger.vocabulary_ = _unpack(arrays, columns) if "vocabulary" in arrays else None
    tagger.history_ = history
    if "command" in header:
        tagger.command_ = header["command"]
    return tagger
