"""How a text table is written: encoding, separator, decimal sign, quotes, lines before the table, header.

All of it is detected from the first lines, except what the user says.  The rules, in this order:

- encoding: a byte order mark; UTF-16 if every other byte is 0; UTF-8 if all bytes are; else Windows-1252, unless most
  of the text is UTF-8 or the bytes are those of no western language;
- separator: the one of ``, ; tab | ¦`` that divides the lines into the same number of values, blanks if none does;
- decimal comma: numbers such as 1,5 occur and numbers such as 1.5 do not;
- lines before the table: those that are empty, are comments (# or %) or have one value while the table has more
  (`is_title`);
- header: the first row, unless its values are of the kind that stands below them (`has_header`).
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from ..._runtime.optional import UnusableError
from .raw import is_missing, parse_number

SAMPLE_BYTES = 256 << 10
SAMPLE_ROWS = 500
MIN_SAMPLE_LINES = 20
SEPARATORS = ("\t", ";", "|", "¦", ",")
HEADER_HINT = "; --header if the first row holds names"
NAMES = {"\t": "tab", " ": "blanks"}
GIVEN = {"tab": "\t", "\\t": "\t", "blanks": " ", "blank": " ", "space": " ", "comma": ",", "semicolon": ";"}
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_HIGH_RUN = re.compile(rb"[\x80-\xff]{3,}")  # bytes beyond ASCII; in western languages such letters stand alone
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?", re.ASCII)
_DECIMAL_POINT = re.compile(r"[+-]?\d*\.\d+([eE][+-]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+", re.ASCII)
_MILLIONS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3}){2,}", re.ASCII)
_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+", re.ASCII)
_POINTS_AND_COMMA = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+,\d+", re.ASCII)

Row = tuple[int, int, list[str]]  # first line, last line, values


@dataclass(frozen=True)
class Options:
    """The user's options for a table; None: to be detected."""

    separator: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    header: bool | None = None
    skip: int | None = None
    sheet: str | None = None
    quote: str | None = None  # of ARFF

    def given(self) -> list[str]:
        """Return the options of text tables that are given."""
        given = {
            "--separator": self.separator,
            "--decimal": self.decimal,
            "--encoding": self.encoding,
            "--skip": self.skip,
            "--header" if self.header else "--no-header": self.header,
        }
        return [name for name, value in given.items() if value is not None]


class ModelColumns(NamedTuple):
    """Columns of the table that a model was trained with, by which another table for it is recognised."""

    named: tuple[str, ...] = ()  # if that table had a header: those that the model needs
    numbered: bool = False  # that table had no header: a name is the number of a column
    untargeted: tuple[str, ...] = ()  # all but the target, which a table to predict may lack


NO_MODEL = ModelColumns()


def number_columns(width: int, model: ModelColumns) -> tuple[list[str], str]:
    """Return the names of the columns of a table without a header, and what is to be said about them.

    They are numbered from 0. A table that has all columns of that of fit but the target is numbered as that one was:
    otherwise each column behind the target would be taken for the one before it.
    """
    plain = [str(i) for i in range(width)]
    if len(model.untargeted) == width and list(model.untargeted) != plain:
        lacking = next(name for name in map(str, range(width + 1)) if name not in model.untargeted)
        return list(model.untargeted), f"without {lacking}, the target of fit, which is not there"
    return plain, ""


@dataclass(frozen=True)
class Dialect:
    """How a text table is written."""

    separator: str  # " ": runs of blanks
    decimal: str
    quote: str
    skip: int  # lines before the header, or before the first row if there is none
    names: tuple[str, ...]  # of the header; empty if there is none
    width: int  # values of a row
    header_lines: int = 0
    wrapped: bool = False  # every line is in quotes as a whole
    blank_before_quote: bool = False
    note: str = ""

    def describe(self) -> str:
        """Return the words of a message."""
        shown = NAMES.get(self.separator, repr(self.separator))
        parts = [f"separator {shown}"]
        parts += ["decimal comma"] * (self.decimal == ",")
        parts += ["lines in quotes"] * self.wrapped
        parts += ["single quotes"] * (self.quote == "'")
        if self.skip:
            parts.append(f"{self.skip} line{'s' * (self.skip > 1)} skipped" + (f" ({self.note})" if self.note else ""))
        parts.append(f"header in line {self.skip + 1}" if self.names else "no header: columns are numbered from 0")
        return ", ".join(parts)


