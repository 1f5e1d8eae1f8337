"""Fixtures for the tests of learning."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    """One thread for scikit-learn and BLAS: on few CPUs, several thread pools wait for each other."""
    with threadpool_limits(1):
        yield


@pytest.fixture
def three_classes():
    """120 random rows of three classes that a linear model separates."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 4))
    return X, (X @ rng.normal(size=(4, 3))).argmax(axis=1)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X / 16, y
