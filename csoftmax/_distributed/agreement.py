"""What all shards of a call must have in common: named values in their normal form, compared, hashed and shown.

A value is a string, a number of Python, None or a tuple of these; of an array, its dtype, shape and digest. So a count
is the same whether it was given as an int or as a NumPy integer, and values can travel as text.
"""

from __future__ import annotations

import functools
import hashlib
import marshal
from typing import Any

import numpy as np

Agreed = tuple[tuple[str, Any], ...]

# What ranks with other rows have for themselves.
OF_ROWS = frozenset({"shape of the rows", "target", "sample_weight", "upstream of each row"})
_WITH_ARTICLE = frozenset({"function", "dtype", "shape of the rows", "temperature"})


def digest_of(*arrays: Any) -> str:
    """A short text that tells arrays of different contents apart."""
    found = hashlib.blake2b(digest_size=6)
    for a in arrays:
        found.update(b"-" if a is None else np.ascontiguousarray(a).tobytes())
    return found.hexdigest()


@functools.cache
def name_of(dtype: np.dtype[Any]) -> str:
    """The name of a dtype, which NumPy composes at each use, in 1.5 us."""
    return dtype.name


def describe(a: Any) -> tuple[str, tuple[int, ...], str] | None:
    """An array, or None, as a value."""
    return None if a is None else (name_of(a.dtype), a.shape, digest_of(a))


def as_name(given: str) -> str:
    """An option that is a name as a value: a subclass of str, as an enum's member or NumPy's, is its text."""
    return str.__str__(given)


def _is_array(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and isinstance(value[0], str)


def _show(value: Any) -> Any:
    """A value as messages have it."""
    return f"{value[0]} {value[1]} {value[2]}" if _is_array(value) else value


def hash_of(agreed: Agreed) -> bytes:
    """8 bytes that tell values apart."""
    words = marshal.dumps(agreed, 0)  # 0: depends on the values alone; a tenth of the time of repr
    return hashlib.blake2b(words, digest_size=8).digest()


def without_rows(agreed: Agreed) -> Agreed:
    """The values that ranks with other rows must have in common as well."""
    common = (item for item in agreed if item[0] not in OF_ROWS)
    return tuple((name, "one of each row" if _is_array(value) else value) for name, value in common)


def find_difference(a: Agreed, b: Agreed) -> tuple[str, Any, Any] | None:
    """The name of the first value that differs, with both values as shown; None if there is none."""
    if a == b:
        return None
    others = dict(b)
    for name, value in a:
        if name not in others or others[name] != value:
            return name, _show(value), _show(others.get(name))
    names = {name for name, _ in a}
    return next((name, None, _show(value)) for name, value in b if name not in names)


def as_text(agreed: Agreed) -> str:
    """The values as text, which `from_text` reads."""
    return "\n".join(f"{name}={_show(value)}" for name, value in agreed)


def from_text(text: str) -> Agreed:
    """The values of `as_text`, as strings."""
    pairs = (line.partition("=") for line in text.split("\n"))
    return tuple((name, value) for name, _, value in pairs)


def with_article(name: str) -> str:
    """The name as a sentence has it."""
    return f"the {name}" if name in _WITH_ARTICLE else name
