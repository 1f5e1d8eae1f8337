"""Temperatures of rows: each row has the bits that it has alone with its temperature."""

import numpy as np
import pytest
from helpers import assert_same_bits, looped

import csoftmax
from csoftmax._cpu import binding

RNG = np.random.default_rng(0)
TEMPERATURES = np.array([1.0, 0.5, 0.5, 3.0, 1e-3, 1e70, 1e-200, 7.25, 1.0, 1e300])
ml_dtypes = pytest.importorskip("ml_dtypes")
DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


def functions():
    """Functions of (x, axis, temperature, where), x being dy in gradients."""

    def forward(name):
        return lambda x, axis, t, where: getattr(csoftmax, name)(x, axis, temperature=t, where=where)

    def backward(name):
        vjp = getattr(csoftmax, f"{name}_vjp")
        return lambda x, axis, t, where: vjp(x, getattr(csoftmax, name)(x[::-1].copy(), axis), axis, temperature=t)

    yield from ((name, forward(name), TEMPERATURES) for name in ("softmax", "log_softmax", "logsumexp"))
    yield (
        "limits",
        forward("softmax"),
        np.where(TEMPERATURES == 0.5, 0, np.where(TEMPERATURES > 100, np.inf, TEMPERATURES)),
    )
    yield from ((name, backward(name), TEMPERATURES) for name in ("softmax", "log_softmax"))


def rows_alone(function, x, axis, t, where):
    """The result row by row: calls of one row with a number as their temperature."""
    x, rows = np.moveaxis(x, axis, -1), len(t)
    mask = None if where is None else np.moveaxis(where, axis, -1)
    parts = [function(x[i : i + 1], -1, float(t[i]), None if mask is None else mask[i : i + 1]) for i in range(rows)]
    return np.concatenate(parts)


@looped("dtype", DTYPES)
def test_rows_have_the_bits_that_they_have_alone(dtype):
    for name, function, t in functions():
        for n in (1, 3, 17, 300, 1025, 5000):
            x = (RNG.standard_normal((len(t), n)) * 3).astype(dtype)
            if name.endswith("softmax") and "vjp" not in name:
                x[3, 0], x[8, -1] = np.nan, np.inf
            if "vjp" in function.__code__.co_freevars:  # y of a row must be that of the row alone
                y = csoftmax.softmax(x, -1) if name == "softmax" else csoftmax.log_softmax(x, -1)
                vjp = getattr(csoftmax, f"{name}_vjp")
                got = vjp(x, y, temperature=t[:, None])
                expected = np.concatenate(
                    [vjp(x[i : i + 1], y[i : i + 1], temperature=float(t[i])) for i in range(len(t))]
                )
                assert_same_bits(got, expected)
                turned = vjp(np.asfortranarray(x), y, temperature=t[:, None])
                assert_same_bits(turned, expected)
                continue
            mask = RNG.random(x.shape) < 0.7
            for where in (None, mask):
                expected = rows_alone(function, x, -1, t, where)
                for threads in (1, 3):
                    with csoftmax.threads(threads):
                        assert_same_bits(function(x, -1, t[:, None], where), expected)
                got = function(np.asfortranarray(x), -1, t[:, None], where)
                assert_same_bits(got, expected)
                got = function(x.T.copy(), 0, t[None], None if where is None else where.T)
                assert_same_bits(got.T if got.ndim == 2 else got, expected)
                wide = np.repeat(x, 2, axis=1)[:, ::2]
                assert_same_bits(function(wide, -1, t[:, None], where), expected)


USUAL = np.array([1.0, 0.5, 0.5, 3.0, 0.5, 0.3, 0.3, 7.25, 1.0, 1.0, 2.0] * 4)  # with neighbours that are equal


