"""Sequences of tokens as one sparse matrix: names of attributes become columns, sequences follow each other.

A token is a mapping, an iterable of names, or a row of a matrix.  In a mapping a string is an attribute
"key:value", a number or a bool the value of the attribute "key", and a mapping, list or set gives the attributes
"key:name" of its members: the rules of python-crfsuite, so that its features can be used as they are.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .messages import show

SEPARATOR = ":"  # between a key and its value
FLOAT32_MAX = float(np.finfo(np.float32).max)  # a float32 itself would be compared in float32
MAX_COLUMNS = 2**31 - 1  # columns are int32
LOOKED_UP_NAMES = 2**14  # names that are held until they are looked up together

Vocabulary = dict[str, int]


class Tokens(NamedTuple):
    """Attributes of the tokens of some sequences: a sparse matrix by rows, and where each sequence begins."""

    indptr: NDArray[np.int64]
    columns: NDArray[np.int32]
    values: NDArray[np.float32] | None  # None: all are 1
    n_columns: int
    starts: NDArray[np.int64]  # of the sequences, and the end of the last one

    @property
    def total(self) -> int:
        """Number of tokens."""
        return len(self.indptr) - 1

    def take(self, sequences: NDArray[np.intp]) -> Tokens:
        """Return the given sequences."""
        rows = rows_of(self.starts, sequences)
        lengths = np.diff(self.starts)[sequences]
        entries = rows_of(self.indptr, rows)
        return Tokens(
            np.concatenate([[0], np.cumsum(np.diff(self.indptr)[rows])]).astype(np.int64),
            self.columns[entries],
            None if self.values is None else self.values[entries],
            self.n_columns,
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )


def rows_of(starts: NDArray[np.int64], chosen: NDArray[Any]) -> NDArray[np.int64]:
    """Positions of the elements of the chosen groups, where group i has the positions starts[i] to starts[i + 1]."""
    lengths = (starts[1:] - starts[:-1])[chosen]
    ends = np.cumsum(lengths)
    first = np.repeat(starts[:-1][chosen] - (ends - lengths), lengths)
    return np.asarray(first + np.arange(len(first)), np.int64)


def is_matrix(x: Any) -> bool:
    """Whether x is an array, tensor or sparse matrix with two axes."""
    return len(getattr(x, "shape", ())) == 2


def is_packed(X: Any) -> bool:
    """Whether X is a pair (matrix, lengths)."""
    return isinstance(X, tuple) and len(X) == 2 and is_matrix(X[0]) and not is_matrix(X[1])


class _Names:
    """Collects the attributes of tokens as columns and values, and grows a vocabulary if asked to.

    Names are looked up some thousands at a time: one at a time, half of the time would go to the calls.
    """

    def __init__(self, vocabulary: Vocabulary, grows: bool):
        self.vocabulary, self.grows = vocabulary, grows
        self.names: list[str] = []  # not yet looked up
        self.columns: list[NDArray[np.int32]] = []  # -1: an unknown name
        self.values = array("f")  # stay empty while all are 1
        self.count, self.lengths = 0, array("q")

    def add(self, tokens: list[Any], place: str) -> None:
        """Add the tokens of a sequence."""
        if not self.values and set(map(type, tokens)) == {list}:  # the kind that is read fastest: all names at once
            names = list(itertools.chain.from_iterable(tokens))
            if not set(map(type, names)) <= {str}:
                for t, token in enumerate(tokens):
                    read_token(token, f"{place}[{t}]")  # refuses names that are no strings
            self.names += names
            self.count += len(names)
            self.lengths.extend(map(len, tokens))
        else:
            for t, token in enumerate(tokens):
                self._add_token(*read_token(token, f"{place}[{t}]"))
        if len(self.names) >= LOOKED_UP_NAMES:
            self._look_up()

    def _add_token(self, names: list[str], values: list[float] | None) -> None:
        if values is not None and not self.values:
            self.values.extend([1.0] * self.count)
        if values is not None or self.values:
            self.values.extend([1.0] * len(names) if values is None else values)
        self.names += names
        self.count += len(names)
        self.lengths.append(len(names))

    def _look_up(self) -> None:
        vocabulary, names = self.vocabulary, self.names
        if self.grows:
            columns: Iterable[int] = [vocabulary.setdefault(name, len(vocabulary)) for name in names]
        else:
            columns = map(vocabulary.get, names, itertools.repeat(-1))
        self.columns.append(np.fromiter(columns, np.int32, len(names)))
        self.names = []

    def finish(self, starts: NDArray[np.int64]) -> Tokens:
        """The tokens of all sequences, without unknown names."""
        self._look_up()
        columns = np.concatenate(self.columns)
        values = np.frombuffer(self.values, np.float32) if self.values else None
        indptr = np.concatenate([[0], np.cumsum(np.frombuffer(self.lengths, np.int64) if self.lengths else [])])
        known = columns >= 0
        if not known.all():
            indptr = np.concatenate([[0], np.cumsum(known)])[indptr.astype(np.int64)]
            columns, values = columns[known], None if values is None else values[known]
        return Tokens(indptr.astype(np.int64), columns, values, len(self.vocabulary), starts)


def read_token(token: Any, place: str) -> tuple[list[str], list[float] | None]:
    """Names of the attributes of a token and their values, None if all are 1; attributes of value 0 are left out."""
    names: list[str] = []
    values: list[float] = []
    if isinstance(token, Mapping):
        try:
            _read_mapping(token, "", place, names, values)
        except RecursionError:
            raise ValueError(f"{place} holds itself, or is nested too deeply to be read") from None
        if values.count(1.0) == len(values):
            return names, None
        if 0.0 in values:
            names = [name for name, value in zip(names, values) if value]
            values = [value for value in values if value]
        return names, values
    if isinstance(token, str | bytes) or not isinstance(token, Iterable):
        raise TypeError(f"{place} is {show(token)}; a token is a dict, or a list or set of strings")
    names = list(token)
    for name in names:
        if type(name) is not str and not isinstance(name, str):
            raise TypeError(f"{place} has the attribute {show(name)}; attributes of a list are strings")
    return names, None


def _read_mapping(token: Mapping[Any, Any], prefix: str, place: str, names: list[str], values: list[float]) -> None:
    """Add the attributes of a mapping, whose names begin with `prefix`."""
    for key, value in token.items():
        if not isinstance(key, str):
            raise TypeError(f"{place} has the key {show(key)}; keys are strings")
        if isinstance(value, str):
            names.append(f"{prefix}{key}:{value}")
            values.append(1.0)
        elif value is True:
            names.append(prefix + key)
            values.append(1.0)
        elif isinstance(value, bool | int | float | np.integer | np.floating | np.bool_):
            if isinstance(value, int) and abs(value) >= 2**128:  # beyond float32; beyond float64 float() would fail
                raise ValueError(
                    f"{place} has {prefix}{key}, of {value.bit_length()} bits; values are finite, in float32"
                )
            number = float(value)
            if not math.isfinite(number) or abs(number) > FLOAT32_MAX:
                raise ValueError(f"{place} has {prefix}{key}={show(value)}; values are finite, in float32")
            names.append(prefix + key)
            values.append(number)
        elif isinstance(value, Mapping):
            _read_mapping(value, f"{prefix}{key}{SEPARATOR}", place, names, values)
        elif isinstance(value, list | tuple | set | frozenset):
            members, _ = read_token(value, place)
            names.extend(f"{prefix}{key}{SEPARATOR}{name}" for name in members)
            values.extend([1.0] * len(members))
        else:
            kinds = "a string, number or bool, or a dict, list or set of attributes"
            raise TypeError(f"{place} has {prefix}{key}={show(value)}; a value is {kinds}")


def _check_sequences(X: Any) -> list[Any]:
    """X as a list of sequences."""
    if isinstance(X, str | bytes | Mapping) or not isinstance(X, Iterable) or is_matrix(X):
        raise TypeError(f"X must be a list of sequences or a pair (matrix, lengths), got {type(X).__name__}")
    sequences = list(X)
    for i, sequence in enumerate(sequences):
        if isinstance(sequence, str | bytes | Mapping) or not (is_matrix(sequence) or isinstance(sequence, Iterable)):
            raise TypeError(f"X[{i}] is {show(sequence)}; a sequence is a list of tokens or a matrix")
    return sequences


def read_tokens(
    X: Any, vocabulary: Vocabulary | None, *, grows: bool = False, hashing: int | None = None, n_columns: int = -1
) -> Tokens:
    """Read sequences of any kind.

    vocabulary: columns of names; None: X must be matrices.  grows: unknown names get new columns, else they are left
    out.  hashing: number of columns that names are hashed to.  n_columns: that of matrices, -1 if any will do.
    """
    if is_packed(X):
        matrix, lengths = X
        return _from_matrix(matrix, check_lengths(lengths, matrix.shape[0]), n_columns)
    sequences = _check_sequences(X)
    if sequences and all(map(is_matrix, sequences)):
        return _from_matrices(sequences, n_columns)
    if n_columns >= 0 and vocabulary is None and hashing is None and sequences:
        raise TypeError("X has names of attributes, but the model was fitted on matrices")
    lists = [list(sequence) for sequence in sequences]
    starts = np.concatenate([[0], np.cumsum([len(tokens) for tokens in lists])]).astype(np.int64)
    if hashing is not None:
        return _hash(lists, starts, hashing)
    names = _Names({} if vocabulary is None else vocabulary, grows)
    for i, tokens in enumerate(lists):
        names.add(tokens, f"X[{i}]")
    return names.finish(starts)


def as_sequences(X: Any) -> Any:
    """X with an iterator as a list, so that it can be read more than once."""
    return X if is_packed(X) else _check_sequences(X)


def has_names(X: Any) -> bool:
    """Whether the tokens of `as_sequences` are named attributes, and not rows of matrices."""
    return not is_packed(X) and not (len(X) > 0 and all(map(is_matrix, X)))


def check_lengths(lengths: Any, tokens: int) -> NDArray[np.int64]:
    """Where each sequence begins, from the lengths that stand beside a matrix."""
    given = np.asarray(lengths)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise TypeError(f"lengths must be integers with one axis, got {show(lengths)}")
    if (given < 0).any() or given.sum() != tokens:
        raise ValueError(
            f"lengths must be at least 0 and add up to {tokens}, the rows of the matrix, got {show(given)}"
        )
    return np.concatenate([[0], np.cumsum(given)]).astype(np.int64)


def _from_matrices(sequences: list[Any], n_columns: int) -> Tokens:
    """Matrices one below the other."""
    from scipy import sparse

    widths = {int(sequence.shape[1]) for sequence in sequences}
    if len(widths) > 1:
        raise ValueError(f"the matrices of X have different numbers of columns: {show(sorted(widths))}")
    stacked = sparse.vstack([sparse.csr_array(_as_matrix(s)) for s in sequences], format="csr")
    starts = np.concatenate([[0], np.cumsum([s.shape[0] for s in sequences])]).astype(np.int64)
    return _from_matrix(stacked, starts, n_columns)


def _as_matrix(x: Any) -> Any:
    """A sparse matrix as it is; else an array of numbers."""
    if hasattr(x, "tocsr"):
        matrix = x.tocsr()
        matrix.check_format(full_check=True)  # the kernels trust its indices
        return matrix
    matrix = np.asarray(x)
    if matrix.dtype.kind not in "biuf":
        raise TypeError(f"X must hold numbers, got a matrix of dtype {matrix.dtype}")
    return matrix


def _from_matrix(matrix: Any, starts: NDArray[np.int64], n_columns: int) -> Tokens:
    """The entries of a matrix whose rows are the tokens."""
    from scipy import sparse

    matrix = _as_matrix(matrix)
    if n_columns >= 0 and matrix.shape[1] != n_columns:
        raise ValueError(f"X has {matrix.shape[1]} columns, but the model was fitted with {n_columns}")
    if matrix.shape[1] > MAX_COLUMNS or matrix.shape[0] > MAX_COLUMNS:
        raise ValueError(f"X has shape {matrix.shape}; at most {MAX_COLUMNS} tokens and columns are supported")
    if not hasattr(matrix, "tocsr"):
        matrix = sparse.csr_array(matrix.astype(np.float32) if matrix.dtype.kind == "b" else matrix)
    with np.errstate(over="ignore"):
        values = np.asarray(matrix.data, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("X must be finite, also in float32")
    indptr, columns = np.asarray(matrix.indptr, np.int64), np.asarray(matrix.indices, np.int32)
    if not values.all():
        kept = np.flatnonzero(values)
        rows = np.repeat(np.arange(matrix.shape[0]), np.diff(indptr))[kept]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=matrix.shape[0]))]).astype(np.int64)
        columns, values = columns[kept], values[kept]
    return Tokens(indptr, columns, None if (values == 1).all() else values, int(matrix.shape[1]), starts)


def _hash(lists: list[list[Any]], starts: NDArray[np.int64], hashing: int) -> Tokens:
    """Names hashed to columns by scikit-learn's FeatureHasher (MurmurHash3); names of one column add up."""
    from sklearn.feature_extraction import FeatureHasher

    def pairs() -> Iterator[Iterator[tuple[str, float]]]:
        for i, tokens in enumerate(lists):
            for t, token in enumerate(tokens):
                names, values = read_token(token, f"X[{i}][{t}]")
                yield zip(names, [1.0] * len(names) if values is None else values)

    hasher = FeatureHasher(hashing, input_type="pair", alternate_sign=False)
    if starts[-1] == 0:  # the hasher refuses no rows
        return Tokens(np.zeros(1, np.int64), np.zeros(0, np.int32), None, hashing, starts)
    try:
        matrix = hasher.transform(pairs())
    except UnicodeEncodeError as error:
        raise ValueError(_describe_surrogate(lists)) from error
    return _from_matrix(matrix, starts, -1)


