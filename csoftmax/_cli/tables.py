"""Tables for the learning commands: CSV and TSV, npz, and Parquet through pandas.

Errors name the file, the line or row, the column and the value.
"""

from __future__ import annotations

import array
import csv
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._runtime.optional import UnusableError, load, progress

ROWS_BETWEEN_UPDATES = 10_000  # of the progress bar


class Table(NamedTuple):
    """Rows of numbers with the names of their columns, and the column of labels."""

    x: NDArray[Any]  # float64 (float32 if the file has no wider numbers)
    names: list[str]
    target: NDArray[Any] | None  # integers or strings


def read(path: Path, target: str | None, *, needs_target: bool = True, wanted: Sequence[str] | None = None) -> Table:
    """Read a table from a file.

    Parameters
    ----------
    path
        The file; its suffix is one of READERS.
    target
        The name of the column of labels, which is not a feature.
    needs_target
        Whether a file without that column is refused.
    wanted
        The names of the numeric columns, in their order, for files that have names; None: all columns.

    Returns
    -------
    Table
    """
    if not path.is_file():
        raise UnusableError(f"file not found: {str(path)!r}")
    if path.suffix not in READERS:
        raise UnusableError(f"{str(path)!r} must end in {', '.join(READERS)}")
    table = READERS[path.suffix](path, target, needs_target, wanted)
    if table.x.shape[0] == 0:
        raise UnusableError(f"{path} has no rows")
    if table.x.shape[1] == 0:
        raise UnusableError(f"{path} has no numeric column besides the target")
    return table


def parse_labels(values: Any) -> NDArray[Any]:
    """Return labels as integers if all of them are whole numbers, else as strings."""
    labels: NDArray[Any] = np.asarray(values)
    if labels.dtype.kind in "iub":
        return labels.astype(np.int64)
    text = labels.astype(str)
    try:
        whole = np.array([int(v) for v in text], np.int64)
    except (ValueError, OverflowError):
        return text
    return whole if all(str(w) == t.strip() for w, t in zip(whole.tolist(), text.tolist())) else text


def _find_target(names: list[str], target: str | None, path: Path, needed: bool) -> int | None:
    """Return the position of the target among the columns, or None."""
    if target in names:
        return names.index(target)
    if target is not None and needed:
        shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
        raise UnusableError(f"{path} has no column {target!r}; it has {shown}")
    return None


def _choose_columns(names: list[str], place: int | None, wanted: Sequence[str] | None, path: Path) -> list[int]:
    """Return the positions of the numeric columns; `place` is that of the target."""
    if wanted is None:
        return [i for i in range(len(names)) if i != place]
    places = {name: i for i, name in enumerate(names)}
    for name in wanted:
        if name not in places:
            raise UnusableError(f"{path} has no column {name!r}, which the model was trained with")
    return [places[name] for name in wanted]


def _read_text(path: Path, target: str | None, needed: bool, wanted: Sequence[str] | None) -> Table:
    with path.open(newline="", encoding="utf-8-sig", errors="strict") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            if len(set(names)) < len(names):
                twice = next(name for i, name in enumerate(names) if name in names[:i])
                raise UnusableError(f"{path}, line 1: duplicate column {twice!r}")
            place = _find_target(names, target, path, needed)
            chosen = _choose_columns(names, place, wanted, path)
            numbers, labels = _read_lines(path, reader, names, place, chosen)
        except UnicodeDecodeError as error:
            raise UnusableError(f"{path} is not UTF-8: {error}") from error
        except csv.Error as error:
            raise UnusableError(f"{path}, line {reader.line_num}: {error}") from error
    names = [names[i] for i in chosen]
    x = np.array(numbers).reshape(-1, len(names)) if names else np.zeros((len(labels), 0))
    return Table(x, names, parse_labels(labels) if place is not None else None)


