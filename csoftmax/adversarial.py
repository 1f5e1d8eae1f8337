"""Adversarial softmax: negatives that are hard to tell from the labels."""

from ._learn.tree_sampler import TreeSampler

__all__ = [
    "TreeSampler",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
