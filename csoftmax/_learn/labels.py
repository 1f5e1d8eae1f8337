"""Labels of any type as numbers of classes."""

import numpy as np


def indices_of(labels, classes):
    """(place of each label among the classes, rows whose label is not among them); classes in any order."""
    order = np.argsort(classes, kind="stable")
    places = order[np.minimum(np.searchsorted(classes, labels, sorter=order), len(order) - 1)]
    return places, np.flatnonzero(classes[places] != labels)
