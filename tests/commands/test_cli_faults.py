"""Faults that users of the command line have met: each is refused in one line, or gives what the table holds."""

import errno
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="the learn extra has it; no wheel for a free-threaded CPython")
pa = pytest.importorskip("pyarrow", reason="the cli extra has it")
parquet = pytest.importorskip("pyarrow.parquet")

from commands.tables import BASE, ROWS, N, T, U, V, command, refuse, run, write, write_rows  # noqa: E402

from csoftmax._cli.messages import Messages  # noqa: E402
from csoftmax._cli.tables import dialect, reading  # noqa: E402
from csoftmax._cli.tables.opening import RELEASE_SECONDS, parse_bytes  # noqa: E402
from csoftmax._cli.tables.raw import parse_number  # noqa: E402


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


def test_a_loss_that_is_no_number_is_null_in_json():
    out, err = fit("a.csv", "--solver", "adamw", "--learning-rate", "1e30", "--json")
    assert json.loads(out, parse_constant=lambda name: pytest.fail(name))["loss"] is None
    assert "adamw has diverged" in err


def test_refusals_after_the_table_is_read_are_one_line():
    assert "--seed" in refuse("fit", "a.csv", "--target", "t", "--seed", "-1")
    fit("a.csv")
    run("calibrate", "model.safetensors", "a.csv", "--method", "vector")
    assert "has a calibrator" in refuse("evaluate", "model.calibrated.safetensors", "a.csv", "--recalibrate")
    write("one.csv", "u,v,t\n1,2,a\n")
    assert "--method platt" in refuse("calibrate", "model.safetensors", "one.csv", "--method", "platt")


def test_arguments_that_make_no_model():
    assert "less than 1" in refuse("fit", "a.csv", "--target", "t", "--label-smoothing", "1")
    fit("a.csv")
    assert "the model is a file, not standard input" in refuse("predict", "-", "a.csv")


def test_an_npz_array_of_more_than_two_axes_is_named():
    cube = np.arange(N * 4.0).reshape(N, 2, 2)
    np.savez("cube.npz", X=cube, t=np.array(T))
    assert "'X' (60, 2, 2); reshape it" in refuse("fit", "cube.npz", "--target", "t")
    np.savez("columns.npz", X=cube, w=np.array(U), t=np.array(T), seed=1)
    err = fit("columns.npz")[1]
    assert "left out, more than two axes: 'X' (60, 2, 2), left out, a single value: 'seed'" in err
    np.savez("both.npz", X=cube, F=np.array([U, V]).T, t=np.array(T))
    assert "left out, more than two axes: 'X' (60, 2, 2)" in fit("both.npz")[1]


@pytest.mark.parametrize("cells", [[[1, 2]] * N, [b"\x00"] * N])
def test_a_parquet_column_of_neither_numbers_nor_text_can_be_dropped(cells):
    parquet.write_table(pa.table({"u": U, "v": V, "w": cells, "t": T}), "a.parquet")
    line = refuse("fit", "a.parquet", "--target", "t")
    assert "column 'w' holds" in line
    assert "--drop w" in line
    assert "neither a number nor text" in refuse("fit", "a.parquet", "--target", "w")
    fit("a.parquet", "--drop", "w")
    run("predict", "model.safetensors", "a.parquet")
    assert "neither a number nor text" in refuse("predict", "model.safetensors", "a.parquet", "--id", "w")


def test_parquet_durations_are_seconds():
    spans = pa.array([int(1000 * u) for u in U], pa.duration("ms"))
    parquet.write_table(pa.table({"u": spans, "v": V, "t": T}), "spans.parquet")
    out, err = fit("spans.parquet", "--json")
    assert json.loads(out)["columns"] == 2
    assert "left out" not in err


def swap(number):
    """A number in the notation of German: 1.234,5."""
    return f"{number:,}".translate(str.maketrans(",.", ".,"))


BIG = [round(1000.5 + 3000 * abs(u), 1) for u in U]


@pytest.mark.parametrize(
    ("write_number", "decimal"),
    [(swap, ","), (lambda x: f"{int(x) * 1000:,}", "."), (lambda x: f"{int(x * 7) % 3000:,}", ".")],
)
def test_thousands_between_semicolons(write_number, decimal):
    lines = [f"{write_number(b)};{i % 7};{t}" for i, (b, t) in enumerate(zip(BIG, T))]
    write("a.csv", "u;v;t\n" + "\n".join(lines) + "\n")
    table = reading.read(Path("a.csv"), dialect.Options(), Messages("fit"))
    assert table.decimal == decimal
    expected = BIG if decimal == "," else [int(write_number(b).replace(",", "")) for b in BIG]
    np.testing.assert_array_equal(table.columns[0], expected)


