"""csoftmax.margin_cross_entropy_with_grad beside pytorch-metric-learning's ArcFaceLoss, forward and backward.

    pip install pytorch-metric-learning
    python asv_bench/margins.py [--shapes 512x512x10000,512x512x50000] [--rounds 9] [--threads 2] [--output FILE.md]

float32; shapes are rows x features x classes. Both get the same embeddings, class vectors, labels, margin (0.5) and
scale (64), and return the loss and both gradients; that their results agree is checked first. Rounds alternate; times
are the medians. Memory is the largest resident size of a new process with all threads, less that before the call and
the gradients.

The table, in Markdown: milliseconds, the ratio of the medians, the smallest ratio of a round, megabytes.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import csoftmax

ARC, SCALE = 0.5, 64.0
SIDES = ("csoftmax", "pytorch-metric-learning")


def make_problem(n, d, k):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d), dtype="f4"), rng.standard_normal((k, d), dtype="f4"), rng.integers(0, k, n)


def prepare(side, x, w, y, threads):
    """A function that computes the loss and the gradients of x and w."""
    if side == "csoftmax":
        return lambda: csoftmax.margin_cross_entropy_with_grad(x, w, y, arc=ARC, scale=SCALE)[:3]
    import torch
    from pytorch_metric_learning.losses import ArcFaceLoss

    torch.set_num_threads(threads)
    loss = ArcFaceLoss(len(w), x.shape[1], margin=np.degrees(ARC), scale=SCALE)
    with torch.no_grad():
        loss.W.copy_(torch.from_numpy(w.T))
    features, labels = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)

    def compute():
        features.grad = loss.W.grad = None
        value = loss(features, labels)
        value.backward()
        return value.item(), features.grad.numpy(), loss.W.grad.numpy().T

    return compute


def measure(shape, rounds, threads):
    """Seconds of each round for each side."""
    problem = make_problem(*shape)
    functions = [prepare(side, *problem, threads) for side in SIDES]
    ours, theirs = (function() for function in functions)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for a, b in zip(ours[1:], theirs[1:]):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    seconds = []
    for _ in range(rounds):
        seconds.append([])
        for function in functions:
            begin = time.perf_counter()
            function()
            seconds[-1].append(time.perf_counter() - begin)
    return np.array(seconds)


def print_memory(side, shape, threads):
    """Print the megabytes that a first call adds to the process, less the gradients; for a process of its own."""
    function = prepare(side, *make_problem(*shape), threads)
    prepare(side, *make_problem(8, 8, 8), threads)()  # what libraries load on first use
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    _, grad_x, grad_w = function()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print((after - before - grad_x.nbytes - grad_w.nbytes) / 1e6)


def read_memory(side, shape, threads):
    """The megabytes that print_memory prints in a process of its own."""
    options = ["--memory-of", side, "--shapes", "x".join(map(str, shape)), "--threads", str(threads)]
    done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", default="512x512x10000,512x512x50000", help="ROWSxFEATURESxCLASSES, with commas")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=csoftmax.get_num_threads(), help="of both sides")
    parser.add_argument("--output", type=Path, help="file for the table; default: standard output")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.shapes.split(",")]
    if arguments.memory_of:
        return print_memory(arguments.memory_of, shapes[0], arguments.threads)
    from threadpoolctl import threadpool_limits

    # Before this process grows: on Linux a child's largest size begins with that of its parent.
    memory = {shape: [read_memory(side, shape, arguments.threads) for side in SIDES] for shape in shapes}
    head = "| rows, features, classes | csoftmax, ms | pytorch-metric-learning, ms | ratio | lowest | MB | MB |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for shape in shapes:
        with threadpool_limits(arguments.threads), csoftmax.threads(arguments.threads):
            seconds = measure(shape, arguments.rounds, arguments.threads)
        ours, theirs = np.median(seconds, axis=0) * 1e3
        lowest = (seconds[:, 1] / seconds[:, 0]).min()
        lines.append(
            f"| {', '.join(map(str, shape))} | {ours:.0f} | {theirs:.0f} | {theirs / ours:.2f} | {lowest:.2f} | "
            f"{' | '.join(f'{x:.0f}' for x in memory[shape])} |"
        )
    text = "\n".join(lines)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)
    return None


if __name__ == "__main__":
    main()
