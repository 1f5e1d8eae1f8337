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


def complete(*words):
    """Candidates of bash for the last word, with files as shtab's script finds them."""
    write("completion", command("--print-completion", "bash")[1])
    script = f"""source ./completion
        COMP_WORDS=(csoftmax {" ".join(words)}); COMP_CWORD={len(words)}
        _shtab_csoftmax csoftmax "{words[-1]}" "{words[-2]}"; echo "${{COMPREPLY[@]}}" """
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "a.c"],
        ["fit", "--output", "a.c"],
        ["predict", "m.safetensors", "a.c"],
        ["predict", "a.c"],
        ["evaluate", "--html", "a.c"],
        ["calibrate", "m.safetensors", "a.c"],
        ["bench", "--plot", "a.c"],
        ["demo", "--output", "a.c"],
    ],
)
def test_completion_knows_files(words):
    pytest.importorskip("shtab")
    assert complete(*words) == ["a.csv"]


@pytest.fixture
def both():
    """A table and its model."""
    run("fit", "a.csv", "--target", "t")
    yield
    assert Path("a.csv").read_text() == BASE
    run("predict", "model.safetensors", "a.csv")


@pytest.mark.parametrize("data", ["a.csv", "./a.csv", "link.csv", "hard.csv"])
@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["fit", "DATA", "--target", "t", "-o", "a.csv"], "table"),
        (["calibrate", "model.safetensors", "DATA", "-o", "a.csv"], "table"),
        (["predict", "model.safetensors", "DATA", "-o", "a.csv"], "table"),
        (["predict", "model.safetensors", "DATA", "-o", "model.safetensors"], "model"),
        (["evaluate", "model.safetensors", "DATA", "--html", "a.csv"], "table"),
        (["evaluate", "model.safetensors", "DATA", "--html", "model.safetensors"], "model"),
        (["calibrate", "model.safetensors", "DATA", "-o", "model.safetensors"], "model"),
    ],
)
def test_no_input_is_overwritten(both, arguments, what, data):
    os.symlink("a.csv", "link.csv")
    os.link("a.csv", "hard.csv")
    assert f"it is the {what} that is read" in refuse(*(data if a == "DATA" else a for a in arguments))


def test_standard_input_is_not_overwritten(both):
    done = shell("$c fit - --target t -o a.csv < a.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "it is the table that is read" in done.stderr
    assert shell("$c predict model.safetensors a.csv -o /dev/null").returncode == 0  # a device is no file that is lost
    run("calibrate", "model.safetensors", "a.csv", "--in-place")


def test_a_dash_is_standard_output_or_refused(both):
    assert run("predict", "model.safetensors", "a.csv", "-o", "-")[0] == run("predict", "model.safetensors", "a.csv")[0]
    assert "not standard output" in refuse("fit", "a.csv", "--target", "t", "-o", "-")
    assert "not standard output" in refuse("calibrate", "model.safetensors", "a.csv", "-o", "-")
    assert "not standard output" in refuse("evaluate", "model.safetensors", "a.csv", "--html", "-")
    assert not Path("-").exists()


def test_addresses_folders_and_pipes_are_called_that(both):
    for address in ("http://x.y/a.csv", "s3://bucket/a.csv"):
        assert f"'{address}' is an address, not a file" in refuse("fit", address, "--target", "t")
        assert f"'{address}' is an address, not a file" in refuse("predict", address, "a.csv")
    for name in ("predict", "evaluate", "calibrate"):
        assert "'.' is a folder" in refuse(name, ".", "a.csv")
        assert "'.' is a folder" in refuse(name, "model.safetensors", ".")
    done = shell("$c predict <(cat model.safetensors) a.csv")
    assert done.returncode == 2
    assert "is a pipe or a device" in done.stderr
    assert "not found" not in done.stderr


@pytest.mark.parametrize("package", ["numpy", *(pytest.param(p, marks=pytest.mark.slow) for p in ("scipy", "pyarrow"))])
@pytest.mark.parametrize("start", ["module", "script"])
def test_interruption_while_the_program_is_imported(start, package):
    """Whatever is being imported when Ctrl-C comes, there is one line and the exit code, and no traceback."""
    script = "import sys\nfrom csoftmax.__main__ import main\nsys.exit(main())\n"
    write("csoftmax", script)
    interrupt = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"
    Path("early").mkdir()
    # the package imports the first one, the command the others
    write(f"early/{package}.py", interrupt)
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(["early", str(ROOT)])}
    begin = ["-m", "csoftmax"] if start == "module" else ["csoftmax"]
    arguments = [sys.executable, *begin, "fit", "a.csv", "--target", "t"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 130, done.stderr
    assert done.stderr in ("csoftmax: interrupted\n", "csoftmax fit: interrupted\n")


def test_importing_the_package_leaves_interrupts_alone():
    script = "import signal; before = signal.getsignal(2); import csoftmax; assert signal.getsignal(2) is before"
    write("other.py", script)
    for arguments in (["-c", script], ["other.py"], ["-m", "other"]):
        done = subprocess.run([sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    ignored = "import signal, runpy, sys; signal.signal(2, signal.SIG_IGN); sys.argv = ['csoftmax', 'info']\n"
    ignored += "from csoftmax.__main__ import main; main(['info']); assert signal.getsignal(2) is signal.SIG_IGN"
    done = subprocess.run([sys.executable, "-c", ignored], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_closed_standard_error():
    for option in ("", "-v"):
        done = shell(f"rm -f model.safetensors; $c fit a.csv --target t {option} 2>&-")
        assert done.returncode == 0
        assert Path("model.safetensors").exists()
    for refused in ("fit nothing.csv --target t", "--nothing"):
        done = shell(f"$c {refused} 2>&-")
        assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    "encoding", ["ascii", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cp1252", "iso8859-1"))]
)
def test_labels_that_standard_output_has_no_letters_for(encoding):
    write("b.csv", BASE.replace(",a\n", ",红a\n").replace(",b\n", ",😀\n"))
    run("fit", "b.csv", "--target", "t")
    expected = run("predict", "model.safetensors", "b.csv", "--json")[0]
    assert "红a" in expected
    code = f"PYTHONIOENCODING={encoding} $c"
    done = shell(f"{code} predict model.safetensors b.csv")
    assert (done.returncode, done.stdout) == (2, "")  # escapes would be other labels
    assert done.stderr.count("\n") == 1
    assert f"standard output is written as {encoding}" in done.stderr
    assert "-o" in done.stderr
    done = shell(f"{code} predict model.safetensors b.csv --json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [json.loads(x) for x in expected.splitlines()]
    assert shell(f"{code} predict model.safetensors b.csv -o out.csv").returncode == 0
    assert "红a" in Path("out.csv").read_text("utf-8")
    done = shell(f"{code} evaluate model.safetensors b.csv")
    assert done.returncode == 0, done.stderr
    assert "\\u7ea2a" in done.stdout
