"""Smallest perturbations that change the class of a linear layer, certificates against them, and training with them."""

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
    "certify",
    "perturb",
    "robust_cross_entropy",
    "robust_cross_entropy_with_grad",
    "trades_loss_with_grad",
    "vat_loss_with_grad",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
