"""Contents of a file of `csoftmax.linear_model.ManyClassRegression`, beside those of all estimators.

Arrays: those of the head (w, bias; or head.*); embedding; class_count; frozen.  Header: "history", "table" (of the
command line), "head" of an adaptive one.
"""

from __future__ import annotations

from os import PathLike
from typing import Any, TypeVar

import numpy as np

from .. import store
from ..estimator_file import describe_estimator, restore_estimator
from ..store import Arrays, need
from .choice import HEADS, find_name
from .inputs import agrees
from .parameters import check_parameters

Estimator = TypeVar("Estimator")

OF_LAYER = ("n_buckets", "n_hashes")
FLOATS = (np.float32, np.float64)


def save(model: Any, path: str | PathLike[str]) -> None:
    """Write a fitted estimator."""
    random_state = model.random_state if isinstance(model.random_state, int | np.integer) else None
    sampler = model.sampler if isinstance(model.sampler, str) else type(model)().sampler
    tree = model.tree if isinstance(model.tree, str) else type(model)().tree
    # the head and the embeddings that are there: the parameters may have been set since
    table = getattr(model, "embedding_", None)
    embedding = model.embedding if agrees(model.embedding, table) else None if table is None else table.shape
    parameters = {"random_state": random_state, "sampler": sampler, "tree": tree, "embedding": embedding}
    if not isinstance(model.head, str):  # parameters of a layer that was given
        layer = getattr(model.head_, "layer", None)
        parameters |= {name: getattr(layer, name) for name in OF_LAYER if hasattr(layer, name)}
    arrays, header = describe_estimator(model, callbacks=None, head=find_name(model.head_), **parameters)
    of_head, entries = model.head_.write()
    arrays, header = arrays | of_head, header | entries
    for name in ("embedding", "class_count", "frozen"):
        if hasattr(model, f"{name}_"):
            array = getattr(model, f"{name}_")
            arrays[name] = array.astype(np.uint8) if array.dtype == bool else array
    header["n_features"] = int(model.n_features_in_)
    header["history"] = {name: list(map(float, values)) for name, values in model.history_.items()}
    if hasattr(model, "table_"):
        header["table"] = model.table_
    store.write(path, type(model).__name__, arrays, header)


def load(cls: type[Estimator], path: str | PathLike[str], *, mmap: bool = False, verify: bool = True) -> Estimator:
    """Read a fitted estimator of class cls."""
    arrays, header = store.read(path, cls.__name__, mmap=mmap, verify=verify)
    with store.reading(path):
        return _make(cls, arrays, header)


def _make(cls: type[Any], arrays: Arrays, header: dict[str, Any]) -> Any:
    n_features = header.get("n_features")
    need(isinstance(n_features, int) and n_features > 0, "n_features is not a positive number")
    model = restore_estimator(cls, arrays, header, check_parameters, n_features=n_features)
    k = len(model.classes_)
    need((model.classes_[1:] > model.classes_[:-1]).all(), "classes are not sorted")
    model.head_ = HEADS[model.head].read(arrays, header, k)
    _read_embedding(model, arrays, model.head_.n_features)
    history = header.get("history")
    need(
        isinstance(history, dict) and all(isinstance(v, list) for v in history.values()),
        "history is not a dict of lists",
    )
    model.history_ = history
    if "class_count" in arrays:
        counts = arrays["class_count"]
        need(counts.shape == (k,) and counts.dtype == np.float64, f"class_count has shape {counts.shape}")
        need(np.isfinite(counts).all() and (counts >= 0).all(), "class_count is negative or not finite")
        model.class_count_ = counts
    if "frozen" in arrays:
        need(arrays["frozen"].shape == (k,), "the length of frozen differs from the number of classes")
        model.frozen_ = arrays["frozen"].astype(bool)
    if "table" in header:
        model.table_ = header["table"]
    return model


def _read_embedding(model: Any, arrays: Arrays, width: int) -> None:
    """Check the table of embeddings against the parameters and the head, and set it."""
    if model.embedding is None:
        need("embedding" not in arrays, "there is a table of embeddings, but the parameter embedding is None")
        need(model.n_features_in_ == width, f"n_features is {model.n_features_in_}, but the head has {width} columns")
        return
    need("embedding" in arrays, "the table of embeddings is missing")
    table = arrays["embedding"]
    need(
        table.ndim == 2 and table.shape[1] == width and len(table) and table.dtype in FLOATS,
        f"the table of embeddings has shape {table.shape}, dtype {table.dtype}; the head has {width} columns",
    )
    model.embedding_ = table
