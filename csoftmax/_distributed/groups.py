"""Groups of processes that compute one call: their collectives, headers, and errors that all of them raise.

Every call begins with a header of 64 bytes from each rank, followed by room for sums in groups where a message of 16 KB
takes no longer. A rank that cannot go on says so in its header, or in the status of its next collective; then one more
collective carries the type and text of the error, and all ranks raise. All other decisions rest on data that is equal
on all ranks, so that no rank waits for another one that has left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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
from .agreement import Agreed, as_text, find_difference, from_text, hash_of, with_article
from .shard import BLOCK, whole_blocks

__all__ = ["DistributedError", "DistributedMemoryError", "Group", "SingleProcess"]

TEXT_BYTES = 256
_INT64 = np.dtype(np.int64)
LAYOUTS = 64  # that are kept
DIRECT_BYTES = 4 << 20  # of all ranks: up to these, a rank sends its words to each of the others instead of in a ring
HEADER_WORDS = 8
ROOM = 2048 - HEADER_WORDS - 1  # words of 16 KB, which take gloo no longer than a header alone
ROOM_RANKS = 8  # up to which headers have this room
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
        """Gather arrays of one length and dtype from all ranks.

        Parameters
        ----------
        a : ndarray of int64 or uint8 of shape (m,)
            That of this rank.

        Returns
        -------
        ndarray of the dtype of a and of shape (size, m)
            Those of all ranks, in their order. It is copied, so that it may be an array that others read as well.
        """

    def all_reduce(self, a: NDArray[Any], op: str, /) -> NDArray[Any]:
        """Reduce arrays of one length over all ranks.

        Parameters
        ----------
        a : ndarray of int64 of shape (m,)
            That of this rank.
        op : {"max", "sum"}
            The operation that combines the elements of all ranks.

        Returns
        -------
        ndarray of int64 of shape (m,)
            The same on all ranks. It is copied.
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


