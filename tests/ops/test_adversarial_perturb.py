"""Perturbations: the definition of each method, its ball and box, and the exact optimum as a bound."""

import itertools
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from helpers import looped
from helpers.signals import seconds_to_stop

import csoftmax
import csoftmax._ops.adversarial_perturb as module
from csoftmax._cpu import binding
from csoftmax.adversarial import certify, perturb, trades_loss_with_grad

INF = math.inf
NORMS = (1, 2, INF)


def problem(seed=0, n=40, d=9, k=4, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (n, d))
    x[rng.random((n, d)) < 0.2] = 0
    w, bias = rng.normal(size=(k, d)), rng.normal(size=k)
    return x.astype(dtype), w.astype(dtype), bias.astype(dtype), rng.integers(0, k, n)


def gradient_of(x, w, bias, y):
    p = csoftmax.softmax(x @ w.T + bias)
    p[np.arange(len(x)), y] -= 1
    return p @ w


def steepest(g, norm):
    if norm == INF:
        return np.sign(g)
    if norm == 2:
        return g / np.linalg.norm(g, axis=1, keepdims=True)
    direction = np.zeros_like(g)
    at = np.arange(len(g)), np.abs(g).argmax(axis=1)
    direction[at] = np.sign(g[at])
    return direction


def project(d, eps, norm):
    if norm == INF:
        return np.clip(d, -eps, eps)
    if norm == 2:
        return d * np.minimum(1, eps / np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-300))
    result = d.copy()
    for row in result:
        if np.abs(row).sum() > eps:
            low, high = 0.0, np.abs(row).max()
            for _ in range(200):
                cut = (low + high) / 2
                low, high = (cut, high) if np.maximum(np.abs(row) - cut, 0).sum() > eps else (low, cut)
            row[:] = np.sign(row) * np.maximum(np.abs(row) - high, 0)
    return result


@pytest.mark.parametrize("norm", NORMS)
def test_fgsm_and_pgd_are_their_definitions(norm):
    x, w, bias, y = problem()
    eps = {1: 0.8, 2: 0.4, INF: 0.1}[norm]
    step = steepest(gradient_of(x, w, bias, y), norm) * eps
    np.testing.assert_allclose(perturb(x, w, y, bias=bias, eps=eps, norm=norm, method="fgsm"), x + step, rtol=1e-12)
    d = np.random.default_rng(7).uniform(-eps, eps, x.shape)
    d = np.clip(x + project(d, eps, norm), 0, 1) - x
    for _ in range(5):
        d = d + steepest(gradient_of(x + d, w, bias, y), norm) * 0.13
        d = np.clip(x + project(d, eps, norm), 0, 1) - x
    options = {"bias": bias, "eps": eps, "norm": norm, "bounds": (0, 1), "random_start": True, "rng": 7}
    got = perturb(x, w, y, steps=5, step_size=0.13, **options)
    np.testing.assert_allclose(got, x + d, atol=1e-12)
    again = perturb(x, w, y, steps=5, step_size=0.13, **{**options, "rng": np.random.RandomState(3)})
    assert np.abs(again - got).max() > 1e-3
    default = perturb(x, w, y, steps=5, **options)
    np.testing.assert_array_equal(default, perturb(x, w, y, steps=5, step_size=2.5 * eps / 5, **options))


def climb_slowly(x, w, bias, y, eps, norm, steps, bounds):
    """Projected gradient ascent by its definition."""
    d, step = np.zeros_like(x), 2.5 * eps / steps
    for _ in range(steps):
        d = project(d + steepest(gradient_of(x + d, w, bias, y), norm) * step, eps, norm)
        d = d if bounds is None else np.clip(x + d, *bounds) - x
    return x + d


SIZES = [(1, 1, 2), (3, 2, 3), (15, 3, 5), (16, 5, 4), (17, 7, 6), (31, 15, 7), (32, 16, 12), (33, 33, 13), (40, 65, 3)]


