"""A package that calls csoftmax's kernels: what such a package's setup.py needs."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

import csoftmax

embed = Extension(
    "embed",
    ["embed.pyx"],
    include_dirs=[csoftmax.get_include()],
    extra_objects=[csoftmax.get_library()],
    extra_link_args=["-fopenmp"],
    libraries=["m"],
)
# include_path: Cython looks for cpu.pxd on sys.path, which an editable install does not extend
where = Path(csoftmax.__file__).parent.parent
setup(name="embed", ext_modules=cythonize([embed], language_level=3, include_path=[str(where)]))
