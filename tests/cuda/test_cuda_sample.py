"""Draws on CUDA: the classes that the CPU draws from the same uniform numbers."""

import numpy as np
import pytest
from cuda_checks import check_sample, costly_dtypes, model_options

import csoftmax
from csoftmax._spec.formats import dtype_of
from csoftmax._spec.samples import FixedUniform, logits

FILTERS = [
    {},
    {"temperature": 0.4},
    {"temperature": 0.0},
    {"min_p": 0.2},
    {"top_k": 5},
    {"top_p": 0.8},
    {"temperature": 2.0, "top_k": 30, "top_p": 0.7, "min_p": 0.1},
    {"temperature": 1e-30, "top_p": 0.5},
    {"temperature": np.inf, "min_p": 0.5},
]


@costly_dtypes
@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 33, 500, 4097])
def test_sample(gpu, dtype, n, options):
    x = logits((3, n), dtype, seed=n, sigma=2)
    check_sample(gpu, x, **options)
    check_sample(gpu, x, size=70, **options)


@costly_dtypes
def test_sample_of_long_rows(gpu, dtype):
    """Masses that are too small for their type, blocks without any, the ends of the uniform numbers."""
    x = logits((3, 13_000), dtype, sigma=4)
    x[0, :4096], x[0, 9000] = -np.inf, 60
    x[1, 5000:], x[1, 100] = -200, 12
    for options in ({}, {"min_p": 1e-3}, {"temperature": 0.01}, {"top_k": 900, "top_p": 0.99}):
        check_sample(gpu, x, size=40, **options)
    u = np.tile([0.0, 1 - 2.0**-53, 1.0], (3, 1))  # 1 lies beyond all sums
    for options in ({}, {"min_p": 1e-3}, {"top_k": 900}):
        check_sample(gpu, x, size=3, rng=FixedUniform(u), **options)


def test_sample_from_more_than_a_kernel_sorts(gpu):
    """The nucleus of flat rows, and large top_k: the 1024 largest are not enough."""
    x = logits((4, 6000), "float32", sigma=0.3)
    x[1] *= 30
    for options in ({"top_p": 0.5}, {"top_p": 1 - 1e-12}, {"top_k": 5000}, {"top_k": 5000, "top_p": 0.97}):
        gpu.launches.clear()
        check_sample(gpu, x, size=9, **options)
        assert not gpu.model or {"keys", "chosen"} <= {launch[0] for launch in gpu.launches}


@costly_dtypes
def test_sample_parameters_of_each_row(gpu, dtype):
    x = logits((6, 1500), dtype, sigma=2)
    parameters = {
        "temperature": np.array([0, 0.5, 1, 2, np.inf, 1]),
        "top_k": np.array([-1, 5, 0, 1200, 3, 2**62]),
        "top_p": np.array([1, 0.5, 1, 1, 1, 0.3]),
        "min_p": np.array([0, 0, 0.01, 0.1, 0, 1]),
    }
    check_sample(gpu, x, size=9, **parameters)
    check_sample(gpu, x.reshape(2, 3, 1500), size=(2, 2), **{k: v.reshape(2, 3) for k, v in parameters.items()})
    for name, values in parameters.items():
        check_sample(gpu, x, **{name: values})


def test_sample_layouts(gpu, dtype):
    x = logits((3, 40, 5), dtype)
    for axis in (0, 1, -1, (0, 2), None):
        check_sample(gpu, x, axis=axis, size=2)
    check_sample(gpu, np.asfortranarray(x), axis=1, top_k=3)
    mask = np.random.default_rng(0).random((3, 40, 5)) < 0.5
    mask[..., 0] = True
    check_sample(gpu, np.where(mask, x, np.nan).astype(x.dtype), where=mask, size=9)
    check_sample(gpu, x, where=mask[:, :1], top_p=0.5)
    for shape, size in (((0, 5), 2), ((2, 0, 5), None), ((4, 6), 0)):
        check_sample(gpu, np.zeros(shape, dtype_of(dtype)), size=size)
    there = gpu.cupy.asarray(x)
    out = gpu.cupy.empty((5, 3), np.int64).T
    assert csoftmax.sample(there, axis=1, rng=0, out=out) is out
    assert np.array_equal(out.get(), csoftmax.sample(x, axis=1, rng=0))
    assert np.array_equal(csoftmax.sample(x, rng=0, device="cuda").get(), csoftmax.sample(x, rng=0))
    assert np.array_equal(csoftmax.sample(there, rng=0, device="cpu"), csoftmax.sample(x, rng=0))


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.0}, {"min_p": 0.2}], ids=str)
def test_sample_without_mass(gpu, dtype, options):
    """The error names the row, also where other rows have mass."""
    for value, text in ((np.nan, "NaN"), (np.inf, r"\+inf"), (-np.inf, "only -inf")):
        x = logits((4, 50), dtype)
        x[2, 25 if value != -np.inf else slice(None)] = value
        with pytest.raises(ValueError, match=rf"no mass to draw from in row \(2\): it holds {text}"):
            csoftmax.sample(gpu.cupy.asarray(x), rng=0, **options)
        factor = 1e3 if dtype == "float16" else 1e9  # the latter is beyond exp's range
        x = (x.reshape(2, 2, 50).astype(np.float64) * factor).astype(x.dtype)
        with pytest.raises(ValueError, match=rf"no mass to draw from in row \(1, 0\): it holds {text}"):
            csoftmax.sample(gpu.cupy.asarray(x), rng=0, **options)
    with pytest.raises(ValueError, match=r"in row \(0\): its axis has no classes"):
        csoftmax.sample(gpu.cupy.empty((3, 0), np.float32))
    where = np.ones((4, 50), bool)
    where[3] = False
    with pytest.raises(ValueError, match=r"in row \(3\): where leaves none of its classes"):
        csoftmax.sample(gpu.cupy.asarray(logits((4, 50), dtype)), where=gpu.cupy.asarray(where), rng=0, **options)


