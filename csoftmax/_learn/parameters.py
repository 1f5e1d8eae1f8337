"""Checks of the parameters and data of `csoftmax.linear_model.SoftmaxRegression`, and values derived from them.

Each function reads the parameters of the estimator that it is given, and changes none of them.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, validate_data

from .._arguments.foreign import as_native
from .._arguments.kinds import refuse_kind
from .._arguments.numbers import check_num_threads
from .._arguments.places import DeviceError, Place, is_cupy, place_of
from .adversary import KINDS, check_adversarial
from .labels import indices_of, is_text, weigh_by_effective_number, weigh_by_mapping
from .messages import show
from .objective import Options, is_sparse
from .parts.lazy import is_lazy

SOLVERS = ("lbfgs", "adamw")
AUTO = "auto"  # penalty_l2 that is chosen from the data
INITS = ("xavier", "zeros")
CLASS_WEIGHTS = ("balanced", "effective_number")
SWITCHES = ("fit_intercept", "early_stopping", "batch_norm", "warm_start")
ADAMW_ONLY = {"batch_norm": False, "clip_norm": None, "clip_value": None, "output_learning_rate": None}

# A minibatch may have no weight.  Older versions of scikit-learn allow it, and have no such parameter.
ALLOW_ZERO: dict[str, Any] = {
    name: True for name in inspect.signature(_check_sample_weight).parameters if name == "allow_all_zero_weights"
}

Rows = tuple[Any, NDArray[np.intp], NDArray[np.float64] | None]
"""X, class indices and sample weights."""

Notes = list[tuple[str, type[Warning]]]
"""Messages and categories of the warnings of a fit."""


def check_parameters(estimator: Any) -> None:
    """Refuse parameters that no fit could use."""
    check_choice(estimator, "solver", SOLVERS)
    check_choice(estimator, "init", INITS)
    check_switches(estimator, SWITCHES)
    _check_penalty(estimator)
    check_number(estimator, "label_smoothing", 0, 1)
    for name in ("batch_size", "max_epochs", "patience"):
        check_number(estimator, name, 1, math.inf, whole=True)
    check_number(estimator, "validation_fraction", 0, 1, open_low=True, open_high=True)
    check_number(estimator, "temperature", 0, math.inf, open_low=True, open_high=True)
    check_number(estimator, "tol", 0, math.inf, open_low=True, open_high=True, optional=True)
    _check_adversarial_parameters(estimator)
    check_parameters_of_steps(estimator)
    if estimator.solver == "lbfgs":
        for name, unset in ADAMW_ONLY.items():
            value = getattr(estimator, name)
            if value is not unset and value != unset:
                raise ValueError(f"{name} needs solver='adamw'")
    list_callbacks(estimator)
    check_seed(estimator.random_state)
    check_num_threads(estimator.num_threads)


def _check_adversarial_parameters(estimator: Any) -> None:
    """Refuse adversarial training without meaning; its numbers are checked also where they have no effect."""
    if estimator.adversarial is not None:
        check_choice(estimator, "adversarial", KINDS, or_also=" or None")
    for name in ("adversarial_eps", "adversarial_beta"):
        check_number(estimator, name, 0, math.inf, open_high=True)
    check_number(estimator, "adversarial_norm", 1, math.inf)
    check_adversarial(estimator)


def check_choice(estimator: Any, name: str, allowed: Sequence[str], *, or_also: str = "") -> None:
    """Refuse a parameter that is not one of the allowed strings; or_also: what the caller has accepted before."""
    value = getattr(estimator, name)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}{or_also}, got {show(value)}")


def check_switches(estimator: Any, names: Sequence[str]) -> None:
    """Refuse parameters that are neither True nor False."""
    for name in names:
        value = getattr(estimator, name)
        if value is not True and value is not False and not isinstance(value, np.bool_):
            raise TypeError(f"{name} must be True or False, got {show(value)}")


def check_parameters_of_steps(estimator: Any) -> None:
    """Refuse those parameters that a later step of AdamW reads anew; all of them would take 15 microseconds."""
    check_number(estimator, "learning_rate", 0, math.inf, open_low=True, open_high=True)
    for name in ("clip_norm", "clip_value", "output_learning_rate"):
        check_number(estimator, name, 0, math.inf, open_low=True, open_high=True, optional=True)


def list_callbacks(estimator: Any) -> list[Any]:
    """The callbacks of the parameter of that name."""
    given = estimator.callbacks
    given = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    for callback in given:
        if not callable(callback) and not (isinstance(callback, str) and callback == "progress"):
            raise TypeError(f"callbacks must be callables or 'progress', got {show(callback)}")
    return given


def check_seed(given: Any) -> None:
    """Refuse a `random_state` of another kind, and an int that is no seed."""
    if given is None or given is np.random or isinstance(given, np.random.Generator | np.random.RandomState):
        return
    if not isinstance(given, numbers.Integral) or isinstance(given, bool):
        allowed = "an int, a numpy.random.RandomState, a numpy.random.Generator or None"
        raise TypeError(f"random_state must be {allowed}, got {show(given)}")
    if not 0 <= int(given) < 2**32:
        raise ValueError(f"random_state must be in [0, 2**32 - 1], got {show(given)}")


def make_random_state(estimator: Any) -> np.random.RandomState:
    """The random numbers of the parameter `random_state`; those of a Generator are drawn from its own stream."""
    given = estimator.random_state
    if isinstance(given, np.random.Generator):
        return np.random.RandomState(given.bit_generator)
    return check_random_state(given)


def _check_penalty(estimator: Any) -> None:
    """Refuse a penalty that is no number, not None and not "auto"."""
    value = estimator.penalty_l2
    if isinstance(value, str):
        if value != AUTO:
            raise ValueError(f"penalty_l2 must be a number, None or {AUTO!r}, got {show(value)}")
        if estimator.solver != "lbfgs":
            raise ValueError(f"penalty_l2={AUTO!r} needs solver='lbfgs', got solver={estimator.solver!r}")
    elif value is not None:
        check_number(estimator, "penalty_l2", 0, math.inf, open_high=True, kind=f"a number, None or {AUTO!r}")


def check_number(
    estimator: Any,
    name: str,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
    optional: bool = False,
    whole: bool = False,
    kind: str | None = None,
) -> None:
    """Refuse a parameter that is not a number from low to high; kind: what the message calls the allowed values."""
    value: Any = getattr(estimator, name)
    if optional and value is None:
        return
    is_number = type(value) is int or isinstance(value, numbers.Integral if whole else numbers.Real)
    if not is_number or isinstance(value, bool | np.bool_):
        kind = kind or f"{'an int' if whole else 'a number'}{' or None' * optional}"
        raise TypeError(f"{name} must be {kind}, got {show(value)}")
    if not (low < value if open_low else low <= value) or not (value < high if open_high else value <= high):
        left, right = "(["[not open_low], ")]"[not open_high]
        raise ValueError(f"{name} must be in {left}{low}, {high}{right}, got {show(value)}")


def as_plain(x: Any, name: str) -> Any:
    """An argument without what scikit-learn would ignore: masks; tensors become arrays on the same memory."""
    if isinstance(x, np.ma.MaskedArray):
        without = f" with numpy.ma.compress_rows({name})" if x.ndim == 2 else ""
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost: pass {name}.filled(value), or leave out the masked "
            f"rows{without}"
        )
    if isinstance(x, np.matrix):
        raise TypeError(f"{name} is a numpy.matrix: pass numpy.asarray({name})")
    if type(x).__name__ == "LazyFrame":
        raise TypeError(f"{name} is a {type(x).__module__.partition('.')[0]} LazyFrame: pass {name}.collect()")
    if is_lazy(x):
        refuse_kind(name, x)
    return as_native(x, name)


def _as_plain_on_host(x: Any, name: str) -> Any:
    x = as_plain(x, name)
    if is_cupy(x):
        raise DeviceError(
            f"{name} is on a CUDA device, but training reads its data on the CPU: pass {name}.get(), of a tensor "
            f'{name}.cpu(); device="cuda" trains there'
        )
    return x


def check_data(estimator: Any, *data: Any, reset: bool = False, min_rows: int = 1) -> Any:
    """X, or (X, y), in the dtypes and layouts that training and predictions need.

    reset: record the number and names of the features instead of comparing them.
    """
    data = tuple(_as_plain_on_host(a, name) for name, a in zip(("X", "y"), data))
    try:
        checked = validate_data(
            estimator,
            *data,
            reset=reset,
            accept_sparse="csr",
            dtype=[np.float64, np.float32],
            ensure_min_samples=min_rows,
        )
    except (TypeError, ValueError) as error:
        for name, a in zip(("X", "y"), data):
            _refuse_missing(a, name, error)
        raise
    if len(data) > 1:
        _refuse_missing(checked[1], "y", None)
    return checked


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ == "NAType"  # of pandas, which need not be installed


def _refuse_missing(a: Any, name: str, error: Exception | None) -> None:
    """Refuse an array with None or pandas.NA among its elements, and say where; error: the one that this explains."""
    if a is None or is_sparse(a):
        return
    try:
        a = np.asarray(a)
    except (TypeError, ValueError):  # rows of different lengths
        return
    if a.dtype != object or a.ndim == 0:
        return
    found = np.argwhere(np.frompyfunc(_is_missing, 1, 1)(a).astype(bool))
    if len(found):
        place = ", ".join(map(str, found[0].tolist()))
        remedy = "every row needs a label" if name == "y" else "fill what is missing, or leave the row out"
        raise ValueError(f"{name}[{place}] is {a[tuple(found[0])]!r}, not a value; {remedy}") from error


def check_sample_weight(sample_weight: ArrayLike | None, X: Any) -> NDArray[np.float64] | None:
    """Weights of the rows in float64, or None."""
    if sample_weight is None:
        return None
    sample_weight = _as_plain_on_host(sample_weight, "sample_weight")
    return _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True, **ALLOW_ZERO)


def check_known_labels(y: ArrayLike, classes: NDArray[Any], *, is_sorted: bool = False) -> NDArray[np.intp]:
    """Indices of the labels in `classes`; is_sorted: as in `indices_of`."""
    labels = np.asarray(y)
    if is_text(labels) != is_text(classes):
        raise ValueError(f"y has the label {show(labels[0])}, of another kind than the classes: {show(classes)}")
    indices, unknown = indices_of(labels, classes, is_sorted=is_sorted)
    if len(unknown):
        raise ValueError(
            f"y has the label {show(labels[unknown[0]])}, which is not among the classes: {show(classes)}"
            " (add_classes adds to them)"
        )
    return indices


def check_classes(given: ArrayLike) -> NDArray[Any]:
    """The distinct classes of the argument `classes`, sorted."""
    labels = np.asarray(_as_plain_on_host(given, "classes"))
    if labels.ndim != 1:
        raise ValueError(f"classes must have one axis, got shape {labels.shape}")
    _refuse_missing(labels, "classes", None)
    # The hash table of numpy.unique takes 30 bytes for each class, which are not needed if the classes are in order.
    in_order = labels.dtype.kind in "iufU" and bool((labels[1:] > labels[:-1]).all())
    classes = labels.copy() if in_order else LabelEncoder().fit(labels).classes_
    if len(classes) < 2:
        raise ValueError(f"classes must hold at least 2 classes, got {show(classes)}")
    return classes


def mark_classes(given: ArrayLike | None, classes: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the classes are among the given ones (None: all)."""
    chosen = classes if given is None else np.atleast_1d(np.asarray(as_plain(given, "classes")))
    is_same_kind = is_text(chosen) == is_text(classes) or not chosen.size
    unknown = np.setdiff1d(chosen, classes) if is_same_kind else chosen
    if len(unknown):
        raise ValueError(f"classes has {show(unknown[0])}, which the model does not have")
    return np.isin(classes, chosen)


