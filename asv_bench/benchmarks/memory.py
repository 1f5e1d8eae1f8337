"""Peak memory of a process that makes inputs and output and calls once: more than these two is scratch."""

import numpy as np

from .inputs import LABELS, NAMES, operations, read


class Memory:
    params = (NAMES, [label for label in LABELS if label.startswith(("64x", "1024x"))])
    param_names = ("operation", "case")

    def setup(self, name, label):
        op = operations.BY_NAME[name]
        shape, self.axis, dtype = read(label)
        # random inputs would need temporaries, and their peak would hide that of the call
        self.inputs = [np.full(shape, 0.5, operations.dtype_of(dtype)) for _ in range(op.inputs)]
        self.out = {"out": np.full_like(self.inputs[0], 0)} if op.has_out else {}
        self.function = op.function()

    def peakmem_call(self, name, label):
        self.function(*self.inputs, self.axis, **self.out)
