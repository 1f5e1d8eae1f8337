"""Messages of a command on stderr: a line per fact, none with --quiet, more with --verbose."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_NAMED = 6  # columns or values that one line names; "and 12 more" stands for the rest


@dataclass
class Messages:
    """Prints lines that begin with the name of the command.

    Lines about a table are held until it is known to be usable: the refusal of a table is one line.
    """

    command: str
    quiet: bool = False
    verbose: bool = False
    held: list[str] | None = field(default_factory=list)

    def say(self, text: str) -> None:
        """Print a line, unless the command is quiet."""
        if self.held is not None:
            self.held.append(text)
        elif not self.quiet:
            print(f"csoftmax {self.command}: {text}", file=sys.stderr)

    def detail(self, text: str) -> None:
        """Print a line if the command is verbose."""
        if self.verbose:
            self.say(text)

    def release(self) -> None:
        """Print the lines that were held, and hold no more."""
        lines, self.held = self.held or [], None
        for line in lines:
            self.say(line)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --quiet and --verbose."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-q", "--quiet", action="store_true", help="print nothing on success but the result")
    group.add_argument("-v", "--verbose", action="store_true", help="also print what was detected and done in detail")


def from_arguments(arguments: argparse.Namespace) -> Messages:
    """Return the messages of a command from its arguments."""
    return Messages(arguments.command, arguments.quiet, arguments.verbose)


def count(n: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 column", "3 columns"."""
    return f"{int(n)} {singular if n == 1 else plural or singular + 's'}"


def name_some(names: Sequence[object]) -> str:
    """Return the first names of a sequence, quoted, and how many more there are."""
    shown = ", ".join(map(repr, names[:MAX_NAMED]))
    return shown + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")
