"""Time and bandwidth on a CUDA device; left out where there is none."""

import numpy as np

import csoftmax
from csoftmax import _cuda

SHAPES = ((16384, 1024), (1024, 50257))


class Cuda:
    params = (("softmax", "log_softmax", "cross_entropy", "topk", "sparsemax", "sample"), SHAPES)
    param_names = ("operation", "shape")
    timeout = 120

    def setup(self, name, shape):
        try:
            self.cupy = _cuda.require(None)
        except _cuda.Unavailable as reason:
            raise NotImplementedError(str(reason)) from None
        x = self.cupy.asarray(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
        labels = self.cupy.asarray(np.zeros(shape[0], np.int64))
        out = self.cupy.empty_like(x)
        self.calls = {
            "softmax": lambda: csoftmax.softmax(x, out=out),
            "log_softmax": lambda: csoftmax.log_softmax(x, out=out),
            "cross_entropy": lambda: csoftmax.cross_entropy_with_grad(x, labels, out=out),
            "topk": lambda: csoftmax.topk(x, 20),
            "sparsemax": lambda: csoftmax.sparsemax(x, out=out),
            "sample": lambda: csoftmax.sample(x, rng=0),
        }
        self.nbytes = x.nbytes * (1 if name in ("topk", "sample") else 2)
        self.calls[name]()

    def track_bandwidth(self, name, shape):
        from csoftmax._bench.cuda import time_calls

        call = self.calls[name]
        return self.nbytes / np.median([time_calls(self.cupy, call, 20) for _ in range(9)]) / 1e9

    track_bandwidth.unit = "GB/s"
