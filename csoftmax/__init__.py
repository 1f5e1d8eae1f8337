"""csoftmax: the softmax family for NumPy, exact to the last bits, bit-reproducible, near memory speed."""

from ._runtime import interrupts as _interrupts  # noqa: F401 - watches the imports that follow

# isort: split
from ._arguments.places import DeviceError
from ._arguments.segments import Segments
from ._cpu.binding import C_API as _C_API  # noqa: F401 - for csoftmax_api.h
from ._ops import crf as _crf
from ._ops import crf_paths as _crf_paths
from ._ops import cross_entropy as _cross_entropy
from ._ops import divergence as _divergence
from ._ops import entmax as _entmax
from ._ops import entmax_loss as _entmax_loss
from ._ops import in_batch as _in_batch
from ._ops import int8_topk as _int8_topk
from ._ops import linear_cross_entropy as _linear_cross_entropy
from ._ops import margins as _margins
from ._ops import merge_states as _merge_states
from ._ops import negative_sampling as _negative_sampling
from ._ops import penalize as _penalize
from ._ops import rankings as _rankings
from ._ops import rows as _rows
from ._ops import sample as _sample
from ._ops import sampled as _sampled
from ._ops import segment_cross_entropy as _segment_cross_entropy
from ._ops import segments as _segments
from ._ops import softmax as _softmax
from ._ops import streams as _streams
from ._ops import subsets as _subsets
from ._ops import topk as _topk
from ._ops.crf import *
from ._ops.crf_paths import *
from ._ops.cross_entropy import *
from ._ops.divergence import *
from ._ops.entmax import *
from ._ops.entmax_loss import *
from ._ops.in_batch import *
from ._ops.int8_topk import *
from ._ops.linear_cross_entropy import *
from ._ops.margins import *
from ._ops.merge_states import *
from ._ops.negative_sampling import *
from ._ops.penalize import *
from ._ops.rankings import *
from ._ops.rows import *
from ._ops.sample import *
from ._ops.sampled import *
from ._ops.segment_cross_entropy import *
from ._ops.segments import *
from ._ops.softmax import *
from ._ops.streams import *
from ._ops.subsets import *
from ._ops.topk import *
from ._runtime.config import __version__, get_cmake_dir, get_include, get_library, show_config
from ._runtime.threads import get_num_threads, set_num_threads, threads

__all__ = [
    "DeviceError",
    "Segments",
    "__version__",
    "get_cmake_dir",
    "get_include",
    "get_library",
    "get_num_threads",
    "set_num_threads",
    "show_config",
    "threads",
]
__all__ += _crf.__all__
__all__ += _crf_paths.__all__
__all__ += _cross_entropy.__all__
__all__ += _divergence.__all__
__all__ += _entmax.__all__
__all__ += _entmax_loss.__all__
__all__ += _in_batch.__all__
__all__ += _int8_topk.__all__
__all__ += _linear_cross_entropy.__all__
__all__ += _margins.__all__
__all__ += _merge_states.__all__
__all__ += _negative_sampling.__all__
__all__ += _penalize.__all__
__all__ += _rankings.__all__
__all__ += _rows.__all__
__all__ += _sample.__all__
__all__ += _sampled.__all__
__all__ += _segment_cross_entropy.__all__
__all__ += _segments.__all__
__all__ += _softmax.__all__
__all__ += _streams.__all__
__all__ += _subsets.__all__
__all__ += _topk.__all__

# Pickles and messages show the public name, so that private files can move.
for _name in __all__:
    if _name != "__version__":
        globals()[_name].__module__ = __name__

_LATE_MODULES = (
    "adversarial",
    "calibration",
    "choice",
    "class_weight",
    "geometric",
    "heads",
    "linear_model",
    "metrics",
    "samplers",
    "sequence",
)


def __getattr__(name: str) -> object:
    """Import a module of learning on first use: most of them need scikit-learn, samplers need numpy.random."""
    if name in _LATE_MODULES:
        from importlib import import_module

        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names for completion: the public ones, and the modules of learning before their first use."""
    return sorted({*__all__, *_LATE_MODULES, *(name for name in globals() if name.startswith("__"))})
