"""Interleaved timing: A B C A B C …, a ratio for each round, and the median of the ratios.

Machines are shared and change their speed from one second to the next, so a time alone says little; the ratio of two
adjacent samples is stable.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter, process_time, sleep
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLE_SECONDS = 0.002  # shortest time of a sample
BUDGET_SECONDS = 4.0  # for all rounds of a line, unless the number of rounds is given
Seconds = dict[str, NDArray[np.float64]]  # by contender: seconds per call, one for each round


class Contender(NamedTuple):
    """A statement to time, the names in it, and the context that it runs in."""

    name: str
    statement: str
    names: dict[str, Any]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    fills_out: bool = False  # whether the result goes to the problem's `out` rather than being returned


def wait_for_idle_threads() -> None:
    """Wait until no thread of this process spins.

    The worker threads of OpenMP runtimes and of ONNX Runtime spin for up to 50 ms after a call, each in a pool of its
    own, and would take the CPU from the next contender.  Making them sleep at once (OMP_WAIT_POLICY=passive) would slow
    down the next call of their owner instead.  So each keeps its default, and a sample begins when all are quiet.
    """
    for _ in range(20):
        before = process_time()
        sleep(0.008)  # longer than the tick in which the system counts CPU time
        if process_time() - before < 0.002:
            break


def count_calls(timer: timeit.Timer) -> tuple[int, float]:
    """Find how many calls make a sample, and how many seconds that sample takes."""
    timer.timeit(1)
    number = 1
    while (seconds := timer.timeit(number)) < SAMPLE_SECONDS:
        number = max(2 * number, int(1.1 * SAMPLE_SECONDS / seconds * number))
    return number, seconds


def interleave(contenders: Sequence[Contender], rounds: int | None = None, threads: int = 1) -> Seconds:
    """Time all contenders in turns; returns the seconds per call of each, one figure for each round."""
    timers, numbers, cost = [], [], 0.0
    for contender in contenders:
        timer = timeit.Timer(contender.statement, globals=contender.names)
        with contender.context():
            number, seconds = count_calls(timer)
        timers.append(timer)
        numbers.append(number)
        cost += seconds * (1 + 1 / number)
    if rounds is None:
        rounds = int(np.clip(BUDGET_SECONDS / (cost + (threads > 1) * 0.02 * len(contenders)), 5, 41))
    found = {contender.name: np.empty(rounds) for contender in contenders}
    for i in range(rounds):
        first = -i % len(contenders)  # another contender begins each round
        for j in (*range(first, len(contenders)), *range(first)):
            if threads > 1:
                wait_for_idle_threads()
            with contenders[j].context():
                timers[j].timeit(1)  # wakes the worker threads, fills the caches
                found[contenders[j].name][i] = timers[j].timeit(numbers[j]) / numbers[j]
    return found


def ratio(seconds: Seconds, peer: str, reference: str) -> float:
    """Return how many times longer the peer takes than the reference: the median over the rounds."""
    return float(np.median(seconds[peer] / seconds[reference]))


def geometric_mean(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


class OtherProcesses:
    """The CPU time that other processes use during a measurement; more than a little makes its figures worthless."""

    def __init__(self) -> None:
        self._begin, self._all, self._this = perf_counter(), _cpu_seconds(), process_time()

    def elapsed(self) -> float:
        """Return the seconds since the beginning."""
        return perf_counter() - self._begin

    def cpus(self) -> float | None:
        """Return the number of CPUs that they have kept busy; None if the system does not say."""
        now = _cpu_seconds()
        if self._all is None or now is None:
            return None
        return max(0.0, (now - self._all - (process_time() - self._this)) / self.elapsed())


def _cpu_seconds() -> float | None:
    """CPU time that all processes together have used since the machine started; None without psutil."""
    try:
        import psutil
    except ImportError:
        return None
    times = psutil.cpu_times()._asdict()
    return float(sum(times.get(kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal")))
