"""csoftmax tag: files of tokens, from training to labels and figures; the errors for bad files are one line."""

import gzip
import io
import json
import sys

import pytest

from csoftmax.__main__ import main
from csoftmax.sequence import CRFTagger

pytest.importorskip("safetensors", reason="the learn extra has it; no wheel for a free-threaded CPython")

CONLL = """-DOCSTART- -X- O

EU NNP B-ORG
rejects VBZ O
German JJ B-MISC
call NN O
. . O

# a comment with more columns
Peter NNP B-PER
Blackburn NNP I-PER

# NN O
sign NN O
"""

CONLLU = """# sent_id = 1
# text = Vamos al mar
1\tVamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2-3\tal\t_\t_\t_\t_\t_\t_\t_\t_
2\ta\ta\tADP\t_\t_\t4\tcase\t_\t_
3\tel\tel\tDET\t_\t_\t4\tdet\t_\t_
4\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\t_
4.1\tvacío\t_\t_\t_\t_\t_\t_\t_\t_

1\tNew York\t_\tPROPN\t_\t_\t0\troot\t_\t_
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """train.conll and train.conllu in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("train.conll", CONLL), ("train.conllu", CONLLU)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def run(*arguments, code=0):
    assert main(["tag", *map(str, arguments)]) == code


def refusal(capsys, *arguments):
    """The one line of a refusal."""
    capsys.readouterr()
    run(*arguments, code=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_fit_predict_evaluate(files, capsys):
    run("fit", "train.conll", "--model", "m", "--scheme", "BIO")
    out = capsys.readouterr().out
    assert "4 sentences, 10 tokens, 5 labels" in out
    assert "accuracy 1.0000 on the same sentences" in out
    run("predict", "train.conll", "--model", "m")
    assert capsys.readouterr().out == CONLL  # the labels it has learned, and every other line as it was
    run("evaluate", "train.conll", "--model", "m", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] == result["sentence_accuracy"] == 1.0
    assert result["spans"]["all"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "spans": 3}
    assert sorted(result["spans"]) == ["MISC", "ORG", "PER", "all"]
    run("evaluate", "train.conll", "--model", "m")
    assert "PER       1.0000  1.0000  1.0000       1" in capsys.readouterr().out
    assert sorted(p.name for p in files.iterdir()) == ["m", "train.conll", "train.conllu"]


def test_labels_are_added_where_there_are_none(files, capsys):
    run("fit", "train.conll", "--model", "m", "-q")
    assert capsys.readouterr() == ("", "")
    (files / "new").write_text("EU NNP\nrejects VBZ\n\nPeter NNP", encoding="utf-8")
    run("predict", "new", "--model", "m", "-o", "labels")
    assert (files / "labels").read_text() == "EU NNP B-ORG\nrejects VBZ O\n\nPeter NNP B-PER"


def test_conllu(files, capsys):
    run("fit", "train.conllu", "--model", "m", "--json")
    figures = json.loads(capsys.readouterr().out)
    assert (figures["sentences"], figures["tokens"], figures["labels"]) == (2, 5, 5)
    run("predict", "train.conllu", "--model", "m")
    assert capsys.readouterr().out == CONLLU
    run("fit", "train.conllu", "--model", "d", "--target", "deprel", "--columns", "FORM,UPOS", "-q")
    assert CRFTagger.load("d").classes_.tolist() == ["case", "det", "obl", "root"]
    run("predict", "train.conllu", "--model", "d")
    assert capsys.readouterr().out == CONLLU


def test_compressed_files_windows_lines_and_standard_input(files, capsys, monkeypatch):
    (files / "a.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + CONLL.replace("\n", "\r\n").encode()))
    run("fit", "a.gz", "--model", "m", "-q")
    run("fit", "train.conll", "--model", "n", "-q")
    assert (files / "m").read_bytes() == (files / "n").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(CONLL.encode())))
    run("evaluate", "-", "--model", "m")
    assert "accuracy 1.0000" in capsys.readouterr().out