def decode(data: bytes, given: str | None, name: str) -> tuple[bytes, str]:
    """Return the data in UTF-8 without a byte order mark, and the name of their encoding."""
    if given is not None:
        try:
            decoded = data.decode(given).removeprefix("\ufeff")
            if (
                "\n" not in decoded
                and "\r" not in decoded
                and data.count(b"\n") > 1
                and b"\x00" not in data[:SAMPLE_BYTES]
            ):
                raise UnusableError(
                    f"{name} is not in the encoding {given!r}: it would have no lines; leave out --encoding"
                )
            return decoded.encode(), given
        except LookupError:
            raise UnusableError(
                f"--encoding {given!r} is no encoding that Python knows; such as utf-8, cp1252"
            ) from None
        except UnicodeError as error:
            raise UnusableError(f"{name} is not in the encoding {given!r}: {_say_where(data, error)}") from error
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            try:
                text = data[3:] if encoding == "utf-8-sig" else data.decode(encoding).encode()
                text.decode()  # of UTF-8 that only begins as such
            except UnicodeError as error:
                raise UnusableError(
                    f"{name} is not in {encoding}: {_say_where(data, error)}; give --encoding"
                ) from error
            return text, "UTF-8 with a byte order mark" if encoding == "utf-8-sig" else encoding.upper()
    if b"\x00" in data[:SAMPLE_BYTES]:
        return _decode_utf16(data, name)
    if data.isascii():
        return data, "UTF-8"
    try:
        data.decode()
        return data, "UTF-8"
    except UnicodeDecodeError as error:
        return _decode_bytes(data, name, error), "Windows-1252"


def _decode_bytes(data: bytes, name: str, error: UnicodeDecodeError) -> bytes:
    """Return text in Windows-1252 as UTF-8; refuse what is UTF-8 with a few faults, and other encodings of bytes.

    Windows-1252 gives nearly any bytes a character, so that a wrong guess would only be seen in the names.
    """
    characters = data.decode(errors="surrogateescape")
    wrong = sum(map(len, re.findall("[\udc80-\udcff]+", characters)))
    right = sum(map(len, re.findall("[^\x00-\x7f\udc80-\udcff]+", characters)))
    if right >= wrong:  # letters of Windows-1252 form a character of UTF-8 by chance only
        raise UnusableError(
            f"{name}, {_say_where(data, error)}: this is not UTF-8, as the rest of the text is; mend the line, or give "
            "--encoding"
        ) from error
    runs = [run for run in _HIGH_RUN.findall(data) if len(set(run)) > 1]  # a line of dashes is none
    try:
        if 2 * sum(map(len, runs)) <= len(data) - len(data.translate(None, bytes(range(128, 256)))):
            return data.decode("cp1252").encode()
    except UnicodeDecodeError as other:
        error = other
    raise UnusableError(
        f"{name}, {_say_where(data, error)}: the text is neither UTF-8 nor Windows-1252; give --encoding, such as "
        "shift_jis, gb18030 or cp1251"
    ) from error


def _decode_utf16(data: bytes, name: str) -> tuple[bytes, str]:
    """Decode UTF-16 without a byte order mark: text that is mostly ASCII has a zero in every other byte."""
    sample = data[:4096]
    for encoding, zeros, others in (("utf-16-le", sample[1::2], sample[::2]), ("utf-16-be", sample[::2], sample[1::2])):
        if zeros.count(0) > 0.8 * len(zeros) and others.count(0) == 0:
            try:
                return data.decode(encoding).encode(), encoding.upper()
            except UnicodeError:
                break
    raise UnusableError(f"{name} is no table that can be read: it has bytes of 0, as binary files have")


