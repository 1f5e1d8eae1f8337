"""Which derivatives PyTorch gets: gradients; no second ones, no forward mode, and no gradient that is lost."""

import numpy as np
import pytest
from helpers import assert_same_bits

import csoftmax
from csoftmax.samplers import Negatives

torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")
import csoftmax.torch as ct  # noqa: E402

Y, W = torch.tensor([0, 2]), torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
LOSSES = {
    "logsumexp": lambda x: ct.logsumexp(x).sum(),
    "cross_entropy": lambda x: ct.cross_entropy(x, Y),
    "rows": lambda x: ct.cross_entropy(x, Y, reduction="none").sum(),
    "linear": lambda x: ct.linear_cross_entropy(x, W, Y),
    "margins": lambda x: ct.margin_cross_entropy(x, W, Y),
    "sampled": lambda x: ct.sampled_softmax_loss(x, W, Y, torch.tensor([1, 3]), correction="none"),
    "negatives": lambda x: ct.negative_sampling_loss(x, W, Y, torch.tensor([1, 3])),
    "crf": lambda x: ct.crf_loss(x[None], Y[None], W[:3]),
    "crf rows": lambda x: ct.crf_loss(x[None], Y[None], W[:3], reduction="none").sum(),
    "softmax": lambda x: ct.softmax(x).square().sum(),
}


def point():
    return torch.tensor([[0.5, -1.0, 2.0], [3.0, 0.25, -0.5]], dtype=torch.float64, requires_grad=True)


