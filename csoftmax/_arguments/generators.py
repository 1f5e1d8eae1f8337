"""Sources of uniform numbers: one generator for a call, or one for each row."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .numbers import is_bool
from .places import as_array

PIECE = 1 << 20  # numbers drawn at a time: some ms, so that Ctrl-C is seen between them
_KINDS = "an int, a numpy.random.SeedSequence, Generator or RandomState"


def save_states(rng: Any) -> list[tuple[Any, Any]]:
    """The caller's bit generators with their states, for `restore_states` after an error.

    A call that fails has then drawn nothing, and the next one draws what it would have drawn. Most failures come after
    the numbers have been drawn: a row without mass is found by the kernel, and a signal may come at any time.
    """
    if rng is None or type(rng) is int:
        return []
    states: list[tuple[Any, Any]] = []
    for source in (rng,) if type(rng) is np.random.Generator else _leaves(rng):
        if isinstance(source, np.random.Generator | np.random.RandomState | np.random.BitGenerator):
            source = source.bit_generator if isinstance(source, np.random.Generator) else source
            with contextlib.suppress(NotImplementedError):  # a type of the caller's need not tell its state
                if isinstance(source, np.random.RandomState):
                    states.append((source, source.get_state(legacy=False)))
                else:
                    states.append((source, source.state))
    return states


def restore_states(states: list[tuple[Any, Any]]) -> None:
    """Set the bit generators back to the states that `save_states` has seen."""
    for source, state in reversed(states):  # of a source that is given twice, the first state is the old one
        if isinstance(source, np.random.RandomState):
            source.set_state(state)
        else:
            source.state = state


def _leaves(rng: Any) -> Iterator[Any]:
    if isinstance(rng, np.ndarray) and rng.dtype != object:  # seeds
        return
    if not _is_sequence(rng):
        yield rng
        return
    for item in rng:
        yield from _leaves(item)


def draw_uniforms(rng: Any, batch: tuple[int, ...], size: tuple[int, ...]) -> NDArray[Any]:
    """Uniform numbers in [0, 1) of the shape (*batch, prod(size)).

    A single source is read in C order of the result. With a sequence, each row reads its own, so that its numbers do
    not depend on the other rows of its batch. No source is read before all are checked.
    """
    count = math.prod(size)
    if not _is_sequence(rng):
        read = _make_reader("rng", rng, "None, or a sequence with one of these a row")
        return np.asarray(_read_in_pieces(read, (*batch, count)))
    named = _flatten(rng, batch)
    readers = [_make_reader(name, source, "None") for name, source in named]
    uniforms = np.empty((len(readers), count))
    for row, read in zip(uniforms, readers, strict=True):
        _read_in_pieces(read, size, row)
    return uniforms.reshape(*batch, count)


def check_uniforms(given: Any, batch: tuple[int, ...], size: tuple[int, ...]) -> NDArray[Any]:
    """Uniform numbers of the caller's, of the shape (*batch, *size), as float64 of the shape (*batch, prod(size))."""
    uniforms = as_array("uniforms", given)
    if uniforms.dtype.kind not in "iuf" and not (uniforms.size == 0 and isinstance(given, list | tuple)):
        raise TypeError(f"uniforms must hold real numbers, got {uniforms.dtype}")
    if uniforms.shape != batch + size:
        raise ValueError(
            f"uniforms have shape {uniforms.shape}; the result, the rows followed by size, has {batch + size}"
        )
    uniforms = uniforms.astype(np.float64, copy=False)
    bad = ~((uniforms >= 0) & (uniforms < 1))
    if np.any(bad):
        at = np.unravel_index(int(np.argmax(bad)), uniforms.shape)
        row = ", ".join(str(int(i)) for i in at[: len(batch)])
        raise ValueError(f"uniforms must be at least 0 and less than 1, got {uniforms[at]} for row ({row})")
    return uniforms.reshape(*batch, math.prod(size))


