"""Writes docs/decisions/README.md: the decisions by area and by status.

    python tests/tools/make_decisions_index.py

A decision is a section of docs/decisions/<area>.md.  Its heading has its number, title, status and date; its fields are
a list: Decision, Figure or Reason, Rejected where there was an alternative, Supersedes, Code.
"""

import dataclasses
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "decisions"

HEADING = re.compile(r"## (\d+) (.+) \((accepted|withdrawn|superseded by (?:[a-z_]+ )?\d+), (\d{4}-\d\d-\d\d)\)")
FIELD = re.compile(r"^- \*\*(\w+)\.\*\* ", re.M)
FIELDS = ("Decision", "Figure", "Reason", "Rejected", "Supersedes", "Code")

INTRODUCTION = """\
# Decisions

The reasons for the design of csoftmax: each decision with its figures and the rejected alternatives, one page per area.
An entry keeps its number; one that no longer holds is marked as superseded or withdrawn. Code cites an entry as
"decision topk 1".

This page is generated: `python tests/tools/make_decisions_index.py`.
"""


@dataclasses.dataclass
class Decision:
    """One section of a page of decisions."""

    area: str
    number: int
    title: str
    status: str
    date: str
    fields: dict  # name of the field -> its text

    @property
    def link(self):
        """The section's address, with the anchor that GitHub and MkDocs derive from a heading."""
        heading = f"{self.number} {self.title} ({self.status}, {self.date})".lower()
        anchor = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        return f"[{self.area} {self.number}]({self.area}.md#{anchor})"


def read_page(path):
    """The title of a page and its decisions; ValueError names a malformed one."""
    head, *sections = re.split(r"^(?=## )", path.read_text(encoding="utf-8"), flags=re.M)
    title = head.splitlines()[0].removeprefix("# ").removeprefix("Decisions: ")
    decisions = []
    for section in sections:
        heading, body = section.split("\n", 1)
        match = HEADING.fullmatch(heading)
        if match is None:
            raise ValueError(f'{path.name}: "{heading}" is not "## NUMBER TITLE (STATUS, YYYY-MM-DD)"')
        parts = FIELD.split(body.strip())
        if parts[0].strip():
            raise ValueError(f"{path.name}: text outside a field in {heading}")
        fields = {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}
        number, text, status, date = match.groups()
        decisions.append(Decision(path.stem, int(number), text, status, date, fields))
    return title, decisions


def read_decisions(folder=FOLDER):
    """The pages in the order of their names: area -> (title, decisions)."""
    return {path.stem: read_page(path) for path in sorted(folder.glob("*.md")) if path.name != "README.md"}


def make_index(pages):
    """The text of docs/decisions/README.md."""
    lines = [INTRODUCTION]
    for area, (title, decisions) in pages.items():
        lines += [f"## {title[0].upper()}{title[1:]}\n", "| | | status | date |", "|---|---|---|---|"]
        lines += [f"| {d.link} | {d.title} | {d.status} | {d.date} |" for d in decisions]
        lines += ["", f"[The page]({area}.md)\n"]
    lines.append("## No longer in force\n")
    lines += [f"- {d.link} {d.title}: {d.status}" for _, page in pages.values() for d in page if d.status != "accepted"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (FOLDER / "README.md").write_text(make_index(read_decisions()), encoding="utf-8")
