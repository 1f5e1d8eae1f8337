"""Tables that are no plain text: Parquet, Excel, npz and libsvm.

Each reader takes the bytes of a source and returns a `RawTable` with the words that say what was read.
"""

from __future__ import annotations

import datetime
import io
import re
import zipfile
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._runtime.optional import UnusableError, load
from ..messages import count, name_some
from .dialect import HEADER_HINT, NO_MODEL, SAMPLE_ROWS, ModelColumns, Options, has_header, is_title, number_columns
from .opening import Source, parse_bytes
from .raw import RawTable, Text, Values, as_text, format_number, make_text, name_columns, recognise

MAX_DENSE_BYTES = 4 << 30  # of a libsvm table as an array
MAX_PREAMBLE_ROWS = 20  # of a sheet, before its table
LABEL = "label"  # the name of the first column of a libsvm table


def read_parquet(source: Source, as_words: Collection[str] = ()) -> tuple[RawTable, str]:
    """Read a Parquet table."""
    arrow, parquet = load("pyarrow", "cli"), load("pyarrow.parquet", "cli")
    try:
        table = parse_bytes(parquet.read_table, source.data)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise UnusableError(f"{source.name} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    names, columns = [], []
    for name, column in zip(table.column_names, table.columns):
        names.append("" if re.fullmatch(r"__index_level_\d+__", name) else str(name).strip())  # pandas' index
        columns.append(_take_arrow(column))
    named = name_columns(names)
    unusable = {
        name: str(column.type) for name, column in zip(named.names, table.columns) if not _is_readable(column.type)
    }
    columns = [as_text(c) if n in as_words else c for n, c in zip(named.names, columns)]
    types = arrow.types
    return RawTable(
        source.name,
        named.names,
        columns,
        table.num_rows,
        declared={n for n, column in zip(named.names, table.columns) if types.is_dictionary(column.type)},
        unnamed=named.unnamed,
        repeated=named.repeated,
        unusable=unusable,
    ), ", ".join(filter(None, ["Parquet", named.describe()]))


def _is_readable(kind: Any) -> bool:
    """Whether a column of a type can be read as numbers or text."""
    types = load("pyarrow", "cli").types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return not (types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind))


