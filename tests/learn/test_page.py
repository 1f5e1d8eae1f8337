"""The page of a report: whole, without anything from outside, with the figures of `to_dict`, with any class names."""

import base64
import html.parser
import io
import pickle
import re
import sys
import time
import tomllib
import warnings
from pathlib import Path, PurePath
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_digits

from csoftmax import metrics
from csoftmax._learn.page import pictures, tables, take_images
from csoftmax._learn.page.render import _load_templates
from csoftmax._learn.report_text import escape_controls
from csoftmax._runtime.optional import UnusableError
from csoftmax.calibration import TemperatureScaling
from csoftmax.linear_model import SoftmaxRegression

pytest.importorskip("jinja2", reason="the learn extra has it")
pytest.importorskip("matplotlib", reason="the learn extra has it")

HOSTILE = [
    "$",
    "$$",
    "$10_$20",
    "$0-$10",
    "",
    " ",
    "<script>alert(1)</script>",
    "a & b",
    "\"quoted\" 'twice'",
    "two\nlines\ttab",
    "{{ 7 * 7 }} {% raw %}",
    "日本語",
    "مرحبا",
    "\u202eback",
    "𝔘 \U0001f600",
    "x" * 300,
    "</style></title>",
    "\ud800",
]
VOID = {"meta", "br", "img", "col", "link", "input", "hr"}


class Fixed:
    """A classifier with the given probabilities."""

    def __init__(self, p, classes):
        self.p, self.classes_ = np.asarray(p), np.asarray(classes, object)

    def predict_proba(self, X):
        return self.p


