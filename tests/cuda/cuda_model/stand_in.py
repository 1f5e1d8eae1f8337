"""A `cupy` whose device is the model: its arrays are NumPy's, and g++ compiles its modules.

It has the part of CuPy that csoftmax uses, with CuPy's names and behaviour, so that the package's own dispatch, launch
plans and arguments run unchanged.  "Machine code" is the source text with its options.
"""

import contextlib
import json
import re
import sys
import time
import types
from pathlib import Path
from unittest import mock

import numpy as np

from . import Module, by_value

CURRENT = [0]  # the stack of current devices
NO_WAITING = []  # if it is not empty, a host that waits for the device is an error
ATTRIBUTES = {"MaxSharedMemoryPerBlockOptin": 227 * 1024}


class ndarray(np.ndarray):
    """An array on the device: csoftmax must not read its numbers on the host."""

    def __array_finalize__(self, parent):
        self.number = getattr(parent, "number", CURRENT[-1])

    @property
    def device(self):
        return Device(self.number)

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.ctypes.data)

    def __getitem__(self, key):
        return super().__getitem__(self.checked(key))

    def __setitem__(self, key, value):
        super().__setitem__(self.checked(key), value)

    @staticmethod
    def checked(key):
        if any(isinstance(k, np.ndarray) and k.dtype == bool for k in (key if isinstance(key, tuple) else (key,))):
            raise AssertionError("a mask as an index: CuPy waits for the device to count it")
        return key

    def get(self):
        if NO_WAITING:
            raise AssertionError("an array of the device is copied to the host: that waits for it")
        return np.array(self)

    def set(self, x):
        np.copyto(self.view(np.ndarray), x, casting="no")

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        """Arithmetic as CuPy's: all operands must be CuPy's, and on the current device."""
        arrays = [a for a in (*inputs, *out) if isinstance(a, np.ndarray)]
        if any(not isinstance(a, ndarray) for a in arrays):
            raise TypeError(f"Unsupported type {np.ndarray}")
        if any(a.number != CURRENT[-1] for a in arrays):
            raise AssertionError(f"arithmetic on device {CURRENT[-1]} of arrays of {[a.number for a in arrays]}")
        views = (a.view(np.ndarray) if isinstance(a, ndarray) else a for a in inputs)
        if out:
            options["out"] = tuple(a.view(np.ndarray) for a in out)
        result = getattr(ufunc, method)(*views, **options)
        return out[0] if out else np.asarray(result).view(ndarray)

    def __array_function__(self, function, types, arguments, options):
        if any(isinstance(a, ndarray) and a.number != CURRENT[-1] for a in arguments):
            raise AssertionError(f"numpy.{function.__name__} on device {CURRENT[-1]} of an array of another")
        result = super().__array_function__(function, types, arguments, options)
        return result.view(ndarray) if type(result) is np.ndarray else result

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __bool__(self):
        raise AssertionError("the host reads an array of the device: it would wait for it")

    __float__ = __int__ = __index__ = item = tolist = __bool__

    def __dlpack_device__(self):
        return 2, self.number


ndarray.__module__ = "cupy"


def on_device(x):
    """A copy on the device; like CuPy's memory, its own begins at a multiple of 512 bytes."""
    x = np.asarray(x.view(np.ndarray) if isinstance(x, ndarray) else x)
    y = empty(x.shape, x.dtype)
    np.copyto(y.view(np.ndarray), x)
    return y


def zeros(shape, dtype=np.float64):
    x = empty(shape, dtype)
    x.view(np.ndarray)[...] = 0
    return x


def empty(shape, dtype=np.float64):
    dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else tuple(shape)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.full(size + 1024, 0xAA, np.uint8)
    begin = -memory.ctypes.data % 512
    return memory[begin : begin + size].view(dtype).reshape(shape).view(ndarray)


class _Host:
    """Another library's array that claims to be on a CUDA device, for NumPy: its memory is the CPU's."""

    def __init__(self, x):
        self.__dlpack__ = x.__dlpack__

    def __dlpack_device__(self):
        return 1, 0


def from_dlpack(x):
    """An array on the memory of another library's array, which claims to be CUDA's."""
    kind, number = x.__dlpack_device__()
    if kind != 2:
        raise TypeError(f"memory of DLPack's kind {kind} is not CUDA's")
    a = np.from_dlpack(_Host(x)).view(ndarray)
    a.number = number
    return a


@contextlib.contextmanager
def nothing_waits():
    """A context in which the host may only enqueue work."""
    NO_WAITING.append(True)
    try:
        yield
    finally:
        NO_WAITING.pop()


class Device:
    def __init__(self, number=None):
        self.id = CURRENT[-1] if number is None else number
        self.compute_capability = "90"
        self.attributes = dict(ATTRIBUTES)

    def __enter__(self):
        CURRENT.append(self.id)
        return self

    def __exit__(self, *error):
        CURRENT.pop()


