"""Work at the end of an epoch: history, validation and patience, callbacks (also scikit-learn's), progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._runtime.optional import progress
from .messages import show
from .parameters import list_callbacks

if TYPE_CHECKING:
    from .objective import Objective
    from .parts.objective import PartsObjective

    Method = TypeVar("Method", bound=Callable[..., Any])

    class SupportsCallbacks:
        """The mixin of scikit-learn 1.9."""

    def with_callbacks(method: Method) -> Method:
        """Mark a method as one that calls the callbacks."""
        return method

    WRAPPER_FRAMES: int

else:
    try:  # scikit-learn 1.9
        from sklearn.callback import CallbackSupportMixin as SupportsCallbacks
        from sklearn.callback import with_callbacks

        WRAPPER_FRAMES = 1  # between the caller and a method that `with_callbacks` decorates
    except ImportError:
        WRAPPER_FRAMES = 0

        class SupportsCallbacks:
            """Stand-in for the mixin of scikit-learn 1.9."""

        def with_callbacks(method):
            """Do nothing; stand-in for the decorator of scikit-learn 1.9."""
            return method


def keep_parameters(estimator: Any, coef: NDArray[Any], intercept: NDArray[Any] | None, dtype: Any) -> None:
    """Set coef_ and intercept_, in the dtype of X."""
    estimator.coef_ = np.ascontiguousarray(coef, dtype)
    if intercept is None:
        estimator.intercept_ = np.zeros(len(coef), dtype)
    else:
        estimator.intercept_ = np.ascontiguousarray(intercept, dtype)


class Monitor:
    """Context around a training of up to `epochs` epochs.

    held_out: the objective of the rows for early stopping, which `_validate` evaluates.  data: X, class indices and
    sample weights of the training, which callbacks of scikit-learn may ask for.
    """

    def __init__(
        self,
        estimator: Any,
        epochs: int,
        held_out: Objective | PartsObjective | None = None,
        data: Any = (None, None, None),
    ):
        """Read the callbacks of the estimator and clear its history."""
        self.estimator, self.epochs, self.held_out, self.data = estimator, epochs, held_out, data
        given = list_callbacks(estimator)
        self.bar: Any = None
        self.shows_bar = "progress" in given
        self.callbacks = [callback for callback in given if callback != "progress"]
        self.current: Any = None  # coef and intercept; the arrays of the trainer, which change with its next step
        self.best: Any = None  # coef and intercept of the epoch with the lowest validation loss
        self.best_loss, self.epochs_since_best, self.stopped = np.inf, 0, False
        self.tasks: list[Any] = []  # of scikit-learn's callbacks, those that have begun: the fit, and one of its epochs
        estimator.history_ = {}

    def __enter__(self) -> Monitor:
        if hasattr(self.estimator, "_skl_callbacks"):
            # one more than the epochs: lbfgs may converge when a further one has begun
            context = self.estimator._init_callback_context(max_subtasks=self.epochs + 1)
            try:
                self._begin(context)
                self._begin(context.subcontext(task_name="epoch"))
            except BaseException:
                self._end_all(fitted=False)
                raise
        if self.shows_bar:
            self.bar = progress(self.epochs, "training").__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if self.bar is not None:
            self.bar.__exit__(*exc_info)
        self._end_all(fitted=exc_info[0] is None)

    def _begin(self, task: Any) -> None:
        """Tell scikit-learn's callbacks that a task begins."""
        self.tasks.append(task)
        task.call_on_fit_task_begin(estimator=self.estimator, **self._arguments())

    def _end(self, *, fitted: bool) -> bool:
        """Tell scikit-learn's callbacks that the task that began last ends; return whether one of them stops the fit.

        fitted: whether the parameters of the estimator are those that the task has led to.
        """
        attributes = {"reconstruction_attributes": self._attributes} if fitted else {}
        task = self.tasks.pop()
        return bool(task.call_on_fit_task_end(estimator=self.estimator, **attributes, **self._arguments()))

    def _end_all(self, *, fitted: bool) -> None:
        """End all tasks that have begun, so that callbacks see as many ends as begins.

        An epoch that is still open has no result: no iteration followed.  If the fit has failed, its exception is the
        one to see, not those of callbacks.
        """
        while self.tasks:
            with contextlib.nullcontext() if fitted else contextlib.suppress(Exception):
                self._end(fitted=fitted and len(self.tasks) == 1)

    def _arguments(self) -> dict[str, Any]:
        """The training data, for hooks of scikit-learn's callbacks; labels are made if a hook asks for them."""
        x, indices, sample_weight = self.data
        return {
            "X": x,
            "y": None if indices is None else lambda: self.estimator.classes_[indices],
            "metadata": None if sample_weight is None else {"sample_weight": sample_weight},
        }

    def _attributes(self) -> dict[str, Any]:
        """The attributes that turn a copy of the estimator into a fitted one."""
        estimator = self.estimator
        names = ("coef_", "intercept_", "classes_", "n_features_in_", "feature_names_in_", "n_iter_")
        history = {name: list(values) for name, values in estimator.history_.items()}
        return {name: getattr(estimator, name) for name in names if hasattr(estimator, name)} | {"history_": history}

    def is_watched(self) -> bool:
        """Whether something reads the parameters at the end of an epoch."""
        return bool(self.callbacks or self.tasks or self.held_out)

    def take_parameters(self, coef: NDArray[Any], intercept: NDArray[Any] | None, dtype: Any) -> None:
        """Record the parameters at the end of an epoch; set copies in the estimator if callbacks will read them there.

        Copies, because the trainer goes on to change its own arrays: a callback may keep what it sees.
        """
        self.current = coef, intercept
        if self.callbacks or self.tasks:
            keep_parameters(self.estimator, np.array(coef), None if intercept is None else np.array(intercept), dtype)

    def _validate(self) -> dict[str, float]:
        """Loss and accuracy on the held-out rows; keeps the parameters of the best epoch."""
        assert self.held_out is not None
        coef, intercept = (None if p is None else p.astype(self.held_out.dtype) for p in self.current)
        at = self.held_out.evaluate(coef, intercept, gradient=False)
        self.epochs_since_best += 1
        if at.loss < self.best_loss:
            self.best_loss, self.epochs_since_best = at.loss, 0
            self.best = tuple(None if p is None else np.array(p) for p in self.current)
        return {"validation_loss": at.loss, "validation_accuracy": at.accuracy}

    def epoch_ends(self, record: dict[str, float], *, is_last: bool = False) -> bool:
        """Append the record to the history and call the callbacks; return whether to stop.

        is_last: whether training stops in any case.
        """
        estimator = self.estimator
        stop = is_last
        if self.held_out is not None:
            record = {**record, **self._validate()}
            stop = stop or self.epochs_since_best >= estimator.patience
        for key, value in record.items():
            estimator.history_.setdefault(key, []).append(value)
        done = len(estimator.history_["loss"])
        estimator.n_iter_ = done
        if self.bar is not None:
            shown = (f"{name} {record[name]:.4f}" for name in ("loss", "accuracy") if name in record)
            self.bar.set_postfix_str(", ".join(shown))
            self.bar.update()
        for callback in self.callbacks:
            stop = as_decision(callback(estimator, {"epoch": done, **record})) or stop
        if self.tasks:
            stop = self._end(fitted=True) or stop
            if not stop and done < self.epochs:
                self._begin(self.tasks[0].subcontext(task_name="epoch"))
        self.stopped = stop
        return stop


def as_decision(result: Any) -> bool:
    """Whether what a callback has returned is true."""
    try:
        return bool(result)
    except ValueError as error:
        raise TypeError(
            "callbacks must return a true result to stop the training, else a false one such as None, got "
            f"{show(result)}"
        ) from error
