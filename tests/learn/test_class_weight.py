"""Class weights against their definitions and scikit-learn; errors."""

import numpy as np
import pytest
from mpmath import mp, mpf
from sklearn.utils.class_weight import compute_class_weight

import csoftmax
from csoftmax._learn.labels import weigh_by_mapping
from csoftmax.class_weight import effective_number, inverse_frequency
from csoftmax.linear_model import SoftmaxRegression


def test_inverse_frequency():
    y = [0, 0, 0, 2, 2, 3]
    assert np.allclose(inverse_frequency(y), [6 / 12, 0, 6 / 8, 6 / 4])
    assert np.allclose(inverse_frequency(y, 5, "n_over_n"), [2, 0, 3, 6, 0])
    assert np.allclose(inverse_frequency(y, normalize="max_over_n"), [1, 0, 1.5, 3])
    full = np.array([0, 1, 1, 2, 2, 2])
    assert np.allclose(inverse_frequency(full), compute_class_weight("balanced", classes=np.arange(3), y=full))
    assert inverse_frequency([], n_classes=2).tolist() == [0, 0]


def test_effective_number():
    y = np.repeat([0, 1, 2], [1, 50, 100_000])
    for beta in (0, 0.5, 0.999, 0.9999999, 1):
        w = effective_number(y, beta, n_classes=4)
        assert w.sum() == pytest.approx(4)
        assert w[3] == 0
    with mp.workdps(50):
        beta = mpf(0.9999999)
        raw = [(1 - beta) / (1 - beta**n) for n in (1, 50, 100_000)]
        exact = [float(r / sum(raw) * 3) for r in raw]
    assert np.allclose(effective_number(y, 0.9999999), exact, rtol=1e-14)
    assert np.allclose(effective_number(y, 0), 1)
    assert np.allclose(effective_number(y, 1), inverse_frequency(y) / inverse_frequency(y).sum() * 3)


def test_effective_number_counts_weights_as_repetitions():
    rng = np.random.default_rng(0)
    y, w = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    w[y == 3] = 0
    for beta in (0, 0.9, 0.999, 1):
        weighted = effective_number(y, beta, 5, sample_weight=w)
        assert np.allclose(weighted, effective_number(np.repeat(y, w), beta, 5), rtol=1e-14)
        assert weighted[3] == weighted[4] == 0
    with mp.workdps(50):
        raw = [(1 - mpf(0.9)) / (1 - mpf(0.9) ** mpf(n)) for n in (0.75, 2.5)]
        exact = [float(r / sum(raw) * 2) for r in raw]
    assert np.allclose(effective_number([0, 1, 1], 0.9, sample_weight=[0.75, 2, 0.5]), exact, rtol=1e-14)
    for wrong, error in (
        ([1.0], ValueError),
        ([1, 1, -1], ValueError),
        ([1, 1, np.nan], ValueError),
        ([1, 1, np.inf], ValueError),
        (["a", "b", "c"], TypeError),
        ([[1, 1, 1]], ValueError),
        (np.ma.masked_array([1, 1, 1], [0, 0, 1]), TypeError),
    ):
        with pytest.raises(error, match="sample_weight"):
            effective_number([0, 1, 1], sample_weight=wrong)


@pytest.mark.parametrize("labels", [["1", "2", "3"], [1, 2, 3], [1.0, 2.0, 3.0], ["a", "é", "ü"], [False, True]])
def test_mapping_is_looked_up_exactly(labels):
    """Against the array of the same weights, with keys of Python and of NumPy."""
    k = len(labels)
    rng = np.random.default_rng(0)
    X, places = rng.normal(size=(40 * k, 3)), np.repeat(np.arange(k), 40)
    y, weights = np.array(labels)[places], [1.0, 3.0, 0.5][:k]
    expected = SoftmaxRegression(class_weight=weights).fit(X, y).coef_
    classes = np.unique(y)
    for keys in (labels, list(classes)):
        for given in (dict(zip(keys, weights)), dict(reversed([*zip(keys, weights)]))):
            assert np.array_equal(SoftmaxRegression(class_weight=given).fit(X, y).coef_, expected)
        missing = SoftmaxRegression(class_weight={keys[1]: 3.0}).fit(X, y).coef_
        assert np.array_equal(missing, SoftmaxRegression(class_weight=[1.0, 3.0, 1.0][:k]).fit(X, y).coef_)
    assert np.array_equal(SoftmaxRegression(class_weight={}).fit(X, y).coef_, SoftmaxRegression().fit(X, y).coef_)
    object_labels = SoftmaxRegression(class_weight=dict(zip(labels, weights)))
    if isinstance(labels[0], str):
        assert np.array_equal(object_labels.fit(X, y.astype(object)).coef_, expected)


