"""Softmax with a geometry between classes.

g-softmax computes with a cost between classes, so that close ones share their probability (`Cost`, `g_softmax`,
`g_logsumexp`, `g_softmax_vjp`, `g_cross_entropy_with_grad`). Hyperbolic logits are distances to hyperplanes in a space
that has room for trees (`poincare_logits`, `poincare_cross_entropy_with_grad`). von Mises-Fisher distributions are
classes on a sphere, each with a concentration (`vmf_logits`, `vmf_cross_entropy_with_grad`), and the Bessel functions
of their densities are `log_bessel_iv` and `bessel_ratio`.
"""

from ._ops.g_softmax import g_cross_entropy_with_grad, g_logsumexp, g_softmax, g_softmax_vjp
from ._ops.geometric_cost import Cost
from ._ops.poincare import HyperbolicLossResult, poincare_cross_entropy_with_grad, poincare_logits
from ._ops.vmf import VmfLossResult, bessel_ratio, log_bessel_iv, vmf_cross_entropy_with_grad, vmf_logits

__all__ = [
    "Cost",
    "HyperbolicLossResult",
    "VmfLossResult",
    "bessel_ratio",
    "g_cross_entropy_with_grad",
    "g_logsumexp",
    "g_softmax",
    "g_softmax_vjp",
    "log_bessel_iv",
    "poincare_cross_entropy_with_grad",
    "poincare_logits",
    "vmf_cross_entropy_with_grad",
    "vmf_logits",
]

# Pickles and messages show the public name, so that private files can move.
for _name in __all__:
    globals()[_name].__module__ = __name__
