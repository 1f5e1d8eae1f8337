"""Long work of NumPy or a BLAS in a thread of its own, so that Ctrl-C is seen meanwhile."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

LONG_WORK = 1 << 28  # multiplications, or bytes moved: some ms
BLOCK_ELEMENTS = 1 << 14  # of float64, of which some 50 arrays stay in cache
POLL_SECONDS = 0.05  # between two looks for signals where the system does not interrupt a wait

Result = TypeVar("Result")


def run_apart(amount: float, work: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Call work, in another thread if it is long and this is the thread that handles signals.

    A handler that raises, as that of Ctrl-C does, ends the wait at once. The work then goes on to its end, of which
    nobody hears: it must write only what no caller has seen. A product that is cut into pieces instead has other bits
    (docs/decisions/linear_layer.md). Floating-point warnings are off in the other thread, as in the callers.
    """
    if amount < LONG_WORK or threading.current_thread() is not threading.main_thread():
        return work(*arguments, **options)
    results: list[Result] = []
    errors: list[BaseException] = []
    is_done = _thread.allocate_lock()
    is_done.acquire()

    def run() -> None:
        try:
            with np.errstate(all="ignore"):
                results.append(work(*arguments, **options))
        except BaseException as error:  # raised in the caller
            errors.append(error)
        finally:
            is_done.release()

    try:
        _thread.start_new_thread(run, ())
    except RuntimeError:  # no thread can be made
        return work(*arguments, **options)
    while not is_done.acquire(timeout=POLL_SECONDS):
        pass
    if errors:
        raise errors.pop()
    return results.pop()


def split_rows(rows: int, columns: int, elements: int = BLOCK_ELEMENTS) -> Iterator[slice]:
    """Slices of rows that hold so many elements; signals are seen between two of them."""
    step = max(1, elements // max(1, columns))
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def multiply(a: Any, b: Any, out: Any = None) -> Any:
    """The matrix product of NumPy arrays."""
    return run_apart(a.shape[0] * float(a.shape[-1]) * b.shape[-1], np.matmul, a, b, out=out)