class RawKernel:
    launches = []  # noqa: RUF012 - for tests: (name, grid, block, shared, counts)
    options = {"count": False, "races": True, "backward": False, "last": None}  # noqa: RUF012

    def __init__(self, kernel):
        self.kernel = kernel
        self.max_dynamic_shared_size_bytes = 48 * 1024

    def __call__(self, grid, block, args, *, shared_mem=0):
        for a in args:
            if isinstance(a, np.ndarray) and not isinstance(a, ndarray) and a.size != 1:
                raise TypeError("a NumPy array is passed by value, and must have one element")
            if isinstance(a, ndarray) and not a.flags.c_contiguous:
                raise AssertionError("a kernel does not see strides")
            if isinstance(a, ndarray) and a.number != CURRENT[-1]:
                raise AssertionError(f"an array of device {a.number} in a launch on device {CURRENT[-1]}")
        args = [
            by_value(a)
            if isinstance(a, np.ndarray) and not isinstance(a, ndarray)
            else a.view(np.ndarray)
            if isinstance(a, ndarray)
            else a
            for a in args
        ]
        limit = self.max_dynamic_shared_size_bytes
        counts = self.kernel(grid, block, args, shared_mem, limit=limit, **self.options)
        self.launches.append((self.kernel.name, tuple(grid), tuple(block), shared_mem, counts))


class RawModule:
    def __init__(self, *, path):
        code = json.loads(Path(path).read_bytes().rstrip(b"\0"))
        defines = [o for o in code["options"] if o.startswith("-D")]
        names = re.findall(r'extern "C" __global__ void\s+__launch_bounds__\([^)]*\)\s+(\w+)\(', code["source"])
        include = [o[2:] for o in code["options"] if o.startswith("-I")]
        self.module = Module(code["source"], names, defines, include)

    def get_function(self, name):
        return RawKernel(self.module.kernel(name))


class Stream:
    waits = []  # noqa: RUF012 - for tests: (the stream that waits, the one it waits for)

    def __init__(self, pointer=0):
        self.pointer = pointer

    def record(self):
        return self

    def wait_event(self, event):
        self.waits.append((self.pointer, event.pointer))


class Event:
    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        assert not NO_WAITING, "an event is waited for"


class NVRTCError(RuntimeError):
    pass


def _nvrtc():
    programs = {}

    def create(source, name, headers, include_names):
        programs[len(programs)] = {"source": source}
        return len(programs) - 1

    def compile_program(program, options):
        programs[program]["options"] = list(options)

    return types.SimpleNamespace(
        NVRTCError=NVRTCError,
        createProgram=create,
        compileProgram=compile_program,
        getCUBIN=lambda program: json.dumps(programs[program]).encode(),
        getPTX=lambda program: b"",
        getProgramLog=lambda program: "",
        destroyProgram=lambda program: None,
        getVersion=lambda: (0, 0),
        getSupportedArchs=lambda: [75, 80, 90],
    )


def where(mask, x, y):
    if any(getattr(a, "dtype", mask.dtype).name == "bfloat16" for a in (x, y)):
        raise AssertionError("CuPy has no loop of `where` for bfloat16, and makes it float32")
    return on_device(np.where(*(a.view(np.ndarray) if isinstance(a, ndarray) else a for a in (mask, x, y))))


def module():
    """The stand-in as a module."""
    cupy = types.ModuleType("cupy")
    cupy.ndarray, cupy.RawModule, cupy.empty = ndarray, RawModule, empty
    cupy.asarray = lambda x: x if isinstance(x, ndarray) else on_device(x)
    cupy.array = on_device
    cupy.asnumpy = lambda x: x.get()
    cupy.zeros = zeros
    cupy.empty_like = lambda x: empty(x.shape, x.dtype)
    cupy.matmul = lambda a, b, out=None: np.matmul(a, b, out=out)
    cupy.where = where
    cupy.full = lambda shape, value, dtype: on_device(np.full(shape, value, dtype))
    cupy.ascontiguousarray = lambda x: x if x.flags.c_contiguous else on_device(x)
    cupy.argsort = lambda x, axis=-1: on_device(
        np.argsort(x.view(np.ndarray), axis, kind="stable")
    )  # stable, as CuPy's
    cupy.broadcast_to = lambda x, shape: np.broadcast_to(x, shape, subok=True)
    cupy.may_share_memory = np.may_share_memory
    cuda = types.ModuleType("cupy.cuda")
    cuda.Device, cuda.nvrtc = Device, _nvrtc()
    cuda.runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 2, getDeviceProperties=lambda i: {"name": b"a model of a CUDA block"}
    )
    cuda.Event, cuda.get_elapsed_time = Event, lambda begin, end: 1000 * (end.time - begin.time)
    cupy.copyto = lambda to, x: np.copyto(to.view(np.ndarray), x.view(np.ndarray))
    cupy.__version__ = "0"
    cuda.ExternalStream, cuda.get_current_stream = Stream, Stream
    cupy.from_dlpack = from_dlpack
    cupy.cuda = cuda
    return cupy


@contextlib.contextmanager
def installed(folder):
    """A context in which `import cupy` finds the stand-in, and machine code goes to the folder."""
    from csoftmax._cuda import compiler, device

    caches = device.find_architecture, device.read_shared_limit, compiler.load_module, compiler.load_kernel
    cupy = module()
    modules = {"cupy": cupy, "cupy.cuda": cupy.cuda, "cupyx": None, "cupyx.scipy": None}
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)  # other imports stay, because extension modules cannot be loaded twice
    for f in caches:
        f.cache_clear()
    try:
        with mock.patch.dict("os.environ", {"CUPY_CACHE_DIR": str(folder)}):
            yield cupy
    finally:
        for name, real in before.items():
            if real is None:
                del sys.modules[name]
            else:
                sys.modules[name] = real
        for f in caches:
            f.cache_clear()
