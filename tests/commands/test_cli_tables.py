"""How tables are written: what is detected gives the same model as the plain form, what cannot be read is refused."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

pytest.importorskip("safetensors", reason="the learn extra has it; no wheel for a free-threaded CPython")
pa = pytest.importorskip("pyarrow", reason="the cli extra has it")
pytest.importorskip("pyarrow.parquet")

from commands.tables import BASE, ROWS, N, T, U, V, chain, command, refuse, run, write, write_rows  # noqa: E402

from csoftmax._cli.messages import Messages  # noqa: E402
from csoftmax._cli.tables import dialect, formats, reading  # noqa: E402
from csoftmax._cli.tables.raw import Text, parse_number  # noqa: E402


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


def swap(text):
    """Decimal commas, semicolons between values."""
    return text.replace(",", ";").replace(".", ",")


HEADLESS = "\n".join(ROWS)
QUOTED = "\n".join(f'"{str(u).replace(".", ",")}","{str(v).replace(".", ",")}",{t}' for u, v, t in zip(U, V, T))

# file name, bytes or text, encoding, target, what is said
WRITTEN = [
    ("a.csv", BASE, "utf-8", "t", "separator ',', header in line 1"),
    ("a.CSV", BASE, "utf-8", "t", "header in line 1"),
    ("a.csv.gz", gzip.compress(BASE.encode()), None, "t", "header in line 1"),
    ("A.CSV.BZ2", bz2.compress(BASE.encode()), None, "t", "header in line 1"),
    ("a.txt.xz", lzma.compress(BASE.encode()), None, "t", "header in line 1"),
    ("a.data.zst", zstd(BASE.encode()), None, "t", "header in line 1"),
    ("a.tsv", BASE.replace(",", "\t"), "utf-8", "t", "separator tab"),
    ("a.txt", BASE.replace(",", ";"), "utf-8", "t", "separator ';'"),
    ("pipe.data", BASE.replace(",", "|"), "utf-8", "t", "separator '|'"),
    ("bar.csv", BASE.replace(",", "¦"), "utf-8", "t", "separator '¦'"),
    ("bar1.csv", BASE.replace(",", "¦"), "latin-1", "t", "Windows-1252, separator '¦'"),
    ("blank.data", BASE.replace(",", " "), "utf-8", "t", "separator blanks"),
    ("wide.data", "\n".join(f"  {u:8.2f} {v:9.2f}\t{t}  " for u, v, t in zip(U, V, T)), "utf-8", "2", "no header"),
    ("german.csv", swap(BASE), "utf-8", "t", "decimal comma"),
    ("german1.csv", swap(BASE).replace("u;", "größe;"), "cp1252", "t", "Windows-1252, separator ';', decimal comma"),
    ("quoted.csv", f"u,v,t\n{QUOTED}", "utf-8", "t", "decimal comma"),
    ("crlf.csv", BASE.replace("\n", "\r\n"), "utf-8", "t", "header"),
    ("cr.csv", BASE.replace("\n", "\r"), "utf-8", "t", "header"),
    ("bom.csv", BASE, "utf-8-sig", "t", "byte order mark"),
    ("16.csv", BASE, "utf-16", "t", "UTF-16"),
    ("16le.csv", BASE, "utf-16-le", "t", "UTF-16-LE"),
    ("16be.csv", BASE, "utf-16-be", "t", "UTF-16-BE"),
    ("none.csv", HEADLESS, "utf-8", "2", "no header: columns are numbered from 0"),
    ("blanks.csv", BASE.replace(",", ", "), "utf-8", "t", "header"),
    ("empty_lines.csv", BASE.replace("\n", "\n\n  \n", 20), "utf-8", "t", "header"),
    ("pre.csv", "File: my data;;\nof 2026\n\n" + BASE.replace(",", ";"), "utf-8", "t", "3 lines skipped"),
    ("comments.csv", "# two, values\n% and\n" + BASE, "utf-8", "t", "2 lines skipped"),
    ("sep.csv", "sep=;\n" + BASE.replace(",", ";"), "utf-8", "t", "1 line skipped"),
    ("lines.csv", "\n".join(f'"{line}"' for line in BASE.splitlines()), "utf-8", "t", "lines in quotes"),
    ("r.txt", '"u" "v" "t"\n' + "\n".join(f'"{i}" {u} {v} "{t}"' for i, (u, v, t) in enumerate(zip(U, V, T), 1)),
     "utf-8", "t", "separator blanks"),
    ("ends.csv", BASE.replace("\n", ",\n"), "utf-8", "t", "header"),
    ("ends2.csv", "u,v,t\n" + "".join(f"{row},\n" for row in ROWS), "utf-8", "t", "header"),
    ("ends3.csv", BASE.replace("t\n", "t,\n", 1), "utf-8", "t", "header"),
    ("single.csv", "u,v,t\n" + "\n".join(f"{u},{v},'{t}'" for u, v, t in zip(U, V, T)), "utf-8", "t", "single quotes"),
    ("spaced.csv", "u, v, t\n" + "\n".join(f'{u}, "{v}", "{t}"' for u, v, t in zip(U, V, T)), "utf-8", "t", "header"),
    ("tail.csv", BASE + "\x1a", "utf-8", "t", "header"),
    ("unnamed.csv", ",u,v,,t\n" + "".join(f"r{i},{u},{v},,{t}\n" for i, (u, v, t) in enumerate(zip(U, V, T))),
     "utf-8", "t", "header"),
    ("pandas.csv", ",u,v,t\n" + "".join(f"{i},{row}\n" for i, row in enumerate(ROWS)), "utf-8", "t", "header"),
    ("counts.csv", f"{N},2,a,b,c\n{HEADLESS}", "utf-8", "2", "1 line skipped (60 rows, 2 columns, classes a, b, c)"),
    ("a.arff",
     f"% c\n@RELATION r\n@attribute 'u' NUMERIC\n@attribute v real\n@Attribute t {{a,b,c}}\n@data\n{HEADLESS}",
     "utf-8", "t", "ARFF"),
    ("scale", "\n".join(f"{'abc'.index(t)} 1:{u} 2:{v} # c" for u, v, t in zip(U, V, T)), "utf-8", "label", "libsvm"),
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Predictions of the chain on the plain table."""
    path = tmp_path_factory.mktemp("plain")
    here = os.getcwd()
    os.chdir(path)
    write("a.csv", BASE)
    _, report, rows = chain("a.csv", "t")
    os.chdir(here)
    return report, rows


