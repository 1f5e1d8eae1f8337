"""Builds the C core (one library, some of whose files have their own flags) and the extensions that use it."""

import os
import re
import runpy
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
# Each line of src_c/flags.txt: a kind of compiler, a file, flags.
FLAGS = [line.split() for line in (ROOT / "src_c" / "flags.txt").read_text().splitlines() if line[:1] not in ("", "#")]


def machine():
    return os.environ.get("_PYTHON_HOST_PLATFORM", os.uname().machine if hasattr(os, "uname") else "x86_64")


def flags_of(file, msvc):
    """Compiler flags of a file, as flags.txt names it, or with "*" of all files."""
    kinds = ["msvc"] if msvc else ["gnu", "gcc", "release", "wheel"]
    if any(name in machine().lower() for name in ("x86_64", "amd64")):
        kinds.append(f"{kinds[0]}-x86")
    return [flag for kind, name, *flags in FLAGS if kind in kinds and name == file for flag in flags]


def cuda_headers():
    """Headers of the core that the CUDA kernels include, by following their #include lines."""
    found, todo = set(), sorted((ROOT / "csoftmax" / "_cuda").glob("*.cu*"))
    while todo:
        file = todo.pop()
        for name in re.findall(r'^#include "(.+)"', file.read_text(), re.M):
            header = next(
                (path for path in (file.parent / name, ROOT / "src_c" / name) if path.is_file()), ROOT / "src_c" / name
            ).resolve()
            if header.is_relative_to(ROOT.resolve() / "src_c") and header not in found:
                found.add(header)
                todo.append(header)
    return sorted(str(path.relative_to(ROOT.resolve() / "src_c")) for path in found)


source_hash = runpy.run_path(str(ROOT / "csoftmax" / "_runtime" / "source_hash.py"))["source_hash"]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
MACROS = [("CSM_SOURCE_HASH", f'"{source_hash(ROOT)}"'), ("CSM_VERSION", f'"{VERSION}"')]
SHARED = sys.platform == "linux"  # elsewhere the core is linked into each extension, and shipped as a static library
SONAME = "libcsoftmax.so.0"  # the number is CSM_ABI_MAJOR
HARDENED = ["-Wl,-z,relro,-z,now", "-Wl,-z,noexecstack", "-Wl,--build-id=none"]


class BuildCore(build_ext):
    """Builds the core before the extensions, and copies all of them beside the sources: Python searches the current
    directory first, so that `python -m csoftmax` in a checkout needs them there."""

    def build_extensions(self):
        self.msvc = self.compiler.compiler_type == "msvc"
        common = flags_of("*", self.msvc)
        self.openmp = [] if sys.platform == "darwin" else ["/openmp" if self.msvc else "-fopenmp"]
        self.flags = common + self.openmp
        self.library = Path(self.build_lib) / "csoftmax" / "lib"
        shutil.rmtree(self.library, ignore_errors=True)  # left by an earlier build, perhaps with another libgomp
        self.library.mkdir(parents=True)
        self.force = True  # always: the extensions and the library carry the hash of all sources
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
                beside = ROOT / self.get_ext_filename(self.get_ext_fullname(ext.name))
                beside.unlink(missing_ok=True)  # first: a running process has the old file mapped
                shutil.copy2(built, beside)
        beside = ROOT / "csoftmax" / "lib"
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(self.library, beside)

    def build_extension(self, ext):
        """Build an extension, of which some files have flags of their own."""
        for source in [name for name in ext.sources if flags_of(name, self.msvc)]:
            ext.sources.remove(source)
            ext.extra_objects = self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=ext.define_macros,
                include_dirs=ext.include_dirs,
                extra_postargs=ext.extra_compile_args + flags_of(source, self.msvc),
            ) + list(ext.extra_objects)
        super().build_extension(ext)

    def compile_core(self):
        """Compile the core, each file with its own flags; return the object files."""

        def objects_of(file):
            return self.compiler.compile(
                [f"src_c/{file}"],
                output_dir=self.build_temp,
                macros=MACROS,
                extra_postargs=self.flags + flags_of(file, self.msvc),
            )

        # the units first: they take longest
        files = [path for folder in ("isa", "ops", "core") for path in sorted((ROOT / "src_c" / folder).glob("*.c"))]
        files = [str(path.relative_to(ROOT / "src_c")) for path in files]
        # MSVC: setuptools initialises the compiler at its first use, which is not thread-safe
        with ThreadPoolExecutor(1 if self.msvc else os.cpu_count()) as pool:
            return [name for objects in pool.map(objects_of, files) for name in objects]

    def link_shared(self, objects):
        """Link libcsoftmax.so.0, which needs libgomp.so.1 under its own name, so that a process loads only one.

        With CSOFTMAX_BUNDLE_LIBGOMP (for published wheels) a copy of libgomp is put beside the library, for machines
        without one."""
        extra = [*self.openmp, *HARDENED, "-Wl,-s", f"-Wl,-soname,{SONAME}", "-Wl,--version-script=src_c/csoftmax.map"]
        extra += ["-Wl,-rpath,$ORIGIN", "-Wl,--enable-new-dtags"]
        extra += ["-Wl,-z,nodelete"]  # its threads sleep in its code
        self.compiler.link_shared_object(objects, str(self.library / SONAME), libraries=["m"], extra_postargs=extra)
        if os.environ.get("CSOFTMAX_BUNDLE_LIBGOMP"):
            found = subprocess.check_output([*self.compiler.compiler[:1], "-print-file-name=libgomp.so.1"], text=True)
            shutil.copyfile(Path(found.strip()).resolve(), self.library / "libgomp.so.1")
            shutil.copyfile(ROOT / "src_c" / "package" / "libgomp.LICENSE.txt", self.library / "libgomp.LICENSE.txt")

    def describe(self):
        """Write the files for CMake and pkg-config.  They find the library relative to themselves, without a prefix."""
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
        for name in cuda_headers():
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
        define_macros=[*MACROS, *([("Py_LIMITED_API", "0x030B0000")] if STABLE_ABI else [])],
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