@looped("size", SIZES)
@pytest.mark.parametrize("norm", NORMS)
def test_every_size_is_its_definition(size, norm):
    """Rows fill blocks and classes and features tiles, or do not."""
    n, d, k = size
    x, w, bias, y = problem(n, n, d, k)
    eps = {1: 0.8, 2: 0.4, INF: 0.1}[norm]
    for bounds in (None, (0, 1)):
        options = {"eps": eps, "norm": norm, "steps": 4, "bounds": bounds}
        expected = climb_slowly(x, w, bias, y, **options)
        np.testing.assert_allclose(perturb(x, w, y, bias=bias, **options), expected, atol=1e-12)
        x32, w32, bias32 = (a.astype(np.float32) for a in (x, w, bias))
        near = climb_slowly(*(a.astype(float) for a in (x32, w32, bias32)), y, **options)
        got = perturb(x32, w32, y, bias=bias32, **options)
        # rounding errors may decide which of two coordinates, or which sign, is next: in few rows
        assert np.mean(np.abs(got - near).max(axis=1) > 1e-5) < 0.1


def test_blocks_threads_and_instruction_sets_have_the_same_bits(keep_isa):
    for dtype, norm, bounds in itertools.product((np.float64, np.float32), NORMS, (None, (0, 1))):
        x, w, bias, y = problem(11, n=70, d=37, k=11, dtype=dtype)
        x[3] = 0.5
        w[:, 5] = w[0, 5]
        rows = np.random.default_rng(1).permutation(len(x))
        options = {"bias": bias, "eps": 0.3, "norm": norm, "steps": 6, "bounds": bounds}
        expected = perturb(x, w, y, **options)
        for isa in binding.isa_available():
            binding.select_isa(isa)
            for same in (x, np.asfortranarray(x)):
                np.testing.assert_array_equal(perturb(same, w, y, **options), expected)
            np.testing.assert_array_equal(perturb(x, w, y, num_threads=3, **options), expected)
            np.testing.assert_array_equal(perturb(x[rows], w, y[rows], **options), expected[rows])
            np.testing.assert_array_equal([perturb(x[i], w, y[i], **options) for i in range(20)], expected[:20])
        assert norm == 2 or (expected[:, 5] == x[:, 5]).all()  # scaling may round x


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_large_layers_take_products_of_the_blas_to_the_same_losses(monkeypatch, norm, dtype):
    x, w, bias, y = problem(12, n=300, d=40, k=10, dtype=dtype)
    unit = float(np.finfo(dtype).eps)
    for bounds in (None, (0, 1)):
        options = {"bias": bias, "eps": {1: 0.8, 2: 0.4, INF: 0.1}[norm], "norm": norm, "bounds": bounds}
        options |= {"random_start": True, "rng": 3}
        got = perturb(x, w, y, **options)
        with monkeypatch.context() as patch:
            patch.setattr(module, "CACHED_BYTES", 0)
            large = perturb(x, w, y, **options)
        ours, theirs = (
            csoftmax.linear_cross_entropy(
                a.astype(float), w.astype(float), y, bias=bias.astype(float), reduction="none"
            )
            for a in (got, large)
        )
        # steps go to and fro at the end, to which side depends on rounding errors
        assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=1e-3)
        assert np.quantile(np.abs(ours - theirs), 0.8) < 100 * unit


@looped("norm", NORMS)
def test_perturbations_are_within_the_ball_in_exact_arithmetic(norm):
    for seed, dtype in itertools.product(range(3), (np.float64, np.float32)):
        x, w, bias, y = problem(seed, n=33, d=21, k=5, dtype=dtype)
        x[:] = 0  # so that x' is the perturbation
        unit = Fraction(float(np.finfo(dtype).eps))
        for eps in (1e-3, 0.3, 7.0):
            got = perturb(x, w, y, bias=bias, eps=eps, norm=norm, steps=9, random_start=True, rng=seed)
            limit = Fraction(eps) * (1 + (21 * unit if norm == 1 else unit))
            for row in got:
                sizes = [abs(Fraction(float(v))) for v in row]
                if norm == 2:
                    assert sum(v * v for v in sizes) <= limit * limit
                else:
                    assert (max(sizes) if norm == INF else sum(sizes)) <= limit


