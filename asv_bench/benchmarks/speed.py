"""Time of a call into memory that exists, and the bandwidth that it reaches; one thread, the least noisy figure."""

import timeit

import numpy as np

import csoftmax
from csoftmax._bench.timing import count_calls

from .inputs import LABELS, NAMES, Arrays


class Speed:
    params = (NAMES, LABELS)
    param_names = ("operation", "case")
    timeout = 120

    def setup(self, name, label):
        csoftmax.set_num_threads(1)
        self.arrays = Arrays(name, label)
        self.arrays.call()

    def time_call(self, name, label):
        self.arrays.call()

    def track_bandwidth(self, name, label):
        timer = timeit.Timer(self.arrays.call)
        number, _ = count_calls(timer)
        return self.arrays.nbytes / (np.median(timer.repeat(9, number)) / number) / 1e9

    track_bandwidth.unit = "GB/s"
