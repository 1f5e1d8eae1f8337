"""The commands fit, predict, evaluate and calibrate: from files to files, and the errors for bad ones."""

import csv
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris

from csoftmax.__main__ import main
from csoftmax.linear_model import ManyClassRegression, SoftmaxRegression

pytest.importorskip("safetensors", reason="the learn extra has it; no wheel for a free-threaded CPython")
pytest.importorskip("pyarrow", reason="the cli extra has it")


@pytest.fixture
def iris(tmp_path, monkeypatch):
    """train.csv and test.csv with names of species, in the current folder."""
    monkeypatch.chdir(tmp_path)
    data = load_iris()
    names = data.target_names[data.target]
    for name, rows in (("train", slice(0, None, 2)), ("test", slice(1, None, 2))):
        write(f"{name}.csv", [*data.feature_names, "species"], [[*r, n] for r, n in zip(data.data[rows], names[rows])])
    return data.data, names


def write(path, header, rows):
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([header, *rows])


def loaded(path):
    """Load a model without the names of its columns: the tests pass arrays, about which it would warn."""
    model = SoftmaxRegression.load(path)
    assert model.__dict__.pop("feature_names_in_", None) is not None
    return model


def run(*arguments, code=0):
    assert main([str(a) for a in arguments]) == code


def test_from_fit_to_predict(iris, capsys):
    X, names = iris
    run("fit", "train.csv", "--target", "species", "--penalty-l2", "1e-3")
    assert "75 rows, 4 columns, 3 classes" in capsys.readouterr().out
    model = loaded("model.safetensors")
    assert model.score(X[1::2], names[1::2]) > 0.93
    names_of_columns = SoftmaxRegression.load("model.safetensors").feature_names_in_
    assert list(names_of_columns) == load_iris().feature_names
    run("calibrate", "model.safetensors", "test.csv", "--target", "species", "--output", "hot.safetensors")
    page = capsys.readouterr().out
    hot = loaded("hot.safetensors")
    assert hot.temperature != 1
    assert f"temperature {hot.temperature:.6g}" in page
    run("evaluate", "hot.safetensors", "test.csv", "--target", "species", "--json", "--html", "page.html")
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"] == model.score(X[1::2], names[1::2])
    assert "<h1>" in Path("page.html").read_text()
    run("predict", "hot.safetensors", "test.csv", "--top", "2", "--output", "out.csv")
    rows = list(csv.DictReader(Path("out.csv").read_text().splitlines()))
    p = hot.predict_proba(X[1::2])
    assert [r["label_1"] for r in rows] == list(hot.predict(X[1::2]))
    assert np.allclose([float(r["probability_1"]) for r in rows], p.max(axis=1), rtol=1e-8)
    assert np.allclose([float(r["probability_2"]) for r in rows], np.sort(p, axis=1)[:, -2], rtol=1e-8)
    run("predict", "hot.safetensors", "test.csv")
    assert capsys.readouterr().out.startswith("label,probability\n")


def test_columns_may_be_in_another_order(iris, capsys):
    run("fit", "train.csv", "--target", "species")
    rows = list(csv.reader(Path("test.csv").read_text().splitlines()))
    write("reversed.csv", [*rows[0][::-1], "more"], [[*r[::-1], "1"] for r in rows[1:]])
    for name in ("test.csv", "reversed.csv"):
        run("predict", "model.safetensors", name, "--target", "species", "--output", name + ".out")
    assert Path("test.csv.out").read_text() == Path("reversed.csv.out").read_text()


@pytest.mark.parametrize("options", [["--no-standardize"], ["--solver", "adamw", "--batch-norm", "--early-stopping"]])
def test_options(iris, options):
    run("fit", "train.csv", "--target", "species", *options, "--class-weight", "balanced", "--label-smoothing", "0.05")
    X, names = iris
    assert loaded("model.safetensors").score(X, names) > 0.9


