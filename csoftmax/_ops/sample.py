"""Draws from rows of logits, filtered by top-k, top-p and min-p."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _cuda
from .._arguments.foreign import accept_foreign
from .._arguments.generators import draw_uniforms, restore_states, save_states
from .._arguments.layouts import axis_last, check_out, check_where, masked, normalize_axes
from .._arguments.numbers import check_count, check_parameter
from .._arguments.places import Place, as_float, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.dtypes import as_buffer

__all__ = ["sample"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None


class SamplePlan(NamedTuple):
    """A checked call of sample, with its uniform numbers."""

    dtype: int
    logits: Any
    uniforms: Any
    where: Any | None
    temperature: Any
    top_k: Any | None
    top_p: Any | None
    min_p: Any | None
    num_threads: Any
    shape: tuple[int, ...]
    out: Any | None
    place: Place

    def execute(self) -> Any:
        """Draw, and return the indices."""
        if self.place.on_cuda:
            with self.place.context():
                return self._finish(self._run_on_cuda())
        indices = np.empty(self.uniforms.shape, np.int64)
        parameters = self.temperature, self.top_k, self.top_p, self.min_p
        arrays = self.dtype, as_buffer(self.logits), self.uniforms, indices, self.where
        if not binding.run_sample(*arrays, *parameters, self.num_threads):
            self._raise_without_mass(self._find_without_mass())
        return self._finish(indices)

    def _find_without_mass(self) -> int:
        """The number of the first row whose largest logit is not finite."""
        rows = np.ndindex(self.logits.shape[:-1])
        return next(i for i, row in enumerate(rows) if not np.isfinite(self._largest(row)))

    def _run_on_cuda(self) -> Any:
        """Return the draws, or raise the error of a row without mass; both wait for the device."""
        xp, (*batch, n) = self.place.xp, self.logits.shape
        rows, draws = math.prod(batch), self.uniforms.shape[-1]
        if rows == 0 or draws == 0:
            return xp.empty((rows, draws), np.int64)
        if n == 0:
            self._raise_without_mass(0)
        x = as_buffer(self.logits if self.where is None else masked(xp, self.where, self.logits))
        x = xp.ascontiguousarray(x).reshape(rows, n)
        parameters = (
            None if p is None else p.reshape(rows) for p in (self.temperature, self.top_k, self.top_p, self.min_p)
        )
        indices, states = _cuda.launch_sample(self.dtype, x, self.uniforms.reshape(rows, draws), *parameters)
        if np.any(states):
            self._raise_without_mass(int(np.argmax(states != 0)))
        return indices

    def _finish(self, indices: Any) -> Any:
        indices = indices.reshape(self.shape)
        if self.out is not None:
            self.out[...] = indices
            return self.out
        return indices if self.place.on_cuda else indices[()]

    def _row(self, row: tuple[Any, ...]) -> Any:
        """The logits of a row that take part, on the CPU."""
        (x,) = to_host(as_buffer(self.logits)[row])
        with np.errstate(invalid="ignore"):  # a signalling NaN
            wide = x.view(self.logits.dtype).astype(np.float64)
        return wide if self.where is None else wide[to_host(self.where[row])[0]]

    def _largest(self, row: tuple[Any, ...]) -> float:
        """The largest logit of a row that takes part, NaN if one of them is NaN, -inf if there is none."""
        return float(np.max(self._row(row), initial=-np.inf))

    def _raise_without_mass(self, number: int) -> NoReturn:
        """Raise for a row without mass: it holds NaN or +inf, or only -inf, or no class at all."""
        *batch, n = self.logits.shape
        row = np.unravel_index(number, batch)
        largest = self._largest(row)
        if n == 0:
            why = "its axis has no classes"
        elif not len(self._row(row)):
            why = "where leaves none of its classes"
        else:
            why = f"it holds {'only -inf' if largest == -np.inf else 'NaN' if largest != largest else '+inf'}"
        raise ValueError(f"logits have no mass to draw from in row ({', '.join(map(str, row))}): {why}")


def plan_sample(
    logits: Any,
    axis: Any,
    *,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    size: Any,
    rng: Any,
    where: Any = None,
    out: Any = None,
    device: str | None = None,
    num_threads: Any = None,
) -> SamplePlan:
    """Check a call of sample, and draw its uniform numbers."""
    place = place_of(device, logits)
    with place.context():
        x, dtype = as_float("logits", logits, place)
        axes = normalize_axes(axis, x.ndim)
        mask = None if where is None else check_where(where, x.shape, place)
        if x.ndim == 0:
            x, mask = x.reshape(1), None if mask is None else mask.reshape(1)
        x = axis_last(x, axes)
        mask = None if mask is None else axis_last(mask, axes)
        batch = x.shape[:-1]
        parameters: list[Any] = [temperature, top_k, top_p, min_p]
        if place.on_cuda or place.moves:  # they are few, and are checked on the CPU
            parameters = to_host(*parameters)
        checked = _check_parameters(parameters, batch)
        draws = _check_size(size)
        if out is not None:
            check_out(out, batch + draws, np.dtype(np.int64), place)
        uniforms = draw_uniforms(to_host(rng)[0], batch, draws)
    return SamplePlan(dtype, x, uniforms, mask, *checked, num_threads, batch + draws, out, place)


def _check_parameters(parameters: list[Any], batch: tuple[int, ...]) -> tuple[Any, Any, Any, Any]:
    """The four parameters, each with one value for each row, or None."""
    temperature, top_k, top_p, min_p = parameters
    positive, unit = "greater than 0 and at most 1", "at least 0 and at most 1"
    return (
        check_parameter("temperature", temperature, batch, np.float64, "at least 0", lambda v: v >= 0),
        check_parameter("top_k", top_k, batch, np.int64, "at least 1, or 0 or -1 for no limit", lambda v: v >= -1),
        check_parameter("top_p", top_p, batch, np.float64, positive, lambda v: (v > 0) & (v <= 1)),
        check_parameter("min_p", min_p, batch, np.float64, unit, lambda v: (v >= 0) & (v <= 1)),
    )


def _check_size(size: Any) -> tuple[int, ...]:
    given = size if isinstance(size, tuple) else () if size is None else (size,)
    return tuple(check_count("size", n, 0, "an int, a tuple of ints or None") for n in given)


@accept_foreign
def _run_sample(logits: Any, axis: Any, **options: Any) -> Any:
    states = save_states(options["rng"])
    try:
        return plan_sample(logits, axis, **options).execute()
    except BaseException:
        restore_states(states)
        raise


@hand_over_recorded
def sample(
    logits: ArrayLike,
    *,
    axis: _Axis = -1,
    temperature: ArrayLike = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    min_p: ArrayLike | None = None,
    size: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
    rng: int
    | np.random.SeedSequence
    | np.random.Generator
    | np.random.RandomState
    | Sequence[Any]
    | NDArray[Any]
    | None = None,
    where: ArrayLike | None = None,
    out: NDArray[np.int64] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Draw classes from rows of logits.

    Temperature, top-k, top-p and min-p are applied in this order, each to the result of the one before; ties at a
    boundary go to the lowest index. Each option is a number, or an array with one number for each row.

    Parameters
    ----------
    logits : array_like of shape (..., K)
        Logits in one of the dtypes of `softmax`; K is the length of `axis`.
    axis : int, tuple of ints or None, default -1
        Axis or axes of the classes.
    temperature : float or array_like, broadcastable to the rows, default 1.0
        T >= 0; 0 selects the largest logit.
    top_k : int or array_like of int, optional
        At least 1: only the k largest logits are kept. 0 and -1 are no limit.
    top_p : float or array_like, optional
        In (0, 1]: only the smallest set of most probable classes whose mass is at least top_p (Holtzman et al. 2020).
    min_p : float or array_like, optional
        In [0, 1]: only classes with at least min_p times the probability of the most probable one (Nguyen et al. 2025).
    size : int or tuple of ints, optional
        Shape of the draws from each row; None means one draw, without an extra axis.
    rng : int, SeedSequence, Generator or RandomState of numpy.random, or a sequence of them, one a row, optional
        Source of the uniform numbers, or a seed for it. With a sequence (of the shape of the rows, or one source for
        each row in C order) a row's draws come from its own source, and do not depend on the other rows of its batch.
    where : array_like of bool, broadcastable to logits, optional
        Mask. Classes where it is False are never drawn.
    out : ndarray of int64 of the shape of the result, optional
        Array that receives the result.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of int64, or a scalar for one row and no size
        Indices of the shape of the rows, followed by `size`. CuPy logits give a CuPy array.

    Raises
    ------
    ValueError
        If a parameter is out of range, or a row has no mass: it holds NaN or +inf, or only -inf, or `where` leaves
        nothing of it, or it has no classes.
    TypeError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Each draw consumes one number u of ``rng.random``, in C order of the result (of ``default_rng(rng[i]).random(size)``
    for row i of a sequence), and is the first class at which the running sum of the probabilities exceeds u. The sum
    runs over the classes that are left, in the order of their indices: each class owns an interval of [0, 1) whose
    length is its probability. A call that raises leaves the generators of `rng` as they were. The same generator
    therefore gives the same draws for every number of threads, layout, instruction set and
    device. On a CUDA device the call waits: parameters that lie there are copied, and rows without mass raise.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))
    >>> csoftmax.sample(logits, size=5, rng=0)
    array([[0, 0, 0, 0, 1],
           [2, 2, 2, 2, 2]])
    >>> csoftmax.sample(logits, temperature=[1.0, 0.0], top_k=2, rng=0)
    array([0, 2])
    >>> csoftmax.sample(logits, top_k=[2, -1], rng=[7, 8])
    array([0, 2])
    >>> csoftmax.sample(logits[1:], rng=[8])
    array([2])
    """
    return _run_sample(
        logits,
        axis,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        size=size,
        rng=rng,
        where=where,
        out=out,
        device=device,
        num_threads=num_threads,
    )
