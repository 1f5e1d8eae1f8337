"""Columns and labels: what becomes a feature, what is imputed, matched and refused, and that a model does it again."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="the learn extra has it; no wheel for a free-threaded CPython")
pa = pytest.importorskip("pyarrow", reason="the cli extra has it")

from commands.tables import BASE, ROWS, N, T, U, V, chain, command, refuse, run, write, write_rows  # noqa: E402

from csoftmax import calibration  # noqa: E402
from csoftmax.linear_model import SoftmaxRegression  # noqa: E402


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fit(name, *options):
    """Standard error of fit, and the names of the model's features."""
    _, err = run("fit", name, "--target", "t", *options)
    return err, list(SoftmaxRegression.load("model.safetensors").feature_names_in_)


def predict(name, *options):
    return list(csv.DictReader(run("predict", "model.safetensors", name, *options)[0].splitlines()))


def cycle(*words):
    return [words[i % len(words)] for i in range(N)]


# Columns


def test_text_is_one_hot():
    write_rows("a.csv", "u,colour,t", U, cycle("red", " green ", "blue"), T)
    err, names = fit("a.csv")
    assert names == ["u", "colour=blue", "colour=green", "colour=red"]
    assert "1 column of text one-hot: 'colour'" in err


def test_one_hot_is_scikit_learns():
    """Probabilities against a pipeline of scikit-learn with the same objective."""
    pd = pytest.importorskip("pandas")
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    colours = cycle("red", "green", "", "blue", "red")
    lengths = [u if i % 7 else "" for i, u in enumerate(U)]
    write_rows("a.csv", "u,v,colour,t", lengths, V, colours, T)
    run("fit", "a.csv", "--target", "t", "--penalty-l2", 1 / N)
    frame = pd.read_csv("a.csv")
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    words = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(sparse_output=False))
    model = make_pipeline(
        make_column_transformer((numbers, ["u", "v"]), (words, ["colour"])), LogisticRegression(tol=1e-8, max_iter=9999)
    )
    expected = model.fit(frame[["u", "v", "colour"]], frame.t).predict_proba(frame)
    rows = predict("a.csv", "--probabilities")
    found = [[float(row[f"probability_{c}"]) for c in "abc"] for row in rows]
    assert np.allclose(found, expected, atol=2e-3)


def test_rare_levels_are_pooled_and_new_ones_counted():
    words = cycle("a", "b")
    words[:4] = ["p", "q", "r", "q"]
    write_rows("a.csv", "u,w,t", U, words, T)
    err, names = fit("a.csv")
    assert names == ["u", "w=a", "w=b", "w=(rare)"]
    assert "rare levels pooled in 1 column" in err
    words[10:13] = ["new", "new", "other"]
    write_rows("b.csv", "u,w,t", U, words, T)
    out, err = run("predict", "model.safetensors", "b.csv")
    assert "3 rows with 2 levels of 'w' that the model does not know: 'new', 'other'" in err
    write_rows("c.csv", "u,w,t", U, ["r" if w in ("new", "other") else w for w in words], T)
    assert run("predict", "model.safetensors", "c.csv") == (out, run("predict", "model.safetensors", "c.csv")[1])
    assert "does not know" not in run("predict", "model.safetensors", "c.csv")[1]


def test_a_new_level_without_rare_ones_has_no_feature():
    write_rows("a.csv", "u,w,t", U, cycle("a", "b"), T)
    fit("a.csv")
    write("b.csv", "u,w\n0.5,new\n")
    assert (
        "1 row with 1 level of 'w' that the model does not know: 'new'"
        in run("predict", "model.safetensors", "b.csv")[1]
    )
    model = SoftmaxRegression.load("model.safetensors")
    model.__dict__.pop("feature_names_in_")
    assert float(predict("b.csv")[0]["probability"]) == pytest.approx(model.predict_proba([[0.5, 0, 0]]).max())


