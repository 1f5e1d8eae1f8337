"""Softmax over segments beside PyTorch Geometric's.

    pip install torch torch_geometric
    python asv_bench/segments.py [--rounds 9] [--elements 1000000] [--isa avx512]

The peer is `torch_geometric.utils.softmax` of float32, by offsets (`ptr`) or by ids, without its optional extensions.
Lengths are Poisson of the given mean, or those of a power law (zipf 1.7); "heads" have 8 scores for each element; ids
are in random order over the given number of segments, in a `Segments` or sorted by the call. "dense" is
csoftmax.softmax of rows of equal length. Times are CPU times of one thread, in turn, results in given memory; the
ratios are of their minima.
"""

import argparse
import os
import time

import numpy as np


def draw_lengths(kind, elements, rng):
    """Return lengths whose sum is the number of elements."""
    if kind == "zipf":
        drawn = np.minimum(rng.zipf(1.7, elements // 3), 100_000)
    else:
        drawn = rng.poisson(kind, int(elements / kind * 1.2) + 10)
    before = np.cumsum(drawn)
    kept = drawn[: int(np.searchsorted(before, elements))]
    return np.append(kept, elements - kept.sum())


def race(functions, rounds):
    """Return the shortest time of each function, called in turn."""
    best = [float("inf")] * len(functions)
    for at in range(rounds + 1):
        for i, function in enumerate(functions):
            begin = time.process_time()
            function()
            if at:
                best[i] = min(best[i], time.process_time() - begin)
    return best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--elements", type=int, default=1_000_000)
    parser.add_argument("--isa")
    arguments = parser.parse_args()
    if arguments.isa:
        os.environ["CSOFTMAX_ISA"] = arguments.isa
    import torch
    from torch_geometric.utils import softmax as peer

    import csoftmax

    torch.set_num_threads(1)
    csoftmax.set_num_threads(1)
    rng, e, rounds = np.random.default_rng(0), arguments.elements, arguments.rounds
    print("| segments | peer ms | csoftmax ms | ratio |")
    print("|---|---|---|---|")

    def report(name, functions):
        times = race(functions, rounds)
        print(f"| {name} | {times[0] * 1e3:.2f} | {times[1] * 1e3:.3f} | {times[0] / times[1]:.2f} |", flush=True)
        return times[0] / times[1]

    for heads in ((), (8,)):
        ratios = []
        for kind in (5, 10, 50, 1000, "zipf"):
            indptr = np.concatenate([[0], np.cumsum(draw_lengths(kind, e, rng))])
            x = rng.standard_normal((e, *heads)).astype(np.float32)
            out, t, ptr, segments = np.empty_like(x), torch.from_numpy(x), torch.from_numpy(indptr), None
            segments = csoftmax.Segments(indptr=indptr)
            pair = (
                lambda t=t, ptr=ptr: peer(t, ptr=ptr),
                lambda x=x, s=segments, out=out: csoftmax.segment_softmax(x, segments=s, out=out),
            )
            ratios.append(report(f"sorted, {kind}{', 8 heads' if heads else ''}", pair))
        print(f"| geometric mean | | | {np.exp(np.mean(np.log(ratios))):.2f} |")
    for count in (100_000, 10_000):
        ids = rng.integers(0, count, e)
        x = rng.standard_normal(e).astype(np.float32)
        out, t, i = np.empty_like(x), torch.from_numpy(x), torch.from_numpy(ids)
        segments = csoftmax.Segments(segment_ids=ids, num_segments=count)
        calls = (
            lambda: csoftmax.segment_softmax(x, segments=segments, out=out),  # noqa: B023 - called before the next
            lambda: csoftmax.segment_softmax(x, segment_ids=ids, num_segments=count, out=out),  # noqa: B023
        )
        for name, call in zip(("Segments", "ids"), calls, strict=True):
            report(f"random ids, {count:,} segments, {name}", (lambda: peer(t, i, num_nodes=count), call))  # noqa: B023
    for k in (5, 16, 50, 1000):
        rows = rng.standard_normal((e // k, k)).astype(np.float32)
        out, flat = np.empty_like(rows), rows.reshape(-1)
        segments = csoftmax.Segments(indptr=np.arange(0, rows.size + 1, k))
        report(
            f"equal lengths, {k}, dense",
            (
                lambda: csoftmax.softmax(rows, out=out),  # noqa: B023
                lambda: csoftmax.segment_softmax(flat, segments=segments, out=out.reshape(-1)),  # noqa: B023
            ),
        )


if __name__ == "__main__":
    main()
