"""
Rare classes
============

A class that is rare in the training data is predicted too rarely.  Class weights correct this, here on the digits of
scikit-learn, of which every twentieth seven, eight and nine is kept for training.  Needs:
`pip install 'csoftmax[learn]'`.
"""

# %%
# The data: ten divisions into a complete test set, and a training set with few rows of three classes.
try:
    import matplotlib.pyplot as plt
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.metrics import recall_score
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm

    from csoftmax.class_weight import effective_number, inverse_frequency
    from csoftmax.linear_model import SoftmaxRegression
except ImportError as error:
    raise SystemExit(f"{error}; this example needs: pip install 'csoftmax[learn]'") from None

X, y = load_digits(return_X_y=True)
splits = 10


def divide(seed):
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=0.5, stratify=y, random_state=seed)
    kept = (y_train < 7) | (np.cumsum(y_train >= 7) % 20 == 0)
    return X_train[kept], y_train[kept], X_test, y_test


print("rows of each class:", np.bincount(divide(0)[1]))

# %%
# Three weights for a row: 1, the inverse frequency of its class, and the inverse effective number of samples (Cui et
# al. 2019), which grows more slowly than the number of samples because samples overlap.
schemes = {
    "no weights": lambda labels: None,
    "inverse frequency": inverse_frequency,
    "effective number": lambda labels: effective_number(labels, beta=0.99),
}
recalls = {name: [] for name in schemes}
for seed in tqdm(range(splits), desc="splits", disable=None):
    X_train, y_train, X_test, y_test = divide(seed)
    for name, find_weight in schemes.items():
        model = SoftmaxRegression(class_weight=find_weight(y_train), penalty_l2=1e-3, max_epochs=500)
        predicted = model.fit(X_train, y_train).predict(X_test)
        recalls[name].append(recall_score(y_test, predicted, average=None))
for name, found in recalls.items():
    recalls[name] = np.mean(found, axis=0)
    frequent, rare = recalls[name][:7].mean(), recalls[name][7:].mean()
    print(f"{name:18} mean recall {recalls[name].mean():.3f}, of 0 to 6 {frequent:.3f}, of 7, 8, 9 {rare:.3f}")

# %%
# The rare classes gain much more than the others lose.
plt.style.use("csoftmax.style")
fig, ax = plt.subplots(figsize=(7.2, 4.2))
ax.axvspan(6.5, 9.5, color="0.93")
ax.text(8, 1.015, "5 % of the rows kept", ha="center", fontsize=9, color="0.35")
marks = {"no weights": ("C4", "o"), "inverse frequency": ("C0", "D"), "effective number": ("C1", "^")}
for i, (name, recall) in enumerate(recalls.items()):
    color, marker = marks[name]
    ax.plot(np.arange(10) + 0.16 * (i - 1), recall, marker, color=color, label=name)
ax.set(xlabel="digit", ylabel=f"recall, mean of {splits} test sets", xticks=range(10), xlim=(-0.5, 9.5), ylim=(0, 1.06))
ax.set_title("Class weights help the classes that are rare in training")
ax.grid(visible=False, axis="x")
ax.legend(loc="lower left")
plt.show()
