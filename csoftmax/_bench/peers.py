"""The contenders: csoftmax, plain copies, and the peers that are installed.

The constructor of a peer imports its package, `set_threads` prepares it for a number of threads, and `prepare` returns
its statement for a problem or raises `LeftOutError`.  A peer that can write into given memory is measured that way
(`out=`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

import csoftmax

from .problems import ChainProblem, LeftOutError, LossProblem, Problem, RowProblem, SparseProblem
from .timing import Contender


class Peer(Protocol):
    """The interface of a contender."""

    name: str
    version: str

    def set_threads(self, count: int) -> None:
        """Prepare for a number of threads, or raise `LeftOutError`."""

    def prepare(self, problem: Problem) -> Contender:
        """Return the statement for a problem, or raise `LeftOutError`."""


SHARED_COPY_BYTES = 1 << 20  # smaller arrays are copied faster by one thread


def limit_libraries(count: int) -> contextlib.AbstractContextManager[Any]:
    """Limit the threads of every OpenMP runtime and BLAS; leaving the returned context restores the limits.

    PyTorch may have set those of the runtime that csoftmax's default follows, and NumPy's BLAS multiplies in
    linear_cross_entropy.
    """
    try:
        import threadpoolctl
    except ImportError:
        return contextlib.nullcontext()
    limits: contextlib.AbstractContextManager[Any] = threadpoolctl.threadpool_limits(count)
    return limits


@contextlib.contextmanager
def allow_all_cpus() -> Iterator[None]:
    """Allow every library all CPUs, whatever was set before, and restore the limits at the end."""
    before = csoftmax.get_num_threads()
    try:
        with limit_libraries(os.cpu_count() or 1):
            yield
    finally:
        csoftmax.set_num_threads(before)


def default_threads() -> int:
    """Return the number of threads that csoftmax uses unless another is set."""
    before = csoftmax.get_num_threads()
    csoftmax.set_num_threads(None)
    default = csoftmax.get_num_threads()
    csoftmax.set_num_threads(before)
    return default


class Csoftmax:
    """csoftmax itself."""

    name = "csoftmax"

    def __init__(self) -> None:
        self.version = csoftmax.__version__

    def set_threads(self, count: int) -> None:
        """Set csoftmax's threads, and those of OpenMP's runtimes and the BLAS."""
        limit_libraries(count)
        csoftmax.set_num_threads(count)
        if csoftmax.get_num_threads() < count:
            raise LeftOutError(f"csoftmax uses no more than {csoftmax.get_num_threads()} threads here")

    def prepare(self, problem: Problem) -> Contender:
        """Return csoftmax's statement."""
        return problem.prepare_csoftmax()


class Copy:
    """One plain copy of the input: the bound set by memory bandwidth."""

    name = "copy"
    version = np.__version__

    def set_threads(self, count: int) -> None:
        """Keep the number, for a copy that has threads."""
        self.count = count

    def prepare(self, problem: Problem) -> Contender:
        """Return the statement that copies."""
        x = as_bytes(problem.x)
        if problem.fresh:
            return Contender(self.name, "x.copy()", {"x": x})
        return Contender(self.name, "copyto(y, x)", {"copyto": np.copyto, "x": x, "y": as_bytes(problem.spare)})


class ThreadedCopy(Copy):
    """The copy in equal pieces, one for each Python thread (copyto releases the GIL)."""

    name = "copy, threads"

    def prepare(self, problem: Problem) -> Contender:
        """Return the statement that copies."""
        if self.count == 1 or problem.fresh:
            raise LeftOutError("one thread" if self.count == 1 else "a copy into new memory has one thread")
        if problem.x.nbytes < SHARED_COPY_BYTES:
            raise LeftOutError("starting Python threads takes longer than the copy")
        pool = ThreadPoolExecutor(self.count - 1)
        targets, sources = (np.array_split(as_bytes(a), self.count) for a in (problem.spare, problem.x))
        first, *others = zip(targets, sources, strict=True)

        def copy() -> None:
            started = [pool.submit(np.copyto, y, x) for y, x in others]
            np.copyto(*first)
            for piece in started:
                piece.result()

        return Contender(self.name, "copy()", {"copy": copy})


def as_bytes(x: NDArray[Any]) -> NDArray[np.uint8]:
    """View an array as bytes: a copy of them is memcpy, whatever the dtype."""
    return x.reshape(-1).view(np.uint8)


class Scipy:
    """scipy.special, which always makes a new array and works in one thread."""

    name = "scipy"

    def __init__(self) -> None:
        self.special = importlib.import_module("scipy.special")
        self.version = importlib.import_module("scipy").__version__

    def set_threads(self, count: int) -> None:
        """Do nothing: SciPy has one thread."""

    def prepare(self, problem: Problem) -> Contender:
        """Return SciPy's statement."""
        function = getattr(self.special, problem.case.op, None)
        if function is None:
            raise LeftOutError(f"has no {problem.case.op}")
        return Contender(self.name, f"f(x, {problem.case.axis})", {"f": function, "x": problem.x})


class Numpy:
    """NumPy, for draws from a distribution, and for the products and gathers that layers of many classes contain."""

    name = "numpy"
    version = np.__version__

    def set_threads(self, count: int) -> None:
        """Do nothing: csoftmax has set the threads of the BLAS."""

    def prepare(self, problem: Problem) -> Contender:
        """Return NumPy's statement."""
        return problem.prepare_numpy()


