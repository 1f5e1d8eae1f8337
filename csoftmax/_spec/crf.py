"""Linear-chain CRF: records, and an oracle in log space and long double.

A row of K classes becomes a sequence of about K / 3 positions with 3 tags. Differences of log-partitions lose the
digits of small losses even in long double, so that accuracy is judged in mpmath (tests/ops/test_crf.py).
"""

from __future__ import annotations

import numpy as np

from .formats import EXACT, Bounds, Exact, wide
from .record import ROWS, WHOLE, Argument, BadCall, Operation, Result, Variant, constant
from .samples import FixedUniform, logits

TAGS = 3


def length_of(shape):
    """Return the number of positions of a sequence in place of a row."""
    return max(TAGS, -(-shape[-1] // TAGS))


def make_chain(shape, dtype, seed, sigma, soft):
    """Return emissions and transitions."""
    x = logits((*shape[:-1], length_of(shape), TAGS), dtype, seed, sigma)
    return x, logits((TAGS, TAGS), dtype, seed + 1, 1.0)


def make_tagged(shape, dtype, seed, sigma, soft):
    """Return emissions, tags (sets of them if soft) and transitions."""
    x, transitions = make_chain(shape, dtype, seed, sigma, soft)
    rng = np.random.default_rng(seed + 2)
    tags = rng.random(x.shape) < 0.6 if soft else rng.integers(0, TAGS, x.shape[:-1])
    if soft:
        tags[..., 0] |= ~tags.any(-1)
    return x, tags, transitions


def log_sum(x, axis):
    """Return the log-sum-exp in long double."""
    with np.errstate(all="ignore"):
        top = x.max(axis, keepdims=True)
        found = np.log(np.exp(x - np.where(np.isfinite(top), top, 0)).sum(axis)) + np.squeeze(top, axis)
        return np.where(np.isfinite(np.squeeze(top, axis)), found, np.squeeze(top, axis))


class Chain:
    """The model in long double. Positions at which `kept` is False are copied over: neighbours become adjacent."""

    def __init__(self, emissions, transitions, start=None, end=None, mask=None, allowed=None):
        self.x = wide(emissions)
        if allowed is not None:
            self.x = np.where(allowed, self.x, -np.inf)
        n = self.x.shape[-1]
        self.transitions = wide(transitions)
        self.start = np.zeros(n, EXACT) if start is None else wide(start)
        self.end = np.zeros(n, EXACT) if end is None else wide(end)
        self.kept = np.ones(self.x.shape[:-1], bool) if mask is None else np.broadcast_to(mask, self.x.shape[:-1])

    def forward(self, x):
        """Return log weights of the prefixes of every position, and log Z."""
        alpha, begun = [], np.zeros(x.shape[0], bool)
        last = np.broadcast_to(self.start, (x.shape[0], x.shape[-1]))
        for t in range(x.shape[1]):
            step = log_sum(last[:, :, None] + self.transitions, 1)
            here = np.where(begun[:, None], step, self.start) + x[:, t]
            last = np.where(self.kept[:, t, None], here, last)
            begun = begun | self.kept[:, t]
            alpha.append(last)
        return np.stack(alpha, 1), np.where(begun, log_sum(last + self.end, 1), 0)

    def backward(self, x):
        """Return log weights of the suffixes behind every position."""
        beta, begun = [], np.zeros(x.shape[0], bool)
        follows = np.broadcast_to(self.end, (x.shape[0], x.shape[-1]))
        for t in reversed(range(x.shape[1])):
            beta.append(follows)
            here = log_sum(self.transitions + (follows + x[:, t])[:, None, :], 2)
            follows = np.where(self.kept[:, t, None], here, follows)
            begun = begun | self.kept[:, t]
        return np.stack(beta[::-1], 1)

    def marginals(self, x):
        """Return the probabilities of tags, 0 where nothing takes part, and log Z."""
        alpha, log_z = self.forward(x)
        mu = np.exp(alpha + self.backward(x) - log_z[:, None, None])
        return np.where(self.kept[..., None], mu, 0), log_z

    def pair_sums(self, x):
        """Return the expected numbers of transitions of all sequences."""
        alpha, log_z = self.forward(x)
        beta = self.backward(x)
        sums = np.zeros((x.shape[0], x.shape[-1], x.shape[-1]), EXACT)
        for t in range(1, x.shape[1]):
            both = self.kept[:, t] & self.kept[:, :t].any(1)
            pair = alpha[:, t - 1, :, None] + self.transitions + (x[:, t] + beta[:, t])[:, None, :]
            sums += np.where(both[:, None, None], np.exp(pair - log_z[:, None, None]), 0)
        return sums


def slack_of(chain):
    """Return the absolute error that is allowed: some ULP of the scores and of the number of positions."""
    scores = np.abs(np.where(np.isfinite(chain.x), chain.x, 0)).max(-1).sum(-1) + 10 * chain.x.shape[1]
    return EXACT(2.0**-53) * (64 * scores + 8 * chain.x.shape[1])


def flat(emissions):
    x = np.asarray(emissions)
    return x.reshape(-1, *x.shape[-2:])


def exact_log_partition(emissions, transitions, **options):
    chain = Chain(flat(emissions), transitions, **options)
    _, log_z = chain.forward(chain.x)
    return (Exact(log_z, None, slack_of(chain)),)


def exact_score(emissions, tags, transitions, **options):
    chain = Chain(flat(emissions), transitions, **options)
    given = flat_tags(tags, chain)
    x = np.where(given, chain.x, -np.inf)
    _, score = chain.forward(x)
    return (Exact(score, None, slack_of(chain)),)


def flat_tags(tags, chain):
    """Return sets of labels."""
    tags = np.asarray(tags)
    if tags.dtype == bool:
        return tags.reshape(chain.x.shape)
    return np.arange(chain.x.shape[-1]) == tags.reshape(chain.x.shape[:-1])[..., None]


def exact_loss(emissions, tags, transitions, reduction="mean", **options):
    return exact_gradient(emissions, tags, transitions, reduction, **options)[:1]


def exact_gradient(emissions, tags, transitions, reduction="mean", **options):
    chain = Chain(flat(emissions), transitions, **options)
    agreed = np.where(flat_tags(tags, chain), chain.x, -np.inf)
    mu, log_z = chain.marginals(chain.x)
    inside, log_y = chain.marginals(agreed)
    slack = slack_of(chain)
    loss, count = log_z - log_y, chain.kept.any(1).sum()
    factor = EXACT(1) if reduction != "mean" else 1 / EXACT(count)
    value = loss if reduction == "none" else loss.sum() * factor
    pairs = (chain.pair_sums(chain.x) - chain.pair_sums(agreed)).sum(0) * factor
    doubt = slack.sum() if reduction != "none" else slack
    grad = (mu - inside) * factor
    found = [
        Exact(value, None, doubt),
        Exact(grad.reshape(np.shape(emissions)), None, slack.max()),
        Exact(pairs, None, slack.sum() * 4),
    ]
    if options.get("start") is not None:
        found += [Exact(grad_of_ends(grad, chain, first), None, slack.sum()) for first in (True, False)]
    return tuple(found)


def grad_of_ends(grad, chain, first):
    """Return the sum over the sequences of the gradient at the first or last position that takes part."""
    kept = chain.kept if first else chain.kept[:, ::-1]
    at = kept.argmax(1) if first else kept.shape[1] - 1 - kept.argmax(1)
    rows = grad[np.arange(len(grad)), at]
    return np.where(kept.any(1)[:, None], rows, 0).sum(0)


def exact_marginals(emissions, transitions, **options):
    chain = Chain(flat(emissions), transitions, **options)
    mu, log_z = chain.marginals(chain.x)
    slack = slack_of(chain)
    return Exact(mu.reshape(np.shape(emissions)), None, slack.max()), Exact(log_z, None, slack)


def best_paths(emissions, transitions, **options):
    """Return any tags, and bounds of the score of the best path."""
    chain = Chain(flat(emissions), transitions, **options)
    shape = np.shape(emissions)[:-1]
    _, log_z = chain.forward(chain.x)
    n = chain.kept.sum(1)
    slack = slack_of(chain)
    low = log_z - n * np.log(EXACT(chain.x.shape[-1])) - slack - np.abs(log_z) * 2.0**-20 - 2.0**-20
    high = log_z + slack + np.abs(log_z) * 2.0**-20 + 2.0**-20
    return Bounds(np.full(shape, -1), np.full(shape, chain.x.shape[-1] - 1)), Bounds(low, high)


def any_tags(emissions, transitions, **options):
    shape = np.shape(emissions)[:-1]
    return (Bounds(np.full(shape, -1), np.full(shape, np.shape(emissions)[-1] - 1)),)


def with_mask(shape, dtype, seed):
    """Return options with a mask anywhere, start and end."""
    rng = np.random.default_rng(seed + 3)
    mask = rng.random((*shape[:-1], length_of(shape))) < 0.7
    return {"mask": mask, "start": logits((TAGS,), dtype, seed + 4, 1.0), "end": logits((TAGS,), dtype, seed + 5, 1.0)}


def masked_rows(shape, dtype, seed):
    return {**with_mask(shape, dtype, seed), "reduction": "none"}


def with_uniforms(shape, dtype, seed):
    size = int(np.prod(shape[:-1])), length_of(shape)
    return {"rng": FixedUniform(np.random.default_rng(seed + 7).random(size))}


PAIR = Argument("emissions", ROWS), Argument("transitions", WHOLE)
TRIPLE = Argument("emissions", ROWS), Argument("tags", ROWS), Argument("transitions", WHOLE)
CHAIN_VARIANTS = {"plain": Variant(), "mask": Variant(with_mask)}
LOSS_VARIANTS = {
    "plain": Variant(constant(reduction="none")),
    "mask": Variant(masked_rows),
    "sets": Variant(masked_rows, soft=True),
    "mean": Variant(constant(reduction="mean"), is_rowwise=False),
}
IN_MPMATH = "in long double the digits of small losses are lost: tests/ops/test_crf.py compares with mpmath"
EXEMPT = {
    "accuracy": IN_MPMATH,
    "special_values": "a special value counts for a whole sequence: tests/ops/test_crf_special.py",
    "overlap": "its out has positions and tags: tests/ops/test_crf.py",
    "interrupt": "emissions that are not contiguous are copied: tests/ops/test_crf_special.py stops long sequences",
    "memory": "it has no out of the classes, and its scratch is a few sequences",
}


def limits(dtype, options):
    """Return the limits beyond the slack."""
    return 4.0, 4.0, 4.0, 4.0, 4.0


def bad_arrays():
    """Return the calls that all functions refuse."""
    square = np.zeros((3, 2), np.float32)
    return (
        BadCall({"transitions": square}, ValueError, r"transitions has shape \(3, 2\); the emissions have 3 tags"),
        BadCall({"emissions": np.zeros(3, np.float32)}, ValueError, r"emissions has shape \(3,\)"),
        BadCall({"start": [0.0, 1.0]}, ValueError, r"start has shape \(2,\)"),
        BadCall({"end": ["a"] * 3}, TypeError, "end has dtype"),
        BadCall({"lengths": [1, 2]}, ValueError, r"lengths has shape \(2,\)"),
        BadCall({"lengths": [1, 2, 9]}, ValueError, r"lengths must be from 0 to 3, .* got 9 at \(2\)"),
        BadCall({"lengths": [1.0, 2.0, 3.0]}, TypeError, "lengths must hold integers"),
        BadCall({"mask": np.ones((3, 3))}, TypeError, "mask must be boolean"),
        BadCall({"mask": np.ones((2, 3), bool)}, ValueError, r"mask has shape \(2, 3\)"),
        BadCall({"indptr": [0, 3]}, ValueError, r"with indptr it is \(positions, tags\)"),
        BadCall(
            {"emissions": np.zeros((4, 3), np.float32), "indptr": [0, 3, 2, 4]}, ValueError, "indptr must rise from 0"
        ),
        BadCall({"emissions": np.zeros((4, 3), np.float32), "indptr": [0, 3]}, ValueError, "number of positions, 4"),
        BadCall(
            {"emissions": np.zeros((4, 3), np.float32), "indptr": [0, 4], "lengths": [4]}, ValueError, "exclude each"
        ),
        BadCall({"allowed": np.ones((3, 3, 3), int)}, TypeError, "allowed must be boolean"),
        BadCall({"allowed": np.ones((3, 3, 2), bool)}, ValueError, r"allowed has shape \(3, 3, 2\)"),
    )


BAD_TAGS = (
    BadCall({"tags": np.full((3, 3), 3)}, IndexError, r"tags\[0, 0\] is 3: the tags are 0 to 2"),
    BadCall({"tags": np.zeros((3, 2), int)}, ValueError, r"tags has shape \(3, 2\)"),
    BadCall({"tags": np.zeros((3, 3))}, TypeError, "tags must hold integers"),
)
BAD_LOSS = (
    BadCall({"tags": np.ones((3, 3), bool)}, ValueError, "sets of tags, which are boolean, have the shape"),
    BadCall({"reduction": "max"}, ValueError, 'reduction must be "none", "sum", "mean" or "token_mean"'),
    BadCall({"sample_weight": [1, -1, 1]}, ValueError, r"sample_weight must be at least 0 .* \(1\)"),
    BadCall({"ignore_index": 1.5}, TypeError, "ignore_index must be an int"),
)
BAD_OUT = (
    BadCall({"out": np.zeros((3, 3), np.float32)}, ValueError, r"out has shape \(3, 3\)"),
    BadCall({"out": np.zeros((3, 3, 3))}, TypeError, "out has dtype float64"),
)
GRADIENTS = (
    Result("loss", ROWS, "loss"),
    Result("grad_emissions", ROWS),
    Result("grad_transitions", WHOLE),
    Result("grad_start", WHOLE),
    Result("grad_end", WHOLE),
)
CPU = ("cpu",)


def operation(name, arguments, results, oracle, variants=CHAIN_VARIANTS, bad=(), **more):
    make = make_tagged if len(arguments) == 3 else make_chain
    golden = more.pop("golden", ("crf",))
    return Operation(
        name,
        "crf",
        arguments,
        results,
        make,
        oracle,
        limits,
        variants,
        {},
        (*bad_arrays(), *bad),
        golden=golden,
        exempt=EXEMPT,
        devices=CPU,
        **more,
    )


RECORDS = (
    operation("crf_log_partition", PAIR, (Result("log_partition", ROWS, "loss"),), exact_log_partition),
    operation("crf_score", TRIPLE, (Result("score", ROWS, "loss"),), exact_score, bad=BAD_TAGS),
    operation("crf_loss", TRIPLE, GRADIENTS[:1], exact_loss, LOSS_VARIANTS, (*BAD_TAGS, *BAD_LOSS)),
    operation(
        "crf_loss_with_grad",
        TRIPLE,
        GRADIENTS,
        exact_gradient,
        LOSS_VARIANTS,
        (
            *BAD_TAGS,
            *BAD_LOSS,
            *BAD_OUT,
            BadCall({"upstream": [1.0, 2.0]}, ValueError, "upstream"),
        ),
    ),
    operation(
        "crf_marginals",
        PAIR,
        (Result("tags", ROWS), Result("log_partition", ROWS, "loss")),
        exact_marginals,
        bad=(*BAD_OUT, BadCall({"pairs": "all"}, ValueError, 'pairs must be None, "sum" or "each"')),
    ),
    operation(
        "crf_decode",
        PAIR,
        (Result("tags", ROWS, "index"), Result("score", ROWS, "loss")),
        best_paths,
        bad=(
            BadCall({"method": "best"}, ValueError, 'method must be "viterbi", "posterior" or "posterior_path"'),
            BadCall({"n_best": 0}, ValueError, "n_best must be at least 1, got 0"),
            BadCall({"n_best": 2, "method": "posterior"}, ValueError, 'n_best needs method="viterbi"'),
            BadCall({"fill": 0.5}, TypeError, "fill must be an int"),
            BadCall({"fill": 2**63}, ValueError, "fill must be within the range of int64"),
            BadCall({"log_prob": 1}, TypeError, "log_prob must be a bool"),
        ),
    ),
    operation(
        "crf_sample",
        PAIR,
        (Result("tags", ROWS, "index"),),
        any_tags,
        {"plain": Variant(with_uniforms)},
        bad=(
            BadCall({"size": -1}, ValueError, "size must be at least 0, got -1"),
            BadCall({"size": (2, 3)}, TypeError, "size must be an int or None"),
            BadCall({"rng": [0, 1]}, ValueError, "there are 3 rows"),
            BadCall({"rng": -1}, ValueError, "rng must be at least 0"),
        ),
    ),
)
