"""The linear layer with cross-entropy: against the same with all logits, for every option; memory; errors."""

import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import csoftmax
from csoftmax._spec.formats import dtype_of


def layer(n, d, k, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)).astype(dtype_of(dtype))
    w = rng.standard_normal((k, d)).astype(dtype_of(dtype))
    return x, w, rng.integers(0, k, n), rng.standard_normal(k)


def reference(x, w, target, bias=None, **options):
    """Compute the loss and gradients in float64 with all logits."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    logits = x @ w.T + (0 if bias is None else bias)
    loss, grad = csoftmax.cross_entropy_with_grad(logits, target, **options)
    flat, rows = grad.reshape(-1, len(w)), x.reshape(-1, w.shape[1])
    return loss, grad @ w, flat.T @ rows, flat.sum(0)


def check(x, w, target, bias=None, chunk_bytes=None, tolerance=1e-11, **options):
    got = csoftmax.linear_cross_entropy_with_grad(x, w, target, bias=bias, chunk_bytes=chunk_bytes, **options)
    expected = reference(x, w, target, bias, **options)
    assert got.grad_x.dtype == got.grad_w.dtype == x.dtype
    assert got.grad_x.shape == x.shape
    assert got.grad_w.shape == w.shape
    assert (got.grad_bias is None) == (bias is None)
    for a, b in zip(got, expected, strict=True):
        if a is not None:
            scale = np.nan_to_num(np.abs(b)).max(initial=1e-3)
            assert np.allclose(np.asarray(a, np.float64), b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
    only = {k: v for k, v in options.items() if k not in ("upstream", "clip_norm", "clip_value")}
    loss = csoftmax.linear_cross_entropy(x, w, target, bias=bias, chunk_bytes=chunk_bytes, **only)
    assert np.array_equal(loss, got.loss, equal_nan=True)
    return got


@st.composite
def problems(draw):
    n, d, k = draw(st.integers(0, 9)), draw(st.sampled_from([1, 3, 8])), draw(st.sampled_from([1, 2, 7, 40, 300]))
    seed = draw(st.integers(0, 2**31))
    x, w, target, bias = layer(n, d, k, seed=seed)
    rng = np.random.default_rng(seed)
    options = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "z_loss": draw(st.sampled_from([0.0, 1e-3])),
        "temperature": draw(st.sampled_from([1.0, 0.5])),
        "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
        "upstream": 0.5,
    }
    if draw(st.booleans()):
        options["weight"] = rng.random(k) + 0.1
    if draw(st.booleans()):
        options["sample_weight"] = rng.random(n) * (rng.random(n) > 0.3)
    if draw(st.booleans()):
        options["clip_norm"] = 0.3
    if draw(st.booleans()):
        options["clip_value"] = 0.2
    if options["reduction"] == "none" and draw(st.booleans()):
        options["upstream"] = rng.standard_normal(n)
    if draw(st.booleans()):
        target = rng.random((n, k))
    elif n and draw(st.booleans()):
        options["ignore_index"] = int(target[0])
    bias = bias if draw(st.booleans()) else None
    return x, w, target, bias, draw(st.sampled_from([None, 1, 8 * k * 2, 8 * k * 5])), options


@settings(max_examples=150, deadline=None)
@given(problems())
def test_every_combination(problem):
    x, w, target, bias, chunk_bytes, options = problem
    check(x, w, target, bias, chunk_bytes, **options)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float16", 4e-3), ("bfloat16", 3e-2)])
def test_other_dtypes(dtype, tolerance):
    x, w, target, bias = layer(70, 24, 5000, dtype)
    got = check(x, w, target, bias.astype(np.float32), 4 * 5000 * 30, tolerance, label_smoothing=0.1)
    assert got.loss.dtype == np.float32
    ints = csoftmax.linear_cross_entropy_with_grad([[1, 2], [3, 4]], [[1, 0], [0, 1], [1, 1]], [0, 2])
    assert ints.grad_w.dtype == np.float64


def test_layouts_and_leading_dimensions():
    x, w, target, bias = layer(24, 6, 50)
    expected = csoftmax.linear_cross_entropy_with_grad(x, w, target, bias=bias)
    for other_x, other_w in (
        (np.asfortranarray(x), np.asfortranarray(w)),
        (np.repeat(x, 2, 0)[::2], np.repeat(w, 2, 1)[:, ::2]),
        (x[::-1][::-1], w[:, ::-1][:, ::-1]),
    ):
        got = csoftmax.linear_cross_entropy_with_grad(other_x, other_w, target, bias=bias)
        for a, b in zip(got, expected, strict=True):
            assert np.allclose(a, b, rtol=1e-12, atol=1e-15)
    got = csoftmax.linear_cross_entropy_with_grad(x.reshape(2, 3, 4, 6), w, target.reshape(2, 3, 4), bias=bias)
    assert got.grad_x.shape == (2, 3, 4, 6)
    assert np.array_equal(got.grad_w, expected.grad_w)
    each = csoftmax.linear_cross_entropy(x.reshape(2, 12, 6), w, target.reshape(2, 12), reduction="none")
    assert each.shape == (2, 12)
    single = csoftmax.linear_cross_entropy_with_grad(x[0], w, target[0])
    assert single.grad_x.shape == (6,)
    assert isinstance(single.loss, np.float64)


def test_ignored_rows_take_no_part():
    x, w, target, bias = layer(10, 4, 9)
    expected = csoftmax.linear_cross_entropy_with_grad(x[2:], w, target[2:], bias=bias)
    x[:2] = np.nan
    for options in (
        {"target": np.r_[-100, -100, target[2:]]},
        {"target": target, "sample_weight": np.r_[0, 0, np.ones(8)]},
    ):
        got = csoftmax.linear_cross_entropy_with_grad(x, w, bias=bias, **options)
        assert got.loss == expected.loss
        assert np.all(got.grad_x[:2] == 0)
        assert np.array_equal(got.grad_x[2:], expected.grad_x)
        assert np.array_equal(got.grad_w, expected.grad_w)
    nothing = csoftmax.linear_cross_entropy_with_grad(x, w, np.full(10, -100))
    assert np.isnan(nothing.loss)
    assert not nothing.grad_x.any()
    assert not nothing.grad_w.any()


@pytest.mark.promise("reproducibility", "linear_cross_entropy_with_grad")
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.5}, {"clip_norm": 0.1}], ids=str)
def test_a_mean_that_divides_by_zero(options):
    """The loss is NaN and every gradient exactly 0, whatever x, w and bias hold."""
    x, w, labels, bias = layer(6, 3, 5)
    x[1], x[2, 0], w[0, 1], bias[3] = np.nan, np.inf, np.inf, -np.inf
    weights = np.zeros(5)
    for target, more in ((np.full(6, -100), {}), (np.zeros((6, 5)), {}), (labels, {"weight": weights}),
                         (labels, {"sample_weight": np.zeros(6)})):  # fmt: skip
        for chunk_bytes in (None, 1):
            got = csoftmax.linear_cross_entropy_with_grad(
                x, w, target, bias=bias, chunk_bytes=chunk_bytes, **more, **options
            )
            assert np.isnan(got.loss)
            assert not any(np.any(grad != 0) for grad in got[1:])


def test_repeatable():
    x, w, target, _ = layer(300, 32, 4000, "float32")
    first = csoftmax.linear_cross_entropy_with_grad(x, w, target, chunk_bytes=1 << 20)
    again = csoftmax.linear_cross_entropy_with_grad(x, w, target, chunk_bytes=1 << 20, num_threads=1)
    for a, b in zip(first[:3], again[:3], strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(("dtype", "rows"), [("float32", 2), ("float32", 200), ("float64", 40), ("bfloat16", 40)])
def test_filter_leaves_out_what_does_not_exceed_it(dtype, rows):
    """Each chunk of rows leaves out exactly the classes that the filter promises, and the error is within its bound."""
    n, k, eps = 200, 3000, 1e-4
    x, w, target, bias = layer(n, 16, k, dtype)
    w *= 3
    s = np.random.default_rng(1).random(n) + 0.5
    options = {"bias": bias.astype(w.dtype), "sample_weight": s, "reduction": "sum", "upstream": 0.5}
    wide = np.dtype(np.float64 if dtype == "float64" else np.float32)
    chunk_bytes = wide.itemsize * k * rows
    exact = csoftmax.linear_cross_entropy_with_grad(x, w, target, chunk_bytes=chunk_bytes, **options)
    got = csoftmax.linear_cross_entropy_with_grad(x, w, target, chunk_bytes=chunk_bytes, filter_eps=eps, **options)
    assert got.loss == exact.loss
    assert np.array_equal(got.grad_bias, exact.grad_bias)
    wide_x, wide_w = x.astype(np.float64), w.astype(np.float64)
    each = csoftmax.cross_entropy_with_grad(
        wide_x @ wide_w.T + options["bias"].astype(np.float64), target, sample_weight=s, reduction="none"
    ).grad  # of the row losses
    counts = np.abs(each) > eps
    near = np.abs(np.abs(each) - eps) < 1e-4 * eps  # rounding may decide these; there are none for this seed
    assert not near.any()
    chunks = np.stack([counts[i : i + rows].any(0) for i in range(0, n, rows)])
    left_out = ~chunks.any(0)
    assert np.mean(~chunks) > 0.05
    assert not got.grad_w[left_out].any()
    eps_c, rounding = 0.5 * eps, {"float64": 1e-12, "float32": 3e-6, "bfloat16": 2.0**-7}[dtype]
    left = 0.5 * each * ~chunks.repeat(rows, 0)[:n]  # what is missing, to rounding
    for name, missing, bound in (
        ("grad_w", left.T @ wide_x, np.abs(wide_x).sum(0)),
        ("grad_x", left @ wide_w, np.abs(wide_w).sum(0)),
    ):
        whole, part = (getattr(result, name).astype(np.float64) for result in (exact, got))
        tolerance = rounding * np.abs(whole).max()
        assert np.all(np.abs(whole - part) <= eps_c * bound + tolerance), name
        assert np.all(np.abs(whole - part - missing) <= tolerance), name


def test_filter_above_everything_leaves_everything_out():
    x, w, target, bias = layer(20, 16, 900, "float32")
    got = csoftmax.linear_cross_entropy_with_grad(x, w, target, bias=bias, filter_eps=1.001)
    assert not got.grad_w.any()
    assert not got.grad_x.any()
    x[3, 0] = np.nan  # not below any limit
    got = csoftmax.linear_cross_entropy_with_grad(x, w, target, bias=bias, filter_eps=1.001)
    assert np.isnan(got.grad_w).all()


def test_filter_without_classes():
    got = csoftmax.linear_cross_entropy_with_grad(np.ones((2, 3)), np.ones((0, 3)), np.ones((2, 0)), filter_eps=0.1)
    assert got.grad_w.shape == (0, 3)
    assert not got.grad_x.any()


def test_labels_are_copied_once(monkeypatch):
    """Labels that the caller overwrites during the call change nothing."""
    from csoftmax._cpu import binding

    x, w, target, _ = layer(40, 6, 50)
    expected = csoftmax.linear_cross_entropy_with_grad(x, w, target, chunk_bytes=8 * 50 * 10)
    changed, run_cross_entropy = target.copy(), binding.run_cross_entropy

    def and_change(*arguments):
        changed[:] = 49
        return run_cross_entropy(*arguments)

    monkeypatch.setattr(binding, "run_cross_entropy", and_change)
    got = csoftmax.linear_cross_entropy_with_grad(x, w, changed, chunk_bytes=8 * 50 * 10)
    assert np.all(changed == 49)
    assert got.loss == expected.loss
    assert np.array_equal(got.grad_w, expected.grad_w)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_logits_never_exist(dtype):
    """Beside the results at most an eighth of what all logits would need; the figure in the README."""
    n, d, k = 4096, 256, 64000
    needed = beside(*layer(n, d, k, dtype)[:3])
    assert needed <= (72e6 if dtype == "float32" else 118e6) <= n * k * 4 / 8, needed


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_few_features_need_no_more(dtype):
    """w is a small array then, and a panel of it has many classes: logits of a panel would be all of them."""
    n, d, k = 2048, 2, 40000
    x, w, target, _ = layer(n, d, k, dtype)
    assert beside(x, w, target, chunk_bytes=8 << 20) < 10 << 20
    assert beside(x, w, target, chunk_bytes=8 << 20, filter_eps=1e-3) < 18 << 20


def beside(*args, **options):
    """Bytes that a call needs beside its results."""
    tracemalloc.start()
    try:
        result = csoftmax.linear_cross_entropy_with_grad(*args, **options)
        return tracemalloc.get_traced_memory()[1] - result.grad_x.nbytes - result.grad_w.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.promise("memory", "linear_cross_entropy_with_grad")
def test_chunk_bytes_bounds_the_logits():
    x, w, target, _ = layer(2048, 64, 4000, "float32")
    for megabytes in (1, 2, 8):
        needed = beside(x, w, target, chunk_bytes=megabytes << 20)
        assert (megabytes << 20) // 2 < needed < (megabytes + 3 << 20)  # a panel of 1 MB, and products, beside it


def test_half_types_accumulate_in_float32():
    """Hundreds of chunks, and one rounding at the end."""
    x, w, target, bias = layer(600, 8, 5, "bfloat16")
    options = {"bias": bias.astype(x.dtype), "reduction": "sum"}
    whole = csoftmax.linear_cross_entropy_with_grad(
        x.astype(np.float32), w.astype(np.float32), target, bias=options["bias"].astype(np.float32), reduction="sum"
    )
    small = csoftmax.linear_cross_entropy_with_grad(x, w, target, chunk_bytes=40, **options)
    for name in ("grad_w", "grad_bias"):
        got, exact = getattr(small, name).astype(np.float64), getattr(whole, name).astype(np.float64)
        assert np.all(np.abs(got - exact) <= np.abs(exact) * 2.0**-8 + 1e-5), name


def test_the_kernel_between_products_has_threads_only_where_they_pay():
    """OpenMP's threads spin for a while, and the BLAS waits for them: (65536, 64, 100) took 9 times as long."""
    from csoftmax._cpu import linear as _linear

    with csoftmax.threads(2):
        assert _linear.kernel_threads(100_000, None) == _linear.kernel_threads(16_000_000, 2) == 1
    assert _linear.kernel_threads(100_000_000, 4) == 4
    assert _linear.kernel_threads(100_000_000, 1) == 1