def make_report(k=4, n=300, seed=0, names=None, **options):
    """A report of random probabilities that are right more often than not."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    z = rng.normal(size=(n, k)) + 2 * np.eye(k)[y]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    names = [f"class {i}" for i in range(k)] if names is None else names
    return metrics.evaluate(Fixed(p, names), np.zeros((n, 1)), np.array(names, object)[y], **options)


class Reader(html.parser.HTMLParser):
    """Checks that elements are closed in order; collects text, attributes, and the contents of elements by class."""

    def __init__(self, page):
        super().__init__()
        self.open, self.texts, self.attributes, self.cells, self.tags = [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open, f"not closed: {self.open}"
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"{tag} closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)
            if "td" in self.open or "th" in self.open:
                self.cells[-1] += data


def write(report, tmp_path):
    report.to_html(tmp_path / "page.html")
    return (tmp_path / "page.html").read_text()


def read_svgs(page):
    return re.findall(r"<svg.*?</svg>", page, re.S)


SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("k", [1, 2, 30, 31, 1000])
def test_page_of_any_number_of_classes(k, tmp_path):
    report = make_report(k, max(300, 2 * k))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write(report, tmp_path)
        short = report._repr_html_()
    figures, whole, compact = report.to_dict(), Reader(page), Reader(short)
    assert page.startswith("<!DOCTYPE html>")
    assert '<meta name="viewport"' in page
    assert not {"html", "head", "body", "script", "nav"} & set(compact.tags)
    assert "script" not in whole.tags
    for svg in read_svgs(page) + read_svgs(short):
        root = ElementTree.fromstring(svg)
        assert root.tag == f"{SVG}svg"
        assert root.get("aria-label")
    assert len(read_svgs(page)) == (2 if k > tables.MAX_CONFUSION_TABLE else 1)
    for name in figures["classes"]:
        assert name in whole.text
    for row in figures["per_class"]:
        if row["weight"] and row["predicted"]:
            i = next(
                i
                for i, cell in enumerate(whole.cells)
                if cell == row["class"] and whole.cells[i + 1] == f"{row['rows']:,}"
            )
            assert whole.cells[i + 2 : i + 5] == [f"{row[key]:.4f}" for key in ("precision", "recall", "f1")]
    assert len(page.encode()) < 60_000 + 500 * k + 40 * min(k, 30) ** 2


def test_nothing_from_outside(tmp_path):
    report = make_report(names=["http://example.org/x.png", "//x", "url(http://x)", "@import"])
    report.add_images(np.random.default_rng(0).random((300, 12)), (2, 2, 3))
    for page in (write(report, tmp_path), report._repr_html_()):
        reader = Reader(page)
        for tag, name, value in reader.attributes:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
            assert not name.startswith("on")
        style = "".join(re.findall(r"<style>(.*?)</style>", page, re.S))
        assert "url(" not in style
        assert "@import" not in style
        assert not {"script", "link", "iframe", "object", "embed"} & set(reader.tags)


def test_figures_are_those_of_the_report(tmp_path):
    rng = np.random.default_rng(1)
    X, y = load_digits(return_X_y=True)
    model = SoftmaxRegression(temperature=0.5, tol=1e-2, penalty_l2=1e-3).fit(X[:900], y[:900])
    report = metrics.evaluate(model, X[900:], y[900:], sample_weight=rng.random(897))
    figures, reader = report.to_dict(), Reader(write(report, tmp_path))
    first, last = figures["columns"]
    for key, (name, _) in tables.PROBABILITY_FIGURES.items():
        i = next(i for i, cell in enumerate(reader.cells) if cell.startswith(name))
        assert reader.cells[i + 1 : i + 3] == [f"{first[key]:.4f}", f"{last[key]:.4f}"]
        change = round(last[key], 4) - round(first[key], 4)
        word = "no change" if abs(change) < 5e-5 else f"{abs(change):.4f} {'better' if change < 0 else 'worse'}"
        assert reader.cells[i + 3].endswith(word)
    for key, (name, _) in tables.PREDICTION_FIGURES.items():
        i = next(i for i, cell in enumerate(reader.cells) if cell.startswith(name))
        assert reader.cells[i + 1] == f"{figures[key]:.4f}"
    low, high = figures["accuracy_interval"]
    assert f"95 % interval {low:.3f} to {high:.3f}" in reader.text


def test_confusion_matrix(tmp_path):
    report = make_report(3)
    figures = report.to_dict()
    matrix = np.array(figures["confusion_matrix"])
    reader = Reader(write(report, tmp_path))
    begin = reader.cells.index("rows")  # the head over the row totals
    cells = reader.cells[begin + 1 : begin + 1 + 3 * 5]
    for i in range(3):
        share = 100 * matrix[i] / matrix[i].sum()
        assert cells[5 * i] == figures["classes"][i]
        assert cells[5 * i + 1 : 5 * i + 4] == [f"{round(s)}" for s in share]
        assert cells[5 * i + 4] == str(matrix[i].sum())
    off = matrix - np.diag(matrix.diagonal())
    i, j = np.unravel_index(off.argmax(), off.shape)
    assert (
        f"class {i} taken for class {j} : {off[i, j]} rows, {round(100 * off[i, j] / matrix[i].sum())} % of"
        in reader.text
    )


@pytest.mark.parametrize(
    ("share", "text"), [(0.001, "<1"), (0.004999, "<1"), (0.01, "1"), (0.9951, ">99"), (1.0, "100"), (0.5, "50")]
)
def test_percent(share, text):
    assert tables.format_percent(share) == text


def test_classes_that_do_not_occur(tmp_path):
    p = np.eye(4)[[0, 0, 1, 2]] * 0.9 + 0.025
    report = metrics.evaluate(Fixed(p, ["a", "b", "c", "d"]), np.zeros((4, 1)), ["a", "b", "b", "a"])
    reader = Reader(write(report, tmp_path))
    rows = {
        reader.cells[i + 1]: reader.cells[i + 2 : i + 6] for i in range(len(reader.cells) - 24, len(reader.cells), 6)
    }
    assert rows["c"] == ["0", "0.0000", "–", "0.0000"]  # predicted, but absent
    assert rows["d"] == ["0", "–", "–", "–"]  # neither
    assert list(rows)[-2:] == ["c", "d"]  # the worst of those that occur comes first


@pytest.mark.parametrize("names", [HOSTILE, HOSTILE[:3], [*HOSTILE, *(f"k{i}" for i in range(20))], ["$", "$$"]])
@pytest.mark.parametrize("usetex", [False, True])
def test_hostile_names(names, usetex, tmp_path):
    """Every name is there as text; no markup, no formula, no warning, whatever the user's matplotlib is set to."""
    import matplotlib

    with matplotlib.rc_context({"text.usetex": usetex}), warnings.catch_warnings():
        warnings.simplefilter("error")
        report = make_report(len(names), 400, names=names)
        report.title, report.data, report.command = names[-1], names[1], "evaluate '<b>' && rm"
        page, short = write(report, tmp_path), report._repr_html_()
    whole, compact = Reader(page), Reader(short)
    for name in names:
        assert escape_controls(name) in whole.cells
    for reader in (whole, compact):
        assert "script" not in reader.tags
        assert reader.tags.count("b") == 6  # the numbers on the cards alone
        assert "evaluate '<b>' && rm" in reader.text
    for svg in read_svgs(page):
        root = ElementTree.fromstring(svg)
        texts = [element.text for element in root.iter(f"{SVG}text")]
        assert "accuracy" in texts or "rows" in texts  # text, not outlines
        assert not any(name.strip() and name in texts for name in names)  # names never reach matplotlib
    assert "49" not in [cell for cell in whole.cells if "*" in cell]