@pytest.mark.parametrize(
    ("name", "text", "encoding", "target", "says"),
    [pytest.param(*w, id=w[0], marks=[pytest.mark.slow] if i % 3 else []) for i, w in enumerate(WRITTEN)],
)
def test_every_way_of_writing_gives_the_same_model(plain, name, text, encoding, target, says):
    write(name, text, encoding)
    err, report, rows = chain(name, target)
    assert says in err
    assert report["rows"] == N
    assert report["accuracy"] == plain[0]["accuracy"]
    assert [row["probability"] for row in rows] == pytest.approx([row["probability"] for row in plain[1]], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--separator", "|"], BASE.replace(",", "|")),
        (["--separator", "tab"], BASE.replace(",", "\t")),
        (["--separator", "blanks"], BASE.replace(",", "  ")),
        (["--separator", "#"], BASE.replace(",", "#")),
        (["--decimal", ","], swap(BASE)),
        (["--skip", "2"], "x,y,z\n1,2,3\n" + BASE),
        (["--encoding", "utf-16"], BASE.encode("utf-16")),
    ],
)
def test_what_the_user_says_is_followed(plain, options, text):
    write("a.csv", text)
    _, report, rows = chain("a.csv", "t", options=options)
    assert report["accuracy"] == plain[0]["accuracy"]
    assert [row["probability"] for row in rows] == pytest.approx([row["probability"] for row in plain[1]], rel=1e-6)


def test_no_header_is_followed():
    write("a.csv", "x,y,a\n" + "x,y,b\ny,x,a\n" * 30)
    assert chain("a.csv", "2", options=["--no-header"])[1]["rows"] == 61


def test_frames(plain):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"u": U, "v": V, "t": T})
    frame.to_parquet("a.parquet", engine="pyarrow")
    frame.assign(t=frame.t.astype("category")).set_index("u").to_parquet("category.parquet", engine="pyarrow")
    np.savez("a.npz", x=np.c_[U, V], t=T)
    np.savez("columns.npz", u=U, v=V, t=T)
    for name in ("a.parquet", "a.npz", "columns.npz"):
        _, report, rows = chain(name, "t")
        assert report["accuracy"] == plain[0]["accuracy"]
        expected = [row["probability"] for row in plain[1]]
        assert [row["probability"] for row in rows] == pytest.approx(expected, rel=1e-6)
    assert chain("category.parquet", "t")[1]["rows"] == N