@pytest.mark.parametrize("form", [("True", "False"), ("true", "false"), ("TRUE", "FALSE")])
def test_true_and_false_are_one_feature(form):
    write_rows("a.csv", "u,adult,t", U, [form[v < 0] for v in V], T)
    _, names = fit("a.csv")
    assert names == ["u", "adult"]
    rows = predict("a.csv")
    write_rows("b.csv", "u,adult,t", U, [int(v >= 0) for v in V], T)
    assert predict("b.csv") == rows
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"adult": [v >= 0 for v in V], "u": U}), "c.parquet")
    assert predict("c.parquet") == rows


def test_yes_and_no_are_levels():
    write_rows("a.csv", "u,adult,t", U, cycle("yes", "no"), T)
    assert fit("a.csv")[1] == ["u", "adult=no", "adult=yes"]


def test_a_range_is_text():
    write_rows("a.csv", "code,v,t", cycle("1_5", "2_6", "3_7"), V, T)
    assert fit("a.csv")[1] == ["code=1_5", "code=2_6", "code=3_7", "v"]


@pytest.mark.parametrize(
    ("header", "column", "reason"),
    [
        ("", [f"r{i}" for i in range(N)], "an unnamed first column"),
        ("Unnamed: 0", cycle(3, 4, 9), "an unnamed first column"),
        ("name", [f"r{i}" for i in range(N)], "row names"),
        ("x", list(range(N)), "row numbers, which count by ones"),
        ("x", list(range(N, 0, -1)), "row numbers, which count by ones"),
        ("x", np.random.default_rng(0).permutation(N).tolist(), "row numbers, which count by ones"),
        ("ID", cycle(7, 8, 9), "ids"),
        ("index", cycle(7, 8, 9), "ids"),
        ("customer_id", [i * 3 for i in range(N)], "ids"),
        ("row_index", [i * 3 for i in range(N)], "ids"),
        ("PassengerId", [i * 3 for i in range(N)], "ids"),
        ("day", [f"2026-01-{1 + i % 28:02}" for i in range(N)], "dates"),
        ("day", [f"{1 + i % 28}.1.2026" for i in range(N)], "dates"),
        ("day", [f"1/{1 + i % 28}/2026 10:3{i % 10}" for i in range(N)], "dates"),
        ("day", [f"2026-01-{1 + i % 28:02}T10:00:00.5+01:00" for i in range(N)], "dates"),
        ("day", [f"{1 + i % 28} Jan 2026" for i in range(N)], "dates"),
        ("day", [f"202601{1 + i % 28:02}" for i in range(N)], "dates"),
    ],
)
def test_what_is_no_feature(header, column, reason):
    write_rows("a.csv", f"{header},u,v,t", column, U, V, T)
    err, names = fit("a.csv")
    name = header or "column 0"
    assert names == ["u", "v"]
    assert f"1 column left out, {reason}: {name!r}; --keep-index keeps it" in err
    assert err.count(repr(name)) == 1
    _, names = fit("a.csv", "--keep-index")
    assert len(names) > 2
    assert len(predict("a.csv")) == N


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ("x", cycle(1, 2, 3)),
        ("x", [2 * i for i in range(N)]),
        ("valid", [3 * i for i in range(N)]),
        ("year", cycle(1999, 2000, 2001)),
        ("grid", [3 * i for i in range(N)]),
        ("body_mass_index", [3 * i for i in range(N)]),
        ("customer_id", cycle(3, 4, 5)),
        ("x", [20_000_000 + i * 1000 for i in range(N)]),
    ],
)
def test_what_is_a_feature(header, column):
    write_rows("a.csv", f"{header},u,t", column, U, T)
    assert fit("a.csv")[1] == [header, "u"]


