"""Model files: arrays in safetensors or npz, everything else in a JSON header, and no pickle.

A file is written beside its destination and moved there when it is complete.  Reading compares sizes before it
allocates, and executes nothing from the file.

Arrays: coef, intercept, and the classes if they are numbers.  Header: {"format", "version", "class", "parameters",
"classes" if they are strings, "n_iter", "history", "feature_names", "frozen"}.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from .parameters import check_parameters

FORMAT, VERSION = "csoftmax-model", 1
HEADER = "csoftmax"  # its key in the metadata of safetensors, and the name of an array of bytes in npz
MAX_HEADER_BYTES = 64 << 20

Arrays = dict[str, NDArray[Any]]
Estimator = TypeVar("Estimator")


def _to_json(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {"__pairs__": [[_to_json(k), _to_json(v)] for k, v in value.items()]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_to_json(v) for v in value]
    raise TypeError(f"{value!r} cannot be saved")


def _from_json(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"__pairs__"}:
        return dict(value["__pairs__"])
    return value


def describe(model: Any) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and header of a fitted estimator."""
    arrays = {"coef": model.coef_, "intercept": model.intercept_}
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "class": type(model).__name__}
    parameters = model.get_params(deep=False)
    parameters["callbacks"] = None
    if not isinstance(parameters["random_state"], int | np.integer):
        parameters["random_state"] = None
    header["parameters"] = {name: _to_json(value) for name, value in parameters.items()}
    if model.classes_.dtype.kind in "biuf":
        arrays["classes"] = model.classes_.astype(np.uint8) if model.classes_.dtype == bool else model.classes_
        header["bool_classes"] = model.classes_.dtype == bool
    else:
        header["classes"] = [str(c) for c in model.classes_]
        if any(not isinstance(c, str) for c in model.classes_.tolist()):
            raise TypeError(f"classes_ must be numbers or strings to be saved, got {model.classes_!r}")
        header["object_classes"] = model.classes_.dtype == object
    header["n_iter"] = int(model.n_iter_)
    header["history"] = {name: list(map(float, values)) for name, values in model.history_.items()}
    if hasattr(model, "feature_names_in_"):
        header["feature_names"] = list(map(str, model.feature_names_in_))
    if hasattr(model, "frozen_"):
        header["frozen"] = model.frozen_.tolist()
    return {name: np.ascontiguousarray(a) for name, a in arrays.items()}, header


def save(model: Any, path: str | PathLike[str]) -> None:
    """Write a fitted estimator as safetensors, or as npz if the name ends in .npz."""
    path = Path(path)
    arrays, header = describe(model)
    text = json.dumps(header)
    if path.suffix != ".npz":
        try:
            from safetensors.numpy import save as encode
        except ImportError as error:
            raise ImportError(
                f"safetensors cannot be imported ({error}); install it, or choose a name that ends in .npz"
            ) from error
        write_whole(path, lambda f: f.write(encode(arrays, metadata={HEADER: text})))
    else:
        arrays[HEADER] = np.frombuffer(text.encode(), np.uint8)
        write_whole(path, lambda f: np.savez(f, **arrays))  # type: ignore[arg-type]


