"""alpha-entmax, its gradient and its loss on CUDA: the CPU's bits."""

import itertools
from unittest import mock

import numpy as np
import pytest
from cuda_checks import (
    check_entmax,
    check_loss,
    costly_dtypes,
    make_targets,
    model_options,
    on_device,
    rows_with_special_at,
    sectors_of_rows,
    shared_memory,
    slow_from,
    special_rows,
)
from helpers import assert_same_bits

import csoftmax
from csoftmax._cuda import entmax
from csoftmax._cuda.sizes import SHARED_SURVIVORS, SUFFIXES, SURVIVOR_BYTES
from csoftmax._spec.formats import dtype_of
from csoftmax._spec.samples import logits


@costly_dtypes
@pytest.mark.parametrize("alpha", [1.5, 2.0, 1.05, 1.3, 3.0, 30.0])
@pytest.mark.parametrize("n", slow_from(700, [1, 2, 9, 33, 257, 700, 5000]))
def test_entmax(gpu, dtype, n, alpha):
    for sigma in (0.02, 2):  # nearly all elements survive; few do
        x = logits((3, n), dtype, seed=n, sigma=sigma)
        check_entmax(gpu, x, alpha)


@costly_dtypes
def test_entmax_of_the_worst_rows(gpu, dtype):
    """Large alpha, numbers next to the threshold, and gradients whose weights overflow."""
    x = np.array([[1, 1e-30, 0, -1], [0.5, 0.25, 0.25, 0], [0, -1 / 11, -0.0909, -2], [3, 3, 3, 3]], dtype_of(dtype))
    for alpha in (1 + 2.0**-40, 1.4, 1.5, 2.0, 12.0, 1e4):
        check_entmax(gpu, x, alpha)
        check_loss(gpu, x, np.array([0, 1, 2, 3]), "entmax_loss", alpha=alpha, reduction="none")
        check_loss(gpu, x, *make_targets(x.shape, dtype)[1:], "entmax_loss", alpha=alpha, reduction="none")


@costly_dtypes
@pytest.mark.parametrize("n", [1, 2, 19, 600])
def test_entmax_of_special_values(gpu, dtype, n):
    x = special_rows(n, dtype)
    for alpha in (1.5, 2.0, 1.2, 4.0):
        check_entmax(gpu, x, alpha)


@costly_dtypes
@pytest.mark.parametrize("alpha", [2.0, pytest.param(1.5, marks=pytest.mark.slow)])
def test_entmax_beyond_shared_memory(gpu, dtype, alpha):
    """Rows in parts, with few and many survivors, and survivors that a later maximum excludes."""
    sigmas = 3, 0.001, 1, 0, 0, 0, 1, 1, 0, 0, 0
    x = np.stack([logits(20_000, dtype, seed, sigma) for seed, sigma in enumerate(sigmas)])
    x[4], x[5] = np.linspace(-40, 40, 20_000), np.linspace(40, -40, 20_000)
    x[6, 4:19_000], x[7, :5] = -np.inf, -np.inf
    x[8, -1] = 9  # excludes all others, of which there are more than SHARED_SURVIVORS
    x[9, 19_999], x[10, 12_000] = np.nan, np.inf
    with shared_memory(gpu, 64 * 1024):
        check_entmax(gpu, x, alpha)
    if gpu.model and alpha == 2:
        with mock.patch.object(entmax, "MAX_SURVIVORS_BYTES", 2 * SURVIVOR_BYTES * 20_000):
            check_entmax(gpu, x, 2.0)


@costly_dtypes
def test_entmax_with_as_many_survivors_as_places(gpu, dtype):
    for n in (600, 5000):
        x = np.full((4, n), -50, dtype_of(dtype))
        for row, more in zip(x, (-1, 0, 1, 8), strict=True):
            row[np.linspace(0, n - 1, SHARED_SURVIVORS + more).astype(int)] = 0
        check_entmax(gpu, x, 2.0)


