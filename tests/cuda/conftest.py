"""The device of the tests of CUDA: the model by default, through a stand-in for CuPy; a real one with -m gpu."""

import shutil
from types import SimpleNamespace

import pytest
from cuda_model import stand_in

from csoftmax._cuda import Unavailable, require
from csoftmax._spec.operations import CUDA_FAMILY

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the model needs g++")


def real_cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        require(None)
    except Unavailable as error:
        pytest.skip(str(error))
    return cupy


# The fast tests keep every promise in float32; each dtype costs a compilation of all modules for the model.
OTHER_DTYPES = [pytest.param(name, marks=pytest.mark.slow) for name in ("float64", "float16", "bfloat16")]


@pytest.fixture(params=CUDA_FAMILY, ids=lambda op: op.name)
def op(request):
    return request.param


@pytest.fixture(params=["float32", *OTHER_DTYPES])
def dtype(request):
    return request.param


@pytest.fixture(params=[pytest.param("model", marks=needs_compiler), pytest.param("device", marks=pytest.mark.gpu)])
def gpu(request, tmp_path_factory):
    """`cupy`, whether it is the model's, and the launches so far (of the model)."""
    if request.param == "device":
        yield SimpleNamespace(cupy=real_cupy(), model=False, launches=[])
        return
    with stand_in.installed(tmp_path_factory.getbasetemp() / "machine code") as cupy:
        stand_in.RawKernel.launches.clear()
        yield SimpleNamespace(cupy=cupy, model=True, launches=stand_in.RawKernel.launches)


@pytest.fixture
def model(gpu):
    """The same for tests of which only the model can tell the result."""
    if not gpu.model:
        pytest.skip("only the model counts accesses, leaves blocks out and notices a host that waits")
    return gpu
