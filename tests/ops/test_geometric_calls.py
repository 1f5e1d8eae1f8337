"""Calls of csoftmax.geometric in hard circumstances: instruction sets, Ctrl-C, failing allocations, other arrays."""

import sys
import tracemalloc

import numpy as np
import pytest
from helpers import assert_same_bits, compile_library, run_python
from helpers.failing_allocations import SHIM
from helpers.signals import seconds_to_stop

import csoftmax
from csoftmax import adversarial, geometric
from csoftmax._cpu import binding
from csoftmax.geometric import (
    Cost,
    bessel_ratio,
    g_cross_entropy_with_grad,
    g_logsumexp,
    g_softmax,
    g_softmax_vjp,
    log_bessel_iv,
    poincare_logits,
    vmf_logits,
)


def compute_all(seed):
    """Everything of g-softmax, for sizes with and without a rest of lanes."""
    rng = np.random.default_rng(seed)
    found = []
    for n in (1, 3, 8, 13, 50):
        cost = Cost(points=rng.normal(size=(n, 3)))
        for scale in (0.1, 20.0):
            x = rng.normal(size=(9, n)) * scale
            y, gap = g_softmax(x, cost, return_gap=True)
            found += [y, gap, g_logsumexp(x, cost), g_softmax_vjp(x, y, cost)]
            found += g_cross_entropy_with_grad(x, rng.random((9, n)), cost)
    return found


def compute_ridge(seed):
    """A row that needs a ridge."""
    i = np.random.default_rng(seed).permutation(200)
    return g_softmax(-0.5 * ((i - 80.0) / 8) ** 2, Cost(points=i, sigma=3), return_gap=True)


