"""csoftmax: the softmax family for NumPy, exact to the last bits, bit-reproducible, near memory speed."""

from ._args import DeviceError
from ._config import __version__, get_cmake_dir, get_include, get_library, show_config
from ._cpu.binding import C_API as _C_API  # noqa: F401 - for csoftmax_api.h
from ._threads import get_num_threads, set_num_threads, threads
from .cross_entropy import (
    CrossEntropyResult,
    LinearCrossEntropyResult,
    check_labels,
    cross_entropy,
    cross_entropy_with_grad,
    linear_cross_entropy,
    linear_cross_entropy_with_grad,
)
from .softmax import log_softmax, log_softmax_vjp, logsumexp, softmax, softmax_vjp
from .sparse import (
    EntmaxLossResult,
    TopK,
    entmax,
    entmax_loss,
    entmax_loss_with_grad,
    entmax_vjp,
    sample,
    sparsemax,
    to_csr,
    topk,
    topk_softmax,
)

__all__ = [
    "CrossEntropyResult",
    "DeviceError",
    "EntmaxLossResult",
    "LinearCrossEntropyResult",
    "TopK",
    "__version__",
    "check_labels",
    "cross_entropy",
    "cross_entropy_with_grad",
    "entmax",
    "entmax_loss",
    "entmax_loss_with_grad",
    "entmax_vjp",
    "get_cmake_dir",
    "get_include",
    "get_library",
    "get_num_threads",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "sample",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_vjp",
    "sparsemax",
    "threads",
    "to_csr",
    "topk",
    "topk_softmax",
]

_LATE = ("calibration", "class_weight", "linear_model", "metrics")


def __getattr__(name):
    """Submodules of learning, imported when they are first looked at: most of them need scikit-learn."""
    if name in _LATE:
        from importlib import import_module

        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