def _say_where(data: bytes, error: UnicodeError) -> str:
    if not isinstance(error, UnicodeDecodeError):
        return str(error)
    line = data[: error.start].count(b"\n") + 1
    return f"line {line}, byte 0x{data[error.start]:02x}"


def split(text: str, separator: str, quote: str = '"') -> list[Row]:
    """Return the rows of a text as (first line, last line, values); lines are counted from 1, empty ones left out."""
    if separator == " ":
        separator = "\t"
        text = "\n".join(join_blanks(line, "\t") for line in text.split("\n"))
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=separator, quotechar=quote, skipinitialspace=True)
    rows: list[Row] = []
    begin = 1
    try:
        for row in reader:
            if row:
                rows.append((begin, reader.line_num, row))
            begin = reader.line_num + 1
    except csv.Error:  # a value above csv.field_size_limit(), such as all that follows a quote that is never closed
        pass
    return rows


def join_blanks(line: str, by: str) -> str:
    """Replace runs of blanks outside of quotes."""
    line = line.strip()
    if '"' not in line:
        return by.join(line.split())
    return re.sub(r'("(?:[^"]|"")*")|\s+', lambda m: m.group(1) or by, line)


def detect(
    data: bytes,
    options: Options,
    source: str,
    *,
    expected: Collection[str] = (),
    model: ModelColumns = NO_MODEL,
    tab: bool = False,
) -> Dialect:
    """Detect how a table in UTF-8 is written.

    Parameters
    ----------
    data
        The whole table.
    options
        The user's options.
    source
        Its name, for messages.
    expected
        Names of columns that the header must have if there is one: the target, and the columns of the model.
    model
        Columns of the model.
    tab
        Whether the file's name says that values are separated by tabs.

    Returns
    -------
    Dialect
    """
    sample = cut_sample(data)
    separator, note, skip = options.separator, "", options.skip or 0
    if separator is not None:
        separator = GIVEN.get(separator.strip().casefold() or " ", separator)
        if len(separator) != 1 or separator in "\"'\r\n":
            raise UnusableError(f"--separator must be one character, tab or blanks, got {options.separator!r}")
    sample_begins = re.match(r'"?sep=(.)"?\r?\n', sample)
    if sample_begins and options.skip is None:  # Excel's way to name the separator
        separator, skip, note = separator or sample_begins.group(1), 1, "sep="
    lines = sample.split("\n")
    body = "\n".join(lines[skip:])
    wrapped = _is_wrapped(body, separator)
    if wrapped:
        body = unwrap(body)
    quote = options.quote or _find_quote(body)
    if separator is None:
        separator = "\t" if tab and "\t" in body else _find_separator(body, quote)
    rows = split(body, separator, quote)
    if not rows:
        raise UnusableError(f"{source} has no rows")
    width = Counter(len(row) for _, _, row in rows[:SAMPLE_ROWS]).most_common(1)[0][0]
    first, counts = 0, None
    if options.skip is None:
        counts = _read_counts(rows, width, data)
        first = 1 if counts else _find_first_row(rows, width)
        note = counts or note or "before the table"
    dialect = Dialect(
        separator=separator,
        decimal=options.decimal or _find_decimal([row for _, _, row in rows[first:]], separator),
        quote=quote,
        skip=skip + rows[first][0] - 1,
        names=(),
        width=width,
        wrapped=wrapped,
        blank_before_quote=re.search(f"(?m){re.escape(separator)} +{quote}", body) is not None,
        note=note,
    )
    if counts and options.header is None:
        return dialect
    header = options.header
    if header is None:
        below = [row for _, _, row in rows[first + 1 : first + SAMPLE_ROWS]]
        header = has_header(rows[first][2], below, dialect.decimal, expected, model)
    return _add_header(dialect, rows[first:], source) if header else dialect


