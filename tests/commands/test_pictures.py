"""The style of all pictures, the picture of ``bench --plot``, and the report of ``bench`` on a terminal."""

import io
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

import csoftmax
from csoftmax.__main__ import main
from csoftmax._bench import picture, table, terminal
from csoftmax._runtime.optional import STYLE, picture_style

PACKAGE = Path(csoftmax.__file__).parent

# Machado et al. (2009), severity 1: what red- and green-blind readers see, in linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}
# Ottosson (2020): linear RGB to cone responses, and their cube roots to OKLab, whose distances are those of perception.
TO_CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
TO_LAB = [
    [0.2104542553, 0.793617785, -0.0040720468],
    [1.9779984951, -2.428592205, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.808675766],
]


def make_report(cpu="a CPU", others=0.0, peers=("scipy", "torch"), threads=(1, 2)):
    """A report with figures that tell their places apart."""
    lines = []
    for i, (group, case) in enumerate(
        (("last", "(1, 10) float32"), ("last", "(4096, 1000) float32"), ("axes", "(64, 1000, 32) axis 1 float32"))
    ):
        for count in threads:
            ratios = {"csoftmax": 1.0, "copy": 0.25 + 0.1 * i, "copy, threads": 0.5}
            ratios |= {name: 2.0 ** (i + j) * count for j, name in enumerate(peers)}
            results = {
                name: {"us": 100.0 * ratio, "ratio": ratio, "gb_per_s": 1 / ratio} for name, ratio in ratios.items()
            }
            lines.append(
                {
                    **{"case": case, "group": group, "op": "softmax", "dtype": "float32", "mode": "out"},
                    **{"threads": count, "bytes": 80 * 1000**i, "rounds": 5, "results": results},
                }
            )
    head = {
        **{"date": "2026-11-29T00:00:00+00:00", "command": "python -m csoftmax bench", "op": "softmax", "cpu": cpu},
        **{"cpus": 2, "isa": "scalar", "threads": list(threads), "python": "3", "numpy": "2", "notes": []},
        **{"versions": {"csoftmax": "0", "scipy": "1.17"}, "seconds": 1.0, "other_processes_cpus": others},
    }
    means = [
        {
            **{"what": "usual shapes", "mode": "out", "threads": count, "peer": name},
            "geometric_mean": 2.0,
            "lowest": 0.5,
        }
        for count in threads
        for name in peers
    ]
    return {"header": head, "left_out": [], "cases": lines, "summaries": means}


