"""
One change at a time
====================

The effect of the usual ingredients on minibatch training: bias, batch norm before softmax, weight decay, gradient
clipping, initialisation.  Each line differs from the first in one setting.  Needs: `pip install 'csoftmax[learn]'`.
"""

# %%
try:
    import matplotlib.pyplot as plt
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm

    from csoftmax.linear_model import SoftmaxRegression
except ImportError as error:
    raise SystemExit(f"{error}; this example needs: pip install 'csoftmax[learn]'") from None

X, y = load_digits(return_X_y=True)
settings = {
    "base": {},
    "no bias": {"fit_intercept": False},
    "batch norm": {"batch_norm": True},
    "weight decay 0.1": {"penalty_l2": 0.1},
    "clipped to norm 0.1": {"clip_norm": 0.1},
    "zeros at the start": {"init": "zeros"},
}
base = {"solver": "adamw", "max_epochs": 30, "batch_size": 64, "penalty_l2": 1e-4}

# %%
# Batch norm is folded into the weights at the end of each epoch, so all of these are plain linear models.  Three
# divisions of the data, each with an order of minibatches of its own, show how much is chance.
losses, accuracies = {name: [] for name in settings}, {name: [] for name in settings}
for seed, name in tqdm([(seed, name) for seed in range(3) for name in settings], desc="models", disable=None):
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=0.5, stratify=y, random_state=seed)
    model = SoftmaxRegression(random_state=seed, **{**base, **settings[name]}).fit(X_train, y_train)
    losses[name].append(model.history_["loss"])
    accuracies[name].append(model.score(X_test, y_test))
for name, found in accuracies.items():
    print(f"{name:20} loss {np.mean(losses[name], axis=0)[-1]:.4f}, test accuracy {np.mean(found):.4f}")

# %%
# The settings change the loss by a factor of two, and the accuracy little more than the choice of the rows does.
plt.style.use("csoftmax.style")
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
colors = dict(zip(settings, ("C0", "C1", "C2", "C3", "C4", "0.55")))
for i, name in enumerate(settings):
    style = {"color": colors[name], "linestyle": "--" if name == "zeros at the start" else "-"}
    left.plot(range(1, 31), np.mean(losses[name], axis=0), label=name, **style)
    right.plot(accuracies[name], [i] * 3, "o", color=colors[name], alpha=0.5, markeredgewidth=0)
    right.plot(np.mean(accuracies[name]), i, "|", color=colors[name], markersize=16, markeredgewidth=2.5)
left.set(xlabel="epoch", ylabel="training loss, mean of 3", yscale="log", title="The losses differ")
left.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
left.minorticks_off()
left.legend()
right.set(
    xlabel="test accuracy: 3 divisions, and their mean",
    yticks=range(6),
    yticklabels=settings,
    title="… more than the accuracies do",
)
right.locator_params(axis="x", nbins=5)
right.invert_yaxis()
plt.show()
