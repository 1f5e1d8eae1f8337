"""
Embeddings on a sphere
======================

A network of one hidden layer puts images of digits on a sphere in three dimensions, where only the direction of an
embedding counts. Trained with the softmax of cosines it separates the classes; trained with a margin (ArcFace) it also
draws each class together, which is what search by similarity and verification need: same or different is then a matter
of the angle. Needs: `pip install 'csoftmax[learn]'`.
"""

# %%
try:
    import matplotlib.pyplot as plt
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    import csoftmax
except ImportError as error:
    raise SystemExit(f"{error}; this example needs: pip install 'csoftmax[learn]'") from None

images, digits = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(images / 16, digits, test_size=0.4, random_state=0, stratify=digits)
HIDDEN, SIZE, EPOCHS, BATCH, RATE, MOMENTUM = 128, 3, 60, 100, 0.02, 0.9


def embed(parameters, images):
    """Return hidden units and embeddings."""
    first, second = parameters[:2]
    hidden = np.maximum(images @ first, 0)
    return hidden, hidden @ second


# %%
# Training is the same for both: the gradients of embeddings and of class vectors come from one call, the rest is the
# chain rule and momentum. Neither embeddings nor class vectors need be normalised.
def train(arc):
    """Return the parameters of a network, the vectors of the classes last."""
    rng = np.random.default_rng(0)
    shapes = (X.shape[1], HIDDEN), (HIDDEN, SIZE), (10, SIZE)
    parameters = [rng.normal(size=s) / np.sqrt(s[0]) for s in shapes]
    speeds = [np.zeros(s) for s in shapes]
    for _ in range(EPOCHS):
        order = rng.permutation(len(X))
        for begin in range(0, len(X), BATCH):
            rows = order[begin : begin + BATCH]
            hidden, embedding = embed(parameters, X[rows])
            result = csoftmax.margin_cross_entropy_with_grad(embedding, parameters[2], y[rows], arc=arc, scale=16)
            of_hidden = (result.grad_x @ parameters[1].T) * (hidden > 0)
            for p, speed, grad in zip(
                parameters, speeds, (X[rows].T @ of_hidden, hidden.T @ result.grad_x, result.grad_w), strict=True
            ):
                speed *= MOMENTUM
                speed -= RATE * grad
                p += speed
    return parameters


def unit(a):
    return a / np.linalg.norm(a, axis=1, keepdims=True)


# %%
# What counts is said by held-out images: the angle to the own class, and how well the angle between two images tells
# whether they show the same digit, as the probability that a pair of the same digit is closer than a pair of two.
def describe(parameters):
    """Return unit embeddings of the held-out images, and the figures."""
    points, centers = unit(embed(parameters, X_test)[1]), unit(parameters[2])
    cosines = points @ centers.T
    own = np.arccos(np.clip(cosines[np.arange(len(points)), y_test], -1, 1))
    a, b = np.triu_indices(len(points), 1)
    angle, same = np.einsum("ij,ij->i", points[a], points[b]), y_test[a] == y_test[b]
    order = np.argsort(angle, kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(len(order))
    area = (ranks[same].mean() - (same.sum() - 1) / 2) / (~same).sum()
    return points, centers, np.mean(cosines.argmax(1) == y_test), np.median(own), area


ARCS = {"softmax of cosines": 0.0, "margin of 0.3": 0.3}
results = {name: describe(train(arc)) for name, arc in ARCS.items()}
for name, (_, _, accuracy, angle, area) in results.items():
    print(f"{name:20} accuracy {accuracy:.3f}, median angle {angle:.3f}, same closer {area:.4f}")

# %%
# The picture: the whole sphere in Mollweide's projection, which keeps areas; crosses are the vectors of the classes.
plt.style.use("csoftmax.style")
fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), subplot_kw={"projection": "mollweide"})
colors = plt.get_cmap("tab10")
for ax, (name, (points, centers, _, angle, _)) in zip(axes, results.items(), strict=True):
    for vectors, style in ((points, {"s": 5, "c": colors(y_test)}), (centers, {"s": 40, "c": "black", "marker": "x"})):
        ax.scatter(np.arctan2(vectors[:, 1], vectors[:, 0]), np.arcsin(vectors[:, 2]), **style)
    for digit, (a, b, c) in enumerate(centers):
        ax.annotate(str(digit), (np.arctan2(b, a), np.arcsin(c)), (5, 5), textcoords="offset points", fontsize=11)
    ax.set_title(f"{name}: median angle {np.degrees(angle):.0f}°", pad=12)
    ax.set(xlabel="longitude", ylabel="latitude", xticklabels=[], yticklabels=[])
    ax.grid(alpha=0.4)
fig.suptitle("Held-out digits: a margin draws each class together", y=1.02)
plt.show()
