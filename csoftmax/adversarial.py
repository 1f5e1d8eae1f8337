"""Smallest perturbations that change the class of a linear layer, certificates against them, training with them.

`TreeSampler` draws adversarial negatives: classes that are hard to tell from the labels.
"""

from ._learn.tree_sampler import TreeSampler
from ._ops.adversarial import Certificate, certify
from ._ops.adversarial_losses import (
    robust_cross_entropy,
    robust_cross_entropy_with_grad,
    trades_loss_with_grad,
    vat_loss_with_grad,
)
from ._ops.adversarial_perturb import perturb

__all__ = [
    "Certificate",
    "TreeSampler",
    "certify",
    "perturb",
    "robust_cross_entropy",
    "robust_cross_entropy_with_grad",
    "trades_loss_with_grad",
    "vat_loss_with_grad",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
