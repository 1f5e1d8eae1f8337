"""``python -m csoftmax demo``: train a classifier on real images with this package's functions, and check it.

The data are scikit-learn's digits, 1,797 images of 8 x 8 pixels.  The model is softmax regression: logits
z = x W' + b, loss = mean cross-entropy + L2/2 |W|^2, minimised by SciPy's L-BFGS-B.  Losses, gradients and
probabilities are this package's.
"""

import time

import numpy as np

import csoftmax

from . import oracle
from .optional import check_picture, load, new_figure, progress, save
from .timing import Contender, interleave, ratio

L2 = 2e-4
BINS = 10


def run(options):
    optimize, special = load("scipy.optimize", "demo"), load("scipy.special", "demo")
    datasets, selection = load("sklearn.datasets", "demo"), load("sklearn.model_selection", "demo")
    linear_model, threadpools = load("sklearn.linear_model", "demo"), load("threadpoolctl", "demo")
    if not options.no_plot:
        load("matplotlib", "demo")
        check_picture(options.output)

    images, labels = datasets.load_digits(return_X_y=True)
    x, x_out, t, t_out = selection.train_test_split(
        images / 16, labels, test_size=0.25, stratify=labels, random_state=0
    )
    print(
        f"digits: {len(x)} images to train on, {len(x_out)} held out, {x.shape[1]} pixels, {labels.max() + 1} classes"
    )
    begin = time.perf_counter()
    # For products as small as these more BLAS threads do not help; on a busy machine they cost a hundredfold.
    with threadpools.threadpool_limits(1, user_api="blas"):
        coef, intercept, history = train(optimize, x, t, x_out, t_out)
    print(f"trained in {len(history) - 1} iterations, {time.perf_counter() - begin:.2f} s: loss {history[-1][0]:.4f}")

    logits = x_out @ coef.T + intercept
    probabilities = csoftmax.softmax(logits)
    correct = probabilities.argmax(axis=1) == t_out
    print(f"held-out accuracy            {correct.mean():.4f} ({correct.sum()} of {len(correct)})")
    twin = linear_model.LogisticRegression()
    twin.coef_, twin.intercept_, twin.classes_ = coef, intercept, np.arange(len(coef))
    difference = np.abs(probabilities - twin.predict_proba(x_out)).max()
    print(f"largest difference           {difference:.2g} from scikit-learn's predict_proba with the same weights")

    single = logits.astype(np.float32)
    exact = oracle.forward(single)[0]
    ours, theirs = (oracle.ulp_error(f(single, axis=-1), exact) for f in (csoftmax.softmax, special.softmax))
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
        draw(history, probabilities, correct, options.output)
        print(f"picture                      {options.output}")
    return 0


def train(optimize, x, t, x_out, t_out):
    """Weights, intercepts, and the losses (training with L2, held out) before and after each iteration."""
    classes = t.max() + 1
    history = []

    def unpack(weights):
        weights = weights.reshape(classes, -1)
        return weights[:, :-1], weights[:, -1]

    def loss(weights):
        coef, intercept = unpack(weights)
        result = csoftmax.linear_cross_entropy_with_grad(x, coef, t, bias=intercept)
        gradient = np.column_stack([result.grad_w + L2 * coef, result.grad_bias])
        return result.loss + L2 / 2 * np.sum(coef**2), gradient.ravel()

    def record(weights, value):
        coef, intercept = unpack(weights)
        history.append((value, csoftmax.linear_cross_entropy(x_out, coef, t_out, bias=intercept)))

    start = np.zeros(classes * (x.shape[1] + 1))
    record(start, loss(start)[0])
    with progress(None, "training") as bar:
        # SciPy goes by the name of the argument
        def after_iteration(intermediate_result):
            record(intermediate_result.x, intermediate_result.fun)
            bar.set_postfix_str(f"loss {history[-1][0]:.4f}, held out {history[-1][1]:.4f}")
            bar.update()

        result = optimize.minimize(
            loss, start, jac=True, method="L-BFGS-B", callback=after_iteration, options={"maxiter": 500}
        )
    return *unpack(result.x), history


def draw(history, probabilities, correct, path):
    """Loss curve and reliability diagram."""
    figure = new_figure("demo", 10, 4.6)
    left, right = figure.subplots(1, 2)
    trained, held_out = zip(*history)
    left.plot(trained, label="training, with L2")
    left.plot(held_out, label="held out")
    left.set(xlabel="iteration of L-BFGS", ylabel="mean cross-entropy", yscale="log", title="Loss", box_aspect=1)
    left.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    left.minorticks_off()
    left.legend()
    left.grid(color="0.9")

    confidence = probabilities.max(axis=1)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    filled = np.flatnonzero(counts)
    mean_confidence = np.array([confidence[bins == i].mean() for i in filled])
    accuracy = np.array([correct[bins == i].mean() for i in filled])
    ece = np.sum(counts[filled] / len(bins) * np.abs(accuracy - mean_confidence))
    right.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="perfectly calibrated")
    right.bar((filled + 0.5) / BINS, accuracy, 0.96 / BINS, color="tab:blue", alpha=0.35, label="accuracy in the bin")
    right.plot(mean_confidence, accuracy, "o", color="tab:blue", label="at its mean confidence")
    for place, height, count in zip(filled, accuracy, counts[filled]):
        right.annotate(
            str(count), ((place + 0.5) / BINS, height), (0, 5), textcoords="offset points", ha="center", fontsize=7
        )
    right.set(
        xlabel="confidence (largest probability)",
        ylabel="accuracy",
        xlim=(0, 1),
        ylim=(0, 1.08),
        title=f"Reliability, {len(bins)} held-out images (ECE {ece:.3f})",
        aspect="equal",
    )
    right.legend(loc="upper left", fontsize="small")
    right.grid(color="0.9")
    for axes in (left, right):
        axes.set_axisbelow(True)
    save(figure, path)
