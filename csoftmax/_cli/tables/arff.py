"""ARFF files: their head is read here, their rows as those of a text table.

SciPy's `loadarff` refuses columns of strings and quoted values with commas, and is a loop over lines in Python.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from ..._runtime.optional import UnusableError
from ..messages import count, name_some
from . import delimited
from .dialect import Options, decode
from .opening import Source
from .raw import RawTable, Text, name_columns, parse_number

APOSTROPHE = "\x1e"  # takes the place of one that is part of a value, while ' is the sign of quotes
NUMERIC = ("numeric", "real", "integer")

_ATTRIBUTE = re.compile(
    r"""@attribute\s+(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^\s{]+))\s*(.+)""", re.IGNORECASE | re.DOTALL
)
_DOUBLE_QUOTED = re.compile(r'(?:(?<=,)|(?<=\t)|^)(\s*)"((?:[^"\\]|\\.)*)"', re.MULTILINE)

_DECLARED = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^,]+))\s*(?:,|$)""")


class Head(NamedTuple):
    """What stands before the rows."""

    names: list[str]
    kinds: list[str]
    lines: int


def read_arff(source: Source, options: Options, as_words: Collection[str] = ()) -> tuple[RawTable, str]:
    """Read an ARFF file."""
    data, encoding = decode(source.data, options.encoding, source.name)
    lines = data.replace(b"\r\n", b"\n").decode().split("\n")
    head = read_head(source.name, lines)
    rows = ["" if line.lstrip().startswith("%") else line for line in lines[head.lines :]]
    first = next((line.strip() for line in rows if line.strip()), "")
    if first.startswith("{"):
        raise UnusableError(
            f"{source.name} has sparse rows, {{index value, …}}, which are not read; write it in the dense form of "
            "ARFF, or as libsvm"
        )
    text = _use_one_quote("\n".join(rows))
    words = [kind.startswith("{") or kind.lower().startswith("string") for kind in head.kinds]
    raw, _ = delimited.read(
        Source(source.name, "", ("\n" * head.lines + text).encode()),
        Options(
            separator="\t" if "\t" in first and "," not in first else ",",
            decimal=".",
            header=False,
            skip=head.lines,
            quote="'" if "'" in text else '"',
        ),
        as_words=[str(i) for i, name in enumerate(head.names) if words[i] or name in as_words],
    )
    if len(raw.names) != len(head.names):
        raise UnusableError(
            f"{raw.at(0)}: {count(len(raw.names), 'value')}, but {count(len(head.names), 'attribute')} declared"
        )
    for values in raw.columns:
        if isinstance(values, Text):
            values.levels = [level.replace(APOSTROPHE, "'") for level in values.levels]
    _check_declared(raw, head)
    named = name_columns(head.names)
    raw.rename(named)
    raw.declared = {name for name, kind in zip(named.names, head.kinds) if kind.startswith("{")}
    _check_numbers(raw, head, as_words)
    return raw, ", ".join(filter(None, ["ARFF", encoding, named.describe()]))


def read_head(name: str, lines: list[str]) -> Head:
    """Read the attributes."""
    names, kinds, begin = [], [], None
    for number, line in enumerate(lines, 1):
        word = line.strip()
        if word.lower().startswith("@attribute"):
            match = _ATTRIBUTE.fullmatch(word)
            if match is None:
                raise UnusableError(f"{name}, line {number}: {word[:60]!r} does not declare an attribute")
            names.append(next(g for g in match.groups()[:3] if g is not None).replace("\\", "").strip())
            kinds.append(match.group(4).strip())
        elif word.lower().startswith("@data"):
            begin = number
            break
        elif word and not word.startswith("%") and not word.lower().startswith("@relation"):
            raise UnusableError(f"{name}, line {number}: {word[:60]!r} has no place in the head of an ARFF file")
    if begin is None or not names:
        raise UnusableError(f"{name}: an ARFF file has @attribute lines and @data; one of them is missing")
    for attribute, kind in zip(names, kinds):
        if kind.lower().startswith("relational"):
            raise UnusableError(f"{name}: attribute {attribute!r} is relational, which is no column of a table")
    return Head(names, kinds, begin)


def _use_one_quote(text: str) -> str:
    """Return rows in which only one sign encloses values: ' if there is any, and no escaped ones."""
    text = text.replace("\\'", APOSTROPHE)
    if "'" not in text:
        return text
    return _DOUBLE_QUOTED.sub(lambda m: f"{m[1]}'{m[2].replace(chr(39), APOSTROPHE)}'", text)


def _read_declared(kind: str) -> list[str]:
    """Return the values that an attribute of {…} declares."""
    matches = _DECLARED.finditer(kind[1 : kind.rfind("}")])
    values = (next((g for g in match.groups() if g is not None), "") for match in matches)
    return [re.sub(r"\\(.)", r"\1", value).strip() for value in values]


def _check_declared(raw: RawTable, head: Head) -> None:
    """Refuse a value that its attribute does not declare: it would become a class or a level of its own."""
    for name, kind, values in zip(head.names, head.kinds, raw.columns):
        if not kind.startswith("{") or "}" not in kind or not isinstance(values, Text):
            continue
        declared = _read_declared(kind)
        known = set(declared) | {parse_number(value) for value in declared} - {None}
        wrong = [level not in known and parse_number(level) not in known for level in values.levels]
        if any(wrong):
            row = int(np.argmax(values.take(wrong, False)))
            raise UnusableError(
                f"{raw.at(row)}: attribute {name!r} is {values.levels[values.codes[row]]!r}, but it is declared with "
                f"{name_some(declared)}"
            )


def _check_numbers(raw: RawTable, head: Head, as_words: Collection[str]) -> None:
    """Refuse a value that is no number in an attribute that is declared as one."""
    for name, kind, values in zip(head.names, head.kinds, raw.columns):
        if kind.lower().startswith(NUMERIC) and isinstance(values, Text) and values.levels and name not in as_words:
            row = int(np.argmax(values.take([True] * len(values.levels), False)))
            numbers = [i for i, level in enumerate(values.levels) if not re.fullmatch(r"[-+\d.eE]+", level)]
            row = int(np.argmax(np.isin(values.codes, numbers))) if numbers else row
            cell = values.levels[values.codes[row]]
            raise UnusableError(f"{raw.at(row)}: attribute {name!r} is {cell!r}, but it is declared as {kind.lower()}")