def test_steps_of_the_one_norm_take_the_first_of_equal_coordinates():
    w = np.array([[1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    for dtype in (np.float64, np.float32):
        moved = perturb(np.zeros((20, 3), dtype), w.astype(dtype), [0, 1] * 10, eps=0.5, norm=1, method="fgsm")
        np.testing.assert_array_equal(moved, [[-0.5, 0, 0], [0.5, 0, 0]] * 10)


@looped("value", [math.nan, INF, -INF, 1e308])
def test_special_numbers_stay_in_their_rows(value):
    x, w, bias, y = problem(13, n=18, d=5, k=3)
    for norm in NORMS:
        options = {"bias": bias, "eps": 0.2, "norm": norm, "steps": 3}
        expected = perturb(x, w, y, **options)
        for row, feature in itertools.product((0, 7, 15, 17), range(5)):
            other = x.copy()
            other[row, feature] = value
            wanted = expected.copy()
            wanted[row] = perturb(other[row], w, y[row], **options)
            np.testing.assert_array_equal(perturb(other, w, y, **options), wanted)
            if not math.isfinite(value):
                np.testing.assert_array_equal(wanted[row], other[row])
        if value != 1e308:  # in the layer
            for place in range(3):
                b, v = bias.copy(), w.copy()
                b[place] = v[place, 1] = value
                for layer in ({"w": w, "bias": b}, {"w": v, "bias": bias}):
                    got = perturb(x[1:2], target=y[1:2], eps=0.2, norm=norm, steps=3, **layer)
                    np.testing.assert_array_equal(got, x[1:2])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_many_steps_can_be_interrupted():
    x, w, bias, y = problem(14, n=64, d=64, k=10)
    assert seconds_to_stop(lambda: perturb(x, w, y, bias=bias, eps=0.1, steps=10**9)) < 1


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_results_stay_in_the_ball_and_in_the_box(dtype):
    x, w, bias, y = problem(1, dtype=dtype)
    unit = float(np.finfo(dtype).eps)
    for norm in NORMS:
        for method in ("fgsm", "pgd", "exact"):
            eps = {1: 0.7, 2: 0.3, INF: 0.07}[norm]
            got = perturb(x, w, y, bias=bias, eps=eps, norm=norm, method=method, bounds=(0, 1))
            assert got.dtype == dtype
            assert got.min() >= 0
            assert got.max() <= 1
            length = np.linalg.norm((got.astype(float) - x.astype(float)), ord=norm, axis=1)
            assert length.max() <= eps + unit * x.shape[1]
            assert np.abs(got.astype(float) - x.astype(float)).max() > 0
    low = np.nextafter(np.float64(0.1), 1)  # no number of a narrower type
    inside = np.clip(x, np.nextafter(dtype(low), dtype(1)), 1)
    assert (perturb(inside, w, y, bias=bias, eps=0.5, bounds=(low, 2.0)).astype(float) >= low).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_exact_changes_the_class_by_little_more_than_the_radius(dtype):
    x, w, bias, _ = problem(2, n=60, dtype=dtype)
    y = np.array(
        [
            max(
                range(4),
                key=lambda j, r=r: (
                    sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(w[j], r)) + Fraction(float(bias[j]))
                ),
            )
            for r in x
        ]
    )
    for norm in NORMS:
        for bounds in (None, (0, 1)):
            radius, rival, _ = certify(x, w, bias=bias, target=y, norm=norm, bounds=bounds)
            moved = perturb(x, w, y, bias=bias, eps=1e3, norm=norm, method="exact", bounds=bounds)
            reached = radius < INF
            logits = moved @ w.T + bias
            assert (logits.argmax(axis=1)[reached] == rival[reached]).all()
            np.testing.assert_array_equal(moved[~reached], x[~reached])
            length = np.linalg.norm(moved.astype(float) - x, ord=norm, axis=1)
            tolerance = 1e-11 if dtype == np.float64 else 1e-4
            assert (length[reached] <= radius[reached] * (1 + tolerance) + tolerance * 1e-1).all()
            if dtype == np.float64:
                assert (length[reached] > radius[reached] * (1 - 1e-13)).all()
            # no attack changes the class within the radius
            small = np.min(radius) * (1 - (1e-12 if dtype == np.float64 else 1e-4))
            for method in ("pgd", "fgsm", "exact"):
                near = perturb(x, w, y, bias=bias, eps=small, norm=norm, method=method, bounds=bounds)
                assert ((near @ w.T + bias).argmax(axis=1) == y).all()


def test_exact_moves_by_eps_where_the_rival_is_further_away():
    x, w, bias, _ = problem(3)
    y = (x @ w.T + bias).argmax(axis=1)
    for norm in NORMS:
        radius, rival, _margin = certify(x, w, bias=bias, norm=norm)
        eps = float(np.median(radius))
        moved = perturb(x, w, y, bias=bias, eps=eps, norm=norm, method="exact")
        far = radius > eps
        np.testing.assert_allclose(np.linalg.norm(moved - x, ord=norm, axis=1)[far], eps, rtol=1e-12)
        z = moved @ w.T + bias
        rows = np.flatnonzero(far)
        gap = z[rows, y[rows]] - z[rows, rival[rows]]
        q = {1: INF, 2: 2, INF: 1}[norm]
        dual = np.linalg.norm(w[rival[rows]] - w[y[rows]], ord=q, axis=1)
        before = (x @ w.T + bias)[rows, y[rows]] - (x @ w.T + bias)[rows, rival[rows]]
        np.testing.assert_allclose(gap, before - eps * dual, atol=1e-12)
        # rows that are wrong already stay
        wrong = perturb(x, w, rival, bias=bias, eps=eps, norm=norm, method="exact")
        np.testing.assert_array_equal(wrong, x)


def test_vat_follows_the_largest_curvature():
    x, w, bias, _ = problem(4, n=20)
    fixed = x @ w.T + bias
    moved = perturb(x, w, None, bias=bias, eps=0.3, method="vat", steps=300)
    for row, z, p in zip(moved - x, fixed, csoftmax.softmax(fixed)):
        hessian = w.T @ (np.diag(p) - np.outer(p, p)) @ w
        values, vectors = np.linalg.eigh(hessian)
        assert abs(vectors[:, -1] @ row) == pytest.approx(0.3, rel=1e-9) or values[-1] / values[-2] < 1.1
        other = csoftmax.softmax(z - row @ w.T)
        here = csoftmax.softmax(z + row @ w.T)
        assert p @ np.log(p / here) >= p @ np.log(p / other) * (1 - 1e-9)
    assert perturb(x, w, None, bias=bias, eps=0.3, method="vat", steps=1, rng=0).shape == x.shape
    # the squares of small probabilities underflow, the direction does not until p itself is one-hot in float64
    for dtype in (np.float32, np.float64):
        features = np.array([[1, 0]], dtype)
        for margin, step in ((740, [-0.3, 0.3 / 740]), (746, [0, 0]), (1e6, [0, 0])):
            certain = perturb(features, np.array([[margin, 0], [0, 1]], dtype), None, eps=0.3, method="vat")
            np.testing.assert_allclose(certain - features, [step], rtol=1e-3)
        for scale in (1e-30, 1e30) if dtype == np.float32 else (1e-200, 1e200):
            args = (w * scale).astype(dtype), None
            far = perturb((x / scale).astype(dtype), *args, bias=bias.astype(dtype), eps=0.3 / scale, method="vat")
            near = perturb(x.astype(dtype), w.astype(dtype), None, bias=bias.astype(dtype), eps=0.3, method="vat")
            np.testing.assert_allclose(far * dtype(scale), near, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(perturb([[1.0, 2.0]], [[1.0, 0.0]], None, eps=0.3, method="vat"), [[1.0, 2.0]])


def test_gradients_do_not_vanish_where_the_model_is_certain():
    for dtype, size in ((np.float32, 120), (np.float32, 1e6), (np.float64, 900), (np.float64, 1e9)):
        x, w = np.array([[size, 0]], dtype), np.eye(2, dtype=dtype)
        eps = 0.6 * size
        for norm, moved in ((INF, [0.4, 0.6]), (2, [1 - 0.6 * 0.5**0.5, 0.6 * 0.5**0.5]), (1, [0.4, 0])):
            for method in ("fgsm", "pgd"):
                steps = 1 if norm == 1 else 10  # steps along one coordinate change sides
                got = perturb(x, w, [0], eps=eps, norm=norm, method=method, steps=steps, step_size=eps)
                np.testing.assert_allclose(got, [np.multiply(moved, size)], rtol=1e-5, atol=1e-5 * size)
        # the divergence of TRADES has two sides, of which the start chooses one
        result = trades_loss_with_grad(np.repeat(x, 40, axis=0), w, [0] * 40, eps=eps, rng=0, reduction="none")
        assert 0.2 < np.mean(result.loss > 0.5 * size) < 0.8
    # three classes: directions are those of softmax without the target
    x, w = np.array([[900.0, 0.0, 1.0]]), np.eye(3)
    step = perturb(x, w, [0], eps=1.0, norm=2, method="fgsm") - x
    shares = csoftmax.softmax([0.0, 1.0])
    direction = np.array([-1, *shares])
    np.testing.assert_allclose(step[0], direction / np.linalg.norm(direction), rtol=1e-12)


def test_the_euclidean_norm_of_many_features_stays_below_eps():
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=(n, 300_000)).astype(np.float32) for n in (2, 3))
    x *= np.float32(1e-3)
    for method in ("fgsm", "vat"):
        moved = perturb(x, w, None if method == "vat" else [0, 1], eps=1.0, norm=2, method=method)
        length = np.linalg.norm(moved.astype(float) - x, axis=1)
        assert (length <= 1).all()
        assert (length > 1 - 1e-6).all()


def test_another_model_is_attacked_by_its_gradient():
    x, w, bias, y = problem(5)
    seen = []

    def gradient(features):
        seen.append((features.shape, features.dtype))
        return gradient_of(features.reshape(40, 9), w, bias, y).reshape(features.shape)

    for norm in NORMS:
        expected = perturb(x, w, y, bias=bias, eps=0.2, norm=norm, steps=7, bounds=(0, 1))
        got = perturb(x.reshape(5, 8, 9), None, None, eps=0.2, norm=norm, steps=7, bounds=(0, 1), gradient=gradient)
        np.testing.assert_allclose(got.reshape(40, 9), expected, atol=1e-9)
    assert set(seen) == {((5, 8, 9), np.dtype(float))}
    assert len(seen) == 21
    with pytest.raises(ValueError, match="gradient must return an array of the shape of x"):
        perturb(x, None, None, eps=0.2, gradient=lambda features: features[0])
    with pytest.raises(TypeError, match="x has dtype object, because it is None"):
        perturb(None, None, None, eps=0.2, gradient=gradient)
    with pytest.raises(ValueError, match=r"x has shape \(\)"):
        perturb(1.0, None, None, eps=0.2, gradient=gradient)


def test_layouts_of_features_do_not_matter(monkeypatch):
    """With the kernel, through the BLAS, and with another model, whose steps meet features in any order of memory."""
    x, w, bias, y = problem(5)
    layouts = np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x[::-1].copy()[::-1]
    for cached in (1 << 20, 0):
        monkeypatch.setattr("csoftmax._ops.adversarial_perturb.CACHED_BYTES", cached)
        for norm in NORMS:
            for start in (False, True):
                options = {"eps": 0.2, "norm": norm, "steps": 3, "random_start": start, "rng": 0 if start else None}
                head = perturb(x, w, y, bias=bias, **options)
                other = perturb(x, None, None, gradient=np.cos, **options)
                for same in layouts:
                    np.testing.assert_allclose(perturb(same, w, y, bias=bias, **options), head, rtol=1e-12)
                    np.testing.assert_array_equal(perturb(same, None, None, gradient=np.cos, **options), other)


def test_the_gradient_stands_for_the_layer():
    """w, target and bias, which the signature asks for, are not read then, whatever they hold."""
    x, w, bias, y = problem(5)
    expected = perturb(x, None, None, eps=0.2, gradient=np.cos)
    np.testing.assert_array_equal(perturb(x, w, y, bias=bias, eps=0.2, gradient=np.cos), expected)
    np.testing.assert_array_equal(perturb(x, np.ones(3), "none", eps=0.2, gradient=np.cos), expected)


def test_threads_and_repetition_do_not_matter():
    x, w, bias, y = problem(6, n=200, d=33)
    for method in ("fgsm", "pgd", "exact", "vat"):
        one, other = (perturb(x, w, y, bias=bias, eps=0.1, method=method, steps=5, num_threads=n) for n in (1, 3))
        np.testing.assert_array_equal(one, other)


def test_special_rows():
    w, x = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[np.nan, 1.0], [np.inf, 0.0], [3.0, 1.0], [2.0, 2.0]])
    for method in ("fgsm", "pgd", "exact", "vat"):
        norm = 2 if method == "vat" else INF
        got = perturb(x, w, [0] * 4, eps=1.0, method=method, norm=norm, steps=3)
        np.testing.assert_array_equal(got[:2], x[:2])
        assert (got[2:] != x[2:]).any(axis=1).all()
        np.testing.assert_array_equal(perturb(x, w, [0] * 4, eps=0, method=method), x)
        assert perturb(x[:0], w, [], eps=1.0, method=method).shape == (0, 2)
        assert perturb(x[2], w, 0, eps=1.0, method=method).shape == (2,)
        assert perturb(np.zeros((3, 0)), np.zeros((2, 0)), [0, 1, 0], eps=1.0, method=method).shape == (3, 0)
        np.testing.assert_array_equal(perturb([[1.0]], [[2.0]], [0], eps=1.0, method=method), [[1.0]])
    assert perturb([[1, 2]], [[1, 0], [0, 1]], [0], eps=0.25).dtype == np.float64
    # a gradient of 0 does not move a row
    np.testing.assert_array_equal(perturb([[1.0, 2.0]], np.ones((3, 2)), [0], eps=1.0), [[1.0, 2.0]])
    for norm in NORMS:  # nor does it divide by it
        moved = perturb([[1.0, 2.0], [0.0, 1.0]], np.ones((3, 2)), [0, 1], eps=1.0, norm=norm)
        np.testing.assert_array_equal(moved, [[1.0, 2.0], [0.0, 1.0]])


