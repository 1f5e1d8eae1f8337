"""The picture of ``bench --plot``: for each shape, how many times as long as csoftmax every contender takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from .._runtime.optional import load, new_figure, picture_style, save
from .table import IDLE_CPUS

# Colours of the style file (C0, the accent, is csoftmax itself) and markers, so that no peer depends on its colour.
MARKS = {
    "torch": ("C1", "s"),
    "onnxruntime": ("C2", "^"),
    "scipy": ("C3", "o"),
    "jax": ("C4", "D"),
    "entmax": ("#7d8590", "P"),
    "torch_fused": ("#7d8590", "X"),
}
GROUP_NAMES = {"last": "last axis", "axes": "other axes", "half": "other dtypes"}
ROW_INCHES, PANEL_INCHES, LABEL_INCHES = 0.27, 3.5, 2.2
HEAD_INCHES, FOOT_INCHES = 0.42, 0.62  # of the title, and of the notes below
GROUP_GAP = 0.9  # rows between two groups, for the name of the second
# Steps of the ticks in a decade, with the shortest of their distances in decades.
TICK_STEPS = (((1, 2, 5), 0.30), ((1, 3), 0.47), ((1,), 1.0))
TICK_INCHES = 0.3  # least distance of two ticks


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw one panel for each mode and number of threads, one row for each shape."""
    with picture_style("bench"):
        save(make_figure(report), path)


