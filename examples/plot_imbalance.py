"""
Rare classes
============

A class that is rare in the training data is predicted too rarely.  Class weights correct this, here on the digits of
scikit-learn, of which every twentieth seven, eight and nine is kept.
"""

# %%
# The data: a complete test set, and a training set with few rows of three classes.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import recall_score
from sklearn.model_selection import train_test_split

from csoftmax.class_weight import effective_number, inverse_frequency
from csoftmax.linear_model import SoftmaxRegression

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=0.5, stratify=y, random_state=0)
kept = (y_train < 7) | (np.cumsum(y_train >= 7) % 20 == 0)
X_train, y_train = X_train[kept], y_train[kept]
print("rows of each class:", np.bincount(y_train))

# %%
# Three weights for a row: 1, the inverse frequency of its class, and the inverse effective number of samples (Cui et
# al. 2019), which grows more slowly than the number of samples because samples overlap.
schemes = {
    "none": None,
    "inverse frequency": inverse_frequency(y_train),
    "effective number": effective_number(y_train, beta=0.99),
}
recalls = {}
for name, weight in schemes.items():
    model = SoftmaxRegression(class_weight=weight, penalty_l2=1e-3, max_epochs=500).fit(X_train, y_train)
    recalls[name] = recall_score(y_test, model.predict(X_test), average=None)
    print(f"{name:18} mean recall {recalls[name].mean():.3f}, of 7, 8, 9 {recalls[name][7:].mean():.3f}")

# %%
# The rare classes gain much more than the others lose.
fig, ax = plt.subplots(layout="constrained")
for i, (name, recall) in enumerate(recalls.items()):
    ax.bar(np.arange(10) + (i - 1) * 0.27, recall, 0.25, label=name)
ax.set(xlabel="digit", ylabel="recall on the test set", xticks=range(10), ylim=(0, 1.15))
ax.legend(ncols=3, loc="upper left")
plt.show()
