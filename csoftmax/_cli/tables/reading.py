"""The one way from a path to a `RawTable`: what the bytes are decides the reader, not what the file is called."""

from __future__ import annotations

import argparse
import io
import re
import zipfile
from collections.abc import Collection
from pathlib import Path

from ..._runtime.optional import UnusableError
from ..messages import Messages, count
from . import arff, delimited, formats
from .dialect import NO_MODEL, ModelColumns, Options, decode
from .opening import Source, read_source
from .raw import RawTable

TABLE = (
    "table: .csv, .tsv, .txt or .data (also .gz, .bz2, .xz, .zst), .parquet, .xlsx, .npz, .arff or libsvm; - is "
    "standard input"
)

# Options of text tables that other formats have, too.
MEANT = {"Excel": ("--header", "--no-header", "--skip"), "ARFF": ("--encoding",)}

# Elements of HTML by their names: <DATE> and the like are headers of some programs.
_FOREIGN = re.compile(
    rb"(?i)(<!|<\?xml|<(?:html|head|body|table|thead|tbody|tr|div|style|meta|script|span|pre|svg)[\s>])|[\[{]\s*[\[{\"]"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say how a table is written."""
    group = parser.add_argument_group("how the table is written (default: detected)")
    add = group.add_argument
    add("--separator", metavar="S", help="of values: one character, tab or blanks")
    add("--decimal", choices=(".", ","), help="decimal sign")
    add("--encoding", metavar="E", help="such as utf-8 or cp1252")
    header = group.add_mutually_exclusive_group()
    header.add_argument("--header", action="store_const", const=True, help="the first row holds names")
    header.add_argument(
        "--no-header", dest="header", action="store_const", const=False, help="the first row holds values"
    )
    add("--skip", type=_parse_skip, metavar="N", help="lines before the header, or before the first row")
    add("--sheet", metavar="NAME", help="of an Excel file; default: the first")


def _parse_skip(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of lines, got {text!r}")
    return int(text)


def get_options(arguments: argparse.Namespace) -> Options:
    """Return the options that say how a table is written."""
    return Options(
        separator=arguments.separator,
        decimal=arguments.decimal,
        encoding=arguments.encoding,
        header=arguments.header,
        skip=arguments.skip,
        sheet=arguments.sheet,
    )


def read(
    path: Path,
    options: Options,
    messages: Messages,
    *,
    expected: Collection[str] = (),
    model: ModelColumns = NO_MODEL,
    as_words: Collection[str] = (),
) -> RawTable:
    """Read a table and say how it is written.

    Parameters
    ----------
    path
        The file, or "-".
    options
        The user's options for it.
    messages
        For what was detected.
    expected
        Names of columns that the header must have if there is one.
    model
        Columns of the model that the table is for.
    as_words
        Names of columns that stay text, even if all of it is numbers: the target and the ids.

    Returns
    -------
    RawTable
    """
    source = read_source(path, messages.quiet)
    kind = find_kind(source, is_delimited=options.separator is not None)
    wrong = [] if kind == "text" else [option for option in options.given() if option not in MEANT.get(kind, ())]
    wrong += ["--sheet"] if options.sheet is not None and kind != "Excel" else []
    if wrong:
        raise UnusableError(f"{wrong[0]} has no meaning for {source.name}, which is {kind}")
    if kind == "Parquet":
        table, words = formats.read_parquet(source, as_words)
    elif kind == "Excel":
        table, words = formats.read_excel(source, options, expected, as_words, model)
    elif kind == "npz":
        table, words = formats.read_npz(source, as_words)
    elif kind == "ARFF":
        table, words = arff.read_arff(source, options, as_words)
    elif kind == "libsvm":
        table, words = formats.read_libsvm(source)
    else:
        table, words = delimited.read(source, options, expected=expected, model=model, as_words=as_words)
    if table.rows == 0:
        raise UnusableError(f"{source.name} has no rows")
    messages.say(f"{source.name}: {count(table.rows, 'row')}, {count(len(table.names), 'column')}; {words}")
    return table


def find_kind(source: Source, *, is_delimited: bool = False) -> str:
    """Return what the bytes of a source are: text, Parquet, Excel, npz, ARFF or libsvm.

    `is_delimited`: the user has said what is between values, so that a text is not libsvm.
    """
    data, name = source.data, source.name
    if data.startswith(b"PAR1"):
        return "Parquet"
    if data.startswith(b"PK\x03\x04"):
        try:
            members = zipfile.ZipFile(io.BytesIO(data)).namelist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise UnusableError(f"{name} cannot be read: it is a damaged zip archive ({error})") from error
        if all(member.endswith(".npy") for member in members):
            return "npz"
        if any(member.startswith("xl/") or member == "content.xml" for member in members):
            return "Excel"
        raise UnusableError(f"{name} is a zip archive; unpack it and give the table in it")
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        return "Excel"
    if data.startswith(b"\x93NUMPY"):
        raise UnusableError(
            f"{name} is one NumPy array; a table needs features and labels: write both with numpy.savez"
        )
    begin = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    foreign = _FOREIGN.match(begin)
    if foreign:
        what = "HTML or XML" if foreign[1] else "JSON"
        raise UnusableError(f"{name} is {what}, which is no table; the formats are {TABLE.removeprefix('table: ')}")
    if _begins_as_arff(data):
        return "ARFF"
    if not is_delimited and formats.is_libsvm(data):
        return "libsvm"
    if source.suffix in (".parquet", ".xlsx", ".xls", ".npz"):
        raise UnusableError(f"{name} cannot be read: its bytes are not those of a {source.suffix} file")
    return "text"


def _begins_as_arff(data: bytes) -> bool:
    head = decode(data[: 64 << 10], "latin-1", "")[0].decode()
    for line in head.splitlines():
        word = line.strip().lower().removeprefix("ï»¿")
        if word and not word.startswith("%"):
            return word.startswith(("@relation", "@attribute"))
    return False
