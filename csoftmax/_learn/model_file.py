"""Contents of a file of `csoftmax.linear_model.SoftmaxRegression`, beside those of all estimators.

Arrays: coef, intercept.  Header: "history", "penalty_l2_used", "frozen", "table" (of the command line: what was done to
the columns of a table).
"""

from __future__ import annotations

from os import PathLike
from typing import Any, TypeVar

import numpy as np

from . import store
from .estimator_file import describe_estimator, restore_estimator
from .parameters import check_parameters
from .store import Arrays, need

Estimator = TypeVar("Estimator")


def save(model: Any, path: str | PathLike[str]) -> None:
    """Write a fitted estimator."""
    random_state = model.random_state if isinstance(model.random_state, int | np.integer) else None
    arrays, header = describe_estimator(model, callbacks=None, random_state=random_state)
    arrays |= {"coef": model.coef_, "intercept": model.intercept_}
    if hasattr(model, "penalty_l2_"):
        header["penalty_l2_used"] = float(model.penalty_l2_)
    header["history"] = {name: list(map(float, values)) for name, values in model.history_.items()}
    if hasattr(model, "frozen_"):
        header["frozen"] = model.frozen_.tolist()
    if hasattr(model, "table_"):
        header["table"] = model.table_
    store.write(path, type(model).__name__, arrays, header)


def load(cls: type[Estimator], path: str | PathLike[str], *, mmap: bool = False, verify: bool = True) -> Estimator:
    """Read a fitted estimator of class cls."""
    arrays, header = store.read(path, cls.__name__, mmap=mmap, verify=verify)
    with store.reading(path):
        return _make(cls, arrays, header)


def _make(cls: type[Any], arrays: Arrays, header: dict[str, Any]) -> Any:
    need("coef" in arrays and "intercept" in arrays, "coef or intercept is missing")
    coef, intercept = arrays["coef"], arrays["intercept"]
    need(coef.ndim == 2 and coef.dtype in (np.float32, np.float64), f"coef has shape {coef.shape}, dtype {coef.dtype}")
    need(
        intercept.shape == coef.shape[:1] and intercept.dtype == coef.dtype,
        f"intercept has shape {intercept.shape}, dtype {intercept.dtype}; coef {coef.shape}, {coef.dtype}",
    )
    model = restore_estimator(cls, arrays, header, check_parameters, n_features=coef.shape[1])
    need(len(model.classes_) == len(coef), f"there are {len(model.classes_)} classes, but coef has shape {coef.shape}")
    history = header.get("history")
    need(
        isinstance(history, dict) and all(isinstance(v, list) for v in history.values()),
        "history is not a dict of lists",
    )
    model.coef_, model.intercept_, model.history_ = coef, intercept, history
    if "penalty_l2_used" in header:
        need(isinstance(header["penalty_l2_used"], int | float), "penalty_l2_used is not a number")
        model.penalty_l2_ = float(header["penalty_l2_used"])
    if "frozen" in header:
        need(len(header["frozen"]) == len(coef), "the length of frozen differs from the number of classes")
        model.frozen_ = np.array(header["frozen"], bool)
    if "table" in header:
        model.table_ = header["table"]
    return model
