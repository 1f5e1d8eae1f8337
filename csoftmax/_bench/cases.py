"""What bench measures unless told otherwise: the usual shapes, and the names of the peers."""

from typing import NamedTuple


class Case(NamedTuple):
    """One line of the table."""

    group: str
    op: str
    shape: tuple
    axis: int
    dtype: str
    kind: str = "plain"  # of a loss: one of KINDS; of a top-k: the order of the logits, plain: random

    def __str__(self):
        kind = "" if self.kind == "plain" else f" {self.kind}"
        return f"{self.shape}{'' if self.axis == -1 else f' axis {self.axis}'} {self.dtype}{kind}".replace(",)", ")")


# group: (shape, axis, dtype)
GROUPS = {
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
# Of losses, the gradient included: (shape, axis, dtype, kind).  A linear layer's shape is (rows, features, classes).
KINDS = ("plain", "weights+smoothing", "soft")
LOSSES = {
    "cross_entropy": [
        *[(shape, -1, "float32") for shape in ((32, 10), (128, 1000), (4096, 1000), (64, 32000))],
        *[(shape, -1, "float32") for shape in ((256, 50257), (512, 128256))],
        *[((1024, 1000), -1, "float32", kind) for kind in KINDS[1:]],
    ],
    "linear_cross_entropy": [
        ((1024, 512, 32000), -1, "float32"),
        ((2048, 256, 8000), -1, "float32"),
    ],
}
# Of sparse softmax: (shape, axis, dtype, order of the logits).  The last length of a top-k is k.
_TOPK = [(1024, 1000, 5), (64, 32000, 8), (64, 32000, 64), (64, 128256, 50), (64, 128256, 512), (1, 1000000, 100)]
SPARSE = {
    "topk": [
        *[(shape, -1, "float32") for shape in _TOPK],
        *[((64, 32000, 64), -1, "float32", order) for order in ("ascending", "descending", "constant")],
    ],
    "topk_softmax": [(shape, -1, "float32") for shape in _TOPK],
    "sparsemax": [(shape, -1, "float32") for shape in ((1024, 1000), (64, 32000))],
    "entmax": [(shape, -1, "float32") for shape in ((1024, 1000), (64, 32000))],
}
# Geometric means are given over these.
SUMMARIES = {
    "losses": lambda case: case.group == "loss",
    "in random order": lambda case: case.group == "sparse" and case.kind == "plain",
    "last axis, float32": lambda case: case.group == "last",
    "last axis, 1000 to 50257 classes": lambda case: case.group == "last" and 1000 <= case.shape[-1] <= 50257,
    "other axes and dtypes": lambda case: case.group in ("axes", "half"),
    "given shapes": lambda case: case.group == "given",
}
PEERS = ("scipy", "torch", "torch_fused", "onnxruntime", "jax")


def cases(op, group=None, shapes=None, axis=None, dtype=None):
    if op in LOSSES and not shapes:
        return [Case("loss", op, *line) for line in LOSSES[op]]
    if op in SPARSE and not shapes:
        return [Case("sparse", op, *line) for line in SPARSE[op]]
    if shapes:
        return [Case("given", op, shape, -1 if axis is None else axis, dtype or "float32") for shape in shapes]
    wanted = GROUPS if group in (None, "all") else [group]
    return [Case(name, op, *line) for name in wanted for line in GROUPS[name]]