def check_same_classes(given: ArrayLike, classes: NDArray[Any]) -> None:
    """Refuse classes that differ from those of earlier training."""
    labels = np.asarray(_as_plain_on_host(given, "classes"))
    if np.array_equal(labels, classes):
        return
    if labels.dtype == object or not np.array_equal(np.unique(labels), classes):
        new = check_classes(labels)
        if not np.array_equal(new, np.sort(classes)):
            raise ValueError(f"classes are {show(new)}, but were {show(classes)} in the first call")


def choose_place(estimator: Any, X: Any) -> Place:
    """The device that trains; sparse X stays on the CPU."""
    place = place_of(estimator.device, None)
    if place.number is not None and is_sparse(X):
        raise TypeError(
            f"X is sparse, which device={estimator.device!r} does not support; pass a dense array, or device=None"
        )
    return place


def choose_loss_options(
    estimator: Any, dtype: np.dtype[Any], y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None
) -> Options:
    """Options of the cross-entropy of rows with class indices y, with class weights of the given dtype."""
    weight = _choose_class_weights(estimator, y, sample_weight)
    if weight is not None:
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise ValueError(f"class_weight must be at least 0 and finite, got {show(estimator.class_weight)}")
        if not weight[np.unique(y)].any():
            raise ValueError("class_weight is 0 for every class in the data: there is nothing to learn from")
        weight = weight.astype(dtype)
    return Options(weight, float(estimator.label_smoothing), float(estimator.temperature))


