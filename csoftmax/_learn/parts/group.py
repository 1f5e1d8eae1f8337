"""Fits over a group of processes, each of which has one part of the rows.

Rank 0 runs L-BFGS; the others wait for functions to apply to their part, so that no rank decides anything by numbers
that another one may have rounded otherwise.  Each round is one message from rank 0, then a status of each rank, then
the results: a rank that fails says so in its status.  The end is a message as well: the fitted attributes, or the
exception to raise on all ranks.
"""

from __future__ import annotations

import numbers
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._distributed.agreement import Agreed, describe
from ..._distributed.groups import UNKNOWN, DistributedError, Header, as_group, enter, raise_on_all
from ..._distributed.parts import Kind, Sums, merge_all, sum_of_part
from ..fit import STATE, restore_on_error
from .fit import check_fits_parts, fit_loaded
from .rows import load

FAILED, FINISHED = "failed", "finished"


class _Message(NamedTuple):
    """A function to apply on all ranks, and how its results travel."""

    method: str  # of _Rank
    kind: Kind
    payload: Any


def _broadcast(group: Any, message: Any = None) -> Any:
    """The message of rank 0; the others add zeros to its bytes."""
    data = b"" if group.rank else pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    size = int(group.all_reduce(np.array([len(data)], np.int64), "sum")[0])
    words = np.zeros(-(-size // 8), np.int64)
    words.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    words = np.ascontiguousarray(group.all_reduce(words, "sum"))
    return message if group.rank == 0 else pickle.loads(words.view(np.uint8)[:size].tobytes())


class _Rank:
    """The part of one rank, and the collectives of each function."""

    def __init__(self, group: Any, part: Any):
        self.group, self.part = group, part

    def _compute(self, message: _Message, encode: Callable[[Any], NDArray[Any]]) -> NDArray[Any]:
        """Results of all ranks of at most the length of the longest, padded; raises on all if one of them fails."""
        error, result = None, np.zeros(0, np.uint8)
        try:
            result = encode(message.kind(self.part, message.payload, self.group.rank))
        except Exception as problem:  # re-raised on every rank
            error = problem
        status = self.group.all_gather(np.array([error is not None, len(result)], np.int64))
        failed = status[:, 0] != 0
        if failed.any():
            raise_on_all(self.group, error, failed)
        padded = np.zeros(int(status[:, 1].max()), result.dtype)
        padded[: len(result)] = result
        return self.group.all_gather(padded) if len(padded) else np.zeros((self.group.size, 0), result.dtype)

    def change(self, message: _Message) -> None:
        """Replace the part."""
        changed: list[Any] = []

        def keep(result: Any) -> NDArray[Any]:
            changed.append(result)
            return np.zeros(0, np.uint8)

        self._compute(message, keep)
        self.part = changed[0]

    def gather(self, message: _Message) -> list[Any]:
        """The results of all ranks."""
        texts = self._compute(message, lambda result: np.frombuffer(pickle.dumps(result), np.uint8))
        return [pickle.loads(text.tobytes()) for text in texts]

    def run(self, message: _Message) -> Sums:
        """The nodes of the sum over all ranks."""
        vectors = self._compute(message, lambda result: result)
        return merge_all(sum_of_part(rank, vector) for rank, vector in enumerate(vectors))

    def serve(self) -> Any:
        """Apply functions until rank 0 ends the fit; returns what it sends at last."""
        while True:
            message = _broadcast(self.group)
            if not isinstance(message, _Message):
                return message
            try:
                getattr(self, message.method)(message)
            except Exception:  # rank 0 has it as well, and sends it to all
                continue


class GroupEngine:
    """The parts of all ranks, as rank 0 sees them."""

    def __init__(self, rank: _Rank):
        self.rank, self.count = rank, rank.group.size
        self.sizes: list[tuple[int, int]] = []

    def _send(self, method: str, kind: Kind, payload: Any) -> Any:
        message = _Message(method, kind, payload)
        _broadcast(self.rank.group, message)
        return getattr(self.rank, method)(message)

    def change(self, kind: Kind, payload: Any) -> None:
        """Replace each part by a result of the function."""
        self._send("change", kind, payload)

    def gather(self, kind: Kind, payload: Any) -> list[Any]:
        """The function's results."""
        return list(self._send("gather", kind, payload))

    def run(self, kind: Kind, payload: Any) -> Sums:
        """The nodes of the sum of the function's vectors over all ranks."""
        return self._send("run", kind, payload)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Let the parts go."""
        self.rank.part = None


def fit_group(model: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None, group: Any) -> list[Any]:
    """Train on the rows of all ranks; returns the warnings of the fit."""
    group = as_group(group)

    def prepare() -> tuple[Header, Any]:
        check_fits_parts(model, "fit(group=...)")
        part = load((X, y, sample_weight), None, group.rank)
        agreed = _describe_parameters(model)
        return Header("fit", "", 0, 0, UNKNOWN, UNKNOWN, part.x.shape[0], float(model.temperature), agreed), part

    _, part = enter(group, prepare)
    rank = _Rank(group, part)
    kept = [name for name in STATE if name != "_trainer"]
    if group.rank:
        kind, content = rank.serve()
        if kind == FAILED:
            raise content
        for name in kept:
            model.__dict__.pop(name, None)
        model.__dict__.update(content[0])
        return list(content[1])
    try:
        with restore_on_error(model):
            notes = fit_loaded(model, GroupEngine(rank))
    except BaseException as error:
        _broadcast(group, (FAILED, _make_portable(error)))
        raise
    state = {name: model.__dict__[name] for name in kept if name in model.__dict__}
    _broadcast(group, (FINISHED, (state, notes)))
    return notes


def _describe_parameters(model: Any) -> Agreed:
    """The parameters that ranks must agree on: not callbacks, threads and states of generators.

    The temperature has a place of its own in the header.
    """
    found: list[tuple[str, Any]] = []
    for name, value in sorted(model.get_params(deep=False).items()):
        if name in ("callbacks", "num_threads", "temperature"):
            continue
        if name == "random_state" and not isinstance(value, numbers.Integral | None):
            found.append((name, type(value).__name__))  # rank 0 draws
            continue
        value = value.item() if isinstance(value, np.generic) else value
        found.append((name, describe(value) if isinstance(value, np.ndarray) else repr(value)))
    if model.warm_start and hasattr(model, "coef_"):
        found += [("coef_", describe(model.coef_)), ("intercept_", describe(model.intercept_))]
    return tuple(found)


def _make_portable(error: BaseException) -> Exception:
    """The exception for the other ranks: itself, if it survives the way."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, Exception):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return DistributedError(0, text)
        return error
    return DistributedError(0, text)
