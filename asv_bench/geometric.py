"""Time of g-softmax beside the same active set method in NumPy, row by row.

    python asv_bench/geometric.py

1,000 rows of 100 classes: random points in six dimensions, squared distances, logits of scale 2.
"""

import time

import numpy as np

import csoftmax
from csoftmax.geometric import Cost, g_softmax

ROUNDS = 7


def solve_row(x, similarities, tolerance=1e-13):
    """g-softmax of one row, in NumPy; a class that is a combination of those of the support is refused."""
    u, support, w = np.exp((x - x.max()) / 2), [], np.zeros(len(x))
    refused: list[int] = []
    while True:
        slack = u - similarities @ w
        slack[support + refused] = -np.inf
        entering = int(slack.argmax())
        if slack[entering] <= tolerance:
            return u * w / (u @ w)
        if support:
            factor = np.linalg.cholesky(similarities[np.ix_(support, support)])
            v = np.linalg.solve(factor, similarities[support, entering])
            if 1 - v @ v < 1e-12:
                refused.append(entering)
                continue
        support.append(entering)
        while True:
            z = np.linalg.solve(similarities[np.ix_(support, support)], u[support])
            before = w[support]
            w[:] = 0
            if (z > 0).all():
                w[support] = z
                break
            blocked = z <= 0
            before += np.min(before[blocked] / (before[blocked] - z[blocked])) * (z - before)
            w[support] = np.maximum(before, 0)
            support = [j for j in support if w[j] > 0]


def shortest(call):
    """The shortest time of some rounds, in seconds."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def main():
    rng = np.random.default_rng(0)
    cost = Cost(points=rng.normal(size=(100, 6)))
    similarities = np.exp(cost.matrix / -2)
    x = 2 * rng.normal(size=(1000, 100))
    begin = time.perf_counter()
    rows = np.array([solve_row(row, similarities) for row in x])
    in_numpy = time.perf_counter() - begin
    assert np.abs(rows - g_softmax(x, cost)).max() < 1e-10
    for threads in dict.fromkeys((1, csoftmax.get_num_threads())):
        seconds = shortest(lambda threads=threads: g_softmax(x, cost, num_threads=threads))
        print(
            f"{threads} threads: {1e3 * seconds:.1f} ms, NumPy {1e3 * in_numpy:.0f} ms, ratio {in_numpy / seconds:.0f}"
        )


if __name__ == "__main__":
    main()
