"""Softmax with a geometry between classes.

g-softmax computes with a cost between classes, so that close ones share their probability (`Cost`, `g_softmax`,
`g_logsumexp`, `g_softmax_vjp`, `g_cross_entropy_with_grad`). Hyperbolic logits are distances to hyperplanes in a space
that has room for trees (`poincare_logits`, `poincare_cross_entropy_with_grad`).
"""

from ._ops.g_softmax import g_cross_entropy_with_grad, g_logsumexp, g_softmax, g_softmax_vjp
from ._ops.geometric_cost import Cost
from ._ops.poincare import HyperbolicLossResult, poincare_cross_entropy_with_grad, poincare_logits

__all__ = [
    "Cost",
    "HyperbolicLossResult",
    "g_cross_entropy_with_grad",
    "g_logsumexp",
    "g_softmax",
    "g_softmax_vjp",
    "poincare_cross_entropy_with_grad",
    "poincare_logits",
]

# Pickles and messages show the public name, so that private files can move.
for _name in __all__:
    globals()[_name].__module__ = __name__
