"""Bytes of a table: from a file, a pipe or standard input, unpacked if they are compressed.

A source is read once and as a whole, because a pipe can be read only once.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..._runtime.optional import UnusableError, load, progress

CHUNK_BYTES = 4 << 20
PROGRESS_BYTES = 64 << 20  # smaller files are read before a progress bar could be seen
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
RELEASE_SECONDS, RELEASE_STEP = 1.0, 0.0005


class Source(NamedTuple):
    """The unpacked bytes of a table."""

    name: str  # for messages
    suffix: str  # in lower case, without that of a compression; "" for standard input
    data: bytes


def parse_bytes(read: Callable[[Any], Any], data: bytes | memoryview) -> Any:
    """Call a reader of pyarrow with the bytes of a table, and return when none of its threads holds them any longer.

    A thread of pyarrow's pool may drop the last reference to the bytes after the reader has returned, for which it
    takes the GIL. Python ends a thread that asks for the GIL while the interpreter exits, and the C++ runtime then
    aborts the process: 1 in 40 of the commands that refuse a small table right after it is read.
    """
    arrow = load("pyarrow", "cli")
    view = memoryview(data)
    try:
        return read(arrow.BufferReader(arrow.py_buffer(view)))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # a frame of the reader holds the bytes, too
        raise
    finally:
        end = time.monotonic() + RELEASE_SECONDS
        while not _release(view) and time.monotonic() < end:
            time.sleep(RELEASE_STEP)


def _release(view: memoryview) -> bool:
    """Release a view unless something else still holds it."""
    try:
        view.release()
    except BufferError:
        return False
    return True


def read_source(path: Path, quiet: bool = False) -> Source:
    """Read a file, a pipe, or standard input if the path is "-"."""
    name = "standard input" if str(path) == "-" else str(path)
    try:
        if str(path) == "-":
            if sys.stdin is None:
                raise UnusableError("standard input is closed; give a file, or a pipe to read from")
            data = _read_all(sys.stdin.buffer, name, None, quiet)
        else:
            with path.open("rb") as file:
                size = path.stat().st_size if path.is_file() else None
                data = _read_all(file, path.name, size, quiet)
    except FileNotFoundError:
        raise UnusableError(f"file not found: {name!r}") from None
    except IsADirectoryError:
        raise UnusableError(f"{name!r} is a folder; give a file in it") from None
    except OSError as error:
        raise UnusableError(f"{name!r} cannot be read: {error.strerror or error}") from error
    data = unpack(data, name)
    if not re.search(rb"[^\r\n\t \x00\xef\xbb\xbf\xff\xfe]", data):
        raise UnusableError(f"{name} is empty; it has no rows")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED_SUFFIXES:
        suffixes.pop()
    return Source(name, suffixes[-1] if suffixes else "", data)


def _read_all(file: IO[bytes], name: str, size: int | None, quiet: bool) -> bytes:
    """Read a file to its end; on a terminal, with progress if it is large."""
    if quiet or not sys.stderr.isatty() or (size is not None and size < PROGRESS_BYTES):
        return file.read()
    chunks = []
    with progress(size and size // CHUNK_BYTES, f"reading {name}") as bar:
        while chunk := file.read(CHUNK_BYTES):
            chunks.append(chunk)
            bar.update()
    return b"".join(chunks)


def unpack(data: bytes, name: str) -> bytes:
    """Unpack bytes that begin as a compressed file does, whatever the file's name."""
    method = next((method for magic, method in PACKED.items() if data.startswith(magic)), None)
    try:
        if method == "gzip":
            return gzip.decompress(data)
        if method == "bzip2":
            return bz2.decompress(data)
        if method == "xz":
            return lzma.decompress(data)
        if method == "zstd":
            arrow = load("pyarrow", "cli")
            with arrow.CompressedInputStream(arrow.BufferReader(data), "zstd") as stream:
                return bytes(stream.read())
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UnusableError(
            f"{name} is damaged or incomplete: its {method} data cannot be unpacked ({error})"
        ) from error
    return data
