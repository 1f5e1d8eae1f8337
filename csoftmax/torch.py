"""Differentiable functions for PyTorch: custom operators with gradients, which do not break `torch.compile` graphs.

The functions of `csoftmax` compute the numbers; PyTorch records the graph.  There are no second derivatives, and none
in forward mode: asking for one is an error.  A tensor that requires grad is refused where no gradient flows to it, such
as a temperature or weights.  Axes are called `dim`, as in PyTorch.  On CUDA the kernels run through CuPy (not yet run
on hardware).
"""

from __future__ import annotations

try:
    import torch as _torch_itself  # noqa: F401
except ImportError as error:
    raise ImportError(f"csoftmax.torch needs PyTorch >= 2.4 ({error}); see https://pytorch.org") from error

from ._torch.crf import CRF, crf_loss
from ._torch.divergence import entropy, kl_divergence
from ._torch.in_batch import in_batch_softmax_loss
from ._torch.losses import cross_entropy, linear_cross_entropy
from ._torch.margins import margin_cross_entropy
from ._torch.rankings import plackett_luce_loss
from ._torch.rows import entmax, log_softmax, logsumexp, softmax, sparsemax
from ._torch.sample import sample
from ._torch.sampled import nce_loss, negative_sampling_loss, sampled_softmax_loss
from ._torch.segments import (
    segment_cross_entropy,
    segment_log_softmax,
    segment_logsumexp,
    segment_softmax,
)
from ._torch.topk import topk_softmax

__all__ = [
    "CRF",
    "crf_loss",
    "cross_entropy",
    "entmax",
    "entropy",
    "in_batch_softmax_loss",
    "kl_divergence",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "margin_cross_entropy",
    "nce_loss",
    "negative_sampling_loss",
    "plackett_luce_loss",
    "sample",
    "sampled_softmax_loss",
    "segment_cross_entropy",
    "segment_log_softmax",
    "segment_logsumexp",
    "segment_softmax",
    "softmax",
    "sparsemax",
    "topk_softmax",
]
