"""The page docs/numbers/speed.md is one that its tool has written; nothing is measured here."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


speed = load_tool("make_speed")


def make_reports():
    """Reports without figures, by the arguments of their benches."""
    return {line: speed.make_blank_report(line) for section in speed.SECTIONS for line in section.benches}


def test_page_is_written_by_the_tool():
    """Its introduction, sections, commands, shapes and means are those that the tool would write now."""
    written = speed.PAGE.read_text(encoding="utf-8")
    assert written.startswith(speed.INTRODUCTION), f"run: {speed.TOOL}"
    quick = speed.QUICK_NOTE in written
    kept = speed.read_kept(written)
    assert speed.read_structure(written.removesuffix(kept)) == speed.make_structure(quick), f"run: {speed.TOOL}"


def test_figures_of_segments():
    """The section that the tool keeps has date, machine and command, and each case of its benchmark."""
    kept = speed.read_kept(speed.PAGE.read_text(encoding="utf-8"))
    assert kept.startswith("\n## Segments\n")
    for name in ("- date: 2", "- machine: ", "- command: `python asv_bench/segments.py --rounds "):
        assert f"\n{name}" in kept, name
    for case in ("sorted, 5", "sorted, zipf, 8 heads", "random ids, 10,000 segments, ids", "equal lengths, 5, dense"):
        assert f"\n| {case} | " in kept, case


def test_structure_names_every_case():
    structure = speed.make_structure()
    assert structure[:2] == ["# Speed", "## softmax"]
    for line in (
        "`python -m csoftmax bench --threads 1,2 --peers torch,onnxruntime,scipy --markdown`",
        "| softmax | µs | copy | copy, threads | torch | onnxruntime | scipy |",
        "| (8, 21, 512, 512) axis 1 float32",
        "| lowest, other axes and dtypes",
        "| (64, 32000, 64) float32 ascending",
        "| entmax | µs | entmax |",
    ):
        assert line in structure


def test_missing_peers_are_named():
    """A peer that cannot be imported is in the head of the page and keeps its column."""
    reports = make_reports()
    for report in reports.values():
        report["header"] |= {
            "date": "2026-11-29T00:00:00+00:00",
            "commit": "abc",
            "cpu": "a CPU",
            "cpus": 2,
            "isa": "scalar",
            "platform": "a system",
            "python": "3",
            "numpy": "2",
            "versions": {"csoftmax": "0"},
            "seconds": 1.0,
            "other_processes_cpus": 0.5,
        }
    sparsemax = next(line for line in reports if "--op sparsemax" in line)
    reports[sparsemax]["left_out"] = [{"name": "entmax", "reason": "cannot be imported: no entmax", "cases": []}]
    softmax = next(iter(reports))
    refusal = {"name": "scipy", "reason": "no such dtype", "cases": ["(3, 4) bfloat16"]}
    reports[softmax]["left_out"] = [refusal]
    page = speed.make_page(reports)
    assert "- not measured: entmax, cannot be imported: no entmax" in page
    assert "| sparsemax | µs | entmax |" in page
    assert "Left out: scipy, no such dtype [(3, 4) bfloat16]." in page
    assert "- date: 2026-11-29, commit abc\n" in page
    assert "do not rely on these figures" in page
