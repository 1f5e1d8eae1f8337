"""Calibration errors, Brier score and curves against their definitions and scikit-learn; what metrics accept."""

import itertools
import pickle
import warnings

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from csoftmax import metrics
from csoftmax._learn.calibration_error import _square_gaps, fill_bins

ERRORS = (
    metrics.expected_calibration_error,
    metrics.maximum_calibration_error,
    metrics.classwise_calibration_error,
    metrics.smooth_calibration_error,
    metrics.brier_score,
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", PendingDeprecationWarning)
    MATRIX = np.asmatrix(np.full((2, 2), 0.5))


def compute_errors(y, p, edges):
    """Expected, maximum, root mean square and debiased calibration error by definition, in a loop over the bins."""
    confidence, hits = p.max(axis=1), p.argmax(axis=1) == y
    expected, largest, square, debiased = 0.0, 0.0, 0.0, 0.0
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (confidence > low) & (confidence <= high) | ((i == 0) & (confidence == low))
        if inside.any():
            gap = abs(hits[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
            largest = max(largest, gap)
            square += inside.mean() * gap**2
            n, a = inside.sum(), hits[inside].mean()
            debiased += inside.mean() * (gap**2 - a * (1 - a) / (n - 1)) if n > 1 else 0
    return expected, largest, square**0.5, max(debiased, 0) ** 0.5


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("n_bins", [1, 2, 7, 15, 100])
def test_calibration_errors_against_their_definition(strategy, n_bins):
    rng = np.random.default_rng(n_bins)
    for p in (
        rng.dirichlet(np.ones(4), 200),
        rng.dirichlet(np.full(4, 0.05), 200),  # many certain rows
        np.eye(4)[rng.integers(0, 4, 50)],  # confidence 1
        np.full((30, 4), 0.25),
        rng.multinomial(10, np.full(4, 0.25), 300) / 10,  # on the edges of the bins
        rng.dirichlet(np.ones(1), 20),  # one class
    ):
        y = rng.integers(0, p.shape[1], len(p))
        edges = np.linspace(0, 1, n_bins + 1)
        if strategy == "quantile":
            edges = np.quantile(p.max(axis=1), edges)
            edges[0], edges[-1] = 0, 1
        ece, mce, root_mean_square, debiased = compute_errors(y, p, edges)
        given = {"n_bins": n_bins, "strategy": strategy}
        assert metrics.expected_calibration_error(y, p, **given) == pytest.approx(ece, abs=1e-14)
        error = metrics.expected_calibration_error(y, p, norm=2, **given)
        assert error == pytest.approx(root_mean_square, rel=1e-12, abs=1e-14)
        error = metrics.expected_calibration_error(y, p, norm=2, debiased=True, **given)
        assert error**2 == pytest.approx(debiased**2, rel=1e-10, abs=1e-14)
        assert metrics.maximum_calibration_error(y, p, **given) == pytest.approx(mce, abs=1e-14)
        curve = metrics.reliability_curve(y, p, **given)
        assert curve.counts.sum() == len(p)
        assert np.array_equal(np.isnan(curve.accuracy), curve.counts == 0)
        assert len(curve.edges) == n_bins + 1


def test_confidence_zero_and_one():
    """The limits belong to bins; probabilities of shape (N,) are those of the second of two classes."""
    assert metrics.expected_calibration_error([0, 1], [0.0, 1.0]) == 0
    assert metrics.expected_calibration_error([1, 0], [0.0, 1.0]) == 1
    assert metrics.maximum_calibration_error([1, 1], [1.0, 1.0]) == 0
    # equal probabilities predict the first class
    assert metrics.expected_calibration_error([0, 0], np.full((2, 4), 0.25)) == 0.75
    assert metrics.expected_calibration_error([1, 1], np.full((2, 4), 0.25)) == 0.25


@pytest.mark.parametrize("n", [2, 3, 6])
def test_debiased_square_has_the_right_mean(n):
    """Over all labels, weighted with their probabilities, the mean is the squared distance of the true accuracy."""
    c, true = 0.7, 0.55
    mean = 0.0
    for hits in itertools.product([False, True], repeat=n):
        bins = fill_bins(np.full(n, c), np.array(hits), np.ones(n), 5, "uniform")
        estimate = bins.weight @ _square_gaps(bins, True) / bins.weight.sum()
        mean += true ** sum(hits) * (1 - true) ** (n - sum(hits)) * estimate
    assert mean == pytest.approx((true - c) ** 2, abs=1e-15)


def test_debiased_error_of_weighted_rows():
    rng = np.random.default_rng(1)
    p = np.column_stack([1 - (q := rng.random(200)), q])
    y = np.where(rng.random(200) < p.max(axis=1) ** 2, p.argmax(axis=1), p.argmin(axis=1))
    given = {"n_bins": 6, "norm": 2, "debiased": True}
    plain = metrics.expected_calibration_error(y, p, **given)
    assert plain > 0
    for strategy in ("uniform", "quantile"):
        w = rng.integers(0, 4, 200)
        repeated = metrics.expected_calibration_error(
            np.repeat(y, w), np.repeat(p, w, axis=0), strategy=strategy, **given
        )
        error = metrics.expected_calibration_error(y, p, sample_weight=w, strategy=strategy, **given)
        assert error == pytest.approx(repeated, rel=1e-12)
    # weights that are not whole count by their effective number: their scale has no effect
    assert metrics.expected_calibration_error(y, p, sample_weight=np.full(200, 0.3), **given) == pytest.approx(plain)
    w = rng.random(200) + 0.1
    error = metrics.expected_calibration_error(y, p, sample_weight=w, **given)
    assert metrics.expected_calibration_error(y, p, sample_weight=w / w.sum(), **given) == pytest.approx(error)
    assert 0 < error < metrics.expected_calibration_error(y, p, sample_weight=w, n_bins=6, norm=2)


def test_debiased_error_is_zero_where_chance_explains_everything():
    rng = np.random.default_rng(0)
    q = rng.random(3000)
    y = rng.random(3000) < q
    plain = metrics.expected_calibration_error(y, q, norm=2)
    assert plain > 0.01
    assert metrics.expected_calibration_error(y, q, norm=2, debiased=True) < plain * 0.8
    # bins of one row say nothing about chance
    assert metrics.expected_calibration_error([0, 1], [0.3, 0.6], norm=2, debiased=True) == 0


@pytest.mark.parametrize("n_bins", [2, 5, 15])
def test_quantiles_of_weighted_rows_are_those_of_repeated_rows(n_bins):
    rng = np.random.default_rng(n_bins)
    for n in (1, 2, 7, 50):
        p, y, w = rng.dirichlet(np.ones(3), n), rng.integers(0, 3, n), rng.integers(1, 4, n)
        given = {"strategy": "quantile", "n_bins": n_bins}
        weighted = metrics.reliability_curve(y, p, sample_weight=w, **given)
        repeated = metrics.reliability_curve(np.repeat(y, w), np.repeat(p, w, axis=0), **given)
        assert np.array_equal(weighted.edges, repeated.edges)
        assert np.allclose(weighted.accuracy, repeated.accuracy, rtol=1e-12, equal_nan=True)
        tenths = metrics.reliability_curve(y, p, sample_weight=np.full(n, 0.1), **given)
        assert np.allclose(tenths.edges, metrics.reliability_curve(y, p, **given).edges, rtol=1e-12)


def test_classwise_error_against_sklearn():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(3), 500), rng.integers(0, 3, 500)
    total = 0
    for k in range(3):
        share, mean = calibration_curve(y == k, p[:, k], n_bins=10)
        counts = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], p[:, k]), minlength=10)
        total += (counts[counts > 0] / 500 * np.abs(share - mean)).sum() / 3
    assert metrics.classwise_calibration_error(y, p, n_bins=10) == pytest.approx(total, rel=1e-12)
    absent = np.column_stack([p, np.zeros(500)])  # a class that neither occurs nor is predicted
    assert metrics.classwise_calibration_error(y, absent, n_bins=10) == pytest.approx(total * 3 / 4, rel=1e-12)


