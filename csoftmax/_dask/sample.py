"""Draws from rows of Dask collections: the uniform numbers are drawn by the client, in the order of the rows."""

from __future__ import annotations

import functools
from typing import Any, SupportsIndex

import numpy as np

from .._arguments.generators import draw_uniforms, restore_states, save_states
from .._arguments.numbers import check_draws
from .._ops import sample as whole
from .._ops.sample import Draws
from .beside import lay_beside
from .blocks import check_split_every, map_chunks, pick
from .calls import call_chunk, plan_call, try_out
from .collections import as_lazy, give_frame, is_unknown, row_chunks

__all__ = ["sample"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None
_PARAMETERS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "top_n_sigma")
_DRAWS = 1000  # the letter of the first axis of the draws


def sample(
    logits: Any,
    *,
    axis: _Axis = -1,
    temperature: Any = 1.0,
    top_k: Any = None,
    top_p: Any = None,
    min_p: Any = None,
    typical_p: Any = None,
    top_n_sigma: Any = None,
    order: Any = None,
    where: Any = None,
    size: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
    replace: bool = True,
    rng: Any = None,
    uniforms: Any = None,
    return_log_prob: bool = False,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> Any:
    """Draw classes from rows of logits that are a Dask array or dataframe.

    Parameters
    ----------
    logits : as x in `softmax`
        The class axis is brought into one chunk.
    axis, temperature, top_k, top_p, min_p, typical_p, top_n_sigma, order, where, size, replace
        As in `csoftmax.sample`; arrays may be Dask collections.
    rng : as in `csoftmax.sample`, optional
        The uniform numbers are drawn when the graph is built, in the order of the rows, 8 bytes a draw, and become a
        part of the graph; the generator advances then. Where lengths of chunks of rows are unknown, they are computed
        for that, on a copy of the array (``compute_chunk_sizes()``), which computes the array once more.
    uniforms : dask.array.Array or array_like of the shape of the result, optional
        The uniform numbers themselves, in place of rng; nothing is computed then.
    return_log_prob : bool, default False
        As in `csoftmax.sample`.
    device, num_threads
        As in `softmax`.
    split_every : int, optional
        Checked, but not used: there is no tree.

    Returns
    -------
    dask.array.Array of int64, or Draws of Dask arrays
        The draws of ``csoftmax.sample`` from the whole, with the same generator or uniform numbers, for any chunks; of
        a DataFrame without `size`, a Series.

    Raises
    ------
    TypeError, ValueError
        As in `csoftmax.sample`; errors that depend on values while the result is computed. The generator is left as it
        was only by the former.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from csoftmax import dask as cd
    >>> logits = da.from_array(np.log([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]), chunks=(1, 2))
    >>> cd.sample(logits, size=5, rng=0).compute()
    array([[0, 0, 0, 0, 1],
           [2, 2, 2, 2, 2]])
    """
    check_split_every(split_every)
    x = as_lazy("logits", logits)
    arrays = dict(zip(_PARAMETERS, (temperature, top_k, top_p, min_p, typical_p, top_n_sigma), strict=True))
    shape = check_draws(size)
    options: dict[str, Any] = {"order": order, "replace": replace, "return_log_prob": return_log_prob}
    options |= {"device": device, "num_threads": num_threads}
    if uniforms is None and any(is_unknown(n) for n in x.shape):
        x = x.copy()
        x.compute_chunk_sizes()
    call = plan_call(whole.sample, "logits", x, axis, arrays | {"where": where}, options, of_rows=_PARAMETERS)
    if uniforms is not None and rng is not None:
        raise ValueError("rng must be None where uniforms are given, because they take its place")
    tried = try_out(call, rng=0, size=())
    rows, chunks = row_chunks(call.x, call.axes if call.x.ndim else ())
    draws = tuple(range(_DRAWS, _DRAWS + len(shape)))
    if uniforms is None:
        batch = tuple(sum(c) for c in chunks)
        states = save_states(rng)
        try:
            uniforms = draw_uniforms(rng, batch, shape).reshape(batch + shape)
        except BaseException:
            restore_states(states)
            raise
    beside = lay_beside("uniforms", uniforms, (*rows, *draws), (*chunks, *((n,) for n in shape)), broadcasts=False)
    classes = call.axes if call.x.ndim else ()
    function = functools.partial(_draw, call_chunk(call, size=shape), classes)
    letters, ones = (*call.letters, *draws), dict.fromkeys(classes, 1)
    arguments = [(call.x, call.letters), beside, *call.others]
    if not return_log_prob:
        result = map_chunks(function, letters, arguments, dtype=np.int64, like=call.x, chunks=ones)
        return give_frame(logits, result.squeeze(classes)) if not shape else result.squeeze(classes)
    both = map_chunks(function, letters, arguments, dtype=object, chunks=ones)
    dtypes = (np.asarray(a).dtype for a in tried)
    each = (pick((both, letters), i, letters, dtype=d, like=call.x) for i, d in enumerate(dtypes))
    return Draws(*(a.squeeze(classes) for a in each))


def _draw(function: Any, classes: tuple[int, ...], x: Any, uniforms: Any, *others: Any) -> Any:
    result = function(x, *others, uniforms=uniforms)
    if not classes:
        return result
    expand = functools.partial(np.expand_dims, axis=classes)
    return tuple(map(expand, result)) if isinstance(result, tuple) else expand(result)
