"""
One change at a time
====================

The effect of the usual ingredients on minibatch training: bias, batch norm before softmax, weight decay, gradient
clipping, initialisation.  Each line differs from the first in one setting.
"""

# %%
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from csoftmax.linear_model import SoftmaxRegression

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=0.5, stratify=y, random_state=0)
settings = {
    "defaults": {},
    "no bias": {"fit_intercept": False},
    "batch norm": {"batch_norm": True},
    "weight decay 0.1": {"penalty_l2": 0.1},
    "clipped to norm 0.1": {"clip_norm": 0.1},
    "zeros at the start": {"init": "zeros"},
}

# %%
# Batch norm is folded into the weights at the end of each epoch, so all of these are plain linear models.
fig, ax = plt.subplots(layout="constrained")
for name, setting in settings.items():
    model = SoftmaxRegression(solver="adamw", max_epochs=30, batch_size=64, random_state=0, **setting)
    model.fit(X_train, y_train)
    ax.plot(range(1, 31), model.history_["loss"], label=f"{name}: test accuracy {model.score(X_test, y_test):.3f}")
ax.set(xlabel="epoch", ylabel="training loss", yscale="log")
ax.legend()
plt.show()
