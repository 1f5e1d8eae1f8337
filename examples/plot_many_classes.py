"""
Nineteen thousand classes
=========================

Which English word follows which?  A softmax regression from features of one word to the 19,000 words that may follow,
on the bigram counts of the package wordsegment (`pip install wordsegment`).  The logits of all rows and classes would
take 20 GB; they never exist.
"""

# %%
# Bigrams with their counts; a word's features are those of the words that it stands in front of, hashed to 64 numbers.
import os

import matplotlib.pyplot as plt
import numpy as np
import wordsegment

import csoftmax
from csoftmax.linear_model import SoftmaxRegression

wordsegment.load()
pairs = [(*pair.split(" "), count) for pair, count in wordsegment.BIGRAMS.items() if pair.count(" ") == 1]
pairs.sort(key=lambda p: -p[2])
pairs = pairs[: int(os.environ.get("BIGRAMS", 258_437))]
firsts, first = np.unique([p[0] for p in pairs], return_inverse=True)
seconds, second = np.unique([p[1] for p in pairs], return_inverse=True)
count = np.array([p[2] for p in pairs], float)
directions = np.random.default_rng(0).normal(size=(len(seconds), 64)).astype(np.float32)
features = np.zeros((len(firsts), 64), np.float32)
np.add.at(features, first, np.log1p(count)[:, None].astype(np.float32) * directions[second])
features /= np.linalg.norm(features, axis=1, keepdims=True)
weight = np.log1p(count)
print(f"{len(pairs)} bigrams, {len(firsts)} first words, {len(seconds)} classes")

# %%
# Two epochs of AdamW, a few hundred rows at a time.
model = SoftmaxRegression(solver="adamw", max_epochs=2, batch_size=512, learning_rate=0.05, random_state=0)
model.fit(features[first], second, weight / weight.mean())
print(
    "loss after each epoch:",
    np.round(model.history_["loss"], 3),
    "against",
    round(np.log(len(seconds)), 3),
    "at random",
)

# %%
# The most probable words after some others.
asked = [w for w in ("new", "united", "thank", "credit", "real") if w in firsts]
best = csoftmax.topk_softmax(model.decision_function(features[np.searchsorted(firsts, asked)]), 5, normalize="full")
for word, p, places in zip(asked, best.values, best.indices):
    print(f"{word:8}", ", ".join(f"{seconds[model.classes_[i]]} {q:.3f}" for q, i in zip(p, places)))

# %%
# How the mass is spread over the classes: few words take most of it.
p = csoftmax.softmax(model.decision_function(features[np.searchsorted(firsts, asked)]))
fig, ax = plt.subplots(layout="constrained")
for word, row in zip(asked, p):
    ax.semilogx(np.cumsum(np.sort(row)[::-1]), label=word)
ax.set(xlabel="classes, most probable first", ylabel="their probability together", ylim=(0, 1))
ax.legend()
plt.show()
