"""Optimisers that visit only the rows that have a gradient."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.layouts import overlaps_itself
from .._arguments.numbers import check_non_negative, check_num_threads, check_positive
from .._arguments.places import DeviceError, is_cupy
from .._cpu import binding
from .._cpu.dtypes import as_buffer, compute_dtype, dtype_code, is_bfloat16
from .rows import RowGradient, apart_from

__all__ = ["RowOptimizer"]

KINDS = ("rowwise_adagrad", "adagrad", "adam", "sgd")
ARRAYS = {"adagrad": ("sum",), "adam": ("mean", "square")}  # of the shape of the weights


class _State(NamedTuple):
    """What an optimiser keeps for an array of weights."""

    shape: tuple[int, ...]
    dtype: Any
    first: NDArray[Any] | None  # sums of squares, or Adam's means of gradients
    second: NDArray[Any] | None  # Adam's means of squares
    visits: NDArray[np.uint32] | None  # Adam: of each row
    last: NDArray[np.int64] | None  # the step up to which each row has decayed
    step: int


class RowOptimizer:
    """An optimiser whose step visits only the rows of the weights that have a gradient.

    A step costs time in proportion to the rows that it is given, whatever the number of all rows, and its state is one
    number for each row ("rowwise_adagrad"), or one or two for each element.

    Parameters
    ----------
    kind : {"rowwise_adagrad", "adagrad", "adam", "sgd"}, default "rowwise_adagrad"
        With g the gradient of a row w, eta the learning rate and elementwise operations:

        - "sgd": ``w -= eta * g``
        - "adagrad" (Duchi et al. 2011): ``G += g**2``, ``w -= eta * g / sqrt(G + 1e-8)``
        - "rowwise_adagrad": the same with one G for a row, ``G += mean(g**2)``, as recommenders train their embeddings
        - "adam": lazy Adam (Kingma & Ba 2015; betas 0.9, 0.999, epsilon 1e-8 added to the root). Each row has moments
          and a number of steps of its own, which change only when it has a gradient: it takes the steps that Adam
          would take on its gradients alone. Dense Adam would also move rows without a gradient.
    learning_rate : float > 0, default 0.3
        eta. The attribute may be changed between steps.
    penalty_l2 : float >= 0, default 0.0
        Weight decay lambda, decoupled from the gradient (Loshchilov & Hutter 2019): before a step, w is multiplied by
        1 - eta lambda. A row without a gradient is not visited; when it is, it is multiplied by (1 - eta lambda)^k for
        the k steps since its last visit, which is exact if eta has not changed. eta lambda is at most 1.
    num_threads : int, optional
        Upper bound on the number of threads.

    Notes
    -----
    The state is kept under the names that `update` is given; its dtype is float64 for float64, else float32, in which
    the step is computed. Bits depend neither on threads nor on the instruction set.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.heads import RowOptimizer
    >>> optimizer = RowOptimizer("sgd", 0.5)
    >>> w = np.ones((3, 2))
    >>> optimizer.update("w", w, np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
    >>> w
    array([[1. , 1. ],
           [0.5, 1. ],
           [1. , 0. ]])
    """

    def __init__(
        self,
        kind: Literal["rowwise_adagrad", "adagrad", "adam", "sgd"] = "rowwise_adagrad",
        learning_rate: float = 0.3,
        *,
        penalty_l2: float = 0.0,
        num_threads: SupportsIndex | None = None,
    ) -> None:
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
        self.kind = kind
        self.penalty_l2 = check_non_negative("penalty_l2", penalty_l2)
        self.learning_rate = learning_rate
        self.num_threads = check_num_threads(num_threads)
        self._states: dict[str, _State] = {}

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        rate = check_positive("learning_rate", value)
        if rate * self.penalty_l2 > 1:
            raise ValueError(
                f"learning_rate * penalty_l2 must be at most 1, or weights change sign; got {rate} * {self.penalty_l2}"
            )
        self._learning_rate = rate

    @property
    def nbytes(self) -> int:
        """Bytes of the state of all names."""
        arrays = (a for state in self._states.values() for a in state[2:6] if a is not None)
        return sum(int(a.nbytes) for a in arrays)  # type: ignore[union-attr]

    def update(self, name: str, w: NDArray[Any], g: RowGradient | ArrayLike) -> None:
        """Take one step on w, in place.

        Parameters
        ----------
        name : str
            Name under which the state of w is kept.
        w : ndarray of shape (K, D) or (K,)
            Weights of a real dtype of csoftmax, in any layout; its shape and dtype are those of the first step.
        g : RowGradient, or array_like of the shape of w
            The gradient of some rows, or of all of them. An array visits each row, also one whose gradient is 0.

        Raises
        ------
        TypeError, ValueError
            If an argument has another type, shape or dtype; nothing is written then.
        IndexError
            If a row is negative or not less than K.
        DeviceError
            If w is on a CUDA device.
        """
        check_weights(w)
        rows, values = read_gradient(g, w)
        state = self._state_of(name, w)._replace()
        state = state._replace(step=state.step + 1)
        self._run(w, rows, values, state)
        self._states[name] = state

    def apply_decay(self, name: str, w: NDArray[Any], rows: ArrayLike | None = None) -> None:
        """Multiply rows by the decay that is due, so that they are what they would be had every step visited them.

        Does nothing without `penalty_l2`, or before the first step.

        Parameters
        ----------
        name, w
            As in `update`.
        rows : array_like of int, optional
            Distinct rows; default: all of them.

        Raises
        ------
        TypeError, ValueError, IndexError, DeviceError
            As in `update`.
        """
        check_weights(w)
        checked = None if rows is None else check_rows(np.asarray(rows), len(w))
        if self.penalty_l2 == 0 or name not in self._states:
            return
        self._run(w, checked, None, self._state_of(name, w))

    def forget(self, name: str | None = None) -> None:
        """Drop the state of a name, or of all names; decay that is due is lost.

        Parameters
        ----------
        name : str, optional
            Name that `update` was given.
        """
        if name is None:
            self._states.clear()
        else:
            self._states.pop(name, None)

    def _state_of(self, name: str, w: Any) -> _State:
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, got {name!r}")
        state = self._states.get(name)
        if state is None:
            return self._make_state(w)
        if state.shape != w.shape or state.dtype != w.dtype:
            raise ValueError(
                f"w has shape {w.shape} and dtype {w.dtype}, but {name!r} began with {state.shape} and {state.dtype}"
            )
        if self.penalty_l2 and state.last is None:
            raise ValueError("penalty_l2 was 0 at the first step and cannot become positive later")
        return state

    def _make_state(self, w: Any) -> _State:
        """The state before the first step: zeros, whose pages exist only when they are written."""
        compute, rows = compute_dtype(w.dtype), len(w)
        first = second = visits = None
        if self.kind == "rowwise_adagrad":
            first = np.zeros(rows, compute)
        elif self.kind in ARRAYS:
            first = np.zeros(w.shape, compute)
        if self.kind == "adam":
            second, visits = np.zeros(w.shape, compute), np.zeros(rows, np.uint32)
        last = np.zeros(rows, np.int64) if self.penalty_l2 else None
        return _State(w.shape, w.dtype, first, second, visits, last, 0)

    def _run(self, w: Any, rows: Any, values: Any, state: _State) -> None:
        buffer = as_buffer(w)
        binding.run_row_update(
            dtype_code(w.dtype),
            binding.OPTIMIZERS[self.kind],
            self.learning_rate,
            self.penalty_l2,
            buffer[:, None] if w.ndim == 1 else buffer,
            rows,
            values,
            state.first,
            state.second,
            state.visits,
            state.last if self.penalty_l2 else None,
            state.step,
            self.num_threads,
        )


def begin_step(optimizer: RowOptimizer, name: str, w: Any) -> _State:
    """The state of a step that a caller takes itself, on rows of w whose gradients it computes one by one."""
    if not w.flags.writeable:
        raise ValueError(f"{name} is read-only")
    state = optimizer._state_of(name, w)
    return _State(*state[:6], state.step + 1)


def check_state(optimizer: RowOptimizer, name: str, w: Any) -> None:
    """Refuse what `update` would: for a caller that takes several steps, of which none may fail after the first."""
    check_weights(w)
    if name in optimizer._states:
        optimizer._state_of(name, w)


def end_step(optimizer: RowOptimizer, name: str, state: _State) -> None:
    """Keep the state of a step that has been taken."""
    optimizer._states[name] = state


def check_weights(w: Any) -> None:
    """Refuse weights that cannot be changed in place."""
    if is_cupy(w):
        raise DeviceError("w is on a CUDA device, but row optimisers compute on the CPU: keep the weights there")
    if not isinstance(w, np.ndarray):
        raise TypeError(f"w must be a NumPy array, which is changed in place, got {type(w).__name__}")
    if w.ndim not in (1, 2):
        raise ValueError(f"w has shape {w.shape}; allowed are (K, D) and (K,)")
    if w.dtype.name not in binding.DTYPES or not (w.dtype.isnative or is_bfloat16(w.dtype)):
        raise TypeError(f"w has dtype {w.dtype}; allowed are {', '.join(binding.DTYPES)} in native byte order")
    if not w.flags.writeable:
        raise ValueError("w is read-only")
    if overlaps_itself(w):
        raise ValueError("w has elements that share memory")


def read_gradient(g: Any, w: Any) -> tuple[Any, Any]:
    """Rows (None: all) and values of a gradient of w: contiguous, the values with two axes in the compute type."""
    rows = None
    if isinstance(g, RowGradient):
        rows, g = check_rows(np.asarray(g.rows), len(w)), g.values
    if is_cupy(g):
        raise DeviceError("g is on a CUDA device, but w is not: pass g.get()")
    values = np.asarray(g)
    shape = w.shape if rows is None else (len(rows), *w.shape[1:])
    if values.shape != shape:
        raise ValueError(f"g has shape {values.shape}; w has shape {w.shape}, so {shape} is allowed")
    if values.dtype.kind not in "iuf" and not is_bfloat16(values.dtype):
        raise TypeError(f"g must hold real numbers, got dtype {values.dtype}")
    with np.errstate(over="ignore", under="ignore"):
        values = np.ascontiguousarray(apart_from(values, w), compute_dtype(w.dtype))
    return rows, values.reshape(len(values), -1 if values.size else (w.shape[1] if w.ndim == 2 else 1))


def check_rows(rows: Any, n: int) -> Any:
    """Distinct rows as int64; they are sorted in a RowGradient, which makes the check fast."""
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise TypeError(f"rows must be integers with one axis, got dtype {rows.dtype} and shape {rows.shape}")
    rows = np.array(rows, np.int64)  # a copy that no other thread can change after the check
    bad = np.flatnonzero((rows < 0) | (rows >= n))
    if len(bad):
        raise IndexError(f"rows[{bad[0]}] is {rows[bad[0]]}; w has {n} rows")
    if not (rows[1:] > rows[:-1]).all() and len(np.unique(rows)) < len(rows):
        raise ValueError("rows must be distinct: add the gradients of equal rows first")
    return rows