def cut_sample(data: bytes | memoryview) -> str:
    """Return the first lines as text with newlines of one character; at least MIN_SAMPLE_LINES, however long."""
    sample = bytes(data[:SAMPLE_BYTES])
    while len(sample) < len(data) and sample.count(b"\n") + sample.count(b"\r") < MIN_SAMPLE_LINES:
        sample = bytes(data[: 4 * len(sample)])
    if len(sample) < len(data) and (end := max(sample.rfind(b"\n"), sample.rfind(b"\r"))) > 0:
        sample = sample[: end + 1]
    return sample.decode(errors="ignore").replace("\r\n", "\n").replace("\r", "\n")


def _is_wrapped(text: str, separator: str | None) -> bool:
    """Whether lines are in quotes as a whole, with a separator inside."""
    lines = [line for line in text.split("\n")[:SAMPLE_ROWS] if line.strip()]
    inner = [_unwrap_line(line) for line in lines]
    unwrapped = [line for line, before in zip(inner, lines) if line != before]
    if len(lines) < 2 or len(unwrapped) < len(lines) - 1:  # the header may stand without
        return False
    for s in [separator] if separator else SEPARATORS:
        count, rows = Counter(line.count(s) for line in inner).most_common(1)[0]
        if count and rows >= 0.9 * len(lines):
            return True
    return False


def _unwrap_line(line: str) -> str:
    if len(line) < 3 or not (line.startswith('"') and line.rstrip().endswith('"')):
        return line
    row = next(csv.reader([line], delimiter="\x1f"), [])
    inner = line.strip()[1:-1]
    return row[0] if len(row) == 1 and '"' not in inner.replace('""', "") else line


def unwrap(text: str) -> str:
    """Return the lines of a text without the quotes around each."""
    return "\n".join(map(_unwrap_line, text.split("\n")))


def _find_quote(text: str) -> str:
    """Return the sign of quotes: single ones only if there are no double ones and most lines have values in them."""
    lines = text.split("\n")[:SAMPLE_ROWS]
    if '"' in text[:SAMPLE_BYTES]:
        return '"'
    if re.fullmatch(r"\s*'[^']*'(\s*[,;\t|¦ ]\s*'[^']*')+\s*", next(filter(str.strip, lines), "")):
        return "'"  # a header of quoted names, above values that may have no quotes
    quoted = sum(re.search(r"(^|[,;\t|¦ ])'[^']*'($|[,;\t|¦ ])", line) is not None for line in lines)
    return "'" if 2 * quoted > len(lines) else '"'


def _find_separator(text: str, quote: str) -> str:
    """Return the separator that divides the lines most evenly; see the head of this file."""
    best, choice = (0.0, 0.0), ","
    for separator in SEPARATORS:
        if separator not in text:
            continue
        rows = [row for _, _, row in split(text, separator, quote)][:SAMPLE_ROWS]
        widths = [(number, width) for width, number in Counter(map(len, rows)).items() if width > 1]
        if not widths:
            continue
        number, width = max(widths)
        cells = [cell for row in rows if len(row) == width for cell in row]
        others = [s for s in SEPARATORS if s != separator]
        clean = sum(not any(s in c for s in others) or bool(_DECIMAL_COMMA.fullmatch(c.strip())) for c in cells)
        score = (round(number / len(rows), 1), clean / len(cells))
        if score > best:
            best, choice = score, separator
    if best[0] >= 0.5 and not (choice == "\t" and _holds_lists(text)):
        return choice
    lines = [line for line in text.split("\n")[:SAMPLE_ROWS] if line.strip()]
    counts = Counter(len(join_blanks(line, "\t").split("\t")) for line in lines)
    width, number = counts.most_common(1)[0] if counts else (1, 0)
    return " " if width > 1 and number >= 0.8 * sum(counts.values()) else choice