def test_brier_score_against_sklearn():
    rng = np.random.default_rng(0)
    p, y, w = rng.dirichlet(np.ones(3), 80), rng.integers(0, 3, 80), rng.random(80)
    onehot = np.eye(3)[y]
    expected = float(np.sum((p - onehot) ** 2, axis=1) @ w / w.sum())
    assert metrics.brier_score(y, p, sample_weight=w) == pytest.approx(expected, rel=1e-14)
    assert metrics.brier_score(y % 2, p[:, 0]) == pytest.approx(sk.brier_score_loss(y % 2, p[:, 0]), rel=1e-14)
    assert metrics.brier_score(y, p, scale_by_half=True) == metrics.brier_score(y, p) / 2


def test_confidence_intervals():
    y, p = [1, 1, 1, 0, 0], [0.9] * 5
    curve = metrics.reliability_curve(y, p, n_bins=5, confidence_level=0.9)
    exact = stats.binomtest(3, 5).proportion_ci(0.9)
    assert curve.lower[-1] == pytest.approx(exact.low)
    assert curve.upper[-1] == pytest.approx(exact.high)
    edge = metrics.reliability_curve([1, 1], [0.9, 0.9], n_bins=5)
    assert edge.upper[-1] == 1
    assert 0 < edge.lower[-1] < 1
    assert np.isnan(edge.lower[0])


