"""What happens after an epoch: the record, validation and patience, callbacks, sklearn.callback, the progress bar."""

import numpy as np

try:  # scikit-learn 1.9
    from sklearn.callback import CallbackSupportMixin as SupportsCallbacks
    from sklearn.callback import with_callbacks
except ImportError:

    class SupportsCallbacks:  # type: ignore[no-redef]
        """Stands in for the mixin of scikit-learn 1.9."""

    def with_callbacks(method):  # type: ignore[no-redef]
        """Stands in for the decorator of scikit-learn 1.9."""
        return method


class Monitor:
    """A context around a training of at most `epochs`; held_out: an Objective to stop early by."""

    def __init__(self, estimator, epochs, held_out=None):
        self.estimator, self.epochs, self.held_out = estimator, epochs, held_out
        given = estimator.callbacks
        given = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
        for one in given:
            if one != "progress" and not callable(one):
                raise TypeError(f"callbacks must be callables or 'progress', got {one!r}")
        self.bar = None
        self.shows = "progress" in given
        self.callbacks = [one for one in given if one != "progress"]
        self.current = self.best = None
        self.best_loss, self.since, self.stopped = np.inf, 0, False
        self.context = self.task = None
        estimator.history_ = {}

    def __enter__(self):
        if self.shows:
            from .._cli.optional import progress

            self.bar = progress(self.epochs, "training").__enter__()
        if hasattr(self.estimator, "_skl_callbacks"):
            self.context = self.estimator._init_callback_context(max_subtasks=self.epochs)
            self.context.call_on_fit_task_begin(estimator=self.estimator)
            self._begin()
        return self

    def __exit__(self, *exc_info):
        if self.bar is not None:
            self.bar.__exit__(*exc_info)
        if self.context is not None and exc_info[0] is None:
            self.context.call_on_fit_task_end(estimator=self.estimator, reconstruction_attributes=self._attributes)

    def _begin(self):
        self.task = self.context.subcontext(task_name="epoch")
        self.task.call_on_fit_task_begin(estimator=self.estimator)

    def _attributes(self):
        estimator = self.estimator
        names = ("coef_", "intercept_", "classes_", "n_features_in_", "feature_names_in_")
        return {name: getattr(estimator, name) for name in names if hasattr(estimator, name)}

    def parameters(self, coef, intercept, dtype):
        """What the epoch has led to; kept in the estimator where somebody looks."""
        self.current = coef, intercept
        if self.callbacks or self.context is not None:
            self.estimator._keep(coef, intercept, dtype)

    def epoch_ends(self, record):
        """Whether to stop."""
        estimator = self.estimator
        stop = False
        if self.held_out is not None:
            coef, intercept = (None if p is None else p.astype(self.held_out.x.dtype) for p in self.current)
            at = self.held_out.evaluate(coef, intercept, gradient=False)
            record = {**record, "validation_loss": at.loss, "validation_accuracy": at.accuracy}
            self.since += 1
            if at.loss < self.best_loss:
                self.best_loss, self.since = at.loss, 0
                self.best = tuple(None if p is None else np.array(p) for p in self.current)
            stop = self.since >= estimator.patience
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
            stop = (
                bool(self.task.call_on_fit_task_end(estimator=estimator, reconstruction_attributes=self._attributes))
                or stop
            )
            if not stop and done < self.epochs:
                self._begin()
        self.stopped = stop
        return stop