def linear(color):
    from matplotlib.colors import to_rgb

    c = np.array(to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def read_colors():
    with picture_style("learn"):
        import matplotlib

        return list(dict.fromkeys(each["color"] for each in matplotlib.rcParams["axes.prop_cycle"]))


def test_colors_have_contrast():
    for color in read_colors():
        luminance = linear(color) @ [0.2126, 0.7152, 0.0722]
        assert 1.05 / (luminance + 0.05) >= 3, color  # WCAG 2.2, 1.4.11


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colors_differ_for_every_reader(blindness):
    def see(color):
        cones = np.array(TO_CONES) @ np.clip(np.array(BLINDNESS[blindness]) @ linear(color), 0, 1)
        return np.array(TO_LAB) @ np.cbrt(cones)

    for first, second in itertools.combinations(read_colors(), 2):
        assert np.linalg.norm(see(first) - see(second)) > 0.1, (first, second)


def test_there_is_one_style():
    """It has the name that users and examples write, and leaves the settings of the process as they are."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    with matplotlib.style.context(STYLE):
        assert not matplotlib.rcParams["axes.spines.top"]
    with picture_style("learn"):
        assert not matplotlib.rcParams["axes.spines.top"]
    assert dict(matplotlib.rcParams) == before
    assert list(PACKAGE.glob("**/*.mplstyle")) == [PACKAGE / "style.mplstyle"]


def test_the_users_settings_do_not_reach_a_picture():
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 99}), picture_style("learn"):
        assert not matplotlib.rcParams["text.usetex"]
        assert matplotlib.rcParams["lines.linewidth"] < 9


def test_bench_picture_shows_the_ratios():
    report = make_report()
    with picture_style("bench"):
        figure = picture.make_figure(report)
    for axes, threads in zip(figure.axes, (1, 2), strict=True):
        chosen = [line for line in report["cases"] if line["threads"] == threads]
        marks = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
        assert marks["csoftmax"] == [1, 1]
        for name in ("scipy", "torch"):
            assert marks[name] == [line["results"][name]["ratio"] for line in chosen]
        ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
        assert np.allclose(ends, [line["results"]["copy"]["ratio"] for line in chosen])
        low, high = axes.get_xlim()
        assert low < 0.25
        assert high > max(marks["torch"])
        assert axes.get_title(loc="left").startswith(f"{threads} thread")
        assert axes.xaxis.get_ticklabels()[0].get_text().replace(".", "").isdigit()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["(1, 10)   80 B", "(4096, 1000)   80 kB", "(64, 1000, 32) axis 1   80 MB"]


@pytest.mark.parametrize(
    "options",
    [{}, {"threads": (1,)}, {"peers": ()}, {"peers": ("scipy", "torch", "jax", "entmax", "onnxruntime", "new")}],
)
def test_bench_picture_has_no_text_over_text(options):
    """Title, legend, heads, labels and notes stay within the figure and off one another."""
    with picture_style("bench"):
        figure = picture.make_figure(make_report(others=1.5, **options))
        figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [*figure.texts, *figure.legends[0].get_texts()]
    for axes in figure.axes:
        texts += [axes.title, axes._left_title, *axes.texts, *axes.get_yticklabels(), *axes.get_xticklabels()]
    shown = {text: text.get_window_extent(renderer) for text in texts if text.get_visible() and text.get_text()}
    assert any("not idle" in text.get_text() for text in shown)
    for text, box in shown.items():
        assert box.x0 >= 0 <= box.y0, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1, text
    for (first, one), (second, other) in itertools.combinations(shown.items(), 2):
        assert not one.shrunk(0.95, 0.9).overlaps(other.shrunk(0.95, 0.9)), (first, second)


def test_bench_picture_sets_names_as_text(tmp_path):
    """A dollar in the name of a CPU or in a command is a dollar, and SVG keeps words as words."""
    report = make_report(cpu="CPU $x^2$ (R) <b>")
    report["header"]["command"] = "bench --plot '$a_b$.svg'"
    path = tmp_path / "a.svg"
    picture.draw(report, path)
    text = path.read_text(encoding="utf-8")
    assert "CPU $x^2$ (R) &lt;b&gt;, scalar" in text
    assert "'$a_b$.svg'" in text
    assert "softmax, float32: time of each library" in text
    first = path.read_bytes()
    picture.draw(report, path)
    assert re.sub(rb"<dc:date>.*", b"", path.read_bytes()) == re.sub(rb"<dc:date>.*", b"", first)


def test_ticks_have_room():
    assert picture.choose_ticks(0.4, 12) == [0.5, 1, 2, 5, 10]
    assert picture.choose_ticks(0.1, 1000) == [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000]
    assert picture.choose_ticks(1e-4, 1e7)[:2] == [1e-4, 1e-3]


def test_plot_is_refused_on_a_device(capsys):
    assert main(["bench", "--device", "cuda", "--plot", "a.png"]) == 2
    assert "--plot belongs to --device cpu" in capsys.readouterr().err


def test_text_table_has_heads():
    text = table.format_report(make_report(others=2.0))
    rows = [line.split() for line in text.splitlines() if line.startswith(("shape", "(1, 10)"))]
    assert rows[0] == [
        "shape",
        "csoftmax",
        "GB/s",
        "copy",
        "ratio",
        "copy,",
        "threads",
        "ratio",
        *["scipy", "ratio", "torch", "ratio"],
        "rounds",
    ]
    assert rows[1][-5:] == ["100.0", "1.00", "200.0", "2.00", "5"]
    assert "The machine was not idle" in text


def test_report_on_a_terminal():
    """The words and figures are those of the plain report, whatever the width; ratios have colours."""
    rich = pytest.importorskip("rich.console", reason="the bench extra has it")
    report = make_report(others=2.0)
    report["cases"][0]["results"]["scipy"]["ratio"] = 0.5
    for width in (60, 100, 200):
        file = io.StringIO()
        console = rich.Console(file=file, force_terminal=True, color_system="standard", width=width)
        terminal.show_report(console, report)
        coloured = file.getvalue()
        shown = re.sub(r"\x1b\[[\d;]*m", "", coloured)
        words = {word for line in shown.splitlines() for word in line.split()}
        assert {word for line in table.format_report(report).splitlines() for word in line.split()} <= words
    assert "\x1b[31m 0.50" in coloured
    assert "\x1b[32m 2.00" in coloured
    assert "\x1b[31m 0.25" not in coloured  # a copy is no peer


def test_report_without_a_terminal(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert terminal.make_console() is None


def test_copies_of_small_arrays_have_one_thread(capsys):
    pytest.importorskip("scipy")
    options = ["--shapes", "3x4,600x1000", "--rounds", "1", "--threads", "2", "--peers", "none"]
    if main(["bench", *options]) == 2:
        pytest.skip("one CPU")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("(")]
    assert rows[0][-2] == "-"
    assert float(rows[1][-2]) > 0


def test_pictures_are_packed():
    assert (PACKAGE / "style.mplstyle").is_file()
    assert '"*.mplstyle"' in (ROOT / "pyproject.toml").read_text()
