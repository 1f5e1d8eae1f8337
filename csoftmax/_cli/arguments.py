"""Types of arguments that several commands use, for argparse."""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable, Collection
from pathlib import Path

MAX_PENALTY = 1e100  # squares and products with the features stay finite


def parse_path(text: str) -> Path:
    """Parse the name of a file; an address is refused here, because a path would lose one of its slashes."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise argparse.ArgumentTypeError(f"{text!r} is an address, not a file; download it first, or give a pipe")
    return Path(text)


def parse_positive(text: str) -> int:
    """Parse a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def parse_seed(text: str) -> int:
    """Parse an integer of 32 bits without a sign."""
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to {2**32 - 1}, got {text!r}")
    return int(text)


def parse_counts(text: str) -> list[int]:
    """Parse a comma-separated list of positive integers."""
    return [parse_positive(part) for part in text.split(",")]


def parse_cutoffs(text: str) -> str | list[int]:
    """Parse "auto", or a comma-separated list of ascending positive integers."""
    if text == "auto":
        return text
    try:
        ranks = parse_counts(text)
    except argparse.ArgumentTypeError:
        ranks = [1, 1]
    if sorted(set(ranks)) != ranks:
        raise argparse.ArgumentTypeError(f"must be auto or ascending positive integers, got {text!r}")
    return ranks


def parse_shapes(text: str) -> list[tuple[int, ...]]:
    """Parse a comma-separated list of shapes such as 128x1000."""
    return [tuple(parse_positive(length) for length in part.split("x")) for part in text.split(",")]


def parse_number(text: str) -> float:
    """Parse a number; argparse itself would call it by the name of a function."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def parse_fraction(text: str) -> float:
    """Parse a number that is at least 0 and less than 1."""
    value = parse_number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not at least 0 and less than 1")
    return value


def parse_not_negative(text: str) -> float:
    """Parse a finite number that is at least 0."""
    value = parse_number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not at least 0 and finite")
    return value


def parse_penalty(text: str) -> float | str | None:
    """Parse a number from 0 to `MAX_PENALTY`, "auto", or "none" for the default."""
    if text in ("auto", "none"):
        return {"auto": "auto", "none": None}[text]
    try:
        float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or auto, got {text!r}") from None
    value = parse_not_negative(text)
    if value > MAX_PENALTY:
        raise argparse.ArgumentTypeError(f"must be at most {MAX_PENALTY:g}, got {text}")
    return value


def parse_names_of_columns(text: str) -> list[str]:
    """Parse a comma-separated list of columns; quotes keep a comma within a name."""
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) if name.strip()]


def parse_names(allowed: Collection[str]) -> Callable[[str], list[str]]:
    """Return a parser of comma-separated names out of `allowed`, or of "none"."""

    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if names == ["none"]:
            return []
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(allowed)}, none")
        return names

    return parse
