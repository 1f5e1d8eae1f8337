"""The bytes of a `SoftmaxState`: a line that names the class, the length of a JSON header, the header with its version,
arrays in C order and little-endian, and the SHA-256 of everything before it."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np

from .._cpu.dtypes import is_bfloat16

_MAGIC = b"csoftmax SoftmaxState\n"
_VERSION = 1
_DIGEST_BYTES = 32


def write_bytes(header: dict[str, Any], arrays: dict[str, Any]) -> bytes:
    """The bytes of a header of what JSON can hold, and of arrays."""
    described = {name: (_name_of(a.dtype), a.shape) for name, a in arrays.items()}
    text = json.dumps({"version": _VERSION, **header, "arrays": described}).encode()
    blob = _MAGIC + len(text).to_bytes(8, "little") + text + b"".join(_raw(a) for a in arrays.values())
    return blob + hashlib.sha256(blob).digest()


def read_bytes(blob: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and the arrays that `write_bytes` has written; a ValueError for anything else."""
    if not blob.startswith(_MAGIC):
        raise ValueError(f"data are not those of a SoftmaxState: they begin with {blob[: len(_MAGIC)]!r}")
    if hashlib.sha256(blob[:-_DIGEST_BYTES]).digest() != blob[-_DIGEST_BYTES:]:
        raise ValueError("data are damaged or incomplete: their checksum does not match")
    at = len(_MAGIC) + 8
    length, end = int.from_bytes(blob[at - 8 : at], "little"), len(blob) - _DIGEST_BYTES
    header = json.loads(blob[at : at + length])
    if header["version"] != _VERSION:
        raise ValueError(f"version {header['version']} is not the one that this csoftmax reads, {_VERSION}")
    at, arrays = at + length, {}
    for name, (kind, given) in header["arrays"].items():
        dtype, shape = dtype_named(kind), tuple(given)
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or at + size > end:
            raise ValueError(f"array {name} of shape {shape} is not there")
        arrays[name] = _from_raw(blob[at : at + size], dtype).reshape(shape)
        at += size
    if at != end:
        raise ValueError(f"{end - at} bytes are left over")
    return header, arrays


def dtype_named(name: str) -> Any:
    """The dtype of a name, bfloat16 included."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _name_of(dtype: Any) -> str:
    return str(dtype.name)


def _raw(a: Any) -> bytes:
    a = np.ascontiguousarray(a)
    little: Any = a.view(np.uint16) if is_bfloat16(a.dtype) else a
    return bytes(little.astype(little.dtype.newbyteorder("<"), copy=False).tobytes())


def _from_raw(raw: bytes, dtype: Any) -> Any:
    """What `_raw` has written."""
    stored = np.dtype(np.uint16) if is_bfloat16(dtype) else dtype
    a = np.frombuffer(raw, stored.newbyteorder("<")).astype(stored)
    return a.view(dtype) if is_bfloat16(dtype) else a
