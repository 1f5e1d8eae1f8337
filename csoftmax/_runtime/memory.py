"""The limit on memory of large results that is kept for later results (see pages.c), set at import."""

import os
import re
import sys

from .._cpu import binding

MAX_KEPT_BYTES = 512 << 20  # two results of 256 MB, for a loop that makes its new result before the old one dies


def _physical_bytes() -> int:
    """Bytes of physical memory, or 0 on systems that do not report it."""
    try:
        return max(0, os.sysconf("SC_PHYS_PAGES")) * max(0, os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return 0


def _is_limited() -> bool:
    """Whether an address-space limit is set, against which kept memory would count."""
    try:
        from resource import RLIM_INFINITY, RLIMIT_AS, RLIMIT_DATA, getrlimit
    except ImportError:
        return False
    return any(getrlimit(kind)[0] != RLIM_INFINITY for kind in (RLIMIT_AS, RLIMIT_DATA))


def _limit() -> int:
    """The bytes of CSOFTMAX_KEEP_BYTES; by default a sixteenth of the memory up to MAX_KEPT_BYTES, 0 under a limit."""
    given = os.environ.get("CSOFTMAX_KEEP_BYTES", "")
    if not given:
        return 0 if _is_limited() else min(MAX_KEPT_BYTES, _physical_bytes() // 16)
    if not re.fullmatch(r"[0-9]{1,18}", given):
        raise ImportError(f"CSOFTMAX_KEEP_BYTES must be a whole number of bytes (0: none is kept), got {given!r}")
    return min(int(given), sys.maxsize)


def live_within(available: int) -> None:
    """Keep at most a sixteenth of the bytes that this process may have, unless CSOFTMAX_KEEP_BYTES says how many."""
    global LIMIT
    if not os.environ.get("CSOFTMAX_KEEP_BYTES"):
        LIMIT = min(LIMIT, available // 16)
        binding.set_pages_limit(LIMIT)


def _register_with_tracemalloc() -> None:
    """Let tracemalloc see kept memory, as it sees NumPy's.

    The functions are looked up by ctypes because the stable ABI, which the extension is built for, lacks them.
    """
    try:
        from ctypes import c_void_p, cast, pythonapi

        functions = pythonapi.PyTraceMalloc_Track, pythonapi.PyTraceMalloc_Untrack
    except (ImportError, AttributeError):  # PyPy, or no ctypes
        return
    track, untrack = (cast(function, c_void_p).value or 0 for function in functions)
    binding.set_tracemalloc(track, untrack)


_register_with_tracemalloc()
LIMIT = _limit()
binding.set_pages_limit(LIMIT)
