"""Linear-chain CRF: NaN, infinities and empty sequences at every place; threads and signals."""

import numpy as np
import pytest
from helpers import assert_same_bits, assert_same_results
from helpers.signals import seconds_to_stop

import csoftmax
from csoftmax._cpu import binding
from csoftmax._spec.formats import NAN_BITS, bits, dtype_of

N, T, TAGS = 4, 5, 3


def batch(dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, T, TAGS)).astype(dtype_of(dtype))
    return x, rng.integers(0, TAGS, (N, T)), rng.standard_normal((TAGS, TAGS)), rng.standard_normal(TAGS)


def results_of(x, labels, transitions, start=None, end=None):
    """Return the results of all functions; each has one row a sequence, but for gradients of parameters."""
    options = {"start": start, "end": end}
    loss = csoftmax.crf_loss_with_grad(x, labels, transitions, reduction="none", **options)
    marginals = csoftmax.crf_marginals(x, transitions, pairs="sum", **options)
    each = csoftmax.crf_marginals(x, transitions, pairs="each", **options).pairs
    decoded = {m: csoftmax.crf_decode(x, transitions, method=m, log_prob=True, **options) for m in binding.CRF_METHODS}
    return {
        "log Z": csoftmax.crf_log_partition(x, transitions, **options),
        "score": csoftmax.crf_score(x, labels, transitions, **options),
        "loss": loss.loss,
        "gradient": loss.grad_emissions,
        "marginals": marginals.tags,
        "pairs": marginals.pairs,
        "each": each,
        "marginals' log Z": marginals.log_partition,
        "draws": csoftmax.crf_sample(x, transitions, rng=0, **options),
        **{f"{m} tags": d.tags for m, d in decoded.items()},
        **{f"{m} score": d.score for m, d in decoded.items()},
        **{f"{m} log_prob": d.log_prob for m, d in decoded.items()},
        "grad_transitions": loss.grad_transitions,
    }


def check(found, row, log_z, score, dtype="float64"):
    """A sequence without marginals: log Z and scores as given, everything else NaN or filled."""
    for name, value in found.items():
        here = value if name == "grad_transitions" else value[row]
        if "tags" in name or name == "draws":
            assert np.all(here == -1), name
        elif "log Z" in name:
            assert np.array_equal(here, log_z, equal_nan=True), name
        elif name.endswith("score"):
            assert np.array_equal(here, score, equal_nan=True), name
        else:
            assert np.isnan(here).all(), name
            assert np.all(bits(here) == NAN_BITS[here.dtype.name]), name


@pytest.mark.promise("special_values", "crf_log_partition")
@pytest.mark.promise("special_values", "crf_score")
@pytest.mark.promise("special_values", "crf_loss")
@pytest.mark.promise("special_values", "crf_loss_with_grad")
@pytest.mark.promise("special_values", "crf_marginals")
@pytest.mark.promise("special_values", "crf_decode")
@pytest.mark.promise("special_values", "crf_sample")
@pytest.mark.parametrize("slow", ["0", "1"])
def test_emissions_at_every_place(dtype, slow, monkeypatch):
    monkeypatch.setenv("CSOFTMAX_CRF_SLOW", slow)
    x, labels, transitions, start = batch(dtype)
    ordinary = results_of(x, labels, transitions, start)
    others = np.array([0, 1, 3])
    for t in range(T):
        for j in range(TAGS):
            for value, log_z, score in ((np.nan, np.nan, np.nan), (-np.nan, np.nan, np.nan), (np.inf, np.inf, np.nan)):
                spoilt = x.copy()
                spoilt[2, t, j] = value
                found = results_of(spoilt, labels, transitions, start)
                check(found, 2, log_z, score, dtype)
                for name, expected in ordinary.items():
                    if name not in ("grad_transitions", "draws"):
                        assert_same_bits(found[name][others], expected[others], name)
        spoilt = x.copy()
        spoilt[2, t] = -np.inf
        found = results_of(spoilt, labels, transitions, start)
        assert found["score"][2] == -np.inf
        found["score"] = np.full(N, -np.inf)
        check(found, 2, -np.inf, -np.inf, dtype)
    both = x.copy()
    both[2, 0, 0], both[2, 4, 1] = np.inf, np.nan
    assert np.isnan(csoftmax.crf_log_partition(both, transitions)[2])


