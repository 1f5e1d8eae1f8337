"""Faults that users of the command line have met: each is refused in one line, or gives what the table holds."""

import errno
import json
import sys

import pytest

pytest.importorskip("safetensors", reason="the learn extra has it; no wheel for a free-threaded CPython")
pa = pytest.importorskip("pyarrow", reason="the cli extra has it")
parquet = pytest.importorskip("pyarrow.parquet")

from commands.tables import BASE, ROWS, N, T, U, V, refuse, run, write, write_rows  # noqa: E402

from csoftmax._cli.tables.opening import parse_bytes  # noqa: E402


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("a.csv", BASE)


def fit(name, *options, target="t"):
    return run("fit", name, "--target", target, *options)


def test_no_thread_holds_the_bytes_of_a_table_after_it_is_read():
    """A thread that lets go of them while the interpreter exits aborts the process."""
    import pyarrow.csv

    held = []
    for _ in range(20):
        data = bytearray(BASE.encode())
        parse_bytes(pyarrow.csv.read_csv, memoryview(data))
        try:
            data.append(0)  # refused while something has a view of the bytes
        except BufferError:
            held.append(data)
    assert not held


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed" in refuse("fit", "-", "--target", "t")


def test_standard_output_that_is_closed(monkeypatch, capsys):
    from csoftmax.__main__ import main

    monkeypatch.setattr(sys, "stdout", None)
    assert main(["fit", "a.csv", "--target", "t", "-q"]) == 2
    assert "standard output is closed" in capsys.readouterr().err


def test_a_full_disk(monkeypatch, capsys):
    from csoftmax.__main__ import main

    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

        def fileno(self):
            raise OSError("there is no file")

    fit("a.csv", "-q")
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["predict", "model.safetensors", "a.csv"]) == 2
    assert capsys.readouterr().err.endswith("csoftmax predict: cannot write the result: No space left on device\n")


def test_ids_in_a_column_called_label():
    write_rows("ids.csv", "label,u,v,t", [f"n{i % 50}" for i in range(N)], U, V, T)
    fit("ids.csv", "--id", "label")
    out, err = run("predict", "model.safetensors", "ids.csv", "--json")
    first = json.loads(out.splitlines()[0])
    assert first["id"] == "n0"
    assert first["label"] in "abc"
    assert "the column of ids, 'label', is called 'id'" in err
    out, _ = run("predict", "model.safetensors", "ids.csv")
    assert out.startswith("id,label,probability\n")


def test_true_is_no_label_of_numbers():
    write_rows("numbers.csv", "u,v,t", U, V, ["abc".index(t) + 1 for t in T])
    fit("numbers.csv")
    write("true.csv", "u,v,t\n1,2,True\n1,1,2\n")
    assert "unknown label 'True'" in refuse("evaluate", "model.safetensors", "true.csv")
    write_rows("bits.csv", "u,v,t", U, V, [int(t > "a") for t in T])
    fit("bits.csv")
    write_rows("words.csv", "u,v,t", U, V, [t > "a" for t in T])
    run("evaluate", "model.safetensors", "words.csv")


def test_a_value_that_arff_does_not_declare():
    head = "@relation r\n@attribute u numeric\n@attribute v numeric\n@attribute t {a, 'b', c}\n@data\n"
    write("good.arff", head + "\n".join(ROWS))
    fit("good.arff")
    write("bad.arff", head + "\n".join([*ROWS[:3], "1,2,d", *ROWS[3:]]))
    line = refuse("fit", "bad.arff", "--target", "t")
    assert "bad.arff, line 9: attribute 't' is 'd', but it is declared with 'a', 'b', 'c'" in line
    write(
        "quoted.arff",
        "@relation r\n@attribute u numeric\n@attribute t {'a, b',\"c\",d\\'e}\n@data\n"
        + "\n".join(f"{u},{('a, b', 'c')[u > 0]!r}" for u in U),
    )
    fit("quoted.arff")


@pytest.mark.parametrize("bad", ["1 3:1 2:1", "1 1:x", "1 -1:2"])
def test_the_line_of_a_fault_of_libsvm(bad):
    rows = [f"{'abc'.index(t)} 1:{u} 2:{v}" for u, v, t in zip(U, V, T)]
    write("a.svm", "\n".join(["# comment", *rows[:20], bad, *rows[20:]]) + "\n")
    assert "a.svm, line 22: this is no row of libsvm" in refuse("fit", "a.svm")
