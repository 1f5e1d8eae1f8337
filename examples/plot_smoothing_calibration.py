"""
Label smoothing and calibration
===============================

A model with too little regularisation is overconfident: its probabilities exceed its accuracy.  Label smoothing lowers
confidence in training, and too much of it makes the model underconfident.  Calibration corrects the probabilities
afterwards, with a temperature, a matrix or a monotone function, on rows that were not used for training.  Needs:
`pip install 'csoftmax[learn]'`.
"""

# %%
# An overconfident model of the digits of scikit-learn: 359 rows, almost no penalty.  Five divisions into rows to train
# on, to calibrate with and to test on, because one division says little.
try:
    import matplotlib.pyplot as plt
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.metrics import log_loss
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm

    from csoftmax import calibration, metrics
    from csoftmax.linear_model import SoftmaxRegression
except ImportError as error:
    raise SystemExit(f"{error}; this example needs: pip install 'csoftmax[learn]'") from None

X, y = load_digits(return_X_y=True)
smoothings = (0.0, 0.01, 0.05, 0.1)
kinds = {
    "temperature": calibration.TemperatureScaling,
    "vector": calibration.VectorScaling,
    "matrix": calibration.MatrixScaling,
    "Dirichlet": calibration.DirichletCalibration,
    "isotonic": calibration.IsotonicCalibration,
}


def measure(labels, p):
    """Accuracy, mean confidence, log loss and calibration error."""
    accuracy = np.mean(p.argmax(axis=1) == labels)
    return accuracy, p.max(axis=1).mean(), log_loss(labels, p), metrics.expected_calibration_error(labels, p)


# %%
# The calibrators get the logits of the model that was trained without label smoothing.
smoothed = {smoothing: [] for smoothing in smoothings}
calibrated = {name: [] for name in kinds}
predictions = []
for seed in tqdm(range(5), desc="divisions", disable=None):
    X_train, X_rest, y_train, y_rest = train_test_split(X / 16, y, train_size=0.2, stratify=y, random_state=seed)
    X_cal, X_test, y_cal, y_test = train_test_split(X_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=seed)
    for smoothing in smoothings:
        model = SoftmaxRegression(penalty_l2=1e-6, label_smoothing=smoothing, max_epochs=2000, tol=1e-6)
        smoothed[smoothing].append(measure(y_test, model.fit(X_train, y_train).predict_proba(X_test)))
        if smoothing == 0:
            plain = model
    z_cal, z_test = plain.decision_function(X_cal), plain.decision_function(X_test)
    for name, kind in kinds.items():
        p = kind().fit(z_cal, y_cal).transform(z_test)
        calibrated[name].append(measure(y_test, p))
        if name == "temperature":
            predictions.append((y_test, plain.predict_proba(X_test), p))

rows = {f"smoothing {smoothing}": np.mean(found, axis=0) for smoothing, found in smoothed.items()}
rows |= {name: np.mean(found, axis=0) for name, found in calibrated.items()}
for name, (accuracy, confidence, loss, error) in rows.items():
    print(f"{name:15} accuracy {accuracy:.3f}, confidence {confidence:.3f}, log loss {loss:.3f}, ECE {error:.3f}")

# %%
# Smoothing of 0.01 brings the confidence down to the accuracy, but the accuracy falls too; 0.05 and more make the model
# underconfident.  Calibration keeps the accuracy; temperature, vector and isotonic calibration take a quarter off the
# log loss, matrix and Dirichlet calibration more than a third.
plt.style.use("csoftmax.style")
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(13.2, 4.4))
figures = np.array([rows[f"smoothing {smoothing}"] for smoothing in smoothings])
left.plot(smoothings, figures[:, 1], "o-", color="C1")
left.plot(smoothings, figures[:, 0], "o-", color="C0")
left.annotate("mean confidence", (0.05, figures[2, 1]), (-8, -6), textcoords="offset points", color="C1", ha="right")
left.annotate("accuracy", (0.1, figures[3, 0]), (0, 7), textcoords="offset points", color="C0", ha="right")
left.set(xlabel="label smoothing", ylabel="on the test rows", title="Smoothing lowers confidence")

names = [*reversed(kinds), *(f"smoothing {smoothing}" for smoothing in reversed(smoothings))]
losses = [rows[name][2] for name in names]
middle.barh(range(len(names)), losses, 0.6, color=["C1"] * len(kinds) + ["C0"] * len(smoothings))
middle.bar_label(middle.containers[0], fmt="%.3f", padding=3, fontsize=9)
labels = [name if "smoothing" in name else f"{name} calibration" for name in names]
middle.set(
    yticks=range(len(names)), yticklabels=labels, xlim=(0, 1.18 * max(losses)), xlabel="log loss, lower is better"
)
middle.set_title("Only calibration lowers the log loss")
middle.grid(visible=False, axis="y")

labels, before, after = map(np.concatenate, zip(*predictions))
metrics.plot_reliability(labels, before, ax=right, name="as trained", n_bins=10)
metrics.plot_reliability(labels, after, ax=right, name="with temperature", n_bins=10)
right.set_title("Reliability of all test rows")
plt.show()
