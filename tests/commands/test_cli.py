"""The command line: what each command prints, writes and returns, once as a user runs it, in a fresh process."""

import contextlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import threadpoolctl
from helpers import ROOT

import csoftmax
from csoftmax.__main__ import main
from csoftmax._bench import cases, compare, cuda, table
from csoftmax._cli import selftest
from csoftmax._cpu import binding
from csoftmax._spec.operations import BY_NAME, OPERATIONS

PNG = b"\x89PNG\r\n\x1a\n"


def command(*arguments, code=0, cwd=ROOT, **environment):
    """Run ``python -m csoftmax …``, which must end with `code`; returns its output, or its errors if that is not 0."""
    done = subprocess.run(
        [sys.executable, "-m", "csoftmax", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


def block(tmp_path, *modules):
    """Return a PYTHONPATH on which these modules cannot be imported."""
    for module in modules:
        (tmp_path / f"{module}.py").write_text(f"raise ImportError('no {module} in this test')")
    return os.pathsep.join([str(tmp_path), str(ROOT)])


@pytest.mark.parametrize("option", ["--cflags", "--libs", "--cmakedir", "--pkgconfigdir"])
def test_build_options_are_one_line(option, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    with pytest.raises(SystemExit, match="0"):
        main([option])
    text = capsys.readouterr().out
    assert text.endswith("\n")
    assert text.count("\n") == 1
    for path in text.replace("-I", "").split():
        assert os.path.exists(path.removeprefix("-Wl,-rpath,"))


def test_info(tmp_path):
    # in another folder than the checkout, whose package would come before the installed one
    found = json.loads(command("info", "--json", cwd=tmp_path))
    expected = json.loads(json.dumps(csoftmax.show_config("dicts")))
    assert found.pop("openmp")["version"] == expected.pop("openmp")["version"]  # this process has loaded more libraries
    assert found.pop("memory")["limit"] == expected.pop("memory")["limit"]  # and may keep memory
    assert found == expected
    page = command("info")
    assert f"csoftmax {csoftmax.__version__}" in page
    assert binding.isa() in page


def test_selftest():
    page = command("selftest")
    assert "none failed" in page
    assert "FAIL" not in page
    for section in ("accuracy, ULP", "threads", "layouts", "masks", "shards"):
        assert f"\n{section}  " in page


@pytest.mark.slow
def test_selftest_as_json_on_another_instruction_set():
    report = json.loads(command("selftest", "--json", CSOFTMAX_ISA="scalar"))
    assert report["ok"]
    assert report["isa"] == "scalar"
    assert {line["section"] for line in report["checks"]} >= {"accuracy, ULP", "threads", "layouts", "masks"}


_softmax = csoftmax.softmax


def three_ulp_off(x, *args, **kwargs):
    y = _softmax(x, *args, **kwargs)
    return y - 3 * np.spacing(y) if y.dtype == np.float32 else y


def wrong_for_threads(x, *args, num_threads=None, **kwargs):
    y = _softmax(x, *args, num_threads=num_threads, **kwargs)
    return np.nextafter(y, y.dtype.type(0)) if num_threads == 3 and y.dtype == np.float64 else y


def wrong_for_fortran(x, *args, **kwargs):
    y = _softmax(x, *args, **kwargs)
    return y if x.flags.c_contiguous or y.dtype != np.float32 else np.nextafter(y, np.float32(0))


def masked_is_tiny(x, *args, where=None, **kwargs):
    y = _softmax(x, *args, where=where, **kwargs)
    return y if where is None else np.maximum(y, np.finfo(y.dtype).tiny) if y.dtype == np.float32 else y


def raising(*args, **kwargs):
    raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("section", "broken"),
    [
        ("accuracy, ULP", three_ulp_off),
        pytest.param("threads", wrong_for_threads, marks=pytest.mark.slow),
        ("layouts", wrong_for_fortran),
        ("masks", masked_is_tiny),
        ("special values", raising),
        ("shards", three_ulp_off),
    ],
)
def test_selftest_finds_what_is_broken(section, broken, monkeypatch, capsys):
    monkeypatch.setattr(selftest, "SECTIONS", {section: selftest.SECTIONS[section]})  # test_selftest: it passes
    monkeypatch.setattr(selftest, "SIZES", (3, 17, 131))
    monkeypatch.setattr(csoftmax, "softmax", broken)
    assert main(["selftest"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_selftest_restores_the_instruction_set(monkeypatch):
    before = binding.isa()
    for lines in (selftest.instruction_sets(), selftest.check("instruction sets")):
        monkeypatch.setattr(csoftmax, "softmax", raising)
        with contextlib.suppress(RuntimeError):
            list(lines)
        assert binding.isa() == before


def test_bench(tmp_path):
    picture = tmp_path / "roofline.png"
    shapes = ["--shapes", "2x10,3x100,2x3x4", "--rounds", "2", "--peers", "scipy,jax"]
    report = json.loads(command("bench", *shapes, "--fresh", "--json", "--plot", str(picture)))
    assert picture.read_bytes().startswith(PNG)
    counts = report["header"]["threads"]
    assert len(report["cases"]) == 3 * 2 * len(counts)
    for line in report["cases"]:
        assert {"csoftmax", "copy", "scipy"} <= set(line["results"])
        assert line["results"]["csoftmax"]["ratio"] == 1
        assert all(result["us"] > 0 for result in line["results"].values())
    assert {each["peer"] for each in report["summaries"]} >= {"copy", "scipy"}
    assert report["header"]["isa"] == binding.isa()


def test_bench_as_markdown(capsys):
    options = ["--shapes", "2x10,3x100", "--rounds", "1", "--threads", "1", "--peers", "scipy", "--fresh"]
    assert main(["bench", *options, "--markdown"]) == 0
    page = capsys.readouterr().out
    head, *tables = page.split("\n| softmax | µs | copy | scipy |\n| --- | ---: | ---: | ---: |\n")
    assert len(tables) == 2  # with out= and without
    assert head.startswith("`python -m csoftmax bench --shapes 2x10,3x100 ")
    assert re.search(r"^20\d\d-\d\d-\d\d", head, re.M)
    for part in (f"instruction set {binding.isa()}", f"numpy {np.__version__}", "scipy 1.", "1 thread.", "(out=)"):
        assert part in head
    commit = compare.find_commit()
    assert commit is None or f"commit {commit}" in head
    for text in tables:
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
        assert [row[0] for row in rows[:2]] == ["| (2, 10) float32", "| (3, 100) float32"]
        assert rows[2][0].startswith("| geometric mean")
        assert all(float(cell.strip("| ")) > 0 for row in rows[:2] for cell in row[1:])


def test_markdown_joins_thread_counts():
    """A cell has a figure for each number of threads, and a dash for those that a peer has not been measured with."""

    def line(threads, **us):
        results = {name: {"us": each, "ratio": each / us["csoftmax"], "gb_per_s": 1.0} for name, each in us.items()}
        return {"case": "(8, 9)", "mode": "out", "threads": threads, "rounds": 1, "results": results}

    lines = [line(1, csoftmax=1.0, torch=2.0), line(2, csoftmax=0.5, torch=2.0, jax=3.0)]
    found = table.format_markdown_table("softmax", [1, 2], lines, [])
    assert found[0] == "| softmax | µs | torch | jax |"
    assert found[2] == "| (8, 9) | 1.00 / 0.50 | 2.00 / 4.00 | – / 6.00 |"


def test_device_report_as_markdown():
    header = {
        "command": "python -m csoftmax bench",
        "device": "a device",
        "csoftmax": "0",
        "op": "softmax",
        "dtype": "f",
    }
    line = {"shape": [3, 4], "gb_per_s": {"copy": 2.0, "csoftmax": 1.0}, "faster_than": {"copy": 0.5}}
    page = cuda.format_device_report({"header": header, "cases": [line], "summary": {"copy": 0.5}}, markdown=True)
    assert page.startswith(
        "`python -m csoftmax bench`\n\ncsoftmax 0, softmax, f; a device\n\n| shape | GB/s | of copy |"
    )
    assert page.splitlines()[-2:] == ["| (3, 4) | 1 | 0.50 |", "| geometric mean |  | 0.50 |"]


@pytest.mark.parametrize("op", list(binding.OPS))
@pytest.mark.parametrize(
    "dtype", [d if d == "bfloat16" else pytest.param(d, marks=pytest.mark.slow) for d in binding.DTYPES]
)
def test_bench_knows_every_operation(op, dtype, capsys):
    before = csoftmax.get_num_threads()
    options = ["--shapes", "4x5x6", "--axis", "1", "--dtype", dtype, "--rounds", "1", "--threads", "1"]
    assert main(["bench", "--op", op, "--peers", "none", *options]) == 0
    page = capsys.readouterr().out
    assert f"(4, 5, 6) axis 1 {dtype}" in page
    assert csoftmax.get_num_threads() == before


@pytest.mark.slow
@pytest.mark.parametrize("op", cases.RECORDED)
def test_bench_knows_every_record(op, capsys):
    options = ["--op", op, "--shapes", "6x10", "--rounds", "1", "--threads", "1", "--fresh"]
    assert main(["bench", *options, "--peers", "torch"]) == 0
    page = capsys.readouterr().out
    assert page.count("(6, 10) float32") == 2 if BY_NAME[op].has_out else 1
    assert "left out: torch" in page


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        ("cross_entropy", "6x10"),
        ("crf_decode", "3x5x4"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("linear_cross_entropy", "5x4x30"),
                ("topk", "5x40x3"),
                ("topk_softmax", "5x40x3"),
                ("sparsemax", "6x10"),
                ("entmax", "6x10"),
                ("crf", "3x5x4"),
                ("crf_marginals", "3x5x4"),
            )
        ),
    ],
)
def test_bench_knows_losses_and_sparse_softmax(op, shape, capsys):
    options = ["--rounds", "1", "--threads", "1", "--fresh", "--peers", "scipy,torch,torch_fused,entmax,jax"]
    assert main(["bench", "--op", op, "--shapes", shape, *options]) == 0
    page = capsys.readouterr().out
    assert f"({', '.join(shape.split('x'))}) float32" in page
    assert main(["bench", "--op", op, "--shapes", "3", "--rounds", "1", "--peers", "none"]) == 2
    assert f"--shapes 3: the shape of {op} is {cases.LENGTHS[op][0]} x" in capsys.readouterr().err


def blas_threads():
    return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]


