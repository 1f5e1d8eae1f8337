"""Time of g-softmax and its loss, with wide and with narrow supports."""

import numpy as np

import csoftmax
from csoftmax.geometric import Cost, g_cross_entropy_with_grad, g_softmax, g_softmax_vjp

SIGMAS = (0.5, 1.0, 4.0)  # unit of distance: supports of about 70, 40 and 5 of 100 classes


class Geometric:
    params = (list(SIGMAS),)
    param_names = ("sigma",)

    def setup(self, sigma):
        csoftmax.set_num_threads(1)
        rng = np.random.default_rng(0)
        self.cost = Cost(points=rng.normal(size=(100, 6)), sigma=sigma)
        self.x = 2 * rng.normal(size=(200, 100))
        self.labels = rng.integers(0, 100, 200)
        self.y = g_softmax(self.x, self.cost)

    def time_g_softmax(self, sigma):
        return g_softmax(self.x, self.cost)

    def time_gradient(self, sigma):
        return g_softmax_vjp(self.x, self.y, self.cost)

    def time_loss(self, sigma):
        return g_cross_entropy_with_grad(self.x, self.labels, self.cost)
