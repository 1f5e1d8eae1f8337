"""The reliability display: scikit-learn's conventions, figures of the curve, names that could be formulas."""

import inspect
import pickle

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from csoftmax import metrics
from csoftmax.linear_model import SoftmaxRegression

NAMES = np.array(["setosa", "versicolor", "virginica"])


@pytest.fixture
def axes():
    return Figure().add_subplot()


def test_plot_reliability(tmp_path, axes):
    assert metrics.plot_reliability([0, 1, 1], [0.2, 0.7, 0.9], ax=axes, name="model") is axes
    metrics.plot_reliability([0, 1, 1], [0.1, 0.6, 0.9], ax=axes, name="other")
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert legend.count("perfectly calibrated") == 1
    assert sum(t.startswith("rows in each bin") for t in legend) == 1
    assert any(t.startswith("model: ECE ") for t in legend)
    axes.figure.savefig(tmp_path / "plot.png")


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_display_shows_the_curve(axes, strategy):
    rng = np.random.default_rng(0)
    p, y, w = rng.dirichlet(np.ones(3), 200), rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    given = {"n_bins": 7, "strategy": strategy, "sample_weight": w}
    display = metrics.ReliabilityDisplay.from_predictions(y, p, ax=axes, name="m", confidence_level=0.8, **given)
    curve = metrics.reliability_curve(y, p, confidence_level=0.8, **given)
    filled = curve.counts > 0
    assert np.array_equal(display.line_.get_xdata(), curve.confidence[filled])
    assert np.array_equal(display.line_.get_ydata(), curve.accuracy[filled])
    ends = np.array([segment[:, 1] for segment in display.intervals_.get_segments()])
    assert np.array_equal(ends, np.column_stack([curve.lower, curve.upper])[filled])
    heights = np.array([bar.get_height() for bar in display.bars_])
    assert np.allclose(heights / heights.max(), curve.counts / curve.counts.max())
    assert display.error == metrics.expected_calibration_error(y, p, **given)
    assert (display.ax_, display.figure_, display.name) == (axes, axes.figure, "m")
    assert (display.n_bins, display.strategy) == (7, strategy)
    assert np.array_equal(display.sample_weight, w)
    assert display.smooth_line_ is None


def test_smooth_curve(axes):
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(3), 200), rng.integers(0, 3, 200)
    display = metrics.ReliabilityDisplay.from_predictions(y, p, ax=axes, smooth=True)
    assert display.smooth_error == metrics.smooth_calibration_error(y, p)
    assert display.smooth_curve.bandwidth == display.smooth_error
    assert np.array_equal(display.smooth_line_.get_ydata(), display.smooth_curve.accuracy)
    assert f"smooth ECE {display.smooth_error:.3f}" in display.line_.get_label()


def test_conventions_of_sklearn(axes):
    """Every option of scikit-learn's display for two classes, but pos_label, has its name here."""
    ours, theirs = metrics.ReliabilityDisplay, CalibrationDisplay
    for method in ("from_estimator", "from_predictions"):
        wanted = inspect.signature(getattr(theirs, method)).parameters
        assert set(wanted) - {"pos_label"} <= set(inspect.signature(getattr(ours, method)).parameters)
    X, y = load_iris(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X[::2], NAMES[y[::2]])
    display = ours.from_estimator(model, X[1::2], NAMES[y[1::2]], ax=axes, color="red", lw=3)
    assert display.name == "Pipeline"
    assert (display.line_.get_color(), display.line_.get_linewidth()) == ("red", 3)
    assert display.kwargs == {"color": "red", "lw": 3}
    assert display.error == metrics.expected_calibration_error(y[1::2], model.predict_proba(X[1::2]))
    again = display.plot(ax=Figure().add_subplot(), name="again", linewidth=1, ref_line=False)
    assert again is display
    assert display.line_.get_linewidth() == 1
    assert not any("perfectly" in t.get_text() for t in display.ax_.get_legend().get_texts())
    curve = display.curve
    assert pickle.loads(pickle.dumps(ours(curve, name="x"))).name == "x"


def test_default_axes():
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    display = metrics.ReliabilityDisplay.from_predictions([0, 1, 1], [0.2, 0.7, 0.9])
    assert display.figure_.number in plt.get_fignums()
    plt.close(display.figure_)


@pytest.mark.parametrize("name", ["$", "$$", "$10_$20", "$0-$10", "a_b^c", "\\$x", "<b>"])
def test_names_are_not_formulas(axes, name):
    display = metrics.ReliabilityDisplay.from_predictions([0, 1, 1], [0.2, 0.7, 0.9], ax=axes, name=name)
    text = next(t for t in axes.get_legend().get_texts() if "ECE" in t.get_text())
    shown, is_formula = text._preprocess_math(text.get_text())
    assert not is_formula
    assert shown.startswith(f"{name}: ECE")
    display.figure_.canvas.draw()


def test_what_is_no_classifier_is_refused(axes):
    X, y = load_iris(return_X_y=True)
    draw = metrics.ReliabilityDisplay.from_estimator
    with pytest.raises(NotFittedError):
        draw(SoftmaxRegression(), X, y, ax=axes)
    with pytest.raises(TypeError, match="LinearSVC lacks predict_proba"):
        draw(LinearSVC().fit(X, y), X, y, ax=axes)
    with pytest.raises(TypeError, match="got the class SoftmaxRegression"):
        draw(SoftmaxRegression, X, y, ax=axes)
    model = LogisticRegression(max_iter=1000).fit(X, y)
    with pytest.raises(ValueError, match=r"y_true\[0\] is 7, which is not in labels"):
        draw(model, X, y + 7, ax=axes)
    with pytest.raises(ValueError, match="confidence_level must be in"):
        draw(model, X, y, ax=axes, confidence_level=1)