def test_same_report_same_bytes(tmp_path):
    import matplotlib

    report = make_report()
    twin = pickle.loads(pickle.dumps(report))
    page = write(report, tmp_path)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "svg.hashsalt": "other", "lines.linewidth": 9}):
        assert write(twin, tmp_path) == page
        assert twin._repr_html_() == report._repr_html_()
    assert not re.search(r"20\d\d-\d\d-\d\d", page)
    twin.date = "2026-11-29"
    assert "2026-11-29" in write(twin, tmp_path)


def test_matplotlib_is_left_alone(tmp_path):
    import matplotlib

    report = make_report()
    before = dict(matplotlib.rcParams)
    had_pyplot = "matplotlib.pyplot" in sys.modules
    write(report, tmp_path)
    report._repr_html_()
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot
    if had_pyplot:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_colours_follow_the_page(tmp_path):
    """The pictures have no colour of their own: each is a variable with a light and a dark value."""
    given = TemperatureScaling().fit(np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 4)
    report = make_report(calibrator=given)
    report._history.update(loss=[3, 2, 1.5], validation_loss=[3, 2.5, 2.4])
    page = write(report, tmp_path)
    assert len(read_svgs(page)) == 2
    for svg in read_svgs(page):
        assert not re.search(r"#[0-9a-f]{6}", svg)
        assert not re.search(r"font-family|font:", svg)  # the page's font
        assert re.search(r"font-size: \d", svg)
        assert {"ink", "muted", "blue", "orange"} <= set(re.findall(r"var\(--cs-(\w+)\)", svg))
    style = page[: page.index("</style>")]
    assert "prefers-color-scheme: dark" in style
    for name in pictures.VARIABLES.values():
        assert style.count(f"--cs-{name}:") >= 2
    texts = [
        element.text.strip() for svg in read_svgs(page) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")
    ]
    assert "loss 1.5000" in texts
    assert "validation loss 2.4000" in texts


def test_bins_with_few_rows_are_pale(tmp_path):
    p = np.array([[0.95, 0.05]] * 40 + [[0.65, 0.35]] * 3)
    report = metrics.evaluate(Fixed(p, ["a", "b"]), np.zeros((43, 1)), ["a"] * 38 + ["b"] * 3 + ["a"] * 2)
    root = ElementTree.fromstring(read_svgs(write(report, tmp_path))[0])
    opacities = [
        float(found[1])
        for element in root.iter(f"{SVG}use")
        if (found := re.search(r"fill: var\(--cs-blue\); (?:fill-)?opacity: ([\d.]+)", element.get("style", "")))
    ]
    assert opacities == [pictures.PALE_POINT]


def test_facts(tmp_path):
    report = make_report()
    assert all(report.to_dict()[name] is None for name in ("title", "data", "target", "command", "date", "version"))
    report.title, report.data, report.target, report.model_file = "T1", "rows.csv", "price", "model.safetensors"
    report.command, report.date, report.version = "csoftmax evaluate", "2026-11-29", "0.1"
    reader = Reader(write(report, tmp_path))
    assert (
        "T1 data rows.csv target price model file model.safetensors command csoftmax evaluate date 2026-11-29 "
        "csoftmax 0.1" in reader.text
    )
    twin = pickle.loads(pickle.dumps(report))
    assert twin.to_dict() == report.to_dict()
    assert twin.to_dict()["data"] == "rows.csv"


