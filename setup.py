"""Builds the C core (one library, each instruction-set unit with its own flags) and the extensions on it."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from concurrent.futures import ThreadPoolExecutor
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
    *(f"kernel/{name}.inc.h" for name in ("single", "double", "math", "element", "select", "sum")),
    *(f"kernel/{name}.h" for name in ("entmax_loss", "entmax_solve", "loss_row", "scalars")),
]
# unit: flags of GCC and Clang, flags of MSVC.  A unit built for another architecture exports an empty table.
ISA_FLAGS = {
    "scalar": (["-Os"], []),  # for CPUs that nobody has any more: small is what counts
    "neon": ([], []),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], ["/arch:AVX2"]),
    "avx512": (
        ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
        [],  # not compiled with MSVC until it has been tested
    ),
}
CORE_FLAGS = {
    "layout": ["-O3"],  # its loops are for the compiler to vectorise
    **{name: ["-Os"] for name in ("entmax", "sample", "topk")},  # what takes time in these is in the units
}
GNU_FLAGS = [
    *["-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"],
    # the same bits on every instruction set; no call of memcpy from a unit
    *["-ffp-contract=off", "-fno-tree-loop-distribute-patterns", "-fno-lto"],
    # GCC 12 forgets the rounding of neighbouring (double)(float) where it makes vectors of them
    "-fno-tree-slp-vectorize",
    "-fno-asynchronous-unwind-tables",  # nothing here is unwound, and the wheel has a limit
    "-g0",  # Python's own flags ask for debug information: ten times the size, and paths of the building machine
    *["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"],
]
MSVC_FLAGS = ["/std:c11", "/experimental:c11atomics", "/O2", "/fp:precise"]


def machine():
    return os.environ.get("_PYTHON_HOST_PLATFORM", os.uname().machine if hasattr(os, "uname") else "x86_64")


def source_hash():
    """Of everything that is compiled: an editable install finds out by it that its build is stale."""
    package = ROOT / "csoftmax"
    files = [*sorted((ROOT / "src_c").rglob("*.[ch]")), *sorted((package / "include").glob("*.h"))]
    for folder in (package, package / "_cpu"):
        files += [f for f in sorted(folder.iterdir()) if f.suffix in (".c", ".h", ".pxd", ".pyx")]
    files = [f for f in files if f.suffix != ".c" or not f.with_suffix(".pyx").exists()]  # that is Cython's
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()[:16]


SOURCE_HASH = ("CSM_SOURCE_HASH", f'"{source_hash()}"')
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SHARED = sys.platform == "linux"  # elsewhere the core is linked into each extension, and given away as a static library
SONAME = "libcsoftmax.so.0"  # the number is CSM_ABI_MAJOR
HARDENED = ["-Wl,-z,relro,-z,now", "-Wl,-z,noexecstack", "-Wl,--build-id=none"]


class BuildCore(build_ext):
    """Builds the core before the extensions, and leaves a copy of all of it beside the sources: Python puts the
    current directory first, so that `python -m csoftmax` in a checkout needs them there."""

    def build_extensions(self):
        self.msvc = self.compiler.compiler_type == "msvc"
        common = MSVC_FLAGS if self.msvc else GNU_FLAGS
        self.openmp = [] if sys.platform == "darwin" else ["/openmp" if self.msvc else "-fopenmp"]
        self.flags = common + self.openmp
        self.library = Path(self.build_lib) / "csoftmax" / "lib"
        shutil.rmtree(self.library, ignore_errors=True)  # of an earlier build, perhaps with another libgomp
        self.library.mkdir(parents=True)
        self.force = True  # whatever has changed: the extensions carry the hash of all sources, as the library does
        objects = self.compile_core()
        if SHARED:
            self.link_shared(objects)
        else:
            self.compiler.create_static_lib(objects, "csoftmax", output_dir=str(self.library))
        self.describe()
        for ext in self.extensions:
            ext.extra_compile_args = common
            if SHARED:
                ext.extra_objects = [str(self.library / SONAME)]
                library = "/".join(["$ORIGIN", *[".."] * (ext.name.count(".") - 1), "lib"])
                ext.extra_link_args = [*HARDENED, "-Wl,-s", f"-Wl,-rpath,{library}", "-Wl,--enable-new-dtags"]
            else:
                ext.extra_objects = objects
                ext.extra_link_args = [] if self.msvc else self.openmp
        super().build_extensions()
        if not self.inplace:
            for ext in self.extensions:
                built = Path(self.get_ext_fullpath(ext.name))
                beside = ROOT / built.relative_to(Path(self.build_lib).absolute())
                beside.unlink(missing_ok=True)  # who runs it keeps it; writing into it would be felt there
                shutil.copy2(built, beside)
        beside = ROOT / "csoftmax" / "lib"
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(self.library, beside)

    def compile_core(self):
        """The objects; the units of the instruction sets with their own flags."""
        x86 = any(name in machine().lower() for name in ("x86_64", "amd64"))

        def objects_of(unit):
            flags = ISA_FLAGS[Path(unit).name][self.msvc] if unit.startswith("isa/") and x86 else []
            if not self.msvc:
                flags = flags or CORE_FLAGS.get(unit, [])
            return self.compiler.compile(
                [f"src_c/{unit}.c"],
                output_dir=self.build_temp,
                macros=[SOURCE_HASH],
                extra_postargs=self.flags + flags,
            )

        units = [*(f"isa/{name}" for name in ISA_FLAGS), *CORE]  # those that take long first
        # MSVC's compiler sets itself up when it is first used
        with ThreadPoolExecutor(1 if self.msvc else os.cpu_count()) as pool:
            return [name for objects in pool.map(objects_of, units) for name in objects]

    def link_shared(self, objects):
        """libcsoftmax.so.0, which needs libgomp.so.1 under its own name: whoever has loaded one shares it with us.

        With CSOFTMAX_BUNDLE_LIBGOMP (for wheels that are given to others) a copy of it lies beside, for machines
        without one."""
        extra = [*self.openmp, *HARDENED, "-Wl,-s", f"-Wl,-soname,{SONAME}", "-Wl,--version-script=src_c/csoftmax.map"]
        extra += ["-Wl,-rpath,$ORIGIN", "-Wl,--enable-new-dtags"]
        self.compiler.link_shared_object(objects, str(self.library / SONAME), libraries=["m"], extra_postargs=extra)
        if os.environ.get("CSOFTMAX_BUNDLE_LIBGOMP"):
            found = subprocess.check_output([*self.compiler.compiler[:1], "-print-file-name=libgomp.so.1"], text=True)
            shutil.copyfile(Path(found.strip()).resolve(), self.library / "libgomp.so.1")
            shutil.copyfile(ROOT / "src_c" / "package" / "libgomp.LICENSE.txt", self.library / "libgomp.LICENSE.txt")

    def describe(self):
        """The files for CMake and pkg-config, which know where they lie and so need no prefix."""
        shared = f"${{prefix}}/lib/{SONAME} -Wl,-rpath,${{prefix}}/lib"
        linked = shared if SHARED else "${prefix}/lib/libcsoftmax.a -lm"
        for name, folder in (
            ("csoftmax-config.cmake", "cmake/csoftmax"),
            ("csoftmax-config-version.cmake", "cmake/csoftmax"),
            ("csoftmax.pc", "pkgconfig"),
        ):
            to = self.library / folder / name
            to.parent.mkdir(parents=True, exist_ok=True)
            text = (ROOT / "src_c" / "package" / f"{name}.in").read_text().replace("@VERSION@", VERSION)
            to.write_text(text.replace("@LIBS@", linked))


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


# One build for every CPython from 3.11 on; a free-threaded one has no stable ABI before 3.15.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")
BINDING = Path("csoftmax/_cpu")
extensions = [
    Extension(
        name,
        sources,
        include_dirs=["csoftmax/include", "csoftmax/_cpu", "src_c"],
        define_macros=[SOURCE_HASH, *([("Py_LIMITED_API", "0x030B0000")] if STABLE_ABI else [])],
        py_limited_api=STABLE_ABI,
    )
    for name, sources in (
        (
            "csoftmax._cpu.binding",
            [str(BINDING / "binding.pyx"), *sorted(str(f) for f in BINDING.glob("*.c") if f.stem != "binding")],
        ),
        ("csoftmax.cpu", ["csoftmax/cpu.pyx"]),
    )
]
setup(
    ext_modules=cythonize(extensions, language_level=3),
    cmdclass={"build_ext": BuildCore, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
)
