"""A model with a calibrator in one file, as `calibrate --method` writes it; a temperature is kept in the model itself.

The file holds the arrays and the header of the model, and the bytes of the calibrator's own file as one array more.
Its class is another one, so that `SoftmaxRegression.load` refuses it instead of leaving the calibrator out.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._learn import store

CLASS = "CalibratedRegression"
CALIBRATOR = "calibrator"
METHODS = {
    "temperature": "TemperatureScaling",
    "vector": "VectorScaling",
    "matrix": "MatrixScaling",
    "dirichlet": "DirichletCalibration",
    "platt": "PlattScaling",
    "isotonic": "IsotonicCalibration",
}


class CalibratedRegression:
    """A fitted model and a calibrator of its decision function."""

    def __init__(self, model: Any, calibrator: Any) -> None:
        """Join the two; the attributes of the model are those of the whole."""
        self.model, self.calibrator = model, calibrator

    def __getattr__(self, name: str) -> Any:
        if name in ("model", "calibrator"):  # not yet set, as in a copy
            raise AttributeError(name)
        return getattr(self.model, name)

    def predict_proba(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Calibrated probabilities."""
        return np.asarray(self.calibrator.transform(self.model.decision_function(x)))

    def save(self, path: Path) -> None:
        """Write both to one file."""
        with tempfile.TemporaryDirectory() as folder:
            parts = {name: Path(folder, f"{name}.safetensors") for name in ("model", CALIBRATOR)}
            self.model.save(parts["model"])
            self.calibrator.save(parts[CALIBRATOR])
            arrays, header = store.read(parts["model"], type(self.model).__name__)
            arrays[CALIBRATOR] = np.frombuffer(parts[CALIBRATOR].read_bytes(), np.uint8)
        header = {name: value for name, value in header.items() if name not in ("format", "version", "class")}
        store.write(path, CLASS, arrays, {**header, "method": type(self.calibrator).__name__})


def load_any(path: Path) -> Any:
    """Read a model with or without a calibrator."""
    from .. import calibration
    from ..linear_model import ManyClassRegression, SoftmaxRegression

    try:
        arrays, header = store.read(path, CLASS)
    except ValueError as error:
        for model_class in (SoftmaxRegression, ManyClassRegression):
            if model_class.__name__ in str(error):
                return model_class.load(path)
        raise
    with store.reading(path):
        method = header.pop("method", None)
        store.need(method in METHODS.values() and CALIBRATOR in arrays, "it has no calibrator")
        header = {name: value for name, value in header.items() if name not in ("format", "version", "class")}
        with tempfile.TemporaryDirectory() as folder:
            parts = {name: Path(folder, f"{name}.safetensors") for name in ("model", CALIBRATOR)}
            parts[CALIBRATOR].write_bytes(arrays.pop(CALIBRATOR).tobytes())
            store.write(parts["model"], SoftmaxRegression.__name__, arrays, header)
            model = SoftmaxRegression.load(parts["model"])
            calibrator = getattr(calibration, str(method)).load(parts[CALIBRATOR])
    return CalibratedRegression(model, calibrator)
