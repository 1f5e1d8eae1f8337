"""The command line as a shell sees it: help, exit codes, completion, options, streams, interruptions."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers import ROOT

pytest.importorskip("safetensors", reason="the learn extra has it; no wheel for a free-threaded CPython")
pytest.importorskip("pyarrow", reason="the cli extra has it")

from commands.tables import BASE, N, command, refuse, run, write

import csoftmax
from csoftmax.__main__ import COMMANDS

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("a.csv", BASE)


def shell(script):
    """Run a script of bash in which $c is the command line."""
    script = script.replace("$c", f'"{sys.executable}" -m csoftmax')
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)


def test_no_command_prints_help():
    code, out, err = command()
    assert code == 0
    assert out.startswith("usage: csoftmax ")
    assert not err
    for name in COMMANDS:
        assert name in out


def test_exit_codes_stand_in_every_help():
    for arguments in ([], *([name] for name in COMMANDS)):
        code, out, _ = command(*arguments, "--help")
        assert code == 0
        words = " ".join(out.split())
        assert "exit codes: 0 done, 1 a check failed, 2 arguments or files cannot be used, 130 interrupted" in words


def test_there_is_a_console_script():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"csoftmax": "csoftmax.__main__:main"}


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_completion(name):
    pytest.importorskip("shtab")
    code, out, _ = command("--print-completion", name)
    assert code == 0
    assert "--keep-index" in out
    assert "csoftmax" in out
    if shutil.which(name):
        assert subprocess.run([name, "-n"], input=out, text=True, capture_output=True).returncode == 0


def test_completion_of_bash_completes():
    pytest.importorskip("shtab")
    write("completion", command("--print-completion", "bash")[1])
    script = """source ./completion
        COMP_WORDS=(csoftmax fit --pen); COMP_CWORD=2; _shtab_csoftmax csoftmax --pen fit; echo "${COMPREPLY[@]}" """
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.strip() == "--penalty-l2"


def test_completion_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'csoftmax[cli]'" in refuse("--print-completion", "bash")


def test_quiet_prints_nothing_but_results():
    assert run("fit", "a.csv", "--target", "t", "--quiet") == ("", "")
    assert run("calibrate", "model.safetensors", "a.csv", "-q") == ("", "")
    assert run("evaluate", "model.safetensors", "a.csv", "-q", "--json")[1] == ""
    out, err = run("predict", "model.safetensors", "a.csv", "-q")
    assert len(out.splitlines()) == N + 1
    assert not err
    assert run("predict", "model.safetensors", "a.csv", "-q", "-o", "out.csv") == ("", "")
    assert command("fit", "a.csv", "--target", "x", "-q")[0] == 2
    assert "no column 'x'" in command("fit", "a.csv", "--target", "x", "-q")[2]


def test_verbose_prints_more():
    write("b.csv", BASE.replace("u,v,t", "u,v,t\n1,2,a"))
    quiet = run("fit", "a.csv", "--target", "t", "--drop", "v")[1]
    assert "--drop" not in quiet
    assert "1 column left out, --drop: 'v'" in run("fit", "a.csv", "--target", "t", "--drop", "v", "-v")[1]
    assert command("fit", "a.csv", "--target", "t", "-v", "-q")[0] == 2


def test_json_everywhere():
    figures = json.loads(run("fit", "a.csv", "--target", "t", "--json")[0])
    assert figures["rows"] == N
    assert figures["model"] == "model.safetensors"
    assert sum(figures["classes"].values()) == N
    figures = json.loads(run("calibrate", "model.safetensors", "a.csv", "--json")[0])
    assert figures["log_loss"] <= figures["log_loss_before"] * (1 + 1e-9)
    assert json.loads(run("evaluate", "model.safetensors", "a.csv", "--json")[0])["rows"] == N
    rows = [json.loads(row) for row in run("predict", "model.safetensors", "a.csv", "--json")[0].splitlines()]
    assert len(rows) == N
    assert set(rows[0]) == {"label", "probability"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--batch-norm"], "--batch-norm belongs to --solver adamw, not to lbfgs"),
        (["--learning-rate", "0.1"], "--learning-rate belongs to --solver adamw"),
        (["--solver", "adamw", "--penalty-l2", "auto"], "--penalty-l2 auto belongs to --solver lbfgs"),
        (["--penalty-l2", "some"], "must be a number or auto, got 'some'"),
        (["--penalty-l2", "-1"], "--penalty-l2"),
        (["--skip", "-1"], "--skip"),
        (["--decimal", ";"], "--decimal"),
        (["--missing", "median"], "--missing"),
        (["-o", "m.npz"], "models are safetensors files, not npz"),
        (["-o", "."], "it is a folder"),
        (["-o", "no/such/m.safetensors"], "there is no folder"),
        (["--target"], "--target"),
    ],
)
def test_options_are_refused_in_one_line(arguments, says):
    target = [] if "--target" in arguments else ["--target", "t"]
    assert says in refuse("fit", "a.csv", *target, *arguments)
    assert not Path("model.safetensors").exists()


def test_the_report_says_where_it_comes_from():
    run("fit", "a.csv", "--target", "t")
    out, err = run("evaluate", "model.safetensors", "a.csv", "--json", "--html", "page.html")
    report = json.loads(out)
    assert report["title"] == "t: model.safetensors on a.csv"
    assert report["command"] == "csoftmax evaluate model.safetensors a.csv --json --html page.html"
    assert (report["data"], report["target"], report["version"]) == ("a.csv", "t", csoftmax.__version__)
    assert "page: page.html" in err
    assert "t: model.safetensors on a.csv" in Path("page.html").read_text()


def test_recalibrate_is_a_column_of_its_own():
    run("fit", "a.csv", "--target", "t")
    run("calibrate", "model.safetensors", "a.csv")
    model = "model.calibrated.safetensors"
    plain, more = (json.loads(run("evaluate", model, "a.csv", "--json", *o)[0]) for o in ([], ["--recalibrate"]))
    assert plain["columns"][0]["name"] == "T = 1"
    assert "as saved" in plain["columns"][1]["name"]
    assert len(more["columns"]) == 2
    assert more["columns"] != plain["columns"]


def test_outputs_are_checked_first():
    run("fit", "a.csv", "--target", "t")
    for arguments in (["evaluate", "--html", "no/such/a.html"], ["predict", "-o", "no/such/a.csv"]):
        name, *rest = arguments
        assert "there is no folder" in refuse(name, "model.safetensors", "missing.csv", *rest)
    assert "there is no folder" in refuse(
        "calibrate", "model.safetensors", "missing.csv", "-o", "no/such/m.safetensors"
    )


def test_numbers_are_plain():
    write("b.csv", BASE.replace("u,v,t", "u,v,t", 1))
    out, err = run("fit", "a.csv", "--target", "t", "--drop", "v")
    assert f"{N} rows, 1 column, 3 classes" in out
    assert "np." not in out + err


def test_a_reader_that_stops_is_quiet():
    run("fit", "a.csv", "--target", "t")
    write("long.csv", "u,v\n" + "1,2\n" * 50_000)
    done = shell("$c predict model.safetensors long.csv | head -1")
    assert done.stdout == "label,probability\n"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_interruption():
    """Ctrl-C while the command waits for its input."""
    arguments = [sys.executable, "-m", "csoftmax", "fit", "-", "--target", "t"]
    child = subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True)
    child.stdin.write("u,v,t\n" * 100_000)  # more than a pipe holds: when it is written, the command reads
    child.stdin.flush()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err == "csoftmax fit: interrupted\n"


def test_progress_on_a_terminal():
    """Epochs are shown on a terminal, and only there."""
    try:
        main_end, terminal = pty.openpty()
    except OSError as error:  # a root of a chroot without /dev/pts
        pytest.skip(f"no terminals here: {error}")
    arguments = [sys.executable, "-m", "csoftmax", "fit", "a.csv", "--target", "t"]
    child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=terminal, env=ENVIRONMENT)
    child.wait(timeout=120)
    os.close(terminal)
    assert "it" in os.read(main_end, 65536).decode()
    os.close(main_end)
    assert "\r" not in shell("$c fit a.csv --target t").stderr