def test_excel(plain):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("openpyxl")
    pytest.importorskip("python_calamine")
    frame = pd.DataFrame({"u": U, "v": V, "t": T})
    frame.to_excel("a.xlsx", index=False)
    with pd.ExcelWriter("two.xlsx") as book:
        pd.DataFrame({"note": ["of the author"]}).to_excel(book, sheet_name="about", index=False)
        frame.to_excel(book, sheet_name="data", startrow=3, startcol=2)
    for name, options in (("a.xlsx", []), ("two.xlsx", ["--sheet", "data"])):
        _, report, rows = chain(name, "t", options=options)
        assert report["accuracy"] == plain[0]["accuracy"]
        expected = [row["probability"] for row in plain[1]]
        assert [row["probability"] for row in rows] == pytest.approx(expected, rel=1e-6)
    assert "no sheet 'none'; it has 'about', 'data'" in refuse("fit", "two.xlsx", "--target", "t", "--sheet", "none")
    assert "other sheets, for --sheet: 'data'" in refuse("fit", "two.xlsx", "--target", "t")


def test_arff_of_every_kind():
    rows = "\n".join(
        f"{u if i != 4 else '?'},{'s q' if i == 3 else chr(39) + 'x, y' + chr(39) if i % 2 else 'z'},'it\\'s',{t}"
        for i, (u, t) in enumerate(zip(U, T))
        if i != 3
    )
    head = "@relation 'my data'\n\n@attribute 'a b' numeric % c\n@attribute \"c\" {'x, y',z}\n@attribute s string\n"
    write("a.arff", head.replace(" % c", "") + "@attribute class {a,b,c}\n@data\n% comment\n" + rows)
    err, report, _ = chain("a.arff", "class")
    assert report["rows"] == N - 1
    assert "1 missing value imputed (mean; text: commonest): 'a b' 1" in err
    write("a.csv", 'a b,c,s\n0.5,"x, y",it\'s\n')
    assert "does not know" not in run("predict", "chain.safetensors", "a.csv")[1]


def test_quotes_of_arff():
    """Both signs in one file, and each inside of the other, as SciPy's neighbour liac-arff reads them."""
    _arff = pytest.importorskip("sklearn.externals._arff")
    head = "@relation r\n@attribute n numeric\n@attribute s string\n@attribute t {a,b}\n@data\n"
    cells = ["'x, y'", '"p, q"', "plain", '"it\'s"', "'say \"no\"'", "'it\\\\'s'".replace("\\\\", "\\")]
    text = head + "\n".join(f"{i},{cell},{'ab'[i % 2]}" for i, cell in enumerate(cells))
    expected = [row[1].replace("\\'", "'") for row in _arff.loads(text)["data"]]
    write("a.arff", text)
    table = reading.read(Path("a.arff"), dialect.Options(), Messages("fit"))
    words = table.columns[1]
    assert [words.levels[code] for code in words.codes] == expected


def lines(*changes):
    """The plain table with some of its lines replaced: (number, text) or (number, None) …"""
    text = BASE.splitlines()
    for number, line in changes:
        text[number - 1] = line
    return "\n".join(text) + "\n"