def test_a_second_derivative_is_an_error():
    """Also of a sum with a term that has one, where a constant gradient would go unnoticed."""
    for name, loss in LOSSES.items():
        x = point()
        (grad,) = torch.autograd.grad(loss(x) + x.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no autograd formula"):
            grad.sum().backward()
        with pytest.raises(RuntimeError, match="no autograd formula"):
            torch.autograd.functional.hessian(lambda x, loss=loss: loss(x) ** 2, x.detach())
        assert grad.isfinite().all(), name


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of PyTorch's own modules
def test_forward_mode_is_an_error():
    forward_ad = torch.autograd.forward_ad
    x = point().detach()
    for loss in LOSSES.values():
        for call in (lambda loss=loss: torch.func.jvp(loss, (x,), (x,)), lambda loss=loss: torch.func.jacfwd(loss)(x)):
            with pytest.raises(NotImplementedError, match=r"has a tangent, and csoftmax\.torch has no deriv"):
                call()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        for call in (csoftmax.softmax, csoftmax.logsumexp, lambda dual: csoftmax.cross_entropy(dual, Y)):
            with pytest.raises(NotImplementedError, match="has a tangent"):
                call(dual)
        with pytest.raises(ValueError, match=r"x has a tangent of forward mode.*no topk: pass x\.detach\(\)"):
            csoftmax.topk(dual, 1)
        with torch.no_grad(), pytest.raises(NotImplementedError, match="temperature has a tangent"):
            csoftmax.softmax(x, temperature=dual[0, 0])
        assert torch.equal(csoftmax.softmax(dual.detach()), csoftmax.softmax(x))


def test_vmap_is_handed_over():
    x = point().detach()
    assert torch.equal(torch.func.vmap(csoftmax.softmax)(x), csoftmax.softmax(x))
    assert torch.equal(torch.func.vmap(csoftmax.logsumexp)(x), csoftmax.logsumexp(x))
    with pytest.raises(ValueError, match=r"x is a tensor inside of torch\.func, and csoftmax\.torch has no topk: call"):
        torch.func.vmap(lambda x: csoftmax.topk(x, 1).values)(x)


def test_no_gradient_is_lost():
    """A tensor that requires grad where none flows is refused, here and in a call that is handed over."""
    x, one = point(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    rows, classes = one.expand(2), one.expand(3)
    noise = Negatives(torch.tensor([1]), one[None], None, torch.zeros(2))
    for module in (ct, csoftmax):
        for name, call in (
            ("temperature", lambda m: m.softmax(x, temperature=one)),
            ("temperature", lambda m: m.logsumexp(x.detach(), temperature=one)),
            ("temperature", lambda m: m.log_softmax(x.detach(), temperature=rows[:, None])),
            ("weight", lambda m: m.cross_entropy(x, Y, weight=classes)),
            ("sample_weight", lambda m: m.cross_entropy(x.detach(), Y, sample_weight=rows)),
            ("label_smoothing", lambda m: m.linear_cross_entropy(x, W, Y, label_smoothing=one)),
            ("target", lambda m: m.cross_entropy(x.detach(), ct.softmax(x))),
        ):
            with pytest.raises(ValueError, match=rf"^{name} requires grad, and no gradient.*pass {name}\.detach\(\)"):
                call(module)
    with pytest.raises(ValueError, match=r"negatives\.log_q requires grad"):
        ct.sampled_softmax_loss(x, W, Y, noise)
    with torch.no_grad():
        assert_same_bits(ct.softmax(x, temperature=one).numpy(), csoftmax.softmax(x.detach().numpy()))


def test_writing_is_told_to_autograd():
    """PyTorch refuses the gradient of what has been overwritten, as after an operation of its own."""
    for in_no_grad in (False, True):
        for write in (
            lambda z: csoftmax.softmax(z, out=z),
            lambda z: csoftmax.cross_entropy_with_grad(torch.ones_like(z), torch.tensor([0, 1]), out=z),
            lambda z: csoftmax.add_rows(z, csoftmax.RowGradient(torch.tensor([0]), torch.ones(1, 3))),
        ):
            z, w = torch.ones(2, 3), torch.ones(2, 3, requires_grad=True)
            y, version = (z * w).sum(), z._version
            with torch.set_grad_enabled(not in_no_grad):
                write(z)
            assert z._version > version
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.backward()
    with torch.inference_mode():
        z = torch.ones(2, 3)
        csoftmax.softmax(z, out=z)
    assert torch.equal(csoftmax.softmax(z, out=z), torch.full((2, 3), 1 / 3))


def test_limits_of_the_temperature_have_no_gradient():
    x = point()
    for function in (ct.softmax, ct.log_softmax, ct.logsumexp, csoftmax.softmax):
        for t in (0, 0.0, float("inf"), -1.0, float("nan")):
            with pytest.raises(ValueError, match="temperature must be positive and finite where x requires grad"):
                function(x, temperature=t)
    assert_same_bits(ct.softmax(x.detach(), temperature=0).numpy(), csoftmax.softmax(x.detach().numpy(), temperature=0))


def test_gradients_of_logsumexp_beyond_the_range_of_the_dtype():
    """1/T and dy/T may leave the range of the dtype where their product with the softmax does not."""
    f16, f32, f64 = torch.float16, torch.float32, torch.float64
    for dtype, t, dy, values in (
        (f16, 1e-6, 1.0, (0.0, 1.0)),
        (f16, 1e-8, 6e-8, (0.0, 1.0)),
        (f16, 1e5, 6e4, (0.0, 1.0)),
        (f32, 1e40, 1e30, (0.0, 1.0)),
        (f32, 1e-40, 1e-30, (0.0, 1.0)),
        (f32, 1e-300, 1e-30, (0.0, 1.0)),
        (f64, 1e-300, 1e-200, (0.0, 1.0)),
        (f64, 1e-300, 1e200, (0.0, 1.0)),
        (f64, 1e300, 1e-10, (0.0, 1.0)),
        (f64, 1e300, 1e308, (0.0, 1.0)),
        (f64, 5e-324, 1e-20, (0.0, 0.0)),
    ):
        x = torch.tensor(values, dtype=dtype, requires_grad=True)
        given = torch.tensor(dy, dtype=dtype)
        ct.logsumexp(x, temperature=t).backward(given)
        p = np.longdouble(csoftmax.softmax(x.detach().numpy(), temperature=t))
        with np.errstate(over="ignore", under="ignore"):
            expected = (p * np.longdouble(given.numpy()) / np.longdouble(t)).astype(x.detach().numpy().dtype)
        tolerance = 0 if dtype == f16 else 4 * torch.finfo(dtype).eps
        np.testing.assert_allclose(x.grad.numpy(), expected, rtol=tolerance, err_msg=f"{dtype} {t}")


def test_tensors_without_axes():
    x = torch.tensor(3.0, requires_grad=True)
    for keepdims in (False, True):
        assert ct.logsumexp(x, keepdims=keepdims).shape == ()
    ct.logsumexp(x, temperature=2.0).backward()
    assert x.grad.item() == 0.5


@pytest.mark.slow
def test_numbers_may_change_in_compiled_functions():
    """Without a break of the graph: the second value makes a number a symbol."""

    def compiled(function, **options):
        torch.compiler.reset()
        return torch.compile(function, backend="eager", fullgraph=True, **options)

    one = torch.tensor(3.0, requires_grad=True)
    assert torch.compile(lambda x: ct.logsumexp(x), backend="aot_eager", fullgraph=True)(one).shape == ()
    x = point().detach()
    for options in ({}, {"dynamic": True}):
        softmax = compiled(lambda x, t, dim: ct.softmax(x, dim, temperature=t), **options)
        for t, dim in ((1.5, 0), (1.4, 1), (2, 0), (1.3, -1)):
            assert torch.equal(softmax(x, t, dim), ct.softmax(x, dim, temperature=t))
        total = compiled(lambda x, t: ct.logsumexp(x, temperature=t, keepdims=True), **options)
        for n, t in ((1, 0.5), (2, 0.7), (2, 0.9)):
            assert torch.equal(total(x[:n], t), ct.logsumexp(x[:n], temperature=t, keepdims=True))
        loss = compiled(lambda x, t: ct.cross_entropy(x, Y, temperature=t, z_loss=t / 10), **options)
        for t in (0.5, 0.7, 0.9):
            z = point()
            loss(z, t).backward()
            assert torch.equal(z.grad, csoftmax.cross_entropy_with_grad(x, Y, temperature=t, z_loss=t / 10).grad)


def test_arguments_of_the_sampled_losses_are_checked():
    x, negatives = point(), torch.tensor([1])
    for error, message, options in (
        (TypeError, r"w must be a torch\.Tensor, got ndarray", {"w": W.numpy()}),
        (TypeError, r"target must be a torch\.Tensor, got list", {"target": [0, 1]}),
        (TypeError, r"target must be a torch\.Tensor, got None", {"target": None}),
        (TypeError, r"bias must be a torch\.Tensor, got list", {"bias": [0.0] * 4}),
        (TypeError, r"weight must be a torch\.Tensor, got list", {"weight": [1.0] * 4}),
        (ValueError, 'reduction must be "none", "sum" or "mean", got None', {"reduction": None}),
        (ValueError, 'accidental_hits must be "mask" or "keep", got True', {"accidental_hits": True}),
    ):
        with pytest.raises(error, match=message):
            ct.negative_sampling_loss(x, options.pop("w", W), options.pop("target", Y), negatives, **options)
    with pytest.raises(ValueError, match="correction must be"):
        ct.sampled_softmax_loss(x, W, Y, negatives, correction=None)
