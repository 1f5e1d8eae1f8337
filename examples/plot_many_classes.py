"""
Nineteen thousand classes
=========================

Which English word follows which?  Word vectors and a linear layer over the 19,000 words that may follow are trained
together on the bigram counts of the package wordsegment.  The logits of all rows and classes would take 20 GB, those of
a minibatch 158 MB; neither matrix is ever built.  Needs: `pip install csoftmax matplotlib tqdm wordsegment`.
"""

# %%
# Bigrams, weighted by their counts.
import os

try:
    import matplotlib.pyplot as plt
    import numpy as np
    import wordsegment
    from tqdm import tqdm

    import csoftmax
except ImportError as error:
    raise SystemExit(f"{error}; this example needs: pip install csoftmax matplotlib tqdm wordsegment") from None

wordsegment.load()
pairs = [(*pair.split(" "), count) for pair, count in wordsegment.BIGRAMS.items() if pair.count(" ") == 1]
pairs.sort(key=lambda p: -p[2])
pairs = pairs[: int(os.environ.get("BIGRAMS", 258_437))]
firsts, first = np.unique([p[0] for p in pairs], return_inverse=True)
seconds, second = np.unique([p[1] for p in pairs], return_inverse=True)
weight = np.log1p([p[2] for p in pairs])
weight /= weight.mean()
print(f"{len(pairs)} bigrams, {len(firsts)} first words, {len(seconds)} classes")

# %%
# `linear_cross_entropy_with_grad` gives the loss and the gradients of features, layer and bias in one pass.  Adagrad
# (Duchi et al. 2011) updates the parameters: each has a rate of its own, which suits rare words.
rng = np.random.default_rng(0)
dimensions, rows_of_batch, rate = 32, 2048, 0.3
vectors = rng.normal(scale=0.1, size=(len(firsts), dimensions)).astype(np.float32)
layer = rng.normal(scale=0.1, size=(len(seconds), dimensions)).astype(np.float32)
bias = np.zeros(len(seconds), np.float32)
squares = [np.full_like(p, 1e-8) for p in (vectors, layer, bias)]


def train_epoch(name):
    """Train for one epoch; yields the mean loss of each minibatch before its step."""
    batches = np.array_split(rng.permutation(len(first)), -(-len(first) // rows_of_batch))
    for rows in tqdm(batches, desc=name, disable=None):
        loss, grad_features, grad_layer, grad_bias = csoftmax.linear_cross_entropy_with_grad(
            vectors[first[rows]], layer, second[rows], bias=bias, sample_weight=weight[rows]
        )
        grad_vectors = np.zeros_like(vectors)
        np.add.at(grad_vectors, first[rows], grad_features)
        for p, square, gradient in zip((vectors, layer, bias), squares, (grad_vectors, grad_layer, grad_bias)):
            square += gradient**2
            p -= rate * gradient / np.sqrt(square)
        yield float(loss)


history = [np.mean(list(train_epoch(f"epoch {epoch}"))) for epoch in (1, 2)]
print("loss in each epoch:", np.round(history, 3), "against", round(np.log(len(seconds)), 3), "at random")

# %%
# The words most likely to follow.
asked = [w for w in ("new", "united", "thank", "credit", "real") if w in firsts]
logits = vectors[np.searchsorted(firsts, asked)] @ layer.T + bias
best = csoftmax.topk_softmax(logits, 5, normalize="full")
for word, p, places in zip(asked, best.values, best.indices):
    print(f"{word:8}", ", ".join(f"{seconds[i]} {q:.3f}" for q, i in zip(p, places)))

# %%
# The distribution over the classes: after some first words a few classes take most of the probability.
plt.style.use("csoftmax.style")
fig, ax = plt.subplots(figsize=(7.2, 4.2))
for word, row in zip(asked, csoftmax.softmax(logits)):
    ax.plot(np.arange(1, len(row) + 1), np.cumsum(np.sort(row)[::-1]), label=f"{word} …")
ax.set(
    xlabel="number of classes, most probable first", ylabel="their probability together", xscale="log", ylim=(0, 1.02)
)
ax.xaxis.set_major_formatter("{x:,g}")
ax.set_title(f"What follows a word, among {len(seconds):,} words")
ax.legend(loc="upper left")
plt.show()
