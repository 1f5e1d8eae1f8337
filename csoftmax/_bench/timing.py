"""Interleaved timing: A B C A B C …, a ratio for each round, the median of the ratios.

Machines are shared and change speed by the second, so a time means little and the ratio of two neighbours much.
"""

import os
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import NamedTuple

import numpy as np

SAMPLE = 0.002  # seconds that a sample lasts at least
BUDGET = 4.0  # seconds for all rounds, unless their number is given


class Contender(NamedTuple):
    """A statement to time, the names in it, and what must surround it."""

    name: str
    statement: str
    names: dict
    context: Callable[[], AbstractContextManager] = nullcontext


def settle():
    """Wait until no thread of this process spins.

    The worker threads of OpenMP runtimes and of ONNX Runtime spin for up to 50 ms after a call, each in a pool of its
    own, and take the CPU from whoever comes next.  To make them sleep (OMP_WAIT_POLICY=passive) would slow down the
    owners' next call instead; so everyone keeps its default, and nobody begins before the others are quiet.
    """
    for _ in range(20):
        # longer than the tick in which the system counts CPU time
        before = process_time()
        sleep(0.008)
        if process_time() - before < 0.002:
            break


def repeats(timer):
    """How many calls make a sample, and how long it takes."""
    timer.timeit(1)
    number = 1
    while (seconds := timer.timeit(number)) < SAMPLE:
        number = max(2 * number, int(1.1 * SAMPLE / seconds * number))
    return number, seconds


def interleave(contenders, rounds=None, threads=1):
    """Seconds per call of each contender in each round, as arrays by name."""
    timers, numbers, cost = [], [], 0.0
    for contender in contenders:
        timer = timeit.Timer(contender.statement, globals=contender.names)
        with contender.context():
            number, seconds = repeats(timer)
        timers.append(timer)
        numbers.append(number)
        cost += seconds * (1 + 1 / number)
    if rounds is None:
        rounds = int(np.clip(BUDGET / (cost + (threads > 1) * 0.02 * len(contenders)), 5, 41))
    seconds = {contender.name: np.empty(rounds) for contender in contenders}
    for i in range(rounds):
        # everyone comes after everyone else in turn
        for j in np.roll(np.arange(len(contenders)), i):
            if threads > 1:
                settle()
            with contenders[j].context():
                timers[j].timeit(1)  # wakes the worker threads, fills the caches
                seconds[contenders[j].name][i] = timers[j].timeit(numbers[j]) / numbers[j]
    return seconds


def ratio(seconds, peer, own):
    """How many times slower the peer is: the median over the rounds."""
    return float(np.median(seconds[peer] / seconds[own]))


def geometric_mean(values):
    return float(np.exp(np.mean(np.log(values))))


class Bystanders:
    """How many CPUs other processes use meanwhile: more than a little, and the figures are worth nothing."""

    def __init__(self):
        self.begin, self.busy, self.own = perf_counter(), busy_seconds(), process_time()

    def seconds(self):
        return perf_counter() - self.begin

    def cpus(self):
        """None where the system does not tell."""
        if self.busy is None:
            return None
        return max(0.0, (busy_seconds() - self.busy - (process_time() - self.own)) / self.seconds())


def busy_seconds():
    """CPU time that all processes have used since the machine began (Linux)."""
    try:
        user, nice, system, _idle, _wait, *rest = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except (OSError, ValueError):
        return None
    return sum(map(int, [user, nice, system, *rest])) / os.sysconf("SC_CLK_TCK")
