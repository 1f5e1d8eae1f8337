"""Peak memory of a process that makes inputs and output and calls once: the rest is scratch."""

import numpy as np

from csoftmax._spec.formats import dtype_of
from csoftmax._spec.operations import BY_NAME

from .inputs import LABELS, NAMES, parse_label


class Memory:
    params = (NAMES, [label for label in LABELS if label.startswith(("64x", "1024x"))])
    param_names = ("operation", "case")

    def setup(self, name, label):
        record = BY_NAME[name]
        shape, self.axis, dtype = parse_label(label)
        # random inputs would need temporaries, and their peak would hide that of the call
        self.inputs = [np.full(shape, 0.5, dtype_of(dtype)) for _ in range(record.inputs)]
        self.out = {"out": np.full_like(self.inputs[0], 0)} if record.has_out and record.keeps_axis else {}
        self.function = record.function()

    def peakmem_call(self, name, label):
        self.function(*self.inputs, self.axis, **self.out)
