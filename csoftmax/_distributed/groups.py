"""Groups of processes that compute one call: their collectives, headers, and errors that all of them raise.

Every call begins with a header of 64 bytes from each rank. A rank that cannot go on says so in its header, or in the
status of its next collective; then one more collective carries the type and text of the error, and all ranks raise. All
other decisions rest on data that is equal on all ranks, so that no rank waits for another one that has left.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .._arguments.places import DeviceError
from .._cpu import binding
from .shard import BLOCK, whole_blocks

__all__ = ["DistributedError", "DistributedMemoryError", "Group", "SingleProcess"]

TEXT_BYTES = 256
UNKNOWN = -1  # an offset or a number of classes that is not given
VERSION = zlib.crc32(f"{binding.VERSION} {sys.byteorder}".encode())


class DistributedError(RuntimeError):
    """A call over a group failed on one rank, and is given up on all.

    Attributes
    ----------
    rank : int
        The first rank that failed.
    message : str
        Type and text of its error.

    Examples
    --------
    >>> from csoftmax.distributed import DistributedError
    >>> str(DistributedError(1, "ValueError: k must be at least 0, got -1"))
    'rank 1: ValueError: k must be at least 0, got -1'
    """

    def __init__(self, rank: int, message: str):
        super().__init__(rank, message)
        self.rank, self.message = rank, message

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.message}"


class DistributedMemoryError(DistributedError, MemoryError):
    """A call over a group failed on one rank for lack of memory.

    Attributes
    ----------
    rank, message
        As in `DistributedError`.

    Examples
    --------
    >>> from csoftmax.distributed import DistributedMemoryError
    >>> isinstance(DistributedMemoryError(0, "MemoryError"), MemoryError)
    True
    """


@runtime_checkable
class Group(Protocol):
    """The processes of a call, as any engine may provide them.

    Attributes
    ----------
    size, rank : int
        Number of processes, and the number of this one.

    Examples
    --------
    >>> from csoftmax.distributed import Group, SingleProcess
    >>> isinstance(SingleProcess(), Group)
    True
    """

    size: int
    rank: int

    def all_gather(self, a: NDArray[Any], /) -> NDArray[Any]:
        """Gather arrays of one shape and dtype from all ranks.

        Parameters
        ----------
        a : ndarray
            That of this rank.

        Returns
        -------
        ndarray of shape (size, ...)
            Those of all ranks, in their order.
        """

    def all_reduce(self, a: NDArray[Any], op: str, /) -> NDArray[Any]:
        """Reduce arrays of one shape over all ranks.

        Parameters
        ----------
        a : ndarray of int64
            That of this rank.
        op : {"max", "sum"}
            What is computed of each element.

        Returns
        -------
        ndarray of int64
            The same on all ranks.
        """


class SingleProcess:
    """The group of one process, with which programs for many processes also run alone.

    Attributes
    ----------
    size, rank : int
        1 and 0.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import SingleProcess, softmax
    >>> softmax(np.zeros((1, 4)), group=SingleProcess())
    array([[0.25, 0.25, 0.25, 0.25]])
    """

    size, rank = 1, 0

    def all_gather(self, a: NDArray[Any], /) -> NDArray[Any]:
        """The array, with an axis of length 1 in front.

        Parameters
        ----------
        a : ndarray
            Any array.

        Returns
        -------
        ndarray
            A copy of shape (1, ...).
        """
        return np.array(a)[None]

    def all_reduce(self, a: NDArray[Any], op: str, /) -> NDArray[Any]:
        """The array.

        Parameters
        ----------
        a : ndarray
            Any array.
        op : {"max", "sum"}
            Not used.

        Returns
        -------
        ndarray
            A copy.
        """
        return np.array(a)


class _MpiGroup:
    def __init__(self, comm: Any):
        self.comm, self.size, self.rank = comm, comm.Get_size(), comm.Get_rank()

    def all_gather(self, a: NDArray[Any]) -> NDArray[Any]:
        a = np.ascontiguousarray(a)
        result = np.empty((self.size, *a.shape), a.dtype)
        self.comm.Allgather(a, result)
        return result

    def all_reduce(self, a: NDArray[Any], op: str) -> NDArray[Any]:
        mpi = sys.modules["mpi4py.MPI"]
        result = np.empty_like(a)
        self.comm.Allreduce(np.ascontiguousarray(a), result, op=mpi.MAX if op == "max" else mpi.SUM)
        return result


class _TorchGroup:
    def __init__(self, group: Any):
        self.torch = sys.modules["torch"]
        dist = self.torch.distributed
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        if dist.get_backend(group) == "nccl":
            raise DeviceError("group has the backend nccl, which has no arrays on the CPU: use gloo or mpi")
        self.function = "?"  # that of the call

    def _run(self, collective: Any, *arguments: Any, **options: Any) -> None:
        """Enter a collective; its error, as after the loss of a rank, tells in which call it was."""
        try:
            collective(*arguments, group=self.group, **options)
        except RuntimeError as error:
            error.add_note(f"in csoftmax.distributed.{self.function} on rank {self.rank} of {self.size}")
            raise

    def all_gather(self, a: NDArray[Any]) -> NDArray[Any]:
        a = np.ascontiguousarray(a)
        result = np.empty((self.size, *a.shape), a.dtype)
        parts = list(self.torch.from_numpy(result.reshape(self.size, -1)))
        self._run(self.torch.distributed.all_gather, parts, self.torch.from_numpy(a.reshape(-1)))
        return result

    def all_reduce(self, a: NDArray[Any], op: str) -> NDArray[Any]:
        ops = self.torch.distributed.ReduceOp
        result = np.array(a, order="C")
        tensor = self.torch.from_numpy(result.reshape(-1))
        self._run(self.torch.distributed.all_reduce, tensor, op=ops.MAX if op == "max" else ops.SUM)
        return result


def as_group(group: Any) -> Any:
    """The collectives of a communicator of mpi4py, of a process group of PyTorch, or of any other Group."""
    mpi, dist = sys.modules.get("mpi4py.MPI"), sys.modules.get("torch.distributed")
    if mpi is not None and isinstance(group, mpi.Comm):
        return _MpiGroup(group)
    if dist is not None and dist.is_available() and isinstance(group, dist.ProcessGroup):
        return _TorchGroup(group)
    if all(hasattr(group, name) for name in ("size", "rank", "all_gather", "all_reduce")):
        return group
    raise TypeError(
        f"group is a {type(group).__module__}.{type(group).__name__}; allowed are a communicator of mpi4py, a "
        "torch.distributed.ProcessGroup, and objects with size, rank, all_gather and all_reduce"
    )


def digest_of(*arrays: Any) -> str:
    """A short text that tells arrays of different contents apart."""
    found = hashlib.blake2b(digest_size=6)
    for a in arrays:
        found.update(b"-" if a is None else np.ascontiguousarray(a).tobytes())
    return found.hexdigest()


class Header(NamedTuple):
    """What ranks must agree on, and what they tell each other."""

    function: str
    dtype: int
    words: int
    rows: int
    n_classes: int
    offset: int
    length: int
    temperature: float
    options: str

    def encode(self, has_error: bool = False) -> NDArray[np.int64]:
        """The header as 8 words."""
        digest = hashlib.blake2b(self.options.encode(), digest_size=8).digest()
        function = zlib.crc32(self.function.encode())
        first = VERSION | (function & 0x7FFFFFFF) << 32
        second = self.dtype & 0xFF | self.words << 8 | int(has_error) << 40
        numbers = first, second, self.rows, self.n_classes, self.offset, self.length, self.temperature
        return np.frombuffer(bytearray(struct.pack("=6qd", *numbers) + digest), np.int64)  # PyTorch wants it writable


NO_HEADER = Header("", 0, 0, 0, 0, 0, 0, 0.0, "")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shards of a call."""

    n_classes: int
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    cut_lengths: tuple[int, ...] = ()  # of each rank: the number of its classes in blocks divided among ranks

    def __post_init__(self) -> None:
        cut = (sum(b - a for a, b in self.cut_intervals(rank)) for rank in range(len(self.offsets)))
        object.__setattr__(self, "cut_lengths", tuple(cut))

    def cut_intervals(self, rank: int) -> list[tuple[int, int]]:
        """The classes of a rank in blocks divided among ranks: [first, stop) before and after its whole blocks."""
        n, first = self.n_classes, self.offsets[rank]
        stop = first + self.lengths[rank]
        if n <= BLOCK:
            return [(first, stop)] if stop > first else []
        begin, end = whole_blocks(first, stop, n)
        return [(a, b) for a, b in ((first, begin), (end, stop)) if b > a]


