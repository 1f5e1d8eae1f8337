"""Text tables: parsed by pyarrow, whose refusals are said again with the line that an editor shows.

The standard library's csv is used for the first lines, from which `dialect` detects how the table is written, and to
find the line of a fault: pyarrow counts rows, not lines.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ..._runtime.optional import UnusableError, load
from ..messages import count
from . import dialect as dialects
from .dialect import NO_MODEL, Dialect, ModelColumns, Options
from .opening import Source, parse_bytes
from .raw import MISSING, RawTable, Values, as_text, make_text, name_columns, recognise

OTHER_SEPARATOR = "\x1f"  # takes the place of a separator that is no single byte
NULLS = sorted({form for word in MISSING for form in (word, word.upper(), word.title())} | {"NaN"})
BLOCK_BYTES = 1 << 20
Buffer = bytes | memoryview
MAX_PREAMBLE_LINES = 20  # before a table, whose refusal names --skip
MAX_RETRIES = 3  # columns that look like numbers at first are read again as text; after these, all columns


def read(
    source: Source,
    options: Options,
    *,
    expected: Collection[str] = (),
    model: ModelColumns = NO_MODEL,
    as_words: Collection[str] = (),
) -> tuple[RawTable, str]:
    """Read a text table.

    Parameters
    ----------
    source
        Its bytes.
    options
        The user's options for it.
    expected
        Names of columns that the header must have if there is one.
    model
        Columns of the model.
    as_words
        Names of columns that stay text, even if all of it is numbers.

    Returns
    -------
    RawTable, str
        The table, and the words that say how it is written.
    """
    data, encoding = dialects.decode(source.data, options.encoding, source.name)
    if data.endswith((b"\x1a", b"\x00")):  # the end of a file in DOS
        data = data.rstrip(b"\x1a\x00")
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    tab = source.suffix in (".tsv", ".tab")
    dialect = dialects.detect(data, options, source.name, expected=expected, model=model, tab=tab)
    body: Buffer = memoryview(data)[_find_line(data, dialect.skip + dialect.header_lines) :]  # no copy
    text = _Text(source.name, body, dialect)
    body = _simplify(body, dialect)
    numbers, note = dialects.number_columns(dialect.width, model)
    named = name_columns(dialect.names or numbers)
    names = named.names
    words = {i for i, name in enumerate(names) if name in as_words}
    numeric = set(_guess_numeric(body, dialect)) - words
    columns = [_get_column(c) for c in _parse(body, dialect, numeric, text).unify_dictionaries().columns]
    text.check_cells(columns)
    columns = [as_text(c) if i in words else _finish(c, dialect.decimal) for i, c in enumerate(columns)]
    rows = len(columns[0].codes) if not isinstance(columns[0], np.ndarray) else len(columns[0])
    table = RawTable(
        source.name,
        names,
        columns,
        rows,
        locate=text.locate,
        has_names=bool(dialect.names),
        unnamed=named.unnamed,
        repeated=named.repeated,
        decimal=dialect.decimal,
        hint="" if dialect.names or options.header is False else dialects.HEADER_HINT,
    )
    if dialect.names and not {*expected} & {*names}:
        table.hint = _find_later_header(body, dialect, expected)
    said = [encoding, dialect.describe(), "" if dialect.names else note, named.describe()]
    return table, ", ".join(filter(None, said))


def _find_later_header(body: Buffer, dialect: Dialect, expected: Collection[str]) -> str:
    """Return the advice to skip what stands before the row that has an expected name, if one of the first has."""
    rows = dialects.split(dialects.cut_sample(body), _get_delimiter(dialect), dialect.quote)
    for begin, _, row in rows[:MAX_PREAMBLE_LINES]:
        found = {cell.strip() for cell in row} & set(expected)
        if found:
            before = begin - 1 + dialect.skip + dialect.header_lines
            return f"; line {before + 1} has {min(found)!r}: if it is the header, --skip {before}"
    return ""


class _Text:
    """The rows of a table as the standard library reads them, to say in which line something is."""

    def __init__(self, name: str, body: Buffer, dialect: Dialect) -> None:
        """Keep the text; it is read when something is to be found."""
        self.name, self.body, self.dialect = name, body, dialect
        self._rows: list[dialects.Row] | None = None

    def rows(self) -> list[dialects.Row]:
        """Return the rows, with lines counted from the first line of the file."""
        if self._rows is None:
            text = bytes(self.body).decode()
            if self.dialect.wrapped:
                text = dialects.unwrap(text.replace("\r\n", "\n"))
            before = self.dialect.skip + self.dialect.header_lines
            rows = dialects.split(text, self.dialect.separator, self.dialect.quote)
            self._rows = [
                (a + before, b + before, row)
                for a, b, row in rows
                if any(c.strip(" ") for c in row[:1]) or len(row) > 1
            ]
        return self._rows

    def locate(self, row: int) -> str:
        """Return the line of a row."""
        rows = self.rows()
        return f"line {rows[row][0]}" if row < len(rows) else f"row {row + 1}"

    def refuse(self, error: Exception) -> UnusableError:
        """Return the error for a table that pyarrow cannot parse."""
        whole = f"the header has {count(self.dialect.width, 'column')}"
        if not self.dialect.names:
            whole = f"the others have {count(self.dialect.width, 'value')}"
        separator = dialects.NAMES.get(self.dialect.separator, repr(self.dialect.separator))
        for begin, _, row in self.rows():
            if len(row) != self.dialect.width:
                what = f"{count(len(row), 'value')}, but {whole}"
                advice = "mend the line, or remove it if it is no row, such as a comment"
                if len(row) > self.dialect.width:
                    advice = f"mend the line (quote values that hold the separator {separator}), or give --separator"
                if begin <= MAX_PREAMBLE_LINES:
                    advice += "; --skip N leaves out the first lines"
                return UnusableError(f"{self.name}, line {begin}: {what}; {advice}")
        return UnusableError(f"{self.name} cannot be read: {str(error).splitlines()[0]}")

    def check_quotes(self) -> None:
        """Refuse a table whose last quote is never closed."""
        if self.dialect.wrapped or bytes(self.body).count(self.dialect.quote.encode()) % 2 == 0:
            return  # not a proof of balance, but an unclosed quote that another one closes has a cell of many lines
        reader = csv.reader(
            io.StringIO(bytes(self.body).decode(), newline=None),
            delimiter="\t" if self.dialect.separator == " " else self.dialect.separator,
            quotechar=self.dialect.quote,
            skipinitialspace=True,
            strict=True,
        )
        begin = 1
        try:
            for _ in reader:
                begin = reader.line_num + 1
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise self.refuse_quote(begin + self.dialect.skip + self.dialect.header_lines) from error

    def check_cells(self, columns: Sequence[Values]) -> None:
        """Refuse a cell that holds whole rows: its quote is closed by the one that opens another cell."""
        inner = self.dialect.width - 1
        for values in columns:
            if isinstance(values, np.ndarray):
                continue
            for code, level in enumerate(values.levels):
                inside = level.split("\n")[1:-1] if "\n" in level else ()
                if any(line.count(self.dialect.separator) == inner for line in inside) and inner:
                    row = int(np.argmax(values.codes == code))
                    raise self.refuse_quote(self.rows()[row][0])

    def refuse_quote(self, line: int) -> UnusableError:
        """Return the error for a quote that is never closed."""
        return UnusableError(
            f"{self.name}, line {line}: a quote ({self.dialect.quote}) is opened and not closed in this row; "
            "close it, or remove it"
        )


def _find_line(data: bytes, count: int) -> int:
    """Return where the line after the first ones begins."""
    begin = 0
    for _ in range(count):
        end = data.find(b"\n", begin)
        if end < 0:
            return len(data)
        begin = end + 1
    return begin


def _simplify(body: Buffer, dialect: Dialect) -> Buffer:
    """Return the rows in a form that pyarrow reads: one separator of one byte, no quotes around lines."""
    separator = dialect.separator.encode()
    if not (
        dialect.wrapped or separator == b" " or len(separator) > 1 or dialect.blank_before_quote or dialect.width == 1
    ):
        return body
    text = bytes(body)
    if dialect.wrapped:
        text = dialects.unwrap(text.decode().replace("\r\n", "\n")).encode()
    if separator == b" ":
        if b'"' in text:
            lines = (dialects.join_blanks(line, OTHER_SEPARATOR) for line in text.decode().split("\n"))
            return "\n".join(lines).encode()
        text = re.sub(rb"(?m)^[ \t]+|[ \t\r]+$", b"", text)
        return re.sub(rb"[ \t]+", OTHER_SEPARATOR.encode(), text)
    if len(separator) > 1:
        return text.replace(separator, OTHER_SEPARATOR.encode())
    if dialect.blank_before_quote:
        text = re.sub(rb"(" + re.escape(separator) + rb') +(?=")', rb"\1", text)
    return text.rstrip(b"\r\n") if dialect.width == 1 else text


def _guess_numeric(body: Buffer, dialect: Dialect) -> list[int]:
    """Return the columns that have only numbers in the first rows."""
    sample = dialects.cut_sample(body)
    rows = [r for _, _, r in dialects.split(sample, _get_delimiter(dialect), dialect.quote)]
    rows = rows[: dialects.SAMPLE_ROWS]
    return [i for i in range(dialect.width) if dialects.is_numeric(rows, i, dialect.decimal)]


def _get_delimiter(dialect: Dialect) -> str:
    single = len(dialect.separator.encode()) == 1 and dialect.separator != " "
    return dialect.separator if single else OTHER_SEPARATOR


def _parse(body: Buffer, dialect: Dialect, numeric: set[int], text: _Text) -> Any:
    """Parse rows into an arrow table: columns of numbers as double, the others as dictionaries of strings."""
    arrow, parser = load("pyarrow", "cli"), load("pyarrow.csv", "cli")
    whole: Any = body.obj if isinstance(body, memoryview) else body  # bytes, which are searched ten times as fast
    has_quotes = dialect.quote.encode() in whole
    if has_quotes:
        text.check_quotes()
    block = BLOCK_BYTES
    for attempt in range(MAX_RETRIES + 8):
        words = arrow.dictionary(arrow.int32(), arrow.string())
        kinds = {str(i): arrow.float64() if i in numeric else words for i in range(dialect.width)}
        try:
            options = (
                parser.ReadOptions(column_names=list(kinds), block_size=block),
                parser.ParseOptions(
                    delimiter=_get_delimiter(dialect),
                    quote_char=dialect.quote,
                    newlines_in_values=has_quotes,
                    ignore_empty_lines=dialect.width > 1,
                ),
                parser.ConvertOptions(
                    column_types=kinds,
                    null_values=NULLS,
                    quoted_strings_can_be_null=True,
                    decimal_point=dialect.decimal,
                ),
            )
            return parse_bytes(lambda file: parser.read_csv(file, *options), body)  # noqa: B023
        except arrow.ArrowInvalid as error:
            message = str(error)
            column = re.search(r"In CSV column #(\d+)", message)
            if column and numeric:
                numeric = numeric - {int(column[1])} if attempt < MAX_RETRIES and int(column[1]) in numeric else set()
            elif "straddling" in message and block < len(body):
                block = min(8 * block, len(body) + 1, 2**31 - 1)
            elif "CSV parse error" in message and re.search(rb"(?m)^ +\r?$", body):
                body = re.sub(rb"(?m)^ +(\r?)$", rb"\1", bytes(body))  # lines of nothing but blanks are empty lines
            elif "Empty CSV" in message:
                raise UnusableError(f"{text.name} has no rows") from error
            else:
                raise text.refuse(error) from error
    raise UnusableError(f"{text.name} cannot be read: a row is too long")


def _get_column(column: Any) -> Values:
    """Return an arrow column as numbers or text."""
    array = column.combine_chunks()
    if hasattr(array, "dictionary"):
        codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        levels = array.dictionary.to_pylist()
        return make_text(levels, codes)
    return np.asarray(array.to_numpy(zero_copy_only=False))


def _finish(values: Values, decimal: str) -> Values:
    return recognise(values, decimal) if not isinstance(values, np.ndarray) else values
