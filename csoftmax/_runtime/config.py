"""The installation and what it found: versions, instruction sets, OpenMP, threads, paths."""

from __future__ import annotations

import os
import platform
import re
import sys
import warnings
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from .. import _cuda
from .._cpu import binding
from . import memory, threads
from .source_hash import source_hash

__version__ = binding.VERSION
_PACKAGE = Path(__file__).parent.parent


def get_include() -> str:
    """Directory of ``csoftmax.h``, for C and Cython programs that call the kernels.

    Returns
    -------
    str

    Examples
    --------
    >>> import csoftmax, os
    >>> os.path.exists(os.path.join(csoftmax.get_include(), "csoftmax.h"))
    True
    """
    return str(_PACKAGE / "include")


def get_library() -> str:
    """Path of the library with all kernels, which needs no Python: shared on Linux, static elsewhere.

    Returns
    -------
    str

    Examples
    --------
    >>> import csoftmax, os
    >>> os.path.basename(csoftmax.get_library())
    'libcsoftmax.so.0'
    """
    name = "libcsoftmax.so.0" if sys.platform == "linux" else "csoftmax.lib" if os.name == "nt" else "libcsoftmax.a"
    return str(_PACKAGE / "lib" / name)


def get_cmake_dir() -> str:
    """Directory of ``csoftmax-config.cmake``, for ``-Dcsoftmax_DIR=``.

    Returns
    -------
    str

    Examples
    --------
    >>> import csoftmax, os
    >>> os.listdir(csoftmax.get_cmake_dir())[0].endswith(".cmake")
    True
    """
    return str(_PACKAGE / "lib" / "cmake" / "csoftmax")


def link_flags() -> str:
    """Arguments with which a Unix compiler links the library, so that programs find it at run time."""
    library = get_library()
    return f"{library} -Wl,-rpath,{os.path.dirname(library)}" if sys.platform == "linux" else f"{library} -lm"


if source_hash(_PACKAGE.parent) not in (None, binding.SOURCE_HASH):
    warnings.warn(
        "csoftmax's C sources have changed since the extension was built; build it again with pip install -e .",
        RuntimeWarning,
        stacklevel=2,
    )


def openmp_libraries() -> list[str]:
    """Paths of the OpenMP runtimes that are loaded in this process (Linux; elsewhere empty)."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    paths = {line.split(None, 5)[5] for line in maps.splitlines() if len(line.split(None, 5)) == 6}
    return sorted(p for p in paths if re.search(r"lib(gomp|omp|iomp5)(-[^/]*)?\.so", p))


def config() -> dict[str, Any]:
    """Everything that show_config prints, as a dict."""
    libraries = openmp_libraries()
    decides, bounds = threads.reason()
    return {
        "csoftmax": __version__,
        "abi": binding.ABI,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "platform": platform.platform(),
        "isa": {"used": binding.isa(), "available": list(binding.isa_available()), "built": list(binding.isa_built())},
        "openmp": {
            "version": binding.OPENMP,
            "libraries": libraries,
            "warning": "two OpenMP runtimes are loaded: their threads compete for the same CPUs"
            if len(libraries) > 1
            else None,
        },
        "threads": {"used": binding.get_threads(), "decided_by": decides, "bounds": bounds},
        "memory": {"kept": binding.kept_pages(), "limit": memory.LIMIT},
        "cuda": _cuda.state(),
        "include": get_include(),
        "library": get_library(),
    }


@overload
def show_config(mode: Literal["print"] = "print") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "print") -> dict[str, Any] | None:
    """Show versions, instruction sets, OpenMP runtimes, threads and why, and the state of CUDA.

    Parameters
    ----------
    mode : {"print", "dicts"}, default "print"
        Print a page, or return it as a dict.

    Returns
    -------
    dict or None

    Raises
    ------
    ValueError
        If `mode` is something else.

    Examples
    --------
    >>> import csoftmax
    >>> csoftmax.show_config("dicts")["isa"]["used"] in ("scalar", "neon", "avx2", "avx512")
    True
    """
    if mode == "dicts":
        return config()
    if mode != "print":
        raise ValueError(f'mode must be "print" or "dicts", got {mode!r}')
    page = config()
    isa, openmp, limits = page["isa"], page["openmp"], page["threads"]
    print(f"csoftmax {page['csoftmax']} (C ABI {page['abi']}), Python {page['python']}, NumPy {page['numpy']}")
    print(f"platform  {page['platform']}")
    print(f"ISA       {isa['used']} (available: {', '.join(isa['available'])}; built: {', '.join(isa['built'])})")
    print(f"OpenMP    {', '.join(openmp['libraries']) or ('built in' if openmp['version'] else 'none')}")
    if openmp["warning"]:
        print(f"          warning: {openmp['warning']}")
    bounds = ", ".join(f"{name} {bound}" for name, bound in limits["bounds"].items())
    print(f"threads   {limits['used']} (decided by {limits['decided_by']}; {bounds})")
    print(f"memory    {page['memory']['kept']:,} bytes kept for later results (at most {page['memory']['limit']:,})")
    print(f"CUDA      {page['cuda']['reason']}")
    print(f"C header  {page['include']}")
    print(f"library   {page['library']}")
    return None
