"""What bench measures unless told otherwise: the usual shapes, and the names of the peers."""

from typing import NamedTuple


class Case(NamedTuple):
    """One line of the table."""

    group: str
    op: str
    shape: tuple
    axis: int
    dtype: str

    def __str__(self):
        return f"{self.shape}{'' if self.axis == -1 else f' axis {self.axis}'} {self.dtype}".replace(",)", ")")


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
# Geometric means are given over these.
SUMMARIES = {
    "last axis, float32": lambda case: case.group == "last",
    "last axis, 1000 to 50257 classes": lambda case: case.group == "last" and 1000 <= case.shape[-1] <= 50257,
    "other axes and dtypes": lambda case: case.group in ("axes", "half"),
    "given shapes": lambda case: case.group == "given",
}
PEERS = ("scipy", "torch", "onnxruntime", "jax")


def cases(op, group=None, shapes=None, axis=None, dtype=None):
    if shapes:
        return [Case("given", op, shape, -1 if axis is None else axis, dtype or "float32") for shape in shapes]
    wanted = GROUPS if group in (None, "all") else [group]
    return [Case(name, op, *line) for name in wanted for line in GROUPS[name]]
