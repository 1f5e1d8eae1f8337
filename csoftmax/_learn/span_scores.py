"""F1 over spans, and the transitions that schemes of spans allow: the public functions of `csoftmax.sequence`."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import spans
from .chain_labels import list_labels, list_sequences
from .messages import show

AVERAGES = ("micro", "macro", None)


def span_transitions(
    classes: ArrayLike, scheme: Literal["BIO", "IOB1", "BIOES", "BILOU", "BMES"] = "BIO"
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Which labels may follow each other in a scheme of spans, as scores for the functions of the CRF.

    Parameters
    ----------
    classes : array-like of str, shape (L,)
        Labels: "O", or a prefix of the scheme, alone or followed by "-" and a type.
    scheme : {"BIO", "IOB1", "BIOES", "BILOU", "BMES"}, default "BIO"
        "BIO" (IOB2): each span begins with B. "IOB1" (Ramshaw & Marcus 1995): B only separates a span from one of its
        type right before it. "BIOES", "BILOU", "BMES": the last token of a span, and a span of one token, have prefixes
        of their own.

    Returns
    -------
    transitions : ndarray of float64, shape (L, L)
        0 where label j may follow label i, else -inf.
    start, end : ndarray of float64, shape (L,)
        0 where a label may be the first or the last one, else -inf.

    Raises
    ------
    ValueError
        If a label or the scheme is not known.

    Examples
    --------
    >>> from csoftmax.sequence import span_transitions
    >>> transitions, start, end = span_transitions(["B", "I", "O"])
    >>> transitions
    array([[  0.,   0.,   0.],
           [  0.,   0.,   0.],
           [  0., -inf,   0.]])
    >>> start
    array([  0., -inf,   0.])
    """
    return spans.make_rules(list_labels(classes, "classes"), scheme)


def span_f1(
    y_true: Any,
    y_pred: Any,
    *,
    scheme: Literal["BIO", "IOB1", "BIOES", "BILOU", "BMES"] = "BIO",
    average: Literal["micro", "macro"] | None = "micro",
) -> float | dict[str, float]:
    """F1 over spans: one is right if both of its ends and its type are.

    Parameters
    ----------
    y_true, y_pred : list of sequences of str
        True and predicted labels.
    scheme : {"BIO", "IOB1", "BIOES", "BILOU", "BMES"}, default "BIO"
        Prefixes of the labels; see `span_transitions`.
    average : {"micro", "macro", None}, default "micro"
        "micro": over all spans. "macro": the mean over the types of all spans. None: a dict of each type.

    Returns
    -------
    float or dict of str to float
        F1, from 0 to 1; 0 without any span.

    Raises
    ------
    TypeError, ValueError
        If y_true or y_pred is no list of sequences, if a label, the scheme or the average is not known, or if the
        lengths differ.

    Notes
    -----
    The spans are those of conlleval (Tjong Kim Sang & Buchholz 2000), which finds some in any sequence of labels: a
    token inside a span begins a new one if the types differ or if the token before it is outside or ends a span.

    Examples
    --------
    >>> from csoftmax.sequence import span_f1
    >>> span_f1([["B-LOC", "I-LOC", "O", "B-PER"]], [["B-LOC", "I-LOC", "O", "B-LOC"]])
    0.5
    """
    if average is not None and (not isinstance(average, str) or average not in AVERAGES):
        raise ValueError(f"average must be 'micro', 'macro' or None, got {show(average)}")
    spans.check_scheme(scheme)
    lists = [list_sequences(y, name) for y, name in ((y_true, "y_true"), (y_pred, "y_pred"))]
    lengths = [[len(labels) for labels in y] for y in lists]
    if len(lists[0]) != len(lists[1]):
        raise ValueError(f"y_true has {len(lists[0])} sequences, y_pred has {len(lists[1])}")
    for i, (n, m) in enumerate(zip(*lengths)):
        if n != m:
            raise ValueError(f"y_true[{i}] has {n} labels, y_pred[{i}] has {m}")
    counts = spans.count_spans(lists[0], lists[1], scheme)
    if average == "micro":
        return counts.f1()
    by_type = {kind: counts.f1(kind) for kind in counts.types()}
    if average is None:
        return by_type
    return float(np.mean(list(by_type.values()))) if by_type else 0.0
