"""Linear-chain CRF: against enumeration and forward-backward in mpmath, on the fast path and on the slow one."""

import itertools

import numpy as np
import pytest
from helpers import assert_same_bits, assert_same_results
from oracles.crf import Enumeration, Forward, relative

import csoftmax
from csoftmax._cpu import binding
from csoftmax._spec.formats import dtype_of, ulp_error
from csoftmax._spec.samples import FixedUniform

U = 2.0**-53
TINY = 2.0**-1000  # smaller losses may be 0


def bound(n):
    """Return the promised relative error of a float64 result of n positions."""
    return (8 * n + 8) * U


@pytest.fixture(params=["fast", "slow"])
def path(request, monkeypatch):
    """Both forms of the arithmetic: one exponent a position, and one a tag."""
    monkeypatch.setenv("CSOFTMAX_CRF_SLOW", "1" if request.param == "slow" else "0")
    return request.param


def chain(rng, n, tags, kind="plain"):
    """Return emissions, transitions, start and end of a small chain."""
    scale = {"plain": 3.0, "wide": 40.0, "ties": 1.0}.get(kind, 2.0)
    x, transitions = rng.standard_normal((n, tags)) * scale, rng.standard_normal((tags, tags)) * 2
    start, end = rng.standard_normal(tags), rng.standard_normal(tags)
    if kind == "ties":
        x, transitions = np.rint(x), np.rint(transitions / 2)
        start, end = np.rint(start), np.rint(end)
    if kind == "forbidden":
        transitions[rng.random((tags, tags)) < 0.35] = -np.inf
        x[rng.random((n, tags)) < 0.2] = -np.inf
        start[rng.random(tags) < 0.3] = -np.inf
    if kind == "finite ban":
        transitions[rng.random((tags, tags)) < 0.4] = -1e4
        x[rng.random((n, tags)) < 0.3] = -1e9
    if kind == "offsets":
        x += rng.standard_normal((n, 1)) * 1e5
        transitions -= 700.0
    return x, transitions, start, end


KINDS = ("plain", "wide", "ties", "forbidden", "finite ban", "offsets")
SIZES = [(n, tags) for n in (1, 2, 3, 5) for tags in (1, 2, 3, 4)]


def cases(kind, seeds=2):
    for n, tags in SIZES:
        for seed in range(seeds):
            rng = np.random.default_rng(1000 * seed + 10 * n + tags)
            yield rng, chain(rng, n, tags, kind)


def scale_of(x):
    """Return the magnitude whose ULP the error of log Z is measured in."""
    return float(np.where(np.isfinite(x), np.abs(x), 0).max(1).sum()) + 10 * len(x)


@pytest.mark.promise("accuracy", "crf_log_partition")
@pytest.mark.promise("accuracy", "crf_marginals")
@pytest.mark.parametrize("kind", KINDS)
def test_log_partition_and_marginals(kind, path):
    for _, (x, transitions, start, end) in cases(kind):
        exact = Enumeration(x, transitions, start, end)
        options = {"start": start, "end": end}
        result = csoftmax.crf_marginals(x, transitions, pairs="sum", **options)
        each = csoftmax.crf_marginals(x, transitions, pairs="each", **options).pairs
        log_z = csoftmax.crf_log_partition(x, transitions, **options)
        assert_same_bits(log_z, result.log_partition)
        if not exact.z:
            assert log_z == -np.inf
            assert np.isnan(result.tags).all()
            assert np.isnan(result.pairs).all()
            continue
        value = float(exact.log_partition())
        size = max(abs(value), scale_of(x) + len(x) * np.abs(transitions[np.isfinite(transitions)]).max(initial=0))
        assert abs(log_z - value) <= 3 * np.spacing(size), (x, value)
        mu, xi = exact.marginals()
        tiny = 2.0**-600
        keep = mu > tiny
        assert relative(result.tags[keep], mu[keep]) <= bound(len(x))
        assert np.all(result.tags[~keep] <= 2 * tiny)
        assert np.max(np.abs(result.tags.sum(-1) - 1)) <= bound(len(x))
        keep = xi[1:] > tiny
        assert relative(each[keep], xi[1:][keep]) <= bound(len(x))
        total = xi.sum(0)
        assert relative(result.pairs[total > tiny], total[total > tiny]) <= bound(len(x))
        np.testing.assert_allclose(each.sum(-2), result.tags[1:], rtol=bound(len(x)), atol=1e-300)


