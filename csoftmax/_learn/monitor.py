"""Work at the end of an epoch: history, validation and patience, callbacks (also scikit-learn's), progress bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._runtime.optional import progress

if TYPE_CHECKING:
    from .objective import Objective

    Method = TypeVar("Method", bound=Callable[..., Any])

    class SupportsCallbacks:
        """The mixin of scikit-learn 1.9."""

    def with_callbacks(method: Method) -> Method:
        """Mark a method as one that calls the callbacks."""
        return method

else:
    try:  # scikit-learn 1.9
        from sklearn.callback import CallbackSupportMixin as SupportsCallbacks
        from sklearn.callback import with_callbacks
    except ImportError:

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
    """Context around a training of up to `epochs` epochs; held_out: the objective of the rows for early stopping."""

    def __init__(self, estimator: Any, epochs: int, held_out: Objective | None = None):
        """Read the callbacks of the estimator and clear its history."""
        self.estimator, self.epochs, self.held_out = estimator, epochs, held_out
        given = estimator.callbacks
        given = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
        for callback in given:
            if callback != "progress" and not callable(callback):
                raise TypeError(f"callbacks must be callables or 'progress', got {callback!r}")
        self.bar: Any = None
        self.shows_bar = "progress" in given
        self.callbacks = [callback for callback in given if callback != "progress"]
        self.current: Any = None  # coef and intercept
        self.best: Any = None  # coef and intercept of the epoch with the lowest validation loss
        self.best_loss, self.epochs_since_best, self.stopped = np.inf, 0, False
        self.context: Any = None  # of scikit-learn's callbacks: the fit, and one of its epochs
        self.task: Any = None
        estimator.history_ = {}

    def __enter__(self) -> Monitor:
        if self.shows_bar:
            self.bar = progress(self.epochs, "training").__enter__()
        if hasattr(self.estimator, "_skl_callbacks"):
            self.context = self.estimator._init_callback_context(max_subtasks=self.epochs)
            self.context.call_on_fit_task_begin(estimator=self.estimator)
            self._begin_epoch()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if self.bar is not None:
            self.bar.__exit__(*exc_info)
        if self.context is not None and exc_info[0] is None:
            self.context.call_on_fit_task_end(estimator=self.estimator, reconstruction_attributes=self._attributes)

    def _begin_epoch(self) -> None:
        self.task = self.context.subcontext(task_name="epoch")
        self.task.call_on_fit_task_begin(estimator=self.estimator)

    def _attributes(self) -> dict[str, Any]:
        """The attributes that turn a copy of the estimator into a fitted one."""
        estimator = self.estimator
        names = ("coef_", "intercept_", "classes_", "n_features_in_", "feature_names_in_")
        return {name: getattr(estimator, name) for name in names if hasattr(estimator, name)}

    def take_parameters(self, coef: NDArray[Any], intercept: NDArray[Any] | None, dtype: Any) -> None:
        """Record the parameters at the end of an epoch; set them in the estimator if callbacks will read them there."""
        self.current = coef, intercept
        if self.callbacks or self.context is not None:
            keep_parameters(self.estimator, coef, intercept, dtype)

    def _validate(self) -> dict[str, float]:
        """Loss and accuracy on the held-out rows; keeps the parameters of the best epoch."""
        assert self.held_out is not None
        coef, intercept = (None if p is None else p.astype(self.held_out.x.dtype) for p in self.current)
        at = self.held_out.evaluate(coef, intercept, gradient=False)
        self.epochs_since_best += 1
        if at.loss < self.best_loss:
            self.best_loss, self.epochs_since_best = at.loss, 0
            self.best = tuple(None if p is None else np.array(p) for p in self.current)
        return {"validation_loss": at.loss, "validation_accuracy": at.accuracy}

    def epoch_ends(self, record: dict[str, float]) -> bool:
        """Append the record to the history and call the callbacks; return whether to stop."""
        estimator = self.estimator
        stop = False
        if self.held_out is not None:
            record = {**record, **self._validate()}
            stop = self.epochs_since_best >= estimator.patience
        for key, value in record.items():
            estimator.history_.setdefault(key, []).append(value)
        done = len(estimator.history_["loss"])
        estimator.n_iter_ = done
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {record['loss']:.4f}, accuracy {record['accuracy']:.4f}")
            self.bar.update()
        for callback in self.callbacks:
            stop = bool(callback(estimator, {"epoch": done, **record})) or stop
        if self.context is not None:
            ends = self.task.call_on_fit_task_end(estimator=estimator, reconstruction_attributes=self._attributes)
            stop = bool(ends) or stop
            if not stop and done < self.epochs:
                self._begin_epoch()
        self.stopped = stop
        return stop
