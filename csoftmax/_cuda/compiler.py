"""NVRTC: from an operation and a storage type to kernels that can be launched.

NVRTC compiles without flush-to-zero and without contraction, which CuPy's own compilation would not do.  Machine code
is kept in CuPy's cache folder, under a hash of everything that it depends on.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from . import sizes
from .device import find_architecture, read_shared_limit

FOLDER = Path(__file__).parent

# The source of each operation's module.
SOURCES = {
    "softmax": "softmax.cu",
    "log_softmax": "softmax.cu",
    "logsumexp": "softmax.cu",
    "softmax_vjp": "vjp.cu",
    "log_softmax_vjp": "vjp.cu",
    "cross_entropy": "cross_entropy.cu",
    "segment_cross_entropy": "cross_entropy.cu",
    "segment_any": "segment_any.cu",
    "topk": "topk.cu",
    "entmax": "entmax.cu",
    "sample": "sample.cu",
    "weighted_sum": "weighted_sum.cu",
}
KERNELS = {
    "softmax.cu": ("teams", "whole", "blocks", "combine", "apply", "segments"),
    "vjp.cu": ("teams", "whole", "blocks", "combine", "apply", "segments"),
    "cross_entropy.cu": ("labels", "masses", "divide", "rows", "reduce", "cap", "uncap", "clip"),
    "segment_any.cu": ("any",),
    "topk.cu": ("choose", "keys", "gather"),
    "entmax.cu": ("forward", "rows", "backward"),
    "sample.cu": ("sums", "min_sums", "draw", "chosen"),
    "weighted_sum.cu": ("weighted",),
}


def find_core_headers() -> Path:
    """The folder of the core's headers: beside this file in an installed package, src_c in a checkout."""
    installed = FOLDER / "core"
    return installed if installed.is_dir() else FOLDER.parent.parent / "src_c"


def options(op: str, suffix: str, arch: str) -> tuple[str, ...]:
    """NVRTC's options for operation `op` and storage type `suffix`."""
    return (
        f"-arch={arch}",
        "-std=c++17",
        "-default-device",  # the core's headers have no __device__
        "-fmad=false",  # the CPU's bits: a product and a sum are fused only where the source says so
        "-diag-suppress=177",  # functions of shared headers that a module does not use
        f"-DSTORAGE_{suffix}",
        f"-DOP=CSM_OP_{op}",
        f"-DIS_SEGMENTED={int(op.startswith('segment_'))}",
        f"-DRECORD_BYTES={sizes.RECORD_BYTES[SOURCES[op]]}",
        f"-DBLOCK_ELEMENTS={sizes.BLOCK_ELEMENTS}",
        f"-DBLOCK_BYTES={sizes.BLOCK_BYTES}",
        f"-DSHARED_ROW_BYTES={sizes.SHARED_ROW_BYTES}",
        f"-DTRAIL_BYTES={sizes.TRAIL_BYTES}",
        f"-DMAX_WARPS={sizes.MAX_WARPS[8 if suffix == 'f64' else 4]}",
        f"-DMAX_SEGMENT_WARPS={sizes.MAX_SEGMENT_WARPS}",
        f"-DLOG_SEGMENT_ELEMENTS={sizes.LOG_SEGMENT_ELEMENTS}",
        f"-DGRADIENT_SEGMENT_ELEMENTS={sizes.GRADIENT_SEGMENT_ELEMENTS}",
        f"-DSHARED_SURVIVORS={sizes.SHARED_SURVIVORS}",
        f"-I{FOLDER}",
        f"-I{find_core_headers()}",
    )


def compile_module(op: str, suffix: str, arch: str) -> tuple[bytes, bytes, str]:
    """The code of an operation (machine code for "sm_90", PTX for "compute_90"), its PTX, and the compiler's log."""
    from cupy.cuda import nvrtc

    name = SOURCES[op]
    program = nvrtc.createProgram((FOLDER / name).read_text(), name, (), ())
    try:
        nvrtc.compileProgram(program, (*options(op, suffix, arch), "--ptxas-options=-v"))
        ptx, log = nvrtc.getPTX(program), nvrtc.getProgramLog(program)
        # CuPy drops the last byte of machine code
        return ptx if arch.startswith("compute") else nvrtc.getCUBIN(program) + b"\0", ptx, log
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program)
        raise RuntimeError(f"NVRTC cannot compile {op} for {arch}: {error}\n{log}") from None
    finally:
        nvrtc.destroyProgram(program)


def _hash_module(op: str, suffix: str, arch: str) -> str:
    """A hash of everything that an operation's machine code depends on."""
    from cupy.cuda import nvrtc

    flags = [option for option in options(op, suffix, arch) if not option.startswith("-I")]
    parts = [repr((op, suffix, arch, flags, nvrtc.getVersion()))]
    for folder in (FOLDER, find_core_headers()):
        parts += [f.read_text() for f in sorted(folder.rglob("*")) if f.suffix in (".h", ".cuh", ".cu")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _find_machine_code(op: str, suffix: str, arch: str) -> Path:
    """The file of an operation's machine code, compiled now if the cache folder does not have it."""
    import tempfile

    name = f"csoftmax-{_hash_module(op, suffix, arch)}.{'ptx' if arch.startswith('compute') else 'cubin'}"
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    file = folder / name
    if not file.exists():
        code, _, _ = compile_module(op, suffix, arch)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=folder)
        except OSError:  # the home directory is not writable
            file = Path(tempfile.mkdtemp()) / name
            handle, temporary = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "wb") as f:
            f.write(code)
        os.replace(temporary, file)  # other processes see the whole file or none
    return file


@functools.cache
def load_module(op: str, suffix: str, device: int) -> Any:
    """The module of an operation on a device."""
    import cupy

    return cupy.RawModule(path=str(_find_machine_code(op, suffix, find_architecture(device))))


@functools.cache
def load_kernel(op: str, suffix: str, device: int, name: str) -> Any:
    """A kernel, allowed to use all the shared memory that a block of threads can have."""
    kernel = load_module(op, suffix, device).get_function(name)
    kernel.max_dynamic_shared_size_bytes = read_shared_limit(device)
    return kernel
