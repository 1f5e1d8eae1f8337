"""Frequencies of items in a stream of batches, for the correction of losses over candidates of a batch."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.generators import as_generator, draw_integers
from .._arguments.numbers import as_number, check_count
from .._arguments.places import as_array

ARRAYS = 4  # of slots, each with a hash of its own


class StreamingFrequency:
    """Estimates how often items occur in batches, from the number of steps between two hits (Yi et al. 2019).

    Parameters
    ----------
    n_slots : int
        Slots of each of 4 hashed arrays; more than there are frequent items.
    alpha : float, default 0.01
        Rate of the moving average of the steps between two hits, in (0, 1].
    rng : int, SeedSequence or Generator, optional
        Source of the hash functions.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the kinds above.

    Notes
    -----
    A slot holds the step of its last hit and a moving average of the steps between hits. Items that share a slot make
    the average too small, so the largest of the 4 estimates is taken. It takes 64 bytes for each slot, whatever the
    number of items, and ids may be any 64-bit integers.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.samplers import StreamingFrequency
    >>> frequency = StreamingFrequency(1000, alpha=0.1, rng=0)
    >>> for step in range(1, 1001):
    ...     frequency.update([1] if step % 10 else [1, 2], step)
    >>> np.exp(frequency.log_q([1, 2])).round(2)
    array([1. , 0.1])
    """

    def __init__(self, n_slots: SupportsIndex, alpha: float = 0.01, rng: Any = None):
        self._slots = check_count("n_slots", n_slots, 1)
        if self._slots >= 2**31:
            raise ValueError(f"n_slots must be less than 2**31, got {n_slots}")
        self._alpha = as_number("alpha", alpha)
        if not 0 < self._alpha <= 1:
            raise ValueError(f"alpha must be greater than 0 and at most 1, got {alpha!r}")
        numbers = draw_integers(as_generator(rng), 2 * ARRAYS)
        self._factors, self._offsets = numbers[:ARRAYS, None] | np.uint64(1), numbers[ARRAYS:, None]
        self._last = np.zeros((ARRAYS, self._slots))
        self._steps = np.zeros((ARRAYS, self._slots))
        self._now = 0

    def _slots_of(self, ids: Any) -> NDArray[np.int64]:
        """The slots of items, one row for each array: the upper bits of an affine function modulo 2**64."""
        bits = ids.astype(np.uint64, casting="unsafe")
        mixed = (bits ^ (bits >> np.uint64(32))) * self._factors + self._offsets
        return ((mixed >> np.uint64(32)) * np.uint64(self._slots) >> np.uint64(32)).astype(np.int64)

    def update(self, ids: ArrayLike, step: SupportsIndex) -> None:
        """Count the items of a batch.

        Parameters
        ----------
        ids : array_like of int
            Items; those that occur several times count once.
        step : int
            Number of the batch, at least 1 and greater than that of the last update.

        Raises
        ------
        TypeError, ValueError
            If ids are not integers, step is not an int, or it is not greater than the last one.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.samplers import StreamingFrequency
        >>> frequency = StreamingFrequency(100, rng=0)
        >>> for step in (1, 2, 3):
        ...     frequency.update([7, 7, 9] if step == 2 else [7], step)
        >>> np.exp(frequency.log_q([7, 9])).round(2)
        array([1. , 0.5])
        """
        step = check_count("step", step, 1)
        if step <= self._now:
            raise ValueError(f"step must be greater than the last one, {self._now}, got {step}")
        slots = self._slots_of(np.unique(_as_items(ids)))
        for last, steps, at in zip(self._last, self._steps, slots, strict=True):
            hit = np.unique(at)  # two items of the batch may share a slot
            since = step - last[hit]
            is_new = last[hit] == 0
            steps[hit] = np.where(is_new, since, (1 - self._alpha) * steps[hit] + self._alpha * since)
            last[hit] = step
        self._now = step

    def log_q(self, ids: ArrayLike) -> NDArray[np.float64]:
        """Return the logarithms of the probabilities that a batch holds items.

        Parameters
        ----------
        ids : array_like of int
            Items.

        Returns
        -------
        ndarray of float64
            Of the shape of ids; for items that have not occurred, that of one occurrence since the beginning.

        Raises
        ------
        TypeError
            If ids are not integers.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.samplers import StreamingFrequency
        >>> frequency = StreamingFrequency(100, rng=0)
        >>> for step in (1, 2, 3):
        ...     frequency.update([7], step)
        >>> np.exp(frequency.log_q([7, 8]))
        array([1.  , 0.25])
        """
        given = _as_items(ids)
        slots = self._slots_of(given.ravel())
        steps = np.take_along_axis(self._steps, slots, 1)
        steps = np.where(steps == 0, self._now + 1, steps)
        log_q: NDArray[np.float64] = -np.log(np.max(steps, axis=0)).reshape(given.shape)
        return log_q


def _as_items(ids: Any) -> Any:
    given = as_array("ids", ids)
    if given.size == 0 and given.dtype == np.float64:
        given = given.astype(np.int64)
    if given.dtype.kind not in "iu":
        raise TypeError(f"ids must hold integers, got dtype {given.dtype}")
    return given
