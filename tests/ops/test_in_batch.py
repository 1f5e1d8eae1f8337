"""Softmax over the candidates of a batch: the formula, masks, corrections, both directions, gradients."""

import ml_dtypes
import numpy as np
import pytest

import csoftmax
from csoftmax._ops import in_batch

DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
TOLERANCES = {np.float64: 1e-12, np.float32: 2e-5, np.float16: 3e-3, ml_dtypes.bfloat16: 3e-2}


def expected_of(x, y, target=None, ids=None, log_q=None, mask=None, correction="ranking", symmetric=False,
                sample_weight=None, temperature=1.0, reduction="mean", upstream=1.0):  # fmt: skip
    """The loss and both gradients in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n = len(x)
    target = np.arange(n) if target is None else target
    s = np.ones(n) if sample_weight is None else np.asarray(sample_weight, np.float64)

    def direction(z, ids, mask, log_q, left_out=False):
        losses, g = np.zeros(n), np.zeros((n, z.shape[1]))
        for i in range(n):
            u = z[i].copy()
            if log_q is not None and correction != "none":
                u -= log_q
                if correction == "partition":
                    u[target[i]] += log_q[target[i]]
            takes_part = np.ones(len(u), bool)
            if ids is not None:
                takes_part &= ids != ids[target[i]]
            if mask is not None:
                takes_part &= ~mask[i]
            takes_part &= ~np.broadcast_to(left_out, len(u))
            takes_part[target[i]] = True
            u[~takes_part] = -np.inf
            e = np.exp(u - u.max())
            losses[i] = s[i] * (np.log(e.sum()) + u.max() - u[target[i]])
            g[i] = s[i] * (e / e.sum())
            g[i, target[i]] -= s[i]
        return losses, g

    z = x @ y.T / temperature
    losses, g = direction(z, ids, mask, log_q)
    if symmetric:
        others, h = direction(z.T, ids, None if mask is None else mask.T, None, s == 0)
        losses, g = (losses + others) / 2, (g + h.T) / 2
        assert np.ndim(upstream) == 0
    factor = 1 / s.sum() if reduction == "mean" else 1.0
    g = g * np.broadcast_to(upstream, n)[:, None] * factor / temperature
    return losses if reduction == "none" else losses.sum() * factor, g @ y, g.T @ x


@pytest.mark.parametrize("seed", range(48))
def test_losses_and_gradients(seed):
    rng = np.random.default_rng(seed)
    dtype = DTYPES[seed % 4]
    n, d = int(rng.integers(1, 20)), int(rng.integers(1, 9))
    m = n + int(rng.integers(0, 6))
    symmetric = seed % 5 == 0
    m = n if symmetric else m
    x, y = (0.5 * rng.normal(size=(n, d))).astype(dtype), (0.5 * rng.normal(size=(m, d))).astype(dtype)
    y = np.asfortranarray(y) if seed % 3 == 0 else y
    options = {
        "target": rng.integers(0, m, n) if seed % 7 == 1 and not symmetric else None,
        "ids": rng.integers(0, 1 + m // 2, m) if rng.random() < 0.5 else None,
        "log_q": np.log(rng.random(m)) if rng.random() < 0.6 else None,
        "mask": rng.random((n, m)) < 0.2 if rng.random() < 0.5 else None,
        "correction": ("ranking", "partition", "none")[seed % 3],
        "symmetric": symmetric,
        "sample_weight": rng.integers(0, 3, n) * 0.5 + (seed % 2) if rng.random() < 0.4 else None,
        "temperature": float(rng.choice([1.0, 0.3])),
        "reduction": ("none", "sum", "mean")[seed % 3],
    }
    upstream = rng.normal(size=n) if options["reduction"] == "none" and not symmetric else 0.75
    with np.errstate(all="ignore"):
        expected = expected_of(x, y, upstream=upstream, **options)
    chunks = {"chunk_bytes": 200 if seed % 2 else None}
    got = csoftmax.in_batch_softmax_loss_with_grad(x, y, upstream=upstream, **options, **chunks)
    assert np.array_equal(got.loss, csoftmax.in_batch_softmax_loss(x, y, **options, **chunks), equal_nan=True)
    if not np.all(np.isfinite(expected[0])):
        assert np.isnan(got.loss)
        return
    exact = 1e-12 if dtype == np.float64 else 3e-5
    np.testing.assert_allclose(got.loss, expected[0], exact, exact)
    for gradient, right in zip(got[1:], expected[1:], strict=True):
        assert gradient.dtype == x.dtype
        np.testing.assert_allclose(gradient.astype(float), right, TOLERANCES[dtype], 4 * TOLERANCES[dtype])


def test_finite_differences():
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(4, 3)), rng.normal(size=(6, 3))
    options = {"ids": [0, 1, 2, 1, 3, 0], "log_q": np.log(rng.random(6)), "temperature": 0.7}
    got = csoftmax.in_batch_softmax_loss_with_grad(*arrays, **options)[1:]
    for number, gradient in enumerate(got):
        for index in np.ndindex(gradient.shape):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [a.copy() for a in arrays]
                moved[number][index] += step
                sides.append(csoftmax.in_batch_softmax_loss(*moved, **options))
            assert gradient[index] == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=2e-9)


def test_a_constant_cancels_under_ranking_only():
    rng = np.random.default_rng(0)
    x, y, log_q = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), np.log(rng.random(5))
    same, other = (
        [csoftmax.in_batch_softmax_loss(x, y, log_q=log_q + c, correction=correction) for c in (0, 1)]
        for correction in ("ranking", "partition")
    )
    assert same[0] == pytest.approx(same[1], rel=1e-14)
    assert abs(other[0] - other[1]) > 0.05


def test_masked_candidates_have_no_influence_however_small_the_others_are():
    x, y = np.full((1, 1), 1.0), np.array([[-1e30], [5.0]])
    got = csoftmax.in_batch_softmax_loss_with_grad(x, y, mask=[[False, True]])
    assert got.loss == 0
    assert not np.any(got.grad_x)
    assert not np.any(got.grad_y)


def test_own_candidates_always_take_part():
    x = np.eye(2)
    assert csoftmax.in_batch_softmax_loss(x, x, mask=np.ones((2, 2), bool)) == 0


def test_ids_may_be_words():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 2)), rng.normal(size=(3, 2))
    words = csoftmax.in_batch_softmax_loss(x, y, ids=["a", "b", "a"])
    assert words == csoftmax.in_batch_softmax_loss(x, y, ids=[5, -9, 5])


def test_no_rows():
    got = csoftmax.in_batch_softmax_loss_with_grad(np.zeros((0, 2)), np.ones((3, 2)), reduction="sum")
    assert got.loss == 0
    assert got.grad_x.shape == (0, 2)
    assert not np.any(got.grad_y)


def test_chunks_bound_the_logits():
    """The losses do not depend on the chunks beyond the products of the BLAS."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 4))
    whole = csoftmax.in_batch_softmax_loss_with_grad(x, y)
    parts = csoftmax.in_batch_softmax_loss_with_grad(x, y, chunk_bytes=1)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, 1e-12, 1e-14)


