"""Softmax and log-sum-exp of rows that arrive in pieces."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.layouts import check_where
from .._arguments.numbers import check_count, check_temperature
from .._arguments.places import as_float
from .._cpu.dtypes import is_bfloat16
from .stream_bytes import dtype_named, read_bytes, write_bytes
from .stream_rows import (
    BLOCK,
    FIELDS,
    Blocks,
    Kind,
    Sums,
    join_padded,
    make_blocks,
    mean_of,
    needs_elements,
    probabilities_of,
    total_of,
)

__all__ = ["SoftmaxState"]

_PART = 1 << 21  # elements and numbers of values that are taken between two chances to interrupt


class SoftmaxState:
    """Softmax of rows that arrive in pieces: the log-sum-exp, probabilities and weighted means of all that has come.

    Parameters
    ----------
    shape : tuple of int or int, default ()
        Shape of the batch: one row for each of its elements, () for a single row.
    dtype : dtype, default numpy.float32
        Of the elements: float16, bfloat16 (``ml_dtypes``), float32 or float64.
    temperature : float, default 1.0
        T >= 0, as in `softmax`.
    values : tuple of int or int, optional
        Shape of what `weighted_mean` averages, the V of attention; None if nothing is averaged.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Notes
    -----
    A row is cut into blocks of 4096 elements, and its blocks are combined without rounding. The state keeps 144 bytes
    of each finished block and the elements of the unfinished one. Therefore `logsumexp` and `probabilities` have the
    bits of the functions of the same names for the whole row, however the stream was cut into pieces. Blocks with a
    maximum near or beyond the ordinary range of exp (abs(x / T) of 10**6, float64 2**45) keep their elements as well,
    and with a temperature below 2**-60 or above 2**60 (float64: 2**500) all do.

    Weighted means are sums in float64 in the order of the stream, divided once at the end. Milakov & Gimelshein,
    "Online normalizer calculation for softmax" (2018), describe the running maximum and sum that this replaces. Methods
    may be called from several threads.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> x = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    >>> state = csoftmax.SoftmaxState()
    >>> for piece in np.split(x, [7, 4000, 9999]):
    ...     _ = state.update(piece)
    >>> state.logsumexp() == csoftmax.logsumexp(x)
    np.True_
    """

    def __init__(
        self,
        shape: Any = (),
        dtype: DTypeLike = np.float32,
        *,
        temperature: float = 1.0,
        values: Any = None,
    ):
        self._shape = _check_shape("shape", shape)
        self._values = None if values is None else _check_shape("values", values)
        self._kind = Kind(_check_dtype(dtype), check_temperature(temperature, False))
        self._rows = math.prod(self._shape)
        self._clear()
        self._lock = threading.RLock()

    def _clear(self) -> None:
        self._blocks: list[Blocks] = []
        self._kept: list[tuple[Any, Any]] = []  # elements and values of the blocks that may be transformed
        self._tail = np.empty((self._rows, 0), self._kind.dtype)
        self._filled = 0
        self._tail_values = None if self._values is None else np.empty((self._rows, 0, self._width), self._kind.dtype)
        self._counts = np.zeros(self._rows, np.int64)
        self._has_nan = np.zeros(self._rows, bool)
        self._sums = Sums(self._rows, self._width)

    @property
    def _width(self) -> int:
        return 0 if self._values is None else math.prod(self._values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the batch.

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.SoftmaxState(3).shape
        (3,)
        """
        return self._shape

    @property
    def dtype(self) -> Any:
        """Dtype of the elements.

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.SoftmaxState().dtype
        dtype('float32')
        """
        return self._kind.dtype

    def update(self, x: ArrayLike, values: ArrayLike | None = None, where: ArrayLike | None = None) -> SoftmaxState:
        """Append elements to the rows.

        Parameters
        ----------
        x : array_like of shape (*shape, n)
            The next n elements of each row, rounded to the dtype of the state.
        values : array_like of shape (*shape, n, *values), optional
            What is averaged, one for each element; needed if, and only if, the state has `values`. It is not read
            where x is -inf or masked.
        where : array_like of bool, broadcastable to x, optional
            Mask. Elements where it is False are left out.

        Returns
        -------
        SoftmaxState
            The state itself.

        Raises
        ------
        TypeError, ValueError
            The message names the argument, its value and what is allowed; the state is unchanged.

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.SoftmaxState().update([1.0, 2.0]).update([3.0]).count()
        np.int64(3)
        """
        _append(x, values, where, self)
        return self

    def _append(self, x: Any, values: Any | None, mask: Any | None) -> None:
        """Take (rows, n) elements, values (rows, n, width) and a mask of the shape of x, or nothing at all.

        Parts of whole blocks are taken one after another, between which the call may be interrupted.
        """
        before, blocks, kept = dict(self.__dict__), len(self._blocks), len(self._kept)
        step = max(1, _PART // max(1, self._rows * (1 + self._width)) // BLOCK) * BLOCK
        try:
            for begin in range(0, x.shape[1], step):
                part = (slice(None), slice(begin, begin + step))
                self._append_part(*(None if a is None else a[part] for a in (x, values, mask)))
        except BaseException:
            self.__dict__.update(before)
            del self._blocks[blocks:], self._kept[kept:]
            raise

    def _append_part(self, x: Any, values: Any | None, mask: Any | None) -> None:
        """Take a part. What the state holds is replaced, or written behind the elements that count, never changed."""
        x = _round_to(self.dtype, x)
        if mask is not None:
            x = np.where(mask, x, np.array(-np.inf).astype(x.dtype))
            self._counts = self._counts + np.count_nonzero(mask, axis=1)
        else:
            self._counts = self._counts + x.shape[1]
        if values is not None:
            absent = np.asarray(x == np.array(-np.inf).astype(x.dtype))
            values = np.where(absent[..., None], np.zeros((), self.dtype), _round_to(self.dtype, values))
        self._has_nan = self._has_nan | np.isnan(x).any(axis=1)
        begin = min(BLOCK - self._filled, x.shape[1]) if self._filled else 0
        if begin:
            self._fill(x[:, :begin], None if values is None else values[:, :begin])
        end = begin + (x.shape[1] - begin) // BLOCK * BLOCK
        if end > begin:
            self._finish(x[:, begin:end], None if values is None else values[:, begin:end])
        if x.shape[1] > end:
            self._fill(x[:, end:], None if values is None else values[:, end:])

    def _fill(self, x: Any, values: Any | None) -> None:
        """Add elements to the unfinished block, and finish it if it is full."""
        filled = self._filled + x.shape[1]
        self._tail = _grown(self._tail, self._filled, filled)
        self._tail[:, self._filled : filled] = x
        if values is not None:
            self._tail_values = _grown(self._tail_values, self._filled, filled)
            self._tail_values[:, self._filled : filled] = values
        self._filled = filled
        if filled == BLOCK:
            self._close()

    def _unfinished(self) -> tuple[Any, Any]:
        """Elements and values of the unfinished block."""
        values = None if self._tail_values is None else self._tail_values[:, : self._filled]
        return self._tail[:, : self._filled], values

    def _close(self) -> None:
        """Finish the unfinished block as it is."""
        if not self._filled:
            return
        x, values = self._unfinished()
        self._finish(x, values)
        self._tail = np.empty((self._rows, 0), self._kind.dtype)
        if values is not None:
            self._tail_values = np.empty((self._rows, 0, self._width), self._kind.dtype)
        self._filled = 0

    def _finish(self, x: Any, values: Any | None) -> None:
        """Turn elements into finished blocks."""
        blocks = make_blocks(x, values, self._kind)
        if blocks.sums is not None:
            self._sums = self._sums.copy()
            self._sums.add(blocks.sums, blocks.softmax)
        self._blocks.append(blocks._replace(sums=None))
        if needs_elements(blocks, self._kind):
            for i in range(0, x.shape[1], BLOCK):
                part = slice(i, i + BLOCK)
                self._kept.append((x[:, part].copy(), None if values is None else values[:, part].copy()))

    def _total(self) -> tuple[Any, Blocks | None]:
        """The sums of the rows, and the unfinished block."""
        x, values = self._unfinished()
        tail = make_blocks(x, values, self._kind) if self._filled else None
        blocks = [*self._blocks, *([] if tail is None else [tail])]
        kept = [*(e for e, _ in self._kept), x]
        return total_of(blocks, kept, self._has_nan, self._counts, self._kind), tail

    def merge(self, other: SoftmaxState) -> SoftmaxState:
        """Append the rows of another state, in place.

        Parameters
        ----------
        other : SoftmaxState
            A state with the same shape, dtype, temperature and shape of values; it is not changed.

        Returns
        -------
        SoftmaxState
            The state itself.

        Raises
        ------
        TypeError, ValueError
            If the two do not fit together.

        Notes
        -----
        If this state holds a multiple of 4096 elements a row, `logsumexp` and `probabilities` have the bits of the
        whole rows. Otherwise its unfinished block ends here: the accuracy is the same, but the last bits depend on the
        cut. Those of `weighted_mean` always do: the sums of the other state are added as one number.

        Examples
        --------
        >>> import csoftmax
        >>> first = csoftmax.SoftmaxState().update([1.0])
        >>> first.merge(csoftmax.SoftmaxState().update([1.0])).logsumexp()
        np.float32(1.6931472)
        """
        if not isinstance(other, SoftmaxState):
            raise TypeError(f"other must be a SoftmaxState, got {type(other).__name__}")
        mine, others = self._describe(), other._describe()
        for key, value in mine.items():
            if others[key] != value:
                raise ValueError(
                    f"other has {key} {others[key]!r}, and this state has {value!r}: they must be the same"
                )
        with other._lock:
            taken = other._copy()
        with self._lock:
            self._close()
            self._blocks += taken._blocks
            self._kept += taken._kept
            self._tail, self._tail_values, self._filled = taken._tail, taken._tail_values, taken._filled
            self._counts = self._counts + taken._counts
            self._has_nan = self._has_nan | taken._has_nan
            self._sums.add_scaled(taken._sums.total, taken._sums.n)
        return self

    def _restore(self, found: dict[str, Any], filled: int, kept: list[int]) -> None:
        """Take over what `_arrays` gives, and the lengths of the unfinished block and of those that are kept."""
        if found["log"].shape[1]:
            self._blocks = [Blocks(found["log"], found["softmax"], None)]
        ends = np.cumsum(kept, dtype=np.int64)[:-1]
        values = found.get("kept_values")
        pieces = np.split(found["kept"], ends, axis=1) if kept else []
        beside = [None] * len(kept) if values is None or not kept else np.split(values, ends, axis=1)
        self._kept = list(zip(pieces, beside, strict=True))
        self._tail, self._filled = found["tail"], filled
        self._tail_values = found.get("tail_values")
        self._counts, self._has_nan = found["counts"], found["has_nan"]
        self._sums.total, self._sums.n = found["totals"], found["exponents"]

    def _describe(self) -> dict[str, Any]:
        return {
            "shape": self._shape,
            "dtype": self._kind.dtype.name,
            "temperature": self._kind.temperature,
            "values": self._values,
        }

    def logsumexp(self) -> Any:
        """Return the log-sum-exp of all elements.

        Returns
        -------
        scalar or ndarray of the shape of the batch
            As `csoftmax.logsumexp` gives it for the whole rows; -inf for rows without elements.

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.SoftmaxState().update([0.0, 0.0]).logsumexp()
        np.float32(0.6931472)
        """
        with self._lock:
            return self._rounded(self._total()[0].lse)

    def _rounded(self, x: Any) -> Any:
        """Numbers of the rows in the dtype of the state, by way of the type that it computes in."""
        with np.errstate(over="ignore", under="ignore"):
            wide = x.astype(np.float32 if self._kind.is_single else np.float64)
            return wide.astype(self._kind.dtype).reshape(self._shape + x.shape[1:])[()]

    def probabilities(self, x: ArrayLike, where: ArrayLike | None = None) -> Any:
        """Return the probabilities of elements in the softmax of all that has come.

        Parameters
        ----------
        x : array_like of shape (*shape, n)
            Elements of the rows, any piece of what was appended, rounded to the dtype of the state.
        where : array_like of bool, broadcastable to x, optional
            Mask. Elements where it is False are not read, and have the probability 0.

        Returns
        -------
        array of the shape of x
            As `softmax` of the whole rows gives them, in the dtype of the state; 0 in rows without elements. An
            element that was masked when it came, or never came, gets ``exp(x / T - logsumexp())``, which may be above
            1, and changes no other.

        Raises
        ------
        TypeError, ValueError
            If x does not fit the state.

        Examples
        --------
        >>> import csoftmax
        >>> state = csoftmax.SoftmaxState().update([0.0, 1.0]).update([2.0])
        >>> state.probabilities([1.0, 2.0]).round(4)
        array([0.2447, 0.6652], dtype=float32)
        """
        return _probabilities(x, where, self)

    def weighted_mean(self) -> Any:
        """Return the means of the values, weighted with the softmax of the elements: attention over all pieces.

        Returns
        -------
        scalar or ndarray of shape (*shape, *values)
            In the dtype of the state; 0 in rows whose log-sum-exp is -inf.

        Raises
        ------
        ValueError
            If the state has no values.

        Notes
        -----
        The error is at most (n + 4) 2^-53 of the weighted mean of abs(values), n the number of elements, besides that
        of the weights, 1 ULP of the dtype, and the rounding of the result.

        Examples
        --------
        >>> import numpy as np
        >>> import csoftmax
        >>> state = csoftmax.SoftmaxState(values=2)
        >>> _ = state.update([0.0, 0.0], values=[[1.0, 2.0], [3.0, 4.0]])
        >>> state.weighted_mean()
        array([2., 3.], dtype=float32)
        """
        if self._values is None:
            raise ValueError("the state has no values: pass values=, the shape of what is averaged, when it is made")
        with self._lock:
            totals, tail = self._total()
            sums = self._sums.copy()
            if tail is not None:
                sums.add(tail.sums, tail.softmax)
            if totals.transformed.any():
                chosen = totals.transformed
                kept = [*self._kept, self._unfinished()]
                x = join_padded([e[chosen] for e, _ in kept], -np.inf)
                values = join_padded([v[chosen] for _, v in kept], 0.0)
                made = make_blocks(x, values, self._kind, np.ascontiguousarray(totals.maxima[chosen]))
                again = Sums(len(x), self._width)
                again.add(made.sums, made.softmax)
                sums.total[chosen], sums.n[chosen] = again.total, again.n
            return self._rounded(mean_of(sums, totals)).reshape(self._shape + self._values)[()]

    def max(self) -> Any:
        """Return the largest elements of the rows.

        Returns
        -------
        scalar or ndarray of the shape of the batch
            In the dtype of the state; -inf for rows without elements, NaN for rows with NaN.

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.SoftmaxState().update([1.0, 3.0]).update([2.0]).max()
        np.float32(3.0)
        """
        with self._lock:
            return self._rounded(np.where(self._has_nan, np.nan, self._total()[0].maxima))

    def count(self) -> Any:
        """Return the numbers of elements that have been appended and not masked.

        Returns
        -------
        int64 scalar, or ndarray of the shape of the batch
            One number for each row.

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.SoftmaxState(2).update([[1.0, 2.0], [3.0, 4.0]], where=[[True, False], [True, True]]).count()
        array([1, 2])
        """
        with self._lock:
            return self._counts.copy().reshape(self._shape)[()]

    def copy(self) -> SoftmaxState:
        """Return an independent copy.

        Returns
        -------
        SoftmaxState
            A state with the same contents.

        Examples
        --------
        >>> import csoftmax
        >>> state = csoftmax.SoftmaxState().update([1.0])
        >>> _ = state.copy().update([2.0])
        >>> state.count()
        np.int64(1)
        """
        with self._lock:
            return self._copy()

    def _copy(self) -> SoftmaxState:
        other = SoftmaxState(self._shape, self._kind.dtype, temperature=self._kind.temperature, values=self._values)
        other._blocks, other._kept = list(self._blocks), list(self._kept)  # which nothing changes
        other._tail = self._tail.copy()
        other._tail_values = None if self._tail_values is None else self._tail_values.copy()
        other._filled = self._filled
        other._counts, other._has_nan = self._counts.copy(), self._has_nan.copy()
        other._sums = self._sums.copy()
        return other

    def to_bytes(self) -> bytes:
        """Return the state as bytes, for files and other processes.

        Returns
        -------
        bytes
            Little-endian and the same on every machine: a line that names the class, a JSON header with its version,
            arrays, and the SHA-256 of everything before it.

        Examples
        --------
        >>> import csoftmax
        >>> state = csoftmax.SoftmaxState().update([1.0, 2.0])
        >>> csoftmax.SoftmaxState.from_bytes(state.to_bytes()).logsumexp() == state.logsumexp()
        np.True_
        """
        with self._lock:
            kept = [e.shape[1] for e, _ in self._kept]
            return write_bytes({**self._describe(), "filled": self._filled, "kept": kept}, self._arrays())

    def _arrays(self) -> dict[str, Any]:
        """All arrays of the state, in the order of its bytes."""
        none = np.zeros((self._rows, 0, FIELDS))
        x, values = self._unfinished()
        found = {
            "log": np.concatenate([none, *(b.log for b in self._blocks)], axis=1),
            "softmax": np.concatenate([none, *(b.softmax for b in self._blocks)], axis=1),
            "counts": self._counts,
            "has_nan": self._has_nan,
            "totals": self._sums.total,
            "exponents": self._sums.n,
            "kept": np.concatenate([x[:, :0], *(e for e, _ in self._kept)], axis=1),
            "tail": x,
        }
        if values is not None:
            found["kept_values"] = np.concatenate([values[:, :0], *(v for _, v in self._kept)], axis=1)
            found["tail_values"] = values
        return found

    @staticmethod
    def from_bytes(data: bytes) -> SoftmaxState:
        """Return the state that `to_bytes` has written.

        Parameters
        ----------
        data : bytes-like
            What `to_bytes` has returned, in this process or another one.

        Returns
        -------
        SoftmaxState
            A state with the same contents.

        Raises
        ------
        TypeError
            If `data` is not bytes.
        ValueError
            If the bytes are damaged, incomplete, of another class or of a newer version.

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.SoftmaxState.from_bytes(csoftmax.SoftmaxState(3).to_bytes()).shape
        (3,)
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be bytes, got {type(data).__name__}")
        try:
            header, arrays = read_bytes(bytes(data))
            return _restored(header, arrays)
        except ValueError:
            raise
        except Exception as error:  # whatever forged bytes may cause
            raise ValueError(f"data cannot be read as a SoftmaxState: {error!r}") from error

    def __reduce__(self) -> Any:
        return SoftmaxState.from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        described = ", ".join(f"{key}={value}" for key, value in self._describe().items() if value is not None)
        return f"SoftmaxState({described})"


def _restored(header: dict[str, Any], arrays: dict[str, Any]) -> SoftmaxState:
    """The state whose bytes have been read, if header and arrays fit together."""
    values = None if header["values"] is None else tuple(header["values"])
    dtype = dtype_named(header["dtype"])
    state = SoftmaxState(tuple(header["shape"]), dtype, temperature=header["temperature"], values=values)
    filled, kept, blocks = header["filled"], header["kept"], arrays["log"].shape[1]
    lengths = {"log": blocks, "softmax": blocks, "kept": sum(kept), "tail": filled}
    lengths |= {"kept_values": sum(kept), "tail_values": filled}
    for name, empty in state._arrays().items():
        shape = list(empty.shape)
        if name in lengths:
            shape[1] = lengths[name]
        if arrays[name].shape != tuple(shape) or arrays[name].dtype != empty.dtype:
            raise ValueError(f"data have {name} of shape {arrays[name].shape} in place of {tuple(shape)}")
    if not 0 <= filled < BLOCK or not all(0 < n <= BLOCK for n in kept):
        raise ValueError(f"data have blocks of {filled} and {kept} elements, of {BLOCK} at most")
    state._restore(arrays, filled, kept)
    return state


def _grown(a: Any, used: int, needed: int) -> Any:
    """The array with room for `needed` elements along axis 1, at least twice as many as it had."""
    if needed <= a.shape[1]:
        return a
    grown = np.empty((len(a), min(max(needed, 2 * a.shape[1]), BLOCK), *a.shape[2:]), a.dtype)
    grown[:, :used] = a[:, :used]
    return grown


def _check_shape(name: str, given: Any) -> tuple[int, ...]:
    allowed = "an int or a tuple of ints that are at least 0"
    if not isinstance(given, tuple | list):
        given = (given,)
    return tuple(check_count(name, n, 0, allowed) for n in given)


def _check_dtype(given: Any) -> Any:
    try:
        dtype = np.dtype(given)
    except TypeError:
        raise TypeError(f"dtype must be a floating-point dtype, got {given!r}") from None
    if (dtype.kind == "f" and dtype.itemsize <= 8) or is_bfloat16(dtype):
        return dtype.newbyteorder("=")
    raise TypeError(f"dtype must be float16, bfloat16 (ml_dtypes), float32 or float64, got {dtype}")


def _as_pieces(x: Any, state: SoftmaxState) -> Any:
    """Elements of the rows as an array (*shape, n), not yet rounded."""
    given, _ = as_float("x", x)
    if given.ndim == 0 or given.shape[:-1] != state.shape:
        wanted = ", ".join([*map(str, state.shape), "n"])
        raise ValueError(f"x has shape {given.shape}; the state has shape {state.shape}, so that ({wanted}) is allowed")
    return given


def _round_to(dtype: Any, a: Any) -> Any:
    if a.dtype == dtype:
        return a
    with np.errstate(over="ignore", under="ignore"):
        return a.astype(dtype)


@accept_foreign
def _append(x: Any, values: Any, where: Any, state: SoftmaxState) -> None:
    pieces = _as_pieces(x, state)
    rows, n = state._rows, pieces.shape[-1]
    mask = None if where is None else check_where(where, pieces.shape).reshape(rows, n)
    if values is None and state._values is not None:
        raise ValueError(f"values are needed, of shape {(*pieces.shape, *state._values)}: the state averages them")
    if values is not None and state._values is None:
        raise ValueError("values were given, and the state has none: pass values=, their shape, when it is made")
    beside = None
    if values is not None:
        beside, _ = as_float("values", values)
        allowed = pieces.shape + (state._values or ())
        if beside.shape != allowed:
            raise ValueError(f"values has shape {beside.shape}; {allowed} is allowed")
        beside = beside.reshape(rows, n, state._width)
    with state._lock:
        state._append(pieces.reshape(rows, n), beside, mask)


@accept_foreign
@keep_labels()
def _probabilities(x: Any, where: Any, state: SoftmaxState) -> Any:
    pieces = _round_to(state.dtype, _as_pieces(x, state))
    mask = None if where is None else check_where(where, pieces.shape)
    if mask is not None:
        pieces = np.where(mask, pieces, np.array(-np.inf).astype(state.dtype))
    with state._lock:
        totals = state._total()[0]
    flat = pieces.reshape(state._rows, pieces.shape[-1])
    result = probabilities_of(flat, totals, state._kind).reshape(pieces.shape)
    if mask is not None:
        result[~mask] = 0
    return result
