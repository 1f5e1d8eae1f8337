"""AdaptiveSoftmax against torch.nn.AdaptiveLogSoftmaxWithLoss: the same loss, gradients, log-probabilities, classes."""

import numpy as np
import pytest

from csoftmax.heads import AdaptiveSoftmax

torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")


@pytest.mark.parametrize("head_bias", [True, False])
def test_same_as_pytorch(head_bias):
    for classes, features, cutoffs in ((500, 32, [20, 100, 300, 301]), (40, 8, [39]), (40, 8, [1, 2])):
        torch.manual_seed(0)
        module = torch.nn.AdaptiveLogSoftmaxWithLoss(features, classes, cutoffs, div_value=2.0, head_bias=head_bias)
        module = module.double()
        with torch.no_grad():
            for p in module.parameters():
                p *= 4
        layer = AdaptiveSoftmax.from_torch(module.state_dict())
        assert (layer.cutoffs, layer.n_classes, layer.has_bias) == (cutoffs, classes, head_bias)
        rng = np.random.default_rng(0)
        x = torch.from_numpy(rng.normal(size=(64, features))).requires_grad_()
        y = torch.from_numpy(rng.integers(0, classes, 64))
        output, loss = module(x, y)
        loss.backward()
        result = layer.loss_with_grad(x.detach(), y)
        assert abs(result.loss - loss.item()) < 1e-12
        assert (layer.log_proba(x.detach(), y) - output.detach()).abs().max() < 1e-12
        assert (result.grad_x - x.grad).abs().max() < 1e-13
        given = {"head": module.head.weight}
        if head_bias:
            given["head_bias"] = module.head.bias
        for c, tail in enumerate(module.tail):
            given |= {f"projection{c}": tail[0].weight, f"tail{c}": tail[1].weight}
        assert given.keys() == result.gradients.keys()
        for name, p in given.items():
            theirs = 0 if p.grad is None else p.grad.numpy()  # None where no row falls
            assert np.abs(result.gradients[name] - theirs).max() < 1e-13
        log_prob = module.log_prob(x).detach().numpy()
        assert np.abs(layer.log_proba(x.detach()).numpy() - log_prob).max() < 1e-12
        assert np.array_equal(layer.predict(x.detach().numpy()), module.predict(x).numpy())
        order = np.argsort(-log_prob, axis=1, kind="stable")[:, :7]
        assert np.array_equal(layer.topk(x.detach().numpy(), 7).indices, order)
        narrow = AdaptiveSoftmax.from_torch(module.float().state_dict())
        found = narrow.log_proba(x.detach().numpy())
        assert np.abs(found - log_prob).max() < 1e-4
        assert AdaptiveSoftmax.from_torch(module.bfloat16().state_dict()).dtype == np.float32


def test_sorted_labels_in_float32():
    """The float32 module is nearer to its float64 self than 1e-6, and so is the layer."""
    torch.manual_seed(0)
    module = torch.nn.AdaptiveLogSoftmaxWithLoss(64, 2000, [100, 500], head_bias=True)
    x = torch.randn(128, 64)
    layer = AdaptiveSoftmax.from_torch(module.state_dict())
    exact = module.double().log_prob(x.double()).detach().numpy()
    found = layer.log_proba(x.numpy())
    assert np.abs(found - exact).max() < 1e-6 * np.abs(exact).max()
    y = torch.randint(0, 2000, (128,))
    assert abs(layer.loss(x, y) / module(x.double(), y).loss.item() - 1) < 1e-6
