"""csoftmax: the softmax family for NumPy, exact to the last bits, bit-reproducible, near memory speed."""

from ._runtime import interrupts as _interrupts  # noqa: F401 - watches the imports that follow

# isort: split
from ._arguments.places import DeviceError
from ._cpu.binding import C_API as _C_API  # noqa: F401 - for csoftmax_api.h
from ._ops import cross_entropy as _cross_entropy
from ._ops import entmax as _entmax
from ._ops import linear_cross_entropy as _linear_cross_entropy
from ._ops import sample as _sample
from ._ops import softmax as _softmax
from ._ops import topk as _topk
from ._ops.cross_entropy import *
from ._ops.entmax import *
from ._ops.linear_cross_entropy import *
from ._ops.sample import *
from ._ops.softmax import *
from ._ops.topk import *
from ._runtime.config import __version__, get_cmake_dir, get_include, get_library, show_config
from ._runtime.threads import get_num_threads, set_num_threads, threads

__all__ = [
    "DeviceError",
    "__version__",
    "get_cmake_dir",
    "get_include",
    "get_library",
    "get_num_threads",
    "set_num_threads",
    "show_config",
    "threads",
]
__all__ += _cross_entropy.__all__
__all__ += _entmax.__all__
__all__ += _linear_cross_entropy.__all__
__all__ += _sample.__all__
__all__ += _softmax.__all__
__all__ += _topk.__all__

# Pickles and messages show the public name, so that private files can move.
for _name in __all__:
    if _name != "__version__":
        globals()[_name].__module__ = __name__

_LEARNING_MODULES = ("calibration", "class_weight", "linear_model", "metrics")


def __getattr__(name: str) -> object:
    """Import a learning module on first use: most of them need scikit-learn."""
    if name in _LEARNING_MODULES:
        from importlib import import_module

        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names for completion: the public ones, and the modules of learning before their first use."""
    return sorted({*__all__, *_LEARNING_MODULES, *(name for name in globals() if name.startswith("__"))})
