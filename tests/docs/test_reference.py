"""The pages of docs/reference are what their script writes from the package as it is."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["python", "c", "commands"])
def test_page_is_current(page):
    reference = load_tool("make_reference")
    text = getattr(reference, f"make_{page}")()
    written = (ROOT / "docs" / "reference" / f"{page}.md").read_text(encoding="utf-8")
    assert written == text, "run: python tests/tools/make_reference.py"
