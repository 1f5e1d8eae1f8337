"""Confidence intervals of a report's figures: SciPy's where it has them, and how often they hold the true value."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from csoftmax._learn import intervals, smooth_error
from csoftmax._learn.calibration_error import fill_bins
from csoftmax.metrics import evaluate

EDGES = np.linspace(0, 1, 16)
KEYS = ("log_loss", "ece", "smooth_ece")


@pytest.mark.parametrize(("right", "rows"), [(0, 7), (7, 7), (3, 10), (29, 30), (1, 1), (0, 1), (960, 1000)])
def test_accuracy_interval(right, rows):
    """Without weights SciPy's exact interval; a weight of 2 is the row twice, 0 takes it away, 0.3 changes nothing."""
    find = intervals.find_accuracy_interval
    hits = np.arange(rows) < right
    exact = stats.binomtest(right, rows).proportion_ci(0.95, "exact")
    assert find(hits, np.ones(rows)) == pytest.approx(list(exact), rel=1e-12)
    assert find(hits, np.full(rows, 1e200)) == pytest.approx(list(exact), rel=1e-12)
    padded = np.append(hits, [True, False]), np.append(np.full(rows, 0.3), [0, 0])
    assert find(*padded) == pytest.approx(list(exact), rel=1e-12)
    whole = np.arange(rows) % 3 + 1
    repeated = np.repeat(hits, whole)
    exact = stats.binomtest(int(repeated.sum()), len(repeated)).proportion_ci(0.95, "exact")
    assert find(hits, whole.astype(float)) == pytest.approx(list(exact), rel=1e-12)


def test_mean_interval_is_students():
    rng = np.random.default_rng(0)
    values, whole = rng.exponential(size=50), rng.integers(1, 4, 50)
    for x, w in ((values, np.ones(50)), (values, np.full(50, 0.3)), (values, whole.astype(float))):
        repeated = np.repeat(x, w.astype(int)) if (w >= 1).all() else x
        exact = stats.ttest_1samp(repeated, 0).confidence_interval(0.95)
        assert intervals.find_mean_interval(x, w, repeated.mean()) == pytest.approx(list(exact), rel=1e-12)
    assert intervals.find_mean_interval(values[:1], np.ones(1), 1.0) is None
    assert intervals.find_mean_interval(np.array([0.0, 9.0]), np.ones(2), 4.5)[0] == 0  # no loss is below 0


def draw_rows(rng, n, gap):
    """Confidences, and hits whose probability is off by gap(confidence)."""
    confidence = 0.4 + 0.6 * rng.beta(2, 1.2, n)
    return confidence, rng.random(n) < np.clip(confidence + gap(confidence), 0, 1)


def find_true_errors(gap):
    """The binned and the smooth error of so many rows that hits are replaced by their probabilities."""
    confidence = 0.4 + 0.6 * np.random.default_rng(99).beta(2, 1.2, 200_000)
    r = (np.clip(confidence + gap(confidence), 0, 1) - confidence) / len(confidence)
    at = np.searchsorted(EDGES[1:-1], confidence)
    binned = np.abs(np.bincount(at, r, 15)).sum()
    if smooth_error._has_one_sign(r):
        return binned, abs(r.sum())
    smoother = smooth_error._Smoother(confidence, r)
    return binned, brentq(lambda s: smoother.measure(s) - s, 1e-4, 1)


@pytest.mark.parametrize("n", [300, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "gap",
    [
        pytest.param(lambda f: 0 * f, id="calibrated"),
        pytest.param(lambda f: -0.08 * (f > 0.7), id="sometimes too sure", marks=pytest.mark.slow),
        pytest.param(lambda f: 0.06 * np.sin(12 * f), id="both ways", marks=pytest.mark.slow),
        pytest.param(lambda f: -0.2 * f, id="too sure"),
    ],
)
def test_calibration_intervals_hold_the_true_error(gap, n):
    """In 40 samples at least 31 times (in 400 samples it was 85 to 95 %), at lengths that tell something."""
    binned, smooth = find_true_errors(gap)
    held, lengths = np.zeros(2), np.zeros(2)
    for seed in range(40):
        f, hits = draw_rows(np.random.default_rng(seed), n, gap)
        w = np.ones(n)
        a, b = intervals.find_ece_interval(fill_bins(f, hits, w, 15, "uniform"), f, hits, w)
        error = smooth_error.find_smooth_error(f, hits, w)
        c, d = intervals.find_smooth_ece_interval(error, f, hits, w)
        assert c <= error <= d
        held += a <= binned <= b, c <= smooth <= d
        lengths += b - a, d - c
    assert (held >= 31).all()
    assert (lengths / 40 < 2.2 / np.sqrt(n)).all()


def test_influence_is_the_derivative_of_the_smooth_error():
    """Against the error with one confidence's residual changed by a little."""
    rng = np.random.default_rng(1)
    f, hits = draw_rows(rng, 300, lambda f: 0.1 * np.sin(12 * f))
    w, rows = np.ones(300), [0, 50, 299]
    error = smooth_error.find_smooth_error(f, hits, w)
    influence = smooth_error.find_smooth_influence(f, hits, w, error)
    for i in rows:
        ends = []
        for change in (-1e-4, 1e-4):
            smoother = smooth_error._Smoother(f, (hits - f) / 300 + change * (np.arange(300) == i))
            ends.append(brentq(lambda s, smoother=smoother: smoother.measure(s) - s, 1e-4, 1))
        assert influence[i] == pytest.approx((ends[1] - ends[0]) / 2e-4, abs=0.01)
    assert (smooth_error.find_smooth_influence(f, f > 2, w, f.mean()) == -1).all()


def test_macro_f1_interval():
    """With two classes of equal size it is close to that of the accuracy; a class drawn by no sample is not counted."""
    rng = np.random.default_rng(2)
    labels = np.arange(1000) % 2
    predicted = np.where(rng.random(1000) < 0.1, 1 - labels, labels)
    w = np.ones(1000)
    found = intervals.find_macro_f1_interval(labels, predicted, w, 2)
    assert found == pytest.approx(intervals.find_accuracy_interval(labels == predicted, w), abs=3e-3)
    doubled = intervals.find_macro_f1_interval(labels, predicted, 2 * w, 2)
    assert doubled[1] - doubled[0] == pytest.approx((found[1] - found[0]) / np.sqrt(2), rel=0.05)
    assert intervals.find_macro_f1_interval(labels, labels, w, 5) == [1, 1]


def test_report_has_intervals_of_all_cards():
    """Each holds its figure; one row has none; and the page shows them."""

    class Constant:
        classes_ = np.array(["a", "b"])

        def predict_proba(self, X):
            return np.asarray(X)

    rng = np.random.default_rng(3)
    p = rng.dirichlet([2, 2], 300)
    y = Constant.classes_[(rng.random(300) < p[:, 1]).astype(int)]
    report = evaluate(Constant(), p, y)
    found = report.to_dict()
    for figures, key in ((found, "accuracy"), (found, "macro_f1"), *((found["before"], k) for k in KEYS)):
        low, high = figures[f"{key}_interval"]
        assert 0 <= low <= figures[key] <= high
        assert f"95 % interval {low:.3f} to {high:.3f}" in report._repr_html_()
    one = evaluate(Constant(), p[:1], y[:1])
    assert one.to_dict()["before"]["log_loss_interval"] is None
    assert "one row has no interval" in one._repr_html_()
    assert '"log_loss_interval": null' in one.to_json()