def test_confidence_intervals_of_weighted_rows():
    """Whole weights repeat the row; others count by their effective number, whatever their unit."""
    rng = np.random.default_rng(2)
    p, y, w = rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60), rng.integers(0, 4, 60)
    weighted = metrics.reliability_curve(y, p, sample_weight=w, n_bins=6)
    repeated = metrics.reliability_curve(np.repeat(y, w), np.repeat(p, w, axis=0), n_bins=6)
    for ends, expected in ((weighted.lower, repeated.lower), (weighted.upper, repeated.upper)):
        assert np.allclose(ends, expected, rtol=1e-12, equal_nan=True)
    plain = metrics.reliability_curve(y, p, n_bins=6)
    thirds = metrics.reliability_curve(y, p, sample_weight=np.full(60, 0.3), n_bins=6)
    assert np.allclose(thirds.upper, plain.upper, rtol=1e-12, equal_nan=True)
    uneven = metrics.reliability_curve(y, p, sample_weight=w + 0.1, n_bins=6)
    assert np.nanmean(uneven.upper - uneven.lower) > np.nanmean(plain.upper - plain.lower)


def test_labels_and_weights():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60)
    names = np.array(["b", "a", "c"])
    for f in ERRORS:
        assert f(names[y], p, labels=names) == f(y, p)
        assert f(names[y].astype(object), p, labels=list(names)) == f(y, p)
        assert f(np.sort(names)[y], p) == f(y, p)  # K different labels, in sorted order
        assert f(y + 1, p) == f(y, p)
        assert f(y.astype(float), p) == f(y.astype(np.uint8), p) == f(y, p)
        w = rng.integers(0, 3, 60)
        bound = 1e-9 if f is metrics.smooth_calibration_error else 1e-12  # the smooth error interpolates
        assert f(y, p, sample_weight=w) == pytest.approx(f(np.repeat(y, w), np.repeat(p, w, axis=0)), rel=bound)
        assert f(y, p, sample_weight=w * 0.3) == pytest.approx(f(y, p, sample_weight=w), rel=bound)


@pytest.mark.parametrize("f", ERRORS)
def test_rounding_of_probabilities_is_accepted(f):
    rng = np.random.default_rng(0)
    exact = rng.dirichlet(np.ones(4), 50)
    y = rng.integers(0, 4, 50)
    single = exact.astype(np.float32)
    assert f(y, single) == pytest.approx(f(y, exact), abs=1e-5)
    assert f(y, exact.astype(np.float16)) == pytest.approx(f(y, exact), abs=0.1)
    p = np.array([[1 + 1e-7, -1e-17], [0.25, 0.75]])
    assert f([0, 1], p) == pytest.approx(f([0, 1], [[1.0, 0.0], [0.25, 0.75]]), abs=1e-7)
    assert f([0, 1], [1 + 1e-7, 0.5]) == f([0, 1], [1.0, 0.5])
    many = np.full((3, 70_000), 1 / 70_000, np.float32)
    assert f([0, 1, 2], many) >= 0