def test_an_eps_that_overflows_is_refused():
    x, w = np.array([[3.0, 1.0]]), np.array([[2.0, 0.0], [0.0, 2.0]])
    for dtype, eps in ((np.float64, 1.7e308), (np.float32, 1e39), (np.float16, 1e5)):
        for method in ("pgd",) if dtype == np.float64 else ("fgsm", "pgd", "vat"):  # one step of float64 may suffice
            norm = 2 if method == "vat" else INF
            with pytest.raises(ValueError, match=r"eps.* is too large"):
                perturb(x.astype(dtype), w.astype(dtype), [0], eps=eps, method=method, norm=norm)
        moved = perturb(x.astype(dtype), w.astype(dtype), [0], eps=eps, method="exact")
        np.testing.assert_allclose(moved.astype(float), [[2.0, 2.0]], rtol=1e-2)
    with pytest.raises(ValueError, match="at least one row"):
        perturb(x, np.zeros((0, 2)), None, eps=1.0, method="vat")
    for gradient in (lambda x: x + 1j, lambda x: x > 0):
        with pytest.raises(TypeError, match="gradient must return an array of real numbers, got dtype"):
            perturb(x, None, None, eps=0.5, gradient=gradient)


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (ValueError, "method must be", {"method": "deepfool"}),
        (ValueError, "eps must be at least 0", {"eps": -1}),
        (ValueError, "eps must be at least 0", {"eps": INF}),
        (ValueError, "norm must be 1, 2 or numpy.inf", {"norm": 3}),
        (ValueError, "norm must be 2", {"norm": INF, "method": "vat"}),
        (ValueError, "steps must be at least 1", {"steps": 0}),
        (ValueError, "step_size must be at least 0", {"step_size": -1.0}),
        (TypeError, "random_start must be a bool", {"random_start": 1}),
        (ValueError, 'random_start is for method "pgd"', {"random_start": True, "method": "fgsm"}),
        (TypeError, "rng must be", {"rng": "a"}),
        (ValueError, "rng must be", {"rng": -1}),
        (TypeError, "gradient must be callable", {"gradient": 3}),
        (ValueError, "gradient is for method", {"gradient": abs, "method": "exact"}),
        (ValueError, "x must lie within bounds", {"bounds": (0, 1)}),
        (IndexError, "target.0. is 7", {"target": [7]}),
    ],
)
def test_errors_name_the_argument(error, text, options):
    given = {"target": [0], "eps": 0.1, **options}
    with pytest.raises(error, match=text):
        perturb(np.array([[0.5, 2.0]]), np.eye(2), **given)


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 18.0), (np.float64, 40.0)])
def test_features_that_hardly_any_mass_uses_move_the_right_way(monkeypatch, dtype, size, is_large):
    """The share of the class that uses feature 0 is far below the rounding errors of the other shares."""
    if is_large:
        monkeypatch.setattr(module, "CACHED_BYTES", 0)
    rng = np.random.default_rng(0)
    x = np.zeros((200, 6), dtype)
    x[:, 1:] = size + rng.uniform(-0.5, 0.5, (200, 5))
    w, y = np.diag([10.0, 1, 1, 1, 1, 1]).astype(dtype), np.ones(200, int)
    for order in itertools.chain([np.arange(6)], (rng.permutation(6) for _ in range(4))):
        target = np.flatnonzero(order == 1)[y - 1]
        moved = perturb(x, w[order], target, eps=5.0, method="fgsm")
        np.testing.assert_array_equal(moved, x + np.array([5, -5, 5, 5, 5, 5], dtype))
    for column in (1.0, 1 / 3, -7e5):  # features that tell no class apart stay
        w[:, 3] = column
        moved = perturb(x, w, y, eps=5.0, method="fgsm")
        np.testing.assert_array_equal(moved[:, 3], x[:, 3])
    # the weight of the target and its rival, and no other one: their shares are nearly 1 and -1
    w = np.array([[3.0, 1], [3.0, 1], [0, -30]], dtype)
    moved = perturb(np.full((40, 2), 0.5, dtype), w, [0, 1] * 20, eps=0.25, method="fgsm")
    np.testing.assert_array_equal(moved, [[0.25, 0.25]] * 40)