# Mistakes


def test_mistakes_are_the_surest_ones(tmp_path):
    rng = np.random.default_rng(3)
    p, y = rng.dirichlet(np.ones(3), 200), rng.integers(0, 3, 200)
    weight = (np.arange(200) % 5 > 0).astype(float)
    figures = metrics.evaluate(
        Fixed(p, list("abc")), np.zeros((200, 1)), np.array(list("abc"))[y], sample_weight=weight
    ).to_dict()
    wrong = [(-p[i].max(), i) for i in range(200) if p[i].argmax() != y[i] and weight[i]]
    assert [m["row"] for m in figures["mistakes"]] == [i for _, i in sorted(wrong)[:9]]
    for m in figures["mistakes"]:
        i = m["row"]
        assert (m["true"], m["predicted"], m["confidence"]) == ("abc"[y[i]], "abc"[p[i].argmax()], p[i].max())


def decode(url):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array, sparse.csc_matrix, "frame", "integers", "nan"])
def test_images(form, tmp_path):
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(10), len(y))
    report = metrics.evaluate(Fixed(p, range(10)), X, y)
    given, expected = X, X / 16
    if form == "frame":
        given = pytest.importorskip("pandas").DataFrame(X)
    elif form == "integers":
        given = X.astype(np.uint8)
    elif form == "nan":
        row = report.to_dict()["mistakes"][0]["row"]
        given, expected = X.copy(), X / 16
        given[row, 3], expected[row, 3] = np.nan, 0
    else:
        given = form(X)
    report.add_images(given, (8, 8))
    page = write(report, tmp_path)
    urls = re.findall(r'src="(data:image/png[^"]*)"', page)
    rows = [m["row"] for m in report.to_dict()["mistakes"]]
    assert len(urls) == len(rows) == 9
    for url, row in zip(urls, rows):
        assert np.array_equal(decode(url), np.round(255 * expected[row]).reshape(8, 8))
    assert len(page.encode()) < 300_000
    assert write(pickle.loads(pickle.dumps(report)), tmp_path) == page


def test_images_in_colour():
    image = decode(take_images(np.array([[0, 1, 2] * 3 + [4] * 3]), (2, 2, 3), 1, [0]).urls[0])
    assert np.array_equal(image, np.array([[[0, 64, 128]] * 2, [[0, 64, 128], [255, 255, 255]]]))


@pytest.mark.parametrize(
    ("X", "shape", "message"),
    [
        (np.zeros((300, 64)), (8, 9), r"shape \(8, 9\) has 72 values, but a row of X has 64"),
        (np.zeros((300, 64)), 8, r"shape must be \(height, width\) or \(height, width, 3\), got 8"),
        (np.zeros((300, 64)), (64,), "shape must be"),
        (np.zeros((300, 64)), (8.5, 8), "shape must be"),
        (np.zeros((300, 64)), (-8, -8), "shape must be"),
        (np.zeros((300, 64)), (4, 4, 4), "shape must be"),
        (np.zeros((300, 64)), (True, 64), "shape must be"),
        (np.zeros((299, 64)), (8, 8), r"300 rows of features, got shape \(299, 64\)"),
        (np.zeros(300), (8, 8), r"got shape \(300,\)"),
    ],
)
def test_images_that_do_not_fit(X, shape, message):
    report = make_report(n=300)
    with pytest.raises(ValueError, match=message):
        report.add_images(X, shape)
    assert report._images is None


def test_pictures_leave_the_prefixes_of_other_svg_alone():
    """`ElementTree.register_namespace` would change how the whole process writes SVG."""
    known = dict(ElementTree._namespace_map)
    picture = pictures.draw_confusion(np.eye(40))
    assert ElementTree._namespace_map == known
    root = ElementTree.fromstring(picture)
    assert {element.tag.partition("}")[0] for element in root.iter()} == {"{" + pictures.SVG}
    assert any(element.get(f"{{{pictures.XLINK}}}href") for element in root.iter())