def test_entmax_layouts(gpu, dtype):
    x = logits((3, 40, 5), dtype)
    for axis in (0, 1, -1, (0, 2), None):
        check_entmax(gpu, x, 1.5, axis=axis)
    mask = np.random.default_rng(0).random((3, 40, 5)) < 0.5
    mask[1] = False
    check_entmax(gpu, x, 2.0, where=mask)
    for n in (600, 2000, 5000):  # warps mask elements that other warps have loaded
        mask = np.random.default_rng(n).random((3, n)) < 0.5
        check_entmax(gpu, logits((3, n), dtype), 1.5, where=mask)
    for n in (11, 701):
        rows = logits((3, n), dtype)
        expected = csoftmax.sparsemax(rows)
        for offset in range(1, 9):  # rows of every alignment
            memory = gpu.cupy.empty(3 * n + 16, rows.dtype)
            view = memory[offset : offset + 3 * n].reshape(3, n)
            view[...] = gpu.cupy.asarray(rows)
            assert_same_bits(csoftmax.sparsemax(view).get(), expected, f"offset {offset}")
    for shape in ((0,), (0, 5), (5, 0), (1,)):
        check_entmax(gpu, np.zeros(shape, dtype_of(dtype)), 2.0)
    assert_same_bits(csoftmax.entmax(gpu.cupy.asarray(x), 1.0).get(), csoftmax.softmax(x))


ALPHAS = np.array([1.5, 2.0, 1.1, 3.0, 2.0])


@pytest.mark.parametrize("n", [1, 9, 40, 700])
def test_alphas_of_rows(gpu, dtype, n):
    """Rows with alpha 1 are softmax's; the losses take no such rows beside others."""
    x = logits((5, n), dtype, seed=n)
    hard, soft = make_targets(x.shape, dtype, n)
    check_entmax(gpu, x, ALPHAS[:, None])
    mask, with_limits = np.random.default_rng(n).random(x.shape) < 0.7, np.where(ALPHAS == 2, 1, ALPHAS)[:, None]
    check_entmax(gpu, x, with_limits, where=mask)
    check_entmax(gpu, x.T.copy(), ALPHAS[None], axis=0)
    for target, reduction in ((hard, "none"), (soft, "mean")):
        check_loss(gpu, x, target, "entmax_loss", alpha=ALPHAS[:, None], reduction=reduction)
    with pytest.raises(csoftmax.DeviceError, match="where alpha is 1 in some rows only"):
        csoftmax.entmax_loss(*on_device(gpu, x, soft), with_limits)
    with pytest.raises(csoftmax.DeviceError, match="the gradient of alpha has no kernel"):
        csoftmax.entmax_vjp(*on_device(gpu, x, x), return_alpha_grad=True)


@pytest.mark.parametrize("n", [2, 40, 700])
def test_weights_of_losses(gpu, dtype, n):
    rng = np.random.default_rng(n)
    x = logits((5, n), dtype, seed=n)
    hard, soft = make_targets(x.shape, dtype, n)
    weight, s = rng.random(n).astype(soft.dtype), rng.random(5)
    s[1], x[1], x[2] = 0, np.nan, np.inf  # row 2 has the ignored label
    for reduction in ("none", "sum", "mean"):
        check_loss(gpu, x, hard, "entmax_loss", reduction=reduction, sample_weight=s)
        check_loss(gpu, x, hard, "entmax_loss", reduction=reduction, sample_weight=s, weight=weight)
    x[2] = 1
    for reduction in ("none", "sum", "mean"):
        check_loss(gpu, x, soft, "entmax_loss", reduction=reduction, sample_weight=s)
    got = csoftmax.entmax_loss_with_grad(*on_device(gpu, x, soft), weight=gpu.cupy.asarray(weight), reduction="none")
    expected = csoftmax.entmax_loss_with_grad(x, soft, weight=weight, reduction="none")
    np.testing.assert_allclose(got.loss.get()[2:], expected.loss[2:], rtol=1e-5)
    for weights in ({"sample_weight": np.zeros(5)}, {"weight": np.zeros(n)}):
        check_loss(gpu, x, hard, "entmax_loss", **weights)