@looped("ratio", [1, 2.5, 1e2, 1e4, 1e6, 1e12, 1e30])
def test_long_steps_end_on_the_ball(ratio):
    for dtype, norm, is_large in itertools.product((np.float64, np.float32), NORMS, (False, True)):
        unit = Fraction(float(np.finfo(dtype).eps))
        for d in (1, 8, 40):
            _, w, _, y = problem(d, n=17, d=d, k=5, dtype=dtype)
            with pytest.MonkeyPatch.context() as patch:
                if is_large:
                    patch.setattr(module, "CACHED_BYTES", 0)
                got = perturb(np.zeros((17, d), dtype), w, y, eps=0.01, norm=norm, step_size=0.01 * ratio, steps=3)
            for row in got:
                sizes = [abs(Fraction(float(v))) for v in row]
                length = {1: sum(sizes), 2: sum(v * v for v in sizes), INF: max(sizes)}[norm]
                eps = Fraction(0.01) ** (2 if norm == 2 else 1)
                assert length <= eps * (1 + unit * (d if norm == 1 and is_large else d / 2 if norm == 1 else 2))
                assert length >= eps * (1 - unit * (4 * d if norm == 1 else 16))


@pytest.mark.parametrize(
    ("dtype", "powers"), [(np.float32, (-120, 120, 127)), (np.float64, (-1000, -600, 600, 1018, 1023))]
)
def test_large_and_small_weights_have_the_same_directions(dtype, powers):
    """Lengths of gradients, and differences of weights, may not be numbers of the dtype."""
    _, w, _, y = problem(3, n=33, d=100, k=3)
    w, x = np.copysign(0.75, w), np.zeros((33, 100), dtype)
    for norm, power, is_large in itertools.product(NORMS, powers, (False, True)):
        with pytest.MonkeyPatch.context() as patch:
            if is_large:
                patch.setattr(module, "CACHED_BYTES", 0)
            wanted = perturb(x, w.astype(dtype), y, eps=1e-8, norm=norm, method="fgsm")
            got = perturb(x, (w * 2.0**power).astype(dtype), y, eps=1e-8, norm=norm, method="fgsm")
        np.testing.assert_allclose(np.linalg.norm(wanted.astype(float), ord=norm, axis=1), 1e-8, rtol=1e-6)
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_bounds_of_each_row_hold_in_every_chunk(monkeypatch):
    x, w, bias, y = problem(15, n=300, d=7, k=3)
    rng = np.random.default_rng(2)
    low, high = x - rng.uniform(0, 0.1, x.shape), x + rng.uniform(0, 0.1, x.shape)
    for norm, eps in ((1, 0.8), (2, 0.4), (INF, 0.1)):
        for bounds in ((low, high), (0 * low - 1, high), (low, 3.0), (low[:1] * 0 - 1, high)):
            options = {"bias": bias, "eps": eps, "norm": norm, "steps": 5}
            moved = perturb(x, w, y, bounds=bounds, **options)
            assert (moved >= bounds[0]).all()
            assert (moved <= bounds[1]).all()
            with monkeypatch.context() as patch:
                patch.setattr(module, "CACHED_CHUNK_ELEMENTS", 1)
                np.testing.assert_array_equal(perturb(x, w, y, bounds=bounds, **options), moved)
            near = [tuple(b if np.ndim(b) == 0 or len(b) == 1 else b[i : i + 1] for b in bounds) for i in range(40)]
            alone = [perturb(x[i : i + 1], w, y[i : i + 1], bounds=near[i], **options)[0] for i in range(40)]
            np.testing.assert_array_equal(alone, moved[:40])


