"""Files of layers over buckets, checked before anything is made of them.

Arrays: the parameters "w" and "bias", "hashes" (3, R) and, if there are any, "counts" and "frozen".  Header:
"n_classes", "n_buckets", "aggregate".
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from ..store import Arrays, need
from .state import MAX_BUCKETS, MAX_CLASSES, BucketLayer

Made = TypeVar("Made", bound=BucketLayer)

FLOATS = (np.float32, np.float64)


def describe(layer: BucketLayer) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and header of a file."""
    arrays = {**layer.parameters, "hashes": layer._family}
    if layer.frozen is not None:
        arrays["frozen"] = layer.frozen.astype(np.uint8)
    of_class, entries = layer._describe()
    return arrays | of_class, {"n_classes": layer.n_classes, "n_buckets": layer.n_buckets, **entries}


def restore(cls: type[Made], arrays: Arrays, header: dict[str, Any]) -> Made:
    """Invert `describe`, in the context of `store.reading`; arrays are not copied."""
    arrays = dict(arrays)
    family, frozen, w = arrays.pop("hashes", None), arrays.pop("frozen", None), arrays.get("w")
    need(
        family is not None and family.dtype == np.uint64 and family.ndim == 2 and len(family) == 3 and family.size,
        "hashes are missing, or not three numbers of 64 bits for each",
    )
    assert family is not None
    classes, buckets = header.get("n_classes"), header.get("n_buckets")
    need(
        classes is None or (type(classes) is int and 1 <= classes <= MAX_CLASSES),
        "n_classes is neither null nor a number from 1 to 2**63",
    )
    need(type(buckets) is int and 2 <= buckets <= MAX_BUCKETS, "n_buckets is no number from 2 to 2**31 - 1")
    assert isinstance(buckets, int)
    need(w is not None and w.ndim == 2 and w.dtype in FLOATS and w.shape[1], "w is missing or no matrix of floats")
    assert w is not None
    rows = buckets * cls._count_tables(family.shape[1])
    need(len(w) == rows, f"w has {len(w)} rows, not {rows}, for {buckets} buckets and {family.shape[1]} hashes")
    parameters: Arrays = {name: arrays.pop(name) for name in ("w", "bias") if name in arrays}
    bias = parameters.get("bias")
    need(
        bias is None or (bias.shape == (rows,) and bias.dtype == w.dtype),
        "bias is not one number for each row of w, of its dtype",
    )
    need(frozen is None or (frozen.shape == (rows,) and frozen.dtype == np.uint8), "frozen is no byte for each row")
    layer = cls.__new__(cls)
    layer._begin(parameters, family.copy(), classes, buckets, None)
    layer._frozen = None if frozen is None else frozen.astype(bool)
    layer._restore(arrays, header)
    return layer