LOSSES = [("mean", 2), ("sum", 0.05), ("none", 5)]  # reduction, sigma


@costly_dtypes
@pytest.mark.parametrize(
    ("n", "losses"),
    [
        *((n, LOSSES) for n in (1, 2, 9, 40)),
        *(pytest.param(n, LOSSES[1:2], marks=pytest.mark.slow) for n in (700, 5000)),  # nearly all elements survive
        *(pytest.param(n, LOSSES[::2], marks=pytest.mark.long) for n in (700, 5000)),
    ],
)
@pytest.mark.parametrize("alpha", [1.5, 2.0, 1.1, 3.0])
def test_entmax_loss(gpu, dtype, n, alpha, losses):
    for reduction, sigma in losses:
        x = logits((5, n), dtype, seed=n, sigma=sigma)
        hard, soft = make_targets(x.shape, dtype, n)
        hard[2] = n - 1
        hard[3] = x[3].argmax()  # in the support
        soft[1] *= 1.5  # not a distribution
        check_loss(gpu, x, hard, "entmax_loss", alpha=alpha, reduction=reduction)
        check_loss(gpu, x, soft, "entmax_loss", alpha=alpha, reduction=reduction)


@costly_dtypes
def test_entmax_loss_of_special_values_and_layouts(gpu, dtype):
    for n in (3, 40, 700):
        x = special_rows(n, dtype)
        hard, soft = make_targets(x.shape, dtype)
        for alpha in (1.5, 2.0, 1.3):
            check_loss(gpu, x, np.abs(hard) % n, "entmax_loss", alpha=alpha, reduction="none")
            check_loss(gpu, x, soft, "entmax_loss", alpha=alpha, reduction="none")
    x = logits((4, 11, 5), dtype)
    target = np.random.default_rng(0).integers(0, 11, (4, 5))
    mask = np.random.default_rng(1).random((4, 11, 5)) < 0.7
    check_loss(gpu, x, target, "entmax_loss", alpha=2.0, axis=1)
    check_loss(gpu, x, target.astype(np.uint8), "entmax_loss", alpha=1.5, axis=1, where=mask)
    with shared_memory(gpu, 48 * 1024):
        x = np.stack([logits(20_000, dtype, seed, sigma) for seed, sigma in enumerate((3, 0.001))])
        hard, soft = make_targets(x.shape, dtype)
        check_loss(gpu, x, np.array([19_999, 5]), "entmax_loss", alpha=1.5)
        check_loss(gpu, x, soft, "entmax_loss", alpha=2.0)
    for shape in ((0, 5), (0, 0), (3, 0)):
        soft = np.zeros(shape, np.float64 if dtype == "float64" else np.float32)
        for reduction in ("mean", "sum", "none"):
            check_loss(gpu, np.zeros(shape, dtype_of(dtype)), soft, "entmax_loss", alpha=1.5, reduction=reduction)
    for alpha in (1.0, 1.5):  # with no class, every label is bad
        got = csoftmax.entmax_loss(*on_device(gpu, x[:2, :0], np.zeros(2, np.int32)), alpha, reduction="none")
        assert np.isnan(got.get()).all()


def test_entmax_loss_with_alpha_1(gpu, dtype):
    """Cross-entropy; CuPy computes that of soft labels, so that the bits are not the CPU's."""
    x = logits((6, 30), dtype)
    hard, soft = make_targets(x.shape, dtype)
    hard[hard < 0] = 1
    soft[2] *= 2
    for target, reduction in itertools.product((hard, soft), ("mean", "none")):
        expected = csoftmax.entmax_loss_with_grad(x, target, 1.0, reduction=reduction)
        got = csoftmax.entmax_loss_with_grad(*on_device(gpu, x, target), 1.0, reduction=reduction)
        for array, host in zip(got, expected, strict=True):
            assert isinstance(array, gpu.cupy.ndarray)
            assert array.dtype == np.asarray(host).dtype
            a, b = array.get().astype(np.float64), np.asarray(host).astype(np.float64)
            assert np.allclose(a, b, rtol=1e-2 if b.ndim == 2 and x.itemsize == 2 else 1e-5, atol=1e-6)