def test_a_target_that_another_thread_changes(monkeypatch):
    """The kernel checks what it reads, and what it refuses is not passed over."""
    from csoftmax._cpu import binding

    monkeypatch.setattr(binding, "run_cross_entropy", lambda *_: 0)
    for function in (csoftmax.linear_cross_entropy, csoftmax.linear_cross_entropy_with_grad):
        with pytest.raises(RuntimeError, match="target was changed"):
            function(np.zeros((3, 2)), np.zeros((4, 2)), [0, 1, 2])


def test_the_scale_of_sample_weights_cancels_in_the_mean():
    """Though row losses are float32: weights of a size that those do not have."""
    x, w = np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32)
    ordinary = csoftmax.linear_cross_entropy_with_grad(x, w, [0, 1], sample_weight=[3, 1])
    for scale in (1e-300, 1e-50, 1e-40, 1e40, 1e307):
        got = csoftmax.linear_cross_entropy_with_grad(x, w, [0, 1], sample_weight=[3 * scale, scale])
        np.testing.assert_allclose(got.loss, np.log(2), rtol=1e-6)
        np.testing.assert_allclose(got.grad_w, ordinary.grad_w, rtol=1e-6)


def test_overflow_is_a_result_and_no_warning():
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        small = np.zeros((1, 2), np.float32)
        assert np.isnan(csoftmax.linear_cross_entropy(small, np.zeros((2, 2), np.float32), [0], bias=[1e300, 0]))
        half = np.float16([[1, 0]]), np.eye(2, dtype=np.float16) * 100, [0]
        assert csoftmax.linear_cross_entropy_with_grad(*half, bias=np.zeros(2)).loss >= 0
        x, w = np.full((2, 3), 1e200), np.full((4, 3), 1e200)
        assert np.isnan(csoftmax.linear_cross_entropy_with_grad(x, w, [0, 1]).loss)
        assert np.isnan(csoftmax.linear_cross_entropy(np.float16([[np.nan, 1]]), np.ones((3, 2), np.float16), [1]))
