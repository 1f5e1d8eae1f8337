"""Tables and labelled arrays (pandas, xarray, polars, pyarrow), and the kinds of argument that are refused with advice.

No such library is imported here: an argument can only be of a library that the caller has imported.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

_Function = TypeVar("_Function", bound=Callable[..., Any])

_LOGITS = ("x", "logits", "emissions")  # arguments whose elements can be left out by a mask or -inf


def refuse_kind(name: str, x: Any) -> None:
    """Refuse what NumPy would read wrongly, or not as an array, and say what to pass instead."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; {_advise_masked(name)}")
    if isinstance(x, np.matrix):
        raise TypeError(f"{name} is a numpy.matrix, which has two axes in every result: pass numpy.asarray({name})")
    if x is None:
        raise TypeError(f"{name} has dtype object, because it is None: an array of numbers is required")
    what = f"{name} is a {type(x).__module__.partition('.')[0]} {type(x).__name__}"
    if isinstance(x, list | tuple) and "dask" in sys.modules:
        held = next((item for item in x if is_dask(item)), None)
        if held is not None:
            raise TypeError(
                f"{name} is a {type(x).__name__} that holds a dask {type(held).__name__}: pass dask.array.stack({name})"
            )
    if is_dask(x):
        how = next((f"map_{parts}" for parts in ("partitions", "blocks") if hasattr(type(x), f"map_{parts}")), None)
        map_parts = f", or {name}.{how}(function) with a function of csoftmax, where each part holds whole rows"
        raise TypeError(f"{what} whose values are not computed: pass {name}.compute(){map_parts if how else ''}")
    if _is_of("scipy", x) and hasattr(x, "toarray"):
        absent = "; absent elements would be logits of 0" if name in _LOGITS else ""
        raise TypeError(f"{what}, which is sparse{absent}: pass {name}.toarray()")
    if _is_of("polars", x) and hasattr(x, "collect"):
        raise TypeError(f"{what}, whose values are not computed: pass {name}.collect()")


def _advise_masked(name: str) -> str:
    """What to pass instead of a masked array: which number stands for nothing depends on the argument."""
    if name in _LOGITS:
        return (
            f"pass {name}.data, and ~numpy.ma.getmaskarray({name}) as where; to a function without where, "
            f"{name}.filled(-numpy.inf)"
        )
    if name in ("where", "mask"):
        return f"pass {name}.filled(False), which leaves masked elements out"
    if name in ("target", "labels", "tags"):
        return f"pass {name}.filled(-100), where -100 is the ignore_index, which leaves masked rows out"
    if name in ("weight", "sample_weight"):
        return f"pass {name}.filled(0), which leaves masked ones out"
    return f"pass {name}.filled(value) with the value that masked elements have"


def _is_of(library: str, x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == library


def is_dask(x: Any) -> bool:
    """Whether x is a collection of Dask, or an array of xarray whose values are one; its coordinates are not read."""
    if not hasattr(type(x), "__dask_graph__"):
        return False
    return not _is_of("xarray", x) or getattr(x, "variable", x).__dask_graph__() is not None


def _pandas(x: Any) -> Any:
    """The pandas module if x is one of its columns or tables, else None."""
    pandas = sys.modules.get("pandas")
    if pandas is None or not hasattr(pandas, "DataFrame"):  # its import is under way
        return None
    columns = pandas.DataFrame, pandas.Series, pandas.Index, pandas.api.extensions.ExtensionArray
    return pandas if isinstance(x, columns) else None


def as_values(name: str, x: Any) -> Any:
    """An object whose elements NumPy reads as numbers; x itself, if it is not a column or table of nullable numbers.

    Missing values become NaN, integers with missing values float64; bools with missing values are refused.
    """
    if _pandas(x) is None:
        return x
    given = set(x.dtypes) if hasattr(x, "columns") else {x.dtype}
    if all(isinstance(dtype, np.dtype) for dtype in given):
        return x
    dtypes = [dtype if isinstance(dtype, np.dtype) else getattr(dtype, "numpy_dtype", None) for dtype in given]
    if any(dtype is None or dtype.kind not in "biuf" for dtype in dtypes):
        return x
    dtype = np.result_type(*dtypes)
    is_missing = np.asarray(x.isna())
    if not is_missing.any():
        return x.to_numpy(dtype=dtype)
    of_columns = x.dtypes if hasattr(x, "columns") else [x.dtype]
    is_bool = [getattr(dtype, "numpy_dtype", dtype).kind == "b" for dtype in of_columns]
    if is_missing.reshape(len(is_missing), -1)[:, is_bool].any():
        raise ValueError(f"{name} has missing values (pandas.NA) among its bools: fill them, for example by fillna")
    return x.to_numpy(dtype=dtype if dtype.kind == "f" else np.float64, na_value=np.nan)


def refuse_missing_bools(name: str, x: Any, a: Any) -> None:
    """Refuse bools with nulls of polars or pyarrow, of which NumPy makes objects: a is what it made of x."""
    if a.dtype != object or not (_is_of("polars", x) or _is_of("pyarrow", x)):
        return
    kinds = set(map(type, a.flat))
    if type(None) in kinds and kinds <= {bool, type(None)}:
        raise ValueError(f"{name} has missing values (nulls) among its bools: fill them, for example by fill_null")


def describe_objects(name: str, x: Any, a: Any) -> str:
    """How a message about an array of objects goes on: how to read the numbers, or that there are none."""
    try:
        a.astype(float)
    except (TypeError, ValueError):
        if a.ndim == 0:
            return f", because it is a {type(x).__name__}: an array of numbers is required"
        for element in a.flat:
            try:
                float(element)
            except (TypeError, ValueError):
                return f", because it holds a {type(element).__name__}, which is no number"
    return f": numpy.asarray({name}, dtype=float) reads the numbers"


def _label(like: Any, values: Any) -> Any:
    """The values, an array of the shape of `like`, as an object of its kind with its labels."""
    if _is_of("xarray", like):
        return like.copy(data=values)
    pandas = _pandas(like)
    if hasattr(like, "columns"):
        return pandas.DataFrame(values, index=like.index, columns=like.columns, copy=False)
    return pandas.Series(values, index=like.index, name=like.name, copy=False)


def _has_labels(x: Any) -> bool:
    """Whether x is a Series or DataFrame of pandas, or an array of xarray."""
    if _is_of("xarray", x):
        return hasattr(x, "dims") and hasattr(x, "shape")
    return _pandas(x) is not None and hasattr(x, "index")


def give_labels(like: Any, a: Any) -> Any:
    """An array of the shape of `like` with the labels of that; anything else unchanged."""
    return _label(like, a) if type(a) is np.ndarray and _has_labels(like) and a.shape == like.shape else a


def keep_labels(at: int = 0) -> Callable[[_Function], _Function]:
    """Give a result of the shape of the first argument its labels; at: which one, of several.

    The elements of the result must correspond to those of the argument.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def labelled(first: Any, *arguments: Any, **options: Any) -> Any:
            result = function(first, *arguments, **options)
            if isinstance(first, np.ndarray) or not _has_labels(first):
                return result

            def label(a: Any) -> Any:
                return a if a is options.get("out") else give_labels(first, a)

            if isinstance(result, tuple):
                return (*result[:at], label(result[at]), *result[at + 1 :])
            return label(result)

        return cast(_Function, labelled)

    return decorate