def test_rows_that_kernels_compute_together():
    """Usual temperatures beside rows that are not ordinary: NaN, infinities, maxima beyond the range of exp."""
    for dtype in (np.float32, np.float64):
        for n in (3, 10, 16, 40, 700):
            x = (RNG.standard_normal((len(USUAL), n)) * 3).astype(dtype)
            x[5, 1], x[9], x[20, 2], x[21] = np.nan, -np.inf, np.inf, 1e30
            t = np.where(np.arange(len(USUAL)) == 30, 1e-250, USUAL)
            for name in ("softmax", "log_softmax", "logsumexp"):
                function = getattr(csoftmax, name)
                expected = [function(x[i], temperature=float(t[i])) for i in range(len(t))]
                assert_same_bits(function(x, temperature=t[:, None]), np.stack(expected))
            y = csoftmax.softmax(np.where(np.isfinite(x), x, 0))
            expected = [csoftmax.softmax_vjp(x[i], y[i], temperature=float(t[i])) for i in range(len(t))]
            assert_same_bits(csoftmax.softmax_vjp(x, y, temperature=t[:, None]), np.stack(expected))


@looped("dtype", DTYPES)
def test_short_rows_on_every_instruction_set(dtype):
    """Rows that float kernels compute side by side, each with its temperature; some of them are not ordinary."""
    before = binding.isa()
    t = RNG.uniform(0.3, 3, 70)
    t[[3, 20, 21, 22, 23, 24, 25, 26, 27, 50]] = 1, *[0.7] * 8, 1e-80
    try:
        for n in range(1, 18):
            x = (RNG.standard_normal((len(t), n)) * 3).astype(dtype)
            x[40, n // 2], x[41], x[60, 0] = np.nan, -np.inf, 30_000
            expected = np.concatenate([csoftmax.softmax(x[i : i + 1], temperature=float(v)) for i, v in enumerate(t)])
            for isa in binding.isa_available():
                binding.select_isa(isa)
                assert_same_bits(csoftmax.softmax(x, temperature=t[:, None]), expected)
            binding.select_isa(before)
    finally:
        binding.select_isa(before)


LOSS_OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.125},
    "z-loss": {"z_loss": 0.0625},
    "clipped": {"clip_norm": 0.5, "clip_value": 0.25},
    "upstream": {"upstream": 1e30},  # large enough for gradients that the kernels lose
}


def losses_alone(x, target, t, options):
    rows = [
        csoftmax.cross_entropy_with_grad(x[i : i + 1], target[i : i + 1], temperature=float(t[i]), **options)
        for i in range(len(t))
    ]
    return np.concatenate([r.loss for r in rows]), np.concatenate([r.grad for r in rows])


@looped("dtype", DTYPES)
def test_losses_of_rows_are_those_of_the_rows_alone(dtype):
    for t in (TEMPERATURES, USUAL[:12]):
        for n in (1, 3, 17, 300, 5000):
            x = (RNG.standard_normal((len(t), n)) * 3).astype(dtype)
            hard = RNG.integers(0, n, len(t))
            hard[4] = -100
            soft = csoftmax.softmax(RNG.standard_normal((len(t), n))).astype(
                np.float64 if np.dtype(dtype).itemsize == 8 else np.float32
            )
            x[2, 0], x[6] = np.nan, -np.inf
            for target in (hard, soft):
                for options in LOSS_OPTIONS.values():
                    options = {"reduction": "none", "weight": RNG.random(n), **options}
                    loss, grad = losses_alone(x, target, t, options)
                    for given in (x, np.asfortranarray(x)):
                        for threads in (1, 3):
                            got = csoftmax.cross_entropy_with_grad(
                                given, target, temperature=t[:, None], num_threads=threads, **options
                            )
                            assert_same_bits(got.loss, loss)
                            assert_same_bits(got.grad, grad)
                    names = ("reduction", "weight", "label_smoothing", "z_loss")
                    plain = {name: options[name] for name in names if name in options}
                    assert_same_bits(csoftmax.cross_entropy(x, target, temperature=t[:, None], **plain), loss)