def _describe_surrogate(lists: list[list[Any]]) -> str:
    """Where the first attribute is that UTF-8 has no bytes for; looked for only after the hasher has met one."""
    for i, tokens in enumerate(lists):
        for t, token in enumerate(tokens):
            for name in read_token(token, f"X[{i}][{t}]")[0]:
                if any("\ud800" <= letter <= "\udfff" for letter in name):
                    return (
                        f"X[{i}][{t}] has the attribute {show(name)}, with half of a surrogate pair; hashing needs "
                        "names that can be written as UTF-8"
                    )
    return "X has an attribute with half of a surrogate pair; hashing needs names that can be written as UTF-8"


def drop_rare(tokens: Tokens, min_count: int, known: int, vocabulary: Vocabulary | None) -> Tokens:
    """Tokens without the attributes that fewer than min_count entries have; the first `known` columns stay.

    A vocabulary loses their names, and its columns are renumbered; without one the columns stay, empty.
    """
    counts = np.bincount(tokens.columns, minlength=tokens.n_columns)
    stays = counts >= min_count
    stays[:known] = True
    if stays.all():
        return tokens
    n_columns, numbers = tokens.n_columns, np.arange(tokens.n_columns)
    if vocabulary is not None:
        n_columns, numbers = int(stays.sum()), np.cumsum(stays) - 1
        names = [(name, column) for name, column in vocabulary.items() if stays[column]]
        vocabulary.clear()
        vocabulary.update((name, int(numbers[column])) for name, column in names)
    kept = stays[tokens.columns]
    before = np.concatenate([[0], np.cumsum(kept)])
    return Tokens(
        before[tokens.indptr].astype(np.int64),
        numbers[tokens.columns[kept]].astype(np.int32),
        None if tokens.values is None else tokens.values[kept],
        n_columns,
        tokens.starts,
    )