def write_whole(path: str | PathLike[str], write: Callable[[BinaryIO], object]) -> None:
    """Call write(file) with a new file that then replaces `path`; if anything fails, the old file stays."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # the mode that open() gives a new file
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


class DamagedError(ValueError):
    """The file is not a model, or is incomplete."""


def _read_npz(path: Path) -> tuple[Arrays, str]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        size = path.stat().st_size
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise DamagedError(f"{entry.filename!r} is compressed or larger than the file")
            with archive.open(entry) as f:
                version = np.lib.format.read_magic(f)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version not in read:
                    raise DamagedError(f"{entry.filename!r} has npy version {version}")
                shape, fortran, dtype = read[version](f, max_header_size=10_000)
                if dtype.kind not in "biuf":
                    raise DamagedError(f"{entry.filename!r} has dtype {dtype}")
                count = math.prod(shape)
                if fortran or count < 0 or f.tell() + count * dtype.itemsize != entry.file_size:
                    raise DamagedError(f"{entry.filename!r} has {entry.file_size} bytes, not those of shape {shape}")
                arrays[entry.filename.removesuffix(".npy")] = np.frombuffer(f.read(), dtype).reshape(shape).copy()
    if HEADER not in arrays:
        raise DamagedError("it has no csoftmax header")
    text = arrays.pop(HEADER)
    if text.dtype != np.uint8 or text.nbytes > MAX_HEADER_BYTES:
        raise DamagedError("its header is not text")
    return arrays, text.tobytes().decode()


def _read_safetensors(path: Path) -> tuple[Arrays, str]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as f:  # checks offsets and sizes against the file
        text = (f.metadata() or {}).get(HEADER)
        if text is None:
            raise DamagedError("it has no csoftmax header")
        return {name: f.get_tensor(name) for name in f.keys()}, text  # noqa: SIM118 - it is not a dict


def read(path: str | PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and header of a file, after the checks that apply to every class."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"file not found: {str(path)!r}")
    try:
        with path.open("rb") as f:
            npz = f.read(4) == b"PK\x03\x04"
        arrays, text = (_read_npz if npz else _read_safetensors)(path)
        header = json.loads(text)
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise DamagedError("it is not a csoftmax model file")
        if header.get("version") != VERSION:
            raise DamagedError(f"it has version {header.get('version')!r}; this csoftmax reads version {VERSION}")
        return arrays, header
    except ImportError:
        raise
    except Exception as error:  # the libraries raise many types for damaged files
        raise DamagedError(f"{str(path)!r} cannot be read as a model: {error}") from error


def load(cls: type[Estimator], path: str | PathLike[str]) -> Estimator:
    """Read a fitted estimator of class cls."""
    try:
        return _load(cls, path)
    except (TypeError, KeyError, AttributeError, ValueError) as error:  # from a forged header
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{str(path)!r} cannot be read as a model: {error}") from error


def _load(cls: type[Any], path: str | PathLike[str]) -> Any:
    arrays, header = read(path)

    def need(condition: object, problem: str) -> None:
        if not condition:
            raise DamagedError(f"{str(path)!r} cannot be read as a model: {problem}")

    need(header.get("class") == cls.__name__, f"it is a {header.get('class')!r}, not a {cls.__name__}")
    need("coef" in arrays and "intercept" in arrays, "coef or intercept is missing")
    coef, intercept = arrays["coef"], arrays["intercept"]
    need(coef.ndim == 2 and coef.dtype in (np.float32, np.float64), f"coef has shape {coef.shape}, dtype {coef.dtype}")
    need(
        intercept.shape == coef.shape[:1] and intercept.dtype == coef.dtype,
        f"intercept has shape {intercept.shape}, dtype {intercept.dtype}; coef {coef.shape}, {coef.dtype}",
    )
    classes = _read_classes(arrays, header, need)
    need(classes.shape == coef.shape[:1], f"classes have shape {classes.shape}, coef {coef.shape}")
    given = header.get("parameters")
    known = cls().get_params(deep=False)
    need(isinstance(given, dict) and set(given) <= set(known), "the parameters do not belong to this class")
    model = cls(**{name: _from_json(value) for name, value in header["parameters"].items()})
    try:
        check_parameters(model)
    except (TypeError, ValueError) as error:
        need(False, str(error))
    history = header.get("history")
    need(
        isinstance(history, dict) and all(isinstance(v, list) for v in history.values()),
        "history is not a dict of lists",
    )
    need(isinstance(header.get("n_iter"), int), "n_iter is not a number")
    model.coef_, model.intercept_, model.classes_ = coef, intercept, classes
    model.history_, model.n_iter_, model.n_features_in_ = history, header["n_iter"], coef.shape[1]
    if "feature_names" in header:
        need(len(header["feature_names"]) == coef.shape[1], "the number of feature names is not the number of columns")
        model.feature_names_in_ = np.array(header["feature_names"], object)
    if "frozen" in header:
        need(len(header["frozen"]) == len(coef), "the length of frozen differs from the number of classes")
        model.frozen_ = np.array(header["frozen"], bool)
    return model


def _read_classes(arrays: Arrays, header: dict[str, Any], need: Callable[[object, str], None]) -> NDArray[Any]:
    names = header.get("classes")
    if names is None:
        need("classes" in arrays, "classes are missing")
        return arrays["classes"].astype(bool) if header.get("bool_classes") else arrays["classes"]
    need(isinstance(names, list) and all(isinstance(n, str) for n in names), "classes are not strings")
    return np.array(names, object if header.get("object_classes") else None)
