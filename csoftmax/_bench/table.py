"""Tables as plain text and Markdown, and the report of `compare` in both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def layout(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Lay rows out as lines of text with aligned columns; `align` has one of < and > for each column."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    ]


def layout_markdown(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Lay rows out as the lines of a Markdown table whose first row is the header."""
    ruler = ["---" if side == "<" else "---:" for side in align]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (rows[0], ruler, *rows[1:])]


MODES = {"out": "results in given memory (out=)", "fresh": "results in new memory"}
RATIOS = "time / csoftmax's time: above 1, csoftmax is faster"
IDLE_CPUS = 0.1  # what other processes may use of an idle machine


def format_report(report: dict[str, Any]) -> str:
    """Format the report of `compare` as a page of text, one table for each mode and number of threads."""
    page = list_conditions(report)
    for title, rows in list_tables(report):
        page += ["", *title, *layout(rows, "<" + ">" * (len(rows[0]) - 1))]
    return "\n".join([*page, "", *list_remarks(report)])


def list_conditions(report: dict[str, Any]) -> list[str]:
    """Return the lines above the tables: command, date, machine, versions, and what was left out."""
    head = report["header"]
    return [head["command"], f"{head['date']}, {_machine(head)}", _versions(head), *head["notes"], *_left_out(report)]


def list_remarks(report: dict[str, Any]) -> list[str]:
    """Return the lines below the tables: how long it took, and whether the machine was idle."""
    seconds, others = report["header"]["seconds"], report["header"]["other_processes_cpus"]
    lines = [f"{seconds} s" + ("" if others is None else f"; other processes used {others:.2f} CPUs")]
    if others is not None and others > IDLE_CPUS:
        lines.append("The machine was not idle: do not rely on these figures, least of all with several threads.")
    return lines


def list_tables(report: dict[str, Any]) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield the title and the rows of a table for each mode and number of threads."""
    head = report["header"]
    for mode, text in MODES.items():
        for threads in head["threads"]:
            chosen = [line for line in report["cases"] if (line["mode"], line["threads"]) == (mode, threads)]
            means = [each for each in report["summaries"] if (each["mode"], each["threads"]) == (mode, threads)]
            if chosen:
                plural = "s" * (threads > 1)
                title = [f"{head['op']}, {threads} thread{plural}, {text}", f"microseconds per call; ratio: {RATIOS}"]
                yield title, make_text_rows(chosen, means)


def make_text_rows(lines: Sequence[dict[str, Any]], means: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return a row for each case, below the heads: csoftmax's time and bandwidth, and each peer's time and ratio."""
    names = _peers(lines)
    rows = [["shape", "csoftmax", "GB/s", *(cell for name in names for cell in (name, "ratio")), "rounds"]]
    for line in lines:
        ours = line["results"]["csoftmax"]
        cells = [line["case"], _microseconds(ours["us"]), f"{ours['gb_per_s']:.1f}"]
        for name in names:
            result = line["results"].get(name)
            cells += [_microseconds(result["us"]), f"{result['ratio']:.2f}"] if result else ["-", ""]
        rows.append([*cells, str(line["rounds"])])
    for what in dict.fromkeys(each["what"] for each in means):
        by_name = {each["peer"]: each for each in means if each["what"] == what}
        for text, key in (("geometric mean", "geometric_mean"), ("lowest", "lowest")):
            cells = [f"{text}, {what}", "", ""]
            for name in names:
                cells += ["", f"{by_name[name][key]:.2f}" if name in by_name else ""]
            rows.append([*cells, ""])
    return rows


def format_report_markdown(report: dict[str, Any]) -> str:
    """Format the report of `compare` in Markdown, one table for each mode, with the thread counts in its cells."""
    head = report["header"]
    build = f"csoftmax {head['versions']['csoftmax']}" + (f", commit {head['commit']}" if head["commit"] else "")
    page = [
        f"`{head['command']}`",
        f"{head['date']}; {_machine(head)}; {build}; {head['platform']}.",
        f"{_versions(head)}.",
    ]
    page += [*head["notes"], *_left_out(report)]
    counts = " / ".join(map(str, head["threads"]))
    plural = "s" if head["threads"] != [1] else ""
    for mode, text in MODES.items():
        chosen = [line for line in report["cases"] if line["mode"] == mode]
        means = [each for each in report["summaries"] if each["mode"] == mode]
        if chosen:
            page += [
                f"{head['op']}, {text}, {counts} thread{plural}.  The first column has the microseconds per call of "
                f"csoftmax, the others {RATIOS}.",
                "\n".join(format_markdown_table(head["op"], head["threads"], chosen, means)),
            ]
    if head["other_processes_cpus"] is not None:
        page.append(f"Other processes used {head['other_processes_cpus']:.2f} CPUs during the {head['seconds']} s.")
    return "\n\n".join(page)


def format_markdown_table(
    op: str,
    counts: Sequence[int],
    lines: Sequence[dict[str, Any]],
    means: Sequence[dict[str, Any]],
    names: Sequence[str] | None = None,
) -> list[str]:
    """Return a table with a line for each case: csoftmax's time and the ratio of each peer, by number of threads.

    `names` are the peers that have a column; by default those that were measured.
    """
    names = _peers(lines) if names is None else names

    def join(figures: dict[int, str]) -> str:
        return " / ".join(figures.get(count, "–") for count in counts) if figures else "–"

    rows = [[op, "µs", *names]]
    for case in dict.fromkeys(line["case"] for line in lines):
        results = {line["threads"]: line["results"] for line in lines if line["case"] == case}
        cells = [join({count: _microseconds(each["csoftmax"]["us"]) for count, each in results.items()})]
        for name in names:
            cells.append(join({count: f"{each[name]['ratio']:.2f}" for count, each in results.items() if name in each}))
        rows.append([case, *cells])
    for what in dict.fromkeys(each["what"] for each in means):
        for text, key in (("geometric mean", "geometric_mean"), ("lowest", "lowest")):
            cells = []
            for name in names:
                chosen = [each for each in means if (each["what"], each["peer"]) == (what, name)]
                cells.append(join({each["threads"]: f"{each[key]:.2f}" for each in chosen}))
            rows.append([f"{text}, {what}", "", *cells])
    return layout_markdown(rows, "<" + ">" * (len(names) + 1))


def _machine(head: dict[str, Any]) -> str:
    return f"{head['cpu']} ({head['cpus']} CPUs), instruction set {head['isa']}"


def _versions(head: dict[str, Any]) -> str:
    versions = {"python": head["python"], "numpy": head["numpy"], **head["versions"]}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _left_out(report: dict[str, Any]) -> list[str]:
    return [
        f"left out: {each['name']}, {each['reason']}" + (f" [{'; '.join(each['cases'])}]" if each["cases"] else "")
        for each in report["left_out"]
    ]


def _peers(lines: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line["results"] if name != "csoftmax"))


def _microseconds(us: float) -> str:
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 1000 else f"{us:,.0f}"
