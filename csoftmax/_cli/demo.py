"""``python -m csoftmax demo``: from real images to calibrated probabilities, with checks on the way.

The data are scikit-learn's digits, 1,797 images of 8 x 8 pixels, made imbalanced: of five classes one image in ten is
kept for training.  Softmax regression is trained with and without class weights and once more by hand, compared with
scikit-learn, calibrated on held-out images, used on others, evaluated on them (a page with plots), and timed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import csoftmax

from .._bench.timing import Contender, interleave, ratio
from .._runtime.optional import check_folder, load
from .._spec.formats import ulp_error
from .._spec.softmax import exact_forward

if TYPE_CHECKING:
    from ..calibration import TemperatureScaling
    from ..linear_model import SoftmaxRegression

Array = NDArray[Any]

FIRST_RARE_CLASS = 5  # this class and those after it are thinned out
KEPT_SHARE = 10  # one image in this many of those classes is kept
PENALTY_L2 = 1e-6  # factor of half the squared coefficients


class Digits(NamedTuple):
    """Images with their labels: to train on, to calibrate with, and held out."""

    x: Array
    labels: Array
    x_calibration: Array
    labels_calibration: Array
    x_out: Array
    labels_out: Array


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--output", type=Path, default=Path("csoftmax-demo.html"), help="default: csoftmax-demo.html")
    parser.add_argument("--no-plot", action="store_true", help="write no page")


def main(arguments: argparse.Namespace) -> int:
    """Train, check, calibrate, use and evaluate."""
    for package in ("scipy.special", "sklearn.datasets"):
        load(package, "demo")
    if not arguments.no_plot:
        load("matplotlib", "demo")
        check_folder(arguments.output)
    digits = load_digits()
    plain = train(digits, None)
    model = train(digits, "balanced")
    show_objectives(digits, plain)
    show("held-out accuracy", f"{model.score(digits.x_out, digits.labels_out):.4f} ({len(digits.x_out)} images)")
    show_difference_from_sklearn(digits, model)
    scaling, calibrated = calibrate(digits, model)
    show_guesses(digits, calibrated)
    logits = model.decision_function(digits.x_out).astype(np.float32)
    show_errors(logits)
    show_speed(logits)
    if not arguments.no_plot:
        from ..metrics import evaluate

        evaluate(model, digits.x_out, digits.labels_out, calibrator=scaling).to_html(arguments.output)
        show("page", str(arguments.output))
    return 0


def show(name: str, text: str) -> None:
    """Print one line of the demo."""
    print(f"{name:28} {text}")


def load_digits() -> Digits:
    """Split the images into halves, and the second half once more; thin out the rare classes of the first."""
    split = load("sklearn.model_selection", "demo").train_test_split
    images, labels = load("sklearn.datasets", "demo").load_digits(return_X_y=True)
    x, x_out, t, t_out = split(images / 16, labels, test_size=0.5, stratify=labels, random_state=0)
    x_cal, x_out, t_cal, t_out = split(x_out, t_out, test_size=0.5, stratify=t_out, random_state=0)
    rare = t >= FIRST_RARE_CLASS
    kept = ~rare | (np.cumsum(rare) % KEPT_SHARE == 0)
    x, t = x[kept], t[kept]
    print(
        f"digits: {len(x)} images to train on ({np.sum(rare[kept])} of them of classes {FIRST_RARE_CLASS} to 9), "
        f"{len(x_cal)} to calibrate with, {len(x_out)} held out"
    )
    return Digits(x, t, x_cal, t_cal, x_out, t_out)


def train(digits: Digits, weights: str | None) -> SoftmaxRegression:
    """Train a model and show its recall of the rare classes."""
    from ..linear_model import SoftmaxRegression

    begin = time.perf_counter()
    model = SoftmaxRegression(penalty_l2=PENALTY_L2, class_weight=weights, max_epochs=400, callbacks="progress")
    model.fit(digits.x, digits.labels)
    rare = digits.labels_out >= FIRST_RARE_CLASS
    recall = np.mean(model.predict(digits.x_out)[rare] == digits.labels_out[rare])
    show(
        f"class weights {weights or 'none'}",
        f"{model.n_iter_} iterations, {time.perf_counter() - begin:.2f} s; recall of the rare classes {recall:.4f}",
    )
    return model


def show_objectives(digits: Digits, model: SoftmaxRegression) -> None:
    """Compare the minimum that the model has found with that of `train_by_hand`."""
    log_loss = load("sklearn.metrics", "demo").log_loss
    objective = log_loss(digits.labels, model.predict_proba(digits.x)) + PENALTY_L2 / 2 * np.sum(model.coef_**2)
    by_hand = train_by_hand(digits.x, digits.labels)
    show(
        "by hand",
        f"objective {by_hand:.8f} with linear_cross_entropy_with_grad and SciPy's L-BFGS, {objective:.8f} above",
    )


def train_by_hand(x: Array, t: Array) -> float:
    """Minimise the same objective with `linear_cross_entropy_with_grad` and SciPy's L-BFGS; returns the minimum."""
    minimize = load("scipy.optimize", "demo").minimize
    classes, features = int(t.max()) + 1, x.shape[1]

    def objective(parameters: Array) -> tuple[float, Array]:
        w, bias = parameters[:-classes].reshape(classes, features), parameters[-classes:]
        result = csoftmax.linear_cross_entropy_with_grad(x, w, t, bias=bias)
        gradient = np.concatenate([(result.grad_w + PENALTY_L2 * w).ravel(), result.grad_bias])
        return float(result.loss) + PENALTY_L2 / 2 * np.sum(w * w), gradient

    begin = np.zeros(classes * (features + 1))
    options = {"maxiter": 5000, "gtol": 1e-7, "ftol": 0}
    return float(minimize(objective, begin, jac=True, method="L-BFGS-B", options=options).fun)


