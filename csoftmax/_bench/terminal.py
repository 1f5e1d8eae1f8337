"""The report of `compare` on a terminal, drawn by rich: ruled tables with ratios in colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .table import layout, list_conditions, list_remarks, list_tables

# Ratios beyond these are coloured; between them the two are equally fast within what such a measurement tells.
FASTER, SLOWER = 1.05, 0.95


def make_console() -> Any:
    """Return the console of rich, or None if standard output is no terminal or rich is not installed."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(highlight=False)
    return console if console.is_terminal else None


def show_report(console: Any, report: dict[str, Any]) -> None:
    """Print the report as `table.format_report` words it."""
    for line in list_conditions(report):
        console.print(line, markup=False)
    for (title, meaning), rows in list_tables(report):
        console.print()
        drawn = make_table(title, meaning, rows)
        if console.measure(drawn).maximum < console.width:
            console.print(drawn)
        else:  # rich would leave columns out; the terminal breaks long lines instead
            lines = [title, meaning, *layout(rows, "<" + ">" * (len(rows[0]) - 1))]
            console.print("\n".join(lines), markup=False, soft_wrap=True)
    console.print()
    for line in list_remarks(report):
        console.print(line, markup=False)


def make_table(title: str, meaning: str, rows: Sequence[Sequence[str]]) -> Any:
    """Return a table of rich whose first row is the head; the means stand below a line."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    head, *body = rows
    drawn = Table(box=box.SIMPLE_HEAD, title=Text(title, style="bold"), caption=Text(meaning), title_justify="left")
    drawn.caption_justify = "left"
    for name in head:
        drawn.add_column(Text(name), justify="left" if name == "shape" else "right", no_wrap=True)
    for i, row in enumerate(body):
        is_last_case = i + 1 < len(body) and bool(row[1]) and not body[i + 1][1]
        cells = [Text(cell, style=choose_style(head, j, cell)) for j, cell in enumerate(row)]
        drawn.add_row(*cells, end_section=is_last_case)
    return drawn


def choose_style(head: Sequence[str], column: int, cell: str) -> str:
    """Return the colour of a peer's ratio; the figure itself says the same to readers who see no colours."""
    if head[column] != "ratio" or head[column - 1].startswith("copy") or not cell:
        return ""
    return "green" if float(cell) >= FASTER else "red" if float(cell) <= SLOWER else ""
