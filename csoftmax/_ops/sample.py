"""Draws from rows of logits, filtered in a given order, with and without replacement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _cuda
from .._arguments.foreign import accept_foreign
from .._arguments.generators import check_uniforms, draw_uniforms, restore_states, save_states
from .._arguments.layouts import axis_last, check_out, check_where, masked, normalize_axes
from .._arguments.numbers import check_draws, check_flag, check_parameter
from .._arguments.places import DeviceError, Place, as_float, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.dtypes import as_buffer, compute_dtype

__all__ = ["Draws", "sample"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None
_POSITIVE, _UNIT = "greater than 0 and at most 1", "at least 0 and at most 1"
# The dtype of each parameter, its allowed values in words and as a test, and the value that changes nothing.
_PARAMETERS: dict[str, tuple[type, str, Any, float]] = {
    "temperature": (np.float64, "at least 0", lambda v: v >= 0, 1),
    "top_n_sigma": (np.float64, "at least 0", lambda v: v >= 0, math.inf),
    "top_k": (np.int64, "at least 1, or 0 or -1 for no limit", lambda v: v >= -1, 0),
    "typical_p": (np.float64, _POSITIVE, lambda v: (v > 0) & (v <= 1), 1),
    "top_p": (np.float64, _POSITIVE, lambda v: (v > 0) & (v <= 1), 1),
    "min_p": (np.float64, _UNIT, lambda v: (v >= 0) & (v <= 1), 0),
}


class Draws(NamedTuple):
    """The result of `sample` with `return_log_prob`.

    Attributes
    ----------
    indices : ndarray of int64 of the shape of the rows, followed by `size`
        The classes that have been drawn.
    log_prob : ndarray of the same shape
        Logarithms of their probabilities in the distributions that they have been drawn from: after the temperature
        and the filters, and without replacement after the draws before them. float64 for float64 and integer logits,
        else float32.
    raw_log_prob : ndarray of the same shape and dtype as log_prob
        ``log_softmax(logits, where=where)`` at the classes.
    """

    indices: Any
    log_prob: Any
    raw_log_prob: Any


class SamplePlan(NamedTuple):
    """A checked call of sample, with its uniform numbers."""

    dtype: int
    logits: Any
    uniforms: Any
    where: Any | None
    parameters: dict[str, Any]  # one value a row, or None; in the order of _PARAMETERS
    order: tuple[int, ...] | None
    replace: bool
    return_log_prob: bool
    num_threads: Any
    shape: tuple[int, ...]
    out: Any | None
    place: Place

    def execute(self) -> Any:
        """Draw, and return the indices or Draws."""
        if self.place.on_cuda:
            with self.place.context():
                return self._finish(self._run_on_cuda())
        indices = np.empty(self.uniforms.shape, np.int64)
        logs: list[Any] = [None, None]
        if self.return_log_prob:
            logs = [np.empty(indices.shape, compute_dtype(self.logits.dtype)) for _ in range(2)]
        if not self._run_on_cpu(None, indices, *logs):
            self._raise_for_a_row()
        if not self.return_log_prob:
            return self._finish(indices)
        return Draws(self._finish(indices), *(log.reshape(self.shape)[()] for log in logs))

    def _run_on_cpu(self, row: Any, indices: Any, *logs: Any) -> bool:
        """Draw from all rows, or from one; whether that is possible."""
        arrays = as_buffer(self.logits), self.uniforms, self.where, *self.parameters.values()
        if row is not None:
            arrays = tuple(None if a is None else a[row] for a in arrays)
        x, uniforms, where, temperature, top_n_sigma, top_k, typical_p, top_p, min_p = arrays
        usual = where, temperature, top_k, top_p, min_p, self.num_threads
        more = typical_p, top_n_sigma, self.order, self.replace, *logs
        return binding.run_sample(self.dtype, x, uniforms, indices, *usual, *more)

    def _raise_for_a_row(self) -> NoReturn:
        """Raise for the first row that cannot be drawn from."""
        draws = self.uniforms.shape[-1]
        for row in np.ndindex(self.logits.shape[:-1]) if not self.replace else ():
            if not np.isfinite(self._largest(row)):
                break
            if not self._run_on_cpu(row, np.empty(draws, np.int64), None, None):
                raise ValueError(
                    f"size must be at most the number of classes without replacement, got {draws}: row "
                    f"({', '.join(map(str, row))}) has fewer that are left by where and the filters"
                )
        self._raise_without_mass(self._find_without_mass())

    def _find_without_mass(self) -> int:
        """The number of the first row whose largest logit is not finite."""
        rows = np.ndindex(self.logits.shape[:-1])
        found = next((i for i, row in enumerate(rows) if not np.isfinite(self._largest(row))), None)
        if found is None:  # not StopIteration, at which a generator of the caller's would end without a word
            raise RuntimeError("the filters have left no class of a row that has mass, which is a fault of csoftmax")
        return found

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
        usual = (self.parameters[name] for name in ("temperature", "top_k", "top_p", "min_p"))
        parameters = (None if p is None else p.reshape(rows) for p in usual)
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
            why = None
        raise_without_mass(row, largest, why)


def raise_without_mass(row: tuple[Any, ...], largest: float, why: str | None = None) -> NoReturn:
    """Raise for a row without mass, whose largest logit is not finite; why: another reason."""
    held = "only -inf" if largest == -np.inf else "NaN" if largest != largest else "+inf"
    place = ", ".join(map(str, row))
    raise ValueError(f"logits have no mass to draw from in row ({place}): {why or f'it holds {held}'}")


def check_parameters(given: dict[str, Any], batch: tuple[int, ...]) -> dict[str, Any]:
    """Parameters as arrays with one number a row, or None."""
    return {name: check_parameter(name, value, batch, *_PARAMETERS[name][:3]) for name, value in given.items()}


def plan_sample(
    logits: Any,
    axis: Any,
    *,
    size: Any,
    rng: Any,
    order: Any = None,
    replace: Any = True,
    uniforms: Any = None,
    return_log_prob: Any = False,
    where: Any = None,
    out: Any = None,
    device: str | None = None,
    num_threads: Any = None,
    **given: Any,
) -> SamplePlan:
    """Check a call of sample, and draw its uniform numbers; `given` are the parameters."""
    replace, return_log_prob = check_flag("replace", replace), check_flag("return_log_prob", return_log_prob)
    place = place_of(device, logits)
    with place.context():
        x, dtype = as_float("logits", logits, place)
        axes = normalize_axes(axis, x.ndim)
        mask = None if where is None else check_where(where, x.shape, place, "logits")
        if x.ndim == 0:
            x, mask = x.reshape(1), None if mask is None else mask.reshape(1)
        x = axis_last(x, axes)
        mask = None if mask is None else axis_last(mask, axes)
        batch = x.shape[:-1]
        parameters: dict[str, Any] = dict.fromkeys(_PARAMETERS)
        for name, value in given.items():
            if value is None or (value == 1.0 if name == "temperature" and type(value) is float else False):
                continue  # the usual case
            if place.on_cuda or place.moves:  # they are few, and are checked on the CPU
                (value,) = to_host(value)
            parameters |= check_parameters({name: value}, batch)
        numbers = None if order is None else _check_order(order, parameters)
        draws = check_draws(size)
        if not replace:
            _check_temperature_zero(parameters["temperature"], math.prod(draws))
        if place.on_cuda:
            _check_options_of_kernels(parameters, numbers, replace, return_log_prob)
        if out is not None:
            check_out(out, batch + draws, np.dtype(np.int64), place)
        if uniforms is None:
            uniforms = draw_uniforms(to_host(rng)[0], batch, draws)
        elif rng is not None:
            raise ValueError("rng must be None where uniforms are given, because they take its place")
        else:
            uniforms = check_uniforms(to_host(uniforms)[0], batch, draws)
    options = numbers, replace, return_log_prob, num_threads
    return SamplePlan(dtype, x, uniforms, mask, parameters, *options, batch + draws, out, place)


def _check_order(order: Any, parameters: dict[str, Any]) -> tuple[int, ...]:
    """The numbers of the filters in the order in which they are applied."""
    names = ", ".join(f'"{name}"' for name in _PARAMETERS)
    if isinstance(order, str) or not isinstance(order, Sequence):
        raise TypeError(f"order must be a sequence of the names {names}, or None, got {order!r}")
    for name in order:
        if not isinstance(name, str) or name not in _PARAMETERS:
            raise ValueError(f"order must hold names among {names}, got {name!r}")
        if list(order).count(name) > 1:
            raise ValueError(f'order must name each filter once, got "{name}" {list(order).count(name)} times')
    for name, values in parameters.items():
        is_used = values is not None and (name != "temperature" or bool(np.any(values != 1)))
        if is_used and name not in order:
            raise ValueError(f'order must name every filter that is given, got {tuple(order)!r} without "{name}"')
    return tuple(binding.FILTERS[name] for name in order)


def _check_temperature_zero(temperature: Any, draws: int) -> None:
    """Refuse a temperature of 0 for several draws without replacement: the second would have nothing to come from."""
    if temperature is None or draws <= 1 or not np.any(temperature == 0):
        return
    row = np.unravel_index(int(np.argmax(temperature == 0)), temperature.shape)
    raise ValueError(
        f"temperature must be greater than 0 for {draws} draws without replacement, got 0 for row "
        f"({', '.join(map(str, row))}), where only the largest logit has a probability"
    )


def _check_options_of_kernels(
    parameters: dict[str, Any], order: tuple[int, ...] | None, replace: bool, return_log_prob: bool
) -> None:
    """Refuse options that have no kernels for CUDA."""
    used = [
        name for name, values in parameters.items() if values is not None and np.any(values != _PARAMETERS[name][3])
    ]
    usual = [binding.FILTERS[name] for name in used]
    lacking = [f"{name}=" for name in ("top_n_sigma", "typical_p") if name in used]
    if order is not None and [number for number in order if number in usual] != usual:
        lacking.append("order=")
    lacking += ["replace=False"] * (not replace) + ["return_log_prob=True"] * return_log_prob
    if lacking:
        raise DeviceError(f'{lacking[0]} has no kernels for CUDA. device="cpu" computes on the CPU.')


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
    typical_p: ArrayLike | None = None,
    top_n_sigma: ArrayLike | None = None,
    order: Sequence[str] | None = None,
    where: ArrayLike | None = None,
    size: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
    replace: bool = True,
    rng: int
    | np.random.SeedSequence
    | np.random.Generator
    | np.random.RandomState
    | Sequence[Any]
    | NDArray[Any]
    | None = None,
    uniforms: ArrayLike | None = None,
    return_log_prob: bool = False,
    out: NDArray[np.int64] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Draw classes from rows of logits.

    Temperature, top_n_sigma, top_k, typical_p, top_p and min_p are applied in this order or in a given one, each to
    what the one before has left, renormalised; ties at a boundary go to the lowest index. Each of them is a number, or
    an array with one number for each row.

    Parameters
    ----------
    logits : array_like of shape (..., K)
        Logits in one of the dtypes of `softmax`; K is the length of `axis`.
    axis : int, tuple of ints or None, default -1
        Axis or axes of the classes.
    temperature : float or array_like, broadcastable to the rows, default 1.0
        T >= 0; 0 selects the largest logit that is left where it is applied.
    top_k : int or array_like of int, optional
        At least 1: only the k largest logits are kept. 0 and -1 are no limit.
    top_p : float or array_like, optional
        In (0, 1]: only the smallest set of most probable classes whose mass is at least top_p (Holtzman et al. 2020).
    min_p : float or array_like, optional
        In [0, 1]: only classes with at least min_p times the probability of the most probable one (Nguyen et al. 2025).
    typical_p : float or array_like, optional
        In (0, 1]: only the smallest set of mass at least typical_p of the classes whose -log p are nearest to the
        entropy (Meister et al. 2023).
    top_n_sigma : float or array_like, optional
        n >= 0: only logits of at least max - n sigma, sigma being the standard deviation (that of a population) of the
        finite logits that are left (Tang et al. 2024). Infinity is no limit.
    order : sequence of str, optional
        Names of the parameters above in the order in which they are applied: each one that is given once,
        "temperature" unless it is 1, and any others. None is the order above.
    where : array_like of bool, broadcastable to logits, optional
        Mask. Classes where it is False are never drawn.
    size : int or tuple of ints, optional
        Shape of the draws from each row; None means one draw, without an extra axis.
    replace : bool, default True
        If False, the draws of a row are made one after the other, each from the classes that the filters and the
        draws before it have left, and are distinct.
    rng : int, SeedSequence, Generator or RandomState of numpy.random, or a sequence of them, one a row, optional
        Source of the uniform numbers, or a seed for it. With a sequence (of the shape of the rows, or one source for
        each row in C order) a row's draws come from its own source, and do not depend on the other rows of its batch.
    uniforms : array_like of float64 of the shape of the result, optional
        The uniform numbers themselves, in [0, 1), in place of rng.
    return_log_prob : bool, default False
        Whether the logarithms of the probabilities are returned, too.
    out : ndarray of int64 of the shape of the result, optional
        Array that receives the indices.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of int64, or a scalar for one row and no size
        Indices of the shape of the rows, followed by `size`. CuPy logits give a CuPy array.
    Draws
        With return_log_prob: (indices, log_prob, raw_log_prob).

    Raises
    ------
    ValueError
        If a parameter is out of range; a row has no mass: it holds NaN or +inf, or only -inf, or `where` leaves
        nothing of it, or it has no classes; it has fewer classes than draws without replacement, or the temperature 0
        for several of them; rng and uniforms are both given; order names a filter twice or lacks one that is given.
    TypeError, MemoryError
        As in `softmax`.
    DeviceError
        As in `softmax`, and on a CUDA device with typical_p, top_n_sigma, another order, replace=False or
        return_log_prob, which have no kernels there.

    Notes
    -----
    Each draw consumes one number u of ``rng.random``, in C order of the result (of ``default_rng(rng[i]).random(size)``
    for row i of a sequence), and is the first class at which the running sum of the probabilities exceeds u. The sum
    runs over the classes that are left, in the order of their indices: each class owns an interval of [0, 1) whose
    length is its probability. A call that raises leaves the generators of `rng` as they were. The same generator
    therefore gives the same draws for every number of threads, layout, instruction set and
    device. On a CUDA device the call waits: parameters that lie there are copied, and rows without mass raise.

    top_k, top_p and typical_p compare the logits as they are: at an infinite temperature, where all probabilities are
    equal, they keep the classes that they keep at a very large one. Draws without replacement read 4096 classes and a
    record of each 4096 others; their first one is that of ``replace=True``.

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
    >>> csoftmax.sample(logits, uniforms=[0.75, 0.15])
    array([1, 1])
    >>> csoftmax.sample(logits, size=3, replace=False, rng=0)
    array([[0, 1, 2],
           [0, 2, 1]])
    >>> draws = csoftmax.sample(logits, top_k=2, uniforms=[0.9, 0.9], return_log_prob=True)
    >>> draws.indices
    array([1, 2])
    >>> np.exp(draws.log_prob).round(3), np.exp(draws.raw_log_prob).round(3)
    (array([0.222, 0.889]), array([0.2, 0.8]))
    """
    return _run_sample(
        logits,
        axis,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        top_n_sigma=top_n_sigma,
        order=order,
        size=size,
        replace=replace,
        rng=rng,
        uniforms=uniforms,
        return_log_prob=return_log_prob,
        where=where,
        out=out,
        device=device,
        num_threads=num_threads,
    )