def test_days_are_those_since_1970():
    days = [f"{1 + i % 28:02}.02.2026" for i in range(N)]
    write_rows("a.csv", "day,u,t", days, U, T)
    assert fit("a.csv", "--keep-index", "--no-standardize")[1] == ["day", "u"]
    model = SoftmaxRegression.load("model.safetensors")
    model.__dict__.pop("feature_names_in_")
    expected = (np.datetime64("2026-02-11") - np.datetime64("1970-01-01")).astype(int)
    p = float(predict("a.csv")[10]["probability"])
    assert p == pytest.approx(model.predict_proba([[expected, U[10]]]).max(), rel=1e-8)
    write("b.csv", f"day,u\n2026-02-11 00:00:00,{U[10]}\n")
    assert float(predict("b.csv")[0]["probability"]) == pytest.approx(p, rel=1e-6)
    write("b.csv", "day,u\nnever,1\n")
    assert "line 2: column 'day' is 'never', which is not a date" in refuse("predict", "model.safetensors", "b.csv")


def test_empty_columns_are_left_out():
    write_rows("a.csv", "u,nothing,v,t", U, [""] * N, V, T)
    err, names = fit("a.csv")
    assert names == ["u", "v"]
    assert "1 column left out, without any value: 'nothing'" in err


def test_drop_and_id():
    write_rows("a.csv", '"a,b",key,u,v,t', U, cycle("k 1", "k2"), U, V, T)
    _, names = fit("a.csv", "--drop", '"a,b",v', "--id", "key")
    assert names == ["u"]
    rows = predict("a.csv", "--top", "2")
    assert list(rows[0]) == ["key", "label_1", "probability_1", "label_2", "probability_2"]
    assert [row["key"] for row in rows] == cycle("k 1", "k2")
    rows = predict("a.csv", "--id", "v")
    assert [float(row["v"]) for row in rows] == V
    assert "--drop w: it has 'a,b'" in refuse("fit", "a.csv", "--target", "t", "--drop", "w")
    assert "--id w: it has" in refuse("fit", "a.csv", "--target", "t", "--id", "w")
    assert "this is the target" in refuse("fit", "a.csv", "--target", "t", "--drop", "t")
    assert "--id w: it has" in refuse("predict", "model.safetensors", "a.csv", "--id", "w")


def test_ids_are_repeated_as_they_are():
    ids = [f"00{i}" for i in range(N)]
    write_rows("a.csv", "key,u,t", ids, U, T)
    fit("a.csv", "--id", "key")
    assert [row["key"] for row in predict("a.csv")] == ids


def test_nothing_is_left():
    write_rows("a.csv", "id,t", range(N), T)
    assert "no column besides the target that could be a feature: 'id'" in refuse("fit", "a.csv", "--target", "t")


def test_a_lacking_column_is_named():
    write("a.csv", BASE)
    fit("a.csv")
    write_rows("b.csv", "u,t", U, T)
    for command_ in (["predict"], ["evaluate"], ["calibrate"]):
        assert "no column 'v', which the model was trained with" in refuse(*command_, "model.safetensors", "b.csv")


def test_a_column_that_was_numbers():
    write("a.csv", BASE)
    fit("a.csv")
    write("b.csv", "u,v\n1,2\n3,large\n")
    assert "line 3: column 'v' is 'large', which is not a number" in refuse("predict", "model.safetensors", "b.csv")


# Missing values


@pytest.mark.parametrize("cell", ["", "?", "NA", "NaN", "nan", "null", "N/A", "n/a", " ", " NA ", '"NA"', '""'])
def test_missing_values_are_imputed(cell):
    u = [cell if i in (3, 9) else x for i, x in enumerate(U)]
    words = [cell if i == 5 else w for i, w in enumerate(cycle("p", "q", "p"))]
    write_rows("a.csv", "u,w,t", u, words, T)
    err, names = fit("a.csv")
    assert names == ["u", "w=p", "w=q"]
    assert "3 missing values imputed (mean; text: commonest): 'u' 2, 'w' 1" in err
    mean = np.mean([x for i, x in enumerate(U) if i not in (3, 9)])
    write_rows("b.csv", "u,w", [str(mean) if i in (3, 9) else x for i, x in enumerate(U)],
               ["p" if i == 5 else w for i, w in enumerate(words)])  # fmt: skip
    found, expected = ([float(r["probability"]) for r in predict(name)] for name in ("a.csv", "b.csv"))
    assert found == pytest.approx(expected, rel=1e-8)
    write("c.csv", f"u,w\n{cell},{cell}\n")
    assert "2 missing values imputed" in run("predict", "model.safetensors", "c.csv")[1]


def test_missing_values_are_dropped_or_refused():
    u = ["NA" if i in (3, 9) else x for i, x in enumerate(U)]
    labels = ["" if i == 4 else t for i, t in enumerate(T)]
    write_rows("a.csv", "u,v,t", u, V, labels)
    assert "line 6: 't' is missing" in refuse("fit", "a.csv", "--target", "t")
    assert "line 6: 't' is missing" in refuse("fit", "a.csv", "--target", "t", "--missing", "error")
    write_rows("b.csv", "u,v,t", u, V, T)
    says = refuse("fit", "b.csv", "--target", "t", "--missing", "error")
    assert "line 5: column 'u' is missing; --missing mean imputes, --missing drop leaves out" in says
    out, err = run("fit", "a.csv", "--target", "t", "--missing", "drop")
    assert f"{N - 3} rows" in out
    assert "3 rows with missing values dropped" in err
    dropped = SoftmaxRegression.load("model.safetensors").coef_
    kept = [i for i in range(N) if i not in (3, 4, 9)]
    write_rows("c.csv", "u,v,t", *([column[i] for i in kept] for column in (u, V, labels)))
    run("fit", "c.csv", "--target", "t", "--missing", "drop")
    assert np.array_equal(SoftmaxRegression.load("model.safetensors").coef_, dropped)
    report = json.loads(run("evaluate", "model.safetensors", "a.csv", "--json")[0])
    assert report["rows"] == N - 3
    assert len(predict("a.csv")) == N  # a row is never dropped by predict
    assert "--missing drop" in refuse("predict", "model.safetensors", "a.csv", "--missing", "drop")
    assert "line 5: column 'u' is missing" in refuse("predict", "model.safetensors", "a.csv", "--missing", "error")


# Labels

LABELS = {
    "whole": [str(1 + "abc".index(t)) for t in T],
    "points": [f"{1 + 'abc'.index(t)}.0" for t in T],
    "blanks": [f"  {1 + 'abc'.index(t)} " for t in T],
    "exponents": [f"{1 + 'abc'.index(t)}e0" for t in T],
}
TRUTH = {
    "True": [str(t == "a") for t in T],
    "true": [str(t == "a").lower() for t in T],
    "ones": [str(int(t == "a")) for t in T],
    "points": [f"{int(t == 'a')}.0" for t in T],
    "TRUE": [str(t == "a").upper() for t in T],
}


@pytest.mark.parametrize("labels", [LABELS, pytest.param(TRUTH, marks=pytest.mark.slow)])
def test_labels_meet_by_value(labels):
    for name, column in labels.items():
        write_rows(f"{name}.csv", "u,v,t", U, V, column)
    pq = pytest.importorskip("pyarrow.parquet")
    first = next(iter(labels.values()))
    values = [x == "True" for x in first] if labels is TRUTH else list(map(int, first))
    pq.write_table(pa.table({"u": U, "v": V, "t": values}), "kept.parquet")
    np.savez("kept.npz", u=U, v=V, t=np.array(values))
    files = [*(f"{name}.csv" for name in labels), "kept.parquet", "kept.npz"]
    accuracies = set()
    for train in files:
        run("fit", train, "--target", "t")
        for test in files:
            accuracies.add(json.loads(run("evaluate", "model.safetensors", test, "--json")[0])["accuracy"])
            run("calibrate", "model.safetensors", test)
    assert len(accuracies) == 1