REFUSED = [
    ("ragged.csv", lines((12, "1,2")), "ragged.csv, line 12: 2 values, but the header has 3 columns; mend the line"),
    ("ragged.csv", lines((13, "1,2,a,b")), "line 13: 4 values, but the header has 3 columns"),
    ("ragged.csv", "\n".join([*ROWS[:30], "1,2", *ROWS[30:]]), "line 31: 2 values, but the others have 3 values"),
    ("open.csv", lines((12, '1,2,"a')), "line 12: a quote"),
    ("open.csv", lines((12, '1,2,"a'), (40, '1,2,"b')), "line 12: a quote"),
    ("open.csv", lines((61, '1,2,"a')), "line 61: a quote"),
    ("number.csv", lines((5, "1,oops,a")), "line 5: column 'v' is 'oops', but most of the column is numbers"),
    ("infinite.csv", lines((6, "1,inf,a")), "line 6: column 'v' is inf, which is not a finite number"),
    ("infinite.csv", lines((6, "1,1e999,a")), "line 6: column 'v' is inf"),
    ("label.csv", lines((6, "1,2,")), "line 6: 't' is missing, as in 1 row; --missing drop"),
    ("header.csv", "u,v,w,x\n" + BASE[6:], "line 1: the header has 4 names, but the rows have 3 values"),
    ("none.csv", "u,v,t\n", "has no rows"),
    ("empty.csv", "", "is empty"),
    ("empty.csv", "\n\n \n", "is empty"),
    ("page.csv", "<!DOCTYPE html><html>…", "is HTML or XML, which is no table"),
    ("a.json", '[{"u": 1}]', "is JSON, which is no table"),
    ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "bytes of 0, as binary files have"),
    ("a.csv.gz", gzip.compress(BASE.encode())[:-20], "its gzip data cannot be unpacked"),
    ("a.csv.xz", lzma.compress(BASE.encode())[:-20], "its xz data cannot be unpacked"),
    ("a.csv.bz2", bz2.compress(BASE.encode())[:-20], "its bzip2 data cannot be unpacked"),
    ("a.csv.zst", zstd(BASE.encode())[:-20], "its zstd data cannot be unpacked"),
    ("a.parquet", b"PAR1 nothing", "cannot be read as Parquet"),
    ("a.parquet", BASE, "its bytes are not those of a .parquet file"),
    ("a.npz", b"PK\x03\x04 nothing", "damaged zip archive"),
    ("a.npy", b"\x93NUMPY\x01\x00", "is one NumPy array"),
    ("sparse.arff", "@relation r\n@attribute t {a}\n@data\n{0 a}", "has sparse rows"),
    ("number.arff", "@relation r\n@attribute u real\n@attribute t {a}\n@data\nx,a", "line 5: attribute 'u' is 'x'"),
    ("head.arff", "@relation r\n@attribute\n@data\n1", "line 2: '@attribute' does not declare an attribute"),
    ("values.arff", "@relation r\n@attribute t {a}\n@data\n1,a\n", "line 4: 2 values, but 1 attribute declared"),
    ("bad", "1 1:2 2:3\n" * 30 + "1 x:3\n", "bad, line 31: this is no row of libsvm"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "says"), REFUSED, ids=[f"{r[0]}-{i}" for i, r in enumerate(REFUSED)])
def test_refusals_are_one_line(name, text, says):
    write(name, text)
    assert says in refuse("fit", name, "--target", "t")
    assert not Path("model.safetensors").exists()


def test_other_refusals():
    write("a.csv", BASE)
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.csv", BASE)
    pa.parquet.write_table(pa.table({"u": U, "t": T}), "a.parquet")
    assert "unpack it" in refuse("fit", "a.zip", "--target", "t")
    assert "is a folder" in refuse("fit", ".", "--target", "t")
    assert "no column 'T'; it has 'u', 'v', 't'; did you mean 't'?" in refuse("fit", "a.csv", "--target", "T")
    assert "--target COLUMN is missing" in refuse("fit", "a.csv")
    assert "--no-header" in refuse("fit", "a.csv", "--target", "2")
    assert "--sheet has no meaning" in refuse("fit", "a.csv", "--target", "t", "--sheet", "x")
    assert "--decimal has no meaning for a.parquet" in refuse("fit", "a.parquet", "--target", "t", "--decimal", ",")
    assert "no encoding that Python knows" in refuse("fit", "a.csv", "--target", "t", "--encoding", "klingon")
    assert "must be one character" in refuse("fit", "a.csv", "--target", "t", "--separator", "ab")
    assert "must be one character" in refuse("fit", "a.csv", "--target", "t", "--separator", '"')
    write("latin.csv", BASE.replace("u,", "ü,"), "latin-1")
    says = refuse("fit", "latin.csv", "--target", "t", "--encoding", "utf-8")
    assert "not in the encoding 'utf-8': line 1, byte 0xfc" in says


def test_no_extra_is_one_line(monkeypatch):
    write("a.csv", BASE)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'csoftmax[cli]'" in refuse("fit", "a.csv", "--target", "t")