def test_options_reach_the_tagger(files):
    run(
        *("fit", "train.conll", "--model", "m", "-q", "--penalty-l2", "0.01", "--penalty-l1", "0.001"),
        *("--min-count", "2", "--max-epochs", "7", "--columns", "1", "--target", "3", "--save-every", "2"),
    )
    tagger = CRFTagger.load("m")
    assert (tagger.penalty_l2, tagger.penalty_l1, tagger.min_count, tagger.max_epochs) == (0.01, 0.001, 2, 7)
    assert tagger.command_["columns"] == [0]
    assert not any(name.startswith("2[") for name in tagger.vocabulary_)
    run("fit", "train.conll", "--model", "h", "-q", "--hashing", "512", "--solver", "adamw", "--seed", "3")
    tagger = CRFTagger.load("h")
    assert (tagger.hashing, tagger.solver, tagger.random_state) == (512, "adamw", 3)


def test_refusals(files, capsys):
    run("fit", "train.conll", "--model", "m", "-q")
    run("fit", "train.conllu", "--model", "u", "-q")
    for name, text in {
        "empty": "",
        "blank": "\n\n# only a comment\n",
        "one": "a\nb\n",
        "ragged": "a X\nb X\nc\n",
        "invalid": "a B-X\n\nb I-X\n",
        "latin": "ok X\n",
        "short": "a X\n",
    }.items():
        (files / name).write_text(text)
    (files / "latin").write_bytes(b"ok X\ncaf\xe9 X\n")
    cases = [
        (("fit", "nowhere", "--model", "x"), "file not found: 'nowhere'"),
        (("fit", "empty", "--model", "x"), "empty is empty; it has no rows"),
        (("fit", "blank", "--model", "x"), "blank has no tokens, only blank lines and comments"),
        (("fit", "one", "--model", "x"), "one has one column"),
        (("fit", "ragged", "--model", "x"), "ragged: line 3 has 1 columns, the first token has 2"),
        (("fit", "latin", "--model", "x"), "latin: line 2 is not UTF-8"),
        (
            ("fit", "invalid", "--model", "x", "--scheme", "BIO"),
            "invalid: the sentence that begins in line 3 is impossible under --scheme BIO: ['I-X']",
        ),
        (
            ("fit", "train.conll", "--model", "x", "--scheme", "BMES"),
            "train.conll: column 3 has the label 'I-PER'; the labels of BMES are",
        ),
        (
            ("fit", "train.conll", "--model", "x", "--solver", "adamw", "--penalty-l1", "0.5"),
            "csoftmax tag: --penalty-l1 0.5 needs --solver lbfgs",
        ),
        (
            ("fit", "train.conll", "--model", "x", "--hashing", "2147483648"),
            "csoftmax tag: --hashing must be in [1, 2147483647], got 2147483648",
        ),
        (
            ("fit", "short", "--model", "x", "--early-stopping"),
            "short: --early-stopping needs at least 2 sequences with tokens, got 1",
        ),
        (("fit", "train.conll", "--model", "x", "--columns", ","), "--columns names no column"),
        (("fit", "train.conll", "--model", "x", "--target", "9"), "--target 9: train.conll has columns 1 to 3"),
        (("fit", "train.conll", "--model", "x", "--columns", "1,3"), "column 3 cannot be both"),
        (("fit", "train.conll", "--model", "no/x"), "there is no folder"),
        (("fit", "train.conll", "--model", "x.npz"), "safetensors files, not npz"),
        (("fit", "train.conll", "--model", "x", "-o", "y"), "--output belongs to tag predict, not to tag fit"),
        (("predict", "train.conll", "--model", "x"), "file not found: 'x'"),
        (("predict", "train.conll", "--model", "train.conll"), "cannot be read as a model"),
        (("predict", "train.conll", "--model", "m", "--seed", "1"), "--seed belongs to tag fit, not to tag predict"),
        (("predict", "train.conll", "--model", "m", "--json"), "--json belongs to tag fit and tag evaluate"),
        (("predict", "one", "--model", "m"), "one has 1 column; the model reads 2"),
        (("predict", "train.conll", "--model", "u"), "was trained on CoNLL-U"),
        (("predict", "train.conllu", "--model", "m"), "was not trained on CoNLL-U"),
        (("evaluate", "ragged", "--model", "m"), "ragged: line 3"),
        (("evaluate", "train.conll", "--model", "m", "--scheme", "BMES"), "train.conll: column 3 has the label"),
        (("evaluate", "one", "--model", "m"), "one has 1 column; the model reads 3, one of them with labels"),
    ]
    for arguments, message in cases:
        assert message in refusal(capsys, *arguments), arguments
    CRFTagger().fit([[["a"]]], [["X"]]).save("plain")
    assert "was not written by csoftmax tag fit" in refusal(capsys, "predict", "train.conll", "--model", "plain")
    for arguments, message in (
        (["fit", "train.conll"], "--model"),
        (["fit", "train.conll", "--model", "x", "--penalty-l2", "abc"], "--penalty-l2: must be a number, got 'abc'"),
        (["fit", "train.conll", "--model", "x", "--hashing", "0"], "--hashing: must be a positive integer, got '0'"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["tag", *arguments])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


def test_spaces_of_other_scripts_are_letters_of_a_word(files):
    """Only spaces and tabs separate columns, and a bare CR ends a line as it does for text files everywhere."""
    (files / "a.conll").write_text("10\u00a0000 O\nAnn B-PER\n東\u3000京 B-LOC\n", encoding="utf-8")
    run("fit", "a.conll", "--model", "a.st", "--quiet")
    run("predict", "a.conll", "--model", "a.st", "-o", "b.conll")
    assert (files / "b.conll").read_text("utf-8") == (files / "a.conll").read_text("utf-8")
    (files / "a.conll").write_bytes(b"# a b c\r\na B\r\nb O\r\n\r\nc B\rd O\r")
    run("fit", "a.conll", "--model", "a.st", "--quiet")
    run("predict", "a.conll", "--model", "a.st", "-o", "b.conll")
    assert (files / "b.conll").read_bytes() == (files / "a.conll").read_bytes()


def test_words_with_blanks_stay_whole_without_tabs(files):
    """The separator is the one that the model was trained with: a file of words alone has none."""
    (files / "a.conll").write_text("New York\tB\nparks\tO\n")
    run("fit", "a.conll", "--model", "a.st", "--quiet")
    (files / "b.conll").write_text("New York\nSan Jose\n")
    run("predict", "b.conll", "--model", "a.st", "-o", "c.conll")
    assert [line.split("\t")[0] for line in (files / "c.conll").read_text().splitlines()] == ["New York", "San Jose"]


def test_a_sentence_that_the_scheme_has_no_labels_for(files, capsys):
    (files / "a.conll").write_text("a B-X\nb E-X\n")
    run("fit", "a.conll", "--model", "a.st", "--scheme", "BIOES", "--quiet")
    (files / "b.conll").write_text("a B-X\nb E-X\n\na S-X\n")
    run("predict", "b.conll", "--model", "a.st", "-o", "c.conll")
    assert (files / "c.conll").read_text() == "a B-X\nb E-X\n\na _\n"
    assert "line 4" in capsys.readouterr().err
    run("evaluate", "b.conll", "--model", "a.st", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["spans"]["all"]["recall"] == 0.5


def test_labels_do_not_take_the_place_of_words(files, capsys):
    run("fit", "train.conll", "--model", "a.st", "--quiet")
    assert "--target 1" in refusal(capsys, "predict", "train.conll", "--model", "a.st", "--target", "1")


def test_letters_that_standard_output_lacks(files, capsys, monkeypatch):
    (files / "a.conll").write_text("Zürich B-LOC\n", encoding="utf-8")
    run("fit", "a.conll", "--model", "a.st", "--quiet")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    run("predict", "a.conll", "--model", "a.st", code=2)
    assert sys.stdout.buffer.getvalue() == b""
    assert "ascii" in capsys.readouterr().err
