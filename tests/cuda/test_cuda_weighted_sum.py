"""logsumexp(b=, return_sign=) on CUDA: the CPU's bits for weights of any sign, special values and options."""

import numpy as np
import pytest
from cuda_checks import options_on_device
from helpers import assert_same_bits

import csoftmax
from csoftmax._spec.formats import dtype_of
from csoftmax._spec.samples import logits


def check_weighted(gpu, x, b, **options):
    """The value and the sign are the CPU's."""
    with np.errstate(all="ignore"):
        expected = csoftmax.logsumexp(x, b=b, return_sign=True, **options)
        alone = csoftmax.logsumexp(x, b=b, **options)
    there, weights = gpu.cupy.asarray(x), gpu.cupy.asarray(b) if isinstance(b, np.ndarray) else b
    given = options_on_device(gpu, options)
    got = csoftmax.logsumexp(there, b=weights, return_sign=True, **given)
    for a, e in zip(got, expected, strict=True):
        assert isinstance(a, gpu.cupy.ndarray)
        assert_same_bits(a.get(), np.asarray(e), f"{x.shape} {options}")
    assert_same_bits(csoftmax.logsumexp(there, b=weights, **given).get(), np.asarray(alone), f"{x.shape} {options}")


@pytest.mark.parametrize("n", [1, 5, 127, 128, 129, 300])
def test_weighted_sums(gpu, dtype, n):
    rng = np.random.default_rng(n)
    x, b = logits((3, n), dtype, seed=n, sigma=9), rng.normal(size=(3, n)) * 10.0 ** rng.integers(-9, 9, (3, n))
    b[:, n // 3] = 0
    x[0, n // 3] = np.nan
    check_weighted(gpu, x, b)
    check_weighted(gpu, x, b, temperature=np.array([[0.5], [1], [7]]), where=rng.random((3, n)) < 0.8)
    check_weighted(gpu, x, abs(b[0]), axis=1, keepdims=True, sink=0.5)
    check_weighted(gpu, x, 1.0)
    check_weighted(gpu, x.T.copy(), b.T.copy(), axis=0)


def test_special_values(gpu, dtype):
    rows = [[np.nan, 1], [np.inf, 2], [np.inf, np.inf], [-np.inf, 3], [-np.inf, -np.inf], [1, 1], [300, -300]]
    x = np.array(rows, dtype_of(dtype))
    for b in ([1.0, 1.0], [1.0, -1.0], [0.0, 2.0], [np.nan, 1.0], [np.inf, 1.0], [0.0, 0.0]):
        check_weighted(gpu, x, np.array(b))


def test_out_and_shapes(gpu):
    x = gpu.cupy.asarray(np.arange(6.0).reshape(2, 3))
    out = gpu.cupy.empty(2)
    assert csoftmax.logsumexp(x, b=2.0, out=out) is out
    assert_same_bits(out.get(), csoftmax.logsumexp(x.get(), b=2.0))
    assert csoftmax.logsumexp(x, axis=None, return_sign=True)[0].shape == ()
    assert csoftmax.logsumexp(x[:0], b=1.0).shape == (0,)
    assert (csoftmax.logsumexp(x[:, :0], b=1.0).get() == -np.inf).all()
    with pytest.raises(csoftmax.DeviceError, match="b is on the CPU"):
        csoftmax.logsumexp(x, b=np.ones(3))
