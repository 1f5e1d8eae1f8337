"""Files of tagged sentences: a line for each token, columns, blank lines between sentences; CoNLL-U is recognised.

Columns are separated by tabs if every line of a token has one, else by spaces and tabs.  A line that begins with "#" is
a comment unless it has as many columns as the lines of tokens.  Of CoNLL-U, words that stand for several tokens ("3-4")
and empty nodes ("3.1") are no tokens.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from .._runtime.optional import UnusableError
from .tables import opening

CONLLU = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
ID = re.compile(r"\d+([-.]\d+)?")
ENDS = re.compile(r"(\r\n|\n|\r)")
BLANKS = re.compile(r"[ \t]+")


class Document(NamedTuple):
    """The sentences of a file, and its lines."""

    name: str  # for messages
    lines: list[str]
    ends: list[str]  # of the lines
    separator: str | None  # None: spaces
    sentences: list[list[list[str]]]  # columns of each token
    places: list[list[int]]  # the line of each token
    is_conllu: bool

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return next((len(sentence[0]) for sentence in self.sentences), 0)


def _split(line: str, separator: str | None) -> list[str]:
    """The columns of a line; a no-break or ideographic space separates none."""
    return line.split(separator) if separator else BLANKS.split(line.strip(" \t"))


def read(path: Path, quiet: bool, separator: str | None = None) -> Document:
    """Read a file, or standard input if the path is "-".

    separator: that of the file which a model was trained on; it holds for a file without tabs, whose lines then are
    one column each.
    """
    source = opening.read_source(path, quiet)
    try:
        text = source.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = source.data[: error.start].count(b"\n") + 1
        raise UnusableError(f"{source.name}: line {number} is not UTF-8 ({error.reason})") from error
    parts = ENDS.split(text)
    lines, ends = parts[::2], [*parts[1::2], ""]
    filled = [line for line in lines if line.strip() and not line.startswith("#")]
    if not filled:
        raise UnusableError(f"{source.name} has no tokens, only blank lines and comments")
    if not (separator == "\t" and not any("\t" in line for line in filled)):
        separator = "\t" if all("\t" in line for line in filled) else None
    first = _split(filled[0], separator)
    has_ids = all(ID.fullmatch(line.split("\t")[0]) for line in filled)
    is_conllu = separator == "\t" and len(first) == len(CONLLU) and has_ids
    sentences: list[list[list[str]]] = [[]]
    places: list[list[int]] = [[]]
    for number, line in enumerate(lines):
        if not line.strip():
            if sentences[-1]:
                sentences.append([])
                places.append([])
            continue
        columns = _split(line, separator)
        if line.startswith("#") and (is_conllu or len(columns) != len(first)):
            continue
        if len(columns) != len(first):
            raise UnusableError(
                f"{source.name}: line {number + 1} has {len(columns)} columns, the first token has {len(first)}"
            )
        if is_conllu and not columns[0].isdecimal():
            continue
        sentences[-1].append(columns)
        places[-1].append(number)
    if not sentences[-1]:
        sentences.pop()
        places.pop()
    return Document(source.name, lines, ends, separator, sentences, places, is_conllu)


def find_column(text: str, document: Document, option: str) -> int:
    """The index of a column, by its number from 1 or, in CoNLL-U, by its name."""
    if document.is_conllu and text.upper() in CONLLU:
        return CONLLU.index(text.upper())
    if text.isdecimal() and 1 <= int(text) <= document.n_columns:
        return int(text) - 1
    names = f", or one of {', '.join(CONLLU)}" if document.is_conllu else ""
    raise UnusableError(
        f"{option} {text}: {document.name} has columns 1 to {document.n_columns}{names}; give one of them"
    )


def describe(text: str) -> str:
    """The form of a word: letters as X or x, digits as 0, repeated ones once."""
    form = (
        "X" if letter.isupper() else "x" if letter.isalpha() else "0" if letter.isdigit() else letter for letter in text
    )
    return re.sub(r"(.)\1+", r"\1", "".join(form))


def make_features(sentence: list[list[str]], columns: list[int]) -> list[list[str]]:
    """Names of the attributes of each token of a sentence.

    Of the first column: the word as it is and in lower case, prefixes and suffixes of up to three letters, its form,
    the two words before and after it, and its pairs with its neighbours.  Of each further column: its values at the
    token and at both neighbours.
    """
    words = [token[columns[0]] for token in sentence]
    result = []
    for i, word in enumerate(words):
        lower = word.lower()
        names = ["bias", f"word={word}", f"lower={lower}", f"form={describe(word)}"]
        for length in range(1, min(3, len(lower)) + 1):
            names += [f"prefix={lower[:length]}", f"suffix={lower[-length:]}"]
        near = {shift: words[i + shift].lower() if 0 <= i + shift < len(words) else "" for shift in (-2, -1, 1, 2)}
        names += [f"word[{shift}]={other}" for shift, other in near.items()]
        names += [f"word[-1]|word={near[-1]}|{lower}", f"word|word[1]={lower}|{near[1]}"]
        for column in columns[1:]:
            for shift in (-1, 0, 1):
                value = sentence[i + shift][column] if 0 <= i + shift < len(sentence) else ""
                names.append(f"{column + 1}[{shift}]={value}")
        result.append(names)
    return result