def test_wrong_arguments():
    x, y = np.zeros((2, 3)), np.zeros((4, 3))
    for changes, error, message in (
        ({"y": np.zeros((4, 2))}, ValueError, r"x has shape \(2, 3\) and y \(4, 2\)"),
        ({"y": y.astype(np.float32)}, TypeError, "y has dtype float32"),
        ({"y": np.zeros((1, 3))}, ValueError, "y has 1 rows, x 2: without target"),
        ({"target": [0]}, ValueError, r"target has shape \(1,\)"),
        ({"target": [0, 4]}, IndexError, r"target\[1\] is 4"),
        ({"target": [0.5, 1]}, TypeError, "target must hold integers"),
        ({"ids": [1, 2]}, ValueError, "one id for each of 4 candidates, an integer or a string"),
        ({"log_q": [0.0]}, ValueError, "one value for each of 4 candidates"),
        ({"log_q": [0, 0, -np.inf, 0]}, ValueError, "log_q is -inf for candidate 2: it must be finite"),
        ({"log_q": ["a"] * 4}, TypeError, "log_q must hold real numbers"),
        ({"mask": np.zeros((2, 4))}, TypeError, "mask must be boolean"),
        ({"mask": np.zeros((2, 2), bool)}, ValueError, "mask has shape"),
        ({"symmetric": True}, ValueError, "symmetric needs as many candidates as rows"),
        ({"symmetric": 1}, TypeError, "symmetric must be a bool"),
        ({"correction": "all"}, ValueError, 'correction must be "ranking", "partition" or "none", got .all.'),
        ({"reduction": "avg"}, ValueError, "reduction must be"),
        ({"temperature": 0}, ValueError, "temperature must be positive"),
        ({"sample_weight": [1, -1]}, ValueError, "sample_weight must be at least 0"),
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be at least 1"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1"),
    ):
        with pytest.raises(error, match=message):
            csoftmax.in_batch_softmax_loss(**{"x": x, "y": y, **changes})


def test_a_row_of_weight_0_contributes_nothing_whatever_it_holds():
    rng = np.random.default_rng(0)
    x, y, mask = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), rng.random((5, 5)) < 0.2
    options = {"sample_weight": [0.0, 1.0, 2.0, 0.5, 3.0], "ids": [4, 4, 1, 2, 3], "mask": mask, "symmetric": True}
    right = csoftmax.in_batch_softmax_loss_with_grad(x, y, **options)
    x[0] = np.nan, np.inf, 1e300
    got = csoftmax.in_batch_softmax_loss_with_grad(x, y, **options)
    assert np.isfinite(got.loss)
    for a, b in zip(got, right, strict=True):
        assert np.array_equal(a, b)
    assert not got.grad_x[0].any()