def _holds_lists(text: str) -> bool:
    """Whether values between tabs are several numbers with blanks between them: tabs are then blanks like others."""
    lines = [line for line in text.split("\n")[1:SAMPLE_ROWS] if line.strip()]
    lists = sum(any(len(c.split()) > 1 and all(map(_is_number, c.split())) for c in line.split("\t")) for line in lines)
    return lists >= 0.8 * len(lines)


def _is_number(cell: str) -> bool:
    return is_missing(cell) or parse_number(cell) is not None


def _find_first_row(rows: Sequence[Row], width: int) -> int:
    """Return the index of the row in which the table begins."""
    first = 0
    while first < len(rows) - 1:
        row = rows[first][2]
        is_comment = row[0].lstrip()[:1] in ("#", "%") and len(row) != width
        if not (is_comment or is_title(row, [r for _, _, r in rows[first + 1 : SAMPLE_ROWS]], width)):
            break
        first += 1
    return first


def is_title(row: Sequence[str], body: Sequence[Sequence[str]], width: int) -> bool:
    """Whether a row stands before the table: it has one value, or none, while the table has more.

    A row of the table may have one value, too, if the others are missing: its cells are as many as those of the table,
    and its value is a number above numbers, or stands below itself again, as a label does.
    """
    filled = [i for i, cell in enumerate(row) if cell.strip()]
    if len(filled) > 1 or width < 2:
        return False
    if len(row) != width or not filled:
        return len(row) != width or width > 2
    column = filled[0]
    cell = row[column].strip()
    if any(column < len(other) and other[column].strip() == cell for other in body):
        return False
    return width > 2 and not (_is_number(cell) and is_numeric(body, column, "."))


def _read_counts(rows: Sequence[Row], width: int, data: bytes) -> str | None:
    """Return what the first line says if it is that of scikit-learn's own files: rows, columns, names of classes."""
    row = rows[0][2]
    if len(row) < 3 or not row[0].strip().isdecimal() or row[1].strip() != str(width - 1):
        return None
    if int(row[0]) != len(data.rstrip().splitlines()) - 1:
        return None
    return f"{row[0]} rows, {row[1]} columns, classes {', '.join(row[2:])}"


def _find_decimal(rows: Sequence[Sequence[str]], separator: str) -> str:
    rows = rows[1:SAMPLE_ROWS] or rows
    cells = [cell.strip() for row in rows for cell in row]
    commas = [cell for cell in cells if _DECIMAL_COMMA.fullmatch(cell)]
    points = [cell for cell in cells if _DECIMAL_POINT.fullmatch(cell)]
    if any(_POINTS_AND_COMMA.fullmatch(cell) for cell in cells):  # 1.234,5
        return "," if all(_POINTS.fullmatch(cell) for cell in points) else "."
    if not commas or points:
        return "."
    if all(_THOUSANDS.fullmatch(cell) for cell in commas) and (separator == "," or _has_thousands(rows)):
        return "."  # "1,234" in quotes
    return ","


def _has_thousands(rows: Sequence[Sequence[str]]) -> bool:
    """Whether commas, which have three digits after them, stand between thousands.

    They do if a number has two of them, or if the numbers without one, in a column of numbers with one, are below 1000.
    """
    if any(_MILLIONS.fullmatch(cell.strip()) for row in rows for cell in row):
        return True
    for column in zip(*(row for row in rows if len(row) == len(rows[0]))):
        cells = [cell.strip() for cell in column if not is_missing(cell)]
        plain = [cell for cell in cells if re.fullmatch(r"[+-]?\d+", cell)]
        if plain and len(plain) < len(cells) and all(c in plain or _THOUSANDS.fullmatch(c) for c in cells):
            return all(abs(int(cell)) < 1000 for cell in plain)
    return False


