"""How calls with Dask collections are computed: the client, what stays in memory, the arity of trees, and retries."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any, SupportsIndex

from .._arguments.numbers import check_count, check_flag

__all__ = ["options"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `options` has set."""

    client: Any = None
    keep: bool = True
    split_every: int = 8
    retries: int = 3


_DEFAULT = Options()
_CURRENT: contextvars.ContextVar[Options] = contextvars.ContextVar("csoftmax_dask_options", default=_DEFAULT)


def current() -> Options:
    """The options that are in effect."""
    return _CURRENT.get()


@contextlib.contextmanager
def options(
    *, client: Any = None, keep: bool = True, split_every: SupportsIndex = 8, retries: SupportsIndex = 3
) -> Iterator[Options]:
    """Set, for the calls within a ``with`` statement, how Dask collections are computed.

    Parameters
    ----------
    client : distributed.Client, optional
        The cluster for fits, metrics and `batches`. By default the client that is current there, if there is one.
    keep : bool, default True
        Fits keep their parts in the memory of the workers. False reads them again in each evaluation, for data beyond
        the memory of the cluster.
    split_every : int, default 8
        How many results a task of a tree merges, at least 2. Results do not depend on it.
    retries : int, default 3
        How often a task of a fit is started again after its worker has been lost.

    Yields
    ------
    Options
        What is in effect.

    Raises
    ------
    TypeError, ValueError
        If an option is not allowed.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> with cd.options(split_every=2):
    ...     y = cd.softmax(da.zeros((2, 16384), chunks=(2, 4096)))
    >>> float(y.sum().compute())
    2.0
    """
    values = Options(
        client,
        check_flag("keep", keep),
        check_count("split_every", split_every, 2),
        check_count("retries", retries),
    )
    token = _CURRENT.set(values)
    try:
        yield values
    finally:
        _CURRENT.reset(token)
