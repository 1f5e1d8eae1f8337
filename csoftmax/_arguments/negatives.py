"""Sampled classes with the logarithms of their expected counts, as the samplers return and the losses accept them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .numbers import check_choice
from .places import Place, as_array


class Negatives(NamedTuple):
    """Sampled classes, and the logarithms of their expected counts.

    Parameters
    ----------
    ids : ndarray of int64 of shape (m,), or (N, m)
        Classes that all rows of a batch share, or those of each row. A sampler returns shared ones ascending.
    log_q : ndarray of float64 of the shape of ids, or None, default None
        Logarithm of the expected count of each class; None: unknown, so that no loss corrects for it.
    count : ndarray of int64 of the shape of ids, or None, default None
        How often each class was drawn; None: once.
    target_log_q : ndarray of float64 of the shape of the targets, or None, default None
        The same logarithm for the classes of the targets; None: the sampler was given no target.
    scheme : str, default "given"
        "poisson", "iid", or "given" for classes of another source.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> from csoftmax.samplers import Negatives
    >>> negatives = Negatives(np.array([1, 2]), np.log([0.5, 0.25]), target_log_q=np.log([0.5]))
    >>> csoftmax.sampled_softmax_loss(np.eye(3)[:1], np.eye(3), [0], negatives).round(4)
    np.float64(0.7437)
    """

    ids: Any
    log_q: Any = None
    count: Any = None
    target_log_q: Any = None
    scheme: str = "given"


class CheckedNegatives(NamedTuple):
    """Negatives in normal form."""

    ids: Any  # int64, (m,) or (rows, m), contiguous
    log_q: Any | None  # float64, the same shape
    counts: Any | None  # float64, the same shape
    target_log_q: Any | None  # float64, one for each row

    @property
    def is_shared(self) -> bool:
        """Whether all rows have the same classes."""
        return bool(self.ids.ndim == 1)


def as_ids(name: str, given: Any, place: Place | None = None) -> Any:
    """Class numbers as int64."""
    ids = as_array(name, given) if place is None else place.array(name, given)
    if ids.size == 0 and ids.dtype == np.float64:  # an empty list
        ids = ids.astype(np.int64)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {ids.dtype}")
    if ids.dtype == np.uint64 and ids.size and int(ids.max()) >= 2**63:
        raise IndexError(f"{name} has {int(ids.max())}, which is no class")
    return ids.astype(np.int64)


def check_classes(name: str, ids: Any, n_classes: int) -> None:
    """Refuse numbers that are no class."""
    bad = (ids < 0) | (ids >= n_classes)
    if bad.any():
        at = np.unravel_index(int(bad.argmax()), ids.shape)
        place = f"{name}[{', '.join(map(str, at))}]" if at else name
        raise IndexError(f"{place} is {ids[at]}: the classes are 0 to {n_classes - 1}")


def check_negatives(given: Any, batch: tuple[int, ...], n_classes: int) -> tuple[CheckedNegatives, bool]:
    """Negatives in normal form, and whether they are plain numbers of classes."""
    is_plain = not isinstance(given, Negatives)
    if given is None or (is_plain and isinstance(given, tuple) and any(item is None for item in given)):
        raise TypeError(f"negatives must be a Negatives, or an array of class numbers, got {given!r}")
    negatives = Negatives(given) if is_plain else given
    name = "negatives" if is_plain else "negatives.ids"
    ids = as_ids(name, negatives.ids)
    rows = math.prod(batch)
    if ids.ndim == 0 or (ids.ndim > 1 and ids.shape[:-1] not in (batch, (rows,))):
        of_rows = ", ".join(map(str, (*batch, "m")))
        raise ValueError(f"{name} has shape {ids.shape}; allowed are (m,), and ({of_rows}) for classes of each row")
    check_classes(name, ids, n_classes)
    shape = ids.shape if ids.ndim == 1 else (rows, ids.shape[-1])
    log_q = None
    if negatives.log_q is not None:
        log_q = check_log_q("negatives.log_q", negatives.log_q, ids.shape, lambda at: f"the class {ids[at]}")
    count = _check_real("negatives.count", negatives.count, ids.shape)
    if count is not None and not np.all((count > 0) & (count < np.inf)):
        at = int(np.argmin((count > 0) & (count < np.inf)))
        raise ValueError(
            f"negatives.count must be positive and finite, got {count.flat[at]} for the class {ids.flat[at]}"
        )
    own_shape = (rows,) if np.shape(negatives.target_log_q) == (rows,) else batch
    target_log_q = _check_real("negatives.target_log_q", negatives.target_log_q, own_shape)
    ids, log_q, count = (None if a is None else np.ascontiguousarray(a).reshape(shape) for a in (ids, log_q, count))
    target_log_q = None if target_log_q is None else target_log_q.reshape(rows)
    return CheckedNegatives(ids, log_q, count, target_log_q), is_plain


def check_correction(correction: Any) -> None:
    """Refuse anything but the names of the corrections, which losses over candidates share."""
    check_choice("correction", correction, ("ranking", "partition", "none"))


def check_log_q(
    name: str, given: Any, shape: tuple[int, ...], owner: Callable[[tuple[int, ...]], str], needed: str = ""
) -> Any:
    """Logarithms of expected counts as float64; owner: from an index to what the value belongs to, for messages."""
    values = _check_real(name, given, shape, needed)
    is_finite = np.isfinite(values)
    if not is_finite.all():
        at = tuple(int(i) for i in np.unravel_index(int(np.argmin(is_finite)), shape))
        raise ValueError(f"{name} is {values[at]} for {owner(at)}: it must be finite")
    return values


def _check_real(name: str, given: Any, shape: tuple[int, ...], needed: str = "") -> Any:
    if given is None:
        return None
    values = as_array(name, given)
    if values.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {values.dtype}")
    if values.shape != shape:
        raise ValueError(f"{name} has shape {values.shape}; {needed or shape} is needed")
    return values.astype(np.float64, copy=False)
