"""A shard of the classes against a whole call: the two stages of cross-entropy with its gradient in C, one thread.

    python asv_bench/shard_stages.py [ROUNDS]

The sums of a shard keep the powers in the memory of the gradient, and the result is made from them after the exchange.
"sweep" is NumPy's multiplication of that memory in place, the least that a second sweep over it takes. Every call
writes to the same memory; calls take turns, and the least CPU times are printed, in ms.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

import csoftmax
from csoftmax._cpu import binding
from csoftmax._distributed.terms import plan_partial


def measure(rows: int, classes: int, rounds: int) -> dict[str, float]:
    """The least CPU time of each step in ms."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(rows, classes)) * 5).astype(np.float32)
    target = rng.integers(0, classes, rows)
    losses = dict.fromkeys(("weight", "sample_weight", "softcap"))
    options = {"label_smoothing": 0.0, "ignore_index": -100, "z_loss": 0.0, "temperature": 1.0} | losses
    terms, piece = plan_partial(x, offset=0, n_classes=classes, kind="loss", axis=-1, target=target, losses=options)
    terms = terms.with_classes(classes)
    arguments = terms.loss_arguments(piece, None, None, float(classes), float(rows), 1)
    gradient, loss = np.zeros_like(x), np.empty(rows)
    records = np.empty((rows, terms.words), np.int64)
    block_max = np.empty((rows, -(-classes // binding.BLOCK_ELEMENTS)))

    def find_sums() -> None:
        binding.run_shard_loss(terms.dtype, gradient, records, block_max, *arguments)

    def finish() -> None:
        binding.finish_shard_loss(terms.dtype, True, records, block_max, loss, gradient, None, *arguments)

    def compute_both() -> None:
        find_sums()
        finish()

    calls = {
        "whole": lambda: csoftmax.cross_entropy_with_grad(x, target, out=gradient, num_threads=1),
        "sums": find_sums,
        "result": finish,
        "sweep": lambda: np.multiply(gradient, np.float32(0.999), out=gradient),
        "both": compute_both,
    }
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            if name in ("result", "sweep"):
                find_sums()
            begin = time.thread_time()
            call()
            least[name] = min(least[name], 1e3 * (time.thread_time() - begin))
    return least


def main() -> None:
    """Print a line for each shape."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    for shape in ((64, 32000), (64, 50257), (16, 262144), (1024, 8192)):
        found = measure(*shape, rounds)
        times = "  ".join(f"{name} {value:.3f}" for name, value in found.items())
        ratio, limit = found["both"] / found["whole"], (found["sums"] + found["sweep"]) / found["whole"]
        print(f"{shape}  {times}  both / whole {ratio:.3f}, with the sweep {limit:.3f}  load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