@pytest.mark.parametrize("f", ERRORS)
@pytest.mark.parametrize(
    ("y", "p", "error", "match"),
    [
        ([0, 1], [[0.9, 0.9], [0.5, 0.5]], ValueError, r"y_prob\[0\] sums to 1\.8; each row must sum to 1"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.499]], ValueError, r"y_prob\[1\] sums to 0\.999"),
        ([0, 1], np.zeros((2, 3)), ValueError, "sums to 0"),
        ([0, 1], [[1.001, -0.001], [0.5, 0.5]], ValueError, r"y_prob\[0, 0\] is 1\.001"),
        ([0, 1], [1.2, 0.5], ValueError, r"y_prob\[0\] is 1\.2"),
        ([0, 1], [[np.inf, 0], [0.5, 0.5]], ValueError, r"y_prob\[0, 0\] is inf"),
        ([0, 1], np.ma.masked_array(np.full((2, 2), 0.5)), TypeError, "y_prob is a masked array"),
        (np.ma.masked_array([0, 1]), np.full((2, 2), 0.5), TypeError, "y_true is a masked array"),
        ([0, 1], MATRIX, TypeError, "y_prob is a numpy.matrix"),
        ([0, 1], [["a", "b"], ["c", "d"]], TypeError, "y_prob must hold probabilities"),
        ([0, 1], None, TypeError, "y_prob must be an array, got None"),
        (None, np.full((2, 2), 0.5), TypeError, "y_true must be an array, got None"),
        ([0, 1], sparse.csr_matrix(np.eye(2)), TypeError, "y_prob is sparse; pass y_prob.toarray"),
        ([0, 1], np.eye(2, dtype=np.longdouble), TypeError, "y_prob must hold probabilities, got dtype"),
        ([0, 1], np.eye(2, dtype=object), TypeError, "y_prob must hold probabilities, got dtype object"),
        ([0, 1], np.eye(2) * 1j, TypeError, "y_prob must hold probabilities, got dtype complex128"),
        ([0.5, 1], np.full((2, 2), 0.5), ValueError, r"y_true\[0\] is 0\.5; classes are whole numbers"),
        ([0, np.nan], np.full((2, 2), 0.5), ValueError, r"y_true\[1\] is nan"),
        ([0.2, 0.7], [0, 1], ValueError, "The labels come first"),
        (["a", "b", "a"], np.full((3, 3), 1 / 3), ValueError, "2 different labels, but y_prob has 3 columns"),
        (["a", None], np.full((2, 2), 0.5), TypeError, "labels must be given"),
        ([0, 5], np.full((2, 3), 1 / 3), ValueError, r"y_true\[1\] is 5; classes are 0 to 2"),
    ],
)
def test_what_is_no_probability_is_refused(f, y, p, error, match):
    with pytest.raises(error, match=match):
        f(y, p)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_bins": True}, TypeError, "n_bins must be an int, got True"),
        ({"n_bins": 2.0}, TypeError, "n_bins"),
        ({"n_bins": -1}, ValueError, "n_bins must be at least 1, got -1"),
        ({"norm": 3}, ValueError, "norm must be 1 or 2, got 3"),
        ({"norm": "l2"}, TypeError, "norm must be 1 or 2"),
        ({"norm": True}, TypeError, "norm must be 1 or 2"),
        ({"debiased": True}, ValueError, "debiased=True needs norm=2, got norm=1"),
        ({"debiased": "yes", "norm": 2}, TypeError, "debiased must be True or False"),
        ({"sample_weight": [1, -1]}, ValueError, r"sample_weight must have .*, got -1\.0 in row 1"),
        ({"sample_weight": [1, np.nan]}, ValueError, "sample_weight must have .*, got nan in row 1"),
        ({"sample_weight": [0, 0]}, ValueError, "sample_weight must have .*, got only 0"),
        ({"sample_weight": [1]}, ValueError, r"each of the 2 rows, .*, got shape \(1,\)"),
        ({"sample_weight": ["a", "b"]}, TypeError, "sample_weight must hold numbers"),
        ({"sample_weight": np.ma.masked_array([1, 1])}, TypeError, "sample_weight is a masked array"),
        ({"labels": ["a", "b"]}, ValueError, r"y_true\[0\] is 0, which is not in labels"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        metrics.expected_calibration_error([0, 1], np.full((2, 2), 0.5), **options)
    if set(options) == {"n_bins"}:
        for f in (metrics.maximum_calibration_error, metrics.classwise_calibration_error, metrics.reliability_curve):
            with pytest.raises(error, match=match):
                f([0, 1], np.full((2, 2), 0.5), **options)


def test_arrays_of_other_libraries():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(3), 30), rng.integers(0, 3, 30)
    pd = pytest.importorskip("pandas")
    for f in ERRORS:
        assert f(pd.Series(y), pd.DataFrame(p)) == f(y, p)
        assert f(pd.Series(np.array(["a", "b", "c"])[y]), pd.DataFrame(p), labels=pd.Index(["a", "b", "c"])) == f(y, p)
        assert f(pd.Series(y, dtype="Int64"), pd.DataFrame(p).astype("Float64")) == f(y, p)
        assert f(pd.Series(y).map(dict(enumerate("abc"))).astype("category"), p) == f(y, p)
    torch = pytest.importorskip("torch")
    for f in ERRORS:
        assert f(torch.tensor(y), torch.tensor(p), sample_weight=torch.ones(30)) == f(y, p)
        with pytest.raises(ValueError, match="requires grad"):
            f(torch.tensor(y), torch.tensor(p, requires_grad=True))