@pytest.mark.parametrize("compute", [compute_all, pytest.param(compute_ridge, marks=pytest.mark.slow)])
def test_bits_of_every_instruction_set(compute, keep_isa):
    expected = compute(3)
    for name in binding.isa_available():
        binding.select_isa(name)
        for a, b in zip(compute(3), expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_long_calls_see_ctrl_c():
    """Between rows and within one; what is right before is right afterwards."""
    rng = np.random.default_rng(0)
    small = Cost(points=rng.normal(size=(100, 6)))
    many = np.broadcast_to(2 * rng.normal(size=100), (2_000_000, 100))
    wide = np.arange(3000.0)
    one = -0.5 * ((wide - 1500) / 400) ** 2
    line = Cost(points=wide, metric="euclidean", sigma=100)
    expected = g_softmax(many[0], small)
    for threads in (1, 2):
        assert seconds_to_stop(lambda threads=threads: g_logsumexp(many, small, num_threads=threads)) < 1
        assert seconds_to_stop(lambda threads=threads: g_softmax(one, line, num_threads=threads)) < 1
        np.testing.assert_array_equal(g_softmax(many[0], small), expected)


def measure_memory(call):
    """The largest number of bytes of NumPy's arrays that a call has at a time."""
    tracemalloc.start()
    call()
    largest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return largest


def test_many_rows_and_arguments_are_computed_in_blocks():
    """Signals are seen between blocks, and arrays of a block take no more memory however many there are."""
    rng = np.random.default_rng(0)
    x, points = rng.uniform(0, 100, 1 << 17), rng.normal(size=(1 << 17, 8)).astype(np.float32)
    w = rng.normal(size=(4, 8)).astype(np.float32)
    for function in (log_bessel_iv, bessel_ratio):
        assert measure_memory(lambda function=function: function(3.0, x)) < 10 * x.nbytes
    for function, options in ((vmf_logits, {"kappa": 3.0}), (poincare_logits, {"c": 1e-3, "coordinates": "ball"})):
        assert measure_memory(lambda f=function, o=options: f(points, w, **o)) < 5.5 * points.nbytes
    nu, few = rng.uniform(0, 40, (3, 1)), x[::-11]
    for function in (log_bessel_iv, bessel_ratio):
        whole = function(nu, few)
        assert whole.shape == (3, few.size)
        for part in (slice(5, 6), slice(4460, 4475), slice(-3, None)):
            assert_same_bits(whole[:, part], function(nu, few[part].copy()))


def test_device():
    """There are no kernels for CUDA; "cpu" changes nothing for other arrays."""
    x, w, y = np.array([[1.0, 2.0, 0.5]]), np.array([[0.0, 1.0, 0.0], [1.0, 0.5, -1.0]]), [1]
    cost = Cost(points=np.arange(3.0))
    for call in (
        lambda **o: g_softmax(x, cost, **o),
        lambda **o: g_logsumexp(x, cost, **o),
        lambda **o: g_softmax_vjp(x, g_softmax(x, cost), cost, **o),
        lambda **o: g_cross_entropy_with_grad(x, y, cost, **o).grad,
        lambda **o: geometric.poincare_cross_entropy_with_grad(x, w, y, **o).grad_w,
        lambda **o: geometric.vmf_cross_entropy_with_grad(x, w, 1.0, y, **o).grad_mu,
        lambda **o: adversarial.robust_cross_entropy_with_grad(x, w, y, eps=0.1, **o).grad_w,
        lambda **o: adversarial.vat_loss_with_grad(x, w, eps=0.1, **o).grad_w,
        lambda **o: (
            adversarial.trades_loss_with_grad(
                x, w, y, eps=0.1, rng=0, bounds=(None, 3), sample_weight=[2.0], **o
            ).grad_w
        ),
    ):
        assert_same_bits(call(device="cpu"), call())
        with pytest.raises(ValueError, match='device must be None, "cpu", "cuda"'):
            call(device="gpu")
        with pytest.raises(csoftmax.DeviceError, match="CUDA"):
            call(device="cuda")


@pytest.mark.skipif(np.longdouble == np.float64, reason="long double is float64 here")
def test_long_double_is_refused_wherever_an_array_is():
    x, w = np.array([[0.5, 0.25]]), np.eye(2)
    cost = Cost(points=[0.0, 1.0])
    for name, call in {
        "temperature": lambda v: g_softmax(x, cost, temperature=v),
        "kappa": lambda v: vmf_logits(x, w, v),
        "log_prior": lambda v: vmf_logits(x, w, 1.0, log_prior=v),
        "bias": lambda v: poincare_logits(x, w, v),
        "nu": lambda v: log_bessel_iv(v, 1.0),
        "arc": lambda v: csoftmax.margin_cross_entropy(x, w, [0], arc=v),
        "cosine": lambda v: csoftmax.margin_cross_entropy(x, w, [0], cosine=v),
        "bounds: high": lambda v: adversarial.certify(x, w, bounds=(0, v)),
    }.items():
        with pytest.raises(TypeError, match=rf"^{name} has dtype float\d+; allowed.*\.astype\(numpy\.float64\)$"):
            call(np.ones(2, np.longdouble))
    with pytest.raises(TypeError, match=r"^bias has dtype float\d+"):
        adversarial.certify(x, w, bias=np.ones(2, np.longdouble))


ALLOCATIONS = """
import numpy as np
from csoftmax.geometric import Cost, g_cross_entropy_with_grad, g_softmax, g_softmax_vjp
from helpers.failing_allocations import fail_every_allocation
rng = np.random.default_rng(0)
cost, x, q = Cost(points=rng.normal(size=(30, 3))), rng.normal(size=(200, 30)), rng.random((200, 30))
y = g_softmax(x, cost)
print(fail_every_allocation(lambda: g_softmax(x, cost, num_threads=2), "g_softmax"))
print(fail_every_allocation(lambda: g_softmax_vjp(x, y, cost, num_threads=2), "g_softmax_vjp"))
print(fail_every_allocation(lambda: tuple(g_cross_entropy_with_grad(x, q, cost, num_threads=2)), "the loss"))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the library is preloaded")
def test_failing_allocations(tmp_path):
    shim = compile_library(tmp_path, SHIM, "shim")
    counts = [int(line) for line in run_python(ALLOCATIONS, LD_PRELOAD=str(shim)).stdout.split()]
    assert min(counts) >= 2, counts


class Exported:
    """An array of another library, which knows DLPack alone."""

    def __init__(self, array):
        self.array = np.array(array)  # NumPy before 2.1 exports no read-only arrays

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_arrays_of_other_libraries():
    """What every function takes: DLPack, objects with __array__ as data frames are, lists."""
    rng = np.random.default_rng(1)
    x, w, target = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), np.array([0, 2, 1, 0])

    class Frame:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return np.array(self.array, dtype)

    cost = Cost(points=w[:3])
    calls = {
        "g_softmax": lambda of: geometric.g_softmax(of(x), of(cost.matrix)),
        "g_logsumexp": lambda of: geometric.g_logsumexp(of(x), cost),
        "g_softmax_vjp": lambda of: geometric.g_softmax_vjp(of(x), of(g_softmax(x, cost)), cost),
        "g_cross_entropy_with_grad": lambda of: geometric.g_cross_entropy_with_grad(of(x), of(target), cost).grad,
        "poincare_logits": lambda of: geometric.poincare_logits(of(x), of(w)),
        "poincare_cross_entropy_with_grad": lambda of: (
            geometric.poincare_cross_entropy_with_grad(of(x), of(w), of(target)).grad_w
        ),
        "vmf_logits": lambda of: geometric.vmf_logits(of(x), of(w), of(np.arange(5.0))),
        "vmf_cross_entropy_with_grad": lambda of: (
            geometric.vmf_cross_entropy_with_grad(of(x), of(w), of(np.arange(5.0)), of(target)).grad_kappa
        ),
        "log_bessel_iv": lambda of: geometric.log_bessel_iv(of(abs(x)), of(abs(x))),
        "bessel_ratio": lambda of: geometric.bessel_ratio(2, of(abs(x))),
    }
    assert set(calls) == {name for name in geometric.__all__ if name[0].islower()}
    for name, call in calls.items():
        expected = call(np.asarray)
        for of in (Exported, Frame, np.ndarray.tolist):
            np.testing.assert_array_equal(np.asarray(call(of)), expected, err_msg=f"{name}, {of}")
