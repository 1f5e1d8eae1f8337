"""The error for a missing engine says how to install it."""

import importlib
import sys

import pytest

import csoftmax


def test_dask_that_is_missing_is_named_with_its_installation(monkeypatch):
    monkeypatch.delattr(csoftmax, "dask", raising=False)
    monkeypatch.delitem(sys.modules, "csoftmax.dask", raising=False)
    monkeypatch.setitem(sys.modules, "dask.array", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"csoftmax\.dask needs Dask >= 2024\.8 .* pip install 'csoftmax\[dask\]'"):
        importlib.import_module("csoftmax.dask")


@pytest.mark.parametrize("name", ["ray", "spark", "metrics", "calibration", "linear_model"])
def test_scikit_learn_that_is_missing_is_named_with_its_installation(name, monkeypatch):
    monkeypatch.delattr(csoftmax, name, raising=False)  # which may load it
    monkeypatch.delitem(sys.modules, f"csoftmax.{name}", raising=False)
    for module in ("sklearn.base", "sklearn.frozen"):
        monkeypatch.setitem(sys.modules, module, None)
    message = rf"csoftmax\.{name} needs .*scikit-learn >= 1\.6 .* pip install 'csoftmax\[(learn|ray|spark)\]'"
    with pytest.raises(ImportError, match=message):
        importlib.import_module(f"csoftmax.{name}")


def test_ray_that_is_missing_is_named_with_its_installation(monkeypatch):
    pytest.importorskip("sklearn")
    from csoftmax.linear_model import SoftmaxRegression
    from csoftmax.ray import fit

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"this needs ray, which cannot be imported .* pip install 'csoftmax\[ray\]'"):
        fit(SoftmaxRegression(), [])