@pytest.mark.parametrize("chunk_bytes", [None, 40])
def test_a_candidate_that_is_not_finite_reaches_only_rows_that_it_is_a_negative_of(chunk_bytes):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3)), np.concatenate([rng.normal(size=(4, 3)), [[np.nan] * 3, [np.inf] * 3]])
    mask = np.zeros((4, 6), bool)
    mask[:, 4] = mask[:3, 5] = True
    got = csoftmax.in_batch_softmax_loss_with_grad(x, y, mask=mask, reduction="none", chunk_bytes=chunk_bytes)
    right = csoftmax.in_batch_softmax_loss_with_grad(x[:3], y[:4], reduction="none")
    np.testing.assert_allclose(got.loss[:3], right.loss, 1e-14)
    np.testing.assert_allclose(got.grad_x[:3], right.grad_x, 1e-13)
    assert np.isnan(got.loss[3])
    mask[3, 5] = True
    got = csoftmax.in_batch_softmax_loss_with_grad(x, y, mask=mask)
    assert all(np.isfinite(a).all() for a in got)
    assert not got.grad_y[4:].any()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("correction", ["ranking", "partition"])
def test_each_row_may_have_its_own_temperature(dtype, correction):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 4)).astype(dtype), rng.normal(size=(8, 4)).astype(dtype)
    t, options = rng.random((2, 3, 1)) + 0.5, {"log_q": np.log(rng.random(8)), "correction": correction}
    upstream = rng.normal(size=(2, 3))
    got = csoftmax.in_batch_softmax_loss_with_grad(
        x, y, temperature=t, reduction="none", upstream=upstream, chunk_bytes=200, **options
    )
    grad_y, error = 0, {np.float64: 1e-13, np.float32: 2e-6}[dtype]
    for i, at in enumerate(np.ndindex(2, 3)):
        alone = {"target": [i], "temperature": float(t[at][0]), "reduction": "none", "upstream": upstream[at]}
        row = csoftmax.in_batch_softmax_loss_with_grad(x[at][None], y, **alone, **options)
        np.testing.assert_allclose(got.loss[at], row.loss[0], error)
        np.testing.assert_allclose(got.grad_x[at], row.grad_x[0], error, error)
        grad_y = grad_y + row.grad_y
    np.testing.assert_allclose(got.grad_y, grad_y, 4 * error, 4 * error)
    with pytest.raises(ValueError, match="symmetric needs one temperature"):
        csoftmax.in_batch_softmax_loss(x, y[:6], temperature=t, symmetric=True)
    with pytest.raises(ValueError, match=r"temperature has shape \(2, 3\)"):
        csoftmax.in_batch_softmax_loss(x, y, temperature=t[..., 0])


def test_one_temperature_in_any_shape():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    for options in ({"symmetric": True}, {}):
        expected = csoftmax.in_batch_softmax_loss_with_grad(x, y, temperature=0.3, **options)
        for given in (np.float32([0.3]).astype(float), np.array([0.3]), np.array([[0.3]]), np.full((5, 1), 0.3)):
            got = csoftmax.in_batch_softmax_loss_with_grad(x, y, temperature=given, **options)
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_allclose(a, b, 1e-6)
    none = csoftmax.in_batch_softmax_loss(x[:0], y[:0], temperature=np.ones(1), symmetric=True, reduction="sum")
    assert none == 0


def test_products_with_candidates_that_are_not_finite():
    """As candidate by candidate, where one with a factor of 0 adds 0."""
    rng = np.random.default_rng(0)
    for share in (0.05, 0.5, 1.0):
        factors, y = rng.normal(size=(40, 30)) * (rng.random((40, 30)) < 0.3), rng.normal(size=(30, 7))
        special = rng.choice([np.nan, np.inf, -np.inf, 1.0], p=[0.1, 0.3, 0.3, 0.3], size=y.shape)
        y = np.where(rng.random(y.shape) < share, special, y)
        factors[3], factors[:, 5] = 0, 0
        others = np.flatnonzero(~np.isfinite(y).all(axis=1))
        with np.errstate(invalid="ignore"):
            got = in_batch._multiply_parts(factors, y, others)
            expected = np.zeros(got.shape)
            for j in range(30):
                rows = np.flatnonzero(factors[:, j])
                expected[rows] += factors[rows, j, None] * y[j]
        np.testing.assert_allclose(got, expected, 1e-12, 1e-14)
        assert not got[3].any()