def test_lines_are_those_of_an_editor():
    """Lines inside quotes, empty lines and lines before the table are counted."""
    write("a.csv", "about,,\n\nu,v,t\n" + '1,2,"a\nb"\n\n' + "\n".join(ROWS) + "\n5,inf,a\n")
    assert f", line {3 + 2 + 1 + N + 1}: column 'v' is inf" in refuse("fit", "a.csv", "--target", "t")


def test_standard_input_and_pipes(plain):
    write("a.csv", BASE)
    shell = 'PYTHONPATH="$2" "$1" -m csoftmax'
    script = f"""set -e
        cat a.csv | {shell} fit - --target t
        {shell} calibrate model.safetensors /dev/stdin <a.csv
        {shell} evaluate model.calibrated.safetensors <(cat a.csv) --json >report.json
        mkfifo fifo; gzip -c a.csv >fifo & {shell} predict model.calibrated.safetensors fifo --json >out.json"""
    done = subprocess.run(["bash", "-c", script, "bash", sys.executable, ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("report.json").read_text())["accuracy"] == plain[0]["accuracy"]
    assert len(Path("out.json").read_text().splitlines()) == N
    assert "standard input: 60 rows, 3 columns" in done.stderr


def test_a_pipe_is_read_once():
    os.mkfifo("fifo")
    writer = threading.Thread(target=write, args=("fifo", BASE))
    writer.start()
    run("fit", "fifo", "--target", "t")
    writer.join(10)
    assert not writer.is_alive()


STAMPS = [
    "2026-01-{:02} 10:00:00", "2026-01-{:02} 10:00", "2026-01-{:02} 10:00:00.5", "2026-01-{:02} 10:00:00+01:00",
    "{:02}.01.2026 10:00:00", "202601{:02} 10:30",
]  # fmt: skip


@pytest.mark.parametrize("separator", [",", ";"])
@pytest.mark.parametrize("form", STAMPS)
def test_a_time_is_no_row_of_libsvm(form, separator):
    for columns in ("{0}{s}{1}{s}{2}", "{1}{s}{2}{s}{0}"):
        rows = [columns.format(form.format(1 + i % 28), u, i % 2, s=separator) for i, u in enumerate(U)]
        write("a.csv", columns.format("time", "u", "t", s=separator) + "\n" + "\n".join(rows) + "\n")
        assert "libsvm" not in run("fit", "a.csv", "--target", "t")[1]
        write("a.csv", "\n".join(rows) + "\n")
        target = columns.format(0, 1, 2, s="")[::-1].replace("0", "")[0]
        assert "libsvm" not in run("fit", "a.csv", "--target", target)[1]


def test_a_separator_that_is_given_decides():
    write("a.txt", "\n".join(f"{i % 3} 1:{u} 2:{v}" for i, (u, v) in enumerate(zip(U, V))) + "\n")
    assert "libsvm" in run("fit", "a.txt")[1]
    assert "separator blanks" in run("fit", "a.txt", "--target", "0", "--separator", "blanks", "--keep-index")[1]


def test_a_target_that_libsvm_does_not_have():
    write("a.svm", "\n".join(f"{i % 3} 1:{u} 2:{v}" for i, (u, v) in enumerate(zip(U, V))) + "\n")
    assert "no column 'colour'; it is libsvm" in refuse("fit", "a.svm", "--target", "colour")
    write_rows("a.csv", "t,1,2", [i % 3 for i in range(N)], U, V)
    run("fit", "a.csv", "--target", "t")
    run("evaluate", "model.safetensors", "a.svm")  # the target is that of the model, not of the user
    assert "no column 'colour'" in refuse("evaluate", "model.safetensors", "a.svm", "--target", "colour")


@pytest.mark.parametrize(
    ("kind", "text"),
    [("HTML", '<table border="1" class="dataframe">\n<tr><td>1</td></tr></table>'), ("HTML", "<div>\n<p>1</p></div>")],
)
def test_a_part_of_a_page_is_html(kind, text):
    write("a.csv", text)
    assert f"is {kind} or XML" in refuse("fit", "a.csv", "--target", "t")


def test_names_between_angle_brackets_are_no_html():
    write_rows("a.csv", "<DATE>,<U>,t", [f"2026.01.{1 + i % 28:02}" for i in range(N)], U, T)
    assert "'<DATE>'" in run("fit", "a.csv", "--target", "t")[1]


@pytest.mark.parametrize("letter", ["ö", "名"])
def test_utf_8_with_a_wrong_byte(letter):
    rows = [f"{u},K{letter}ln,{t}".encode() for u, t in zip(U, T)]
    write("a.csv", b"\n".join([b"u,city,t", *rows[:30], "1,Köln,a".encode("latin-1"), *rows[30:]]) + b"\n")
    line = refuse("fit", "a.csv", "--target", "t")
    assert "line 32, byte 0xf6: this is not UTF-8, as the rest of the text is" in line
    if letter == "ö":
        run("fit", "a.csv", "--target", "t", "--encoding", "cp1252")


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("shift_jis", ("りんご", "みかん")),
        ("shift_jis", ("東京都", "大阪府")),
        ("gb18030", ("苹果", "橘子")),
        ("cp1251", ("яблоко", "груша")),
        ("koi8-r", ("яблоко", "груша")),
        ("euc-kr", ("사과", "귤나무")),
    ],
)
def test_other_encodings_are_no_western_text(encoding, words):
    text = "u,w,t\n" + "".join(f"{u},{words[i % 2]},{t}\n" for i, (u, t) in enumerate(zip(U, T)))
    write("a.csv", text, encoding)
    assert "neither UTF-8 nor Windows-1252; give --encoding" in refuse("fit", "a.csv", "--target", "t")
    table = reading.read(Path("a.csv"), dialect.Options(encoding=encoding), Messages("fit"))
    assert table.columns[1].levels == list(words)


