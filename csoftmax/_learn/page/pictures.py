"""The pictures of the page: matplotlib's SVG, made ready to stand inside HTML and to follow its colours.

Class names never come here: matplotlib would read `$10_$20` as a formula and lacks the letters of many scripts, so that
names are HTML text beside the pictures. The text of the pictures stays text, in the fonts of the page.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ..._runtime.optional import load, new_figure
from ..reliability import FEW_ROWS

if TYPE_CHECKING:
    from ..display import ReliabilityDisplay

PALE_POINT, PALE_INTERVAL = 0.4, 0.2  # opacity of these bins
MAX_POINTS = 400  # of a loss curve, so that a page stays small after many iterations
LONG_RUN = 30  # from this many iterations on, their axis is logarithmic: most of the loss goes in the first ones
MAX_CELLS = 200  # side of the picture of a confusion matrix; a larger one is divided into blocks
FAINTEST = 0.25  # opacity of a cell with few rows
LABEL_GAP = 0.07  # distance of two labels beside a loss curve, as a share of the height

# Each colour is a role of the style sheet, which has a light and a dark palette. matplotlib draws with a stand-in, a
# colour that is used for nothing else, and the stand-in is replaced in the SVG.
INK, MUTED, GRID, AFTER, BEFORE = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", AFTER: "blue", BEFORE: "orange"}
BLUE, RED = (61, 130, 196), (214, 88, 56)  # in the picture of a confusion matrix, on both backgrounds

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "csoftmax",
    "svg.image_inline": True,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.use_mathtext": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
}

_matplotlib_settings = threading.Lock()


def draw_picture(label: str, draw: Callable[[Any], None], width: float, height: float) -> str:
    """Fill a figure and return it as an SVG element.

    The settings of matplotlib belong to the whole process. They are set for the time of drawing, by one thread at a
    time, and set back; whatever the user has chosen, LaTeX for all text for example, does not count here.
    """
    new_figure("learn", 1, 1)  # reports a missing matplotlib
    context = load("matplotlib.style", "learn").context
    data = io.StringIO()
    with _matplotlib_settings, context(["default", SETTINGS]):
        figure = new_figure("learn", width, height)
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(data, format="svg", transparent=True, metadata=nothing)
    return _clean_svg(data.getvalue(), label)


SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"


def _clean_svg(text: str, label: str) -> str:
    """The SVG element alone, named for screen readers, with the page's fonts and colours.

    Names of groups go, because several pictures share the page; what is referred to is named by a hash of its content.
    """
    root = ElementTree.fromstring(text)
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'xlink:href="#([^"]+)"', text))
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        if (style := element.get("style")) is not None:
            # the page's font; versions of matplotlib write the font as one property or as several
            style = re.sub(r"font: (?:[\w.]+ )*?([\d.]+px) [^;]*", r"font-size: \1", style)
            style = re.sub(r"font-family: [^;]*;? ?", "", style)
            element.set("style", re.sub(r"#0[1-5]0[1-5]0[1-5]", _use_variable, style))
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    _write_prefixes(root)
    return ElementTree.tostring(root, encoding="unicode")


def _write_prefixes(root: ElementTree.Element) -> None:
    """Name elements and attributes as they are written: `register_namespace` would change the whole process."""
    for element in root.iter():
        element.tag = element.tag.replace(f"{{{SVG}}}", "")
        element.attrib = {key.replace(f"{{{XLINK}}}", "xlink:"): value for key, value in element.attrib.items()}
    root.attrib = {"xmlns": SVG, "xmlns:xlink": XLINK} | root.attrib


def _use_variable(match: re.Match[str]) -> str:
    return f"var(--cs-{VARIABLES[match[0]]})"


def draw_reliability(displays: Sequence[ReliabilityDisplay]) -> str:
    """Accuracy over confidence, all columns in one panel, and below it the number of rows in each bin."""
    colours = (AFTER,) if len(displays) == 1 else (BEFORE, AFTER, *[MUTED] * len(displays))

    def draw(figure: Any) -> None:
        panel, rows = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        panel.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        for i, (display, colour) in enumerate(zip(displays, colours)):
            _draw_curve(panel, display, colour, (i - (len(displays) - 1) / 2) * 0.006)
            _draw_rows(rows, display, colour, i, len(displays))
        panel.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
        panel.set_xticks(np.linspace(0, 1, 6))
        rows.set(xlabel="confidence: largest probability of a row", ylabel="rows")
        rows.yaxis.set_major_locator(load("matplotlib.ticker", "learn").MaxNLocator(2, integer=True))
        rows.yaxis.set_major_formatter("{x:,.0f}")
        rows.grid(axis="x", visible=False)
        figure.align_ylabels()

    return draw_picture("reliability diagram", draw, 4.4, 4.8)


def _draw_curve(axes: Any, display: ReliabilityDisplay, colour: str, shift: float) -> None:
    """The line, and the bins with their intervals; `shift` keeps the intervals of two curves apart."""
    curve = display.curve
    filled = np.isfinite(curve.accuracy)
    x, y, lower, upper, counts = (
        a[filled] for a in (curve.confidence, curve.accuracy, curve.lower, curve.upper, curve.counts)
    )
    if display.smooth_curve is not None:
        axes.plot(*display.smooth_curve[:2], color=colour, linewidth=3, alpha=0.3)
    few, many = counts < FEW_ROWS, counts >= FEW_ROWS
    axes.plot(x[many] + shift, y[many], color=colour, linewidth=1, alpha=0.4)
    for shown, width, point, interval in ((few, 0.9, PALE_POINT, PALE_INTERVAL), (many, 1.5, 1, 1)):
        axes.vlines(x[shown] + shift, lower[shown], upper[shown], color=colour, linewidth=width, alpha=interval)
        axes.plot(x[shown] + shift, y[shown], "o", color=colour, markersize=4.5, alpha=point, markeredgewidth=0)


def _draw_rows(axes: Any, display: ReliabilityDisplay, colour: str, i: int, n: int) -> None:
    """Bars of the rows in each bin; several columns stand side by side."""
    edges, counts = display.curve.edges, display.curve.counts
    widths = np.diff(edges)
    shown = widths > 0  # equal quantiles leave bins without a width
    axes.bar(
        edges[:-1][shown] + widths[shown] * (0.08 + 0.84 * i / n),
        counts[shown],
        widths[shown] * 0.84 / n,
        align="edge",
        color=colour,
        linewidth=0,
    )


def draw_loss(history: Mapping[str, Sequence[float]]) -> str:
    """Losses over iterations, each with its name at its end."""

    def draw(figure: Any) -> None:
        axes = figure.add_subplot()
        colours = (AFTER, BEFORE, *[MUTED] * len(history))
        ends = []
        for (name, values), colour in zip(history.items(), colours):
            y = np.asarray(values, np.float64)
            kept = np.unique(np.geomspace(1, len(y), min(len(y), MAX_POINTS)).round().astype(int))
            kept = kept if len(y) >= LONG_RUN else np.arange(1, len(y) + 1)
            axes.plot(kept, y[kept - 1], color=colour, linewidth=1.8, marker="o" if len(y) < 3 else "", markersize=4)
            ends.append((float(y[-1]), name.replace("_", " "), colour))
        longest = max(map(len, history.values()))
        axes.set(xlabel="iteration or epoch", ylabel="loss", yscale="log")
        if longest >= LONG_RUN:
            axes.set(xscale="log", xlim=(1, longest))
        ticker = load("matplotlib.ticker", "learn")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(ticker.NullFormatter())
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        low, high = axes.get_ylim()
        if high / low < 10:  # too little for the ticks of a logarithmic axis
            axes.set_yscale("linear")
            axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        if longest < LONG_RUN:
            axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        _label_ends(axes, ends)

    return draw_picture("losses during training", draw, 5.4, 2.9)


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write the names beside the ends of their lines, apart from each other."""
    to_height = axes.transData + axes.transAxes.inverted()
    heights = [to_height.transform((axes.get_xlim()[1], value))[1] for value, _, _ in ends]
    previous = -1.0
    for i in np.argsort(heights, kind="stable"):
        previous = max(heights[i], previous + LABEL_GAP)
        axes.annotate(
            f" {ends[i][1]} {_format_loss(ends[i][0])}",
            (1, previous),
            xycoords="axes fraction",
            va="center",
            color=ends[i][2],
        )


