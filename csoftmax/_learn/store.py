"""Files of models: arrays as safetensors, everything else in a JSON header, a checksum of each, and no pickle.

A file is written beside its destination and moved there when it is complete.  Reading executes nothing from the file,
compares sizes before it allocates, and then compares the checksums, so that no changed bit goes unnoticed.  The same
model always gives the same bytes.

The metadata of safetensors hold the header, {"format", "version", "class"} and what the class adds, and the table of
checksums: SHA-256 of the header's text, and of each array's name, dtype, shape and bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

FORMAT, VERSION = "csoftmax-model", 2
HEADER, CHECKSUMS = "csoftmax", "csoftmax-checksums"  # keys in the metadata of safetensors
ZIP_BEGIN = b"PK\x03\x04"  # of npz files

Arrays = dict[str, NDArray[Any]]


class DamagedError(ValueError):
    """The file is not a model, or is incomplete, changed, or of another class or version."""


@contextlib.contextmanager
def reading(path: str | PathLike[str]) -> Iterator[None]:
    """Context whose errors become a `DamagedError` that names the file: whatever a forged file may cause."""
    try:
        yield
    except (DamagedError, FileNotFoundError, ImportError, MemoryError):
        raise
    except Exception as error:  # safetensors raises many types for damaged files
        raise DamagedError(f"{str(path)!r} cannot be read as a model: {error}") from error


def _article(name: object) -> str:
    return "an" if str(name)[:1] in tuple("AEIO") else "a"


def need(condition: object, problem: str) -> None:
    """Refuse a file, in the context of `reading`, unless the condition holds."""
    if not condition:
        raise ValueError(problem)


def _compute_checksums(text: str, arrays: Arrays) -> dict[str, str]:
    """SHA-256 of the header, under its key, and of each array, under its name."""
    sums = {HEADER: hashlib.sha256(text.encode())}
    for name, a in arrays.items():
        sums[name] = hashlib.sha256(f"{name} {a.dtype.str} {a.shape}".encode())
        sums[name].update(a.data)
    return {name: each.hexdigest() for name, each in sums.items()}


def write(path: str | PathLike[str], class_name: str, arrays: Arrays, header: dict[str, Any]) -> None:
    """Write a model of the named class: its arrays, and a header of what JSON can hold."""
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path must be a str or path-like, got {path!r}")
    path = Path(path)
    if path.suffix.lower() == ".npz":
        raise ValueError(f"path is {str(path)!r}, but models are safetensors files; choose a name without .npz")
    try:
        from safetensors.numpy import save as encode
    except ImportError as error:
        raise ImportError(
            f"safetensors, the format of models, cannot be imported ({error}); install it with: "
            "pip install 'csoftmax[learn]'"
        ) from error
    text = json.dumps({"format": FORMAT, "version": VERSION, "class": class_name, **header})
    arrays = {name: np.ascontiguousarray(a, a.dtype.newbyteorder("<")) for name, a in arrays.items()}
    metadata = {HEADER: text, CHECKSUMS: json.dumps(_compute_checksums(text, arrays))}
    blob = encode(arrays, metadata=metadata)
    begin = 8 + int.from_bytes(blob[:8], "little")
    entries = json.dumps(json.loads(blob[8:begin]), sort_keys=True).encode()  # safetensors shuffles the metadata's keys
    entries += b" " * (-len(entries) % 8)  # aligns the arrays

    def write_sorted(f: BinaryIO) -> None:
        f.write(len(entries).to_bytes(8, "little") + entries)
        f.write(memoryview(blob)[begin:])

    write_whole(path, write_sorted)


def write_whole(path: str | PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Call write(file) with a new file that then replaces `path`; if anything fails, the old file stays.

    A link stays, and the file that it leads to is replaced. What is no regular file, such as a pipe, is written to.
    """
    given, path = path, Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {str(given)!r}: there is no folder {str(path.parent)!r}")
    if path.exists() and not path.is_file():
        with path.open("wb") as f:
            write(f)
        return
    name = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    # 0o666 less the umask, as from open(); O_EXCL refuses a file or link that is there already
    handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read(
    path: str | PathLike[str], class_name: str, *, mmap: bool = False, verify: bool = True
) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and header of a model of the named class, after the checks that apply to every class.

    mmap: the arrays are read-only memory maps of the file.  verify: compare the checksums, which reads all of the file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"a folder, not a file: {str(path)!r}")
    if not path.is_file():
        raise FileNotFoundError(f"file not found: {str(path)!r}")
    with reading(path), path.open("rb") as f:
        need(f.read(4) != ZIP_BEGIN, "it is a zip archive, such as an npz file; models are safetensors files")
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:  # checks offsets and sizes against the file
            metadata = file.metadata() or {}
            names = list(file.keys())
            arrays = {} if mmap else {name: file.get_tensor(name) for name in names}
        if mmap:
            arrays = _map_arrays(f, names)
        need(HEADER in metadata, "it has no csoftmax header")
        header = json.loads(metadata[HEADER])
        need(isinstance(header, dict) and header.get("format") == FORMAT, "it is not a csoftmax model file")
        version = header.get("version")
        need(version == VERSION, f"it has version {version!r}; this csoftmax reads version {VERSION}")
        if verify:
            _verify(metadata, arrays)
        found = header.get("class")
        need(found == class_name, f"it is {_article(found)} {found!r}, not {_article(class_name)} {class_name}")
        return arrays, header


def _map_arrays(f: BinaryIO, names: list[str]) -> Arrays:
    """Memory maps of the arrays in a file whose structure safetensors has checked."""
    f.seek(0)
    length = int.from_bytes(f.read(8), "little")
    entries = json.loads(f.read(length))
    if not any(entries[name]["data_offsets"][1] for name in names):
        data = np.zeros(0, np.uint8)  # an empty file cannot be mapped
    else:
        data = np.memmap(f, np.uint8, "r", offset=8 + length).view(np.ndarray)
    arrays = {}
    for name in names:
        begin, end = entries[name]["data_offsets"]
        kind = entries[name]["dtype"]  # such as F32
        dtype = np.dtype(f"<{'?' if kind == 'BOOL' else kind[0].lower()}{int(kind[1:]) // 8}")
        arrays[name] = data[begin:end].view(dtype).reshape(entries[name]["shape"])
    return arrays


def _verify(metadata: dict[str, str], arrays: Arrays) -> None:
    """Compare all checksums."""
    need(CHECKSUMS in metadata, "it has no checksums")
    given, computed = json.loads(metadata[CHECKSUMS]), _compute_checksums(metadata[HEADER], arrays)
    for name, value in computed.items():
        what = "its header" if name == HEADER else f"its array {name!r}"
        need(given.get(name) == value, f"{what} is damaged: the checksum does not match")
    need(given.keys() == computed.keys(), "it lacks an array")
