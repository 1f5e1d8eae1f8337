"""Ctrl-C while the command line is imported, before its `main` can catch the exception.

NumPy and the operations take most of the first second of a command, in which an interrupt would end in a traceback.
Importing this module begins to watch, so that it is the first import of the package, and imports little itself: an
interrupt before it, in the 40 ms in which Python starts, still ends in Python's traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130  # exit code


def is_command() -> bool:
    """Whether this process is `csoftmax` or `python -m csoftmax`, not a program that imports the package."""
    if not sys.argv:
        return False
    if sys.argv[0] == "-m":  # Python looks for the module, whose name it has not put there yet
        given = zip(sys.orig_argv, sys.orig_argv[1:])
        return any(option.endswith("m") and name == "csoftmax" for option, name in given)
    folder, name = os.path.split(sys.argv[0])
    if name == "__main__.py":
        return os.path.basename(folder) == "csoftmax"
    return name in ("csoftmax", "csoftmax.exe", "csoftmax-script.py")


def end_process(number: int, frame: FrameType | None) -> None:
    """Write a line and end the process: no exception can be lost in an import."""
    if sys.stderr is not None:
        sys.stderr.write("csoftmax: interrupted\n")
        sys.stderr.flush()
    os._exit(INTERRUPTED)


def watch_imports() -> None:
    """End the process at an interrupt, until `watch_command`; whoever has chosen to ignore interrupts still does."""
    if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_process)


def watch_command() -> None:
    """Raise KeyboardInterrupt again, which the command line catches from here on."""
    if signal.getsignal(signal.SIGINT) is end_process:
        signal.signal(signal.SIGINT, signal.default_int_handler)


watch_imports()