def show_difference_from_sklearn(digits: Digits, model: SoftmaxRegression) -> None:
    """Compare the probabilities with those of scikit-learn's model with the same weights."""
    twin = load("sklearn.linear_model", "demo").LogisticRegression()
    twin.coef_, twin.intercept_, twin.classes_ = model.coef_, model.intercept_, model.classes_
    difference = np.abs(model.predict_proba(digits.x_out) - twin.predict_proba(digits.x_out)).max()
    show("largest difference", f"{difference:.2g} from scikit-learn's predict_proba with the same weights")


def calibrate(digits: Digits, model: SoftmaxRegression) -> tuple[TemperatureScaling, Array]:
    """Fit a temperature; returns it and the calibrated probabilities of the held-out images."""
    from ..calibration import TemperatureScaling
    from ..metrics import expected_calibration_error

    scaling = TemperatureScaling().fit(model.decision_function(digits.x_calibration), digits.labels_calibration)
    calibrated = scaling.transform(model.decision_function(digits.x_out))
    pair = model.predict_proba(digits.x_out), calibrated
    loss, ece = (
        " -> ".join(f"{measure(digits.labels_out, p):.4f}" for p in pair)
        for measure in (load("sklearn.metrics", "demo").log_loss, expected_calibration_error)
    )
    show("calibrated", f"T = {scaling.temperature_:.3f}: log loss {loss}, ECE {ece}")
    return scaling, calibrated


def show_guesses(digits: Digits, probabilities: Array) -> None:
    """Show the three most probable classes of three images."""
    best = csoftmax.topk(probabilities[:3], 3)
    for i, (values, indices) in enumerate(zip(best.values, best.indices)):
        guesses = ", ".join(f"{c} ({p:.3f})" for p, c in zip(values, indices))
        show(f"image {i + 1}, a {digits.labels_out[i]}", guesses)


def show_errors(logits: Array) -> None:
    """Show the largest error of softmax on these logits, beside SciPy's."""
    exact = exact_forward(logits)[0]
    functions = csoftmax.softmax, load("scipy.special", "demo").softmax
    ours, scipy = (ulp_error(f(logits, axis=-1), exact) for f in functions)
    show("error, float32, held out", f"{ours:.2f} ULP (SciPy {scipy:.2f} ULP)")


def show_speed(logits: Array) -> None:
    """Show the time of softmax on these logits, beside SciPy's."""
    seconds = interleave(
        [
            Contender("csoftmax", "softmax(x)", {"softmax": csoftmax.softmax, "x": logits}),
            Contender("scipy", "softmax(x, axis=-1)", {"softmax": load("scipy.special", "demo").softmax, "x": logits}),
        ],
        rounds=25,
    )
    ours, scipy = (np.median(seconds[name]) * 1e6 for name in ("csoftmax", "scipy"))
    show(
        f"speed, float32, {logits.shape}",
        f"{ours:.1f} us (SciPy {scipy:.1f} us): {ratio(seconds, 'scipy', 'csoftmax'):.1f} times as fast",
    )
