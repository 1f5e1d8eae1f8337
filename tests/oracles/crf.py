"""Linear-chain CRF in mpmath: by enumeration of all paths, and by forward-backward, in 400 digits."""

import itertools

import mpmath as mp
import numpy as np

DIGITS = 400


def score_of(path, x, transitions, start, end):
    """Return the score of a path, -inf if one of its terms is."""
    terms = [start[path[0]], end[path[-1]], *(x[t][j] for t, j in enumerate(path))]
    terms += [transitions[i][j] for i, j in itertools.pairwise(path)]
    return mp.mpf("-inf") if -np.inf in map(float, terms) else mp.fsum(mp.mpf(float(v)) for v in terms)


class Enumeration:
    """All paths of one sequence with their weights exp(score); `sets`: the labels that agree at each position."""

    def __init__(self, x, transitions, start=None, end=None, sets=None):
        self.x = np.asarray(x, np.float64)
        n, tags = self.x.shape
        self.shape = n, tags
        start = np.zeros(tags) if start is None else np.asarray(start, np.float64)
        end = np.zeros(tags) if end is None else np.asarray(end, np.float64)
        transitions = np.asarray(transitions, np.float64)
        self.paths = list(itertools.product(range(tags), repeat=n))
        with mp.workdps(DIGITS):
            self.scores = [score_of(path, self.x, transitions, start, end) for path in self.paths]
            self.weights = [mp.exp(s) for s in self.scores]
            self.z = mp.fsum(self.weights)
            self.agrees = [sets is None or all(sets[t][j] for t, j in enumerate(path)) for path in self.paths]
            self.z_in = mp.fsum(w for w, good in zip(self.weights, self.agrees) if good)
            self.z_out = mp.fsum(w for w, good in zip(self.weights, self.agrees) if not good)

    def log_partition(self):
        with mp.workdps(DIGITS):
            return mp.log(self.z)

    def loss(self):
        with mp.workdps(DIGITS):
            return mp.log1p(self.z_out / self.z_in)

    def marginals(self, inside=False):
        """Return the probabilities of tags and of pairs (a matrix for each position but the first), as mpf."""
        n, tags = self.shape
        with mp.workdps(DIGITS):
            mu = np.full((n, tags), mp.mpf(0), object)
            xi = np.full((n, tags, tags), mp.mpf(0), object)
            for path, weight, good in zip(self.paths, self.weights, self.agrees):
                if inside and not good:
                    continue
                for t, j in enumerate(path):
                    mu[t, j] += weight
                    if t:
                        xi[t, path[t - 1], j] += weight
            z = self.z_in if inside else self.z
            return mu / z, xi / z

    def gradients(self):
        """Return the gradients of the loss: emissions, transitions, and their sums of absolute terms."""
        with mp.workdps(DIGITS):
            mu, xi = self.marginals()
            mu_in, xi_in = self.marginals(inside=True)
            each = xi - xi_in
            return mu - mu_in, each.sum(0), np.abs(each).sum(0)

    def best(self, count):
        """Return the best possible paths, ties in the order of the tags read from the end."""
        possible = [(-s, path[::-1]) for s, path in zip(self.scores, self.paths) if s > mp.mpf("-inf")]
        return [path[::-1] for _, path in sorted(possible)[:count]]


def weigh(values):
    """exp of an array, as mpf."""
    return np.vectorize(lambda v: mp.exp(mp.mpf(float(v))), otypes=[object])(np.asarray(values, np.float64))


class Forward:
    """Forward-backward in 400 digits, for sequences that are too long to enumerate; hard labels."""

    def __init__(self, x, transitions, start, end, labels):
        with mp.workdps(DIGITS):
            e, a, self.n = weigh(x), weigh(transitions), len(x)
            first, last = weigh(start), weigh(end)
            alpha = [first * e[0]]
            for t in range(1, self.n):
                alpha.append((alpha[-1] @ a) * e[t])
            beta = [last]
            for t in reversed(range(1, self.n)):
                beta.insert(0, a @ (e[t] * beta[0]))
            self.z = (alpha[-1] * last).sum()
            self.mu = np.array([p * q for p, q in zip(alpha, beta)]) / self.z
            self.xi = [alpha[t - 1][:, None] * a * (e[t] * beta[t])[None, :] / self.z for t in range(1, self.n)]
            gold = first[labels[0]] * last[labels[-1]]
            for t, y in enumerate(labels):
                gold *= e[t][y]
                gold *= a[labels[t - 1], y] if t else 1
            self.loss = mp.log(self.z / gold) if gold else mp.inf
            self.log_z = mp.log(self.z)
            self.labels = labels

    def gradients(self):
        """Return the gradients of emissions and transitions, and the sum of the absolute terms of the latter."""
        with mp.workdps(DIGITS):
            grad, pairs, terms = self.mu.copy(), 0, 0
            for t, y in enumerate(self.labels):
                grad[t, y] -= 1
            for t, xi in enumerate(self.xi, 1):
                each = xi.copy()
                each[self.labels[t - 1], self.labels[t]] -= 1
                pairs, terms = pairs + each, terms + np.abs(each)
            return grad, pairs, terms


def relative(got, exact, scale=None):
    """Return the largest error of an array against mpf, relative to the exact value or to a scale."""
    worst = 0.0
    with mp.workdps(DIGITS):
        scale = exact if scale is None else scale
        for g, value, size in zip(np.ravel(got), np.ravel(exact), np.ravel(scale)):
            error = abs(mp.mpf(float(g)) - value)
            worst = max(worst, float(error / abs(size)) if size else float("inf") * bool(error))
    return worst
