"""The softmax family for Dask: arrays and dataframes in any chunks, lazily, with the bits of one array in memory.

Functions of the names that csoftmax has take Dask arrays, DataFrames and Series, and give lazy results; csoftmax's own
functions hand their Dask collections over to them. `options` sets how fits, trees and batches are computed.
"""

try:
    import dask.array as _dask_itself  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"csoftmax.dask needs Dask >= 2024.8 ({error}); install it with: pip install 'csoftmax[dask]'"
    ) from error

from ._dask.batches import batches
from ._dask.cross_entropy import cross_entropy, cross_entropy_with_grad
from ._dask.linear import linear_cross_entropy, linear_cross_entropy_with_grad
from ._dask.options import options
from ._dask.sample import sample
from ._dask.softmax import log_softmax, log_softmax_vjp, logsumexp, softmax, softmax_vjp
from ._dask.topk import topk, topk_softmax
from ._dask.whole import entmax, entropy, kl_divergence, sparsemax

__all__ = [
    "batches",
    "cross_entropy",
    "cross_entropy_with_grad",
    "entmax",
    "entropy",
    "kl_divergence",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "options",
    "sample",
    "softmax",
    "softmax_vjp",
    "sparsemax",
    "topk",
    "topk_softmax",
]

# Pickles and messages show the public name, so that private files can move.
for _name in __all__:
    globals()[_name].__module__ = __name__
