"""Who is measured: csoftmax, plain copies, and the peers that are installed.

A peer is a class: its constructor imports the package, `threads` prepares it for a number of threads, `contender`
gives the statement for a problem, or raises `LeftOutError` with the reason.  A peer that can write into memory that
exists already is measured so (`out=`); all of them work on the same arrays.
"""

import contextlib
import ctypes
import importlib.metadata
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

import csoftmax

from .._config import openmp_libraries
from . import losses, sparse
from .choices import LOSSES, SPARSE, Case
from .timing import Contender


class LeftOutError(Exception):
    """A peer cannot take part; the message says why."""


class Problem(NamedTuple):
    """A case and its arrays, whose pages have been touched."""

    case: Case
    x: np.ndarray  # dy for a gradient
    second: np.ndarray | None  # y for a gradient
    out: np.ndarray
    spare: np.ndarray  # where copies of x go
    fresh: bool  # the result in new memory, no out
    special: losses.Problem | sparse.Problem | None = None  # of an operation in a module of its own

    @property
    def reduces(self):
        return self.case.op == "logsumexp"

    @property
    def nbytes(self):
        """Read and written at the least."""
        return self.x.nbytes + (0 if self.second is None else self.second.nbytes) + self.out.nbytes


def module_of(op):
    """Where an operation's problems are made, if not here."""
    return losses if op in LOSSES else sparse if op in SPARSE else None


def problem(case, fresh):
    """Normal logits, and an output for them."""
    if case.dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise LeftOutError("NumPy has bfloat16 only with ml_dtypes, which is not installed") from None
        dtype = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(case.dtype)
    module = module_of(case.op)
    if module:
        if case.dtype not in ("float32", "float64") or case.axis not in (-1, len(case.shape) - 1):
            raise LeftOutError("losses and sparse softmax are measured in float32 and float64, along the last axis")
        lengths = module.LENGTHS[case.op]
        if len(case.shape) != len(lengths):
            raise LeftOutError(f"the shape of {case.op} is {' x '.join(lengths)}")
        special = module.Problem(case, dtype)
        out = special.x.copy()
        return Problem(case, special.x, None, out, out, fresh, special)
    rng = np.random.default_rng(0)
    make = np.float64 if case.dtype == "float64" else np.float32
    x = rng.standard_normal(case.shape, dtype=make).astype(dtype, copy=False)
    second = None
    if case.op.endswith("_vjp"):
        second = getattr(csoftmax, case.op.removesuffix("_vjp"))(x, case.axis)
        x = rng.standard_normal(case.shape, dtype=make).astype(dtype, copy=False)
    out = np.array(csoftmax.logsumexp(x, case.axis) if case.op == "logsumexp" else x)
    return Problem(case, x, second, out, out if out.shape == x.shape else x.copy(), fresh)


def limit_openmp(count):
    """Of this thread, in every runtime: PyTorch may have set that of the one which csoftmax uses too."""
    for path in openmp_libraries():
        ctypes.CDLL(path).omp_set_num_threads(count)


def limit_blas(count):
    """Of NumPy's BLAS, with which linear_cross_entropy multiplies; a context, after which it is as it was."""
    try:
        import threadpoolctl
    except ImportError:
        return contextlib.nullcontext()
    return threadpoolctl.threadpool_limits(count, user_api="blas")


@contextlib.contextmanager
def any_threads():
    """All CPUs for everyone, whatever was set before; it is set again in the end."""
    runtimes = [ctypes.CDLL(path) for path in openmp_libraries()]
    limits = [runtime.omp_get_max_threads() for runtime in runtimes]
    limit_openmp(os.cpu_count())
    before = csoftmax.get_num_threads()
    try:
        with limit_blas(os.cpu_count()):
            yield
    finally:
        for runtime, limit in zip(runtimes, limits, strict=True):
            runtime.omp_set_num_threads(limit)
        csoftmax.set_num_threads(before)


class Csoftmax:
    name = "csoftmax"

    def __init__(self):
        self.version = csoftmax.__version__

    def threads(self, count):
        limit_openmp(count)
        limit_blas(count)
        csoftmax.set_num_threads(count)
        if csoftmax.get_num_threads() < count:
            raise LeftOutError(f"csoftmax uses no more than {csoftmax.get_num_threads()} threads here")

    def contender(self, problem):
        if problem.special:
            return module_of(problem.case.op).ours(problem)
        names = {"f": getattr(csoftmax, problem.case.op), "x": problem.x, "y": problem.second, "out": problem.out}
        arrays = "x" if problem.second is None else "x, y"
        out = "" if problem.fresh or problem.reduces else ", out=out"
        return Contender(self.name, f"f({arrays}, {problem.case.axis}{out})", names)


class Copy:
    """One plain copy of the input: what memory allows."""

    name = "copy"
    version = np.__version__

    def threads(self, count):
        self.count = count

    def contender(self, problem):
        if problem.fresh:
            return Contender(self.name, "x.copy()", {"x": raw(problem.x)})
        return Contender(self.name, "copyto(y, x)", {"copyto": np.copyto, "x": raw(problem.x), "y": raw(problem.spare)})


class ThreadedCopy(Copy):
    """The copy in equal pieces, one for each Python thread (copyto releases the GIL)."""

    name = "copy, threads"

    def contender(self, problem):
        if self.count == 1 or problem.fresh:
            raise LeftOutError("one thread" if self.count == 1 else "a copy into new memory has one thread")
        pool = ThreadPoolExecutor(self.count - 1)
        pieces = [
            list(zip(np.array_split(raw(problem.spare), self.count), np.array_split(raw(problem.x), self.count)))[i]
            for i in range(self.count)
        ]

        def copy():
            others = [pool.submit(np.copyto, y, x) for y, x in pieces[1:]]
            np.copyto(*pieces[0])
            for other in others:
                other.result()

        return Contender(self.name, "copy()", {"copy": copy})


