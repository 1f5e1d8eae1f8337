"""Time of the Plackett-Luce loss with its gradient beside ListMLE in PyTorch, on padded lists.

    python asv_bench/rankings.py

10,000 lists of Poisson(20) elements, float32, distinct relevances and grades from 0 to 4; CPU time of one thread, the
least of interleaved rounds. ListMLE is the formula of its paper with an eps in the logarithm; padding and shuffling are
not counted.
"""

import time

import numpy as np
import torch

import csoftmax

ROUNDS = 40
PADDING = -1.0


def list_mle(x, relevance, eps=1e-10):
    """The mean over lists of sum(log(sum of the rest)) - score, in falling order of relevance."""
    ranks, order = relevance.sort(descending=True, dim=1)
    is_padding = ranks == PADDING
    scores = torch.gather(x, 1, order).masked_fill(is_padding, -torch.inf)
    shifted = scores - scores.amax(1, keepdim=True)
    rest = shifted.exp().flip(1).cumsum(1).flip(1)
    return ((rest + eps).log() - shifted).masked_fill(is_padding, 0.0).sum(1).mean()


def make_calls():
    """Return calls without arguments, by name."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(rng.poisson(20, 10_000), 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    x = rng.normal(size=offsets[-1]).astype(np.float32)
    distinct = np.concatenate([rng.permutation(n) for n in lengths]).astype(np.float32)
    graded = rng.integers(0, 5, len(x)).astype(np.float32)
    rows, columns = np.repeat(np.arange(len(lengths)), lengths), np.arange(len(x)) - np.repeat(offsets[:-1], lengths)
    padded = torch.zeros(len(lengths), int(lengths.max()))
    ranks = torch.full_like(padded, PADDING)
    padded[rows, columns], ranks[rows, columns] = torch.tensor(x), torch.tensor(distinct)
    padded.requires_grad_()

    def peer():
        padded.grad = None
        list_mle(padded, ranks).backward()

    def ours(relevance):
        return csoftmax.plackett_luce_loss_with_grad(x, relevance, indptr=offsets, num_threads=1)

    return {"PyTorch": peer, "distinct": lambda: ours(distinct), "graded": lambda: ours(graded)}


def main():
    torch.set_num_threads(1)
    calls = make_calls()
    best = dict.fromkeys(calls, np.inf)
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = time.thread_time()
            call()
            best[name] = min(best[name], time.thread_time() - begin)
    for name, seconds in best.items():
        print(f"{name:10} {seconds * 1e3:8.2f} ms  {best['PyTorch'] / seconds:6.2f}")


if __name__ == "__main__":
    main()
