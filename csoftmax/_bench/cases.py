"""The cases of ``bench``: the usual shapes of every operation, and the groups whose geometric means are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .._spec.operations import OPERATIONS, SOFTMAX_FAMILY


class Case(NamedTuple):
    """One line of the table."""

    group: str
    op: str
    shape: tuple[int, ...]
    axis: int
    dtype: str
    kind: str = "plain"  # of a loss: one of LOSS_KINDS; of a top-k: the order of the logits, plain being random

    def __str__(self) -> str:
        kind = "" if self.kind == "plain" else f" {self.kind}"
        return f"{self.shape}{'' if self.axis == -1 else f' axis {self.axis}'} {self.dtype}{kind}".replace(",)", ")")


# The softmax family, in groups: (shape, axis, dtype).
ROW_OPS = tuple(record.name for record in SOFTMAX_FAMILY)
GROUPS: dict[str, list[tuple[tuple[int, ...], int, str]]] = {
    "last": [
        *[((1, 10), -1, "float32"), ((32, 10), -1, "float32"), ((4096, 16), -1, "float32")],
        *[((128, 1000), -1, "float32"), ((4096, 1000), -1, "float32"), ((64, 32000), -1, "float32")],
        *[((256, 50257), -1, "float32"), ((8, 1000000), -1, "float32")],
    ],
    "axes": [
        *[((64, 1000, 32), 1, "float32"), ((8, 21, 512, 512), 1, "float32")],
        *[((1000, 4096), 0, "float32"), ((256, 1000, 4), 1, "float32")],
    ],
    "half": [((1024, 4096), -1, "float16"), ((1024, 4096), -1, "bfloat16"), ((1024, 4096), -1, "float64")],
}
# Losses with their gradients: (shape, kind), in float32 along the last axis.
LOSS_KINDS = ("plain", "weights+smoothing", "soft")
LOSSES: dict[str, list[tuple[tuple[int, ...], str]]] = {
    "cross_entropy": [
        *[((32, 10), "plain"), ((128, 1000), "plain"), ((4096, 1000), "plain"), ((64, 32000), "plain")],
        *[((256, 50257), "plain"), ((512, 128256), "plain")],
        *[((1024, 1000), "weights+smoothing"), ((1024, 1000), "soft")],
    ],
    "linear_cross_entropy": [((1024, 512, 32000), "plain"), ((2048, 256, 8000), "plain")],
}
# Sparse softmax: (shape, order of the logits), in float32 along the last axis.
TOPK_SHAPES = ((1024, 1000, 5), (64, 32000, 8), (64, 32000, 64), (64, 128256, 50), (64, 128256, 512), (1, 1000000, 100))
SPARSE: dict[str, list[tuple[tuple[int, ...], str]]] = {
    "topk": [
        *[(shape, "plain") for shape in TOPK_SHAPES],
        *[((64, 32000, 64), order) for order in ("ascending", "descending", "constant")],
    ],
    "topk_softmax": [(shape, "plain") for shape in TOPK_SHAPES],
    "sparsemax": [((1024, 1000), "plain"), ((64, 32000), "plain")],
    "entmax": [((1024, 1000), "plain"), ((64, 32000), "plain")],
}
# Linear-chain CRF: (sequences, positions, tags), in float32, sequences of a third to all of the positions.
CHAIN_SHAPES = ((32, 40, 5), (32, 40, 9), (32, 40, 20), (32, 40, 46), (256, 40, 9), (32, 128, 9), (1, 40, 9))
CHAINS = ("crf", "crf_marginals", "crf_decode")  # crf: the loss with its gradients
# Very many classes: shapes, in float32.
MANY_CLASSES: dict[str, list[tuple[int, ...]]] = {
    "alias": [(20_000, 1_000_000), (1_000_000, 1_000_000), (10_000_000, 1_000_000)],
    "sampled": [(512, 128, 1024, 100_000), (256, 64, 256, 1_000_000)],
    "hs": [(512, 64, 22_254), (512, 128, 100_000)],
    "adaptive": [(512, 256, 200_000), (256, 128, 1_000_000)],
    "int8": [(1, 128, 500_000, 10), (8, 128, 500_000, 10), (64, 128, 500_000, 10)],
    "mach": [(1, 64, 1_000_000, 512, 16), (16, 64, 200_000, 512, 16)],
}
# The lengths that a shape of these operations has; those of the others have any number.
LENGTHS = {
    "cross_entropy": ("rows", "classes"),
    "linear_cross_entropy": ("rows", "features", "classes"),
    "topk": ("rows", "classes", "k"),
    "topk_softmax": ("rows", "classes", "k"),
    "sparsemax": ("rows", "classes"),
    "entmax": ("rows", "classes"),
    **dict.fromkeys(CHAINS, ("sequences", "positions", "tags")),
    "alias": ("classes", "draws"),
    "sampled": ("rows", "features", "negatives", "classes"),
    **dict.fromkeys(("hs", "adaptive"), ("rows", "features", "classes")),
    "int8": ("rows", "features", "classes", "k"),
    "mach": ("rows", "features", "classes", "buckets", "hashes"),
}
# Every other operation, on the sample of its record, in float32 along the last axis.
RECORDED_SHAPES = ((1024, 1000), (64, 32000))
NOT_RECORDED = (*LOSSES, *SPARSE, *CHAINS, "crf_loss")  # those whose cases are above
RECORDED = tuple(
    record.name
    for record in OPERATIONS
    if record not in SOFTMAX_FAMILY and record.name.removesuffix("_with_grad") not in NOT_RECORDED
)
OPS = (*ROW_OPS, *LOSSES, *SPARSE, *CHAINS, *MANY_CLASSES, *RECORDED)
# Operations that are always measured with results in new memory.
WITHOUT_OUT = (
    *("linear_cross_entropy", "topk", "topk_softmax", "crf_decode", *MANY_CLASSES),
    *(record.name for record in OPERATIONS if not record.has_out and record.name not in LOSSES),
)
# Geometric means are shown over these.
SUMMARIES: dict[str, Callable[[Case], bool]] = {
    "losses": lambda case: case.group == "loss",
    "in random order": lambda case: case.group == "sparse" and case.kind == "plain",
    "last axis, float32": lambda case: case.group == "last",
    "last axis, 1000 to 50257 classes": lambda case: case.group == "last" and 1000 <= case.shape[-1] <= 50257,
    "other axes and dtypes": lambda case: case.group in ("axes", "half"),
    "chains": lambda case: case.group == "chain",
    "usual shapes": lambda case: case.group in ("recorded", "many classes"),
    "given shapes": lambda case: case.group == "given",
}


def usual_cases(op: str, group: str = "all") -> list[Case]:
    """Return the usual cases of an operation; the softmax family has them in groups."""
    for name, table in (("loss", LOSSES), ("sparse", SPARSE)):
        if op in table:
            return [Case(name, op, shape, -1, "float32", kind) for shape, kind in table[op]]
    if op in CHAINS:
        return [Case("chain", op, shape, -1, "float32") for shape in CHAIN_SHAPES]
    if op in MANY_CLASSES:
        return [Case("many classes", op, shape, -1, "float32") for shape in MANY_CLASSES[op]]
    if op in RECORDED:
        return [Case("recorded", op, shape, -1, "float32") for shape in RECORDED_SHAPES]
    wanted = GROUPS if group == "all" else [group]
    return [Case(name, op, *line) for name in wanted for line in GROUPS[name]]


def given_cases(op: str, shapes: Sequence[tuple[int, ...]], axis: int, dtype: str) -> list[Case]:
    """Return a case for each shape that the user has chosen."""
    return [Case("given", op, shape, axis, dtype) for shape in shapes]