@pytest.mark.promise("accuracy", "crf_loss")
@pytest.mark.promise("accuracy", "crf_loss_with_grad")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tags", ["labels", "sets", "unknown"])
def test_loss_and_gradients(kind, tags, path):
    for rng, (x, transitions, start, end) in cases(kind, seeds=1):
        n, count = x.shape
        labels = rng.integers(0, count, n)
        sets = np.arange(count) == labels[:, None]
        given = labels
        if tags == "sets":
            given = sets = sets | (rng.random(x.shape) < 0.4)
        elif tags == "unknown":
            given = np.where(rng.random(n) < 0.5, -100, labels)
            sets = sets | (given == -100)[:, None]
        exact = Enumeration(x, transitions, start, end, sets)
        result = csoftmax.crf_loss_with_grad(x, given, transitions, start=start, end=end)
        assert_same_bits(result.loss, csoftmax.crf_loss(x, given, transitions, start=start, end=end))
        if not exact.z:
            assert np.isnan(result.loss)
            assert all(np.isnan(g).all() for g in result[1:])
            continue
        if not exact.z_in:
            assert result.loss == np.inf
            if tags == "labels" or (tags == "unknown" and -100 not in given):
                mu, xi = exact.marginals()
                counts = np.zeros((count, count))
                np.add.at(counts, (labels[:-1], labels[1:]), 1)
                np.testing.assert_allclose(result.grad_emissions, (mu - sets).astype(float), atol=1e-13)
                np.testing.assert_allclose(result.grad_transitions, (xi.sum(0) - counts).astype(float), atol=1e-13)
            else:
                assert np.isnan(result.grad_emissions).all()
            continue
        loss = exact.loss()
        if loss > TINY:
            assert relative(result.loss, loss) <= bound(n), (x, float(loss))
        else:
            assert result.loss <= TINY
        mu, pairs, terms = exact.gradients()
        size = abs(mu)
        if tags != "labels":  # a difference of two small numbers
            outside = exact.marginals()[0] + exact.z_out / exact.z * exact.marginals(inside=True)[0]
            size = abs(mu) + outside
        keep = size > 1e-100  # below, differences are noise in 400 digits
        assert relative(result.grad_emissions[keep], mu[keep], size[keep]) <= bound(n)
        terms = terms if tags == "labels" else terms + 2 * exact.marginals()[1].sum(0)
        keep = terms > 1e-100
        assert relative(result.grad_transitions[keep], pairs[keep], terms[keep]) <= bound(n)
        assert_same_bits(result.grad_start, result.grad_emissions[0])
        assert_same_bits(result.grad_end, result.grad_emissions[-1])


@pytest.mark.parametrize(("gap", "n"), [(1, 12), (14, 12), (50, 12), (150, 12), (14, 128), (60, 40)])
def test_tails(gap, n, path):
    """The loss of a path that is nearly certain, to the last digits; a difference has none left."""
    rng = np.random.default_rng(n)
    tags = 5
    x = rng.standard_normal((n, tags))
    transitions, start, end = rng.standard_normal((tags, tags)) * 0.3, rng.standard_normal(tags), np.zeros(tags)
    labels = rng.integers(0, tags, n)
    x[np.arange(n), labels] += gap
    exact = Forward(x, transitions, start, end, labels)
    result = csoftmax.crf_loss_with_grad(x, labels, transitions, start=start, end=end)
    assert relative(result.loss, exact.loss) <= bound(n)
    grad, pairs, terms = exact.gradients()
    assert relative(result.grad_emissions, grad) <= bound(n)
    assert relative(result.grad_transitions, pairs, terms) <= bound(n)
    assert result.loss > 0
    single = csoftmax.crf_loss_with_grad(x.astype("f4"), labels, transitions, start=start, end=end)
    exact = Forward(x.astype("f4"), transitions, start, end, labels)
    assert ulp_error(single.loss, float(exact.loss), "float32") <= 0.52