def draw_ragged_uniforms(rng: Any, batch: tuple[int, ...], counts: Any) -> NDArray[Any]:
    """Uniform numbers of rows of different lengths, one after the other; sources as in `draw_uniforms`."""
    if not _is_sequence(rng):
        read = _make_reader("rng", rng, "None, or a sequence with one of these a row")
        return np.ascontiguousarray(_read_in_pieces(read, (int(np.sum(counts)),)), np.float64)
    readers = [_make_reader(name, source, "None") for name, source in _flatten(rng, batch)]
    uniforms = np.empty(int(np.sum(counts)))
    begin = 0
    for read, count in zip(readers, counts, strict=True):
        _read_in_pieces(read, (int(count),), uniforms[begin : begin + int(count)])
        begin += int(count)
    return uniforms


def _read_in_pieces(read: Any, shape: tuple[int, ...], out: NDArray[Any] | None = None) -> Any:
    """Read uniform numbers in C order, long arrays in pieces; the numbers are those of one call.

    A subclass of a generator may define its own function, which is called once with the whole shape.
    """
    count = math.prod(shape)
    source = getattr(read, "__self__", None)
    is_whole = count <= PIECE or type(source) not in (np.random.Generator, np.random.RandomState)
    if is_whole and out is None:
        return read(shape)
    flat = np.empty(count) if out is None else out
    if is_whole:
        flat[...] = np.reshape(read(shape), count)
    else:
        for begin in range(0, count, PIECE):
            piece = flat[begin : begin + PIECE]
            piece[...] = read(piece.size)
    return flat.reshape(shape)


def _is_sequence(rng: Any) -> bool:
    if isinstance(rng, str | bytes | bytearray | np.random.Generator):
        return False
    return isinstance(rng, Sequence) or (hasattr(rng, "__array__") and np.ndim(rng) > 0)


def _flatten(rng: Any, batch: tuple[int, ...]) -> list[tuple[str, Any]]:
    """The source of each row in C order, and its name for messages."""
    is_nested = any(map(_is_sequence, rng))
    shape = batch if is_nested else (math.prod(batch),)
    named = [("rng", rng)]
    for length in shape:
        deeper = []
        for name, items in named:
            given = len(items) if _is_sequence(items) else None
            if given != length:
                what = f"is {items!r}" if given is None else f"has length {given}"
                rows = f"{length} rows" if len(shape) == 1 else f"rows of shape {batch}"
                raise ValueError(f"{name} {what}; a sequence needs one int or generator a row, and there are {rows}")
            deeper += [(f"{name}[{i}]", item) for i, item in enumerate(items)]
        named = deeper
    return named


def _make_reader(name: str, rng: Any, or_also: str, kinds: str = _KINDS) -> Any:
    """The function of a source that returns uniform numbers of a shape."""
    if isinstance(rng, np.random.RandomState):
        return rng.random_sample
    if isinstance(rng, np.random.Generator):
        return rng.random
    if rng is not None and not isinstance(rng, np.random.SeedSequence | np.random.BitGenerator):
        if is_bool(rng) or not hasattr(type(rng), "__index__"):
            raise TypeError(f"{name} must be {kinds}, or {or_also}, got {rng!r}")
        try:
            seed = operator.index(rng)
        except TypeError:  # an array that is no single integer
            raise TypeError(f"{name} must be {kinds}, or {or_also}, got {rng!r}") from None
        if seed < 0:
            raise ValueError(f"{name} must be at least 0 where it is an int, got {seed}")
        rng = seed
    return np.random.default_rng(rng).random


def as_generator(rng: Any, name: str = "rng", *, or_random_state: bool = False) -> Any:
    """A numpy.random.Generator: the caller's, or one with the given seed.

    or_random_state: a RandomState of the caller's is accepted too, which has the methods for uniform and normal
    numbers, but not that for integers.
    """
    if isinstance(rng, np.random.Generator) or (or_random_state and isinstance(rng, np.random.RandomState)):
        return rng
    kinds = _KINDS if or_random_state else "an int, a numpy.random.SeedSequence or Generator"
    if isinstance(rng, np.random.RandomState):
        raise TypeError(f"{name} must be {kinds}, or None, got a RandomState")
    return _make_reader(name, rng, "None", kinds).__self__


def draw_integers(generator: Any, count: int) -> NDArray[Any]:
    """Random numbers of 64 bits."""
    numbers = np.empty(count, np.uint64)
    for begin in range(0, count, PIECE):
        piece = numbers[begin : begin + PIECE]
        piece[...] = generator.integers(0, 2**64, piece.size, np.uint64)
    return numbers
