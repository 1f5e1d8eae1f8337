"""The examples of README.md and of docs/ run, and their links lead somewhere.

A page's Python blocks run one after the other, as a reader would type them: `python` blocks as they are, `pycon` blocks
with the results that they show.  A page that needs PyTorch or JAX is skipped where that is missing; CuPy is the
model of a GPU.
"""

import contextlib
import doctest
import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
WITH_EXAMPLES = [name for name in NAMES if "/reference/" not in name and BLOCK.search((ROOT / name).read_text("utf-8"))]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def find_missing(text):
    """The optional packages that a page imports and this environment lacks."""
    wanted = set(re.findall(r"^(?:import|from) (?:csoftmax\.)?(torch|jax)\b", text, re.M))
    return sorted(name for name in wanted if importlib.util.find_spec(name) is None)


@contextlib.contextmanager
def provide_cupy(folder):
    """The model of CuPy, which runs kernels on the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("the model of a GPU needs g++")
    for place in (ROOT / "tests", ROOT / "tests" / "cuda"):
        if (place / "cuda_model").is_dir() and str(place) not in sys.path:
            sys.path.insert(0, str(place))
    from cuda_model import stand_in

    with stand_in.installed(folder):
        yield


def run_examples(name, text):
    names, runner = {"__name__": "__main__"}, doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for number, (kind, code) in enumerate(BLOCK.findall(text)):
        where = f"{name}, example {number + 1}"
        if kind == "python":
            exec(compile(code, where, "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(code, names, where, name, 0)
            runner.run(test, clear_globs=False)
            assert runner.failures == 0, where
            names.update(test.globs)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name, tmp_path, monkeypatch):
    text = read(name)
    missing = find_missing(text)
    if missing:
        pytest.skip(f"{name} needs {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    with provide_cupy(tmp_path) if re.search(r"^import cupy", text, re.M) else contextlib.nullcontext():
        run_examples(name, text)


@pytest.mark.parametrize("name", NAMES)
def test_links(name):
    """Every relative link is a file, and every anchor a heading of it."""
    wrong = []
    for link in LINK.findall(re.sub(r"```.*?```", "", read(name), flags=re.S)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists():
            wrong.append(link)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            if anchor not in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}:
                wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("name", [name for name in NAMES if "/reference/" not in name])
def test_paths(name):
    """Files that a page names from the root of the checkout exist; `f` and NAME stand for new ones, lib/ is built."""
    paths = re.findall(r"`((?:src_c|csoftmax|tests|docs|asv_bench|examples)/[\w./]+)", read(name))
    stand_ins = re.compile(r"/(test_f|f|NAME)(\.|/|$)|^csoftmax/lib/")
    assert not sorted({p for p in paths if not stand_ins.search(p) and not (ROOT / p.rstrip(".")).exists()})


def test_readme_commands():
    """The first command installs and shows the main job, the second runs the tests: one build serves both."""
    commands = re.findall(r"^```sh\n(.*?)^```", read("README.md"), re.M | re.S)
    assert commands[0].strip() == "pip install -e '.[learn,test]' && python -m csoftmax demo"
    assert commands[1].strip() == "pytest"


def find_rows(name, columns):
    """The cells of all tables of a page whose rows have that many columns."""
    rows = [line.strip("| ").split(" | ") for line in read(name).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows if len(row) == columns]


def test_readme_speed_is_that_of_the_page():
    """Every figure of README's table is in docs/numbers/speed.md, measured with its command on its commit."""
    page = read("docs/numbers/speed.md")
    known = {row[0].removesuffix(" float32"): [row[1], *row[4:]] for row in find_rows("docs/numbers/speed.md", 7)}
    rows = [row for row in find_rows("README.md", 5) if row[0].startswith("(")]
    assert len(rows) == 6
    for shape, *figures in rows:
        assert known[shape] == figures, shape
    command, commit = re.search(
        r"`(python -m csoftmax bench --threads [^`]*)`[^`]*commit (\w+)", read("README.md")
    ).groups()
    assert f"{command} --markdown" in page
    assert f"commit {commit}" in page
    (mean,) = re.findall(r"PyTorch\ntakes ([\d.]+) times as long \(geometric mean", read("README.md"))
    measured = float(re.search(r"^\| geometric mean, losses \|  \| ([\d.]+) ", page, re.M)[1])
    assert abs(float(mean) - measured) <= 0.05 + 1e-9
    (lowest,) = re.findall(r"\(([\d.]+) at the lowest, `--op softmax_vjp", read("README.md"))
    part = page[page.index("--op softmax_vjp") :].split("\n## ")[0]
    assert min(float(x) for x in re.findall(r"^\| lowest, .*?\|  \| ([\d.]+) ", part, re.M)) == float(lowest)


def test_readme_accuracy_is_that_of_the_page():
    known = {row[0]: row[1:] for row in find_rows("ACCURACY.md", 5)}
    rows = [row for row in find_rows("README.md", 5) if row[0] in ("1", "5", "20")]
    assert len(rows) == 3
    for scale, *figures in rows:
        assert known[scale] == [figure.partition(" (")[0] for figure in figures]


def test_readme_example_of_exactness():
    """The logarithm that README names: the correctly rounded value here, and 0 elsewhere."""
    import mpmath
    import numpy as np
    from scipy import special

    import csoftmax

    given = re.search(r"In float32 `log_softmax\(\[16.9, 0\]\)\[0\]` is (-[\d.e-]+), where SciPy", read("README.md"))[1]
    x = np.array([16.9, 0], np.float32)
    assert str(csoftmax.log_softmax(x)[0]) == given
    assert np.float32(-mpmath.log1p(mpmath.exp(-float(x[0])))) == np.float32(given)
    assert special.log_softmax(x)[0] == 0
    if importlib.util.find_spec("torch"):
        import torch

        assert torch.log_softmax(torch.from_numpy(x), 0)[0] == 0


def test_readme_describes_the_demo():
    """README speaks of the parts that the demo's own description has."""
    from csoftmax._cli import demo

    text = " ".join(read("README.md").split())
    for part in ("1,797 real images", "class weights", "on the same problem", "calibrates it on images of their own"):
        assert part in text
    for part in ("1,797 images", "class weights", "on the same problem", "to calibrate with"):
        assert part in " ".join(demo.__doc__.split())