class Torch:
    """PyTorch on the CPU, inside torch.inference_mode() if there is no gradient."""

    name = "torch"

    def __init__(self) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.version = self.torch.__version__

    def set_threads(self, count: int) -> None:
        """Set PyTorch's threads."""
        self.torch.set_num_threads(count)

    def prepare(self, problem: Problem) -> Contender:
        """Return PyTorch's statement."""
        return problem.prepare_torch(self.torch)


class TorchFused(Torch):
    """PyTorch's linear cross-entropy in chunks."""

    name = "torch_fused"

    def prepare(self, problem: Problem) -> Contender:
        """Return PyTorch's statement."""
        if not (isinstance(problem, LossProblem) and problem.linear):
            raise LeftOutError("has linear_cross_entropy only")
        return problem.prepare_torch(self.torch, fused=True)


class Entmax(Torch):
    """The package entmax, which computes sparsemax and entmax with alpha 1.5 in PyTorch."""

    name = "entmax"
    FUNCTIONS: ClassVar = {"sparsemax": "sparsemax", "entmax": "entmax15"}

    def __init__(self) -> None:
        super().__init__()
        self.entmax: Any = importlib.import_module("entmax")
        self.version = self.entmax.__version__

    def prepare(self, problem: Problem) -> Contender:
        """Return the statement of the package."""
        op = problem.case.op
        if not isinstance(problem, SparseProblem) or op not in self.FUNCTIONS:
            raise LeftOutError(f"is measured with {' and '.join(self.FUNCTIONS)} only")
        names = {"f": getattr(self.entmax, self.FUNCTIONS[op]), "x": self.torch.from_numpy(problem.x)}
        return Contender(self.name, "f(x)", names, self.torch.inference_mode)


class Torchcrf(Torch):
    """The package pytorch-crf: a linear-chain CRF in PyTorch."""

    name = "torchcrf"

    def __init__(self) -> None:
        super().__init__()
        self.torchcrf: Any = importlib.import_module("torchcrf")
        self.version = importlib.metadata.version("pytorch-crf")

    def prepare(self, problem: Problem) -> Contender:
        """Return the statement of the package."""
        if not isinstance(problem, ChainProblem):
            raise LeftOutError("is measured with crf and crf_decode only")
        return problem.prepare_torchcrf(self.torch, self.torchcrf)


class OnnxRuntime:
    """ONNX Runtime: a model of one node, with input and output bound beforehand."""

    name = "onnxruntime"
    NODES: ClassVar = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "logsumexp": "ReduceLogSumExp"}

    def __init__(self) -> None:
        self.onnx: Any = importlib.import_module("onnx")
        self.runtime: Any = importlib.import_module("onnxruntime")
        self.runtime.set_default_logger_severity(3)
        self.version = self.runtime.__version__

    def set_threads(self, count: int) -> None:
        """Keep the number: it is an option of each session."""
        self.count = count

    def prepare(self, problem: Problem) -> Contender:
        """Return ONNX Runtime's statement."""
        case, helper = problem.case, self.onnx.helper
        if case.op not in self.NODES or case.dtype != "float32":
            raise LeftOutError(f"measured for {', '.join(self.NODES)} in float32 only")
        attributes = {"axis": case.axis} if case.op != "logsumexp" else {"axes": [case.axis], "keepdims": 0}
        kind = self.onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            [helper.make_node(self.NODES[case.op], ["x"], ["y"], **attributes)],
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
        names = {"run": session.run_with_iobinding, "binding": binding}
        return Contender(self.name, "run(binding)", names, fills_out=True)


class Jax:
    """JAX, compiled for the CPU; it always makes a new array and chooses its number of threads itself."""

    name = "jax"

    def __init__(self) -> None:
        self.jax: Any = importlib.import_module("jax")
        self.jax.config.update("jax_enable_x64", True)
        self.version = self.jax.__version__

    def set_threads(self, count: int) -> None:
        """Refuse every number but that of all CPUs."""
        if count != default_threads():
            raise LeftOutError("always uses all CPUs: measured only if csoftmax does too")

    def prepare(self, problem: Problem) -> Contender:
        """Return JAX's statement."""
        if not isinstance(problem, RowProblem) or problem.y is not None:
            raise LeftOutError("is measured with softmax, log_softmax and logsumexp only")
        jax, axis = self.jax, problem.case.axis
        function = getattr(jax.nn, problem.case.op)
        compiled = jax.jit(lambda x: function(x, axis=axis))
        x = jax.device_put(problem.x, jax.devices("cpu")[0])
        return Contender(self.name, "f(x).block_until_ready()", {"f": compiled, "x": x})


ALWAYS: tuple[type[Peer], ...] = (Csoftmax, Copy, ThreadedCopy)
PEERS: dict[str, type[Peer]] = {
    "scipy": Scipy,
    "torch": Torch,
    "torch_fused": TorchFused,
    "entmax": Entmax,
    "torchcrf": Torchcrf,
    "onnxruntime": OnnxRuntime,
    "jax": Jax,
    "numpy": Numpy,
}
