"""
How far is the nearest other digit?
===================================

For a linear classifier the smallest change of an image that changes its class can be computed, so that robustness is a
figure, not the failure of an attack. Projected gradient descent (PGD), the usual attack, leaves an accuracy that looks
a little better than the worst case, and says nothing about radii in between. Training on a certified bound moves the
whole curve. Needs: `pip install 'csoftmax[learn]'`.
"""

# %%
try:
    import matplotlib.pyplot as plt
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    from csoftmax.adversarial import certify, perturb
    from csoftmax.linear_model import SoftmaxRegression
except ImportError as error:
    raise SystemExit(f"{error}; this example needs: pip install 'csoftmax[learn]'") from None

images, digits = load_digits(return_X_y=True)
X, y = images / 16, digits
RADII, SHOWN, EPS = np.linspace(0, 0.12, 25), 500, 0.05

# %%
# Two models: scikit-learn's logistic regression as it is, and softmax regression trained on an upper bound of the loss
# over all changes of at most 0.05 a pixel.
models = {
    "as it is": LogisticRegression(max_iter=2000).fit(X, y),
    "trained on the bound": SoftmaxRegression(adversarial="certified", adversarial_eps=EPS).fit(X, y),
}


# %%
# One call gives the radius of every image, and with it the accuracy that is left at every radius. PGD has to be run
# for each.
def describe(model):
    """Return exact and attacked accuracies for the radii, and the certificate."""
    given = {"bias": model.intercept_, "bounds": (0, 1)}
    certificate = certify(X[:SHOWN], model.coef_, target=y[:SHOWN], **given)
    exact = np.array([np.mean(certificate.radius > eps) for eps in RADII])
    attacked = []
    for eps in RADII:
        moved = perturb(X[:SHOWN], model.coef_, y[:SHOWN], eps=eps, **given)
        attacked.append(np.mean(model.predict(moved) == y[:SHOWN]))
    return exact, np.array(attacked), certificate


results = {name: describe(model) for name, model in models.items()}
at = np.abs(RADII - EPS).argmin()
for name, (exact, attacked, _) in results.items():
    print(f"{name:22} accuracy {exact[0]:.3f}, at {EPS} exact {exact[at]:.3f}, PGD {attacked[at]:.3f}")

# %%
# The picture: accuracy against the largest change of a pixel; between the curves lie images that PGD has missed. Beside
# it, an image that is certain for the eye, and the nearest one that the model as it is takes for another digit.
plt.style.use("csoftmax.style")
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), width_ratios=[3, 1, 1])
for name, color in zip(results, ("C0", "C1"), strict=True):
    exact, attacked, _ = results[name]
    axes[0].plot(RADII, exact, color=color, label=f"{name}: exact worst case")
    axes[0].plot(RADII, attacked, color=color, linestyle=":", label=f"{name}: what PGD leaves")
axes[0].axvline(EPS, color="0.6", linewidth=1, zorder=0)
axes[0].set(xlabel="largest change of a pixel (black is 1)", ylabel="accuracy", xlim=(0, RADII[-1]), ylim=(0, 1.02))
axes[0].set_title("Accuracy under the worst change")
axes[0].legend(loc="lower left", fontsize=9)

model, certificate = models["as it is"], results["as it is"][2]
row = int(np.argsort(np.abs(certificate.radius - np.median(certificate.radius)))[0])
moved = perturb(X[row], model.coef_, y[row], bias=model.intercept_, eps=1.0, method="exact", bounds=(0, 1))
for ax, image, title in zip(
    axes[1:],
    (X[row], moved),
    (f"a {y[row]}", f"a {certificate.rival[row]}, {certificate.radius[row]:.3f} away"),
    strict=True,
):
    ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
    ax.set_title(title)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
plt.show()
