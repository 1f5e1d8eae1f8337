"""Measures calls on a machine whose CPUs are all busy with other processes.

    python asv_bench/busy.py [--calls 1000] [--load 1]

For each shape, medians of the calls with one thread and with the default number, while --load processes for each CPU
compute: their ratio is to be at most 1.5.  The two kinds of calls are made in turns of 50, so that both meet the same
load.  The first calls after the load appears are not counted.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import numpy as np

import csoftmax

SHAPES = [(40, 1000), (4096, 16), (128, 1000), (512, 4000), (64, 32000)]
LOAD = "x = 1\nwhile True: x = x * 3 % 1000003"
TURN = 50


def seconds_of(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def measure(shape, calls):
    """Return the seconds of `calls` calls with one thread, and with the default number."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    out = np.empty_like(x)
    found = {1: [], None: []}
    for _ in range(calls // TURN + 1):
        for threads, seconds in found.items():
            seconds += [seconds_of(lambda: csoftmax.softmax(x, out=out, num_threads=threads)) for _ in range(TURN)]  # noqa: B023
    return [seconds[TURN:] for seconds in found.values()]


def start_load(count):
    return [subprocess.Popen([sys.executable, "-c", LOAD]) for _ in range(count)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--load", type=int, default=1, help="other processes for each CPU")
    options = parser.parse_args()
    processes = start_load(options.load * (os.cpu_count() or 1))
    try:
        time.sleep(1)
        print("shape           one thread (us)   default (us)   ratio   ratio of means")
        for shape in SHAPES:
            one, default = measure(shape, options.calls)
            medians, means = [[f(s) for s in (one, default)] for f in (statistics.median, statistics.mean)]
            print(
                f"{shape!s:15} {medians[0] * 1e6:15.1f} {medians[1] * 1e6:14.1f} "
                f"{medians[1] / medians[0]:7.2f} {means[1] / means[0]:8.2f}"
            )
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