def _add_header(dialect: Dialect, rows: Sequence[Row], source: str) -> Dialect:
    """Add the header, which is the first row, to a dialect."""
    begin, end, first = rows[0]
    body = [row for _, _, row in rows[1:SAMPLE_ROWS]]
    width = Counter(map(len, body)).most_common(1)[0][0] if body else len(first)
    names = [name.strip() for name in first]
    names[0] = names[0].lstrip("# ") if names[0].startswith("#") else names[0]
    if len(names) == width - 1:  # R's way to write row names; or a separator at the end of each row
        last_is_empty = all(not row[-1].strip() for row in body if len(row) == width)
        names = [*names, ""] if last_is_empty else ["", *names]
    if len(names) == width + 1 and not names[-1]:  # a separator at the end of the header only
        names.pop()
    if len(names) != width:
        raise UnusableError(
            f"{source}, line {dialect.skip + 1}: the header has {len(names)} names, but the rows have {width} values; "
            f"mend the header, or leave out the line with --skip {dialect.skip + 1}"
        )
    return replace(dialect, names=tuple(names), width=width, header_lines=end - begin + 1)


def has_header(
    first: Sequence[str],
    body: Sequence[Sequence[str]],
    decimal: str,
    expected: Collection[str],
    model: ModelColumns = NO_MODEL,
) -> bool:
    """Whether the first row names the columns.

    It does if it has all columns of the model, or a name that is expected and is neither a number nor too large for the
    number of a column, or a word above a column of numbers.  Else, a row with numbers is one of names only if these
    count by ones, as those of years or positions do, while the values below do not; a row without numbers is one of
    names unless most of its cells stand below themselves, too.
    """
    cells = [cell.strip() for cell in first]
    if model.named and set(model.named) <= set(cells):
        return True
    places = {str(i) for i in range(len(cells))}
    known = [cell for cell in cells if cell in expected and cell not in places]
    if any((cell.isdecimal() and not model.numbered) or parse_number(cell) is None for cell in known):
        return True
    if len(cells) == 2 and cells == ["0", "1"] and _have_points(body):
        return True
    words = [i for i, cell in enumerate(cells) if not _is_number(cell) and parse_number(cell, decimal) is None]
    if any(is_numeric(body, i, decimal) for i in words):
        return True
    numbers = [(i, parse_number(cell, decimal)) for i, cell in enumerate(cells)]
    numbers = [(i, n) for i, n in numbers if n is not None]
    if numbers:
        steps = {b - a for (_, a), (_, b) in pairwise(numbers)}  # type: ignore[operator]
        if len(numbers) < 3 or steps != {1.0} or not all(cells[i].isdecimal() for i, _ in numbers):
            return False
        below = [parse_number(body[0][i], decimal) if i < len(body[0]) else None for i, _ in numbers] if body else []
        return below != [n for _, n in numbers] and not _count_by_ones(below)
    if any(is_missing(cell) and cell for cell in cells):
        return False
    filled = [(i, cell) for i, cell in enumerate(cells) if cell]
    repeated = sum(any(i < len(row) and row[i].strip() == cell for row in body) for i, cell in filled)
    return 2 * repeated <= len(filled)


def is_numeric(rows: Sequence[Sequence[str]], column: int, decimal: str) -> bool:
    """Whether a column has numbers and, beside them, only missing values."""
    cells = [row[column] for row in rows if column < len(row) and not is_missing(row[column])]
    return bool(cells) and all(parse_number(cell, decimal) is not None for cell in cells)


def _count_by_ones(numbers: Sequence[float | None]) -> bool:
    return all(a is not None and b is not None and b - a == 1 for a, b in pairwise(numbers))


def _have_points(rows: Sequence[Sequence[str]]) -> bool:
    """Whether all numbers of one of the columns have a decimal sign."""
    columns = list(zip(*rows))
    return any(all(re.fullmatch(r"[+-]?\d*[.,]\d+([eE].*)?", cell.strip()) for cell in column) for column in columns)