def test_other_files(tmp_path, monkeypatch, capsys):
    pd = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    X, y = load_digits(return_X_y=True)
    np.savez("digits.npz", pixels=X.astype(np.float32), digit=y)
    frame = pd.DataFrame(X.astype(np.float32), columns=[f"p{i}" for i in range(64)]).assign(digit=y)
    frame.to_csv("digits.tsv", sep="\t", index=False)
    names = ["digits.npz", "digits.tsv"]
    try:
        frame.to_parquet("digits.parquet")
        names.append("digits.parquet")
    except ImportError:
        assert sys.version_info[:2] > (3, 13), "the test extra has fastparquet"
    for name in names:
        run("fit", name, "--target", "digit", "--max-epochs", "30", "--output", "m.safetensors")
        model = loaded("m.safetensors")
        assert model.classes_.tolist() == list(range(10))
        assert model.score(X, y) > 0.95
        run("evaluate", "m.safetensors", name, "--target", "digit")
    page = capsys.readouterr()
    assert "macro F1" in page.out
    assert "not converged in 30 iterations" in page.err


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["1,2,a", "", "inf,2,a"], "line 4: column 'u' is inf, which is not a finite number"),
        (["1,2,a", "1,2"], "line 3: 2 values, but the header has 3 columns"),
        (["1,2,", "1,2,a"], "line 2: 't' is missing"),
        (["1,2,a", "3,4,a"], "has one class"),
        (['1,2,"a'], 'line 2: a quote (") is opened and not closed in this row'),
        ([], "has no rows"),
    ],
)
def test_bad_rows(tmp_path, monkeypatch, capsys, rows, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("\n".join(["u,v,t", *rows]))
    run("fit", "bad.csv", "--target", "t", code=2)
    assert says in capsys.readouterr().err
    assert not (tmp_path / "model.safetensors").exists()


def test_bad_files(iris, capsys, tmp_path):
    def says(text, *arguments):
        run(*arguments, code=2)
        assert text in capsys.readouterr().err

    says("file not found: 'nothing.csv'", "fit", "nothing.csv", "--target", "t")
    says("no column 'kind'; it has 'sepal length (cm)'", "fit", "train.csv", "--target", "kind")
    says("no folder", "fit", "train.csv", "--target", "species", "--output", "no/such/m.safetensors")
    (tmp_path / "a.txt").write_text("")
    says("is empty", "fit", "a.txt", "--target", "t")
    (tmp_path / "twice.csv").write_text("a,t,t\n1,2,x\n")
    says("has the column 't' twice", "fit", "twice.csv", "--target", "t")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    says("cannot be read", "fit", "broken.npz", "--target", "t")
    np.savez("objects.npz", x=np.array([[print]], object), t=np.zeros(1))
    says("cannot be read", "fit", "objects.npz", "--target", "t")
    np.savez("three.npz", x=np.zeros((2, 2)), z=np.zeros((2, 2)), t=np.zeros(2))
    says("must have one array with two axes", "fit", "three.npz", "--target", "t")
    np.savez("inf.npz", x=np.array([[1, np.inf], [3, 2]]), t=np.arange(2))
    says("row 1: column 'x[1]' is inf", "fit", "inf.npz", "--target", "t")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    says("cannot be read as Parquet", "fit", "broken.parquet", "--target", "t")
    (tmp_path / "m.safetensors").write_bytes(b"nothing")
    says("cannot be read as a model", "predict", "m.safetensors", "test.csv")
    run("fit", "train.csv", "--target", "species")
    says("--top must be 1 to 3", "predict", "model.safetensors", "test.csv", "--top", "4")
    write("few.csv", ["sepal length (cm)", "species"], [[1, "setosa"]])
    says("no column 'sepal width (cm)'", "predict", "model.safetensors", "few.csv")
    rows = list(csv.reader(Path("test.csv").read_text().splitlines()))
    write("new.csv", rows[0], [rows[1], [*rows[2][:-1], "tulip"]])
    says(
        "line 3: unknown label 'tulip'",
        "evaluate",
        "model.safetensors",
        "new.csv",
        "--target",
        "species",
    )
    says("no column 'x'", "evaluate", "model.safetensors", "test.csv", "--target", "x")


def test_interrupted_training_leaves_the_last_model(iris, monkeypatch, capsys):
    seen = []

    def epoch_ends(self, record, original=None):
        seen.append(record)
        result = before(self, record)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return result

    from csoftmax._learn.monitor import Monitor

    before = Monitor.epoch_ends
    monkeypatch.setattr(Monitor, "epoch_ends", epoch_ends)
    run("fit", "train.csv", "--target", "species", "--solver", "adamw", "--save-every", "2", code=130)
    assert "interrupted" in capsys.readouterr().err
    model = loaded("model.safetensors")
    assert len(model.history_["loss"]) == 4
    X, names = iris
    assert model.score(X, names) > 0.6  # the saved model is that for columns as they are, not standardised


def test_constant_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    write("c.csv", ["a", "c", "y"], [[a, 0.1, int(a > 0)] for a in x])
    for solver in ("lbfgs", "adamw"):
        run("fit", "c.csv", "--target", "y", "--solver", solver, "--max-epochs", "20")
        assert np.abs(loaded("model.safetensors").coef_).max() < 1e3


def test_nothing_to_learn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("flat.csv", ["a", "y"], [[1, 0], [-1, 0], [1, 1], [-1, 1]])
    run("fit", "flat.csv", "--target", "y")
    assert loaded("model.safetensors").predict_proba([[1.0]]).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("head", ["sampled", "full", "adaptive", "hashed"])
def test_very_many_classes(iris, capsys, head):
    """The model of --head is read by predict and evaluate, and has the scale of the columns in its weights."""
    X, names = iris
    run("fit", "train.csv", "--target", "species", "--head", head, "--max-epochs", "60", "--penalty-l2", "1e-4")
    assert "60 epochs" in capsys.readouterr().out
    model = ManyClassRegression.load("model.safetensors")
    assert model.head == head
    model.__dict__.pop("feature_names_in_")
    assert model.score(X[1::2], names[1::2]) > 0.9
    run("predict", "model.safetensors", "test.csv", "--probabilities", "--target", "species", "-o", "p.csv")
    with open("p.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["label"] for row in rows] == model.predict(X[1::2]).tolist()
    p = np.array([[float(row[f"probability_{name}"]) for name in model.classes_] for row in rows])
    np.testing.assert_allclose(p, model.predict_proba(X[1::2]), rtol=1e-6)
    run("predict", "model.safetensors", "test.csv", "--top", "2", "--target", "species")
    capsys.readouterr()
    run("evaluate", "model.safetensors", "test.csv", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"] == pytest.approx(model.score(X[1::2], names[1::2]))
    run("evaluate", "model.safetensors", "test.csv", "--recalibrate")
    run("calibrate", "model.safetensors", "test.csv", code=2)
    assert "is a ManyClassRegression, of fit --head, which calibrate cannot change" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--head", "sampled", "--solver", "adamw"], "--solver does not belong to --head sampled"),
        (["--head", "full", "--batch-norm"], "--batch-norm does not belong to --head full"),
        (["--head", "full", "--penalty-l2", "auto"], "--penalty-l2 auto does not belong to --head full"),
        (["--head", "full", "--n-sampled", "3"], "--n-sampled belongs to --head sampled"),
        (["--n-sampled", "3"], "--n-sampled belongs to --head sampled"),
        (["--head", "full", "--cutoffs", "2"], "--cutoffs belongs to --head adaptive"),
        (["--cutoffs", "auto"], "--cutoffs belongs to --head adaptive"),
        (["--head", "adaptive", "--cutoffs", "1,3"], "cutoffs must be less than 3, the number of classes"),
        (["--head", "full", "--n-buckets", "3"], "--n-buckets belongs to --head hashed"),
        (["--n-hashes", "3"], "--n-hashes belongs to --head hashed"),
        (["--head", "hashed", "--n-buckets", "1"], "n_buckets must be None or an int from 2"),
        (["--head", "sampled", "--learning-rate", "0"], "learning_rate must be in"),
    ],
)
def test_refused_options_of_very_many_classes(iris, capsys, options, says):
    run("fit", "train.csv", "--target", "species", *options, code=2)
    assert says in capsys.readouterr().err
    assert not Path("model.safetensors").exists()


def test_cutoffs(iris, capsys):
    for given in ("2,1", "1,x"):
        with pytest.raises(SystemExit, match="2"):
            run("fit", "train.csv", "--target", "species", "--head", "adaptive", "--cutoffs", given)
        assert f"must be auto or ascending positive integers, got '{given}'" in capsys.readouterr().err
    for given, cutoffs in (("1,2", [1, 2]), ("2", [2]), ("auto", "auto")):
        run("fit", "train.csv", "--target", "species", "--head", "adaptive", "--cutoffs", given, "--max-epochs", "1")
        model = ManyClassRegression.load("model.safetensors")
        assert model.cutoffs == cutoffs
        if given != "auto":
            assert list(model.head_.layer.cutoffs) == cutoffs


def test_options_of_very_many_classes(iris, capsys):
    options = [
        "--head",
        "sampled",
        "--n-sampled",
        "2",
        "--early-stopping",
        "--seed",
        "3",
        "--save-every",
        "1",
        "--json",
    ]
    run("fit", "train.csv", "--target", "species", *options)
    figures = json.loads(capsys.readouterr().out)
    model = ManyClassRegression.load("model.safetensors")
    assert (model.n_sampled, model.random_state, model.early_stopping) == (2, 3, True)
    run("fit", "train.csv", "--target", "species", "--head", "hashed", "--n-buckets", "8", "--n-hashes", "5")
    assert ManyClassRegression.load("model.safetensors").head_.parameters["w"].shape == (40, 4)
    assert figures["epochs"] == model.n_iter_


def write_imbalanced(name, n=400, ids=False):
    """A table of classes of different sizes: every calibrator of a balanced model but a temperature changes labels."""
    rng = np.random.default_rng(0)
    y = rng.choice(3, n, p=[0.85, 0.1, 0.05])
    x = (rng.normal(size=(n, 3)) + 0.8 * np.eye(3)[y]).round(4)
    header = [*(["customer"] if ids else []), "u", "v", "w", "t"]
    write(name, header, [[*([f"c{i}"] if ids else []), *r, "abc"[c]] for i, (r, c) in enumerate(zip(x, y))])
    return np.array(list("abc"))[y]


@pytest.mark.parametrize(
    "method",
    [
        "temperature",
        "vector",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("matrix", "dirichlet", "platt", "isotonic")),
    ],
)
def test_evaluate_reports_what_predict_does(tmp_path, monkeypatch, capsys, method):
    monkeypatch.chdir(tmp_path)
    labels = write_imbalanced("a.csv")
    run("fit", "a.csv", "--target", "t", "--class-weight", "balanced", "-q")
    run("calibrate", "model.safetensors", "a.csv", "--method", method, "-o", "c.safetensors", "-q")
    found = {}
    for model in ("model.safetensors", "c.safetensors"):
        capsys.readouterr()
        run("predict", model, "a.csv", "-q", "--json")
        predicted = np.array([json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()])
        run("evaluate", model, "a.csv", "-q", "--json", "--html", "page.html")
        figures = json.loads(capsys.readouterr().out)
        assert figures["accuracy"] == (predicted == labels).mean()
        matrix = [[int(((labels == a) & (predicted == b)).sum()) for b in "abc"] for a in "abc"]
        assert figures["confusion_matrix"] == matrix
        for mistake in figures["mistakes"]:
            assert mistake["predicted"] == predicted[mistake["row"]] != mistake["true"]
        found[model] = figures
    plain, calibrated = found.values()
    assert (method == "vector") <= (calibrated["accuracy"] > plain["accuracy"] + 0.1)
    run("evaluate", "c.safetensors", "a.csv", "-q")
    text = capsys.readouterr().out
    assert f"\naccuracy {calibrated['accuracy']:.4f} " in text
    assert (f"\nwithout the calibrator: accuracy {plain['accuracy']:.4f} " in text) == (method != "temperature")