def raise_on_all(group: Any, error: Exception | None, failed: NDArray[np.bool_]) -> NoReturn:
    """Exchange errors, and raise: the same type of error if all ranks have it, else a DistributedError."""
    text = b""
    if error is not None:
        name = type(error).__name__
        text = f"{'!' if isinstance(error, MemoryError) else ' '}{name}\0{error}".encode()[:TEXT_BYTES]
    own = np.zeros(TEXT_BYTES, np.uint8)
    own[: len(text)] = np.frombuffer(text, np.uint8)
    texts = [bytes(t).rstrip(b"\0").decode(errors="ignore") for t in group.all_gather(own)]
    names = [t.partition("\0")[0] for t in texts]
    if error is not None and failed.all() and len(set(names)) == 1:
        raise error
    rank = int(np.argmax(failed))
    name, _, message = texts[rank].partition("\0")
    kind = DistributedMemoryError if name.startswith("!") else DistributedError
    raise kind(rank, f"{name[1:]}: {message}") from error


def _check_field(headers: NDArray[np.int64], column: int, name: str, show: Callable[[int], Any]) -> None:
    values = headers[:, column]
    different = values != values[0]
    if different.any():
        rank = int(np.argmax(different))
        raise ValueError(
            f"ranks disagree on {name}: {show(int(values[0]))} on rank 0 and {show(int(values[rank]))} on rank {rank}"
        )


