"""What a missing engine raises: how to install it."""

import importlib
import sys

import pytest

import csoftmax


def test_dask_that_is_missing_is_named_with_its_installation(monkeypatch):
    monkeypatch.delitem(sys.modules, "csoftmax.dask", raising=False)
    monkeypatch.delattr(csoftmax, "dask", raising=False)
    monkeypatch.setitem(sys.modules, "dask.array", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"csoftmax\.dask needs Dask >= 2024\.8 .* pip install 'csoftmax\[dask\]'"):
        importlib.import_module("csoftmax.dask")


def test_ray_that_is_missing_is_named_with_its_installation(monkeypatch):
    pytest.importorskip("sklearn")
    from csoftmax.linear_model import SoftmaxRegression
    from csoftmax.ray import fit

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"this needs ray, which cannot be imported .* pip install 'csoftmax\[ray\]'"):
        fit(SoftmaxRegression(), [])