def test_mistakes_have_the_line_of_the_file(tmp_path, monkeypatch, capsys):
    """Also after rows are dropped, and with the id that `fit` was told of."""
    monkeypatch.chdir(tmp_path)
    write_imbalanced("a.csv", ids=True)
    lines = Path("a.csv").read_text().splitlines()
    for i in (5, 9, 200):
        lines[i] = lines[i].rpartition(",")[0] + ","
    lines.insert(2, "")
    Path("a.csv").write_text("\n".join(lines))
    for options, with_id in (["--drop", "customer"], False), (["--id", "customer"], True):
        run("fit", "a.csv", "--target", "t", "--missing", "drop", "-q", *options)
        capsys.readouterr()
        run("evaluate", "model.safetensors", "a.csv", "-q", "--json", "--html", "page.html")
        mistakes = json.loads(capsys.readouterr().out)["mistakes"]
        page = Path("page.html").read_text()
        assert "counted" not in page.split('id="mistakes"')[1].split("</section>")[0]
        for mistake in mistakes:
            number = int(mistake["place"].split(",")[0].removeprefix("line "))
            cells = lines[number - 1].split(",")
            assert cells[-1] == mistake["true"]
            assert mistake["place"] == f"line {number}" + (f", customer {cells[0]}" if with_id else "")
            assert f"<bdi>{mistake['place']}</bdi>" in page
        assert any(m["row"] > 200 for m in mistakes)


