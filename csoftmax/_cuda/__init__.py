"""The CUDA backend: kernels compiled on first use, launched through CuPy on its current stream.

The functions `launch_*` enqueue work on CuPy arrays.  Only launch_sample waits for the device (and launch_topk, for k
above 1024, with versions of CuPy whose argsort waits).  They are imported on first use: most processes never compute
on a device, and the modules would add 6 ms to `import csoftmax`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .device import Unavailable, require, state

if TYPE_CHECKING:
    from .cross_entropy import launch_cross_entropy
    from .entmax import launch_entmax, launch_entmax_loss
    from .sample import launch_sample
    from .segment_cross_entropy import launch_segment_cross_entropy
    from .segments import launch_segments
    from .softmax import launch_softmax
    from .topk import launch_topk

__all__ = [
    "Unavailable",
    "launch_cross_entropy",
    "launch_entmax",
    "launch_entmax_loss",
    "launch_sample",
    "launch_segment_cross_entropy",
    "launch_segments",
    "launch_softmax",
    "launch_topk",
    "launch_weighted_sum",
    "require",
    "state",
]
_FILES = {
    "launch_entmax": "entmax",
    "launch_entmax_loss": "entmax",
    "launch_cross_entropy": "cross_entropy",
    "launch_sample": "sample",
    "launch_segment_cross_entropy": "segment_cross_entropy",
    "launch_segments": "segments",
    "launch_softmax": "softmax",
    "launch_topk": "topk",
    "launch_weighted_sum": "weighted_sum",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = getattr(importlib.import_module(f".{_FILES[name]}", __name__), name)
    globals()[name] = function  # the next access finds it without this function
    return function
