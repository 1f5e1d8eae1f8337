"""How much memory of large results is kept for later ones (see pages.c): decided once, at import."""

import os
import re
import sys

from ._cpu import binding

MOST = 512 << 20  # two results of 256 MB: a loop whose new result comes before the old one goes


def _physical():
    """Bytes of memory that the machine has, or 0 where it does not say."""
    try:
        return max(0, os.sysconf("SC_PHYS_PAGES")) * max(0, os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return 0


def _is_limited():
    """Whether this process may not map what it likes: what is kept would be missed by others."""
    try:
        from resource import RLIM_INFINITY, RLIMIT_AS, RLIMIT_DATA, getrlimit
    except ImportError:
        return False
    return any(getrlimit(kind)[0] != RLIM_INFINITY for kind in (RLIMIT_AS, RLIMIT_DATA))


def _limit():
    """What CSOFTMAX_KEEP_BYTES says, or a sixteenth of the memory, at most MOST; 0 where memory is limited."""
    wanted = os.environ.get("CSOFTMAX_KEEP_BYTES", "")
    if not wanted:
        return 0 if _is_limited() else min(MOST, _physical() // 16)
    if not re.fullmatch(r"[0-9]{1,18}", wanted):
        raise ImportError(f"CSOFTMAX_KEEP_BYTES must be a whole number of bytes (0: none is kept), got {wanted!r}")
    return min(int(wanted), sys.maxsize)


def _tell_tracemalloc():
    """As NumPy does for its arrays; the functions exist, but not in the stable ABI that the extension is built for."""
    try:
        from ctypes import c_void_p, cast, pythonapi

        functions = pythonapi.PyTraceMalloc_Track, pythonapi.PyTraceMalloc_Untrack
    except (ImportError, AttributeError):  # PyPy, or no ctypes
        return
    binding.set_tracemalloc(*(cast(function, c_void_p).value for function in functions))


_tell_tracemalloc()
LIMIT = _limit()
binding.set_pages_limit(LIMIT)