def test_western_letters_are_windows_1252():
    words = ("Köln", "créée", "–––––", "5 €", "‚so‘")
    text = "u,w,t\n" + "".join(f"{u},{words[i % 5]},{t}\n" for i, (u, t) in enumerate(zip(U, T)))
    write("a.csv", text, "cp1252")
    assert "Windows-1252" in run("fit", "a.csv", "--target", "t")[1]


# Detection


def read(text, expected=()):
    write("a.csv", text)
    return reading.read(Path("a.csv"), dialect.Options(), Messages("fit"), expected=expected)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b\n1,2\n", ["a", "b"]),
        ("1,2\n3,4\n", ["0", "1"]),
        ("2019,2020,2021,t\n1.5,2,9,x\n2,4,1,y\n", ["2019", "2020", "2021", "t"]),
        ("age,2021,t\n31,5,x\n40,7,y\n", ["age", "2021", "t"]),
        ("0,1,2\n5,6,9\n1,4,2\n", ["0", "1", "2"]),
        ("x,p\ny,q\nx,q\ny,p\n", ["0", "1"]),
        ("colour,form\nred,round\nblue,round\nred,flat\n", ["colour", "form"]),
        ("?,1.5,b\n2,3,a\n", ["0", "1", "2"]),
        ("a,a,a\n1,2,3\n", ["a", "a.1", "a.2"]),
        ("a,a.1,a\n1,2,3\n", ["a", "a.1", "a.2"]),
        (",a,b,\nx,1,2,3\n", ["column 0", "a", "b", "column 3"]),
        (" a , b\n1,2\n", ["a", "b"]),
        ("#a,b\n1,2\n", ["a", "b"]),
        ("RI,Na,Mg,Type\n1.5,2,3,a\n1.5,?,3,b\n", ["RI", "Na", "Mg", "Type"]),
        ("NA,x,b\nNA,y,a\nNA,x,a\n", ["0", "1", "2"]),
    ],
)
def test_header(text, names):
    assert read(text).names == names


@pytest.mark.parametrize("names", [("0", "1"), ("400", "410"), ("2019", "7")])
def test_a_header_of_numbers_is_that_of_the_model(names):
    write_rows("a.csv", ",".join([*names, "t"]), U, V, T)
    run("fit", "a.csv", "--target", "t")
    write_rows("b.csv", ",".join(names), [int(10 * u) for u in U], [int(10 * v) for v in V])
    assert len(run("predict", "model.safetensors", "b.csv")[0].splitlines()) == N + 1
    write_rows("c.csv", f"other,{names[1]},{names[0]}", T, V, U)
    assert len(run("predict", "model.safetensors", "c.csv")[0].splitlines()) == N + 1


