"""Where the order of classes is cut into shortlist and clusters: the division of least expected time.

The time of a step is that of its layers. For n rows, k classes and d features a layer takes, forward and backward,

    seconds(n, k, d) = 2e-4 + k (4.4e-10 d + n (8.5e-10 + 4.7e-11 d))

a constant for its calls and those of the optimiser, the traffic of its weights and their gradient, the passes of the
kernel over its logits, and its three products. The last three were fitted to one thread of an AMD Zen 4, on 30 layers
of 1,000 to 500,000 classes, which they predict to within -37 % and +35 % (`python asv_bench/adaptive.py --layers`).

A dynamic programme over clusters from the last to the first finds the best positions among up to 256 that are spaced
evenly in the logarithm of the rank.

Time alone would leave few words of a language in the shortlist, and one feature for most of the others. So the
shortlist has at least two thirds of the rows, and clusters after the first have at least 8 features
(docs/decisions/adaptive.md).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALL_SECONDS = 2e-4
WEIGHT_SECONDS, LOGIT_SECONDS, PRODUCT_SECONDS = 4.4e-10, 8.5e-10, 4.7e-11
POSITIONS = 256
MIN_SHARE, MIN_FEATURES = 2 / 3, 8


def estimate_seconds(rows: Any, classes: Any, features: Any) -> Any:
    """The expected time of a step of one layer."""
    each = WEIGHT_SECONDS * features + rows * (LOGIT_SECONDS + PRODUCT_SECONDS * features)
    return CALL_SECONDS + classes * each


def count_features(n_features: int, div_value: float, cluster: int) -> int:
    """The features of a cluster, at least 1."""
    exponent = math.log(div_value) * (cluster + 1)
    return 1 if exponent > 700 else max(1, int(n_features // float(div_value) ** (cluster + 1)))


def _list_positions(classes: int) -> NDArray[np.int64]:
    """Ranks at which a cluster may begin, and the end."""
    spaced = np.geomspace(1, classes, POSITIONS) if classes > POSITIONS else np.arange(1, classes + 1)
    return np.unique(np.concatenate([np.rint(spaced).astype(np.int64), [classes]]))


def divide(
    shares: NDArray[np.float64], n_features: int, batch_size: int, div_value: float, max_clusters: int
) -> list[int]:
    """The cutoffs for classes with these shares of the rows, which do not rise."""
    classes = len(shares)
    at = _list_positions(classes)
    mass = np.concatenate([[0.0], np.cumsum(shares)])[at]
    best_time, best_cuts = estimate_seconds(batch_size, classes, n_features), []
    for clusters in range(1, min(max_clusters, classes - 1) + 1):
        if clusters > 1 and count_features(n_features, div_value, clusters - 1) < MIN_FEATURES:
            break
        time, following = _best_tails(at, mass, n_features, batch_size, div_value, clusters)
        time = time + estimate_seconds(batch_size, at + clusters, n_features)
        time[mass < MIN_SHARE] = np.inf
        first = int(np.argmin(time[:-1]))
        if time[first] < best_time:
            best_time, best_cuts = time[first], [first]
            for nexts in following[:-1]:
                best_cuts.append(int(nexts[best_cuts[-1]]))
    return [int(at[i]) for i in best_cuts]


def _best_tails(
    at: NDArray[np.int64],
    mass: NDArray[np.float64],
    n_features: int,
    batch_size: int,
    div_value: float,
    clusters: int,
) -> tuple[NDArray[np.float64], list[NDArray[np.intp]]]:
    """The least time of all clusters if the first begins at a position; where each of them ends, by its beginning."""
    n = len(at)
    later = np.full(n, np.inf)
    later[-1] = 0.0  # after the last cluster
    ends: list[NDArray[np.intp]] = []
    for cluster in reversed(range(clusters)):
        width = count_features(n_features, div_value, cluster)
        rows = batch_size * (mass[None, :] - mass[:, None])
        time = estimate_seconds(np.maximum(rows, 0), at[None, :] - at[:, None], width)
        # a cluster costs at least the projection of its rows
        time = time + PRODUCT_SECONDS * n_features * width * (1 + np.maximum(rows, 0)) + later[None, :]
        time[np.tril_indices(n)] = np.inf  # a cluster has at least one class
        ends.insert(0, time.argmin(axis=1))
        later = time.min(axis=1)
    return later, ends