def test_bench_limits_the_blas_too(monkeypatch):
    """With --threads 1 the products of linear_cross_entropy have one thread; afterwards the limit is as before."""
    before, seen, real = blas_threads(), [], csoftmax.linear_cross_entropy_with_grad
    monkeypatch.setattr(
        csoftmax, "linear_cross_entropy_with_grad", lambda *a, **o: seen.append(max(blas_threads())) or real(*a, **o)
    )
    options = ["--shapes", "5x4x30", "--rounds", "1", "--threads", "1", "--peers", "none"]
    assert main(["bench", "--op", "linear_cross_entropy", *options]) == 0
    assert set(seen) == {1}
    assert blas_threads() == before
    assert max(before) > 1 or os.cpu_count() == 1, "this machine cannot show the limit"


def test_bench_leaves_out_no_operation():
    """The name of a loss stands for the loss with its gradient."""
    measured = {f"{op}_with_grad" if op in cases.LOSSES else op for op in cases.OPS}
    measured |= {"crf_loss_with_grad"}  # crf
    assert {record.name for record in OPERATIONS} - measured == {*cases.LOSSES, "crf_loss"}
    assert set(cases.ROW_OPS) == set(binding.OPS)


@pytest.mark.parametrize("isa", binding.isa_available())
def test_bench_forces_an_instruction_set(isa):
    options = ["--shapes", "2x10", "--rounds", "1", "--threads", "1", "--peers", "none"]
    assert json.loads(command("bench", *options, "--isa", isa, "--json"))["header"]["isa"] == isa