def test_losses_at_the_end_of_the_range():
    """Where the other paths vanish beside the labels', each tag gets its own exponent."""
    for gap in (300.0, 690.0, 720.0, 740.0):
        x, transitions = np.zeros((4, 3)), np.zeros((3, 3))
        x[np.arange(4), [0, 1, 2, 0]] = gap
        exact = Forward(x, transitions, np.zeros(3), np.zeros(3), [0, 1, 2, 0])
        result = csoftmax.crf_loss_with_grad(x, [0, 1, 2, 0], transitions)
        assert abs(result.loss - float(exact.loss)) <= bound(4) * float(exact.loss) + 2.0**-1073
        assert result.loss > 0
        np.testing.assert_allclose(result.grad_emissions, exact.gradients()[0].astype(float), bound(4), 2.0**-1072)


def test_two_chains_that_never_meet():
    """The tag that falls behind by e^800 is the only one that may end: plain scaling gives -inf here."""
    n = 800
    x = np.zeros((n, 2))
    x[:, 0] = 1.0
    transitions = np.array([[0.0, -np.inf], [-np.inf, 0.0]])
    end = np.array([-np.inf, 0.0])
    assert csoftmax.crf_log_partition(x, transitions, end=end) == 0
    result = csoftmax.crf_marginals(x, transitions, end=end)
    assert np.array_equal(result.tags, np.tile([0.0, 1.0], (n, 1)))
    loss = csoftmax.crf_loss_with_grad(x, np.ones(n, int), transitions, end=end)
    assert loss.loss == 0
    assert not loss.grad_emissions.any()


@pytest.mark.parametrize("scale", [500.0, 1e9, 1e14, 1e20, 1e300])
def test_scores_of_any_size(scale, path):
    rng = np.random.default_rng(5)
    x, transitions, start, end = (v * scale for v in chain(rng, 4, 3))
    exact = Enumeration(x, transitions, start, end)
    value = max(float(s) for s in exact.scores)
    log_z = csoftmax.crf_log_partition(x, transitions, start=start, end=end)
    assert abs(log_z - float(exact.log_partition())) <= 8 * np.spacing(4 * abs(value))
    best = csoftmax.crf_decode(x, transitions, start=start, end=end, log_prob=True)
    assert tuple(best.tags) == exact.best(1)[0]
    worst = exact.paths[int(np.argmin([float(s) for s in exact.scores]))]
    loss = csoftmax.crf_loss(x, list(worst), transitions, start=start, end=end)
    assert abs(loss - float(exact.log_partition() - min(exact.scores))) <= 8 * np.spacing(4 * abs(value))


def test_unlikely_labels_do_not_vanish():
    """Labels with the finite -1e9 of other packages, or -1e4: the loss is that number, not infinity."""
    for ban in (-1e4, -1e9, -1e15):
        x = np.zeros((6, 3))
        transitions = np.zeros((3, 3))
        transitions[0, 1] = ban
        result = csoftmax.crf_loss_with_grad(x, [0, 1, 2, 0, 1, 2], transitions)
        assert abs(result.loss / (-2 * ban) - 1) < 1e-3
        assert result.grad_transitions[0, 1] == -2


@pytest.mark.parametrize("ban", [1e4, 1e9, 1e12, 3e13, 1e15])
def test_only_stand_ins_lead_through(ban):
    """Every path pays several bans: the tags are told apart by what is left beside numbers that are all large."""
    n, tags = 6, 3
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x, transitions = rng.standard_normal((n, tags)) * 2, rng.standard_normal((tags, tags))
        t, j = np.indices(x.shape)
        x[(j != t % tags) & ((t + j + seed) % 2 == 1)] -= ban
        i, j = np.indices(transitions.shape)
        transitions[j == (i + 1) % tags] -= ban
        if seed % 2:
            transitions[j == (i + 2) % tags] -= ban
            transitions[j == i] -= 2 * ban
        labels = rng.integers(0, tags, n)
        exact = Enumeration(x, transitions, sets=np.arange(tags) == labels[:, None])
        mu = exact.marginals()[0]
        keep = mu > 2.0**-600
        result = csoftmax.crf_marginals(x, transitions)
        assert relative(result.tags[keep], mu[keep]) <= bound(n)
        assert abs(csoftmax.crf_loss(x, labels, transitions) / exact.loss() - 1) <= bound(n)


