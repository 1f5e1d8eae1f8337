"""What workers of a cluster hold: its arrays are aligned wherever it arrives.

Messages begin at any byte, where NumPy's products leave BLAS: two to three times slower, and with other bits.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

ALIGNMENT = 16  # bytes, that of NumPy's own memory


class Held:
    """Something with arrays in it, which move with it from worker to worker."""

    def __init__(self, content: Any):
        self.content = content

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        import cloudpickle

        buffers: list[pickle.PickleBuffer] = []
        keep = buffers.append if protocol >= 5 else None  # older protocols copy arrays into the message
        return _receive, (cloudpickle.dumps(self.content, protocol, keep), buffers)


def _receive(message: bytes, buffers: Sequence[Any]) -> Held:
    return Held(pickle.loads(message, buffers=[_align_bytes(buffer) for buffer in buffers]))


def _align_bytes(buffer: Any) -> Any:
    """The buffer, or a copy where it begins between multiples of ALIGNMENT."""
    a = np.asarray(pickle.PickleBuffer(buffer).raw())
    return a.copy() if a.ctypes.data % ALIGNMENT else buffer


def align(a: Any) -> Any:
    """An array that has arrived without such a frame around it, aligned; all else as it is."""
    return np.require(a, requirements="A") if isinstance(a, np.ndarray) else a
