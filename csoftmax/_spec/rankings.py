"""Plackett-Luce loss: records, and an oracle for ties by Breslow in long double; a row is a list.

tests/ops/test_rankings.py judges accuracy in many digits, with all kinds of ties and small losses.
"""

from __future__ import annotations

import numpy as np

from .formats import EXACT, Exact, wide
from .record import ROWS, Argument, BadCall, Operation, Result, Variant, constant
from .samples import logits


def make_lists(shape, dtype, seed, sigma, soft):
    """Return scores, and relevances with ties and a few elements that are in no list."""
    rng = np.random.default_rng(seed + 1)
    relevance = rng.integers(0, 2 + shape[-1] // 2, shape).astype(np.float64)
    relevance[rng.random(shape) < 0.1] = np.nan
    return logits(shape, dtype, seed, sigma), relevance


def exact_list(x, relevance, observed):
    """Return the loss, the gradient and whether there is a factor, of one list."""
    grad, loss, factors = np.zeros(len(x), EXACT), EXACT(0), 0
    e = np.exp(x - x.max(initial=-np.inf, where=~np.isnan(relevance)))
    for i in np.flatnonzero(observed & ~np.isnan(relevance)):
        risk = relevance <= relevance[i]
        total = e[risk].sum()
        loss += np.log(total) - np.log(e[i])
        grad[risk] += e[risk] / total
        grad[i] -= 1
        factors += 1
    return loss, grad, factors > 0


def exact_loss_and_grad(x, relevance, observed=None, ties="breslow", reduction="mean", sample_weight=None):
    """Return loss and gradient; only ties="breslow"."""
    rows, ranks = wide(x).reshape(-1, np.shape(x)[-1]), np.asarray(relevance).reshape(-1, np.shape(x)[-1])
    taken = np.ones(rows.shape, bool) if observed is None else np.asarray(observed).reshape(rows.shape)
    weight = np.ones(len(rows), EXACT) if sample_weight is None else wide(sample_weight).reshape(-1)
    found = [exact_list(*each) for each in zip(rows, ranks, taken, strict=True)]
    losses = np.array([loss for loss, _, _ in found], EXACT) * weight
    grads = np.array([grad for _, grad, _ in found], EXACT).reshape(rows.shape) * weight[:, None]
    slack = EXACT(2.0**-53) * 8 * (rows.shape[-1] + 1) * (np.abs(losses) + 1)
    if reduction == "none":
        return Exact(losses.reshape(np.shape(x)[:-1]), None, slack), Exact(
            grads.reshape(np.shape(x)), None, slack.max()
        )
    divisor = EXACT(1)
    if reduction == "mean":
        divisor = weight[[factor for _, _, factor in found]].sum()
    total = losses.sum() / divisor
    return Exact(total, None, slack.sum()), Exact((grads / divisor).reshape(np.shape(x)), None, slack.max())


def exact_loss(x, relevance, **options):
    return exact_loss_and_grad(x, relevance, **options)[:1]


def weighted(shape, dtype, seed):
    rng = np.random.default_rng(seed + 5)
    weight = rng.integers(1, 5, shape[:-1]) / 4
    return {"sample_weight": weight, "reduction": "none", "temperature": 0.5}


VARIANTS = {
    "plain": Variant(constant(reduction="none")),
    "weighted": Variant(weighted, is_accurate=False),
    "efron": Variant(constant(reduction="none", ties="efron", top=3), is_accurate=False),
    "exact": Variant(constant(reduction="none", ties="exact", top=20), is_accurate=False),
    "mean": Variant(constant(), is_rowwise=False),
}
EXEMPT = {
    "accuracy": "in long double the digits of small losses are lost: tests/ops/test_rankings.py compares with mpmath",
    "special_values": "a special value counts for a whole list: tests/ops/test_rankings.py",
    "overlap": "its out has the lists, not an axis that a caller names: tests/ops/test_rankings.py",
    "interrupt": "scores that are not contiguous are copied: tests/ops/test_rankings.py stops long calls",
    "memory": "it has no out of the classes, and its scratch is a list",
}
ERRORS = (
    BadCall({"relevance": np.zeros((3, 3))}, ValueError, r"relevance has shape \(3, 3\); x has shape"),
    BadCall({"observed": np.ones(4)}, TypeError, "observed must be boolean"),
    BadCall({"ties": "all"}, ValueError, 'ties must be "breslow", "efron", "exact" or "order"'),
    BadCall({"top": 0}, ValueError, "top must be at least 1, got 0"),
    BadCall({"reduction": "max"}, ValueError, "reduction must be"),
    BadCall({"temperature": 0.0}, ValueError, "temperature must be positive and finite"),
    BadCall({"sample_weight": [1, -1, 1]}, ValueError, "sample_weight must be at least 0"),
    BadCall({"indptr": [0, 4]}, ValueError, "one axis is allowed with segments"),
)
LISTS = Argument("x", ROWS), Argument("relevance", ROWS)
RESULTS = Result("loss", ROWS, "loss"), Result("grad", ROWS)


def limits(dtype, options):
    """Return the limits beyond the slack."""
    return 4.0, 4.0


def operation(name, results, oracle, bad=()):
    return Operation(
        name,
        "rankings",
        LISTS,
        results,
        make_lists,
        oracle,
        limits,
        VARIANTS,
        {},
        (*ERRORS, *bad),
        golden=("rankings",),
        exempt=EXEMPT,
        devices=("cpu",),
    )


RECORDS = (
    operation("plackett_luce_loss", RESULTS[:1], exact_loss),
    operation(
        "plackett_luce_loss_with_grad",
        RESULTS,
        exact_loss_and_grad,
        (
            BadCall({"upstream": [1.0, 2.0]}, ValueError, "upstream"),
            BadCall({"out": np.zeros((3, 4))}, TypeError, "out has dtype float64"),
        ),
    ),
)