def test_the_slow_path_equals_the_fast_one(monkeypatch):
    """Within twice the promised error, over sizes of both kernels' loops."""
    rng = np.random.default_rng(0)
    for tags in (1, 2, 5, 9, 12, 13, 17, 33):
        x, transitions = rng.standard_normal((7, 19, tags)) * 4, rng.standard_normal((tags, tags))
        labels, lengths = rng.integers(0, tags, (7, 19)), rng.integers(0, 20, 7)
        found = []
        for slow in ("0", "1"):
            monkeypatch.setenv("CSOFTMAX_CRF_SLOW", slow)
            result = csoftmax.crf_loss_with_grad(x, labels, transitions, lengths=lengths)
            marginals = csoftmax.crf_marginals(x, transitions, lengths=lengths, pairs="each")
            found.append((*result[:3], *marginals))
        for position, (fast, slow) in enumerate(zip(*found, strict=True)):
            # sums of terms of both signs (transitions) and logarithms are not relative
            atol = 2 * bound(19) * {2: 1, 5: 100}.get(position, 0)
            np.testing.assert_allclose(fast, slow, rtol=2 * bound(19), atol=atol)


# Paths


@pytest.mark.promise("accuracy", "crf_decode")
@pytest.mark.promise("accuracy", "crf_score")
@pytest.mark.parametrize("kind", KINDS)
def test_best_paths(kind):
    for _, (x, transitions, start, end) in cases(kind):
        exact = Enumeration(x, transitions, start, end)
        options = {"start": start, "end": end}
        count = 7
        result = csoftmax.crf_decode(x, transitions, n_best=count, log_prob=True, **options)
        best = exact.best(count)
        if kind in ("ties", "forbidden", "plain"):
            assert [tuple(p) for p in result.tags[: len(best)]] == best
        assert np.all(result.tags[len(best) :] == -1)
        assert np.all(result.score[len(best) :] == -np.inf)
        assert np.isnan(result.log_prob[len(best) :]).all()
        one = csoftmax.crf_decode(x, transitions, log_prob=True, **options)
        assert_same_results(one, (result.tags[0], result.score[0], result.log_prob[0]))
        for tags, score, log_prob in zip(result.tags[: len(best)], result.score, result.log_prob):
            at = exact.paths.index(tuple(tags))
            assert_same_bits(score, csoftmax.crf_score(x, tags, transitions, **options))
            assert abs(score - float(exact.scores[at])) <= 4 * len(x) * np.spacing(scale_of(x) + abs(score))
            loss = csoftmax.crf_loss(x, tags, transitions, **options)
            assert log_prob == -loss


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_decoding(kind, path):
    for _, (x, transitions, start, end) in cases(kind):
        exact = Enumeration(x, transitions, start, end)
        options = {"start": start, "end": end}
        tags = csoftmax.crf_decode(x, transitions, method="posterior", log_prob=True, **options)
        chosen = csoftmax.crf_decode(x, transitions, method="posterior_path", log_prob=True, **options)
        if not exact.z:
            assert np.all(tags.tags == -1)
            assert np.all(chosen.tags == -1)
            assert tags.score == chosen.score == -np.inf
            continue
        mu = exact.marginals()[0]
        for t, j in enumerate(tags.tags):
            assert mu[t, j] >= mu[t].max() * (1 - 1e-13)
        possible = [p for p, w in zip(exact.paths, exact.weights) if w]
        best = max(sum(mu[t, j] for t, j in enumerate(p)) for p in possible)
        assert tuple(chosen.tags) in possible
        assert sum(mu[t, j] for t, j in enumerate(chosen.tags)) >= best * (1 - 1e-13)
        if tuple(tags.tags) not in possible:
            assert tags.score == -np.inf
            assert tags.log_prob == -np.inf


def test_ties_go_to_the_smallest_path_read_from_the_end():
    x, transitions = np.zeros((4, 3)), np.zeros((3, 3))
    assert csoftmax.crf_decode(x, transitions).tags.tolist() == [0, 0, 0, 0]
    result = csoftmax.crf_decode(x, transitions, n_best=81)
    expected = sorted(itertools.product(range(3), repeat=4), key=lambda p: p[::-1])
    assert [tuple(p) for p in result.tags] == expected