def _take_arrow(column: Any) -> Values:
    """Return a column of Parquet as numbers or text; dates and booleans become text, as in a text table.

    Durations become seconds. A column that is neither numbers nor text becomes one of missing values.
    """
    arrow, compute = load("pyarrow", "cli"), load("pyarrow.compute", "cli")
    kind, types = column.type, arrow.types
    if types.is_dictionary(kind) and _is_readable(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind):
        single = types.is_float32(kind) or types.is_float16(kind)
        wide = compute.cast(column, arrow.float32() if single else arrow.float64(), safe=False)
        if types.is_integer(kind) and kind.bit_width == 64 and (big := _find_big(column, compute)):
            return big
        return np.array(wide.combine_chunks().to_numpy(zero_copy_only=False))
    if types.is_duration(kind):
        ticks = compute.cast(column, arrow.int64()).combine_chunks().to_numpy(zero_copy_only=False)
        return np.asarray(ticks, np.float64) / {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[kind.unit]
    if types.is_null(kind) or not _is_readable(kind):
        return make_text([], np.full(len(column), -1, np.int64))
    words = column.cast(arrow.string()).dictionary_encode().combine_chunks()
    if isinstance(words, arrow.ChunkedArray):
        words = words.chunk(0) if words.num_chunks else arrow.array([], arrow.string()).dictionary_encode()
    codes = words.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return make_text(words.dictionary.to_pylist(), codes)


def _find_big(column: Any, compute: Any) -> Text | None:
    """Return integers as text if one of them is no float64, such as an id of 64 bits."""
    bounds = compute.min_max(column).as_py()
    if bounds["min"] is None or max(abs(bounds["min"]), abs(bounds["max"])) <= 2**53:
        return None
    return make_text(["" if v is None else str(v) for v in column.to_pylist()])


def read_excel(
    source: Source,
    options: Options,
    expected: Collection[str],
    as_words: Collection[str],
    model: ModelColumns = NO_MODEL,
) -> tuple[RawTable, str]:
    """Read a sheet of an Excel (or OpenDocument) file: the first, or the one that is named."""
    calamine = load("python_calamine", "cli")
    try:
        book = calamine.CalamineWorkbook.from_filelike(io.BytesIO(source.data))
        sheets = list(book.sheet_names)
        sheet = sheets[0] if options.sheet is None else options.sheet
        if sheet not in sheets:
            raise UnusableError(f"{source.name} has no sheet {sheet!r}; it has {', '.join(map(repr, sheets))}")
        cells = book.get_sheet_by_name(sheet).to_python(skip_empty_area=False)
    except UnusableError:
        raise
    except Exception as error:  # the errors of the library have no common class
        raise UnusableError(f"{source.name} cannot be read as Excel: {error}") from error
    rows, skipped = _cut_sheet(cells, options.skip)
    if not rows:
        raise UnusableError(f"{source.name}: sheet {sheet!r} has no rows")
    header = options.header
    if header is None:
        header = has_header(rows[0][1], [row for _, row in rows[1:SAMPLE_ROWS]], ".", expected, model)
    numbers_of, note = number_columns(len(rows[0][1]), model)
    given = [name.strip() for name in rows[0][1]] if header else numbers_of
    named = name_columns(given)
    names = named.names
    rows = rows[1:] if header else rows
    hint = f"; other sheets, for --sheet: {', '.join(repr(s) for s in sheets if s != sheet)}" * (len(sheets) > 1)
    if not header:
        hint = HEADER_HINT * (options.header is None) + hint
    elif not {*expected} & {*names}:
        hint = _find_later_header(rows, expected) + hint
    columns = [make_text([row[i] for _, row in rows]) for i in range(len(names))]
    numbers = [i for i, _ in rows]
    table = RawTable(
        source.name,
        names,
        [c if n in as_words else recognise(c) for n, c in zip(names, columns)],
        len(rows),
        locate=lambda row: f"row {numbers[row]} of sheet {sheet!r}",
        has_names=header,
        unnamed=named.unnamed,
        repeated=named.repeated,
        hint=hint,
    )
    words = [f"sheet {sheet!r}"]
    words += [f"{count(len(skipped), 'row')} skipped (before the table): {name_some(skipped)}"] if skipped else []
    words += ["header"] if header else ["no header: columns are numbered from 0", note]
    return table, ", ".join(filter(None, [*words, named.describe()]))


def _cut_sheet(cells: Sequence[Sequence[Any]], skip: int | None) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """Return the rows of the table of a sheet with their numbers, and what the skipped rows before it say."""
    rows = [(i, [_write_cell(cell) for cell in row]) for i, row in enumerate(cells, 1)]
    rows = [(i, row) for i, row in rows if any(cell.strip() for cell in row) and i > (skip or 0)]
    skipped = []
    if rows and skip is None:
        left, right = _find_sides(rows)
        rows = [(i, row[:right]) for i, row in rows]
        body = [row[left:] for _, row in rows]
        while len(rows) > 1 and right - left > 2 and is_title(body[0], body[1:SAMPLE_ROWS], right - left):
            skipped.append(next(cell.strip() for cell in rows[0][1] if cell.strip()))
            rows, body = rows[1:], body[1:]
    if not rows:
        return [], []
    left, right = _find_sides(rows)
    return [(i, row[left:right]) for i, row in rows], skipped


def _find_sides(rows: Sequence[tuple[int, list[str]]]) -> tuple[int, int]:
    """Return the first column that has a value, and the one after the last."""
    left = min(next(i for i, cell in enumerate(row) if cell.strip()) for _, row in rows)
    return left, max(len(_strip_end(row)) for _, row in rows)


def _find_later_header(rows: Sequence[tuple[int, list[str]]], expected: Collection[str]) -> str:
    """Return the advice to skip what stands before the row that has an expected name, if one of the first has."""
    for number, row in rows[:MAX_PREAMBLE_ROWS]:
        found = {cell.strip() for cell in row} & set(expected)
        if found:
            return f"; row {number} has {min(found)!r}: if it is the header, --skip {number - 1}"
    return ""


def _write_cell(cell: Any) -> str:
    """Return the cell of a sheet as a text table has it."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(cell)
    if isinstance(cell, int | float):
        return format_number(cell)
    if isinstance(cell, datetime.datetime | datetime.date | datetime.time):
        return cell.isoformat()
    return str(cell)


def _strip_end(row: Sequence[str]) -> Sequence[str]:
    end = len(row)
    while end and not row[end - 1].strip():
        end -= 1
    return row[:end]


def read_npz(source: Source, as_words: Collection[str] = ()) -> tuple[RawTable, str]:
    """Read an npz file: an array with two axes holds features, an array with one axis is a column."""
    arrays: dict[str, NDArray[Any]] = {}
    part = ""
    try:
        with np.load(io.BytesIO(source.data), allow_pickle=False) as file:
            for name in file.files:
                part = f": array {name!r}"
                arrays[name] = file[name]
    except (OSError, ValueError, AttributeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UnusableError(f"{source.name} cannot be read as npz{part}: {error}") from error
    tables = [name for name, a in arrays.items() if a.ndim == 2]
    vectors = [name for name, a in arrays.items() if a.ndim == 1]
    deep = [f"{name!r} {a.shape}" for name, a in arrays.items() if a.ndim > 2]
    if deep and not tables and len(vectors) < 2:  # what is left are no features and labels
        raise UnusableError(
            f"{source.name}: an array has more than two axes: {', '.join(deep)}; reshape it to rows and features"
        )
    if len(tables) > 1 or not (tables or vectors):
        raise UnusableError(
            f"{source.name} must have one array with two axes, the features; it has {len(tables)}: {tables}"
        )
    lengths = {name: len(arrays[name]) for name in tables + vectors}
    if len(set(lengths.values())) > 1:
        shapes = ", ".join(f"{name!r} {arrays[name].shape}" for name in lengths)
        raise UnusableError(f"{source.name}: the arrays have different numbers of rows: {shapes}")
    names: list[str] = []
    columns: list[Values] = []
    for name, a in arrays.items():
        parts = (
            {f"{name}[{i}]": a[:, i] for i in range(a.shape[1])} if a.ndim == 2 else {name: a} if a.ndim == 1 else {}
        )
        for part, values in parts.items():
            names.append(part)
            columns.append(_take_array(source.name, part, values))
    columns = [as_text(c) if n in as_words else c for n, c in zip(names, columns)]
    single = [f"{name!r}" for name, a in arrays.items() if a.ndim == 0]
    return RawTable(source.name, names, columns, next(iter(lengths.values()))), ", ".join(
        [
            "npz",
            *[f"left out, more than two axes: {name}" for name in deep],
            *[f"left out, a single value: {name}" for name in single],
        ]
    )


def _take_array(source: str, name: str, a: NDArray[Any]) -> Values:
    if a.dtype.kind in "fiu":
        if a.dtype.kind != "f" and a.size and max(abs(int(a.min())), abs(int(a.max()))) > 2**53:
            return make_text(list(map(str, a.tolist())))
        return a.astype(np.float32 if a.dtype in (np.float32, np.float16) else np.float64)
    if a.dtype.kind == "b":
        return make_text(["False", "True"], a.astype(np.int64))
    if a.dtype.kind == "U":
        return make_text(a.tolist())
    if a.dtype.kind == "S":
        return make_text([cell.decode("utf-8", "replace") for cell in a.tolist()])
    if a.dtype.kind == "M":
        return make_text(["" if t == "NaT" else t for t in a.astype(str).tolist()])
    raise UnusableError(f"{source}: {name!r} has dtype {a.dtype}, it must hold numbers or text")


_NUMBER = rb"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_LIBSVM_EMPTY = re.compile(rb"%(n)s(?:,%(n)s)*" % {b"n": _NUMBER})
_LIBSVM_ROW = re.compile(
    _LIBSVM_EMPTY.pattern + rb"(?:\s+qid:\d+)?(?:\s+\d+:(?:%s|(?i:[-+]?(?:nan|inf(?:inity)?))))+" % _NUMBER
)
_CLOCK = re.compile(rb"\S+\s+([01]?\d|2[0-3]):[0-5]\d")  # a number and a time, or a row with a single value


def is_libsvm(data: bytes) -> bool:
    """Whether the first lines are those of libsvm: label index:value …"""
    lines = [line.partition(b"#")[0].strip() for line in data[: 64 << 10].split(b"\n")[:50]]
    lines = [line for line in lines if line]
    lines = lines if len(lines) < 3 or len(data) <= 64 << 10 else lines[:-1]
    full = [_LIBSVM_ROW.fullmatch(line) for line in lines]
    if all(_CLOCK.fullmatch(line) for line, match in zip(lines, full) if match):
        return False
    empty = [m is not None or _LIBSVM_EMPTY.fullmatch(line) for m, line in zip(full, lines)]
    return bool(lines) and any(full) and sum(map(bool, empty)) >= 0.7 * len(lines)


def read_libsvm(source: Source) -> tuple[RawTable, str]:
    """Read a libsvm table; its columns are "label" and the indices, and what a row leaves out is 0."""
    datasets = load("sklearn.datasets", "learn")
    try:
        matrix, labels = datasets.load_svmlight_file(io.BytesIO(source.data), zero_based=True)
    except (ValueError, OverflowError) as error:
        line = _find_libsvm_fault(source.data)
        raise UnusableError(
            f"{source.name}, line {line}: this is no row of libsvm, label index:value … ({error})"
        ) from error
    begin = 0 if matrix.shape[1] and matrix[:, :1].nnz else 1
    width = matrix.shape[1] - begin
    if 8 * matrix.shape[0] * width > MAX_DENSE_BYTES:
        raise UnusableError(
            f"{source.name} has {matrix.shape[0]} rows and {width} columns, too many for an array; use "
            "csoftmax.linear_model.SoftmaxRegression in Python, which takes sparse matrices"
        )
    dense = matrix.toarray()[:, begin:]
    names = [LABEL, *(str(i) for i in range(begin, matrix.shape[1]))]
    columns: list[Values] = [labels, *np.ascontiguousarray(dense.T)]
    rows = [i for i, line in enumerate(source.data.split(b"\n"), 1) if line.partition(b"#")[0].strip()]
    return (
        RawTable(
            source.name,
            names,
            columns,
            len(labels),
            locate=lambda row: f"line {rows[row]}",
            has_names=False,
            absent=0.0,
        ),
        "libsvm",
    )


def _find_libsvm_fault(data: bytes) -> int:
    """Return the first line that scikit-learn refuses, by bisection: its errors name none."""
    datasets = load("sklearn.datasets", "learn")
    lines = data.split(b"\n")
    good, bad = 0, len(lines)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            datasets.load_svmlight_file(io.BytesIO(b"\n".join([b"0 1:1", *lines[good:middle]])), zero_based=True)
            good = middle
        except (ValueError, OverflowError):
            bad = middle
    return bad
