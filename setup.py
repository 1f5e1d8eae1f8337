"""Builds the C core (one static library, each instruction-set unit with its own flags) and the binding on it."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
CORE = ["cpu_features", "cross_entropy", "dispatch", "driver", "entmax", "layout", "parallel", "row", "sample", "topk"]
# Headers of the core that the CUDA kernels include.
CUDA_HEADERS = [
    "registry.h",
    *(f"vec/{name}.h" for name in ("half", "scalar", "standard")),
    *(f"kernel/{name}.inc.h" for name in ("single", "double", "math", "element", "sum")),
    *(f"kernel/{name}.h" for name in ("scalars", "loss_row")),
]
# unit: flags of GCC and Clang, flags of MSVC.  A unit built for another architecture exports an empty table.
ISA_FLAGS = {
    "scalar": ([], []),
    "neon": ([], []),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], ["/arch:AVX2"]),
    "avx512": (
        ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
        ["/arch:AVX512"],
    ),
}
GNU_FLAGS = [
    *["-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"],
    # the same bits on every instruction set; no call of memcpy from a unit
    *["-ffp-contract=off", "-fno-tree-loop-distribute-patterns", "-fno-lto"],
    *["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"],
]
MSVC_FLAGS = ["/std:c11", "/experimental:c11atomics", "/O2", "/fp:precise"]


def machine():
    return os.environ.get("_PYTHON_HOST_PLATFORM", os.uname().machine if hasattr(os, "uname") else "x86_64")


def source_hash():
    """Of everything that is compiled: an editable install finds out by it that its build is stale."""
    files = [*sorted((ROOT / "src_c").rglob("*.[ch]")), *sorted((ROOT / "csoftmax").rglob("*.p[yx][xd]"))]
    files.append(ROOT / "csoftmax" / "include" / "csoftmax.h")
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()[:16]


class BuildCore(build_ext):
    """Compiles the core before the extension, and leaves a copy of what it built beside the sources: Python puts
    the current directory first, so that `python -m csoftmax` in a checkout needs the extension there."""

    def build_extension(self, ext):
        msvc = self.compiler.compiler_type == "msvc"
        x86 = any(name in machine().lower() for name in ("x86_64", "amd64"))
        openmp = [] if sys.platform == "darwin" else ["/openmp" if msvc else "-fopenmp"]
        common = (MSVC_FLAGS if msvc else GNU_FLAGS) + openmp
        objects = []
        for unit in [*CORE, *(f"isa/{name}" for name in ISA_FLAGS)]:
            flags = ISA_FLAGS[Path(unit).name][msvc] if unit.startswith("isa/") and x86 else []
            if unit == "layout" and not msvc:
                flags = ["-O3"]  # its loops are for the compiler to vectorise
            objects += self.compiler.compile(
                [f"src_c/{unit}.c"], output_dir=self.build_temp, extra_postargs=common + flags, depends=ext.depends
            )
        package = Path(self.build_lib) / "csoftmax"
        library = package / "lib"
        library.mkdir(parents=True, exist_ok=True)
        self.compiler.create_static_lib(objects, "csoftmax", output_dir=str(library))
        ext.extra_objects = objects
        ext.extra_compile_args = common
        if not msvc:
            ext.extra_link_args = openmp + ([] if sys.platform == "darwin" else ["-Wl,-z,relro,-z,now"])
        super().build_extension(ext)
        if self.inplace:
            built = [*library.iterdir()]
        else:
            built = [*library.iterdir(), Path(self.get_ext_fullpath(ext.name))]
        for file in built:
            to = ROOT / "csoftmax" / ("lib" if file.parent == library else "")
            to.mkdir(exist_ok=True)
            shutil.copy2(file, to / file.name)


class BuildPython(build_py):
    """Puts the core's headers into csoftmax/_cuda: the CUDA kernels are compiled with them when first called."""

    def run(self):
        super().run()
        if self.editable_mode:
            return  # they are found in src_c
        for name in CUDA_HEADERS:
            to = Path(self.build_lib) / "csoftmax" / "_cuda" / "core" / name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / "src_c" / name, to)


core = Extension(
    "csoftmax._cpu",
    ["csoftmax/_cpu.pyx"],
    include_dirs=["csoftmax/include", "src_c"],
    define_macros=[("CSM_SOURCE_HASH", f'"{source_hash()}"')],
    depends=[str(f.relative_to(ROOT)) for f in sorted((ROOT / "src_c").rglob("*.h"))],
)
setup(ext_modules=cythonize([core], language_level=3), cmdclass={"build_ext": BuildCore, "build_py": BuildPython})
