"""Time of a call into given memory, and the bandwidth that it reaches; one thread, the least noisy figure."""

import timeit

import numpy as np

import csoftmax
from csoftmax._bench.timing import count_calls

from .inputs import LABELS, NAMES, prepare_rows


class Speed:
    params = (NAMES, LABELS)
    param_names = ("operation", "case")
    timeout = 120

    def setup(self, name, label):
        csoftmax.set_num_threads(1)
        self.call, self.nbytes = prepare_rows(name, label)
        self.call()

    def time_call(self, name, label):
        self.call()

    def track_bandwidth(self, name, label):
        timer = timeit.Timer(self.call)
        number, _ = count_calls(timer)
        return self.nbytes / (np.median(timer.repeat(9, number)) / number) / 1e9

    track_bandwidth.unit = "GB/s"
