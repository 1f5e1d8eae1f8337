"""Calls of csoftmax.torch over ranks, compared with those of whole tensors; for test_torch_groups.py and programs."""

import warnings

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import csoftmax.torch as ct
from csoftmax.distributed import DistributedError


def same(a, b, what=""):
    a, b = a.detach(), b.detach()
    assert (a.dtype, a.shape) == (b.dtype, b.shape), what
    equal = (a == b) | (a.isnan() & b.isnan())
    assert bool(equal.all()), (what, a, b)


def make_problem(seed, rows, classes, dtype=torch.float32):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(size=(rows, classes)) * 4).to(dtype)
    return x, torch.tensor(rng.integers(0, classes, rows)), torch.tensor(rng.random(classes)).to(dtype)


def loss_and_gradient(x, *arguments, **options):
    leaf = x.detach().requires_grad_()
    loss = ct.cross_entropy(leaf, *arguments, **options)
    (loss.sum() if loss.dim() else loss).backward()
    return loss, leaf.grad


def whole(x):
    return x.full_tensor() if isinstance(x, DTensor) else x


def check_dtensor_losses(mesh, placements, rows, classes, seed=0):
    """A loss of a DTensor, with every kind of argument beside it, has the bits of the whole one."""
    x, target, weight = make_problem(seed, rows, classes)
    soft, temperature = torch.softmax(x.flip(0), -1), torch.linspace(0.5, 2, rows)[:, None]
    cases = [
        (target, {}),
        (target, {"reduction": "sum", "label_smoothing": 0.1}),
        (target, {"reduction": "none"}),
        (target, {"weight": weight, "sample_weight": torch.arange(rows) + 1.0}),
        (soft, {"reduction": "none"}),
        (target, {"temperature": temperature}),
        (target, {"temperature": torch.tensor([0.7])}),
        (target, {"temperature": temperature}),
        (target, {"temperature": torch.tensor([0.7])}),
    ]
    for labels, options in cases:
        expected, gradient = loss_and_gradient(x, labels, **options)
        result, found = loss_and_gradient(distribute_tensor(x, mesh, placements), labels, **options)
        assert isinstance(result, DTensor)
        if options.get("reduction") != "none":
            assert all(p.is_replicate() for p in result.placements)
        same(whole(result), expected, options)
        assert found.placements == tuple(placements)
        same(whole(found), gradient, options)


def check_dtensor_rows(mesh, placements, rows, classes):
    """Functions of rows of a DTensor, with temperatures and sinks that are DTensors or the same on all ranks."""
    x, _, dy = make_problem(1, rows, classes)
    dy = dy.expand(rows, classes).contiguous()
    t, sink = torch.linspace(0.5, 2, rows)[:, None], torch.linspace(-1, 1, rows)[:, None]
    kept = [p if p.is_shard(0) else Replicate() for p in placements]
    cases = [(function, {}) for function in (ct.softmax, ct.log_softmax, ct.logsumexp)]
    cases += [(ct.logsumexp, {"keepdims": True, "temperature": t}), (ct.log_softmax, {"sink": sink, "temperature": t})]
    cases += [(ct.logsumexp, {"sink": distribute_tensor(sink, mesh, kept)}), (ct.softmax, {"sink": torch.tensor(0.5)})]
    for function, options in cases:
        is_sum, keepdims = function is ct.logsumexp, "keepdims" in options
        leaf, sinks = x.clone().requires_grad_(), [None, None]
        if "sink" in options:
            sinks = [whole(options["sink"]).clone().requires_grad_(), options["sink"].detach().clone().requires_grad_()]
        y = function(leaf, **options | {"sink": sinks[0]})
        upstream = dy[:, :1] if keepdims else dy[:, 0] if is_sum else dy
        y.backward(upstream)
        sharded = distribute_tensor(x, mesh, placements).requires_grad_()
        result = function(sharded, **options | {"sink": sinks[1]})
        placed = kept if is_sum else placements
        assert result.placements == tuple(placed)
        same(whole(result), y)
        result.backward(distribute_tensor(upstream.contiguous(), mesh, placed))
        same(whole(sharded.grad), leaf.grad)
        if sinks[0] is not None:  # for more than one row, that of a number is a sum over ranks
            close = {"rtol": 0, "atol": 0} if sinks[0].dim() else {}
            torch.testing.assert_close(whole(sinks[1].grad), sinks[0].grad, **close)
    expected = ct.sample(x, size=(2,), rng=3, top_k=50)
    same(whole(ct.sample(distribute_tensor(x, mesh, placements), size=(2,), rng=3, top_k=50)), expected)


