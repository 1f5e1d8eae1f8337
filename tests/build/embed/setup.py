"""The setup.py of a package that calls csoftmax's kernels."""

import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

import csoftmax

embed = Extension(
    "embed",
    ["embed.pyx"],
    include_dirs=[csoftmax.get_include()],
    extra_objects=[csoftmax.get_library()],
    runtime_library_dirs=[str(Path(csoftmax.get_library()).parent)],
)
# include_path: Cython looks for cpu.pxd on sys.path, which an editable install does not extend
where = Path(csoftmax.__file__).parent.parent
# these link no library: the first gets its functions by cimport, the second from the capsule csoftmax._C_API
threads = {"extra_compile_args": ["-fopenmp"], "extra_link_args": ["-fopenmp"]} if sys.platform == "linux" else {}
unlinked = Extension("unlinked", ["unlinked.pyx"], include_dirs=[csoftmax.get_include()], **threads)
capsule = Extension("capsule", ["capsule.c"], include_dirs=[csoftmax.get_include()])
modules = [*cythonize([embed, unlinked], language_level=3, include_path=[str(where)]), capsule]
setup(name="embed", ext_modules=modules)
