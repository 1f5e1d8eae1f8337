"""Where functions over groups compute, which is the CPU, and their arguments there."""

from __future__ import annotations

from typing import Any

from .._arguments.foreign import as_native
from .._arguments.places import DeviceError, parse_device, to_host


def check_device(device: Any) -> None:
    """Refuse another device than the CPU."""
    if device is not None and parse_device(device)[0] == "cuda":
        raise DeviceError(
            f'device is {device!r}; functions over a group compute on the CPU: device must be None or "cpu"'
        )


def as_native_on(device: Any, name: str, a: Any) -> Any:
    """An argument as an array of NumPy, or as it is if it is none; with device "cpu" from a GPU as well."""
    a = as_native(a, name)
    return a if device is None else to_host(a)[0]