def test_decimal_commas_after_the_first_rows_are_refused():
    lines = [f"{i % 37};{i % 5};{'abc'[i % 3]}" for i in range(600)]
    lines += [f"{i % 37},5;{i % 5};{'abc'[i % 3]}" for i in range(300)]
    write("late.csv", "u;v;t\n" + "\n".join(lines) + "\n")
    line = refuse("fit", "late.csv", "--target", "t")
    assert "late.csv, line 602: column 'u' is '0,5'" in line
    assert "give --decimal ," in line
    fit("late.csv", "--decimal", ",")


@pytest.mark.parametrize(
    ("form", "unit"), [("{} kg", "kg"), ("{} km/h", "km/h"), ("{}%", "%"), ("${}", "$"), ("-${}", "$")]
)
def test_numbers_with_a_unit_are_refused(form, unit):
    write_rows("units.csv", "u,v,t", [form.format(abs(u)) for u in U], V, T)
    line = refuse("fit", "units.csv", "--target", "t")
    assert f"units.csv, line 2: column 'u' is {form.format(abs(U[0]))!r}" in line
    assert f"numbers with {unit!r}" in line
    fit("units.csv", "--drop", "u")


def test_a_few_doses_are_levels():
    write_rows("doses.csv", "u,v,t", [f"{10 * (1 + i % 3)} mg" for i in range(N)], V, T)
    assert "1 column of text one-hot" in fit("doses.csv")[1]


def test_row_names_with_numbers_are_row_names():
    write_rows("named.csv", "u,v,t", [f"s{i:03}" for i in range(N)], V, T)
    assert "left out, row names" in fit("named.csv")[1]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("\u22121.5", -1.5),
        ("1\u202f234", 1234),
        ("1\u00a0234\u00a0567.5", 1234567.5),
        ("1\u202f23", None),
        ("1 234", None),
    ],
)
def test_signs_and_blanks_of_typography(cell, value):
    assert parse_number(cell) == value


def test_a_table_that_is_refused_holds_no_bytes():
    """A column that stops being numbers is read again: each reading would wait for the one before."""
    import pyarrow.csv

    def read(file):
        kinds = pyarrow.csv.ConvertOptions(column_types={"t": pa.float64()})
        return pyarrow.csv.read_csv(file, convert_options=kinds)

    begin = time.monotonic()
    with pytest.raises(pa.ArrowInvalid):
        parse_bytes(read, BASE.encode())
    assert time.monotonic() - begin < RELEASE_SECONDS / 2


def mend(cells, *bad, at=7):
    """Cells of which some are replaced."""
    result = list(cells)
    for i, cell in enumerate(bad):
        result[at + 5 * i] = cell
    return result


