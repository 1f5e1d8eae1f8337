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
