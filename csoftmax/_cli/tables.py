"""Tables for the learning commands: CSV and TSV (which line, which value is wrong), npz, Parquet through pandas."""

import array
import csv
import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .optional import UnusableError, load, progress

SUFFIXES = (".csv", ".tsv", ".npz", ".parquet")


class Table(NamedTuple):
    """Rows of numbers with their names, and the column that was asked for."""

    x: np.ndarray  # float64 (float32 if the file has nothing wider)
    names: list
    target: np.ndarray | None  # integers, or strings


def read(path, target, *, needs_target=True, wanted=None):
    """The table in a file.

    target: the name of the column of labels, left out of the numbers; wanted: names of the columns of numbers, in their
    order, of files that have names; None: all columns.
    """
    path = Path(path)
    if not path.is_file():
        raise UnusableError(f"there is no file {str(path)!r}")
    reader = {".csv": _text, ".tsv": _text, ".npz": _npz, ".parquet": _parquet}.get(path.suffix)
    if reader is None:
        raise UnusableError(f"{str(path)!r} must end in {', '.join(SUFFIXES)}")
    table = reader(path, target, needs_target, wanted)
    if table.x.shape[0] == 0:
        raise UnusableError(f"{path} has no rows")
    if table.x.shape[1] == 0:
        raise UnusableError(f"{path} has no column of numbers beside the target")
    return table


def labels_of(values):
    """Integers if all of them are, else strings."""
    values = np.asarray(values)
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    text = values.astype(str)
    try:
        whole = np.array([int(v) for v in text], np.int64)
    except (ValueError, OverflowError):
        return text
    return whole if all(str(w) == t.strip() for w, t in zip(whole.tolist(), text.tolist())) else text


def _find(names, target, path, needed):
    """Place of the target, or None."""
    if target in names:
        return names.index(target)
    if target is not None and needed:
        shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
        raise UnusableError(f"{path} has no column {target!r}; it has {shown}")
    return None


def _choose(names, place, wanted, path):
    """Places of the columns of numbers."""
    if wanted is None:
        return [i for i in range(len(names)) if i != place]
    places = {name: i for i, name in enumerate(names)}
    for name in wanted:
        if name not in places:
            raise UnusableError(f"{path} has no column {name!r}, which the model was trained with")
    return [places[name] for name in wanted]


def _text(path, target, needed, wanted):
    with path.open(newline="", encoding="utf-8-sig", errors="strict") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        try:
            names = [name.strip() for name in next(reader, [])]
            if len(set(names)) < len(names):
                twice = next(name for i, name in enumerate(names) if name in names[:i])
                raise UnusableError(f"{path}, line 1: column {twice!r} is there twice")
            place = _find(names, target, path, needed)
            chosen = _choose(names, place, wanted, path)
            numbers, labels = array.array("d"), []
            with progress(None, f"reading {path.name}") as bar:
                for count, row in enumerate(reader, 1):
                    if not row:
                        continue
                    if len(row) != len(names):
                        raise UnusableError(
                            f"{path}, line {reader.line_num}: {len(row)} values, but the header has {len(names)} "
                            "columns"
                        )
                    if place is not None:
                        labels.append(row[place])
                        if not labels[-1].strip():
                            raise UnusableError(f"{path}, line {reader.line_num}: {target!r} is empty")
                    try:
                        values = [float(row[i]) for i in chosen]
                    except ValueError:
                        values = [math.nan]
                    if not all(map(math.isfinite, values)):
                        _complain(path, reader.line_num, [(names[i], row[i]) for i in chosen])
                    numbers.extend(values)
                    if count % 10_000 == 0:
                        bar.set_postfix_str(f"{count} rows")
                        bar.update()
        except UnicodeDecodeError as error:
            raise UnusableError(f"{path} is not UTF-8: {error}") from error
        except csv.Error as error:
            raise UnusableError(f"{path}, line {reader.line_num}: {error}") from error
    names = [names[i] for i in chosen]
    x = np.array(numbers).reshape(-1, len(names)) if names else np.zeros((len(labels), 0))
    return Table(x, names, labels_of(labels) if place is not None else None)


def _complain(path, line, row):
    """Which value of a row is no finite number."""
    for name, value in row:
        try:
            good = math.isfinite(float(value))
        except ValueError:
            good = False
        if not good:
            what = "is empty" if not value.strip() else f"is {value!r}, which is no finite number"
            raise UnusableError(f"{path}, line {line}: column {name!r} {what}")


def _checked(path, x, names):
    x = np.asarray(x)
    if x.dtype.kind not in "fiub":
        raise UnusableError(f"{path}: the features have dtype {x.dtype}, they must be numbers")
    x = x.astype(np.float32 if x.dtype == np.float32 else np.float64, copy=False)
    wrong = np.argwhere(~np.isfinite(x))
    if len(wrong):
        row, column = map(int, wrong[0])
        raise UnusableError(f"{path}, row {row}: column {names[column]!r} is {x[row, column]}")
    return x


def _npz(path, target, needed, wanted):
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            names = file.files
            _find(names, target, path, needed)
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
    return Table(_checked(path, x, columns), columns, None if labels is None else labels_of(labels))


def _parquet(path, target, needed, wanted):
    pandas = load("pandas", "learn")
    try:
        frame = pandas.read_parquet(path)
    except ImportError as error:
        raise UnusableError(f"reading Parquet needs pyarrow or fastparquet: pip install pyarrow ({error})") from error
    except Exception as error:  # whatever the engine makes of a damaged file
        raise UnusableError(f"{path} cannot be read: {error}") from error
    names = list(map(str, frame.columns))
    place = _find(names, target, path, needed)
    labels = None
    if place is not None:
        column = frame.iloc[:, place]
        if column.isna().any():
            raise UnusableError(f"{path}, row {int(np.flatnonzero(column.isna())[0])}: {target!r} is empty")
        labels = labels_of(column.to_numpy())
    chosen = _choose(names, place, wanted, path)
    frame, names = frame.iloc[:, chosen], [names[i] for i in chosen]
    for name, kind in zip(names, frame.dtypes):
        if not pandas.api.types.is_numeric_dtype(kind):
            raise UnusableError(f"{path}: column {name!r} has dtype {kind}, it must hold numbers")
    single = len(names) > 0 and all(kind == np.float32 for kind in frame.dtypes)
    return Table(_checked(path, frame.to_numpy(np.float32 if single else np.float64), names), names, labels)
