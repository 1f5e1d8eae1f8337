"""Margin softmax against PyTorch: its autograd in double as an oracle, and the operator of csoftmax.torch."""

import math

import numpy as np
import pytest

import csoftmax

torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")
ct = pytest.importorskip("csoftmax.torch")

RNG = np.random.default_rng(0)


def by_autograd(x, w, y, scale=64.0, arc=0.5, cosine=0.0, multiple=1, past_pi="mirror", **options):
    """The loss and its gradients by PyTorch, through the arc cosine, for w of shape (K, C, D)."""
    x, w = (torch.tensor(a, requires_grad=True) for a in (x, w))
    each = torch.einsum("nd,kcd->nkc", *(torch.nn.functional.normalize(a, dim=-1) for a in (x, w)))
    z = each.max(-1).values
    labels = torch.tensor(y)
    arc, cosine = (torch.tensor(np.broadcast_to(v, len(y)).copy()) for v in (arc, cosine))
    theta = torch.acos(z.gather(1, labels[:, None])[:, 0])
    phi = multiple * theta + arc
    psi = torch.cos(phi) - cosine
    if past_pi == "mirror":
        k = torch.floor(phi / math.pi).detach()
        psi = (-1) ** k * torch.cos(phi) - 2 * k - cosine
    elif past_pi == "linear":
        psi = torch.where(phi > math.pi, torch.cos(theta) - arc * torch.sin(arc), psi)
    elif past_pi == "easy":
        psi = torch.where(torch.cos(theta) <= 0, torch.cos(theta), psi)
    z = scale * z.scatter(1, labels[:, None], psi[:, None])
    loss = torch.nn.functional.cross_entropy(z, labels, **options)
    loss.backward()
    return loss.item(), x.grad.numpy(), w.grad.numpy()


def test_gradients_are_those_of_autograd_in_double():
    margins = (
        {},
        {"arc": 0.0, "cosine": 0.35, "label_smoothing": 0.1},
        {"arc": 0.0, "multiple": 4, "scale": 8.0},
        {"past_pi": "linear", "scale": 30.0},
        {"past_pi": "easy", "scale": 30.0, "reduction": "sum"},
        {"past_pi": "none", "arc": 1.0},
        {"arc": RNG.uniform(-0.5, 0.5, 40), "cosine": RNG.uniform(0, 0.5, 40), "ignore_index": 3},
    )
    for options in margins:
        for centers in (1, 3):
            x, w, y = RNG.normal(size=(40, 5)), RNG.normal(size=(12, centers, 5)), RNG.integers(0, 12, 40)
            loss, grad_x, grad_w = by_autograd(x, w, y, **options)
            got = csoftmax.margin_cross_entropy_with_grad(x, w, y, sub_centers=centers, chunk_bytes=3000, **options)
            assert got.loss == pytest.approx(loss, rel=1e-12)
            np.testing.assert_allclose(got.grad_x, grad_x, 1e-9, 1e-11 * np.abs(grad_x).max())
            np.testing.assert_allclose(got.grad_w, grad_w, 1e-9, 1e-11 * np.abs(grad_w).max())


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 4, generator=generator).to(dtype).requires_grad_() for n in (6, 9))
    return x, w, torch.tensor([0, 8, 3, 3, 1, 5])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_operator(dtype):
    x, w, y = tensors(dtype)
    arc, weight, classes = torch.linspace(0, 0.5, 9), torch.linspace(1, 2, 9), torch.tensor([0, 1, 2, 3, 5, 8])
    options = {"arc": arc, "cosine": 0.1, "weight": weight, "classes": classes, "label_smoothing": 0.1, "scale": 8.0}
    options["sample_weight"] = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0, 1.0])
    loss = ct.margin_cross_entropy(x, w, y, **options)
    (2 * loss).backward()
    expected = csoftmax.margin_cross_entropy_with_grad(x.detach(), w.detach(), y, **options)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.detach() == expected.loss
    assert torch.equal(x.grad, (2 * expected.grad_x.double()).to(dtype))
    assert torch.equal(w.grad, (2 * expected.grad_w.double()).to(dtype))
    with torch.no_grad():
        each = ct.margin_cross_entropy(x, w, y, reduction="none")
    assert each.shape == (6,)


def test_operator_is_sound():
    x, w, y = tensors(torch.float64)
    zero = torch.tensor(0.3, dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0, 1.0])
    arguments = x, w, y, zero, zero, None, None, weights, 4.0, 1.0, "mirror", 1, 0.0, -100, 0.0, "mean", True
    torch.library.opcheck(torch.ops.csoftmax.margin_cross_entropy.default, arguments)

    def loss_of(x, w):
        return ct.margin_cross_entropy(x, w, y, scale=4.0, sample_weight=weights)

    assert torch.autograd.gradcheck(loss_of, (x, w))
    assert torch.autograd.grad(loss_of(x, w), x)[0][1].count_nonzero() == 0
    compiled = torch.compile(loss_of, backend="eager", fullgraph=True)(x, w)
    assert torch.equal(compiled, loss_of(x, w))
    recorded = csoftmax.margin_cross_entropy(x, w, y, scale=4.0, sample_weight=weights.tolist())
    assert torch.equal(recorded, compiled)
    centers = torch.randn(9, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: ct.margin_cross_entropy(x, w, y, scale=4.0, sub_centers=2), (centers,))


def test_wrong_arguments():
    x, w, y = tensors()
    for changes, error, message in (
        ({"reduction": "none"}, ValueError, "has no gradient here"),
        ({"arc": torch.tensor(0.5, requires_grad=True)}, TypeError, "arc must not require grad"),
        ({"x": x.detach().numpy()}, TypeError, "x must be a torch.Tensor"),
        ({"x": y}, TypeError, "x must be floating point"),
        ({"sub_centers": True}, TypeError, "sub_centers must be an int"),
        ({"sub_centers": 2}, ValueError, "sub_centers=2, allowed are"),
        ({"scale": -1.0}, ValueError, "scale must be positive"),
        ({"past_pi": "wrap"}, ValueError, "past_pi must be one of"),
        ({"past_pi": 3}, TypeError, "past_pi must be a str, got 3"),
        ({"w": w.detach().numpy()}, TypeError, "w must be a torch.Tensor, got ndarray"),
        ({"target": [0] * 6}, TypeError, "target must be a torch.Tensor, got list"),
        ({"target": None}, TypeError, "target must be a torch.Tensor, got None"),
        ({"sample_weight": [1.0] * 6}, TypeError, "sample_weight must be a torch.Tensor, got list"),
        ({"sample_weight": torch.ones(6, requires_grad=True)}, ValueError, "sample_weight requires grad"),
        ({"sample_weight": torch.ones(5)}, ValueError, "sample_weight"),
        ({"classes": [0, 1]}, TypeError, "classes must be a torch.Tensor, got list"),
        ({"classes": torch.tensor([0, 1])}, ValueError, "classes must contain every target"),
        ({"target": torch.full((6, 9), 0.1)}, TypeError, "target must hold integer labels"),
    ):
        with pytest.raises(error, match=message):
            ct.margin_cross_entropy(**{"x": x, "w": w, "target": y, **changes})
    second = torch.autograd.grad(ct.margin_cross_entropy(x, w, y), x, create_graph=True)[0]
    with pytest.raises(RuntimeError):
        second.sum().backward()
