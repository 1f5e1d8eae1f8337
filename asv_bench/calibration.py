"""Held-out log loss of every calibrator on few rows, beside scikit-learn's temperature scaling.

    python asv_bench/calibration.py [--splits 40] [--penalty 1e-4] [--sets wine zoo] [--times]

Each set is split into training, calibration and test rows, stratified; features are standardised, the model is a
SoftmaxRegression with scikit-learn's default penalty (1 / rows, two classes 2 / rows) or the given one.  For each
method: mean log loss over the splits, the largest ratio to the loss of the model itself, how often it is above 2, and
how often the method warned.  --times prints how long the fits take instead.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from sklearn import datasets
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from csoftmax import calibration
from csoftmax.linear_model import SoftmaxRegression

METHODS = (
    calibration.TemperatureScaling,
    calibration.VectorScaling,
    calibration.MatrixScaling,
    calibration.DirichletCalibration,
    calibration.PlattScaling,
    calibration.IsotonicCalibration,
)
ZOO_ROWS = (41, 20, 13, 10, 8, 5, 4)  # of the seven classes of the UCI set "zoo", which has 16 features


def load_zoo_like():
    """Rows like those of the UCI set "zoo": few, of seven classes, almost separable."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(len(ZOO_ROWS)), ZOO_ROWS)
    typical = rng.random((len(ZOO_ROWS), 16)) < 0.5
    X = np.where(rng.random((len(y), 16)) < 0.08, ~typical[y], typical[y])
    return X.astype(float), y


def load(name):
    """Features and labels."""
    return load_zoo_like() if name == "zoo" else getattr(datasets, f"load_{name}")(return_X_y=True)


SETS = {"wine": 30, "zoo": 20, "iris": 30, "breast_cancer": 60, "digits": 300}  # with the number of calibration rows


def split(name, n_rows, seed, penalty=None):
    """Logits and labels of calibration and test rows, and the model with its calibration rows."""
    X, y = load(name)
    a, rest, y_a, y_rest = train_test_split(X, y, test_size=0.45, stratify=y, random_state=seed)
    b, c, y_b, y_c = train_test_split(rest, y_rest, train_size=n_rows, random_state=seed)
    scaler = StandardScaler().fit(a)
    a, b, c = map(scaler.transform, (a, b, c))
    classes = len(np.unique(y_a))
    if penalty is None:
        penalty = (2 if classes == 2 else 1) / len(a)
    model = SoftmaxRegression(penalty_l2=penalty).fit(a, y_a)
    return model, b, y_b, c, y_c


def measure(name, n_rows, splits, penalty):
    """Print a row for each method."""
    losses, warned = {}, {}
    for seed in range(splits):
        model, b, y_b, c, y_c = split(name, n_rows, seed, penalty)
        labels = np.arange(len(model.classes_))
        found = {"the model": model.predict_proba(c)}
        try:
            theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(b, y_b)
            found["sklearn's temperature"] = theirs.predict_proba(c)
        except (ValueError, IndexError):  # a class without calibration rows
            pass
        z, z_new = model.decision_function(b), model.decision_function(c)
        for kind in METHODS:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    found[kind.__name__] = kind().fit(z, y_b).transform(z_new)
                except ValueError:  # Platt scaling needs every class
                    continue
            warned[kind.__name__] = warned.get(kind.__name__, 0) + bool(caught)
        for method, p in found.items():
            loss = log_loss(y_c, p, labels=labels)
            losses.setdefault(method, []).append((loss, log_loss(y_c, found["the model"], labels=labels)))
    for method, values in losses.items():
        loss, plain = np.array(values).T
        ratio = loss / plain
        print(
            f"{name:14} {n_rows:4}  {method:22} {loss.mean():7.3f}  {ratio.max():6.2f}  {(ratio > 2).sum():3} of "
            f"{len(loss):3}  {warned.get(method, 0):3}"
        )


def measure_times():
    """Print the time of a fit, the best of some."""
    rng = np.random.default_rng(0)
    for n, k in ((30, 3), (1000, 2), (1000, 10), (100_000, 10)):
        z = rng.normal(size=(n, k)) * 2
        y = np.array([rng.choice(k, p=p) for p in np.exp(z / 2) / np.exp(z / 2).sum(axis=1, keepdims=True)])
        inner = FrozenEstimator(_Identity().fit(z, y))
        contenders = {kind.__name__: kind() for kind in METHODS}
        for method in ("temperature", "sigmoid"):
            everything = [(np.arange(n), np.arange(n))]
            contenders[f"sklearn's {method}"] = CalibratedClassifierCV(inner, method=method, cv=everything)
        for name, contender in contenders.items():
            times = []
            for _ in range(3):
                begin = time.perf_counter()
                contender.fit(z, y)
                times.append(time.perf_counter() - begin)
            print(f"{n:7} rows, {k:3} classes  {name:24} {min(times) * 1e3:9.2f} ms")


class _Identity(SoftmaxRegression):
    """A classifier whose features are logits."""

    def fit(self, z, y):
        self.classes_, self.n_features_in_, self.coef_ = np.arange(z.shape[1]), z.shape[1], np.eye(z.shape[1])
        return self

    def decision_function(self, z):
        return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z


def main():
    """Measure losses, or times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=40)
    parser.add_argument("--penalty", type=float)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--rows", type=int, help="calibration rows; default: 20 to 300, depending on the set")
    parser.add_argument("--times", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    with threadpool_limits(1):
        if arguments.times:
            measure_times()
        else:
            print("set            rows  method                 log loss  worst ratio  above 2  warned")
            for name in arguments.sets:
                measure(name, arguments.rows or SETS[name], arguments.splits, arguments.penalty)


if __name__ == "__main__":
    main()
