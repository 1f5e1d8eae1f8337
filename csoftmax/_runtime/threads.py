"""The number of threads that a call may use: bounds of the machine, and settings of the user."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from .._cpu import binding

# Bounds on the threads of this process, by the name of their source.
_bounds: dict[str, int] = {}


def cgroup_quota(
    root: str | os.PathLike[str] = "/sys/fs/cgroup", membership: str | os.PathLike[str] = "/proc/self/cgroup"
) -> int | None:
    """CPUs that the control group (version 2 or 1) grants this process, rounded up; None without a quota."""
    quotas = []
    try:
        for line in Path(membership).read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":  # version 2: the quota of every ancestor counts
                parts = [p for p in path.split("/") if p]
                for depth in range(len(parts) + 1):
                    file = Path(root, *parts[:depth], "cpu.max")
                    if file.is_file():
                        quota, period = file.read_text().split()[:2]
                        if quota != "max":
                            quotas.append(int(quota) / int(period))
            elif "cpu" in controllers.split(","):
                for folder in (Path(root, "cpu", path.lstrip("/")), Path(root, "cpu")):
                    file = folder / "cpu.cfs_quota_us"
                    if file.is_file():
                        microseconds = int(file.read_text())
                        if microseconds > 0:
                            quotas.append(microseconds / int((folder / "cpu.cfs_period_us").read_text()))
                        break
    except (OSError, ValueError):
        return None
    return max(1, -int(-min(quotas) // 1)) if quotas else None


def _affinity() -> int:
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1


def _requested_of_openmp() -> int | None:
    """The number in OMP_NUM_THREADS (the one for the outermost level), or None."""
    match = re.match(r"\s*([1-9][0-9]{0,5})\s*(,|$)", os.environ.get("OMP_NUM_THREADS", ""))
    return int(match[1]) if match else None


def _find_bounds() -> dict[str, int]:
    forced = os.environ.get("CSOFTMAX_NUM_THREADS", "")
    if forced:
        if not re.fullmatch(r"[0-9]{1,6}", forced) or int(forced) < 1:
            raise ImportError(f"CSOFTMAX_NUM_THREADS must be a whole number from 1 to 999999, got {forced!r}")
        return {"CSOFTMAX_NUM_THREADS": int(forced)}
    bounds = {"CPU affinity": _affinity()}
    quota = cgroup_quota()
    if quota is not None:
        bounds["cgroup quota"] = quota
    if _requested:
        bounds["OMP_NUM_THREADS"] = _requested
    if not binding.OPENMP:
        bounds["built without OpenMP"] = 1
    return bounds


def reason() -> tuple[str, dict[str, int]]:
    """The name of the lowest bound here, and all bounds."""
    bounds, limit = dict(_bounds), min(_bounds.values())
    context, default, openmp = binding.thread_settings()
    if context:
        bounds["csoftmax.threads"] = context
    elif default < limit:
        bounds["set_num_threads"] = default
    if openmp:
        bounds["omp_set_num_threads or threadpoolctl"] = openmp
    return min(bounds, key=bounds.__getitem__), bounds


_requested = _requested_of_openmp()
_bounds.update(_find_bounds())
binding.set_thread_limit(min(_bounds.values()))
binding.set_openmp_default(_requested or _affinity())


def set_num_threads(num_threads: int | None) -> None:
    """Set the number of threads of all later calls in the process.

    Parameters
    ----------
    num_threads : int or None
        At least 1; calls never use more than the machine allows (CPU affinity, cgroup quota, OMP_NUM_THREADS; or
        CSOFTMAX_NUM_THREADS, which overrides them). None restores the default.

    Raises
    ------
    TypeError, ValueError
        If it is not an int, or less than 1.

    Examples
    --------
    >>> import csoftmax
    >>> csoftmax.set_num_threads(1)
    >>> csoftmax.get_num_threads()
    1
    >>> csoftmax.set_num_threads(None)
    """
    binding.set_threads(num_threads)


def get_num_threads() -> int:
    """Number of threads that a call made here may use.

    Returns
    -------
    int
        The bound of the innermost `threads` block of this thread or asyncio task, else that of `set_num_threads`.

    Examples
    --------
    >>> import csoftmax
    >>> csoftmax.get_num_threads() >= 1
    True
    """
    return binding.get_threads()


@contextlib.contextmanager
def threads(num_threads: int) -> Iterator[None]:
    """Context manager that bounds the threads of calls in this thread or asyncio task.

    Parameters
    ----------
    num_threads : int
        At least 1.

    Raises
    ------
    TypeError, ValueError
        If it is not an int, or less than 1.

    Notes
    -----
    The bound is a context variable (`contextvars`): other tasks of the thread and other threads do not see it; tasks
    that are started inside the block inherit it, as do functions that `asyncio.to_thread` runs, and threads where
    Python gives them a copy of the context (by default on a free-threaded CPython 3.14). Blocks may be left in any
    order, as by generators; each takes back its own bound and no other.

    Examples
    --------
    >>> import csoftmax
    >>> with csoftmax.threads(1):
    ...     csoftmax.get_num_threads()
    1
    """
    entered = binding.enter_threads(num_threads)
    try:
        yield
    finally:
        binding.leave_threads(entered)
