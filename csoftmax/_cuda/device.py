"""CUDA devices: whether one can be used, what to compile for it, and its limits.

CuPy is imported by the first call that needs it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any


class Unavailable(Exception):
    """CUDA cannot be used; the message gives the reason and the remedy."""


def _install_command() -> str:
    python = Path(sys.executable).name
    return f"{python} -m pip install 'csoftmax[cuda13x]' (CUDA 13) or 'csoftmax[cuda12x]' (CUDA 12)"


def require(device: int | None) -> ModuleType:
    """The module CuPy, once device number `device` (None: the current one) is known to be usable; else Unavailable."""
    install = _install_command()
    try:
        import cupy
    except ImportError as error:
        raise Unavailable(f"CuPy cannot be imported ({error}); install it: {install}") from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        if "NoDevice" in str(error):
            raise Unavailable(f"there is no CUDA device (is CUDA_VISIBLE_DEVICES set?): {error}") from None
        raise Unavailable(
            f"CuPy finds no CUDA driver ({error}); an NVIDIA device and its driver are needed, and a CuPy for the "
            f"driver's version of CUDA: {install}"
        ) from None
    if count == 0:
        raise Unavailable("there is no CUDA device (is CUDA_VISIBLE_DEVICES set?)")
    if device is not None and device >= count:
        raise Unavailable(f"there is no device {device}; the devices are 0 to {count - 1}")
    find_architecture(cupy.cuda.Device().id if device is None else device)
    return cupy  # type: ignore[no-any-return]


def state() -> dict[str, Any]:
    """Whether CUDA is available, and as `reason` the devices, or why it is not."""
    try:
        cupy = require(None)
    except Unavailable as error:
        return {"available": False, "reason": str(error)}
    count = cupy.cuda.runtime.getDeviceCount()
    names = [cupy.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(count)]
    return {"available": True, "reason": f"CuPy {cupy.__version__}; {', '.join(names)}"}


@functools.cache
def find_architecture(device: int) -> str:
    """The architecture to compile for on a device; Unavailable if NVRTC is missing or too new for it."""
    import cupy

    try:
        from cupy.cuda import nvrtc

        supported = nvrtc.getSupportedArchs()
    except Exception as error:  # CuPy loads NVRTC at the first call, and reports a missing one in several ways
        raise Unavailable(f"CuPy cannot load NVRTC, the compiler ({error}); install it: {_install_command()}") from None
    return choose_architecture(cupy.cuda.Device(device).compute_capability, supported)


def choose_architecture(capability: str, supported: Iterable[int]) -> str:
    """The newest of NVRTC's architectures whose code runs on a device: "sm_90", or "compute_90" for PTX.

    Machine code runs on later devices of its own generation, PTX on all later ones.
    """
    number, known = int(capability), sorted(map(int, supported))
    same_generation = [arch for arch in known if arch // 10 == number // 10 and arch <= number]
    if same_generation:
        return f"sm_{same_generation[-1]}"
    earlier = [arch for arch in known if arch <= number]
    if not earlier:
        raise Unavailable(
            f"NVRTC compiles for compute capability {known[0] / 10} and later, but the device has {number / 10}; "
            "an earlier CUDA is needed"
        )
    return f"compute_{earlier[-1]}"


@functools.cache
def read_shared_limit(device: int) -> int:
    """Bytes of shared memory that a block of threads may request."""
    import cupy

    limit: int = cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]
    return limit