M = 240
DAYS = [f"2026-{1 + i // 28 % 12:02}-{1 + i % 28:02}" for i in range(M)]
FAULTY = {
    "all numbers are different": (mend([f"{i * i}.5" for i in range(M)], "oops"), "oops", "numbers"),
    "below a limit": (mend([f"{i * i}.5" for i in range(M)], "<0.5"), "<0.5", "numbers"),
    "a stroke": (mend([i * i for i in range(M)], "-"), "-", "numbers"),
    "two points": (mend([f"{i * i}.5" for i in range(M)], "1.2.3"), "1.2.3", "numbers"),
    "a unit": (mend([f"{i * i}.5" for i in range(M)], "12 kg"), "12 kg", "numbers"),
    "few numbers": (mend([18 + i % 8 for i in range(M)], "oops", "x"), "oops", "numbers"),
    "eighteen numbers, one word often": (mend([18 + i % 18 for i in range(M)], *["unknown"] * 8), "unknown", "numbers"),
    "0 and 1": (mend([i % 2 for i in range(M)], "oops"), "oops", "numbers"),
    "truth": (mend([i % 2 == 0 for i in range(M)], "maybe"), "maybe", "true or false"),
    "days": (mend(DAYS, "soon"), "soon", "dates"),
    "different days": (mend([f"{i % 28 + 1}.{i // 28 + 1}.2026" for i in range(M)], "soon"), "soon", "dates"),
    "days that are none": (mend(DAYS, "2026-13-45"), "2026-13-45", "dates"),
    "limits": ([f"<{1 + i % 8}" if i % 10 == 7 else 3 * i % 97 for i in range(M)], "<8", "numbers"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_few_cells_of_something_else_are_refused(name):
    cells, bad, kind = FAULTY[name]
    write_rows("b.csv", "k,v,t", cells, [i % 7 for i in range(M)], [i % 2 for i in range(M)])
    line = refuse("fit", "b.csv", "--target", "t")
    assert f"b.csv, line 9: column 'k' is {bad!r}, but most of the column is {kind}" in line
    fit("b.csv", "--drop", "k", "-q")


@pytest.mark.parametrize(
    "cells",
    [
        [("2", "3", "4", "5more")[i % 4] for i in range(M)],
        mend([i % 6 for i in range(M)], *["6+"] * 6),
        [("a", "b")[i % 2] for i in range(M)],
        mend(["0"] * M, "see remark", "late"),
        [f"A{i % 90}" if i % 4 else str(100 + i) for i in range(M)],
    ],
)
def test_words_among_numbers_that_are_levels(cells):
    write_rows("b.csv", "k,v,t", cells, [i % 7 for i in range(M)], [i % 2 for i in range(M)])
    assert "1 column of text one-hot" in fit("b.csv")[1]


def test_levels_that_a_file_declares_are_no_faults():
    head = "@relation r\n@attribute k {1,2,3,oops}\n@attribute v numeric\n@attribute t {0,1}\n@data\n"
    cells = mend([1 + i % 3 for i in range(M)], "oops")
    write("b.arff", head + "\n".join(f"{k},{i % 7},{i % 2}" for i, k in enumerate(cells)))
    assert "1 column of text one-hot" in fit("b.arff", "-q")[1] or fit("b.arff")
    numbers = ",".join(map(str, range(30)))
    rows = "\n".join(f"{3 * i % 30},{i % 7},{i % 2}" for i in range(M))
    write("c.arff", head.replace("1,2,3,oops", numbers) + rows)
    fit("c.arff")
    words = pa.array(list(map(str, cells))).dictionary_encode()
    parquet.write_table(
        pa.table({"k": words, "v": [i % 7 for i in range(M)], "t": [i % 2 for i in range(M)]}), "b.parquet"
    )
    fit("b.parquet")


def test_an_excel_column_with_a_word_and_a_title():
    openpyxl = pytest.importorskip("openpyxl")
    pytest.importorskip("python_calamine")
    book = openpyxl.Workbook()
    rows = [[i * i + 0.5, v, t] for i, (v, t) in enumerate(zip(V, T))]
    for row in [["Made by us"], ["k", "v", "t"], *rows]:
        book.active.append(row)
    book.save("a.xlsx")
    assert "1 row skipped (before the table): 'Made by us', header" in fit("a.xlsx")[1]
    book.active.cell(10, 1).value = "n.n."
    book.save("a.xlsx")
    assert "row 10 of sheet 'Sheet': column 'k' is 'n.n.', but most" in refuse("fit", "a.xlsx", "--target", "t")


def test_a_sheet_whose_first_row_has_only_a_label():
    openpyxl = pytest.importorskip("openpyxl")
    pytest.importorskip("python_calamine")
    book = openpyxl.Workbook()
    for row in [[None, None, "a"], *zip(U, V, T)]:
        book.active.append(row)
    book.save("a.xlsx")
    assert f"{N + 1} rows" in fit("a.xlsx", target="2")[0]


def test_no_group_of_thousands_begins_with_0():
    rows = [f"0,{100 + 37 * i % 799};{i % 5};{i % 2}" for i in range(N)]
    write("c.csv", "k;v;t\n" + "\n".join(rows) + "\n")
    table = reading.read(Path("c.csv"), dialect.Options(), Messages("fit"))
    assert table.decimal == ","
    assert np.array_equal(table.columns[0], [(100 + 37 * i % 799) / 1000 for i in range(N)])
    write("c.csv", "k;v;t\n" + "\n".join(row.replace(";", ";1.5;", 1) for row in rows).replace("k;", "k;w;") + "\n")
    write("c.csv", Path("c.csv").read_text().replace("k;v;t", "k;w;v;t"))
    assert "column 'k' is '0,100', with the decimal sign ','" in refuse("fit", "c.csv", "--target", "t")


@pytest.mark.parametrize("numbers", [["1.5", "2.5"], ["0.150", "0.250"], ["1.5", "1.234"]])
def test_points_in_a_table_of_decimal_commas(numbers):
    rows = [f"{numbers[i % 2]};{i % 5},25;{i % 2}" for i in range(N)]
    write("c.csv", "k;v;t\n" + "\n".join(rows) + "\n")
    line = refuse("fit", "c.csv", "--target", "t", "--decimal", ",")
    assert f"column 'k' is {numbers[0]!r}, with the decimal sign '.', but the table is read with ','" in line


@pytest.mark.parametrize("cell", ["7", "0.5", "-1", "yes", "inf"])
def test_a_column_of_truth_takes_no_other_number(cell):
    write_rows("b.csv", "u,k,t", U, [v > 0 for v in V], T)
    fit("b.csv")
    write("c.csv", f"u,k\n1,1\n1,0.0\n1,\n1,true\n1,{cell}\n")
    assert f"line 6: column 'k' is {cell!r}, which is neither true nor" in refuse(
        "predict", "model.safetensors", "c.csv"
    )
    write("c.csv", f"u,k\n1,1\n1,{cell}\n1,0\n")
    assert "line 3: column 'k'" in refuse("predict", "model.safetensors", "c.csv")
    write("c.csv", "u,k\n1,1\n1,0.0\n1,\n1,true\n")
    run("predict", "model.safetensors", "c.csv")


@pytest.mark.parametrize("codes", [("007", "7"), ("7", "007")])
def test_the_exact_number_comes_before_a_code(codes):
    labels = [(*codes, "x")[i % 3] for i in range(N)]
    write_rows("b.csv", "u,k,t", U, labels, labels)
    fit("b.csv")
    write_rows("c.csv", "u,k,t", U, ["7.0"] * N, ["7.0"] * N)
    write_rows("d.csv", "u,k,t", U, ["7"] * N, ["7"] * N)
    reports = [json.loads(run("evaluate", "model.safetensors", name, "--json")[0]) for name in ("c.csv", "d.csv")]
    assert reports[0]["accuracy"] == reports[1]["accuracy"] == 1
    write_rows("b.csv", "u,v,t", U, V, [("007", "07")[i % 2] for i in range(N)])
    fit("b.csv")
    write_rows("c.csv", "u,v,t", U, V, ["7"] * N)
    assert "unknown label '7'" in refuse("evaluate", "model.safetensors", "c.csv")


def test_names_in_single_quotes_above_values_without_quotes():
    rows = [f"{i * 3 % 50} {u} {t}" for i, (u, t) in enumerate(zip(U, T))]
    write("names.data", "'OBS' 'u' 't'\n" + "\n".join(rows) + "\n")
    out, _ = fit("names.data", "--json")
    assert json.loads(out)["columns"] == 2
    write("names.csv", "'OBS','u','t'\n" + "\n".join(rows).replace(" ", ",") + "\n")
    out, _ = fit("names.csv", "--json")
    assert json.loads(out)["columns"] == 2


def test_refusals_name_what_helps():
    write("preamble.csv", "made by,us\n" + BASE)
    assert "line 2 has 't': if it is the header, --skip 1" in refuse("fit", "preamble.csv", "--target", "t")
    write("footer.csv", BASE + BASE.split("\n", 1)[1] + "total\n")
    line = refuse("fit", "footer.csv", "--target", "t")
    assert "1 value, but the header has 3 columns; mend the line, or remove it" in line
    assert "quote" not in line
    line = refuse("fit", "a.csv", "--target", "t", "--encoding", "utf-16")
    assert "it would have no lines; leave out --encoding" in line
    write("open.csv", BASE.replace(",a\n", ',"a\n', 1))
    assert "close it, or remove it" in refuse("fit", "open.csv", "--target", "t")
    np.savez("objects.npz", X=np.array([U, V]).T, t=np.array(T, object))
    assert "array 't'" in refuse("fit", "objects.npz", "--target", "t")


def test_a_column_that_differs_only_in_case_is_named():
    fit("a.csv")
    write("upper.csv", BASE.replace("u,v,t", "U,v,t"))
    assert "did you mean 'U'?" in refuse("predict", "model.safetensors", "upper.csv")


def test_one_row_is_one_row():
    fit("a.csv")
    write("one.csv", "u,v,t\n1,2,a\n")
    out, err = command("calibrate", "model.safetensors", "one.csv")[1:]
    assert "1 rows" not in out + err


def test_a_sheet_whose_first_row_has_two_cells():
    openpyxl = pytest.importorskip("openpyxl")
    pytest.importorskip("python_calamine")
    book = openpyxl.Workbook()
    for row in [["made by", "us"], ["u", "v", "t"], *zip(U, V, T)]:
        book.active.append(row)
    book.save("a.xlsx")
    assert "row 2 has 't': if it is the header, --skip 1" in refuse("fit", "a.xlsx", "--target", "t")
    fit("a.xlsx", "--skip", "1")
