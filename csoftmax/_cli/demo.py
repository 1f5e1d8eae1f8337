"""``python -m csoftmax demo``: from real images to calibrated probabilities, with everything checked on the way.

The data are scikit-learn's digits, 1,797 images of 8 x 8 pixels, made imbalanced: of five classes one image in ten is
kept for training.  Softmax regression is trained without and with class weights, once more by hand, calibrated on
held-out images, evaluated on others (a page with plots), compared with scikit-learn, and used.
"""

import time

import numpy as np

import csoftmax

from .._spec.formats import ulp_error
from .._spec.softmax import exact_forward
from .optional import UnusableError, load
from .timing import Contender, interleave, ratio

RARE = 5  # classes from this one on are thinned out
KEPT = 10  # one in so many
PENALTY = 1e-6  # of the squared coefficients, half


def train_by_hand(x, t):
    """The same objective from `linear_cross_entropy_with_grad` and SciPy's L-BFGS; returns its minimum."""
    minimize = load("scipy.optimize", "demo").minimize
    classes, features = int(t.max()) + 1, x.shape[1]

    def objective(parameters):
        w, bias = parameters[:-classes].reshape(classes, features), parameters[-classes:]
        result = csoftmax.linear_cross_entropy_with_grad(x, w, t, bias=bias)
        gradient = np.concatenate([(result.grad_w + PENALTY * w).ravel(), result.grad_bias])
        return float(result.loss) + PENALTY / 2 * np.sum(w * w), gradient

    begin = np.zeros(classes * (features + 1))
    options = {"maxiter": 5000, "gtol": 1e-7, "ftol": 0}
    return minimize(objective, begin, jac=True, method="L-BFGS-B", options=options).fun


def run(options):
    special = load("scipy.special", "demo")
    datasets, selection = load("sklearn.datasets", "demo"), load("sklearn.model_selection", "demo")
    linear_model, log_loss = load("sklearn.linear_model", "demo"), load("sklearn.metrics", "demo").log_loss
    if not options.no_plot:
        load("matplotlib", "demo")
        if not options.output.resolve().parent.is_dir():
            raise UnusableError(
                f"cannot write {str(options.output)!r}: there is no folder {str(options.output.resolve().parent)!r}"
            )
    from ..calibration import TemperatureScaling
    from ..linear_model import SoftmaxRegression
    from ..metrics import evaluate, expected_calibration_error

    images, labels = datasets.load_digits(return_X_y=True)
    x, x_out, t, t_out = selection.train_test_split(images / 16, labels, test_size=0.5, stratify=labels, random_state=0)
    x_cal, x_out, t_cal, t_out = selection.train_test_split(x_out, t_out, test_size=0.5, stratify=t_out, random_state=0)
    kept = (t < RARE) | (np.cumsum(t >= RARE) % KEPT == 0)
    x, t = x[kept], t[kept]
    print(
        f"digits: {len(x)} images to train on ({np.sum(t >= RARE)} of them of classes {RARE} to 9), {len(x_cal)} to "
        f"calibrate with, {len(x_out)} held out"
    )

    models = {}
    for weights in (None, "balanced"):
        begin = time.perf_counter()
        models[weights] = SoftmaxRegression(
            penalty_l2=PENALTY, class_weight=weights, max_epochs=400, callbacks="progress"
        ).fit(x, t)
        recall = np.mean(models[weights].predict(x_out)[t_out >= RARE] == t_out[t_out >= RARE])
        print(
            f"{'class weights ' + str(weights or 'none'):28} {models[weights].n_iter_} iterations, "
            f"{time.perf_counter() - begin:.2f} s; recall of the rare classes {recall:.4f}"
        )
    model, plain = models["balanced"], models[None]
    by_hand = train_by_hand(x, t)
    own = log_loss(t, plain.predict_proba(x)) + PENALTY / 2 * np.sum(plain.coef_**2)
    print(
        f"by hand                      objective {by_hand:.8f} with linear_cross_entropy_with_grad and SciPy's L-BFGS, "
        f"{own:.8f} above"
    )
    print(f"held-out accuracy            {model.score(x_out, t_out):.4f} ({len(x_out)} images)")
    twin = linear_model.LogisticRegression()
    twin.coef_, twin.intercept_, twin.classes_ = model.coef_, model.intercept_, model.classes_
    probabilities = model.predict_proba(x_out)
    difference = np.abs(probabilities - twin.predict_proba(x_out)).max()
    print(f"largest difference           {difference:.2g} from scikit-learn's predict_proba with the same weights")

    scaling = TemperatureScaling().fit(model.decision_function(x_cal), t_cal)
    calibrated = scaling.transform(model.decision_function(x_out))
    loss, ece = (
        " -> ".join(f"{f(t_out, p):.4f}" for p in (probabilities, calibrated))
        for f in (log_loss, expected_calibration_error)
    )
    print(f"calibrated                   T = {scaling.temperature_:.3f}: log loss {loss}, ECE {ece}")

    best = csoftmax.topk(calibrated[:3], 3)
    for i, (values, indices) in enumerate(zip(best.values, best.indices)):
        guesses = ", ".join(f"{c} ({p:.3f})" for p, c in zip(values, indices))
        print(f"{f'image {i + 1}, a {t_out[i]}':28} {guesses}")

    single = model.decision_function(x_out).astype(np.float32)
    exact = exact_forward(single)[0]
    ours, theirs = (ulp_error(f(single, axis=-1), exact) for f in (csoftmax.softmax, special.softmax))
    print(f"error, float32, held out     {ours:.2f} ULP (SciPy {theirs:.2f} ULP)")
    seconds = interleave(
        [
            Contender("csoftmax", "softmax(x)", {"softmax": csoftmax.softmax, "x": single}),
            Contender("scipy", "softmax(x, axis=-1)", {"softmax": special.softmax, "x": single}),
        ],
        rounds=25,
    )
    microseconds = {name: np.median(each) * 1e6 for name, each in seconds.items()}
    print(
        f"speed, float32, {single.shape}    {microseconds['csoftmax']:.1f} us (SciPy {microseconds['scipy']:.1f} us): "
        f"{ratio(seconds, 'scipy', 'csoftmax'):.1f} times SciPy's"
    )
    if not options.no_plot:
        evaluate(model, x_out, t_out, calibrator=scaling).to_html(options.output)
        print(f"page                         {options.output}")
    return 0