def test_labels_that_are_ignored_and_bad(gpu):
    """-100 is ignored by default, for every alpha; -1 is no class."""
    x, labels = gpu.cupy.asarray(np.zeros((3, 4))), gpu.cupy.asarray(np.array([0, -100, -1]))
    for alpha in (1.0, 1.5):
        assert np.isnan(csoftmax.entmax_loss(x, labels, alpha).get())
        loss, grad = csoftmax.entmax_loss_with_grad(x, labels, alpha, reduction="none")
        assert np.array_equal(np.isnan(loss.get()), [False, False, True])
        assert np.array_equal(np.isnan(grad.get()), [[False] * 4, [False] * 4, [True] * 4])
        assert loss.get()[1] == 0
        assert (grad.get()[1] == 0).all()
        loss = csoftmax.entmax_loss(x, labels, alpha, reduction="none", ignore_index=-1)
        assert np.array_equal(np.isnan(loss.get()), [False, True, False])


@costly_dtypes
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
def test_special_values_at_every_index_of_entmax(gpu, dtype, special):
    for n in (1, 2, 17, 35):
        for x in rows_with_special_at(n, dtype, special):
            check_entmax(gpu, x, 1.5)


def test_traffic_of_entmax(model, dtype):
    """A row is read once and written once; the gradient reads rows twice that shared memory does not hold."""
    itemsize = dtype_of(dtype).itemsize

    def sectors(function, *arguments):
        model.launches.clear()
        with model_options(count=True, races=False):
            function(*arguments)
        return sectors_of_rows(model.launches, 2 * n * itemsize)

    for n in (1024, 4096, 20_000, 131_072):
        x = model.cupy.asarray(logits((2, n), dtype, sigma=4))
        y = csoftmax.sparsemax(x)
        support = 2 * 32 * 64 / (n * itemsize)  # a sector for each element with probability
        loads, stores = sectors(csoftmax.sparsemax, x)
        assert 1 <= loads <= 1.02, (n, loads)
        assert 1 <= stores <= 1 + 0.02 + support, (n, stores)
        loads, stores = sectors(csoftmax.entmax_vjp, x, y, 2.0)
        reads = 1 if n < 9000 else 2
        assert 2 * reads <= loads <= 2 * reads + 0.02, (n, loads)
        assert 1 <= stores <= 1.02, (n, stores)
    labels = model.cupy.asarray(np.zeros(2, np.int32))
    loads, stores = sectors(csoftmax.entmax_loss_with_grad, x, labels, 2.0)
    assert 1 <= loads <= 1.02, loads
    assert 1 <= stores <= 1.02 + support, stores
    if itemsize > 2:  # the room for survivors fills up often, and is freed by later maxima
        rising = model.cupy.asarray(np.tile(np.linspace(-109, 109, n).astype(x.dtype), (2, 1)))
        loads, stores = sectors(csoftmax.entmax, rising, 3.0)
        assert 1 <= loads <= 1.02, loads
        assert 1 <= stores <= 1.02 + support, stores


def test_launch_plans_of_entmax_fit():
    for dtype, limit in itertools.product(SUFFIXES, (48 * 1024, 99 * 1024, 227 * 1024)):
        for n in (*range(1, 100), 1000, 8191, 8192, 8193, 20_000, 65_535, 65_536, 10**7):
            for gradient in (False, True):
                plan = entmax.plan_entmax_launch(dtype, n, gradient, limit)
                assert plan.shared_bytes <= limit
                assert 1 <= plan.warps <= 8
                assert 1 <= plan.part <= n
                assert plan.survivors in (0, -(-n // 8) * 8)