def _format_loss(loss: float) -> str:
    """Four decimals, as everywhere on the page, unless that would show nothing or a hundred digits."""
    return f"{loss:.4f}" if loss == 0 or 1e-4 <= abs(loss) < 1e6 else f"{loss:.4g}"


def draw_confusion(matrix: NDArray[Any]) -> str:
    """The confusion matrix of many classes: shares of the rows of a class, and beside them the number of these rows."""
    k = len(matrix)
    total = matrix.sum(axis=1)
    share = np.divide(matrix, total[:, None], out=np.zeros(matrix.shape), where=total[:, None] > 0)
    right = np.eye(k, dtype=bool)
    step = -(-k // MAX_CELLS)
    colours = _colour_cells(
        _block_maxima(np.where(right, share, 0), step), _block_maxima(np.where(right, 0, share), step)
    )
    n = len(colours)

    def draw(figure: Any) -> None:
        axes, bars = figure.subplots(1, 2, sharey=True, width_ratios=(7, 1))
        extent = (0.5, n * step + 0.5, n * step + 0.5, 0.5)
        axes.imshow(colours, extent=extent, interpolation="none", aspect="auto")
        axes.set(xlabel="predicted class, by its number", ylabel="true class, by its number")
        axes.spines[["top", "right"]].set_visible(True)
        axes.grid(visible=False)
        bars.stairs(total, np.arange(k + 1) + 0.5, orientation="horizontal", fill=True, color=MUTED, linewidth=0)
        bars.set(xlabel="rows")
        bars.grid(axis="y", visible=False)
        bars.tick_params(axis="y", length=0)
        bars.xaxis.set_major_locator(load("matplotlib.ticker", "learn").MaxNLocator(1))
        axes.set(xlim=(0.5, k + 0.5), ylim=(k + 0.5, 0.5))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(load("matplotlib.ticker", "learn").FixedLocator(_place_ticks(k)))

    return draw_picture("confusion matrix", draw, 6.2, 5.4)


def _place_ticks(k: int) -> list[int]:
    """About ten round numbers from 1 to k."""
    step = next(s for s in (5, 10, 20, 50, 100, 200, 500, 1000, *(10**e for e in range(4, 12))) if k / s <= 11)
    return [1, *range(step, k + 1, step)]


def _block_maxima(share: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """The largest share in each block of `step` times `step` cells: no confusion is lost in a picture."""
    side = -(-len(share) // step)
    padded = np.zeros((side * step, side * step))
    padded[: len(share), : len(share)] = share
    blocks: NDArray[np.float64] = padded.reshape(side, step, side, step).max(axis=(1, 3))
    return blocks


def _colour_cells(right: NDArray[np.float64], wrong: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Blue for right predictions, red for wrong ones; the root of the share, so that small shares are seen."""
    cells = np.empty((*right.shape, 4), np.uint8)
    cells[..., :3] = np.where((wrong > right)[..., None], RED, BLUE)
    share = np.maximum(right, wrong)
    cells[..., 3] = np.where(share > 0, np.round(255 * (FAINTEST + (1 - FAINTEST) * np.sqrt(share))), 0)
    return cells
