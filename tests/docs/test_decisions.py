"""The pages of docs/decisions: entries are complete, paths and citations, in the code too, lead somewhere."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
from helpers import looped

ROOT = Path(__file__).resolve().parents[2]


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


index = load_tool("make_decisions_index")
PAGES = index.read_decisions(ROOT / "docs" / "decisions")
DECISIONS = [decision for _, decisions in PAGES.values() for decision in decisions]
KNOWN = {(decision.area, decision.number) for decision in DECISIONS}
CITATION = re.compile(r"\bdecision\s+([a-z_]+)\s+(\d+)\b", re.I)


def test_index_is_current():
    written = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    assert written == index.make_index(PAGES), "run: python tests/tools/make_decisions_index.py"


@pytest.mark.parametrize("area", PAGES)
def test_numbers_are_consecutive(area):
    numbers = [decision.number for decision in PAGES[area][1]]
    assert numbers == list(range(1, len(numbers) + 1))


@looped("decision", DECISIONS)
def test_entry(decision):
    fields = decision.fields
    assert set(fields) <= set(index.FIELDS)
    assert next(iter(fields)) == "Decision"
    assert list(fields)[-1] == "Code"
    assert {"Figure", "Reason", "Rejected"} & set(fields), "an entry has a figure, a reason, or what was rejected"
    assert all(fields.values())
    if decision.status.startswith("superseded by "):
        *area, number = decision.status.removeprefix("superseded by ").split()
        assert ((area or [decision.area])[0], int(number)) in KNOWN


@looped("decision", DECISIONS)
def test_code_is_there(decision):
    paths = re.findall(r"`([^`]+)`", decision.fields["Code"])
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_citations():
    """Every "decision AREA NUMBER" in a tracked text file is an entry."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        files = [ROOT / name for name in listed.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        files = list(ROOT.glob("*.md"))
        files += [path for folder in ("csoftmax", "src_c", "docs", "tests") for path in (ROOT / folder).rglob("*")]
    wrong = []
    for path in files:
        if (
            path.suffix not in {".py", ".pyx", ".pxi", ".pxd", ".c", ".h", ".cu", ".cuh", ".md", ".sh"}
            or not path.is_file()
        ):
            continue
        for area, number in CITATION.findall(path.read_text(encoding="utf-8")):
            if area in PAGES and (area, int(number)) not in KNOWN:
                wrong.append(f"{path.relative_to(ROOT)}: decision {area} {number}")
    assert not wrong