class Collectives:
    """The collectives of a group as the functions here need them.

    Results are contiguous arrays of their own, which may be written to. Arrays of any dtype travel as int64 or bytes,
    which every engine has.

    Attributes
    ----------
    overlaps : bool
        Whether an all-gather goes on while this process computes.
    room : int
        Words that travel with each header, the same on all ranks, for sums that are there already.
    """

    overlaps = False
    room = 0

    def __init__(self, group: Any, size: int, rank: int):
        self.group, self.size, self.rank = group, size, rank
        self.function = ""  # of the call, for errors of the engine

    def all_gather(self, a: NDArray[Any]) -> NDArray[Any]:
        """The arrays of all ranks, along a new first axis."""
        sent = words = np.asarray(a, order="C")
        is_usual = sent.ndim == 1 and sent.dtype == _INT64  # a header or records
        if not is_usual:
            words = sent.reshape(-1)
            words = words if words.dtype == _INT64 else words.view(np.uint8)
        try:
            received = self._gather(words)
        except RuntimeError as error:  # as after the loss of a rank
            error.add_note(self._describe())
            raise
        return received if is_usual else received.view(sent.dtype).reshape(self.size, *sent.shape)

    def begin_all_gather(self, words: NDArray[np.int64]) -> Callable[[], NDArray[np.int64]]:
        """Send words to all ranks. The function that is returned waits for those of all ranks, unless they are here."""
        received = self.all_gather(words)
        return lambda: received

    def all_reduce(self, a: NDArray[np.int64], op: str) -> NDArray[np.int64]:
        """The maximum or the sum of each element over all ranks."""
        sent = np.asarray(a, order="C")
        try:
            return self._reduce(sent.reshape(-1), op).reshape(sent.shape)
        except RuntimeError as error:
            error.add_note(self._describe())
            raise

    def _describe(self) -> str:
        """In which call an error of the engine was."""
        return f"in csoftmax.distributed.{self.function or '?'} on rank {self.rank} of {self.size}"

    def _gather(self, words: NDArray[Any]) -> NDArray[Any]:
        """Words of all ranks, of shape (size, words)."""
        return self._own(self.group.all_gather(words), (self.size, len(words)), words.dtype)

    def _reduce(self, words: NDArray[np.int64], op: str) -> NDArray[np.int64]:
        return self._own(self.group.all_reduce(words, op), words.shape, words.dtype)

    def _own(self, received: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """A copy of what a group of the caller's returns, which may be shared or in any order."""
        result = np.array(received, order="C")
        if result.shape != shape or result.dtype != dtype:
            raise TypeError(
                f"a collective of {type(self.group).__name__} returned {result.dtype} of shape {result.shape}; "
                f"{dtype} of shape {shape} is needed"
            )
        return result


class _SingleCollectives(Collectives):
    def _gather(self, words: NDArray[Any]) -> NDArray[Any]:
        return words.copy()[None]

    def _reduce(self, words: NDArray[np.int64], op: str) -> NDArray[np.int64]:
        return words.copy()


class _MpiCollectives(Collectives):
    def _gather(self, words: NDArray[Any]) -> NDArray[Any]:
        result = np.empty((self.size, len(words)), words.dtype)
        self.group.Allgather(words, result)
        return result

    def _reduce(self, words: NDArray[np.int64], op: str) -> NDArray[np.int64]:
        mpi = sys.modules["mpi4py.MPI"]
        result = np.empty_like(words)
        self.group.Allreduce(words, result, op=mpi.MAX if op == "max" else mpi.SUM)
        return result


class _TorchCollectives(Collectives):
    overlaps = True
    sends_directly = False  # to all ranks at once, without torch.distributed's checks

    def _begin(self, words: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
        """What to wait for, and the array that then has the words of all ranks."""
        torch = sys.modules["torch"]
        result = np.empty((self.size, len(words)), words.dtype)
        if self.sends_directly and 0 < result.nbytes <= DIRECT_BYTES:
            sent = np.empty_like(result)
            sent[:] = words
            received, own = torch.from_numpy(result.reshape(-1)), torch.from_numpy(sent.reshape(-1))
            return self.group.alltoall_base(received, own, [], []), result
        parts, own = list(torch.from_numpy(result)), torch.from_numpy(_writable(words))
        return torch.distributed.all_gather(parts, own, group=self.group, async_op=True), result

    def _gather(self, words: NDArray[Any]) -> NDArray[Any]:
        work, result = self._begin(words)
        work.wait()
        return result

    def begin_all_gather(self, words: NDArray[np.int64]) -> Callable[[], NDArray[np.int64]]:
        try:
            work, result = self._begin(words)
        except RuntimeError as error:
            error.add_note(self._describe())
            raise

        def wait() -> NDArray[np.int64]:
            try:
                work.wait()
            except RuntimeError as error:
                error.add_note(self._describe())
                raise
            return result

        return wait

    def _reduce(self, words: NDArray[np.int64], op: str) -> NDArray[np.int64]:
        torch = sys.modules["torch"]
        ops = torch.distributed.ReduceOp
        result = words.copy()
        torch.distributed.all_reduce(torch.from_numpy(result), op=ops.MAX if op == "max" else ops.SUM, group=self.group)
        return result


def _writable(words: NDArray[Any]) -> NDArray[Any]:
    """The array; a copy of one that PyTorch would warn about."""
    return words if words.flags.writeable else words.copy()


@functools.cache
def _backend_of_cpu(config: str) -> str | None:
    """The backend for tensors on the CPU of a configuration like "cpu:gloo,cuda:nccl"; None without one."""
    return dict(item.split(":") for item in config.lower().split(",")).get("cpu")


def _torch_collectives(group: Any) -> Collectives:
    dist = sys.modules["torch"].distributed
    name = dist.get_backend(group)  # refuses a group that has been destroyed
    backend = _backend_of_cpu(dist.get_backend_config(group))
    if backend is None:
        raise DeviceError(f"group has the backend {name}, which has no arrays on the CPU: use gloo or mpi")
    collectives = _TorchCollectives(group, group.size(), group.rank())
    if backend == "gloo":
        collectives.sends_directly = True
        collectives.room = ROOM if collectives.size <= ROOM_RANKS else 0
    return collectives


def as_group(group: Any) -> Collectives:
    """The collectives of a communicator of mpi4py, of a process group of PyTorch, or of any other Group."""
    if isinstance(group, Collectives):
        return group
    if type(group) is SingleProcess:
        return _SingleCollectives(group, 1, 0)
    mpi, dist = sys.modules.get("mpi4py.MPI"), sys.modules.get("torch.distributed")
    if mpi is not None and isinstance(group, mpi.Comm):
        if group == mpi.COMM_NULL:
            raise ValueError("group is MPI.COMM_NULL, which has no ranks: only the ranks of a communicator may call")
        return _MpiCollectives(group, group.Get_size(), group.Get_rank())
    if dist is not None and dist.is_available() and isinstance(group, dist.ProcessGroup):
        return _torch_collectives(group)
    if all(hasattr(group, name) for name in ("size", "rank", "all_gather", "all_reduce")):
        return Collectives(group, int(group.size), int(group.rank))
    raise TypeError(
        f"group is a {type(group).__module__}.{type(group).__name__}; allowed are a communicator of mpi4py, a "
        "torch.distributed.ProcessGroup, and objects with size, rank, all_gather and all_reduce"
    )


class Pending:
    """The first error of this rank since the last collective that carries a status; a context that keeps errors."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        self.error = self.error or error
        return True

    def raise_error(self) -> None:
        """Raise the error, if there is one, after the last collective."""
        if self.error is not None:
            raise self.error


class Header(NamedTuple):
    """What ranks must agree on, and what they tell each other."""

    function: str
    dtype: Any  # its name
    words: int
    rows: int
    n_classes: int
    offset: int
    length: int
    temperature: float
    options: Agreed | str

    @property
    def agreed(self) -> Agreed:
        """The values that ranks must share; ranks compare their hash, and an error shows the first that differs."""
        options = (("options", self.options),) if isinstance(self.options, str) else self.options
        return ("function", self.function), ("dtype", self.dtype), *options

    def encode(self, has_error: bool = False) -> NDArray[np.int64]:
        """The header as 8 words."""
        first = VERSION | (zlib.crc32(self.function.encode()) & 0x7FFFFFFF) << 32
        second = self.words << 8 | int(has_error) << 40
        numbers = first, second, self.rows, self.n_classes, self.offset, self.length, self.temperature
        return np.frombuffer(struct.pack("=6qd", *numbers) + hash_of(self.agreed), np.int64)


NO_HEADER = Header("", "", 0, 0, 0, 0, 0, 0.0, "")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shards of a call."""

    n_classes: int
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    told: tuple[tuple[int, int, int], ...] = ()  # of each rank: n_classes, offset and length of its header
    cut_lengths: tuple[int, ...] = ()  # of each rank: the number of its classes in blocks divided among ranks

    def __post_init__(self) -> None:
        cut = (sum(b - a for a, b in self.cut_intervals(rank)) for rank in range(len(self.offsets)))
        object.__setattr__(self, "cut_lengths", tuple(cut))

    @functools.cached_property
    def digest(self) -> int:
        """A number that tells shards apart, not 0."""
        places = struct.pack(f"={1 + 2 * len(self.offsets)}q", self.n_classes, *self.offsets, *self.lengths)
        return int.from_bytes(hashlib.blake2b(places, digest_size=7).digest()) + 1

    def is_of(self, headers: list[list[int]]) -> bool:
        """Whether these headers tell of the same shards as those of which this was made."""
        return tuple((row[3], row[4], row[5]) for row in headers) == self.told

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
        name, message = type(error).__name__, str(error)
        if isinstance(error, DistributedError):  # of another group: the rank in this one counts
            message = error.message
        text = f"{'!' if isinstance(error, MemoryError) else ' '}{name}\0{message}".encode()[:TEXT_BYTES]
    own = np.zeros(TEXT_BYTES, np.uint8)
    own[: len(text)] = np.frombuffer(text, np.uint8)
    texts = [bytes(t).rstrip(b"\0").decode(errors="ignore") for t in group.all_gather(own)]
    names = [t.partition("\0")[0] for t in texts]
    if error is not None and failed.all() and len(set(names)) == 1 and not isinstance(error, DistributedError):
        raise error
    rank = int(np.argmax(failed))
    name, _, message = texts[rank].partition("\0")
    kind = DistributedMemoryError if name.startswith("!") else DistributedError
    is_told = name[1:] in (DistributedError.__name__, DistributedMemoryError.__name__)
    raise kind(rank, message if is_told else f"{name[1:]}: {message}") from error


def check_status(group: Any, status: NDArray[np.int64], error: Exception | None) -> None:
    """Raise on all ranks if one of them has failed; status: a number of each rank, not 0 of those that have."""
    if any(status.tolist()):
        raise_on_all(group, error, status != 0)


def _raise_difference(name: str, rank: int, first: Any, value: Any) -> NoReturn:
    raise ValueError(f"ranks disagree on {with_article(name)}: {first} on rank 0 and {value} on rank {rank}")


def _check_field(headers: NDArray[np.int64], column: int, name: str, show: Callable[[int], Any]) -> None:
    values = headers[:, column]
    different = values != values[0]
    if different.any():
        rank = int(np.argmax(different))
        _raise_difference(name, rank, show(int(values[0])), show(int(values[rank])))


def raise_disagreement(group: Any, own: Agreed) -> None:
    """Exchange what ranks must agree on, and raise on all of them if they do not."""
    text = np.frombuffer(as_text(own).encode(), np.uint8)
    lengths = group.all_gather(np.array([len(text)], np.int64))[:, 0]
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(text)] = text
    received = zip(group.all_gather(padded), lengths, strict=True)
    values = [from_text(bytes(t[:n]).decode()) for t, n in received]
    for rank, theirs in enumerate(values):
        found = find_difference(values[0], theirs)
        if found is not None:
            name, first, value = found
            _raise_difference(name, rank, first, value)


_layouts: dict[tuple[int, ...], Layout] = {}  # the last ones, by what a rank knew before it had the headers of all


class Ahead(NamedTuple):
    """Sums that a rank computes while the headers travel, because the shards are those of an earlier call."""

    plan: Any
    part: Any
    placed: Any  # the result
    pack: Callable[[], NDArray[np.int64]]  # what all ranks need of the sums
    gathered: Any = None  # that of all ranks, if it has come with the headers


def enter(group: Collectives, prepare: Callable[[], tuple[Header, Any]]) -> tuple[Layout, Any]:
    """Begin a call: prepare it on this rank, and compare headers. Returns the shards and what was prepared.

    Raises on all ranks if one of them cannot prepare its call, if they disagree, or if the shards do not tile the
    classes.
    """
    return enter_ahead(group, prepare, None)[:2]


def enter_ahead(
    group: Collectives,
    prepare: Callable[[], tuple[Header, Any]],
    ahead: Callable[[Layout, Any], Ahead | None] | None,
) -> tuple[Layout, Any, Ahead | None]:
    """The same, and what `ahead` computes for the shards that the last such call had.

    It is sent with the header where there is room for it, else computed while headers travel. None if there was no such
    call, if the shards are other ones now, or if it failed: then it is to be computed as ever.
    """
    error, header, prepared, done = None, NO_HEADER, None, None
    try:
        header, prepared = prepare()
        words = header.encode()
    except Exception as problem:  # re-raised, here or on every rank
        error, words = problem, NO_HEADER.encode(True)
    group.function = header.function
    key = group.size, group.rank, header.n_classes, header.offset, header.length
    ahead = ahead if group.overlaps and error is None else None
    expected = None if ahead is None else _layouts.get(key)

    def compute() -> Ahead | None:
        if ahead is not None and expected is not None:
            with contextlib.suppress(Exception):
                return ahead(expected, prepared)
        return None

    message, fits = words, header.rows * header.words < group.room
    if group.room:  # of all functions, since ranks may disagree
        message = np.zeros(HEADER_WORDS + 1 + group.room, np.int64)
        message[:HEADER_WORDS] = words
    if fits and (done := compute()) is not None:
        own = done.pack()
        if fits := len(own) <= group.room:
            assert expected is not None
            message[HEADER_WORDS] = expected.digest
            message[HEADER_WORDS + 1 : HEADER_WORDS + 1 + len(own)] = own
    wait = group.begin_all_gather(message)
    if not fits and done is None:
        done = compute()
    received = wait()
    rows = received[:, : HEADER_WORDS + 1].tolist()
    own_row = rows[group.rank]
    common, end = own_row[:4], own_row[6:HEADER_WORDS]
    if any(row[:4] != common or row[6:HEADER_WORDS] != end for row in rows) or common[1] >> 40:
        _diagnose(group, received[:, :HEADER_WORDS], header, error)
    if expected is None or not expected.is_of(rows):
        layout = _tile(rows)
        if ahead is not None:
            if len(_layouts) >= LAYOUTS:
                _layouts.clear()
            _layouts[key] = layout
        return layout, prepared, None
    if done is not None and fits and all(row[HEADER_WORDS] == expected.digest for row in rows):
        done = done._replace(gathered=received[:, HEADER_WORDS + 1 : HEADER_WORDS + 1 + len(own)])
    return expected, prepared, done


def fail_on_all(group: Collectives, error: Exception) -> NoReturn:
    """Raise an error of this rank on all ranks that begin a call."""

    def fail() -> NoReturn:
        raise error

    enter(group, fail)
    raise AssertionError("an error in a header is raised on all ranks")


def _diagnose(group: Any, headers: NDArray[np.int64], own: Header, error: Exception | None) -> NoReturn:
    """Raise, on all ranks, for headers that tell of an error or that differ."""
    check_status(group, headers[:, 1] >> 40, error)
    _check_field(headers & 0xFFFFFFFF, 0, "the version of csoftmax or the byte order", hex)
    raise_disagreement(group, own.agreed)
    _check_field(headers, 3, "n_classes", lambda n: None if n == UNKNOWN else n)
    _check_field(headers, 6, "temperature", lambda bits: struct.unpack("=d", struct.pack("=q", bits))[0])
    _check_field(headers, 2, "the number of rows", int)
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
    return Layout(n, offsets, lengths, tuple((row[3], row[4], row[5]) for row in headers))