def raw(x):
    """The bytes: a copy of them is memcpy, whatever the dtype."""
    return x.reshape(-1).view(np.uint8)


class Scipy:
    """scipy.special; it always makes a new array, and works in one thread."""

    name = "scipy"

    def __init__(self):
        self.special = importlib.import_module("scipy.special")
        self.version = importlib.metadata.version("scipy")

    def threads(self, count):
        pass

    def contender(self, problem):
        function = getattr(self.special, problem.case.op, None)
        if function is None:
            raise LeftOutError(f"has no {problem.case.op}")
        return Contender(self.name, f"f(x, {problem.case.axis})", {"f": function, "x": problem.x})


class Torch:
    """PyTorch on the CPU, inside torch.inference_mode()."""

    name = "torch"

    def __init__(self):
        self.torch = importlib.import_module("torch")
        self.version = self.torch.__version__

    def threads(self, count):
        self.torch.set_num_threads(count)

    def tensor(self, x):
        if x.dtype.name == "bfloat16":
            return self.torch.from_numpy(x.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(x)

    def contender(self, problem):
        torch, case = self.torch, problem.case
        if problem.special:
            return module_of(case.op).torchs(torch, problem)
        names = {"x": self.tensor(problem.x), "out": self.tensor(problem.out)}
        if problem.second is None:
            names["f"] = getattr(torch, case.op)
            statement, out = f"f(x, {case.axis}", "out"
        else:
            names["f"] = getattr(torch, f"_{case.op.removesuffix('_vjp')}_backward_data")
            names |= {"y": self.tensor(problem.second), "dtype": names["x"].dtype}
            # the name of the output differs between the two
            statement, out = f"f(x, y, {case.axis}, dtype", "grad_input" if case.op == "softmax_vjp" else "out"
        statement += ")" if problem.fresh or problem.reduces else f", {out}=out)"
        return Contender(self.name, statement, names, torch.inference_mode)


class TorchFused(Torch):
    """PyTorch's linear cross-entropy in chunks."""

    name = "torch_fused"

    def contender(self, problem):
        if problem.case.op != "linear_cross_entropy":
            raise LeftOutError("is a linear layer with cross-entropy")
        return losses.torchs(self.torch, problem, fused=True)


ONNX_NODES = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "logsumexp": "ReduceLogSumExp"}


class OnnxRuntime:
    """ONNX Runtime: a model of one node, input and output bound beforehand."""

    name = "onnxruntime"

    def __init__(self):
        self.onnx = importlib.import_module("onnx")
        self.runtime = importlib.import_module("onnxruntime")
        self.runtime.set_default_logger_severity(3)
        self.version = self.runtime.__version__

    def threads(self, count):
        self.count = count

    def contender(self, problem):
        case, helper = problem.case, self.onnx.helper
        if case.op not in ONNX_NODES or case.dtype != "float32":
            raise LeftOutError(f"measured for {', '.join(ONNX_NODES)} in float32 only")
        attributes = {"axis": case.axis} if case.op != "logsumexp" else {"axes": [case.axis], "keepdims": 0}
        kind = self.onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            [helper.make_node(ONNX_NODES[case.op], ["x"], ["y"], **attributes)],
            case.op,
            [helper.make_tensor_value_info("x", kind, problem.x.shape)],
            [helper.make_tensor_value_info("y", kind, problem.out.shape)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = self.count
        session = self.runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        if problem.fresh:
            return Contender(self.name, "run(None, feed)", {"run": session.run, "feed": {"x": problem.x}})
        binding = session.io_binding()
        binding.bind_cpu_input("x", problem.x)
        binding.bind_output("y", "cpu", 0, np.float32, problem.out.shape, problem.out.ctypes.data)
        return Contender(self.name, "run(binding)", {"run": session.run_with_iobinding, "binding": binding})


class Jax:
    """JAX, compiled for the CPU; it always makes a new array, and its number of threads is its own choice."""

    name = "jax"

    def __init__(self):
        self.jax = importlib.import_module("jax")
        self.jax.config.update("jax_enable_x64", True)
        self.version = self.jax.__version__

    def threads(self, count):
        if count != csoftmax_default_threads():
            raise LeftOutError("always uses all CPUs: measured only where csoftmax does")

    def contender(self, problem):
        jax, case = self.jax, problem.case
        if case.op.endswith("_vjp") or problem.special:
            raise LeftOutError("is not measured with gradients")
        function = getattr(jax.nn, case.op)
        compiled = jax.jit(lambda x: function(x, axis=case.axis))
        x = jax.device_put(problem.x, jax.devices("cpu")[0])
        return Contender(self.name, "f(x).block_until_ready()", {"f": compiled, "x": x})


def csoftmax_default_threads():
    """As many as csoftmax uses unless told otherwise."""
    before = csoftmax.get_num_threads()
    csoftmax.set_num_threads(None)
    default = csoftmax.get_num_threads()
    csoftmax.set_num_threads(before)
    return default


OWN = (Csoftmax, Copy, ThreadedCopy)
INSTALLED = {peer.name: peer for peer in (Scipy, Torch, TorchFused, OnnxRuntime, Jax)}