def test_bench_without_a_peer_says_so(tmp_path):
    page = command(
        *["bench", "--shapes", "2x10", "--rounds", "1", "--threads", "1", "--peers", "torch,scipy"],
        PYTHONPATH=block(tmp_path, "torch", "tqdm"),
        cwd=tmp_path,
    )
    assert "left out: torch, cannot be imported: no torch in this test" in page
    assert "scipy" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "train"),
        (["bench", "--shapes", "10x0"], "must be a positive integer, got '0'"),
        (["bench", "--shapes", "10xa"], "must be a positive integer, got 'a'"),
        (["bench", "--shapes", "10x10", "--axis", "2"], "--axis 2 is out of range for the shape (10, 10)"),
        (["bench", "--op", "topk", "--shapes", "32x100"], "--shapes 32x100: the shape of topk is rows x classes x k"),
        (["bench", "--op", "topk", "--shapes", "32x10x11"], "must be at most the number of classes, 10"),
        (["bench", "--op", "mach", "--shapes", "2x16x100x1x4"], "there must be at least 2 buckets"),
        (["bench", "--shapes", "10x10", "--group", "last"], "--group"),
        (["bench", "--axis", "0"], "belong to --shapes"),
        (["bench", "--peers", "scipi"], "'scipi' is not one of scipy"),
        (["bench", "--op", "softmin"], "softmin"),
        (["bench", "--rounds", "-1"], "-1"),
        (["bench", "--threads", "1,0"], "must be a positive integer, got '0'"),
        (["bench", "--threads", "100000"], "csoftmax uses no more than"),
        (["bench", "--isa", "mmx"], "mmx"),
        (["bench", "--json", "--markdown"], "not allowed with"),
        (["bench", "--plot", "picture.txt"], "must end in .png"),
        (["bench", "--plot", "no/such/folder/a.png"], "there is no folder"),
        (["demo", "--output", "no/such/folder/a.html"], "there is no folder"),
    ],
)
def test_errors(arguments, says, capsys):
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert says in capsys.readouterr().err


def test_reader_that_stops_early():
    done = subprocess.run(
        f"{sys.executable} -m csoftmax info --json | head -c 1", shell=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr
