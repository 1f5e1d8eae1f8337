"""Tables in the wheels of scikit-learn, palmerpenguins and vega_datasets: right, or refused in one line.

Held-out log loss is compared with a pipeline of scikit-learn on the same rows, with the same penalty, that pandas and
SciPy read.
"""

import gzip
import importlib
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="the learn extra has it; no wheel for a free-threaded CPython")
pytest.importorskip("pyarrow", reason="the cli extra has it")
pd = pytest.importorskip("pandas")

from commands.tables import chain, command, run  # noqa: E402


def folder_of(package):
    try:
        return Path(importlib.import_module(package).__path__[0])
    except ImportError:
        return Path("/nowhere")


SKLEARN = folder_of("sklearn") / "datasets"
PENGUINS = folder_of("palmerpenguins") / "data"
VEGA = folder_of("vega_datasets") / "_data"
OPENML = SKLEARN / "tests" / "data" / "openml"
FILES = sorted(
    [
        *SKLEARN.glob("data/*.csv*"),
        *OPENML.glob("*/*.arff.gz"),
        *SKLEARN.glob("tests/data/*.txt"),
        *PENGUINS.glob("*.csv"),
        *VEGA.glob("*.csv"),
    ]
)
SPARSE_ARFF = "data-v1-dl-49822.arff.gz"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names_of(path):
    """The columns that the command says a table has."""
    err = command("fit", path, "--target", "no such column")[2]
    if "; it has " not in err and "its columns are " not in err:
        return None, err
    shown = err.rpartition("; it has " if "; it has " in err else "its columns are ")[2].partition("; --header")[0]
    return [name.strip("'") for name in shown.strip().split(", ")], err


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=[f"{p.parent.name}-{p.name}" for p in FILES])
def test_every_column_is_a_target_or_refused(path):
    """Whatever the target, the model is trained or the refusal is one line."""
    names, err = names_of(path)
    if names is None:
        assert err.count("\n") == 1, err
        return
    for name in [*names[:4], *names[-2:]]:
        code, _, err = command("fit", path, "--target", name, "--max-epochs", "3")
        assert code in (0, 2)
        assert "Traceback" not in err
        assert code == 0 or err.count("\n") == 1, err


def arff(path):
    """Columns of an ARFF file by SciPy; strings become nominal, which SciPy does not read."""
    from scipy.io import arff

    text = gzip.decompress(path.read_bytes()).decode()
    data, meta = arff.loadarff(io.StringIO(text))
    frame = pd.DataFrame(data)
    for name, kind in zip(meta.names(), meta.types()):
        if kind == "nominal":
            frame[name] = frame[name].str.decode("utf-8").replace("?", None)
    return frame


def unnamed(path):
    return pd.read_csv(path, skiprows=1, header=None).rename(columns=str)


# table, target, columns that are no features
SETS = {
    "penguins": (PENGUINS / "penguins.csv", pd.read_csv, "species", []),
    "penguins, sex": (PENGUINS / "penguins.csv", lambda p: pd.read_csv(p).dropna(subset="sex"), "sex", []),
    "iris": (SKLEARN / "data" / "iris.csv", unnamed, "4", []),
    "wine": (SKLEARN / "data" / "wine_data.csv", unnamed, "13", []),
    "breast cancer": (SKLEARN / "data" / "breast_cancer.csv", unnamed, "30", []),
    "digits": (SKLEARN / "data" / "digits.csv.gz", lambda p: pd.read_csv(p, header=None).rename(columns=str), "64", []),
    "weather": (VEGA / "seattle-weather.csv", pd.read_csv, "weather", ["date"]),
    "iris, ARFF": (OPENML / "id_61" / "data-v1-dl-61.arff.gz", arff, "class", []),
    "glass2, ARFF": (OPENML / "id_40675" / "data-v1-dl-4965250.arff.gz", arff, "class", []),
    "kr-vs-kp, ARFF": (OPENML / "id_3" / "data-v1-dl-3.arff.gz", arff, "class", []),
}


def make_model(frame):
    """A pipeline of scikit-learn with the default penalty, which is ours, too."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = list(frame.select_dtypes("number").columns)
    words = [name for name in frame.columns if name not in numbers]
    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=5, sparse_output=False)
    columns = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), numbers),
        (make_pipeline(SimpleImputer(strategy="most_frequent"), encoder), words),
    )
    return make_pipeline(columns, LogisticRegression(tol=1e-6, max_iter=10_000))


def compare(name):
    """Held-out log loss of the commands and of scikit-learn, on every third row."""
    path, read, target, out = SETS[name]
    frame = read(path).drop(columns=out).reset_index(drop=True)
    test = np.arange(len(frame)) % 3 == 0
    read(path)[~test].to_csv("train.csv", index=False)
    read(path)[test].to_csv("test.csv", index=False)
    run("fit", "train.csv", "--target", target)
    ours = json.loads(run("evaluate", "model.safetensors", "test.csv", "--json")[0])
    x, y = frame.drop(columns=target), frame[target]
    model = make_model(x).fit(x[~test], y[~test])
    p = model.predict_proba(x[test])
    place = {c: i for i, c in enumerate(model.classes_)}
    theirs = -np.log(p[range(len(p)), [place[c] for c in y[test]]]).mean()
    return ours["before"]["log_loss"], theirs, ours["accuracy"], model.score(x[test], y[test])


@pytest.mark.parametrize(
    "name", [name if name == "digits" else pytest.param(name, marks=pytest.mark.slow) for name in SETS]
)
def test_held_out_loss_is_that_of_scikit_learn(name):
    if not SETS[name][0].exists():
        pytest.skip("its package is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs, accuracy, their_accuracy = compare(name)
    assert ours == pytest.approx(theirs, rel=0.01)
    assert accuracy == pytest.approx(their_accuracy, abs=0.01)


CHAINS = {
    "penguins.csv": (PENGUINS / "penguins.csv", "species", 0.95),
    "penguins-raw.csv": (PENGUINS / "penguins-raw.csv", "Species", 0.95),
    "iris.csv": (SKLEARN / "data" / "iris.csv", "4", 0.95),
    "wine_data.csv": (SKLEARN / "data" / "wine_data.csv", "13", 0.95),
    "breast_cancer.csv": (SKLEARN / "data" / "breast_cancer.csv", "30", 0.95),
    "digits.csv.gz": (SKLEARN / "data" / "digits.csv.gz", "64", 0.95),
    "zoo.arff.gz": (OPENML / "id_62" / "data-v1-dl-52352.arff.gz", "type", 0.95),
    "titanic.arff.gz": (OPENML / "id_40945" / "data-v1-dl-16826755.arff.gz", "survived", 0.75),
    "penguins.arff.gz": (OPENML / "id_42585" / "data-v1-dl-21854866.arff.gz", "species", 0.95),
    "seattle-weather.csv": (VEGA / "seattle-weather.csv", "weather", 0.6),
    "svmlight": (SKLEARN / "tests" / "data" / "svmlight_classification.txt", "label", 0.3),
}


@pytest.mark.parametrize(
    "name", [next(iter(CHAINS)), *(pytest.param(n, marks=pytest.mark.slow) for n in [*CHAINS][1:])]
)
def test_the_chain_of_commands(name):
    path, target, accuracy = CHAINS[name]
    if not path.exists():
        pytest.skip("its package is not installed")
    _, report, rows = chain(path, target)
    assert report["accuracy"] > accuracy
    assert len(rows) == report["rows"]


def test_a_sparse_arff_is_refused():
    path = OPENML / "id_292" / SPARSE_ARFF
    if path.exists():
        assert "has sparse rows" in command("fit", path, "--target", "Y")[2]


if __name__ == "__main__":
    print("| table | log loss | scikit-learn | accuracy | scikit-learn |\n|---|---:|---:|---:|---:|")
    for key in SETS:
        a, b, c, d = compare(key)
        print(f"| {key} | {a:.4f} | {b:.4f} | {c:.4f} | {d:.4f} |")