def test_kinds_of_labels():
    for column, classes in (
        (LABELS["points"], [1, 2, 3]),
        (TRUTH["true"], [False, True]),
        ([f"0{'abc'.index(t)}" for t in T], ["00", "01", "02"]),
        ([f"{'abc'.index(t)}.5" for t in T], ["0.5", "1.5", "2.5"]),
        ([f"{'abc'.index(t)}.5{'0' * (i % 2)}" for i, t in enumerate(T)], ["0.5", "1.5", "2.5"]),
        ([f" {t}>50K " for t in T], ["a>50K", "b>50K", "c>50K"]),
    ):
        write_rows("a.csv", "u,v,t", U, V, column)
        run("fit", "a.csv", "--target", "t")
        assert SoftmaxRegression.load("model.safetensors").classes_.tolist() == classes
        assert {row["label"] for row in predict("a.csv")} <= set(map(str, classes))


def test_unknown_labels_are_counted():
    write("a.csv", BASE)
    fit("a.csv")
    write("b.csv", BASE + "1,2,x\n1,2,y\n")
    says = refuse("evaluate", "model.safetensors", "b.csv")
    assert f"line {N + 2}: unknown label 'x' (not among the training classes) (2 labels in all: 'x', 'y')" in says


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ([f"{20 + i / 7:.2f}" for i in range(N)], "is continuous: 60 different numbers, some with fractions"),
        ([f"{20 + i % 22 / 7:.2f}" for i in range(N)], "is continuous: 22 different numbers, some with fractions"),
        ([i % 21 for i in range(N)], "is continuous: 21 different numbers in 60 rows, more than a fifth of them"),
        ([f"n{i}" for i in range(N)], "is different in each of the 60 rows"),
    ],
)
def test_a_continuous_target_is_refused(column, says):
    write_rows("a.csv", "u,v,t", U, V, column)
    assert says in refuse("fit", "a.csv", "--target", "t")


@pytest.mark.parametrize("column", [[i % 20 for i in range(N)], [i % 20 / 2 for i in range(N)]])
def test_twenty_numbers_are_classes(column):
    write_rows("a.csv", "u,v,t", U, V, column)
    fit("a.csv")


def test_many_rows_may_have_many_integers():
    write("a.csv", "u,t\n" + "".join(f"{i % 37},{i % 40}\n" for i in range(200)))
    fit("a.csv")


# Models


def test_a_model_from_python_reads_tables():
    x = np.c_[U, V]
    write("a.csv", BASE)
    pd = pytest.importorskip("pandas")
    SoftmaxRegression().fit(pd.DataFrame(x, columns=["v", "u"]), T).save("model.safetensors")
    model = SoftmaxRegression().fit(x, T)
    rows = predict("a.csv", "--target", "t")
    assert [float(row["probability"]) for row in rows] == pytest.approx(model.predict_proba(x[:, ::-1]).max(axis=1))
    model.save("model.safetensors")
    rows = predict("a.csv", "--target", "t")
    assert [row["label"] for row in rows] == model.predict(x).tolist()
    write("b.csv", "u\n1\n")
    assert "b.csv has 1 column besides the target, the model was trained with 2" in refuse(
        "predict", "model.safetensors", "b.csv"
    )


def test_a_forged_model_is_refused():
    write("a.csv", BASE)
    fit("a.csv")
    for change in ({"version": 9}, {"features": []}, {"features": [{"column": "u", "kind": "x"}] * 2}, {"more": 1}):
        model = SoftmaxRegression.load("model.safetensors")
        model.table_ = model.table_ | change
        model.save("forged.safetensors")
        assert "does not say rightly how its table was prepared" in refuse("predict", "forged.safetensors", "a.csv")