@pytest.mark.promise("accuracy", "crf_sample")
def test_draws_follow_the_distribution(path):
    """Each draw is the inverse of the conditional distribution at its uniform number."""
    for kind in ("plain", "forbidden"):
        for _, (x, transitions, start, end) in cases(kind, 1):
            exact = Enumeration(x, transitions, start, end)
            if not exact.z:
                continue
            n, size = len(x), 40
            u = np.random.default_rng(1).random((size, n))
            got = csoftmax.crf_sample(
                x, transitions, start=start, end=end, size=size, rng=FixedUniform(u.reshape(1, -1))
            )
            weights = np.array([float(w / exact.z) for w in exact.weights])
            paths = np.array(exact.paths)
            for draw, numbers in zip(got, u):
                kept = np.ones(len(paths), bool)
                for t, number in zip(reversed(range(n)), numbers):
                    mass = np.bincount(paths[kept][:, t], weights[kept], x.shape[1])
                    sums = np.cumsum(mass) / mass.sum()
                    allowed = {int(np.searchsorted(sums, number + e, "right")) for e in (-1e-12, 1e-12)}
                    assert draw[t] in allowed
                    kept &= paths[:, t] == draw[t]


# Positions that take part


def random_batch(seed, tags=6, n=11, count=9):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, n, tags)) * 3
    return rng, x, rng.standard_normal((tags, tags)), rng.integers(0, tags, (count, n))


def every_function(x, labels, transitions, **options):
    """Return the results of all functions, those by position flattened to the positions that take part."""
    kept = options.pop("kept", np.ones(labels.shape, bool))
    loss = csoftmax.crf_loss_with_grad(x, labels, transitions, **options)
    marginals = csoftmax.crf_marginals(x, transitions, pairs="sum", **options)
    decoded = csoftmax.crf_decode(x, transitions, log_prob=True, **options)
    draws = csoftmax.crf_sample(x, transitions, rng=3, **options)
    score = csoftmax.crf_score(x, np.where(kept, labels, 10**6), transitions, **options)
    by_position = (loss.grad_emissions, marginals.tags, decoded.tags, draws)
    return (
        *(a[kept] for a in by_position),
        *(loss.loss, loss.grad_transitions, loss.grad_start, loss.grad_end),
        *(marginals.pairs, marginals.log_partition, decoded.score, decoded.log_prob, score),
    )


@pytest.mark.parametrize("tags", [3, 6, 17])
def test_masked_is_packed_is_padded(tags):
    """Bits are equal, whatever lies under the mask: NaN there is never read."""
    rng, x, transitions, labels = random_batch(tags, tags)
    ends = {"start": rng.standard_normal(tags), "end": rng.standard_normal(tags)}
    for kept in (rng.random(labels.shape) < 0.6, np.arange(11) < rng.integers(0, 12, 9)[:, None]):
        indptr = np.concatenate([[0], np.cumsum(kept.sum(1))])
        packed = every_function(x[kept], labels[kept], transitions, indptr=indptr, **ends)
        spoilt = np.where(kept[..., None], x, np.nan)
        masked = every_function(spoilt, np.where(kept, labels, -5), transitions, mask=kept, kept=kept, **ends)
        assert_same_results(masked, packed)
        if np.array_equal(kept, np.arange(11) < kept.sum(1)[:, None]):
            padded = every_function(spoilt, labels, transitions, lengths=kept.sum(1), kept=kept, **ends)
            assert_same_results(padded, packed)
        every = every_function(
            spoilt.reshape(-1, tags),
            labels.reshape(-1),
            transitions,
            indptr=np.arange(10) * 11,
            mask=kept.reshape(-1),
            kept=kept.reshape(-1),
            **ends,
        )
        assert_same_results(every, packed)
        result = csoftmax.crf_loss_with_grad(spoilt, labels, transitions, mask=kept, **ends)
        assert not result.grad_emissions[~kept].any()
        assert np.all(csoftmax.crf_decode(spoilt, transitions, mask=kept, fill=-7, **ends).tags[~kept] == -7)


def test_a_sequence_does_not_depend_on_the_others():
    _, x, transitions, labels = random_batch(0)
    together = csoftmax.crf_loss_with_grad(x, labels, transitions, reduction="sum", upstream=1.0)
    alone = [csoftmax.crf_loss_with_grad(*pair, transitions, reduction="sum") for pair in zip(x, labels, strict=True)]
    assert_same_bits(together.grad_emissions, np.stack([a.grad_emissions for a in alone]))
    each = csoftmax.crf_loss(x, labels, transitions, reduction="none")
    assert_same_bits(each, np.stack([a.loss for a in alone]))
    backwards = csoftmax.crf_marginals(x[::-1], transitions)
    assert_same_bits(backwards.tags[::-1], csoftmax.crf_marginals(x, transitions).tags)