def test_a_header_of_numbers_at_fit():
    write_rows("a.csv", "0,1", [f"{i}.5" for i in range(N)], [i % 2 for i in range(N)])
    assert f"{N} rows" in run("fit", "a.csv", "--target", "1")[0]
    write_rows("a.csv", "500,400,410", [i % 2 for i in range(N)], U, V)
    assert f"{N} rows" in run("fit", "a.csv", "--target", "500")[0]
    write_rows("a.csv", "0,1", [3 * i for i in range(N)], [i % 2 for i in range(N)])
    assert f"{N + 1} rows" in run("fit", "a.csv", "--target", "1")[0]
    assert f"{N} rows" in run("fit", "a.csv", "--target", "1", "--header")[0]
    write("a.csv", "7,1.5,a\n" + "\n".join(ROWS) + "\n")
    assert "--header if the first row holds names" in refuse("fit", "a.csv", "--target", "x")
    assert f"{N} rows" in run("fit", "a.csv", "--target", "a", "--header")[0]
    assert command("fit", "a.csv", "--target", "2", "--header", "--no-header")[0] == 2


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_table_without_header_and_target(place):
    columns = [U, V]
    columns.insert(place, [i % 2 for i in range(N)])
    write("a.csv", "\n".join(",".join(map(str, row)) for row in zip(*columns)) + "\n")
    run("fit", "a.csv", "--target", place)
    write("b.csv", "\n".join(f"{u},{v}" for u, v in zip(U, V)) + "\n")
    out, err = run("predict", "model.safetensors", "b.csv")
    assert out == run("predict", "model.safetensors", "a.csv")[0]
    assert (f"without {place}, the target of fit" in err) == (place < 2)
    refuse("evaluate", "model.safetensors", "b.csv")


@pytest.mark.parametrize("first", [",,a", ",,1", "a,,"])
def test_the_first_row_of_a_table_without_header_is_a_row(first):
    labels = T if "1" not in first else [i % 3 for i in range(N)]
    rows = [f"{t},{u},{v}" if first == "a,," else f"{u},{v},{t}" for u, v, t in zip(U, V, labels)]
    write("a.csv", "\n".join([first, *rows]) + "\n")
    table = reading.read(Path("a.csv"), dialect.Options(), Messages("fit"))
    assert (table.rows, table.has_names) == (N + 1, False)
    write("a.csv", "\n".join(["Report 2026,,", *rows]) + "\n")
    assert reading.read(Path("a.csv"), dialect.Options(), Messages("fit")).rows == N


def test_a_row_that_begins_with_a_per_cent_sign():
    write("a.csv", "".join(f"{('%5', '7%')[i % 2]},{v},{t}\n" for i, (v, t) in enumerate(zip(V, T))))
    table = reading.read(Path("a.csv"), dialect.Options(), Messages("fit"))
    assert (table.rows, table.has_names) == (N, False)


def test_a_name_that_begins_with_a_per_cent_sign():
    write_rows("a.csv", "%fat,v,t", U, V, T)
    table = reading.read(Path("a.csv"), dialect.Options(), Messages("fit"))
    assert table.names == ["%fat", "v", "t"]


def test_a_target_that_only_looks_repeated():
    write_rows("a.csv", "t,t.1,u", T, V, U)
    run("fit", "a.csv", "--target", "t")
    write_rows("a.csv", "t,t,u", T, V, U)
    assert "has the column 't' twice" in refuse("fit", "a.csv", "--target", "t")
    write_rows("a.csv", "u,u,t", V, U, T)
    assert "'u' is there twice: the second is 'u.1'" in run("fit", "a.csv", "--target", "t")[1]


def test_one_row_without_a_header():
    table = read("1,5;2,25;x\n")
    assert [table.columns[0][0], table.columns[1][0], table.columns[2].levels] == [1.5, 2.25, ["x"]]


def test_an_expected_name_makes_a_header():
    assert read("x,p\ny,q\nx,q\ny,p\n", expected=["p"]).names == ["x", "p"]


@pytest.mark.parametrize(
    ("cell", "value"),
    [("1", 1), ("+1.5e3", 1500), (".5", 0.5), ("5.", 5), ("1_5", None), ("0x10", None), ("1,234", 1234),
     ("12,34", None), ("0,150", None), ("nan", None), ("", None), ("1e", None),
     ("--1", None), ("١", None), ("inf", np.inf)],
)  # fmt: skip
def test_numbers(cell, value):
    assert parse_number(cell) == value


