"""The heads of ManyClassRegression on a bigram model of English: the table and the picture of "How to choose a head".

    pip install wordsegment matplotlib
    python asv_bench/choose_a_head.py --picture docs/guide/choose_a_head.svg [--pairs 500000] [--seed 0] [head]

The model and the data are those of many_classes.py: 22,254 words, 64 numbers for each, row-wise Adagrad, one pass over
pairs that are drawn from the table, in minibatches of 512. A first minibatch holds every word once, with its count as
its weight: heads that order the classes by their counts know all of them. For each head: the exact loss of the whole
table, seconds of CPU time of the training, megabytes of the parameters of the head, and milliseconds of CPU time for
the ten best of one query, the least of several rounds on one thread, in batches of 64. The two layers that serve a
linear head are measured as well. A head that this csoftmax does not have is left out and named.
"""

import argparse
import time

import numpy as np
from many_classes import BATCH, DIMENSION, Bigrams

from csoftmax.linear_model import ManyClassRegression

HEADS = {
    "full": {},
    "sampled": {"n_sampled": 256},
    "hierarchical": {},
    "adaptive": {},
    "hashed": {},
}
SERVING = {"int8": "sampled, Int8Head", "clustered": "sampled, ClusteredHead"}
MEASURES = {
    "loss": "loss of the population",
    "train": "training, s",
    "memory": "parameters, MB",
    "topk": "top 10 of a query, ms",
}
ROUNDS, QUERIES = 9, 64


def least_time(call):
    """Milliseconds of CPU time for a query."""
    best = np.inf
    for _ in range(ROUNDS):
        begin = time.process_time()
        call()
        best = min(best, time.process_time() - begin)
    return 1e3 * best / QUERIES


def fit(data, head, pairs, seed):
    """A trained model, and seconds of CPU time."""
    rng = np.random.default_rng(seed)
    before, after = data.draw(pairs, rng)
    first = np.zeros(data.n_words, np.int64)
    first[data.after] = data.before  # a word before each
    weights = data.counts / data.counts.mean()
    batches = [(first[:, None], np.arange(data.n_words), weights)]
    batches += [(before[i : i + BATCH, None], after[i : i + BATCH]) for i in range(0, pairs, BATCH)]
    model = ManyClassRegression(
        head=head, embedding=(data.n_words, DIMENSION), random_state=seed, num_threads=1, **HEADS[head]
    )
    begin = time.process_time()
    model.fit_batches(batches, np.arange(data.n_words), epochs=1)
    return model, time.process_time() - begin


def population_loss(data, model):
    """Exactly; a linear layer computes the logits of a word before once for all of its pairs."""
    parameters = model.head_.parameters
    if len(parameters.get("w", ())) == data.n_words:
        return data.loss(model.embedding_, parameters["w"], parameters["bias"])
    log_p = [
        model.log_proba(data.before[i : i + 4096, None], data.after[i : i + 4096]) for i in range(0, len(data.p), 4096)
    ]
    return -float(data.p @ np.concatenate(log_p))


def measure(data, heads, pairs, seed):
    """The figures of heads, by name."""
    rows = {}
    frequent = np.argsort(-np.bincount(data.before, data.p, data.n_words))[:QUERIES]
    for head in heads:
        try:
            ManyClassRegression(head=head, max_epochs=1).fit([[0.0], [1.0]], [0, 1])
        except ValueError as error:
            print(f"{head} is left out: {error}")
            continue
        model, seconds = fit(data, head, pairs, seed)
        size = sum(np.asarray(a).nbytes for a in model.head_.parameters.values()) / 1e6
        rows[head] = {
            "loss": population_loss(data, model),
            "train": seconds,
            "memory": size,
            "topk": least_time(lambda: model.topk(frequent[:, None], 10)),  # noqa: B023
        }
        print(head, rows[head], flush=True)
        for kind, name in SERVING.items() if head == "sampled" else ():
            layer, x = model.serving(kind), model.embedding_[frequent]
            figures = {"topk": least_time(lambda: layer.topk(x, 10)), "memory": size + layer.nbytes / 1e6}  # noqa: B023
            rows[name] = {"loss": None, "train": None, **figures}
            print(name, figures, flush=True)
            if kind == "clustered":
                exact = layer.topk(x, 10, exact=True)
                found = layer.topk(x, 10)
                hits = [len(np.intersect1d(a, b)) for a, b in zip(exact.indices, found.indices)]
                print(f"recall {np.mean(hits) / 10:.3f}, certified {found.certified.mean():.3f}")
    return rows


def draw(rows, entropy, path):
    """A panel for each measure, a line for each head."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.style.use("csoftmax.style")
    matplotlib.rcParams["svg.hashsalt"] = "csoftmax"  # the same bytes for the same figures
    names = list(rows)
    fig, axes = plt.subplots(1, len(MEASURES), figsize=(10, 0.55 * len(names) + 1.3), sharey=True)
    for ax, (measure, title) in zip(axes, MEASURES.items()):
        found = {i: rows[name][measure] for i, name in enumerate(names) if rows[name][measure] is not None}
        low, high = min(found.values()), max(found.values())
        for i, value in found.items():
            ax.plot([low, value], [i, i], color="0.8", linestyle="-", linewidth=1.5, zorder=1)
            ax.plot(value, i, "o", markersize=8, color="C0", zorder=2)
            label = f"{value:.2f}" if measure == "loss" else f"{value:.2g}" if value < 100 else f"{value:.0f}"
            ax.annotate(label, (value, i), (0, 8), textcoords="offset points", ha="center", fontsize=9)
        is_log = measure != "loss"
        ax.set_xscale("log" if is_log else "linear")
        pad = (high / low) ** 0.25 if is_log else 0.25 * (high - low)
        ax.set_xlim((low / pad, high * pad) if is_log else (low - pad, high + pad))
        ax.set_title(title, fontsize=11, loc="left")
        ax.set_xticks([])
        ax.minorticks_off()
        ax.tick_params(axis="y", length=0)
        for side in ("top", "right", "bottom"):
            ax.spines[side].set_visible(False)
        ax.grid(False)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.7)
    fig.suptitle(f"22,254 words, bigrams of English: conditional entropy {entropy:.2f}; to the left is better", x=0.01,
                 ha="left", fontsize=12)  # fmt: skip
    fig.savefig(path, metadata={"Date": None} if str(path).endswith(".svg") else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heads", nargs="*", metavar="head", help=f"{', '.join(HEADS)}; default: all")
    parser.add_argument("--picture", help="file name, such as docs/guide/choose_a_head.svg")
    parser.add_argument("--pairs", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = Bigrams()
    rows = measure(data, arguments.heads or HEADS, arguments.pairs, arguments.seed)
    print(f"\n| head | {' | '.join(MEASURES.values())} |\n|---|{'---|' * len(MEASURES)}")
    for name, figures in rows.items():
        cells = ["" if figures[m] is None else f"{figures[m]:.3g}" for m in MEASURES]
        print(f"| {name} | {' | '.join(cells)} |")
    if arguments.picture:
        draw(rows, data.entropy()[0], arguments.picture)


if __name__ == "__main__":
    main()
