"""The picture of ``bench --plot``: the bandwidth of every contender, with that of a plain copy as the roof."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._runtime.optional import new_figure, save

STYLES = {
    "csoftmax": ("tab:red", "o"),
    "torch": ("tab:orange", "s"),
    "entmax": ("tab:brown", "P"),
    "onnxruntime": ("tab:blue", "^"),
    "jax": ("tab:green", "D"),
    "scipy": ("tab:purple", "v"),
}
# Groups that come first in the picture, before a dotted line.
FIRST_GROUPS = ("last", "given")


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw one panel for each mode and number of threads; shapes are ordered by the bytes that a call must move."""
    head, lines = report["header"], report["cases"]
    lines = sorted(lines, key=lambda line: (line["group"] not in FIRST_GROUPS, line["bytes"]))
    panels = list(dict.fromkeys((line["mode"], line["threads"]) for line in report["cases"]))
    width = max(7.0, 2.5 + 0.7 * len(lines) / len(panels))
    figure = new_figure("bench", width, 2.4 + 2.9 * len(panels))
    all_axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (mode, threads) in zip(all_axes, panels):
        draw_panel(axes, [line for line in lines if (line["mode"], line["threads"]) == (mode, threads)])
        plural = "s" * (threads > 1)
        axes.set_title(f"{threads} thread{plural}, {'out=' if mode == 'out' else 'new memory'}", fontsize="medium")
    figure.suptitle(f"{head['op']} on {head['cpu']}, {head['isa']}", fontsize="large")
    handles, names = all_axes[0].get_legend_handles_labels()
    versions = head["versions"]
    labels = [f"{name} {versions[name]}" if name in versions else name for name in names]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names) if width > 10 else 3, fontsize="small")
    save(figure, path)


def draw_panel(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    """Draw the roof and a marker for each contender at each shape."""
    places = range(len(lines))
    # a step for each shape, as wide as its place
    edges = [place + side for place in places for side in (-0.5, 0.5)]
    roofs = [find_roof(line) for line in lines for _ in range(2)]
    axes.fill_between(edges, roofs, 1e-6, color="0.95")
    axes.plot(edges, roofs, color="0.35", linewidth=1.5, label="plain copy (roof)")
    shown = [name for name in STYLES if any(name in line["results"] for line in lines)]
    for i, name in enumerate(shown):
        color, marker = STYLES[name]
        at = [place for place in places if name in lines[place]["results"]]
        speeds = [lines[place]["results"][name]["gb_per_s"] for place in at]
        # side by side, so that equal figures do not hide each other
        side = 0.16 * (i - (len(shown) - 1) / 2)
        axes.plot([place + side for place in at], speeds, marker, color=color, markersize=6, label=name)
    first = sum(line["group"] in FIRST_GROUPS for line in lines)
    if 0 < first < len(lines):
        axes.axvline(first - 0.5, color="0.5", linestyle=":", linewidth=1)
    speeds = [result["gb_per_s"] for line in lines for result in line["results"].values()]
    axes.set(
        yscale="log",
        ylim=(min(speeds) / 1.5, max(speeds) * 1.6),
        xlim=(-0.5, len(lines) - 0.5),
        ylabel="GB/s, read and written",
    )
    labels = [f"{line['case'].replace(' axis', ', axis')}\n{format_bytes(line['bytes'])}" for line in lines]
    axes.set_xticks(places, labels, fontsize=7, rotation=40, ha="right", rotation_mode="anchor")
    axes.grid(axis="y", color="0.85", linewidth=0.5)
    axes.set_axisbelow(True)


def find_roof(line: dict[str, Any]) -> float:
    """Return the bandwidth of the faster copy, in GB/s."""
    return float(max(result["gb_per_s"] for name, result in line["results"].items() if name.startswith("copy")))


def format_bytes(nbytes: float) -> str:
    """Format a number of bytes with three digits."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} GB"