def test_one_row_is_a_row(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_imbalanced("a.csv")
    run("fit", "a.csv", "--target", "t", "-q")
    Path("one.csv").write_text("\n".join(Path("a.csv").read_text().splitlines()[:2]))
    capsys.readouterr()
    run("evaluate", "model.safetensors", "one.csv", "-q")
    assert "\n1 row, 3 classes\n" in capsys.readouterr().out


def test_platt_names_the_labels_that_are_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_imbalanced("a.csv")
    run("fit", "a.csv", "--target", "t", "-q")
    rows = Path("a.csv").read_text().splitlines()
    Path("few.csv").write_text("\n".join(row for row in rows if not row.endswith(("a", "c"))))
    capsys.readouterr()
    run("calibrate", "model.safetensors", "few.csv", "--method", "platt", code=2)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "few.csv has none of 'a', 'c'" in line
    assert "another method" in line


@pytest.mark.parametrize("cell", ["1e308", "1e200"])
@pytest.mark.parametrize("options", [[], ["--no-standardize"], ["--solver", "adamw"]])
def test_values_whose_squares_overflow_are_refused_in_one_line(tmp_path, monkeypatch, capsys, cell, options):
    monkeypatch.chdir(tmp_path)
    for first, second in ((cell, f"-{cell}"), (cell, "1.5"), (cell, "")):
        write("a.csv", ["k", "v", "t"], [[(first, second)[i % 2], i**2 % 7, i % 2] for i in range(60)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run("fit", "a.csv", "--target", "t", *options, code=2)
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert "a.csv: the values of column 'k'" in line
        assert "too large" in line


@pytest.mark.parametrize("penalty", ["1e308", "1e101"])
def test_a_penalty_that_overflows_is_refused(tmp_path, monkeypatch, capsys, penalty):
    monkeypatch.chdir(tmp_path)
    write_imbalanced("a.csv")
    with pytest.raises(SystemExit, match="2"):
        run("fit", "a.csv", "--target", "t", "--penalty-l2", penalty)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "--penalty-l2: must be at most 1e+100" in line
    run("fit", "a.csv", "--target", "t", "--penalty-l2", "1e100")


def test_a_target_of_lists_is_not_to_be_dropped(tmp_path, monkeypatch, capsys):
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.chdir(tmp_path)
    y = write_imbalanced("a.csv")
    run("fit", "a.csv", "--target", "t", "-q")
    table = {"u": np.arange(len(y)) * 1.5, "v": np.zeros(len(y)), "w": np.zeros(len(y)), "t": [[1, 2]] * len(y)}
    parquet.write_table(pa.table(table), "a.parquet")
    for arguments in (["fit", "a.parquet", "--target", "t"], ["evaluate", "model.safetensors", "a.parquet"]):
        run(*arguments, code=2)
        line = capsys.readouterr().err
        assert "the target 't' holds list" in line
        assert "--drop" not in line