@pytest.mark.parametrize("slow", ["0", "1"])
def test_parameters_count_for_every_sequence(slow, monkeypatch):
    monkeypatch.setenv("CSOFTMAX_CRF_SLOW", slow)
    x, labels, transitions, start = batch()
    for value, log_z in ((np.nan, np.nan), (np.inf, np.inf)):
        for which in range(3):
            parameters = [transitions.copy(), start.copy(), start.copy()]
            parameters[which].flat[-1] = value
            found = results_of(x, labels, *parameters)
            for row in range(N):
                check(found, row, log_z, np.nan)
    for which in (1, 2):
        parameters = [transitions, start, start]
        parameters[which] = np.full(TAGS, -np.inf)
        found = results_of(x, labels, *parameters)
        for row in range(N):
            check(found, row, -np.inf, -np.inf)
    found = results_of(x, labels, np.full((TAGS, TAGS), -np.inf))
    check(found, 0, -np.inf, -np.inf)
    single = csoftmax.crf_marginals(x[:, :1], np.full((TAGS, TAGS), -np.inf), pairs="sum")
    assert np.isfinite(single.log_partition).all()  # no transition takes part
    assert not single.pairs.any()


def test_empty_sequences():
    """They read nothing, count for nothing, and have one path, of score 0."""
    nan = np.full((TAGS, TAGS), np.nan)
    for x, labels, options in (
        (np.full((2, T, TAGS), np.nan), np.full((2, T), 99), {"lengths": [0, 0]}),
        (np.full((2, T, TAGS), np.nan), np.full((2, T), 99), {"mask": False}),
        (np.zeros((0, TAGS)), np.zeros(0, int), {"indptr": [0, 0, 0]}),
        (np.zeros((2, 0, TAGS)), np.zeros((2, 0), int), {}),
    ):
        options = {**options, "start": nan[0], "end": nan[0]}
        assert np.array_equal(csoftmax.crf_log_partition(x, nan, **options), [0, 0])
        assert np.array_equal(csoftmax.crf_score(x, labels, nan, **options), [0, 0])
        result = csoftmax.crf_loss_with_grad(x, labels, nan, reduction="none", **options)
        assert np.array_equal(result.loss, [0, 0])
        for reduction in ("mean", "token_mean", "sum"):
            mean = csoftmax.crf_loss_with_grad(x, labels, nan, reduction=reduction, **options)
            assert mean.loss == 0 if reduction == "sum" else np.isnan(mean.loss)
            assert all(not g.any() for g in (*result[1:], *mean[1:]))
        marginals = csoftmax.crf_marginals(x, nan, pairs="sum", **options)
        assert not marginals.tags.any()
        assert not marginals.pairs.any()
        assert not csoftmax.crf_marginals(x, nan, pairs="each", **options).pairs.any()
        for method in binding.CRF_METHODS:
            decoded = csoftmax.crf_decode(x, nan, method=method, log_prob=True, fill=-9, **options)
            assert np.all(decoded.tags == -9)
            assert np.array_equal(decoded.score, [0, 0])
            assert np.array_equal(decoded.log_prob, [0, 0])
        best = csoftmax.crf_decode(x, nan, n_best=2, **options)
        assert np.array_equal(best.score, [[0, -np.inf]] * 2)
        assert np.all(csoftmax.crf_sample(x, nan, size=2, **options) == -1)


def test_no_sequences_and_no_tags():
    transitions = np.zeros((TAGS, TAGS))
    assert csoftmax.crf_log_partition(np.zeros((0, 4, TAGS)), transitions).shape == (0,)
    assert np.isnan(csoftmax.crf_loss(np.zeros((0, 4, TAGS)), np.zeros((0, 4), int), transitions))
    result = csoftmax.crf_loss_with_grad(np.zeros((0, TAGS)), [], transitions, indptr=[0], reduction="sum")
    assert result.loss == 0
    assert not result.grad_transitions.any()
    none = np.zeros((0, 0))
    assert np.array_equal(csoftmax.crf_log_partition(np.zeros((2, 3, 0)), none), [-np.inf, -np.inf])
    assert np.all(csoftmax.crf_decode(np.zeros((2, 3, 0)), none).tags == -1)
    with pytest.raises(IndexError, match="there is no tag"):
        csoftmax.crf_loss(np.zeros((2, 3, 0)), np.zeros((2, 3), int), none)


def test_one_tag_is_certain():
    x = np.array([[[1.5], [-3.0], [2.25]]])
    result = csoftmax.crf_loss_with_grad(x, [[0, 0, 0]], [[0.75]])
    assert result.loss == 0
    assert all(not g.any() for g in result[1:3])
    assert abs(csoftmax.crf_log_partition(x, [[0.75]])[0] - 2.25) <= 1e-15


def test_an_impossible_label_among_possible_paths():
    x, labels, transitions, start = batch()
    x[1, 2, labels[1, 2]] = -np.inf
    result = csoftmax.crf_loss_with_grad(x, labels, transitions, start=start, reduction="none")
    assert result.loss[1] == np.inf
    assert np.isfinite(result.loss[[0, 2, 3]]).all()
    marginals = csoftmax.crf_marginals(x, transitions, start=start)
    counts = np.arange(TAGS) == labels[1][:, None]
    assert_same_bits(result.grad_emissions[1], marginals.tags[1] - counts)


