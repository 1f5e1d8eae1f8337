"""How calls with Dask collections are computed: the client, what stays in memory, the arity of trees, and retries."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import sys
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


def _check_client(client: Any) -> Any:
    distributed = sys.modules.get("distributed")
    if distributed is None or not isinstance(client, distributed.Client):
        kind = f"a {type(client).__module__}.{type(client).__name__}"
        raise TypeError(f"client is {kind}: allowed is a distributed.Client, such as distributed.Client('tcp://...')")
    if client.asynchronous:
        raise ValueError("client is asynchronous: allowed is a distributed.Client without asynchronous=True")
    return client


@contextlib.contextmanager
def options(
    *,
    client: Any = None,
    keep: bool | None = None,
    split_every: SupportsIndex | None = None,
    retries: SupportsIndex | None = None,
) -> Iterator[Options]:
    """Set, for the calls within a ``with`` statement, how Dask collections are computed.

    Options that are not given stay as they are: those of the statement around this one, or the defaults.

    Parameters
    ----------
    client : distributed.Client, optional
        The cluster for fits, metrics and `batches`. By default the client that is current there, if there is one.
    keep : bool, optional
        By default True: fits keep their parts in the memory of the workers. False reads them again in each evaluation,
        for data beyond the memory of the cluster.
    split_every : int, optional
        How many results a task of a tree merges, at least 2; by default 8. The tree of the second round of rows whose
        classes are in several chunks, which merges nothing in most calls, has its square, 64. Results do not depend on
        it, but for the gradients of `linear_cross_entropy_with_grad`, to rounding.
    retries : int, optional
        By default 3: how often a task of a fit is started again after its worker has been lost.

    Yields
    ------
    Options
        The options that hold within the block.

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
    given: dict[str, Any] = {}
    if client is not None:
        given["client"] = _check_client(client)
    if keep is not None:
        given["keep"] = check_flag("keep", keep)
    if split_every is not None:
        given["split_every"] = check_count("split_every", split_every, 2)
    if retries is not None:
        given["retries"] = check_count("retries", retries)
    values = dataclasses.replace(current(), **given)
    token = _CURRENT.set(values)
    try:
        yield values
    finally:
        _CURRENT.reset(token)


def find_client(options: Options) -> Any:
    """The client of the options, else the one that this process has made last, or None.

    Not `distributed.get_client`: within a task it is the client of the worker, on which a fit would wait for itself.
    """
    distributed = sys.modules.get("distributed")
    if options.client is not None or distributed is None:
        return options.client
    try:
        return distributed.default_client()
    except ValueError:  # there is none
        return None
