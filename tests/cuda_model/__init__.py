"""Runs CUDA kernels on the CPU, one block at a time, and watches what they do: see device.h and runtime.cpp.

A kernel's text is compiled by g++ with -fsanitize=thread, whose calls at each memory access the model answers itself.
Speed: some hundred ns for each access of each thread.
"""

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

try:
    from numpy.lib.array_utils import byte_bounds
except ImportError:  # NumPy 1
    from numpy import byte_bounds

HERE = Path(__file__).parent
# -fno-tree-sra: g++ would load a 16-byte structure in parts before the accesses are announced.
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-w", "-fno-tree-sra", "-fno-strict-aliasing", "-fwrapv"]
FLAGS += ["-ffp-contract=off", *(["-mfma"] if os.uname().machine == "x86_64" else [])]
COUNTS = ("loads", "load_sectors", "load_bytes", "stores", "store_sectors", "store_bytes")


class KernelError(RuntimeError):
    """A kernel did what hardware would not forgive."""


def rewritten(source):
    """Declarations of shared memory, which ordinary C++ does not have."""
    dynamic = r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w\s]+?)\s+(\w+)\s*\[\s*\]\s*;"
    source = re.sub(dynamic, r"#define \2 ((\1 *)cuda_model::cuda_model_dynamic_shared())", source)
    count = iter(range(1, 10**6))

    def static(m):
        return f"auto &{m[2]} = cuda_model::static_shared<{m[1]}{m[3]}>({next(count)});"

    return re.sub(r"__shared__\s+([\w\s]+?)\s+(\w+)\s*((?:\[[^\]]+\])*)\s*;", static, source)


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr[:5000]}")


def _runtime(folder, build, flags):
    """The model itself, compiled once for all kernels."""
    source = HERE / "runtime.cpp"
    tag = hashlib.sha256(source.read_bytes() + "\0".join(flags).encode()).hexdigest()[:20]
    compiled = folder / f"runtime-{tag}.o"
    if not compiled.exists():
        _run("g++", "-std=c++17", "-O2", "-fPIC", *flags, "-c", source, "-o", build / "runtime.o")
        os.replace(build / "runtime.o", compiled)
    return compiled


class Module:
    """Kernels of one source text; names: those to be called, extern "C" or templates with their arguments."""

    def __init__(self, source, names, options=(), include=(), runtime_flags=()):
        entries = [
            f'extern "C" void cuda_model_call{i}(void **a) {{ cuda_model::entry<decltype(&{n})>::call(&{n}, a); }}\n'
            f'extern "C" int cuda_model_sizes{i}(int *to) {{ return cuda_model::entry<decltype(&{n})>::sizes(to); }}\n'
            for i, n in enumerate(names)
        ]
        text = f'#line 1 "kernel.cu"\n{rewritten(source)}\n' + "".join(entries)
        flags = [*FLAGS, *options, *(f"-I{p}" for p in include)]
        folder = Path(tempfile.gettempdir()) / f"csoftmax-cuda-model-{os.getuid()}"
        folder.mkdir(exist_ok=True)
        parts = [(HERE / name).read_text() for name in ("device.h", "runtime.cpp")]
        parts += [f.read_text() for p in include for f in sorted(Path(p).rglob("*.*h"))]
        tag = hashlib.sha256("\0".join([text, *flags, *runtime_flags, *parts]).encode()).hexdigest()[:20]
        library = folder / f"{tag}.so"
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=folder) as build:
                build = Path(build)
                (build / "kernel.cpp").write_text(text)
                watched = ["g++", *flags, "-fsanitize=thread", "-include", HERE / "device.h"]
                _run(*watched, "-c", build / "kernel.cpp", "-o", build / "k.o")
                runtime = _runtime(folder, build, runtime_flags)
                _run("g++", "-shared", build / "k.o", runtime, "-o", build / "out.so", "-Wl,-z,now")
                os.replace(build / "out.so", library)
        self.library = ctypes.CDLL(str(library))
        self.names = list(names)

    def kernel(self, name):
        return Kernel(self, name)


class Kernel:
    """Called as (grid, block, arguments): device arrays as NumPy arrays, parameters as NumPy scalars or `by_value`."""

    def __init__(self, module, name):
        i = module.names.index(name)
        self.name = name
        self.library = module.library
        self.entry = getattr(self.library, f"cuda_model_call{i}")
        sizes = (ctypes.c_int * 64)()
        count = getattr(self.library, f"cuda_model_sizes{i}")(sizes)
        self.sizes = list(sizes[:count])

    def __call__(
        self, grid, block, arguments, shared=0, *, limit=48 * 1024, count=False, races=True, backward=False, last=None
    ):
        """What it counted.  last: so many blocks run, the rest is left out."""
        if len(arguments) != len(self.sizes):
            raise TypeError(f"{self.name} takes {len(self.sizes)} arguments, not {len(arguments)}")
        values = np.zeros(sum(s + 24 for s in self.sizes) + 32, np.uint8)  # their addresses, then themselves
        values = values[-values.ctypes.data % 16 :]
        addresses = values[: 8 * len(arguments)].view(np.uint64)
        memory, at = [values.ctypes.data, values.ctypes.data + values.nbytes], (8 * len(arguments) + 15) // 16 * 16
        for i, (argument, size) in enumerate(zip(arguments, self.sizes, strict=True)):
            if isinstance(argument, by_value):
                raw = np.frombuffer(argument.raw, np.uint8)
            elif isinstance(argument, np.ndarray):
                low, high = byte_bounds(argument) if argument.size else (argument.ctypes.data,) * 2
                memory += [low, high]
                raw = np.array([argument.ctypes.data], np.uint64).view(np.uint8)
            elif argument is None:
                raw = np.zeros(8, np.uint8)
            elif isinstance(argument, np.generic):
                raw = np.frombuffer(argument.tobytes(), np.uint8)
            else:  # as CuPy has it
                kind = np.int64 if isinstance(argument, int) else np.float64
                raw = np.frombuffer(np.array(argument, kind).tobytes(), np.uint8)
            if raw.size != size:
                raise TypeError(f"argument {i} of {self.name} has {raw.size} bytes, the kernel's parameter {size}")
            values[at : at + size] = raw
            addresses[i] = values.ctypes.data + at
            at += (size + 15) // 16 * 16
        shapes = [(ctypes.c_uint * 3)(*[*map(int, s), 1, 1][:3]) for s in (grid, block)]
        ranges = (ctypes.c_size_t * len(memory))(*memory)
        message, counts = ctypes.create_string_buffer(1024), (ctypes.c_uint64 * 6)()
        flags = count | races << 1 | backward << 2
        first_block = 0 if last is None else max(0, int(np.prod(shapes[0][:], dtype=np.int64)) - last)
        failed = self.library.cuda_model_launch(
            self.entry,
            ctypes.c_void_p(values.ctypes.data),
            *shapes,
            ctypes.c_size_t(shared),
            ctypes.c_size_t(limit),
            flags,
            ctypes.c_uint64(first_block),
            ranges,
            len(memory) // 2,
            message,
            counts,
        )
        if failed:
            raise KernelError(message.value.decode())
        return dict(zip(COUNTS, counts, strict=True))


class by_value:
    """A structure that is passed itself: an array of one element."""

    def __init__(self, array):
        assert array.size == 1
        self.raw = array.tobytes()