def test_errors_of_mappings():
    X, text, numbers = np.eye(4), ["1", "2", "1", "2"], [1, 2, 1, 2]
    with pytest.raises(ValueError, match=r"class_weight has the key 1, which is not among the classes \['1', '2'\]"):
        SoftmaxRegression(class_weight={1: 2.0}).fit(X, text)
    with pytest.raises(ValueError, match=r"class_weight has the key '1'.*\[1, 2\]"):
        SoftmaxRegression(class_weight={"1": 2.0}).fit(X, numbers)
    with pytest.raises(ValueError, match="class_weight has the key 3"):
        SoftmaxRegression(class_weight={1: 1.0, np.int64(3): 2.0}).fit(X, numbers)
    SoftmaxRegression(class_weight={1: 1.0, 2: 2.0, 3: 2.0}).fit(X, numbers)  # every class has a weight
    for wrong in (None, "heavy", [1.0]):
        with pytest.raises(TypeError, match="class_weight must hold numbers"):
            SoftmaxRegression(class_weight={1: wrong}).fit(X, numbers)
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="class_weight"):
            SoftmaxRegression(class_weight={1: np.float64(wrong)}).fit(X, numbers)


def test_series_is_a_mapping():
    pd = pytest.importorskip("pandas")
    X, y = np.random.default_rng(0).normal(size=(9, 2)), ["b", "a", "b", "c", "b", "c", "b", "a", "b"]
    by_frequency = 9 / pd.Series(y).value_counts()  # in the order of frequency, not of the classes
    expected = SoftmaxRegression(class_weight=dict(by_frequency)).fit(X, y)
    assert np.array_equal(SoftmaxRegression(class_weight=by_frequency).fit(X, y).coef_, expected.coef_)


@pytest.mark.parametrize("labels", [[0, 1, 2], ["a", "b", "c"]])
def test_mapping_agrees_with_sklearn_where_that_is_right(labels):
    y = np.array(labels)[np.random.default_rng(0).integers(0, 3, 50)]
    for given in ({}, {labels[1]: 2.5}, dict(zip(labels, (1, 2, 0.5)))):
        theirs = compute_class_weight(given, classes=np.array(labels), y=y)
        assert np.array_equal(weigh_by_mapping(given, np.array(labels)), theirs)


@pytest.mark.parametrize("f", [inverse_frequency, effective_number])
def test_errors_of_class_weights(f):
    for y, options, error in (
        ([0, -1], {}, ValueError),
        ([0, 3], {"n_classes": 3}, ValueError),
        ([0.5], {}, TypeError),
        (["a"], {}, TypeError),
        ([[0]], {}, ValueError),
        ([], {}, ValueError),
        ([0], {"n_classes": 0}, ValueError),
        ([0], {"n_classes": 1.5}, TypeError),
        ([0], {"n_classes": True}, TypeError),
        ([0], {"n_classes": np.bool_(True)}, TypeError),
    ):
        with pytest.raises(error):
            f(y, **options)
    with pytest.raises(ValueError, match="normalize"):
        inverse_frequency([0], normalize="x")
    for beta in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="beta"):
            effective_number([0], beta)
    for beta in (True, "x", None):
        with pytest.raises(TypeError, match="beta"):
            effective_number([0], beta)


def test_cross_entropy_accepts_the_weights():
    y = np.array([0, 0, 0, 1])
    x = np.random.default_rng(0).normal(size=(4, 3))
    for weight in (inverse_frequency(y, 3), effective_number(y, n_classes=3)):
        assert np.isfinite(csoftmax.cross_entropy(x, y, weight=weight))


@pytest.mark.parametrize("weigh", [effective_number, inverse_frequency])
def test_masked_labels_are_refused(weigh):
    with pytest.raises(TypeError, match="y is a masked array, whose mask would be lost"):
        weigh(np.ma.masked_array([0, 1, 2], [False, True, False]))