def check_dtensor_layers(mesh, of_rows, of_classes, rows, classes):
    x, target, _ = make_problem(2, rows, 8, torch.float64)
    w, _, bias = make_problem(3, classes, 8, torch.float64)
    bias = torch.linspace(-1, 1, classes, dtype=torch.float64)
    target = target % classes
    t = torch.linspace(0.5, 2, rows)[:, None]
    leaves = [t.clone().requires_grad_() for t in (x, w, bias)]
    expected = ct.linear_cross_entropy(*leaves[:2], target, bias=leaves[2], temperature=t)
    expected.backward()
    sharded = [
        distribute_tensor(t, mesh, p).requires_grad_() for t, p in ((x, of_rows), (w, of_classes), (bias, of_classes))
    ]
    loss = ct.linear_cross_entropy(*sharded[:2], target, bias=sharded[2], temperature=t)
    loss.backward()
    torch.testing.assert_close(whole(loss), expected.detach(), rtol=1e-14, atol=0)
    for leaf, found in zip(leaves, sharded, strict=True):
        torch.testing.assert_close(whole(found.grad), leaf.grad, rtol=1e-11, atol=1e-14)


def check_refusals(mesh):
    x = torch.zeros(4, 6)
    for placements, axis, text in (
        ([Partial()] * mesh.ndim, -1, "Partial"),
        ([Shard(0)] * mesh.ndim, 7, "dim must be an axis"),
        *([([Shard(1)] * mesh.ndim, -1, "at most one")] if mesh.ndim > 1 else []),
    ):
        given = DTensor.from_local(x, mesh, placements)
        with pytest.raises(ValueError, match=text):
            ct.cross_entropy(given, torch.zeros(4, dtype=torch.int64), dim=axis)


def check_bad_labels(mesh, placements, shape):
    """A label that is no class is named by its row among those of all ranks, along whichever axis they are divided."""
    x = torch.zeros(*shape, 5000)
    target = torch.zeros(shape, dtype=torch.int64)
    target.view(-1)[-1] = 5000
    place = ", ".join(str(n - 1) for n in shape)
    with pytest.raises((IndexError, DistributedError), match=rf"target\[{place}\] is 5000: the classes are 0 to 4999"):
        ct.cross_entropy(distribute_tensor(x, mesh, placements), target)
    if len(shape) == 1 and placements[0] == Shard(0):
        w, of_w = torch.zeros(5000, 2), [Shard(0) if p == Shard(1) else Replicate() for p in placements]
        of_x = [p if p == Shard(0) else Replicate() for p in placements]
        with pytest.raises((IndexError, DistributedError), match=rf"target\[{place}\] is 5000"):
            ct.linear_cross_entropy(
                distribute_tensor(torch.zeros(*shape, 2), mesh, of_x), distribute_tensor(w, mesh, of_w), target
            )


def check_compiled_calls(mesh):
    """torch.compile leaves functions over ranks to Python, and compiles what is around them."""
    x, target, _ = make_problem(4, 3, 9000)
    sharded = distribute_tensor(x, mesh, [Shard(1)])
    group, local = mesh.get_group(), sharded.to_local()
    calls = [
        (lambda x: ct.cross_entropy(2 * x, target) + 1, sharded),
        (lambda x: ct.cross_entropy(2 * x, target, group=group) + 1, local),
        (lambda x: ct.logsumexp(2 * x, group=group).sum(), local),
    ]
    for function, given in calls:
        leaves = [given.detach().clone().requires_grad_() for _ in range(2)]
        results = [function(leaves[0])]
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Dynamo detected")  # what its users need not read
            results.append(torch.compile(function, backend="eager")(leaves[1]))
        for result in results:
            whole(result).backward()
        same(whole(results[1]), whole(results[0]))
        same(whole(leaves[1].grad), whole(leaves[0].grad))


def check_meshes(size):
    """All of this on the meshes that `size` ranks have."""
    line = init_device_mesh("cpu", (size,))
    for classes in (3, 5000, 8192 * size, 20000):  # some shards are empty, some divide blocks
        check_dtensor_losses(line, [Shard(1)], 5, classes)
    check_dtensor_losses(line, [Shard(0)], 7, 50)
    check_dtensor_losses(line, [Shard(0)], 1, 5000)
    check_dtensor_losses(line, [Replicate()], 5, 5000)
    check_dtensor_rows(line, [Shard(1)], 3, 9001)
    check_dtensor_rows(line, [Shard(0)], 5, 100)
    check_dtensor_layers(line, [Replicate()], [Shard(0)], 6, 9000)
    check_dtensor_layers(line, [Shard(0)], [Replicate()], 7, 40)
    check_refusals(line)
    check_bad_labels(line, [Shard(0)], (7,))
    check_bad_labels(line, [Shard(1)], (3, 7))
    if size == 2:
        check_compiled_calls(line)
    if size == 4:
        square = init_device_mesh("cpu", (2, 2))
        check_dtensor_losses(square, [Shard(0), Shard(1)], 5, 9001)
        check_dtensor_losses(square, [Shard(1), Shard(0)], 21, 50)
        check_dtensor_losses(square, [Shard(0), Shard(0)], 21, 50)
        check_dtensor_losses(square, [Shard(1), Replicate()], 4, 9001)
        check_dtensor_rows(square, [Shard(0), Shard(1)], 5, 9001)
        check_dtensor_layers(square, [Shard(0), Replicate()], [Replicate(), Shard(0)], 9, 9000)
        check_bad_labels(square, [Shard(0), Shard(1)], (11,))
        check_bad_labels(square, [Shard(1), Shard(2)], (2, 7))
        check_bad_labels(square, [Shard(0), Shard(0)], (11,))
        check_refusals(square)
