"""Fixtures for the tests of learning."""

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    """One thread for scikit-learn and BLAS: on few CPUs, several thread pools wait for each other."""
    with threadpool_limits(1):
        yield
