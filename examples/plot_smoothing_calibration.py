"""
Label smoothing and calibration
===============================

A model with too little regularisation is overconfident: its probabilities exceed its accuracy.  Label smoothing
counteracts this in training; calibration corrects it afterwards, with a temperature, a matrix or a monotone function.
"""

# %%
# An overconfident model of the digits of scikit-learn: few rows, almost no penalty.
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from csoftmax import calibration, metrics
from csoftmax.linear_model import SoftmaxRegression

X, y = load_digits(return_X_y=True)
X_train, X_rest, y_train, y_rest = train_test_split(X / 16, y, train_size=0.2, stratify=y, random_state=0)
X_cal, X_test, y_cal, y_test = train_test_split(X_rest, y_rest, test_size=0.5, stratify=y_rest, random_state=0)

# %%
# Label smoothing alone.
for smoothing in (0.0, 0.01, 0.05, 0.1):
    model = SoftmaxRegression(penalty_l2=1e-6, label_smoothing=smoothing, max_epochs=1000, tol=1e-6).fit(
        X_train, y_train
    )
    p = model.predict_proba(X_test)
    print(
        f"smoothing {smoothing:4}: accuracy {model.score(X_test, y_test):.3f}, log loss {log_loss(y_test, p):.3f}, "
        f"ECE {metrics.expected_calibration_error(y_test, p):.3f}"
    )

# %%
# Calibration of the model without label smoothing, on rows that it has not seen.
model = SoftmaxRegression(penalty_l2=1e-6, max_epochs=1000, tol=1e-6).fit(X_train, y_train)
z_cal, z_test = model.decision_function(X_cal), model.decision_function(X_test)
kinds = [
    calibration.TemperatureScaling(),
    calibration.VectorScaling(),
    calibration.MatrixScaling(),
    calibration.DirichletCalibration(),
    calibration.IsotonicCalibration(),
]
fig, axes = plt.subplots(1, 2, figsize=(9.6, 4.8), layout="constrained")
metrics.plot_reliability(y_test, model.predict_proba(X_test), ax=axes[0], name="as trained", n_bins=10)
for kind in kinds:
    p = kind.fit(z_cal, y_cal).transform(z_test)
    print(
        f"{type(kind).__name__:22} log loss {log_loss(y_test, p):.3f}, "
        f"ECE {metrics.expected_calibration_error(y_test, p):.3f}"
    )
    if kind is kinds[0]:
        metrics.plot_reliability(y_test, p, ax=axes[1], name=f"T = {kind.temperature_:.2f}", n_bins=10)
plt.show()
