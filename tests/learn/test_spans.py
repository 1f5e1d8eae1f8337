"""Spans in tags: which transitions a scheme allows, and F1 by conlleval's published rules."""

import itertools
import random
import re

import numpy as np
import pytest

from csoftmax._learn.spans import SCHEMES, find_spans
from csoftmax.sequence import span_f1, span_transitions

TYPES = ["P", "Q"]

# Valid sequences of one type, as a regular expression over prefixes; spans of other types are separate words.
VALID = {
    "BIO": "(O|BI*)*",
    "BIOES": "(O|S|BI*E)*",
    "BILOU": "(O|U|BI*L)*",
    "BMES": "(O|S|BM*E)*",
}


def is_valid(path, scheme):
    """By a regular expression: each token is its prefix, and a change of type within a span is marked with !."""
    text, before = "", None
    for label in path:
        prefix, _, kind = label.partition("-")
        if kind and before and kind != before and prefix not in "BSU":
            text += "!"
        text, before = text + prefix, kind or None
    if scheme == "IOB1":  # B only right after a token of the same type
        kinds = [(p, k) for p, _, k in (label.partition("-") for label in path)]
        return all(p != "B" or (i > 0 and kinds[i - 1][1] == k) for i, (p, k) in enumerate(kinds))
    return re.fullmatch(VALID[scheme], text) is not None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_transitions_allow_exactly_the_valid_sequences(scheme):
    prefixes = [p for p in SCHEMES[scheme] if p]
    classes = ["O", *(f"{p}-{k}" for p in prefixes for k in TYPES)]
    transitions, start, end = span_transitions(classes, scheme)
    assert set(np.unique([*transitions.ravel(), *start, *end])) <= {0.0, -np.inf}
    for n in (1, 2, 3, 4):
        for path in itertools.product(range(len(classes)), repeat=n):
            score = start[path[0]] + end[path[-1]] + sum(transitions[a, b] for a, b in itertools.pairwise(path))
            names = [classes[j] for j in path]
            assert (score == 0) == is_valid(names, scheme), names


def test_prefixes_without_types():
    transitions, start, _ = span_transitions(np.array(["B", "I", "O"]))
    assert transitions[2, 1] == start[1] == -np.inf
    assert np.isfinite(transitions).sum() == 8


# conlleval's published rules for the ends of chunks, as tables: pairs of the prefix before and the prefix at a token.
ENDS = {"BB", "BO", "IB", "IO", "EE", "EI", "EO"}
BEGINS = {"BB", "IB", "OB", "OI", "EE", "EI", "OE"}


def chunks(labels):
    """Chunks as conlleval finds them, for the prefixes B, I, E and O."""
    found, begin = set(), None
    before, kind_before = "O", ""
    for t, label in enumerate([*labels, "O"]):
        prefix, _, kind = label.partition("-")
        changes = kind_before != kind
        if begin is not None and (before + prefix in ENDS or (before != "O" and changes)):
            found.add((begin, t, kind_before))
            begin = None
        if before + prefix in BEGINS or (prefix != "O" and changes):
            begin = t
        before, kind_before = prefix, kind
    return found


@pytest.mark.parametrize("scheme", ["BIO", "IOB1"])
def test_spans_are_those_of_conlleval(scheme):
    for n in range(6):
        for labels in itertools.product(["O", "B-P", "I-P", "B-Q", "I-Q"], repeat=n):
            assert find_spans(list(labels), scheme, "y") == chunks(labels), labels


def random_sequences(prefixes, count, seed):
    rng = random.Random(seed)
    labels = ["O", *(f"{p}-{k}" for p in prefixes for k in ("PER", "LOC"))]
    return [[rng.choice(labels) for _ in range(rng.randint(0, 9))] for _ in range(count)]


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES"])
def test_f1_against_seqeval(scheme):
    """Also sequences that the scheme forbids: seqeval follows conlleval."""
    metrics = pytest.importorskip("seqeval.metrics", reason="conlleval's tables are tested above")
    prefixes = [p for p in SCHEMES[scheme] if p]
    y_true = random_sequences(prefixes, 300, 0)
    rng = random.Random(1)
    y_pred = [[c if rng.random() < 0.8 else random_label(prefixes, rng) for c in s] for s in y_true]
    assert span_f1(y_true, y_pred, scheme=scheme) == pytest.approx(metrics.f1_score(y_true, y_pred), abs=1e-12)
    macro = metrics.f1_score(y_true, y_pred, average="macro")
    assert span_f1(y_true, y_pred, scheme=scheme, average="macro") == pytest.approx(macro, abs=1e-12)
    report = metrics.classification_report(y_true, y_pred, output_dict=True)
    for kind, f1 in span_f1(y_true, y_pred, scheme=scheme, average=None).items():
        assert f1 == pytest.approx(report[kind]["f1-score"], abs=1e-12)


def random_label(prefixes, rng):
    return rng.choice(["O", *(f"{p}-{k}" for p in prefixes for k in ("PER", "LOC"))])


def test_f1_by_hand():
    """The example of conlleval's page: a span is right if both ends and the type are."""
    y_true = [["B-NP", "I-NP", "B-VP", "O", "B-NP"]]
    y_pred = [["B-NP", "I-NP", "B-VP", "B-NP", "I-NP"]]
    assert span_f1(y_true, y_pred) == pytest.approx(2 * 2 / (3 + 3))
    assert span_f1(y_true, y_pred, average=None) == {"NP": 0.5, "VP": 1.0}
    assert span_f1(y_true, y_pred, average="macro") == 0.75
    assert span_f1([["O"]], [["O"]]) == 0.0
    assert span_f1([["O"]], [["O"]], average="macro") == 0.0
    assert span_f1([], [], average=None) == {}
    assert span_f1([["U-P", "B-P", "L-P"]], [["U-P", "B-P", "L-P"]], scheme="BILOU") == 1.0
    assert span_f1([["S-P", "B-P", "M-P", "E-P"]], [["S-P", "B-P", "E-P", "S-P"]], scheme="BMES") == pytest.approx(0.4)
    assert span_f1([["B-A-B", "I-A-B"]], [["B-A-B", "O"]], average=None) == {"A-B": 0.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: span_f1([["X"]], [["O"]]), "y_true has the label 'X'; the labels of BIO are O, B-TYPE, I-TYPE"),
        (lambda: span_f1([["O"]], [["E-P"]]), "y_pred has the label 'E-P'"),
        (lambda: span_f1([["O"]], [[1]]), "y_pred has the label 1"),
        (lambda: span_f1([["O"]], [["O", "O"]]), r"y_true\[0\] has 1 labels, y_pred\[0\] has 2"),
        (lambda: span_f1([["O"]], []), "y_true has 1 sequences, y_pred has 0"),
        (lambda: span_f1([["O"]], [["O"]], average="weighted"), "average must be 'micro', 'macro' or None"),
        (lambda: span_f1([["O"]], [["O"]], scheme="IOB"), "scheme must be one of 'BIO', .* got 'IOB'"),
        (lambda: span_transitions(["O", "S-P"]), "classes has the label 'S-P'"),
        (lambda: span_transitions(["O"], "BIOE"), "scheme must be one of"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
