"""
Tags of a series
================

A casino sometimes exchanges its die for a loaded one, and keeps it for a while. From rolls whose dice are known, a
linear-chain CRF learns what each face says and how often dice change; then it says, for every roll of a new series, how
probable the loaded die is. Needs: `pip install csoftmax matplotlib`.
"""

# %%
try:
    import matplotlib.pyplot as plt
    import numpy as np

    import csoftmax
except ImportError as error:
    raise SystemExit(f"{error}; this example needs: pip install csoftmax matplotlib") from None

FACES, DICE = 6, 2
CHANGE = np.array([[0.95, 0.05], [0.1, 0.9]])  # fair, loaded
FACE = np.array([np.full(6, 1 / 6), [0.1, 0.1, 0.1, 0.1, 0.1, 0.5]])
rng = np.random.default_rng(3)


def play(count, length):
    """Return dice and faces of series of rolls."""
    dice = np.zeros((count, length), int)
    for t in range(1, length):
        dice[:, t] = rng.random(count) > CHANGE[dice[:, t - 1], 0]
    faces = (rng.random((count, length, 1)) > np.cumsum(FACE, axis=1)[dice]).sum(axis=2)
    return dice, faces


# %%
# The score of a die at a roll is a weight of the face; a transition has a weight too. Gradients of the mean loss come
# from one call; that of a face's weights is the sum over the rolls that show it.
dice, faces = play(200, 100)
weights, transitions, start = np.zeros((FACES, DICE)), np.zeros((DICE, DICE)), np.zeros(DICE)
for step in range(301):
    result = csoftmax.crf_loss_with_grad(weights[faces], dice, transitions, start=start, reduction="token_mean")
    if step % 100 == 0:
        print(f"step {step:3}  loss per roll {result.loss:.4f}")
    grad = np.zeros_like(weights)
    np.add.at(grad, faces, result.grad_emissions)
    weights -= 4 * grad
    transitions -= 4 * result.grad_transitions
    start -= 4 * result.grad_start
gap = weights[:, 1] - weights[:, 0]
print("log odds of the loaded die by face:", gap.round(2))

# %%
# A new series: the most probable path, the most probable die of each roll, and the probabilities themselves. A path can
# be right about the whole and still say nothing about its doubts.
truth, rolls = play(1, 200)
emissions = weights[rolls]
options = {"start": start}
path = csoftmax.crf_decode(emissions, transitions, log_prob=True, **options)
tags = csoftmax.crf_decode(emissions, transitions, method="posterior", **options).tags
marginals = csoftmax.crf_marginals(emissions, transitions, **options).tags
for name, found in (("best path", path.tags), ("most probable tags", tags)):
    print(f"{name:20} accuracy {np.mean(found == truth):.3f}")
print(f"the best path has probability {np.exp(path.log_prob[0]):.1e}")

# %%
# The picture: how sure the model is of the loaded die, roll by roll, above the dice that were used.
plt.style.use("csoftmax.style")
fig, ax = plt.subplots(figsize=(9, 3.2))
position = np.arange(rolls.shape[1])
ax.fill_between(position, 0, 1, where=truth[0] == 1, step="mid", color="0.9", linewidth=0, label="loaded die used")
ax.step(position, marginals[0, :, 1], where="mid", label="probability of the loaded die")
ax.step(position, path.tags[0] * 0.04 - 0.1, where="mid", color="0.4", linewidth=1, label="best path")
sixes = rolls[0] == 5
ax.plot(position[sixes], np.full(sixes.sum(), 1.06), "|", color="0.4", markersize=5, label="a six")
ax.set(xlabel="roll", ylabel="probability", ylim=(-0.15, 1.12), xlim=(0, rolls.shape[1] - 1))
ax.set_title("Marginals say where the best path is in doubt")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
