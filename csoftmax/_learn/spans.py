"""Spans in sequences of tags such as B-LOC: which transitions a scheme allows, which spans there are, F1 over them."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .messages import show

OUTSIDE = "O"


class Scheme(NamedTuple):
    """Prefixes of a scheme by their roles; a prefix has at most one role, an absent role is ""."""

    begin: str
    inside: str
    end: str  # of a span of two or more tokens
    single: str  # a span of one token


SCHEMES = {
    "BIO": Scheme("B", "I", "", ""),
    "IOB1": Scheme("B", "I", "", ""),  # where B only separates neighbours of one type
    "BIOES": Scheme("B", "I", "E", "S"),
    "BILOU": Scheme("B", "I", "L", "U"),
    "BMES": Scheme("B", "M", "E", "S"),
}


class Tag(NamedTuple):
    """A label taken apart; that of tokens outside of spans has the prefix "" and no type."""

    prefix: str
    type: str


def check_scheme(scheme: Any) -> Scheme:
    """The scheme of a name."""
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(map(repr, SCHEMES))}, got {show(scheme)}")
    return SCHEMES[scheme]


def parse(label: Any, scheme: str, name: str) -> Tag:
    """Take a label apart: "O", a prefix, or a prefix, "-" and a type."""
    if label == OUTSIDE:
        return Tag("", "")
    prefix, _, kind = label.partition("-") if isinstance(label, str) else ("", "", "")
    if not prefix or prefix not in SCHEMES[scheme]:
        allowed = ", ".join(f"{p}-TYPE" for p in SCHEMES[scheme] if p)
        raise ValueError(f"{name} has the label {show(label)}; the labels of {scheme} are O, {allowed}")
    return Tag(prefix, kind)


def _may_follow(before: Tag, after: Tag, scheme: str) -> bool:
    """Whether a scheme allows two neighbouring tags; Tag("", "") before the first token and after the last one."""
    roles = SCHEMES[scheme]
    if scheme == "IOB1":
        return after.prefix != roles.begin or (before.prefix != "" and before.type == after.type)
    if scheme == "BIO":
        return after.prefix != roles.inside or (before.prefix != "" and before.type == after.type)
    is_open = before.prefix in (roles.begin, roles.inside)
    continues = after.prefix in (roles.inside, roles.end)
    return is_open == continues and (not is_open or before.type == after.type)


def make_rules(
    classes: list[Any], scheme: str, name: str = "classes"
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Scores 0 and -inf of transitions, of the first and of the last label."""
    check_scheme(scheme)
    tags = [parse(label, scheme, name) for label in classes]
    outside = Tag("", "")

    def score(before: Tag, after: Tag) -> float:
        return 0.0 if _may_follow(before, after, scheme) else -np.inf

    transitions = np.array([[score(a, b) for b in tags] for a in tags], float).reshape(len(tags), len(tags))
    start = np.array([score(outside, b) for b in tags], float)
    end = np.array([score(a, outside) for a in tags], float)
    return transitions, start, end


def find_spans(labels: list[Any], scheme: str, name: str) -> set[tuple[int, int, str]]:
    """First token, end and type of each span.

    The rules are those of conlleval, which finds spans in any sequence of tags: a token within a span begins a new one
    if its prefix says so, if the token before it ends one or is outside, or if the types differ.
    """
    roles, spans = SCHEMES[scheme], set()
    begin, before = 0, Tag("", "")
    for t, label in enumerate([*labels, OUTSIDE]):
        tag = parse(label, scheme, name)
        is_first = (
            tag.prefix in (roles.begin, roles.single)
            or before.prefix in ("", roles.end, roles.single)
            or before.type != tag.type
        )
        if before.prefix and (not tag.prefix or is_first):
            spans.add((begin, t, before.type))
        if tag.prefix and is_first:
            begin = t
        before = tag
    return spans


class Counts(NamedTuple):
    """Numbers of spans by type: right ones, predicted ones, true ones."""

    right: Counter[str]
    predicted: Counter[str]
    true: Counter[str]

    def types(self) -> list[str]:
        """The types of all spans, sorted."""
        return sorted({*self.predicted, *self.true})

    def f1(self, kind: str | None = None) -> float:
        """F1 of a type, or of all spans; 0 without any span."""
        right, predicted, true = (c.total() if kind is None else c[kind] for c in self)
        return 2 * right / (predicted + true) if predicted + true else 0.0

    def precision_recall(self, kind: str | None = None) -> tuple[float, float]:
        """Precision and recall of a type, or of all spans; 0 where there is nothing to divide by."""
        right, predicted, true = (c.total() if kind is None else c[kind] for c in self)
        return (right / predicted if predicted else 0.0), (right / true if true else 0.0)


def count_spans(y_true: list[list[Any]], y_pred: list[list[Any]], scheme: str) -> Counts:
    """Count the spans of all sequences; a span is right if both ends and the type are."""
    counts = Counts(Counter(), Counter(), Counter())
    for given, found in zip(y_true, y_pred):
        true, predicted = find_spans(given, scheme, "y_true"), find_spans(found, scheme, "y_pred")
        for counter, spans in zip(counts, (true & predicted, predicted, true)):
            counter.update(kind for _, _, kind in spans)
    return counts