@pytest.mark.parametrize("method", ["temperature", "vector", "matrix", "dirichlet", "platt", "isotonic"])
def test_every_method_of_calibration(method):
    if method != "temperature" and not hasattr(calibration.PlattScaling, "save"):
        pytest.skip("these calibrators have no files yet")
    write("a.csv", BASE)
    fit("a.csv")
    out, _ = run("calibrate", "model.safetensors", "a.csv", "--method", method, "--json")
    figures = json.loads(out)
    assert figures["model"] == "model.calibrated.safetensors"
    rows = [json.loads(r) for r in run("predict", "model.calibrated.safetensors", "a.csv", "--json",
                                       "--probabilities")[0].splitlines()]  # fmt: skip
    p = np.array([[row[f"probability_{c}"] for c in "abc"] for row in rows])
    assert np.allclose(p.sum(axis=1), 1)
    loss = -np.log(np.maximum(p[range(N), ["abc".index(t) for t in T]], 1e-300)).mean()
    assert loss == pytest.approx(figures["log_loss"], rel=1e-6)
    report = json.loads(run("evaluate", "model.calibrated.safetensors", "a.csv", "--json")[0])
    assert report["rows"] == N
    if method != "temperature":
        with pytest.raises(ValueError, match="CalibratedRegression"):
            SoftmaxRegression.load("model.calibrated.safetensors")
        run("calibrate", "model.calibrated.safetensors", "a.csv", "--in-place")
        assert SoftmaxRegression.load("model.calibrated.safetensors").temperature != 1


def test_calibrate_leaves_the_model_unless_told():
    write("a.csv", BASE)
    fit("a.csv")
    before = Path("model.safetensors").read_bytes()
    out, _ = run("calibrate", "model.safetensors", "a.csv")
    assert "model: model.calibrated.safetensors" in out
    assert Path("model.safetensors").read_bytes() == before
    run("calibrate", "model.safetensors", "a.csv", "-o", "other.safetensors")
    assert Path("other.safetensors").exists()
    run("calibrate", "model.safetensors", "a.csv", "--in-place")
    assert Path("model.safetensors").read_bytes() != before
    assert command("calibrate", "model.safetensors", "a.csv", "--in-place", "-o", "x.safetensors")[0] == 2


def test_predict_has_the_columns_that_it_promises():
    write("a.csv", BASE)
    fit("a.csv")
    assert list(predict("a.csv")[0]) == ["label", "probability"]
    rows = predict("a.csv", "--probabilities", "--id", "u")
    assert list(rows[0]) == ["u", "label", "probability_a", "probability_b", "probability_c"]
    assert all(sum(float(row[f"probability_{c}"]) for c in "abc") == pytest.approx(1) for row in rows)
    lines = run("predict", "model.safetensors", "a.csv", "--top", "3", "--json")[0].splitlines()
    assert len(lines) == len(ROWS)
    assert list(json.loads(lines[0])) == [f"{n}_{i}" for i in (1, 2, 3) for n in ("label", "probability")]
    run("predict", "model.safetensors", "a.csv", "-o", "out.csv")
    assert len(Path("out.csv").read_text().splitlines()) == N + 1


def test_a_chain_of_all_kinds_at_once():
    """Text, booleans, dates, ids, missing values, without a header, in one table."""
    flags = [str(v > 0) for v in V]
    days = [f"2026-01-{1 + i % 28:02}" for i in range(N)]
    words = [w if i % 9 else "NA" for i, w in enumerate(cycle("p", "q"))]
    lines = [f"r{i};{u};{f};{d};{w};{t}" for i, (u, f, d, w, t) in enumerate(zip(U, flags, days, words, T))]
    write("a.csv", "\n".join(lines).replace(".", ","))
    err, report, rows = chain("a.csv", "5")
    assert "no header: columns are numbered from 0" in err
    assert report["rows"] == len(rows) == N
    assert list(SoftmaxRegression.load("chain.safetensors").feature_names_in_) == ["1", "2", "4=p", "4=q"]