@pytest.mark.parametrize(
    ("cell", "value"), [("1,5", 1.5), ("1.234,5", 1234.5), ("1.234", 1234), ("1.5", None), ("0.150", None)]
)
def test_numbers_with_decimal_commas(cell, value):
    assert parse_number(cell, ",") == value


def test_columns_of_every_size_are_as_numpy_reads_them():
    """Against numpy.loadtxt, for values of many digits and exponents."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 7)) * 10.0 ** rng.integers(-300, 300, (500, 7))
    write("a.csv", "\n".join(",".join(map(repr, row)) for row in x.tolist()))
    table = read(Path("a.csv").read_text())
    assert np.array_equal(np.column_stack(table.columns), np.loadtxt("a.csv", delimiter=","))


def test_a_column_that_stops_being_numbers():
    """Beyond the first rows, from which its kind is guessed."""
    cells = ["1"] * 20_000 + ["x"] * 20_000
    table = read("u,v\n" + "".join(f"{cell},{i}\n" for i, cell in enumerate(cells)))
    assert isinstance(table.columns[0], Text)
    assert table.columns[0].counts().tolist() == [20_000, 20_000]
    assert np.array_equal(table.columns[1], np.arange(40_000))


def test_long_rows():
    """A row of more than a block of pyarrow."""
    table = read("a,b\n" + f"{'x' * 3_000_000},1\n" * 2)
    assert len(table.columns[0].levels[0]) == 3_000_000


@pytest.mark.slow
def test_wide_tables():
    """Rows that are longer than the sample from which the dialect is detected."""
    width = 60_000
    text = "\n".join(",".join([*[f"{3 * i}.{row}" for i in range(width)], "ab"[row % 2]]) for row in range(4))
    table = read(text)
    assert (table.rows, len(table.names), table.has_names) == (4, width + 1, False)
    table = read(",".join([f"x{i}" for i in range(width)] + ["t"]) + "\n" + text)
    assert (table.rows, table.find("t"), table.find("x77")) == (4, width, 77)


def test_a_column_of_sentences_is_not_wrapped():
    table = read('text\n"one, two"\n"three"\n"four, five, six"\n"seven"\n')
    assert table.names == ["text"]
    assert table.columns[0].levels == ["one, two", "three", "four, five, six", "seven"]


def test_no_row_is_lost():
    """Random tables of text and numbers, against the csv module that wrote them."""
    rng = np.random.default_rng(2)
    words = ["a", "b c", 'say "x"', "1,5", "ü", "l\ni", " ", "NA", "#", ";", "x;y"]
    for number in range(30):
        width, rows = int(rng.integers(2, 6)), int(rng.integers(3, 40))
        columns = [
            [float(v) for v in rng.normal(size=rows)] if rng.random() < 0.5 else rng.choice(words, rows).tolist()
            for _ in range(width)
        ]
        columns[0] = list(range(rows))
        path = Path(f"{number}.csv")
        with path.open("w", newline="") as file:
            import csv

            csv.writer(file).writerows([[f"c{i}" for i in range(width)], *zip(*columns)])
        options = dialect.Options(separator=",", decimal=".", header=None, skip=0)
        table = reading.read(path, options, Messages("fit"), as_words=[f"c{i}" for i in range(1, width)])
        assert table.rows == rows
        for column, values in zip(columns[1:], table.columns[1:]):
            cells = values.take(np.array([*values.levels], object), "")
            expected = ["" if str(cell).strip() in ("", "NA") else str(cell).strip() for cell in column]
            assert cells.tolist() == expected


def test_write_rows_writes_a_table():
    write_rows("a.csv", "u,t", U, T)
    assert command("fit", "a.csv", "--target", "t")[0] == 0


def test_rows_of_many_numbers_are_soon_known_to_be_no_libsvm():
    """A pattern that can divide a number's digits in several ways would try all combinations of 60 numbers."""
    row = ",".join(["1234567890.125"] * 60)
    assert not formats.is_libsvm(f"{row} x\n{row}:y\n".encode())
    assert formats.is_libsvm(f"{row} 1:2\n{row} 2:3.5\n".encode())