def test_sums_over_sequences_are_a_fixed_tree():
    """Blocks of 32 in order, then a binary tree over the blocks, whatever the number of threads."""
    rng = np.random.default_rng(2)
    n, tags, count = 4, 3, 300
    x, transitions = rng.standard_normal((count, n, tags)), rng.standard_normal((tags, tags))
    labels = rng.integers(0, tags, (count, n))
    alone = [csoftmax.crf_loss_with_grad(*p, transitions, reduction="sum") for p in zip(x, labels, strict=True)]

    def tree(values):
        levels = {}
        for begin in range(0, count, 32):
            block = values[begin]
            for value in values[begin + 1 : begin + 32]:
                block = block + value
            level = 0
            while level in levels:
                block, level = block + levels.pop(level), level + 1
            levels[level] = block
        total = None
        for level in sorted(levels):
            total = levels[level] if total is None else total + levels[level]
        return total

    result = csoftmax.crf_loss_with_grad(x, labels, transitions, reduction="sum", num_threads=1)
    assert_same_bits(result.loss, np.float64(tree([a.loss for a in alone])))
    assert_same_bits(result.grad_transitions, tree([a.grad_transitions for a in alone]))


def test_allowed_restricts_the_model():
    rng, x, transitions, labels = random_batch(4, tags=4)
    allowed = rng.random(x.shape) < 0.7
    np.put_along_axis(allowed, labels[..., None], True, -1)
    barred = np.where(allowed, x, -np.inf)
    expected = csoftmax.crf_loss_with_grad(barred, labels, transitions)
    result = csoftmax.crf_loss_with_grad(np.where(allowed, x, np.nan), labels, transitions, allowed=allowed)
    assert_same_results(result[:3], expected[:3])
    forced = csoftmax.crf_decode(x, transitions, allowed=np.arange(4) == labels[..., None], log_prob=True)
    assert np.array_equal(forced.tags, labels)
    assert not forced.log_prob.any()


# Options of the loss


def test_reductions_weights_and_upstream():
    rng, x, transitions, labels = random_batch(8)
    lengths = rng.integers(0, 12, 9)
    weights = rng.random(9) * (rng.random(9) < 0.7)
    each = csoftmax.crf_loss(x, labels, transitions, lengths=lengths, reduction="none")
    options = {"lengths": lengths, "sample_weight": weights}
    weighted = csoftmax.crf_loss(x, labels, transitions, reduction="none", **options)
    np.testing.assert_allclose(weighted, each * weights, rtol=1e-15)
    full = csoftmax.crf_loss_with_grad(x, labels, transitions, reduction="none", lengths=lengths)
    for reduction, divisor in (
        ("sum", 1),
        ("mean", weights[lengths > 0].sum()),
        ("token_mean", (weights * lengths).sum()),
    ):
        result = csoftmax.crf_loss_with_grad(x, labels, transitions, reduction=reduction, upstream=3.0, **options)
        np.testing.assert_allclose(result.loss, (each * weights).sum() / divisor, rtol=1e-14)
        factor = (weights * 3 / divisor)[:, None, None]
        np.testing.assert_allclose(result.grad_emissions, full.grad_emissions * factor, rtol=1e-14)
    upstream = rng.standard_normal(9)
    result = csoftmax.crf_loss_with_grad(x, labels, transitions, reduction="none", upstream=upstream, lengths=lengths)
    np.testing.assert_allclose(result.grad_emissions, full.grad_emissions * upstream[:, None, None], rtol=1e-14)


def test_sequences_of_weight_0_are_not_read():
    _, x, transitions, labels = random_batch(9)
    x[3] = np.nan
    weights = np.ones(9)
    weights[3] = 0
    result = csoftmax.crf_loss_with_grad(x, labels, transitions, sample_weight=weights)
    others = np.delete(np.arange(9), 3)
    expected = csoftmax.crf_loss_with_grad(x[others], labels[others], transitions)
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-15)
    np.testing.assert_allclose(result.grad_transitions, expected.grad_transitions, rtol=1e-13, atol=1e-15)
    assert not result.grad_emissions[3].any()


