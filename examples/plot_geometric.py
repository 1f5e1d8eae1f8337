"""
Ages as classes
===============

A softmax over ages takes 30 and 31 for strangers. With a cost that grows with the distance between ages, g-softmax puts
the probability on few ages that stand for those around them, and an even mix of two ages is as uncertain as they are
far apart. Needs: `pip install csoftmax matplotlib`.
"""

# %%
try:
    import matplotlib.pyplot as plt
    import numpy as np

    import csoftmax
    from csoftmax.geometric import Cost, g_cross_entropy_with_grad, g_logsumexp, g_softmax
except ImportError as error:
    raise SystemExit(f"{error}; this example needs: pip install csoftmax matplotlib") from None

ages = np.arange(20, 81)
SIGMAS = 2.0, 6.0  # years that count as one unit of distance
logits = 4 * np.exp(-(((ages - 38) / 7) ** 2)) + 3.4 * np.exp(-(((ages - 63) / 5) ** 2))

# %%
# Probabilities: the two peaks keep their places, and the classes between their supports have none.
results = {"softmax": csoftmax.softmax(logits)}
for sigma in SIGMAS:
    p, gap = g_softmax(logits, Cost(points=ages, sigma=sigma), return_gap=True)
    results[f"g-softmax, σ = {sigma:g} years"] = p
    print(f"sigma {sigma:g}: {np.count_nonzero(p)} of {len(p)} ages, gap {gap:.0e}")

# %%
# Entropies of soft labels, half 38 and half an age beside it: that of Shannon is log 2 for any two ages, that of a cost
# grows with their distance. It is the part of the loss that the logits do not change: at logits of 0 the loss is the
# log-sum-exp less the entropy.
distances = np.arange(25)
mixed = np.eye(len(ages))[18] / 2 + np.eye(len(ages))[18 + distances] / 2
flat = np.zeros((len(distances), len(ages)))
entropies = {"softmax": np.where(distances > 0, np.log(2), 0)}
for sigma in SIGMAS:
    cost = Cost(points=ages, sigma=sigma)
    loss = g_cross_entropy_with_grad(flat, mixed, cost, reduction="none").loss
    entropies[f"g-softmax, σ = {sigma:g} years"] = g_logsumexp(flat, cost) - loss
    print(f"sigma {sigma:g}: entropy of two neighbours {entropies[f'g-softmax, σ = {sigma:g} years'][1]:.3f}")

# %%
plt.style.use("csoftmax.style")
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
for i, (name, p) in enumerate(results.items()):
    left.vlines(ages + (i - 1) * 0.25, 0, p, color=f"C{i}", lw=2.2, label=name)
left.plot(ages, logits / 25, color="0.6", lw=1, label="logits / 25")
left.set(xlabel="age", ylabel="probability", title="Probabilities of the same logits")
left.legend(fontsize=9)
for i, (name, entropy) in enumerate(entropies.items()):
    right.plot(distances, entropy, color=f"C{i}", label=name, marker=".")
right.set(xlabel="years between two ages", ylabel="entropy", title="Entropy of an even mix of two ages")
right.legend(fontsize=9)
plt.show()