def test_rows_of_weight_zero_are_left_out():
    curve = metrics.reliability_curve([0, 0, 1], [0.1, 0.1, 0.6], n_bins=5, sample_weight=[1, 0, 0])
    assert curve.counts.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("y", "p", "options", "match"),
    [
        ([[0, 1]], [0.5], {}, "labels come first"),
        ([0, 3], np.full((2, 3), 1 / 3), {}, "3"),
        ([0, -1], np.full((2, 3), 1 / 3), {}, "-1"),
        ([0, 1], [[1.5, -0.5], [0.5, 0.5]], {}, r"y_prob\[0, 0\]"),
        ([0, 1], [[np.nan, 1], [0.5, 0.5]], {}, "nan"),
        ([0, 1], np.full((3, 2), 0.5), {}, "shape"),
        ([], np.zeros((0, 2)), {}, "empty"),
        ([0, 1], np.full((2, 2), 0.5), {"n_bins": 0}, "n_bins"),
        ([0, 1], np.full((2, 2), 0.5), {"strategy": "x"}, "strategy"),
        ([0, 1], np.full((2, 2), 0.5), {"labels": [0]}, "labels"),
        ([0, 2], np.full((2, 2), 0.5), {"labels": [0, 1]}, "not in labels"),
        ([0, 1], np.full((2, 2), 0.5), {"sample_weight": [0, 0]}, "sample_weight"),
    ],
)
def test_errors_of_metrics(y, p, options, match):
    with pytest.raises(ValueError, match=match):
        metrics.expected_calibration_error(y, p, **options)
    with pytest.raises(TypeError, match="y_true"):
        metrics.expected_calibration_error(["a", "b"], [0.5, 0.5])


def test_bools_are_the_labels_of_two_classes():
    assert metrics.expected_calibration_error([False, True], [0.0, 1.0]) == 0
    with pytest.raises(ValueError, match="y_true holds bools"):
        metrics.expected_calibration_error([False, True], np.full((2, 3), 1 / 3))


@pytest.mark.parametrize("name", list(metrics.__all__))
def test_public_address(name):
    """Functions and results are known under `csoftmax.metrics`, in which they can be pickled."""
    value = getattr(metrics, name)
    assert value.__module__ == "csoftmax.metrics"
    assert pickle.loads(pickle.dumps(value)) is value