def test_gradients_by_differences():
    rng, x, transitions, labels = random_batch(10, tags=3, n=5, count=2)
    start, end = rng.standard_normal(3), rng.standard_normal(3)
    arrays = [x, transitions, start, end]
    result = csoftmax.crf_loss_with_grad(x, labels, transitions, start=start, end=end)
    for position, gradient in enumerate(result[1:]):
        for at in np.ndindex(arrays[position].shape):
            values = []
            for step in (1e-5, -1e-5):
                moved = [a.copy() for a in arrays]
                moved[position][at] += step
                values.append(csoftmax.crf_loss(moved[0], labels, moved[1], start=moved[2], end=moved[3]))
            assert abs((values[0] - values[1]) / 2e-5 - gradient[at]) < 1e-8


# Dtypes, memory


def test_dtypes(dtype):
    """Everything is computed in double and rounded once."""
    _, x, transitions, labels = random_batch(11)
    x, transitions = x.astype(dtype_of(dtype)), transitions.astype(dtype_of(dtype))
    wide = csoftmax.crf_loss_with_grad(x.astype("f8"), labels, transitions.astype("f8"), start=np.zeros(6))
    result = csoftmax.crf_loss_with_grad(x, labels, transitions, start=np.zeros(6, transitions.dtype))
    assert result.grad_emissions.dtype == x.dtype
    assert result.grad_transitions.dtype == result.grad_start.dtype == transitions.dtype
    assert result.loss.dtype == (np.float64 if dtype == "float64" else np.float32)
    for got, expected in zip(result[:4], wide[:4], strict=True):
        assert ulp_error(got, expected, got.dtype.name) <= (0 if dtype == "float64" else 0.51)
    marginals = csoftmax.crf_marginals(x, transitions, pairs="each")
    assert marginals.tags.dtype == marginals.pairs.dtype == x.dtype
    double = csoftmax.crf_loss_with_grad(x, labels, transitions.astype("f8"))
    assert double.grad_transitions.dtype == np.float64
    integers = csoftmax.crf_loss_with_grad(np.rint(x.astype("f8")).astype(int), labels, np.zeros((6, 6), int))
    assert integers.grad_emissions.dtype == integers.grad_transitions.dtype == np.float64