# Failures


def test_a_failing_template_leaves_the_old_page(tmp_path, monkeypatch):
    report = make_report()
    page = write(report, tmp_path)
    environment = _load_templates()
    monkeypatch.setitem(environment.filters, "name", lambda text: 1 / 0)
    environment.cache.clear()
    try:
        with pytest.raises(ZeroDivisionError):
            report.to_html(tmp_path / "page.html")
        with pytest.raises(ZeroDivisionError):
            report.to_html(tmp_path / "new.html")
    finally:
        monkeypatch.undo()
        environment.cache.clear()
    assert (tmp_path / "page.html").read_text() == page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_missing_packages(missing, tmp_path, monkeypatch):
    report = make_report()
    for name in [name for name in sys.modules if name.partition(".")[0] == missing] or [missing]:
        monkeypatch.setitem(sys.modules, name, None)
    _load_templates.cache_clear()
    with pytest.raises(UnusableError, match=f"this needs {missing}.*pip install 'csoftmax\\[learn\\]'"):
        report.to_html(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
    short = report._repr_html_()
    if missing == "jinja2":
        assert short is None
    else:
        assert "<svg" not in short
        assert f"{report.to_dict()['accuracy']:.4f}" in short


def test_templates_are_in_the_wheel():
    """Every file that the loader finds matches a pattern of the package's data."""
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    patterns = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["setuptools"]["package-data"]["*"]
    names = _load_templates().list_templates()
    assert {"page.html.jinja", "notebook.html.jinja", "page.css"} <= set(names)
    assert all(any(PurePath("templates", name).match(pattern) for pattern in patterns) for name in names)


def test_long_losses_stay_small():
    svg = pictures.draw_loss({"loss": np.geomspace(1, 1e-3, 100_000)})
    assert len(svg) < 40_000
    ElementTree.fromstring(svg)
    for values in ([1.0], [1.0, 1.0], [1e-300, 1e-310], [1e300] * 40, [0.5, 0.4]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ElementTree.fromstring(pictures.draw_loss({"loss": values}))


def test_no_confusion_is_lost_in_blocks():
    share = np.zeros((1000, 1000))
    share[999, 3] = share[17, 500] = 0.2
    blocks = pictures._block_maxima(share, 5)
    assert blocks.shape == (200, 200)
    assert (blocks[199, 0], blocks[3, 100], (blocks > 0).sum()) == (0.2, 0.2, 2)


def find_rules(page, selector):
    """The declarations of a selector, on screens of any width."""
    page = page.replace(".csoftmax-report.csoftmax-report", ".csoftmax-report")
    return " ".join(re.findall(rf"(?m)^\.csoftmax-report {re.escape(selector)} \{{([^}}]*)\}}", page))


def test_long_names_are_cut_to_one_line(tmp_path):
    """A label of the confusion matrix that broke into lines made its row several times as high as wide."""
    page = write(make_report(30, names=[f"a long name of a class, number {i}, and more" for i in range(30)]), tmp_path)
    for rule in ("white-space: nowrap", "overflow: hidden", "text-overflow: ellipsis", "max-width"):
        assert rule in find_rules(page, ".cs-confusion tbody th")
    assert page.count('<th title="a long name of a class, number ') == 60  # beside the lines and over the columns


def test_narrow_screens_need_no_scrolling(tmp_path):
    report = make_report(4, names=["x" * 70 + str(i) for i in range(4)])
    report.title = "a" * 400
    page = write(report, tmp_path)
    assert "flex-wrap: wrap" in find_rules(page, "nav")
    assert "overflow-x" not in find_rules(page, "nav")
    assert "overflow-wrap: anywhere" in find_rules(page, "bdi")  # class names in sentences, without blanks
    assert "-webkit-line-clamp: 3" in find_rules(page, "h1")
    assert f'<h1 title="{"a" * 400}">' in page


@pytest.mark.slow
def test_a_page_of_many_classes_takes_seconds(tmp_path):
    begin = time.process_time()
    page = write(make_report(3000, 9000), tmp_path)
    assert time.process_time() - begin < 12  # three times as much if scikit-learn draws each ROC curve
    assert len(page) < 1_500_000
