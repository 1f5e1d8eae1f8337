"""sample and penalize beside a softmax of the same array, and beside PyTorch.

    pip install torch
    python asv_bench/sampler.py [--rows 64] [--classes 128256] [--rounds 9] [--threads 1] [--logits 1,3,peaked,ties]

One draw from each row of float32 logits. The unit is a softmax that allocates its result, in the same round: the table
has the least CPU time of the rounds (with more than one thread, of wall time), divided by that of the softmax. All
contenders take turns. PyTorch draws in two forms: top-k first, then top-p and min-p among what it has left, by cumsum
and multinomial; and by sorting the whole row. Logits: normal ones of a standard deviation, a number; "peaked": 2000
classes of each row above the others by up to 10, falling with the logarithm of their rank, as those of language models;
"ties": normal ones with the standard deviation 3, rounded to tenths. Without PyTorch its lines are left out.
"""

import argparse
import time
from importlib.util import find_spec

import numpy as np

import csoftmax

FOUR = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "min_p": 0.05}
FILTERS = {
    "temperature": {"temperature": 0.7},
    "min_p 0.05": {"min_p": 0.05},
    "top_n_sigma 1": {"top_n_sigma": 1.0},
    "top_k 50": {"top_k": 50},
    "top_k 5000": {"top_k": 5000},
    "top_k 60000": {"top_k": 60000},
    "top_p 0.5": {"top_p": 0.5},
    "top_p 0.95": {"top_p": 0.95},
    "top_p 0.999": {"top_p": 0.999},
    "typical_p 0.2": {"typical_p": 0.2},
    "typical_p 0.95": {"typical_p": 0.95},
    "temperature, top_k 50, top_p, min_p": FOUR,
    "top_k 60000, top_p": {"top_k": 60000, "top_p": 0.95},
    "typical_p, top_p, min_p, top_n_sigma": {"top_n_sigma": 3.0, "typical_p": 0.95, "top_p": 0.95, "min_p": 0.02},
    "all six": {"temperature": 0.8, "top_n_sigma": 3.0, "top_k": 60000, "typical_p": 0.95, "top_p": 0.95,
                "min_p": 0.001},
    "top_p, min_p, temperature last": {"temperature": 1.5, "top_p": 0.9, "min_p": 0.02,
                                       "order": ("top_p", "min_p", "temperature")},
}  # fmt: skip


def make_logits(kind, rows, classes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, classes), np.float32)
    if kind == "peaked":
        x *= 1.5
        ranks = np.arange(1, min(classes, 2000) + 1)
        for row in x:
            row[rng.choice(classes, len(ranks), replace=False)] += (10 - 1.2 * np.log(ranks)).astype(np.float32)
        return x
    return np.round(3 * x, 1) if kind == "ties" else x * np.float32(kind)


def torch_contenders(x, threads):
    """The four filters in PyTorch: top-k first, and a sort of the whole row."""
    import torch

    torch.set_num_threads(threads)
    logits = torch.from_numpy(x)
    k, p, least = min(FOUR["top_k"], x.shape[1]), FOUR["top_p"], FOUR["min_p"]

    def draw(values, indices):
        """From logits in falling order."""
        probabilities = torch.softmax(values, -1)
        before = torch.cumsum(probabilities, -1) - probabilities
        probabilities[(before >= p) | (probabilities < least * probabilities[:, :1])] = 0
        return torch.gather(indices, -1, torch.multinomial(probabilities, 1))

    def by_top_k():
        return draw(*torch.topk(logits / FOUR["temperature"], k, -1))

    def by_sort():
        values, indices = torch.sort(logits / FOUR["temperature"], dim=-1, descending=True)
        values[:, k:] = -torch.inf
        return draw(values, indices)

    return {"PyTorch, top-k first": by_top_k, "PyTorch, sort": by_sort}


def penalize_contenders(x):
    """penalize in place with 500 tokens a row, followed by sample."""
    tokens = np.random.default_rng(1).integers(0, x.shape[1], (len(x), 500))

    def penalize():
        csoftmax.penalize(x, tokens, repetition=1.0001, presence=1e-9, out=x)

    def then(name):
        def call():
            penalize()
            csoftmax.sample(x, rng=0, **FILTERS[name])

        return call

    return {f"penalize, {name}": then(name) for name in ("temperature", "top_p 0.95")} | {"penalize": penalize}


def measure(contenders, rounds, clock):
    """The least seconds of each contender."""
    least = dict.fromkeys(contenders, np.inf)
    for call in contenders.values():
        call()  # memory is touched, threads are started
    for _ in range(rounds):
        for name, call in contenders.items():
            begin = clock()
            call()
            least[name] = min(least[name], clock() - begin)
    return least


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--classes", type=int, default=128256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--logits", default="1,3,peaked,ties")
    arguments = parser.parse_args()
    csoftmax.set_num_threads(arguments.threads)
    kinds = arguments.logits.split(",")
    columns = []
    for kind in kinds:
        x = make_logits(kind, arguments.rows, arguments.classes)
        contenders = {"softmax": lambda x=x: csoftmax.softmax(x)}
        for name, options in FILTERS.items():
            contenders[name] = lambda x=x, options=options: csoftmax.sample(x, rng=0, **options)
        if find_spec("torch"):
            contenders |= torch_contenders(x, arguments.threads)
        contenders |= penalize_contenders(x.copy())
        clock = time.process_time if arguments.threads == 1 else time.perf_counter
        columns.append(measure(contenders, arguments.rounds, clock))
    print(f"({arguments.rows}, {arguments.classes}) float32, {arguments.threads} thread(s)")
    print(f"{'':40}" + "".join(f"{kind:>10}" for kind in kinds))
    print(f"{'softmax, ms':40}" + "".join(f"{1000 * c['softmax']:10.2f}" for c in columns))
    for name in list(columns[0])[1:]:
        print(f"{name:40}" + "".join(f"{c[name] / c['softmax']:10.2f}" for c in columns))
    for name in ("temperature", "top_p 0.95"):
        ratios = [c[f"penalize, {name}"] / c[name] for c in columns]
        print(f"{'penalize, ' + name + ' / ' + name:40}" + "".join(f"{ratio:10.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