@pytest.mark.promise("overlap", "crf_loss_with_grad")
@pytest.mark.promise("overlap", "crf_marginals")
def test_out_anywhere(dtype):
    _, x, transitions, labels = random_batch(12)
    x = x.astype(dtype_of(dtype))
    lengths = np.arange(9) + 1
    for compute in (
        lambda x, **o: csoftmax.crf_loss_with_grad(x, labels, transitions, **o).grad_emissions,
        lambda x, **o: csoftmax.crf_marginals(x, transitions, **o).tags,
    ):
        for options in ({}, {"lengths": lengths}, {"mask": np.arange(11) % 3 > 0}):
            expected = compute(x, **options)
            memory = np.zeros(2 * x.size, x.dtype)
            for begin in (0, 1, x.size // 2, x.size):
                out = memory[begin : begin + x.size].reshape(x.shape)
                source = memory[: x.size].reshape(x.shape)
                source[...] = x
                got = compute(source, out=out, **options)
                assert got is out
                assert_same_bits(out, expected, f"{begin} {list(options)}")
            turned = np.zeros((11, 6, 9), x.dtype).transpose(2, 0, 1)
            assert compute(x, out=turned, **options) is turned
            assert_same_bits(np.ascontiguousarray(turned), expected)


def test_layouts_of_the_arguments():
    _, x, transitions, labels = random_batch(13)
    expected = csoftmax.crf_loss_with_grad(x, labels, transitions)
    strided = np.zeros((9, 22, 12))[:, ::2, ::2]
    strided[...] = x
    result = csoftmax.crf_loss_with_grad(
        strided, np.asfortranarray(labels.astype("u1")), np.asfortranarray(transitions.astype(">f8"))
    )
    assert_same_results(result[:3], expected[:3])
    deep = csoftmax.crf_loss_with_grad(x.reshape(3, 3, 11, 6), labels.reshape(3, 3, 11), transitions, reduction="none")
    assert deep.loss.shape == (3, 3)
    assert_same_bits(deep.grad_transitions, csoftmax.crf_loss_with_grad(x, labels, transitions, reduction="none")[2])


@pytest.mark.promise("quick", "crf_loss_with_grad")
@pytest.mark.promise("quick", "crf_marginals")
@pytest.mark.promise("quick", "crf_decode")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_plain_calls_equal_the_checked_ones(dtype, monkeypatch):
    """Plain calls skip the checks in Python; device="cpu" forces them."""
    rng, x, transitions, labels = random_batch(14)
    x, transitions = x.astype(dtype), transitions.astype("f4")
    start, lengths = rng.standard_normal(6), np.arange(9)
    taken = []
    for name in ("quick_crf_loss", "quick_crf_marginals", "quick_crf_decode"):
        real = getattr(binding, name)
        monkeypatch.setattr(binding, name, lambda *a, real=real: taken.append(real(*a)) or taken[-1])
    for options in ({}, {"start": start}, {"lengths": lengths}, {"start": start, "end": start, "lengths": lengths}):
        for reduction in ("mean", "sum", "token_mean"):
            got = csoftmax.crf_loss_with_grad(x, labels, transitions, reduction=reduction, **options)
            checked = csoftmax.crf_loss_with_grad(x, labels, transitions, reduction=reduction, device="cpu", **options)
            same_kinds(got, checked)
        same_kinds(
            csoftmax.crf_marginals(x, transitions, **options),
            csoftmax.crf_marginals(x, transitions, device="cpu", **options),
        )
        same_kinds(
            csoftmax.crf_decode(x, transitions, **options),
            csoftmax.crf_decode(x, transitions, device="cpu", **options),
        )
    same_kinds(
        csoftmax.crf_loss_with_grad(x[0], labels[0], transitions),
        csoftmax.crf_loss_with_grad(x[0], labels[0], transitions, device="cpu"),
    )
    assert len(taken) == 21
    assert all(result is not None for result in taken)


def same_kinds(got, expected):
    assert type(got) is type(expected)
    for a, b in zip(got, expected, strict=True):
        assert type(a) is type(b)
        if a is not None:
            assert_same_bits(np.asarray(a), np.asarray(b))


def test_calls_that_are_not_plain_are_checked():
    _, x, transitions, labels = random_batch(15)
    bad = labels.copy()
    bad[2, 3] = 6
    with pytest.raises(IndexError, match=r"tags\[2, 3\] is 6: the tags are 0 to 5"):
        csoftmax.crf_loss_with_grad(x, bad, transitions)
    with pytest.raises(ValueError, match="lengths must be from 0 to 11"):
        csoftmax.crf_loss_with_grad(x, labels, transitions, lengths=np.full(9, 12))
    with pytest.raises(ValueError, match="transitions has shape"):
        csoftmax.crf_decode(x, transitions[:5])
    out = x.copy()
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        csoftmax.crf_marginals(x, transitions, out=out)
    with pytest.raises(ValueError, match="num_threads must be at least 1"):
        csoftmax.crf_decode(x, transitions, num_threads=0)


def test_torchcrf_agrees():
    torchcrf = pytest.importorskip("torchcrf")
    torch = pytest.importorskip("torch")
    rng, x, _, labels = random_batch(16)
    model = torchcrf.CRF(6, batch_first=True).double()
    with torch.no_grad():
        for p in model.parameters():
            p.uniform_(-1, 1)
    transitions, start, end = (
        p.detach().numpy() for p in (model.transitions, model.start_transitions, model.end_transitions)
    )
    lengths = rng.integers(1, 12, 9)
    mask = torch.tensor(np.arange(11) < lengths[:, None])
    emissions = torch.tensor(x, requires_grad=True)
    loss = -model(emissions, torch.tensor(labels), mask=mask, reduction="sum")
    loss.backward()
    options = {"start": start, "end": end, "lengths": lengths}
    result = csoftmax.crf_loss_with_grad(x, labels, transitions, reduction="sum", **options)
    np.testing.assert_allclose(result.loss, loss.item(), rtol=1e-12)
    np.testing.assert_allclose(result.grad_emissions, emissions.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose(result.grad_transitions, model.transitions.grad.numpy(), atol=1e-11)
    tags = csoftmax.crf_decode(x, transitions, **options).tags
    assert [list(row[:n]) for row, n in zip(tags, lengths)] == model.decode(emissions, mask=mask)