def _choose_class_weights(
    estimator: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None
) -> NDArray[Any] | None:
    """One weight for each class, or None."""
    given, classes = estimator.class_weight, estimator.classes_
    if given is None:
        return None
    if hasattr(given, "iloc"):  # a Series maps its index to its values
        given = given.to_dict()
    if isinstance(given, Mapping):
        return weigh_by_mapping(given, classes)
    if not isinstance(given, str):
        try:
            weight = np.asarray(_as_plain_on_host(given, "class_weight"), np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"class_weight must hold one number for each class, got {show(given)}") from error
        if weight.shape != (len(classes),):
            raise ValueError(f"class_weight has shape {weight.shape}, but there are {len(classes)} classes")
        return weight
    if given == "effective_number":
        return weigh_by_effective_number(np.bincount(y, sample_weight, len(classes)).astype(np.float64))
    if given == "balanced":
        # scikit-learn's compute_class_weight accepts sample_weight only since 1.7
        counts = np.bincount(y, sample_weight, len(classes)).astype(np.float64)
        occurring = len(np.unique(y))
        return np.divide(counts.sum(), occurring * counts, out=np.zeros(len(classes)), where=counts > 0)
    names = ", ".join(map(repr, CLASS_WEIGHTS))
    raise ValueError(f"class_weight must be None, a dict, an array or one of {names}, got {show(given)}")


def hold_out(
    estimator: Any, X: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None
) -> tuple[Rows, Rows]:
    """Rows for training and rows for early stopping, each in the order of X; stratified if there are enough rows."""
    from sklearn.model_selection import train_test_split

    if len(y) < 2:
        raise ValueError(f"early_stopping needs at least 2 rows, got {len(y)}")
    rows = np.arange(len(y))
    size = max(1, min(len(y) - 1, round(estimator.validation_fraction * len(y))))
    counts = np.bincount(y)
    counts = counts[counts > 0]
    stratify = y if counts.min() > 1 and size >= len(counts) and len(y) - size >= len(counts) else None
    train, held_out = train_test_split(
        rows, test_size=size, stratify=stratify, random_state=make_random_state(estimator)
    )

    def take(part: NDArray[np.intp]) -> Rows:
        part.sort()
        return X[part], y[part], None if sample_weight is None else sample_weight[part]

    return take(train), take(held_out)