@looped("dtype", DTYPES)
def test_topk_of_rows_is_that_of_the_rows_alone(dtype):
    for n in (1, 5, 40, 5000):
        x = (RNG.standard_normal((len(TEMPERATURES), n)) * 3).astype(dtype)
        x[1, 0] = np.nan
        for normalize in ("topk", "full"):
            options = {"normalize": normalize, "num_threads": 2}
            got = csoftmax.topk_softmax(x, min(n, 4), temperature=TEMPERATURES[:, None], **options)
            turned = csoftmax.topk_softmax(x.T.copy(), min(n, 4), 0, temperature=TEMPERATURES[None], **options)
            for i, t in enumerate(TEMPERATURES):
                values, indices = csoftmax.topk_softmax(x[i], min(n, 4), temperature=float(t), **options)
                for a in (got, type(got)(turned.values.T, turned.indices.T)):
                    assert_same_bits(a.values[i], values)
                    np.testing.assert_array_equal(a.indices[i], indices)


def test_pieces_of_long_rows_in_topk():
    x = RNG.standard_normal((2, 3_000_000)).astype(np.float32)
    got = csoftmax.topk_softmax(x, 3, temperature=[[0.5], [2.0]], num_threads=2)
    for i, t in enumerate((0.5, 2.0)):
        assert_same_bits(got.values[i], csoftmax.topk_softmax(x[i], 3, temperature=t).values)


def test_reduced_losses():
    x, y, t = RNG.standard_normal((4, 3, 6)), RNG.integers(0, 6, (4, 3)), RNG.random((4, 1, 1)) + 0.5
    s = RNG.random((4, 3))
    rows = csoftmax.cross_entropy(x, y, temperature=t, sample_weight=s, reduction="none")
    got = csoftmax.cross_entropy_with_grad(x, y, temperature=t, sample_weight=s)
    np.testing.assert_allclose(got.loss, rows.sum() / s.sum(), rtol=1e-14)
    for i in range(4):
        alone = csoftmax.cross_entropy_with_grad(
            x[i], y[i], temperature=t[i, 0, 0], sample_weight=s[i], reduction="sum"
        )
        np.testing.assert_allclose(got.grad[i], alone.grad / s.sum(), rtol=1e-14)
    turned = csoftmax.cross_entropy_with_grad(np.moveaxis(x, -1, 1), y, axis=1, temperature=t, sample_weight=s)
    assert turned.loss == got.loss
    assert_same_bits(np.moveaxis(turned.grad, 1, -1), got.grad)


