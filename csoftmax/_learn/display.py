"""The reliability diagram, in the form of scikit-learn's displays; public as `csoftmax.metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration_error import Strategy, fill_bins
from .probabilities import take_top_labels
from .reliability import FEW_ROWS, ReliabilityCurve, check_confidence_level, make_curve
from .smooth_error import SmoothCurve, find_smooth_curve, find_smooth_error

if TYPE_CHECKING:
    from typing import Self

BARS_HEIGHT = 0.16  # of the largest bin, as a share of the axes
REFERENCE, BARS = "diagonal", "rows"  # gids of what is drawn, for a second diagram on the same axes


def literal(text: str) -> str:
    """A text that matplotlib shows as it is: an even number of dollar signs would make a formula."""
    return text.replace("$", r"\$")


class ReliabilityDisplay:
    """Reliability diagram: accuracy over confidence in bins, with intervals and the number of rows of each bin.

    `from_estimator` and `from_predictions` compute and draw it; `plot` draws it again. The confidence is that of the
    top label, for any number of classes.

    Parameters
    ----------
    curve : ReliabilityCurve
        Result of `reliability_curve`.
    error : float, optional
        Expected calibration error, for the legend.
    name : str, optional
        Name of the model, for the legend.
    n_bins : int, default 15
        Number of bins.
    strategy : {"uniform", "quantile"}, default "uniform"
        Strategy of the bins.
    sample_weight : ndarray, optional
        Weights of the rows.
    smooth_curve : tuple of (confidence, accuracy, bandwidth), optional
        Smooth curve, which is drawn as well.
    smooth_error : float, optional
        Smooth calibration error, for the legend.
    **kwargs
        Options of `matplotlib.axes.Axes.plot` for the line, used by each `plot`.

    Attributes
    ----------
    curve, error, name, n_bins, strategy, sample_weight, smooth_curve, smooth_error, kwargs
        As given.
    ax_ : matplotlib.axes.Axes
        Axes with the diagram.
    figure_ : matplotlib.figure.Figure
        Figure of the axes.
    line_ : matplotlib.lines.Line2D
        Accuracy over confidence.
    smooth_line_ : matplotlib.lines.Line2D or None
        Smooth curve.
    intervals_ : matplotlib.collections.LineCollection
        Confidence intervals of the accuracies.
    bars_ : matplotlib.container.BarContainer
        Number of rows of each bin, along the lower edge of the axes.

    See Also
    --------
    reliability_curve : The figures of the diagram.
    sklearn.calibration.CalibrationDisplay : A display for two classes.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from csoftmax.metrics import ReliabilityDisplay
    >>> axes = Figure().add_subplot()
    >>> display = ReliabilityDisplay.from_predictions([0, 1, 1], [0.2, 0.7, 0.9], ax=axes, name="model", n_bins=5)
    >>> display.line_.get_xdata(), display.curve.counts
    (array([0.75, 0.9 ]), array([0, 0, 0, 2, 1]))
    """

    ax_: Any
    figure_: Any
    line_: Any
    smooth_line_: Any
    intervals_: Any
    bars_: Any

    def __init__(
        self,
        curve: ReliabilityCurve,
        *,
        error: float | None = None,
        name: str | None = None,
        n_bins: int = 15,
        strategy: Strategy = "uniform",
        sample_weight: NDArray[Any] | None = None,
        smooth_curve: tuple[NDArray[np.float64], NDArray[np.float64], float] | None = None,
        smooth_error: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.curve, self.error, self.name = curve, error, name
        self.n_bins, self.strategy, self.sample_weight = n_bins, strategy, sample_weight
        self.smooth_curve, self.smooth_error, self.kwargs = smooth_curve, smooth_error, kwargs

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        n_bins: int = 15,
        strategy: Strategy = "uniform",
        sample_weight: ArrayLike | None = None,
        confidence_level: float = 0.95,
        smooth: bool = False,
        name: str | None = None,
        ax: Any = None,
        ref_line: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Draw the reliability diagram of a fitted classifier.

        Parameters
        ----------
        estimator : fitted classifier
            Has `predict_proba` and `classes_`.
        X : array-like of shape (N, D)
            Data that was not used to train it.
        y : array-like of shape (N,)
            True labels, elements of `classes_`.
        n_bins, strategy, sample_weight, confidence_level
            As in `reliability_curve`.
        smooth, ax, ref_line, **kwargs
            As in `from_predictions`.
        name : str, optional
            Name in the legend; default: that of the estimator's class.

        Returns
        -------
        ReliabilityDisplay
            The display.

        Raises
        ------
        TypeError, ValueError
            The message names the argument, its value and what is allowed.
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.

        Examples
        --------
        >>> from matplotlib.figure import Figure
        >>> from sklearn.datasets import load_iris
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> from csoftmax.metrics import ReliabilityDisplay
        >>> X, y = load_iris(return_X_y=True)
        >>> model = SoftmaxRegression().fit(X[::2], y[::2])
        >>> ReliabilityDisplay.from_estimator(model, X[1::2], y[1::2], ax=Figure().add_subplot()).name
        'SoftmaxRegression'
        """
        classes, p = predict_probabilities(estimator, X)
        return cls.from_predictions(
            y,
            p,
            labels=classes,
            n_bins=n_bins,
            strategy=strategy,
            sample_weight=sample_weight,
            confidence_level=confidence_level,
            smooth=smooth,
            name=type(estimator).__name__ if name is None else name,
            ax=ax,
            ref_line=ref_line,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_prob: ArrayLike,
        *,
        n_bins: int = 15,
        strategy: Strategy = "uniform",
        labels: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        confidence_level: float = 0.95,
        smooth: bool = False,
        name: str | None = None,
        ax: Any = None,
        ref_line: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Draw the reliability diagram of predicted probabilities.

        Parameters
        ----------
        y_true, y_prob, n_bins, strategy, labels, sample_weight, confidence_level
            As in `reliability_curve`.
        smooth : bool, default False
            Whether to draw the smooth curve too, the kernel regression whose bandwidth is the smooth calibration error
            (at least 1/64, so that the line does not follow single rows).
        name : str, optional
            Name in the legend.
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; default: those of a new figure.
        ref_line : bool, default True
            Whether to draw the line of perfect calibration.
        **kwargs
            Options of `matplotlib.axes.Axes.plot` for the line.

        Returns
        -------
        ReliabilityDisplay
            The display.

        Raises
        ------
        TypeError, ValueError
            The message names the argument, its value and what is allowed.

        Examples
        --------
        >>> from matplotlib.figure import Figure
        >>> from csoftmax.metrics import ReliabilityDisplay
        >>> axes = Figure().add_subplot()
        >>> display = ReliabilityDisplay.from_predictions([0, 1, 1], [0.2, 0.7, 0.9], ax=axes, smooth=True)
        >>> round(display.error, 4), round(display.smooth_error, 4)
        (0.2, 0.2)
        """
        check_confidence_level(confidence_level)
        rows = take_top_labels(y_true, y_prob, labels, sample_weight)
        display = cls._from_top_labels(
            *rows,
            n_bins=n_bins,
            strategy=strategy,
            confidence_level=confidence_level,
            smooth=smooth,
            name=name,
            **kwargs,
        )
        display.sample_weight = None if sample_weight is None else np.asarray(sample_weight)
        return display.plot(ax=ax, ref_line=ref_line)

    @classmethod
    def _from_top_labels(
        cls,
        confidence: NDArray[np.float64],
        hits: NDArray[np.bool_],
        weight: NDArray[np.float64],
        *,
        n_bins: int = 15,
        strategy: Strategy = "uniform",
        confidence_level: float = 0.95,
        smooth: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Compute the figures of the diagram."""
        bins = fill_bins(confidence, hits, weight, n_bins, strategy)
        smooth_error: float | None = None
        smooth_curve: SmoothCurve | None = None
        if smooth:
            smooth_error = find_smooth_error(confidence, hits, weight)
            smooth_curve = find_smooth_curve(confidence, hits, weight, smooth_error)
        return cls(
            make_curve(bins, confidence_level),
            error=float(bins.gaps().sum() / bins.weight.sum()),
            name=name,
            n_bins=n_bins,
            strategy=strategy,
            smooth_curve=smooth_curve,
            smooth_error=smooth_error,
            **kwargs,
        )

    def plot(self, ax: Any = None, *, name: str | None = None, ref_line: bool = True, **kwargs: Any) -> Self:
        """Draw the diagram.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; default: those of a new figure. Several diagrams can share their axes.
        name : str, optional
            Name in the legend; default: the name that was given before.
        ref_line : bool, default True
            Whether to draw the line of perfect calibration.
        **kwargs
            Options of `matplotlib.axes.Axes.plot` for the line, beside those that were given before.

        Returns
        -------
        ReliabilityDisplay
            The display itself.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        AttributeError, TypeError
            If matplotlib refuses an option of the line.

        Examples
        --------
        >>> from matplotlib.figure import Figure
        >>> from csoftmax.metrics import ReliabilityDisplay, reliability_curve
        >>> display = ReliabilityDisplay(reliability_curve([0, 1, 1], [0.2, 0.7, 0.9]), name="model")
        >>> display.plot(ax=Figure().add_subplot()).ax_.get_legend().get_texts()[-1].get_text()
        'rows in each bin (at most 1)'
        """
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.colors import to_rgba
        from matplotlib.lines import Line2D

        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.figure(figsize=(4.8, 4.8), layout="constrained").add_subplot()
        name = self.name if name is None else name
        drawn = {artist.get_gid() for artist in (*ax.lines, *ax.patches)}
        if ref_line and REFERENCE not in drawn:
            ax.plot([0, 1], [0, 1], color="0.5", ls="--", lw=1, label="perfectly calibrated", gid=REFERENCE)
        filled = np.isfinite(self.curve.accuracy)
        x, y, lower, upper, counts = (
            a[filled] for a in (self.curve.confidence, self.curve.accuracy, *self.curve[3:5], self.curve.counts)
        )
        options: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1.2, "label": self._label(name)}
        for given in (self.kwargs, kwargs):
            options |= normalize_kwargs(given, Line2D)  # an option may have two names: lw and linewidth
        (self.line_,) = ax.plot(x, y, **options)
        colour = self.line_.get_color()
        shades = [to_rgba(colour, 0.75 if count >= FEW_ROWS else 0.2) for count in counts]
        self.intervals_ = ax.vlines(x, lower, upper, colors=shades, linewidth=1.2)
        self.smooth_line_ = None
        if self.smooth_curve is not None:
            t, accuracy, _ = self.smooth_curve
            (self.smooth_line_,) = ax.plot(t, accuracy, color=colour, linewidth=3.5, alpha=0.35)
        self._draw_bars(ax, colour, BARS in drawn)
        ax.set(xlabel="confidence (largest probability)", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        ax.set_aspect("equal")
        ax.grid(color="0.92")
        ax.set_axisbelow(True)
        ax.legend(loc="upper left", fontsize="small", framealpha=0.85)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _label(self, name: str | None) -> str:
        errors = [("ECE", self.error), ("smooth ECE", self.smooth_error)]
        text = ", ".join(f"{kind} {error:.3f}" for kind, error in errors if error is not None)
        return ": ".join(filter(None, [literal(name or ""), text])) or "accuracy"

    def _draw_bars(self, ax: Any, colour: Any, drawn: bool) -> None:
        """Draw the numbers of rows as bars along the lower edge; the first ones have a line in the legend."""
        largest = int(self.curve.counts.max())
        widths = np.diff(self.curve.edges)
        shown = widths > 0  # equal quantiles leave bins without a width
        self.bars_ = ax.bar(
            self.curve.edges[:-1][shown],
            self.curve.counts[shown] * (BARS_HEIGHT / max(largest, 1)),
            widths[shown],
            align="edge",
            color=colour,
            alpha=0.25,
            edgecolor="white",
            linewidth=0.5,
            label=None if drawn else f"rows in each bin (at most {largest:,})",
            gid=BARS,
            zorder=0.6,
        )


def predict_probabilities(model: Any, X: Any) -> tuple[NDArray[Any], Any]:
    """Classes of a fitted classifier and its probabilities; refuses models without either."""
    from sklearn.utils.validation import check_is_fitted

    kind = type(model).__name__
    if isinstance(model, type):
        raise TypeError(f"model must be a fitted classifier, got the class {model.__name__}")
    if hasattr(model, "fit"):
        check_is_fitted(model)
    missing = [name for name in ("predict_proba", "classes_") if not hasattr(model, name)]
    if missing:
        raise TypeError(f"model must be a fitted classifier with predict_proba and classes_; {kind} lacks {missing[0]}")
    classes = model.classes_
    if isinstance(classes, list):
        raise TypeError(f"model must have one column of labels; the classes_ of {kind} are a list, of several columns")
    return np.asarray(classes), model.predict_proba(X)


def plot_reliability(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    ax: Any = None,
    name: str | None = None,
    n_bins: int = 15,
    strategy: Strategy = "uniform",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    confidence_level: float = 0.95,
    smooth: bool = False,
) -> Any:
    """Draw a reliability diagram: accuracy over confidence with intervals, and the number of rows in each bin.

    It is `ReliabilityDisplay.from_predictions`, but returns the axes.

    Parameters
    ----------
    y_true, y_prob, n_bins, strategy, labels, sample_weight, confidence_level
        As in `reliability_curve`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; default: those of a new figure.
    name : str, optional
        Name of the model in the legend.
    smooth : bool, default False
        Whether to draw the smooth curve too.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from csoftmax.metrics import plot_reliability
    >>> ax = plot_reliability([0, 1, 1], [0.2, 0.7, 0.9], ax=Figure().add_subplot(), name="model")
    >>> ax.get_xlabel()
    'confidence (largest probability)'
    """
    return ReliabilityDisplay.from_predictions(
        y_true,
        y_prob,
        n_bins=n_bins,
        strategy=strategy,
        labels=labels,
        sample_weight=sample_weight,
        confidence_level=confidence_level,
        smooth=smooth,
        name=name,
        ax=ax,
    ).ax_