def test_sample_with_a_source_for_each_row(gpu):
    x = logits((3, 40), "float32", sigma=2)
    expected = csoftmax.sample(x, rng=[5, 6, 7], size=9)
    assert np.array_equal(csoftmax.sample(gpu.cupy.asarray(x), rng=[5, 6, 7], size=9).get(), expected)
    assert np.array_equal(
        csoftmax.sample(gpu.cupy.asarray(x), rng=gpu.cupy.asarray(np.arange(5, 8)), size=9).get(), expected
    )
    alone = csoftmax.sample(gpu.cupy.asarray(x[1]), rng=6, size=9)
    assert np.array_equal(alone.get(), expected[1])


def test_first_row_without_mass(gpu):
    """The error names the first of rows that are drawn from in different ways, some of them in a second round."""
    x = logits((6, 3000), "float32", sigma=0.1)
    top_k, top_p = np.array([5, 3000, 2000, 3000, 5, 3000]), np.array([1, 1, 1, 0.9, 1, 1])
    for bad in ((1, 4), (4, 5), (0, 1), (3, 5), (2, 3)):
        y = x.copy()
        y[list(bad)] = -np.inf
        with pytest.raises(ValueError, match=rf"in row \({bad[0]}\)"):
            csoftmax.sample(gpu.cupy.asarray(y), top_k=top_k, top_p=top_p, rng=0)


def test_sample_parameters_on_another_device(gpu):
    x = logits((3, 40), "float32")
    there, k = gpu.cupy.asarray(x), np.array([1, 5, 9])
    expected = csoftmax.sample(x, top_k=k, temperature=None, rng=0)
    for given in (k, gpu.cupy.asarray(k)):
        assert np.array_equal(csoftmax.sample(there, top_k=given, temperature=None, rng=0).get(), expected)
        assert np.array_equal(csoftmax.sample(x, top_k=given, rng=0, device="cuda").get(), expected)
        assert np.array_equal(csoftmax.sample(x, top_k=given, rng=0, device="cpu"), expected)
        assert np.array_equal(csoftmax.sample(there, top_k=given, rng=0, device="cpu"), expected)


def test_sample_with_given_uniform_numbers(gpu):
    x = logits((3, 40), "float32", sigma=2)
    u = np.random.default_rng(3).random((3, 5))
    expected = csoftmax.sample(x, uniforms=u, size=5, top_k=9)
    for given in (u, gpu.cupy.asarray(u)):
        got = csoftmax.sample(gpu.cupy.asarray(x), uniforms=given, size=5, top_k=9, order=("temperature", "top_k"))
        assert np.array_equal(got.get(), expected)


def test_options_without_kernels(gpu):
    """They are named; parameters that change nothing need none."""
    x = gpu.cupy.asarray(logits((4, 30)))
    for options, name in (
        ({"typical_p": 0.5}, "typical_p="),
        ({"top_n_sigma": 1.0}, "top_n_sigma="),
        ({"top_k": 3, "top_p": 0.5, "order": ("top_p", "top_k")}, "order="),
        ({"replace": False}, "replace=False"),
        ({"return_log_prob": True}, "return_log_prob=True"),
    ):
        with pytest.raises(csoftmax.DeviceError, match=f"{name} has no kernels for CUDA"):
            csoftmax.sample(x, **options)
    same = csoftmax.sample(x, rng=0, typical_p=1, top_n_sigma=np.inf, order=("typical_p", "top_n_sigma"))
    assert np.array_equal(same.get(), csoftmax.sample(x.get(), rng=0))
    with pytest.raises(csoftmax.DeviceError, match="penalize has no kernels for CUDA"):
        csoftmax.penalize(x, gpu.cupy.asarray(np.zeros((4, 3), np.int64)))


def test_sample_errors(gpu):
    x = gpu.cupy.asarray(logits((4, 30)))
    for options in ({"temperature": -1}, {"top_k": -2}, {"top_p": [0.5, 2, 1, 1]}, {"min_p": [1, 2]}, {"size": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            csoftmax.sample(x, **options)
    with pytest.raises(TypeError, match=r"out must be a cupy.ndarray"):
        csoftmax.sample(x, out=np.empty(4, np.int64))
    with pytest.raises(csoftmax.DeviceError, match="where is on the CPU"):
        csoftmax.sample(x, where=np.ones(30, bool))
    assert not gpu.launches


def test_traffic_of_sample(model, dtype):
    """A row is read once, and the block of 4096 in which a draw lands once more."""
    blocks = 32
    x = model.cupy.asarray(logits((2, 4096 * blocks), dtype))
    model.launches.clear()
    with model_options(count=True, races=False):
        csoftmax.sample(x, rng=0)
    first, again, draw = (16 * launch[4]["load_sectors"] for launch in model.launches)  # bytes of a row
    part = 48 if dtype == "float64" else 24
    records = blocks * (5 * blocks * part + 1024)  # five fields of all blocks, and the temperature; caches hold them
    assert records < 0.75 * blocks * 4096 * x.itemsize
    assert 0 <= first - blocks * 4096 * x.itemsize <= blocks * 1024
    assert again <= records
    assert 0 <= draw - 4096 * x.itemsize <= records
