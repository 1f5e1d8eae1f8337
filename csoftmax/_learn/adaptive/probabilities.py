"""Log-probabilities of an adaptive softmax, of all classes or of given ones, and draws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._arguments.generators import draw_uniforms, restore_states, save_states
from ..._arguments.numbers import check_draws
from ..._cpu import binding
from ..._cpu.apart import multiply
from ..._cpu.dtypes import dtype_code
from ..._cpu.linear import CHUNK_BYTES, MAX_CHUNK_ROWS
from .search import Search, compute_excess

if TYPE_CHECKING:
    from .state import LayerState


def split_rows(rows: int, columns: int, itemsize: int) -> Iterator[slice]:
    """Parts of the rows whose logits fit `CHUNK_BYTES`."""
    step = max(1, min(MAX_CHUNK_ROWS, CHUNK_BYTES // max(1, columns * itemsize)))
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))


def _log_softmax(z: Any, num_threads: int | None) -> Any:
    """In float64: the difference to the largest logit, less the excess of log-sum-exp over it."""
    first = z.argmax(axis=1)
    excess = compute_excess(z, first, num_threads)
    wide = z.astype(np.float64)
    wide -= np.take_along_axis(wide, first[:, None], 1)
    wide -= excess[:, None]
    return wide


def _head_logits(layer: LayerState, x: Any) -> Any:
    logits = multiply(x, layer.parameters["head"].T)
    if layer.has_bias:
        logits += layer.parameters["head_bias"]
    return logits


@np.errstate(all="ignore")
def compute_all(layer: LayerState, x: Any, num_threads: int | None) -> NDArray[np.float64]:
    """Log-probabilities of all classes, (n, K)."""
    classes = layer.classes
    result = np.empty((len(x), classes.n))
    shortlist = classes.shortlist
    for rows in split_rows(len(x), classes.n, 8):
        part = result[rows]
        of_head = _log_softmax(_head_logits(layer, x[rows]), num_threads)
        part[:, classes.order[:shortlist]] = of_head[:, :shortlist]
        for c, ranks in enumerate(classes.clusters):
            hidden = multiply(x[rows], layer.parameters[f"projection{c}"].T)
            within = _log_softmax(multiply(hidden, layer.parameters[f"tail{c}"].T), num_threads)
            within += of_head[:, shortlist + c, None]
            part[:, classes.order[ranks]] = within
    return result


@np.errstate(all="ignore")
def find_best(
    layer: LayerState, x: Any, k: int, num_threads: int | None, *, needs_values: bool = True
) -> tuple[NDArray[np.float64] | None, NDArray[np.int64]]:
    """The k largest log-probabilities of each row (None if they are not needed) and their classes."""
    values = np.empty((len(x), k)) if needs_values else None
    ids = np.empty((len(x), k), np.int64)
    for begin in range(0, len(x), MAX_CHUNK_ROWS):
        rows = slice(begin, min(begin + MAX_CHUNK_ROWS, len(x)))
        search = Search(layer, x[rows], k, needs_values, num_threads)
        search.visit_clusters()
        ids[rows] = search.ids
        if values is not None:
            values[rows] = search.finish()
    return values, ids


@np.errstate(all="ignore")
def draw(layer: LayerState, x: Any, batch: tuple[int, ...], size: Any, rng: Any, num_threads: int | None) -> Any:
    """Classes by their probabilities: a uniform number chooses in the head, another one in the cluster."""
    shape = check_draws(size)
    count = math.prod(shape)
    states = save_states(rng)
    try:
        uniforms = draw_uniforms(rng, batch, (*shape, 2)).reshape(len(x), count, 2)
        result = np.empty((len(x), count), np.int64)
        for rows in split_rows(len(x), len(layer.parameters["head"]), x.dtype.itemsize):
            result[rows] = _draw_rows(layer, x[rows], uniforms[rows], num_threads)
    except BaseException:
        restore_states(states)
        raise
    return result.reshape((*batch, *shape))[()]


def _choose(z: Any, uniforms: Any, num_threads: int | None) -> NDArray[np.int64]:
    """A column for each uniform number of each row; each owns an interval of [0, 1), in order."""
    found = np.empty(uniforms.shape, np.int64)
    if found.size:
        options = (None, None, None, None, None, num_threads)
        dtype = dtype_code(z.dtype)
        if not binding.run_sample(dtype, z, np.ascontiguousarray(uniforms), found, *options):
            row = int(np.flatnonzero(~np.isfinite(z.max(axis=1)))[0])
            raise ValueError(f"a row of x has no probabilities: its largest logit is {z[row].max()}")
    return found


def _draw_rows(layer: LayerState, x: Any, uniforms: Any, num_threads: int | None) -> NDArray[np.int64]:
    classes = layer.classes
    ranks = _choose(_head_logits(layer, x), uniforms[..., 0], num_threads)
    for c, cluster in enumerate(classes.clusters):
        is_there = ranks == classes.shortlist + c
        if not is_there.any():
            continue
        rows, columns = np.nonzero(is_there)
        distinct, begins, counts = np.unique(rows, return_index=True, return_counts=True)
        hidden = multiply(x[distinct], layer.parameters[f"projection{c}"].T)
        place = np.arange(len(rows)) - np.repeat(begins, counts)  # of each draw among those of its row
        which = np.repeat(np.arange(len(distinct)), counts)
        padded = np.zeros((len(distinct), int(counts.max())))
        padded[which, place] = uniforms[rows, columns, 1]
        chosen = np.empty(padded.shape, np.int64)
        for part in split_rows(len(distinct), cluster.stop - cluster.start, x.dtype.itemsize):
            z = multiply(hidden[part], layer.parameters[f"tail{c}"].T)
            chosen[part] = _choose(z, padded[part], num_threads)
        # negative until all clusters are done, so that no rank is taken for a cluster
        ranks[rows, columns] = -1 - (cluster.start + chosen[which, place])
    ranks = np.where(ranks < 0, -1 - ranks, ranks)
    return classes.order[ranks].astype(np.int64)