def test_the_direction_of_another_gradient_is_that_of_its_dtype():
    for dtype, size in itertools.product((np.float16, np.float32, np.float64), (1e-300, 1e-60, 1.0, 1e200, 1.5e308)):
        for norm in NORMS:
            moved = perturb(
                np.zeros((2, 2), dtype),
                None,
                None,
                eps=0.25,
                norm=norm,
                method="fgsm",
                gradient=lambda features, size=size: np.array([[size, -size], [0, -size]]),
            )
            first = {1: [0.25, 0], 2: [0.5**2.5, -(0.5**2.5)], INF: [0.25, -0.25]}[norm]
            np.testing.assert_allclose(moved.astype(float), [first, [0, -0.25]], rtol=1e-3)
    big = perturb([[0.0, 0.0]], None, None, eps=1.0, gradient=lambda features: np.array([[2**62, -3]]))
    np.testing.assert_array_equal(big, [[1.0, -1.0]])


def test_extreme_lengths_are_used_or_refused_by_name():
    x, w = np.array([[0.5, 0.25]]), np.eye(2)
    for dtype, norm in itertools.product((np.float64, np.float32), NORMS):
        args = x.astype(dtype), w.astype(dtype), [0]
        for step_size in (1e38, 1e308):
            moved = perturb(*args, eps=0.125, norm=norm, step_size=step_size, steps=3)
            assert np.linalg.norm(moved[0] - x[0].astype(dtype), ord=norm) == pytest.approx(0.125, rel=1e-6)
        for eps in (1e39, 1e308):  # bounds keep them small
            for method in ("fgsm", "pgd"):
                moved = perturb(*args, eps=eps, norm=norm, method=method, steps=3, bounds=(0, 1))
                assert moved.min() >= 0
                assert moved.max() <= 1
                assert (moved != x).any()
        moved = perturb(*args, eps=1e308, norm=INF, random_start=True, rng=0, bounds=(0, 1))
        np.testing.assert_array_equal(moved, [[0, 1]])
    with pytest.raises(ValueError, match=r"eps=100000.0 is too large: perturbed features overflow float16"):
        perturb(x.astype(np.float16), w.astype(np.float16), [0], eps=1e5)
    for steps in (2**63, 2**64, 10**400):
        with pytest.raises(ValueError, match=r"steps must be at most 2\*\*63 - 1, got an integer of \d+ bits"):
            perturb(x, w, [0], eps=0.1, steps=steps)
    with pytest.raises(ValueError, match=r"x has shape \(\); allowed is \(\.\.\., D\)$"):
        perturb(1.0, None, None, eps=0.1, gradient=abs)
    for layer, options in (((np.eye(1), [0]), {}), ((None, None), {"gradient": abs})):
        with pytest.raises(TypeError, match=r"pass x.filled\(value\)"):
            perturb(np.ma.masked_array([[1.0]], [[True]]), *layer, eps=0.1, **options)
