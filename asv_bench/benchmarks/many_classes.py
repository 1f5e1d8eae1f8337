"""Time and peak memory of training with very many classes: both must not depend on those that no step visits."""

import numpy as np

from csoftmax.heads import RowOptimizer
from csoftmax.linear_model import ManyClassRegression

D, BATCH, SAMPLED = 16, 512, 1024


class Training:
    params = ((10**5, 10**6, 10**7),)
    param_names = ("classes",)
    timeout = 120

    def setup(self, classes):
        rng = np.random.default_rng(0)
        self.classes, self.ids = np.arange(classes), np.arange(BATCH)[:, None]
        self.labels = [rng.integers(0, classes, BATCH) for _ in range(10)]
        options = {"embedding": (BATCH, D), "sampler": "uniform", "init_bias": "zero", "n_sampled": SAMPLED}
        self.model = ManyClassRegression(warm_start=True, random_state=0, **options)
        self.model.partial_fit(self.ids, self.labels[0], classes=self.classes)

    def peakmem_training(self, classes):
        self.model.fit_batches([(self.ids, y) for y in self.labels], self.classes, epochs=1)

    def time_step(self, classes):
        self.model.partial_fit(self.ids, self.labels[1])


class Update:
    params = (("rowwise_adagrad", "adagrad", "adam", "sgd"),)
    param_names = ("kind",)

    def setup(self, kind):
        import csoftmax

        rng = np.random.default_rng(0)
        self.w = np.zeros((10**6, 64), np.float32)
        rows = np.sort(rng.choice(10**6, 2048, replace=False))
        self.gradient = csoftmax.RowGradient(rows, rng.standard_normal((2048, 64), np.float32))
        self.optimizer = RowOptimizer(kind, num_threads=1)
        self.optimizer.update("w", self.w, self.gradient)

    def time_update(self, kind):
        self.optimizer.update("w", self.w, self.gradient)


class Hashes:
    """Scores of classes from buckets: the ten best of a row, and of a batch."""

    params = ((1, 64),)
    param_names = ("rows",)

    def setup(self, rows):
        from csoftmax.heads import HashedSoftmax

        rng = np.random.default_rng(0)
        self.layer = HashedSoftmax(D, 10**6, n_buckets=512, rng=0, num_threads=1)
        self.layer.parameters["w"][:] = rng.standard_normal(self.layer.parameters["w"].shape)
        self.x = rng.standard_normal((rows, D), np.float32)

    def time_topk(self, rows):
        self.layer.topk(self.x, 10)

    def peakmem_topk(self, rows):
        self.layer.topk(self.x, 10)
