"""Class weights against their definitions and scikit-learn; errors."""

import numpy as np
import pytest
from mpmath import mp, mpf
from sklearn.utils.class_weight import compute_class_weight

import csoftmax
from csoftmax.class_weight import effective_number, inverse_frequency


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
        ([0], {"n_classes": True}, TypeError),
    ):
        with pytest.raises(error):
            f(y, **options)
    with pytest.raises(ValueError, match="normalize"):
        inverse_frequency([0], normalize="x")
    for beta in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="beta"):
            effective_number([0], beta)


def test_cross_entropy_accepts_the_weights():
    y = np.array([0, 0, 0, 1])
    x = np.random.default_rng(0).normal(size=(4, 3))
    for weight in (inverse_frequency(y, 3), effective_number(y, n_classes=3)):
        assert np.isfinite(csoftmax.cross_entropy(x, y, weight=weight))
