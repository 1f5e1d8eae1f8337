"""Calibration of classifiers: maps learned from held-out logits and labels that make probabilities match frequencies.

All calibrators accept logits, are classifiers and transformers of scikit-learn, and share their methods:

- ``fit(logits, y, sample_weight=None, classes=None)``: y holds integers from 0 to K - 1 (the columns' numbers), or K
  distinct labels (the columns are theirs in sorted order), or labels that `classes` names; a `UserWarning` says when
  the rows are too few, or all of them classified correctly.
- ``transform(logits)`` and ``predict_proba(logits)``: calibrated probabilities; ``predict(logits)``: labels;
  ``fit_transform``, ``score``, ``set_output``, ``get_feature_names_out`` as in scikit-learn.
- ``save(path)`` and ``load(path, *, mmap=False, verify=True)``: safetensors files without pickle, with checksums.

Temperature scaling finds the mode of a posterior of log T; vector, matrix and Dirichlet calibration are penalised
softmax regressions on the logits, minimised by SciPy; Platt scaling is scikit-learn's, by Newton's method; isotonic
calibration is scikit-learn's isotonic regression of correctness on confidence. `CalibratedModel` fits a classifier and
its calibrator to the same rows, by cross-fitting.  Requires the extra ``learn``.
"""

from __future__ import annotations

try:
    import scipy.optimize  # noqa: F401
    import sklearn.frozen  # noqa: F401  (scikit-learn 1.6)
except ImportError as error:
    raise ImportError(
        f"csoftmax.calibration needs SciPy and scikit-learn >= 1.6 ({error}); install them with: "
        "pip install 'csoftmax[learn]'"
    ) from error

from ._learn.calibration.affine import DirichletCalibration, MatrixScaling, VectorScaling
from ._learn.calibration.isotonic import IsotonicCalibration
from ._learn.calibration.model import CalibratedModel
from ._learn.calibration.platt import PlattScaling
from ._learn.calibration.temperature import TemperatureScaling

__all__ = [
    "CalibratedModel",
    "DirichletCalibration",
    "IsotonicCalibration",
    "MatrixScaling",
    "PlattScaling",
    "TemperatureScaling",
    "VectorScaling",
]

# Pickles and messages show the public name, so that private files can move.
for _name in __all__:
    globals()[_name].__module__ = __name__