def test_linear_losses_of_rows():
    x, w, y, t = RNG.standard_normal((2, 5, 4)), RNG.standard_normal((7, 4)), RNG.integers(0, 7, (2, 5)), USUAL[:10]
    y[1, 2] = -100
    t = t.reshape(2, 5, 1)
    logits = x @ w.T
    rows = csoftmax.cross_entropy_with_grad(logits, y, temperature=t)
    for options in ({}, {"chunk_bytes": 100}):
        got = csoftmax.linear_cross_entropy_with_grad(x, w, y, temperature=t, **options)
        np.testing.assert_allclose(got.loss, rows.loss, rtol=1e-13)
        np.testing.assert_allclose(got.grad_x, rows.grad @ w, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(got.grad_w, np.einsum("abk,abd->kd", rows.grad, x), rtol=1e-12, atol=1e-15)
        assert csoftmax.linear_cross_entropy(x, w, y, temperature=t, **options) == got.loss
    with pytest.raises(ValueError, match=r"temperature has shape \(2, 5\); allowed are .* broadcasts to \(2, 5, 1\)"):
        csoftmax.linear_cross_entropy(x, w, y, temperature=t[..., 0])


def test_shapes_that_broadcast():
    x = RNG.standard_normal((2, 3, 4))
    t = RNG.random((2, 3)) + 0.5
    expected = np.stack([rows_alone(next(functions())[1], x[i], -1, t[i], None) for i in range(2)])
    assert_same_bits(csoftmax.softmax(x, temperature=t[..., None]), expected)
    for shape in ((1, 3, 1), (3, 1), (2, 1, 1), (1, 1, 1), (1,)):
        part = np.broadcast_to(RNG.random(shape) + 0.5, (2, 3, 1))
        expected = csoftmax.softmax(x, temperature=part.copy())
        assert_same_bits(csoftmax.softmax(x, temperature=part[tuple(slice(s) for s in (2, 3, 1))]), expected)
    assert_same_bits(csoftmax.softmax(x, temperature=np.full((1,), 2)), csoftmax.softmax(x, temperature=2.0))
    per_column = csoftmax.softmax(x, (0, 2), temperature=np.array([[[0.5], [1.0], [2.0]]]))
    for j, value in enumerate((0.5, 1.0, 2.0)):
        assert_same_bits(per_column[:, j], csoftmax.softmax(x[:, j], None, temperature=value))
    assert_same_bits(csoftmax.softmax(x, None, temperature=[[[2.0]]]), csoftmax.softmax(x, None, temperature=2.0))
    assert csoftmax.softmax(np.empty((0, 4)), temperature=np.empty((0, 1))).shape == (0, 4)
    out = x.copy()  # temperatures within the memory of the result
    assert_same_bits(
        csoftmax.softmax(out, temperature=abs(out[..., :1]) + 1, out=out),
        csoftmax.softmax(x, temperature=abs(x[..., :1]) + 1),
    )
    x[..., 0] = np.abs(x[..., 0]) + 0.5
    expected = csoftmax.softmax(x, temperature=x[..., :1].copy())
    assert_same_bits(csoftmax.softmax(x, temperature=x[..., :1], out=x), expected)


def test_few_long_rows_are_split():
    x = RNG.standard_normal((2, 3_000_000)).astype(np.float32)
    got = csoftmax.logsumexp(x, temperature=[[0.5], [2.0]], num_threads=2)
    assert got[0] == csoftmax.logsumexp(x[0], temperature=0.5)
    assert got[1] == csoftmax.logsumexp(x[1], temperature=2.0)


def test_errors_of_temperatures():
    x = np.ones((3, 4))
    before = x.copy()
    for t, error, message in (
        ([[1.0], [-1.0], [2.0]], ValueError, r"temperature must be at least 0, got -1\.0 at \(1, 0\)"),
        ([[1.0], [1.0], [np.nan]], ValueError, r"got nan at \(2, 0\)"),
        (np.ones(4), ValueError, r"temperature has shape \(4,\); allowed are a number and what broadcasts to \(3, 1\)"),
        (np.ones((3, 4)), ValueError, r"temperature has shape \(3, 4\)"),
        (np.ones((1, 3, 1)), ValueError, r"temperature has shape \(1, 3, 1\)"),
        ([["a"]], TypeError, "temperature must hold real numbers"),
        ([[True]], TypeError, "temperature must hold real numbers"),
        (None, TypeError, "temperature"),
        ("1", TypeError, "temperature"),
    ):
        with pytest.raises(error, match=message):
            csoftmax.softmax(x, temperature=t, out=x)
    extreme = [[np.inf], [0.0], [1.0]]
    for call in (
        lambda: csoftmax.softmax_vjp(x, x, temperature=extreme),
        lambda: csoftmax.cross_entropy(x, [0, 1, 2], temperature=extreme),
        lambda: csoftmax.linear_cross_entropy(x, x, [0, 1, 2], temperature=extreme),
    ):
        with pytest.raises(ValueError, match=r"temperature must be positive and finite, got inf at \(0, 0\)"):
            call()
    assert csoftmax.topk_softmax(x, 1, temperature=extreme).values.tolist() == [[1.0]] * 3
    np.testing.assert_array_equal(x, before)