def test_labels_are_checked_before_anything_is_written():
    x, labels, transitions, _ = batch()
    out = np.full_like(x, 7)
    for bad in (-1, TAGS, 2**40, -(2**40)):
        spoilt = labels.copy()
        spoilt[3, 4] = bad
        for reduction in ("mean", "none"):
            with pytest.raises(IndexError, match=rf"tags\[3, 4\] is {bad}: the tags are 0 to 2, and ignore_index"):
                csoftmax.crf_loss_with_grad(x, spoilt, transitions, out=out, reduction=reduction)
        with pytest.raises(IndexError, match=rf"tags\[3, 4\] is {bad}: the tags are 0 to 2"):
            csoftmax.crf_score(x, spoilt, transitions)
        assert np.all(out == 7)
        csoftmax.crf_loss(x, spoilt, transitions, lengths=[T, T, T, T - 1])  # it is not looked at
    unsigned = labels.astype("u8")
    unsigned[0, 0] = 2**64 - 100
    with pytest.raises(IndexError, match=f"is {2**64 - 100}"):
        csoftmax.crf_loss(x, unsigned, transitions)
    zero_unknown = csoftmax.crf_loss(x, labels, transitions, ignore_index=0)
    assert_same_bits(zero_unknown, csoftmax.crf_loss(x, np.where(labels == 0, -100, labels), transitions))


def test_generators_are_left_as_they_were_by_a_call_that_raises():
    x, _, transitions, _ = batch()
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    with pytest.raises(ValueError, match="transitions has shape"):
        csoftmax.crf_sample(x, transitions[:2], rng=rng)
    assert rng.bit_generator.state == before
    first = csoftmax.crf_sample(x, transitions, rng=[1, 2, 3, 4], size=2)
    again = csoftmax.crf_sample(x[2:3], transitions, rng=[3], size=2)
    assert np.array_equal(first[2:3], again)


def test_masked_positions_consume_no_uniforms():
    x, _, transitions, _ = batch()
    rng = np.random.default_rng(5)
    csoftmax.crf_sample(x, transitions, lengths=[5, 0, 2, 3], size=3, rng=rng)
    expected = np.random.default_rng(5)
    expected.random(30)
    assert rng.random() == expected.random()


@pytest.mark.parametrize(("count", "length", "tags"), [(333, 40, 4), (333, 40, 9), (333, 40, 30), (9001, 3, 5)])
def test_threads_give_the_same_bits(count, length, tags, seven_threads):
    """Few sequences are summed one by one, many in blocks of 32 by the thread that computes them, in several groups."""
    rng = np.random.default_rng(tags)
    x, labels = rng.standard_normal((count, length, tags)), rng.integers(0, tags, (count, length))
    transitions, lengths = rng.standard_normal((tags, tags)), rng.integers(0, length + 1, count)

    def compute(threads):
        options = {"lengths": lengths, "num_threads": threads}
        return (
            *csoftmax.crf_loss_with_grad(x, labels, transitions, **options)[:3],
            *csoftmax.crf_marginals(x, transitions, pairs="sum", **options),
            *csoftmax.crf_decode(x, transitions, **options)[:2],
            csoftmax.crf_sample(x, transitions, rng=1, **options),
        )

    expected = compute(1)
    for threads in (2, 3, 7):
        assert_same_results(compute(threads), expected, f"{threads} threads")


def test_a_long_sequence_can_be_interrupted():
    """One sequence is computed by one thread, which asks for signals within it."""
    x, transitions = np.zeros((3_000_000, 9), "f4"), np.zeros((9, 9))
    shorter = x[:40_000]
    for call in (
        lambda: csoftmax.crf_loss_with_grad(x, np.zeros(len(x), int), transitions),
        lambda: csoftmax.crf_decode(x, transitions),
        lambda: csoftmax.crf_decode(x, transitions, method="posterior_path"),
        lambda: csoftmax.crf_decode(shorter, transitions, n_best=30),
    ):
        assert seconds_to_stop(call) < 1


def test_no_kernels_for_cuda():
    with pytest.raises(csoftmax.DeviceError):
        csoftmax.crf_log_partition(np.zeros((2, 3)), np.zeros((3, 3)), device="cuda")


def test_sums_that_overflow():
    """They are infinite: NaN in a result comes from NaN, +inf or the lack of a path."""
    for score, log_z in ((1e308, np.inf), (-1.7e308, -np.inf)):
        assert csoftmax.crf_log_partition(np.full((3, 2), score), np.zeros((2, 2))) == log_z