def _check_options(group: Any, headers: NDArray[np.int64], own: Header) -> None:
    if (headers[:, 7] == headers[0, 7]).all():
        return
    text = np.zeros(TEXT_BYTES, np.uint8)
    given = own.options.encode()[:TEXT_BYTES]
    text[: len(given)] = np.frombuffer(given, np.uint8)
    texts = [bytes(t).rstrip(b"\0").decode(errors="ignore") for t in group.all_gather(text)]
    rank = int(np.argmax(headers[:, 7] != headers[0, 7]))
    raise ValueError(f"ranks disagree on options: {texts[0]} on rank 0 and {texts[rank]} on rank {rank}")


def _show_temperature(bits: int) -> float:
    return float(struct.unpack("=d", struct.pack("=q", bits))[0])


def enter(group: Any, prepare: Callable[[], tuple[Header, Any]]) -> tuple[Layout, Any]:
    """Begin a call: prepare it on this rank, and compare headers. Returns the shards and what was prepared.

    Raises on all ranks if one of them cannot prepare its call, if they disagree, or if the shards do not tile the
    classes.
    """
    error, header, prepared = None, NO_HEADER, None
    try:
        header, prepared = prepare()
    except Exception as problem:  # re-raised, here or on every rank
        error = problem
    if isinstance(group, _TorchGroup):
        group.function = header.function or "?"
    headers = group.all_gather(header.encode(error is not None))
    rows = headers.tolist()
    if any(row[:4] != rows[0][:4] or row[6:] != rows[0][6:] for row in rows) or rows[0][1] >> 40:
        _diagnose(group, headers, header, error)
    return _tile(rows), prepared


def fail_on_all(group: Any, error: Exception) -> NoReturn:
    """Raise an error of this rank on all ranks that begin a call."""

    def fail() -> NoReturn:
        raise error

    enter(group, fail)
    raise AssertionError("enter raises")


def _diagnose(group: Any, headers: NDArray[np.int64], own: Header, error: Exception | None) -> NoReturn:
    """Raise, on all ranks, for headers that tell of an error or that differ."""
    failed = headers[:, 1] >> 40 != 0
    if failed.any():
        raise_on_all(group, error, failed)
    dtypes = {code: name for name, code in binding.DTYPES.items()}
    _check_field(headers & 0xFFFFFFFF, 0, "the version of csoftmax or the byte order", hex)
    _check_field(headers, 0, "the function", hex)
    _check_field(headers & 0xFF, 1, "the dtype", lambda code: dtypes.get(code, "that of integers"))
    _check_field(headers, 2, "the number of rows", int)
    _check_field(headers, 3, "n_classes", lambda n: None if n == UNKNOWN else n)
    _check_field(headers, 6, "the temperature", _show_temperature)
    _check_options(group, headers, own)
    _check_field(headers, 1, "the kind of labels and weights", lambda word: f"{word >> 8} words a row")
    raise AssertionError("headers differ in no field")


def _tile(headers: list[list[int]]) -> Layout:
    """The shards of the ranks, which must tile the classes."""
    lengths = tuple(row[5] for row in headers)
    n = headers[0][3]
    if n == UNKNOWN:
        n = sum(lengths)
    given = [row[4] != UNKNOWN for row in headers]
    if any(given) and not all(given):
        raise ValueError(f"offset must be given on all ranks or on none; rank {given.index(False)} gives none")
    ends = itertools.accumulate(lengths)
    offsets = (
        tuple(row[4] for row in headers) if all(given) else tuple(e - k for e, k in zip(ends, lengths, strict=True))
    )
    end = 0
    for first, length, rank in sorted(zip(offsets, lengths, range(len(lengths)), strict=True)):
        if length and first != end:
            what = "a gap" if first > end else "an overlap"
            raise ValueError(
                f"shards must tile the classes 0 to {n - 1}: rank {rank} begins at {first}, after the shards before it "
                f"end at {end}, which is {what}"
            )
        end += length
    if end != n:
        raise ValueError(f"shards must tile the classes 0 to {n - 1}: they end at {end}")
    return Layout(n, offsets, lengths)
