"""``python -m csoftmax demo``: from real images to calibrated probabilities, with checks on the way.

The data are scikit-learn's digits, 1,797 images of 8 x 8 pixels: half of them to train on, a quarter to calibrate with
and a quarter to test on.  Of five classes one training image in ten is kept.  Softmax regression is trained with and
without class weights and once more by hand, beside scikit-learn's on the same problem, calibrated, tested (a page with
plots), and its softmax is checked and timed.  Penalty and tolerance are given, so that the figures do not depend on
defaults.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import csoftmax

from .._bench.timing import Contender, interleave, ratio
from .._runtime.optional import load, progress
from .._spec.formats import ulp_error
from .._spec.softmax import exact_forward
from .arguments import parse_path
from .outputs import check_output

if TYPE_CHECKING:
    from ..calibration import TemperatureScaling
    from ..linear_model import SoftmaxRegression

Array = NDArray[Any]

IMAGE_SHAPE = 8, 8
FIRST_RARE_CLASS = 5  # this class and those after it are thinned out
KEPT_SHARE = 10  # one image in this many of those classes is kept
PENALTY_L2 = 1e-5  # factor of half the squared coefficients
TOLERANCE = 1e-5  # largest element of the gradient at the end, here and in scikit-learn
MAX_ITERATIONS = 2000
FIT_ROUNDS = 3  # fits of each library, in turns
DIVISIONS = 10  # of the images into those to train on, to calibrate with and to test on
IMAGINED_TESTS = 200  # sets of labels drawn from the probabilities
MEANING = {
    "log loss": "mean of -log(probability of the true class): lower is better; look at it first",
    "ECE": "mean gap between confidence and accuracy, in 15 bins",
}


class Digits(NamedTuple):
    """Images with their labels: to train on, to calibrate with, and to test on."""

    x: Array
    labels: Array
    x_calibration: Array
    labels_calibration: Array
    x_test: Array
    labels_test: Array


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    page = "csoftmax-demo.html"
    parser.add_argument("--output", type=parse_path, default=Path(page), help=f"default: {page}")
    parser.add_argument("--no-plot", action="store_true", help="write no page")


def main(arguments: argparse.Namespace) -> int:
    """Train, check, calibrate, use and evaluate."""
    for package in ("scipy.special", "sklearn.datasets"):
        load(package, "demo")
    if not arguments.no_plot:
        load("matplotlib", "demo")
        check_output(arguments.output, {})
    digits = load_digits()
    show_sizes(digits)
    plain = train(digits, None)
    model = train(digits, "balanced")
    show_objectives(digits, plain)
    compare_with_sklearn(digits)
    scaling, calibrated = show_calibration(digits, model)
    repeat_calibration()
    show_guesses(digits, calibrated)
    logits = model.decision_function(digits.x_test).astype(np.float32)
    show_errors(logits)
    show_speed(logits)
    if not arguments.no_plot:
        write_page(digits, model, scaling, arguments.output)
        show("page", str(arguments.output))
    return 0


def write_page(digits: Digits, model: SoftmaxRegression, scaling: TemperatureScaling, path: Path) -> None:
    """Write the page of figures and plots on the test images."""
    from ..metrics import evaluate

    report = evaluate(model, digits.x_test, digits.labels_test, calibrator=scaling)
    report.title = f"Handwritten digits: {len(digits.x_test)} test images"
    report.data = "a quarter of scikit-learn's digits (sklearn.datasets.load_digits)"
    report.target = "digit"
    report.command = "python -m csoftmax demo"
    report.version = csoftmax.__version__
    report.date = datetime.datetime.now(datetime.UTC).date().isoformat()
    report.add_images(digits.x_test, IMAGE_SHAPE)
    report.to_html(path)


def show(name: str, text: str) -> None:
    """Print one line of the demo, at once: the next one may take a second."""
    print(f"{name:28} {text}", flush=True)


def load_digits(seed: int = 0) -> Digits:
    """Split the images into halves, and the second half once more; thin out the rare classes of the first."""
    split = load("sklearn.model_selection", "demo").train_test_split
    images, labels = load("sklearn.datasets", "demo").load_digits(return_X_y=True)
    x, x_rest, t, t_rest = split(images / 16, labels, test_size=0.5, stratify=labels, random_state=seed)
    x_cal, x_test, t_cal, t_test = split(x_rest, t_rest, test_size=0.5, stratify=t_rest, random_state=seed)
    rare = t >= FIRST_RARE_CLASS
    kept = ~rare | (np.cumsum(rare) % KEPT_SHARE == 0)
    return Digits(x[kept], t[kept], x_cal, t_cal, x_test, t_test)


def show_sizes(digits: Digits) -> None:
    """Show how many images each part has."""
    show(
        "images",
        f"{len(digits.x)} to train on, {np.sum(digits.labels >= FIRST_RARE_CLASS)} of them of the rare classes "
        f"{FIRST_RARE_CLASS} to 9; {len(digits.x_calibration)} to calibrate with; {len(digits.x_test)} to test on",
    )


def make_model(weights: str | None, **options: Any) -> SoftmaxRegression:
    """Return softmax regression with the settings of this demo."""
    from ..linear_model import SoftmaxRegression

    return SoftmaxRegression(
        penalty_l2=PENALTY_L2, class_weight=weights, tol=TOLERANCE, max_epochs=MAX_ITERATIONS, **options
    )


def train(digits: Digits, weights: str | None) -> SoftmaxRegression:
    """Train a model and show its recall of the rare classes."""
    begin = time.perf_counter()
    model = make_model(weights, callbacks="progress").fit(digits.x, digits.labels)
    rare = digits.labels_test >= FIRST_RARE_CLASS
    recall = np.mean(model.predict(digits.x_test)[rare] == digits.labels_test[rare])
    iterations = f"{model.n_iter_} iterations" + (" (the limit)" if model.n_iter_ >= MAX_ITERATIONS else "")
    show(
        f"class weights {weights or 'none'}",
        f"{iterations}, {time.perf_counter() - begin:.2f} s; recall of the rare classes {recall:.4f}",
    )
    return model


def find_objective(digits: Digits, model: Any, weights: str | None) -> float:
    """Return what training minimises: the weighted mean of the log loss, and the penalty."""
    log_loss = load("sklearn.metrics", "demo").log_loss
    each = load("sklearn.utils.class_weight", "demo").compute_sample_weight(weights, digits.labels)
    mean = log_loss(digits.labels, model.predict_proba(digits.x), sample_weight=each)
    return float(mean + PENALTY_L2 / 2 * np.sum(model.coef_**2))


def show_objectives(digits: Digits, model: SoftmaxRegression) -> None:
    """Compare the minimum that the model without class weights has found with that of `train_by_hand`."""
    by_hand = train_by_hand(digits.x, digits.labels)
    show(
        "the same by hand",
        f"objective {find_objective(digits, model, None):.8f} (no class weights), and "
        f"{by_hand:.8f} with linear_cross_entropy_with_grad and SciPy's L-BFGS",
    )


def compare_with_sklearn(digits: Digits) -> None:
    """Fit scikit-learn's model to the same problem, with the same tolerance and as many threads; show both."""
    linear_model = load("sklearn.linear_model", "demo")
    log_loss = load("sklearn.metrics", "demo").log_loss
    # balanced class weights add up to the number of rows, which scikit-learn does not divide by
    strength = 1 / (PENALTY_L2 * len(digits.x))
    theirs = linear_model.LogisticRegression(
        C=strength, class_weight="balanced", tol=TOLERANCE, max_iter=MAX_ITERATIONS
    )
    models: dict[str, Any] = {"csoftmax, balanced": make_model("balanced"), "scikit-learn, the same": theirs}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    with progress(FIT_ROUNDS * len(models), "demo: fits") as bar:
        for _ in range(FIT_ROUNDS):
            for name, model in models.items():
                begin = time.perf_counter()
                model.fit(digits.x, digits.labels)
                seconds[name].append(time.perf_counter() - begin)
                bar.update()
    for name, model in models.items():
        loss = log_loss(digits.labels_test, model.predict_proba(digits.x_test))
        show(
            name,
            f"objective {find_objective(digits, model, 'balanced'):.8f} in {np.median(seconds[name]):.2f} s; "
            f"test accuracy {model.score(digits.x_test, digits.labels_test):.4f}, log loss {loss:.4f}",
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


def find_measures() -> dict[str, Callable[[Array, Array], float]]:
    """Return the functions of labels and probabilities that judge a calibration."""
    from ..metrics import expected_calibration_error

    return {"log loss": load("sklearn.metrics", "demo").log_loss, "ECE": expected_calibration_error}


def calibrate(digits: Digits, model: SoftmaxRegression) -> tuple[TemperatureScaling, Array, Array]:
    """Fit a temperature on images of its own; returns it, and the probabilities of the test images before and after."""
    from ..calibration import TemperatureScaling

    scaling = TemperatureScaling().fit(model.decision_function(digits.x_calibration), digits.labels_calibration)
    return scaling, model.predict_proba(digits.x_test), scaling.transform(model.decision_function(digits.x_test))


def show_calibration(digits: Digits, model: SoftmaxRegression) -> tuple[TemperatureScaling, Array]:
    """Show the effect of a temperature on the test images; returns it and the calibrated probabilities."""
    scaling, *pair = calibrate(digits, model)
    show("calibrated", f"T = {scaling.temperature_:.3f}, fitted on the {len(digits.x_calibration)} images kept for it")
    for name, measure in find_measures().items():
        figures = " -> ".join(f"{measure(digits.labels_test, p):.4f}" for p in pair)
        show(f"  {name}", f"{figures} ({MEANING[name]})")
    low, high = imagine_errors(pair[1])
    show("", f"(a perfectly calibrated model shows an ECE of {low:.3f} to {high:.3f} on as few images)")
    return scaling, pair[1]


def repeat_calibration() -> None:
    """Show the mean effect of a temperature over other divisions of the images: one division says little."""
    measures = find_measures()
    found = []
    with progress(DIVISIONS, "demo: divisions") as bar:
        for seed in range(DIVISIONS):
            digits = load_digits(seed)
            _, *pair = calibrate(digits, make_model("balanced").fit(digits.x, digits.labels))
            found.append([[measure(digits.labels_test, p) for p in pair] for measure in measures.values()])
            bar.update()
    means = np.mean(found, axis=0)
    text = ", ".join(f"{name} {before:.4f} -> {after:.4f}" for name, (before, after) in zip(measures, means))
    show(f"  mean of {DIVISIONS} divisions", text)


def imagine_errors(probabilities: Array) -> tuple[float, float]:
    """Return the range of the ECE, from 5 % to 95 %, where the labels are drawn from the probabilities themselves."""
    from ..metrics import expected_calibration_error

    with np.errstate(divide="ignore"):  # the logarithm of 0 is the logit of an impossible class
        logits = np.log(probabilities)
    drawn = csoftmax.sample(logits, size=IMAGINED_TESTS, rng=0)
    errors = [expected_calibration_error(labels, probabilities) for labels in drawn.T]
    low, high = np.quantile(errors, (0.05, 0.95))
    return float(low), float(high)


def show_guesses(digits: Digits, probabilities: Array) -> None:
    """Show the three most probable classes of three images."""
    best = csoftmax.topk(probabilities[:3], 3)
    for i, (values, indices) in enumerate(zip(best.values, best.indices)):
        guesses = ", ".join(f"{c} ({p:.3f})" for p, c in zip(values, indices))
        show(f"image {i + 1}, a {digits.labels_test[i]}", guesses)


def show_errors(logits: Array) -> None:
    """Show the largest error of softmax on these logits, beside SciPy's."""
    exact = exact_forward(logits)[0]
    functions = csoftmax.softmax, load("scipy.special", "demo").softmax
    ours, scipy = (ulp_error(f(logits, axis=-1), exact) for f in functions)
    show("error of softmax, float32", f"{ours:.2f} ULP, units in the last place (SciPy {scipy:.2f} ULP)")


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
    times = ratio(seconds, "scipy", "csoftmax")
    rows, classes = logits.shape
    text = f"{ours:.1f} µs for {rows} rows of {classes}; SciPy {scipy:.1f} µs, {times:.1f} times as long"
    show("speed of softmax, float32", text)