def _read_lines(
    path: Path, reader: Any, names: list[str], place: int | None, chosen: list[int]
) -> tuple[array.array[float], list[str]]:
    """Return the chosen columns as numbers, one row after the other, and the labels at `place`."""
    numbers, labels = array.array("d"), []
    with progress(None, f"reading {path.name}") as bar:
        for count, row in enumerate(reader, 1):
            if not row:
                continue
            at = f"{path}, line {reader.line_num}"
            if len(row) != len(names):
                raise UnusableError(f"{at}: {len(row)} values, but the header has {len(names)} columns")
            if place is not None:
                labels.append(row[place])
                if not labels[-1].strip():
                    raise UnusableError(f"{at}: {names[place]!r} is empty")
            try:
                values = [float(row[i]) for i in chosen]
            except ValueError:
                values = [math.nan]
            if not all(map(math.isfinite, values)):
                _refuse_row(at, [(names[i], row[i]) for i in chosen])
            numbers.extend(values)
            if count % ROWS_BETWEEN_UPDATES == 0:
                bar.set_postfix_str(f"{count} rows")
                bar.update()
    return numbers, labels


def _refuse_row(at: str, row: list[tuple[str, str]]) -> None:
    """Raise an error for the first value of a row that is not a finite number."""
    for name, value in row:
        try:
            finite = math.isfinite(float(value))
        except ValueError:
            finite = False
        if not finite:
            what = "is empty" if not value.strip() else f"is {value!r}, which is not a finite number"
            raise UnusableError(f"{at}: column {name!r} {what}")


def _check_numbers(path: Path, x: Any, names: list[str]) -> NDArray[Any]:
    """Return the features in float32 or float64; refuse other kinds of values, and values that are not finite."""
    given: NDArray[Any] = np.asarray(x)
    if given.dtype.kind not in "fiub":
        raise UnusableError(f"{path}: the features have dtype {given.dtype}, they must be numbers")
    numbers = given.astype(np.float32 if given.dtype == np.float32 else np.float64, copy=False)
    wrong = np.argwhere(~np.isfinite(numbers))
    if len(wrong):
        row, column = map(int, wrong[0])
        raise UnusableError(f"{path}, row {row}: column {names[column]!r} is {numbers[row, column]}")
    return numbers


def _read_npz(path: Path, target: str | None, needed: bool, wanted: Sequence[str] | None) -> Table:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            names = file.files
            _find_target(names, target, path, needed)
            arrays = {name: file[name] for name in names}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise UnusableError(f"{path} cannot be read: {error}") from error
    labels = arrays.pop(target, None)
    tables = [name for name, a in arrays.items() if a.ndim == 2]
    if len(tables) != 1:
        raise UnusableError(f"{path} must have one array with two axes, the features; it has {len(tables)}: {tables}")
    x = arrays[tables[0]]
    columns = [f"{tables[0]}[{i}]" for i in range(x.shape[1])]
    if labels is not None and labels.shape != x.shape[:1]:
        raise UnusableError(f"{path}: {target!r} has shape {labels.shape}, {tables[0]!r} {x.shape}")
    return Table(_check_numbers(path, x, columns), columns, None if labels is None else parse_labels(labels))


def _read_parquet(path: Path, target: str | None, needed: bool, wanted: Sequence[str] | None) -> Table:
    pandas = load("pandas", "learn")
    try:
        frame = pandas.read_parquet(path)
    except ImportError as error:
        raise UnusableError(f"reading Parquet needs pyarrow or fastparquet: pip install pyarrow ({error})") from error
    except Exception as error:  # a damaged file: each engine raises errors of its own
        raise UnusableError(f"{path} cannot be read: {error}") from error
    names = list(map(str, frame.columns))
    place = _find_target(names, target, path, needed)
    labels = None
    if place is not None:
        column = frame.iloc[:, place]
        if column.isna().any():
            raise UnusableError(f"{path}, row {int(np.flatnonzero(column.isna())[0])}: {target!r} is empty")
        labels = parse_labels(column.to_numpy())
    chosen = _choose_columns(names, place, wanted, path)
    frame, names = frame.iloc[:, chosen], [names[i] for i in chosen]
    for name, kind in zip(names, frame.dtypes):
        if not pandas.api.types.is_numeric_dtype(kind):
            raise UnusableError(f"{path}: column {name!r} has dtype {kind}, it must hold numbers")
    single = len(names) > 0 and all(kind == np.float32 for kind in frame.dtypes)
    return Table(_check_numbers(path, frame.to_numpy(np.float32 if single else np.float64), names), names, labels)


READERS: dict[str, Callable[[Path, str | None, bool, Sequence[str] | None], Table]] = {
    ".csv": _read_text,
    ".tsv": _read_text,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
}