def make_figure(report: dict[str, Any]) -> Any:
    """Return the figure; `picture_style` must hold."""
    head, lines = report["header"], report["cases"]
    panels = list(dict.fromkeys((line["mode"], line["threads"]) for line in lines))
    heights, names = place_rows(lines)
    peers = list(dict.fromkeys(name for line in lines for name in line["results"] if is_peer(name)))
    width = LABEL_INCHES + PANEL_INCHES * len(panels)
    columns = max(2, int(width / 1.6))
    head_inches = HEAD_INCHES + 0.22 * -(-(len(peers) + 2) // columns)
    height = head_inches + FOOT_INCHES + 0.8 + ROW_INCHES * (max(heights.values(), default=0) + 1)
    figure = new_figure("bench", width, height)
    figure.get_layout_engine().set(rect=(0, FOOT_INCHES / height, 1, 1 - (head_inches + FOOT_INCHES) / height))
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    limits = find_limits(lines)
    for axes, (mode, threads) in zip(all_axes, panels):
        chosen = [line for line in lines if (line["mode"], line["threads"]) == (mode, threads)]
        draw_panel(axes, chosen, heights, limits, peers)
        title = f"{threads} thread{'s' * (threads > 1)}" + (", new memory" if mode == "fresh" else "")
        axes.set_title(title, fontsize=10, fontweight="normal")
    label_rows(all_axes[0], lines, heights, names)
    write_around(figure, head, {line["dtype"] for line in lines}, width, height, columns)
    return figure


def write_around(
    figure: Any, head: dict[str, Any], dtypes: set[str], width: float, height: float, columns: int
) -> None:
    """Write title and legend above the panels, and below them how to read the picture and where it was measured."""
    left = 0.1 / width
    dtype = f", {dtypes.pop()}" if len(dtypes) == 1 else ""
    title = f"{head['op']}{dtype}: time of each library / time of csoftmax"
    figure.text(left, 1 - 0.1 / height, title, va="top", fontsize=12, fontweight="bold", parse_math=False)
    by_name = {name: mark for axes in figure.axes for mark, name in zip(*axes.get_legend_handles_labels())}
    labels = [f"{name} {head['versions'][name]}" if name in head["versions"] else name for name in by_name]
    corner = 0, 1 - (HEAD_INCHES - 0.06) / height
    figure.legend(by_name.values(), labels, loc="upper left", bbox_to_anchor=corner, ncols=columns, handletextpad=0.4)
    others = head["other_processes_cpus"]
    busy = f"; not idle: other processes used {others:.1f} CPUs" if others is not None and others > IDLE_CPUS else ""
    notes = (
        "Right of the red line csoftmax is faster. Its times are at the right; a bar is the time of a plain copy.\n"
        f"{head['cpu']}, {head['isa']}, {head['date'][:10]}{busy}\n{head['command']}"
    )
    figure.text(left, 0.08 / height, notes, va="bottom", fontsize=8, color="#57606a", wrap=True, parse_math=False)


def is_peer(name: str) -> bool:
    """Whether a contender is neither csoftmax nor a copy."""
    return name != "csoftmax" and not name.startswith("copy")


def place_rows(lines: Sequence[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the height of each case, downward from 0, and that of the name of each group if there are several."""
    cases = list({line["case"]: line["group"] for line in lines}.items())
    groups = [(group, [case for case, _ in members]) for group, members in groupby(cases, key=lambda each: each[1])]
    heights: dict[str, float] = {}
    names: dict[str, float] = {}
    below = 0.0
    for group, members in groups:
        if len(groups) > 1:
            names[GROUP_NAMES.get(group, group)] = below
            below += GROUP_GAP
        for case in members:
            heights[case] = below
            below += 1
    return heights, names


def find_limits(lines: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Return the ends of the axis of ratios: all contenders, the faster copy, and 1."""
    ratios = [1.0, *(find_copy(line) for line in lines)]
    ratios += [r["ratio"] for line in lines for name, r in line["results"].items() if is_peer(name)]
    return min(ratios) / 1.5, max(ratios) * 1.4


def find_copy(line: dict[str, Any]) -> float:
    """Return the ratio of the faster copy."""
    return float(min(result["ratio"] for name, result in line["results"].items() if name.startswith("copy")))


def draw_panel(
    axes: Any,
    lines: Sequence[dict[str, Any]],
    heights: dict[str, float],
    limits: tuple[float, float],
    peers: Sequence[str],
) -> None:
    """Draw the bar of the copy, the line of csoftmax, and a mark for each peer in every row."""
    places = [heights[line["case"]] for line in lines]
    begin = limits[0]
    axes.axvline(1, color="C0", linewidth=2.5, label="csoftmax")
    axes.barh(places, [find_copy(line) - begin for line in lines], 0.62, begin, color="#dfe3e8", label="plain copy")
    for i, name in enumerate(peers):
        color, marker = MARKS.get(name, ("#57606a", "h"))
        chosen = [line for line in lines if name in line["results"]]
        # slightly apart, so that equal figures do not hide each other
        rows = [heights[line["case"]] + 0.16 * (i - (len(peers) - 1) / 2) for line in chosen]
        ratios = [line["results"][name]["ratio"] for line in chosen]
        axes.plot(ratios, rows, marker, color=color, markeredgecolor="white", markeredgewidth=0.7, label=name)
    for line, place in zip(lines, places):
        time = format_time(line["results"]["csoftmax"]["us"])
        axes.text(1.01, place, time, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color="C0")
    ticker = load("matplotlib.ticker", "bench")
    axes.set(xscale="log", xlim=limits)
    axes.xaxis.set_major_locator(ticker.FixedLocator(choose_ticks(*limits)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_ylim(max(heights.values()) + 0.7, -0.9)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def choose_ticks(low: float, high: float) -> list[float]:
    """Return ticks between the limits, as many as there is room for: 1, 2, 5, … or 1, 3, … or powers of ten."""
    decade_inches = PANEL_INCHES / math.log10(high / low)
    steps = next((steps for steps, decades in TICK_STEPS if decades * decade_inches >= TICK_INCHES), (1,))
    ticks = [float(f"{step}e{power}") for power in range(-9, 10) for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def label_rows(axes: Any, lines: Sequence[dict[str, Any]], heights: dict[str, float], names: dict[str, float]) -> None:
    """Write the shapes beside the rows, and above each group its name."""
    sizes = {line["case"]: format_bytes(line["bytes"]) for line in lines}
    dtypes = {line["dtype"] for line in lines}
    common = f" {dtypes.pop()}" if len(dtypes) == 1 else ""  # it is in the title
    labels = [f"{case.replace(common, '')}   {sizes[case]}" for case in heights]
    axes.set_yticks(list(heights.values()), labels, fontsize=8.5)
    for name, height in names.items():
        axes.annotate(
            name,
            (0, height),
            xytext=(-4, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8.5,
            fontweight="bold",
        )


def format_time(us: float) -> str:
    """Format a time in microseconds with three digits and a unit."""
    for unit in ("µs", "ms"):
        if us < 1000:
            return f"{us:.3g} {unit}"
        us /= 1000
    return f"{us:.3g} s"


def format_bytes(nbytes: float) -> str:
    """Format a number of bytes with three digits."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} GB"
