"""Files that the commands write: refused, before the work starts, if they cannot be written or are read, too."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from .._runtime.optional import UnusableError, check_folder

STREAM = "-"  # standard input, or output


def check_output(path: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse a file that could not be written, and one that the command reads: that would be lost.

    Parameters
    ----------
    path
        The file to write.
    inputs
        The files that are read, by what they are, such as "model".
    """
    if str(path) == STREAM:
        raise UnusableError("the result that -o or --html writes is a file, not standard output; give it a name")
    check_folder(path)
    if path.is_dir():
        raise UnusableError(f"cannot write {str(path)!r}: it is a folder")
    for name, other in inputs.items():
        if is_same_file(path, other):
            raise UnusableError(f"cannot write {str(path)!r}: it is the {name} that is read; choose another name")


def check_model_output(path: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse a model's file that could not be written, or that is read."""
    check_output(path, inputs)
    if path.suffix.lower() == ".npz":
        raise UnusableError(f"{str(path)!r}: models are safetensors files, not npz; such as model.safetensors")


def is_same_file(path: Path, other: Path) -> bool:
    """Whether two names are those of one regular file, by links, too; "-" is the file that standard input reads."""
    try:
        if not path.is_file():  # a terminal and a device may be read and written
            return False
        if str(other) == STREAM:
            return sys.stdin is not None and os.path.samestat(path.stat(), os.fstat(sys.stdin.fileno()))
        return path.samefile(other)
    except (OSError, ValueError):  # the other does not exist, or a standard input without a file
        return False
