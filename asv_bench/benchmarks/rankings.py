"""Time of rankings, subsets and streams."""

import numpy as np

import csoftmax


class Rankings:
    params = (["distinct", "graded"], ["breslow", "efron"])
    param_names = ("relevance", "ties")

    def setup(self, relevance, ties):
        csoftmax.set_num_threads(1)
        rng = np.random.default_rng(0)
        lengths = np.maximum(rng.poisson(20, 10_000), 1)
        self.segments = csoftmax.Segments(indptr=np.concatenate([[0], np.cumsum(lengths)]))
        self.x = rng.normal(size=lengths.sum()).astype(np.float32)
        self.relevance = rng.integers(0, 5, len(self.x)) if relevance == "graded" else rng.permutation(len(self.x))

    def time_loss_with_grad(self, relevance, ties):
        return csoftmax.plackett_luce_loss_with_grad(self.x, self.relevance, segments=self.segments, ties=ties)


class Subsets:
    def setup(self):
        csoftmax.set_num_threads(1)
        self.x = np.random.default_rng(0).normal(size=(32, 200))

    def time_logsumexp(self):
        return csoftmax.subset_logsumexp(self.x, 50)

    def time_marginals(self):
        return csoftmax.subset_marginals(self.x, 50)


class Streams:
    params = ([64, 4096, 65536],)
    param_names = ("piece",)

    def setup(self, piece):
        csoftmax.set_num_threads(1)
        x = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
        self.pieces = np.split(x, range(piece, len(x), piece))

    def time_logsumexp(self, piece):
        state = csoftmax.SoftmaxState()
        for x in self.pieces:
            state.update(x)
        return state.logsumexp()
