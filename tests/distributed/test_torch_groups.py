"""csoftmax.torch over groups and with DTensors: bits, gradients, errors on all ranks, a rank that is killed."""

from pathlib import Path

import numpy as np
import pytest
from helpers.rank_processes import run_ranks
from helpers.thread_group import run_on

from csoftmax._arguments.places import DeviceError
from csoftmax.distributed import DistributedError, SingleProcess, softmax

torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")

import csoftmax.torch as ct  # noqa: E402

PROGRAM = Path(__file__).with_name("tensor_program.py")
CUTS = [0, 4096, 6000, 6000, 9000]  # a shard is empty, a block is divided


def results_of(work, ranks=4):
    results = run_on(ranks, work)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_have_the_bits_of_whole_rows(dtype, reduction):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(4, 9000)) * 5).to(dtype)
    target, weight = torch.tensor([3, 8999, -100, 5000]), torch.tensor(rng.random(9000))
    upstream = torch.tensor([1.0, -2.0, 3.0, 0.5]) if reduction == "none" else torch.tensor(0.7)
    options = {"reduction": reduction, "label_smoothing": 0.1, "softcap": None if reduction == "mean" else 30.0}
    leaf = x.clone().requires_grad_()
    expected = ct.cross_entropy(leaf, target, weight=weight, **options)
    expected.backward(upstream.to(expected.dtype))

    def work(group):
        s = slice(*CUTS[group.rank : group.rank + 2])
        shard = x[:, s].clone().requires_grad_()
        loss = ct.cross_entropy(shard, target, group=group, weight=weight[s], **options)
        entered = group.collectives
        loss.backward(upstream.to(loss.dtype))
        assert group.collectives == entered  # none in backward
        with torch.no_grad():
            again = ct.cross_entropy(shard, target, group=group, weight=weight[s], **options)
        return loss.detach(), again, shard.grad

    for loss, again, _ in (results := results_of(work)):
        assert torch.equal(loss, expected.detach())
        assert torch.equal(again, loss)
    assert torch.equal(torch.cat([gradient for *_, gradient in results], 1), leaf.grad)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_and_their_gradients_have_the_bits_of_whole_rows(name, axis):
    rng = np.random.default_rng(1)
    x, dy = (torch.tensor(rng.normal(size=(3, 9000)).astype(np.float32)) for _ in range(2))
    x, dy = (x.T.contiguous(), dy.T.contiguous()) if axis == 0 else (x, dy)
    temperature = torch.tensor([0.5, 1.0, 2.0]).reshape([1, 3] if axis == 0 else [3, 1])
    leaf = x.clone().requires_grad_()
    expected = getattr(ct, name)(leaf, axis, temperature=temperature)
    expected.backward(dy)

    def work(group):
        at = (slice(None),) * axis + (slice(*CUTS[group.rank : group.rank + 2]),)
        shard = x[at].clone().requires_grad_()
        y = getattr(ct, name)(shard, axis, group=group, temperature=temperature)
        y.backward(dy[at])
        return y.detach(), shard.grad

    results = results_of(work)
    assert torch.equal(torch.cat([y for y, _ in results], axis), expected.detach())
    assert torch.equal(torch.cat([gradient for _, gradient in results], axis), leaf.grad)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_may_have_temperatures_of_rows(axis, reduction):
    rng = np.random.default_rng(5)
    x, target = torch.tensor(rng.normal(size=(9000, 3) if axis == 0 else (3, 9000))), torch.tensor([3, 8999, 5000])
    temperature = torch.tensor([0.5, 1.0, 2.0]).reshape([1, 3] if axis == 0 else [3, 1])
    leaf = x.clone().requires_grad_()
    expected = ct.cross_entropy(leaf, target, dim=axis, temperature=temperature, reduction=reduction)
    expected.sum().backward()

    def work(group):
        at = (slice(None),) * axis + (slice(*CUTS[group.rank : group.rank + 2]),)
        shard = x[at].clone().requires_grad_()
        options = {"temperature": temperature, "reduction": reduction}
        loss = ct.cross_entropy(shard, target, dim=axis, group=group, **options)
        loss.sum().backward()
        return loss.detach(), shard.grad

    results = results_of(work)
    assert all(torch.equal(loss, expected.detach()) for loss, _ in results)
    assert torch.equal(torch.cat([gradient for _, gradient in results], axis), leaf.grad)


def run_rows(function, x, dy, axis, cuts, options, order=None):
    """Results and gradients of a function of rows over ranks whose shards end at the cuts, the same on all ranks last.

    order : the number of the shard that each rank has, whose offset is then given; None: that of the rank
    """

    def work(group):
        part = group.rank if order is None else order[group.rank]
        at = (slice(None),) * axis + (slice(*cuts[part : part + 2]),)
        given = options | {"where": options["where"][at]} | ({} if order is None else {"offset": cuts[part]})
        sink = options["sink"].detach().clone().requires_grad_() if "sink" in options else None
        shard = x[at].clone().requires_grad_()
        y = function(shard, axis, group=group, **given | {"sink": sink})
        y.backward(dy[at] if dy.shape == x.shape else dy)
        return part, y.detach(), shard.grad, None if sink is None else sink.grad

    results = sorted(results_of(work, len(cuts) - 1), key=lambda result: result[0])
    ys = [y for _, y, _, _ in results]
    if dy.shape == x.shape:
        y = torch.cat(ys, axis)
    else:
        y = ys[0]
        assert all(torch.equal(other, y) for other in ys)
    sinks = [sink for *_, sink in results]
    assert all(sink is None or torch.equal(sink, sinks[0]) for sink in sinks)
    return y, torch.cat([gradient for _, _, gradient, _ in results], axis), sinks[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1e-30, "rows"])
def test_logsumexp_has_the_bits_of_whole_rows(dtype, temperature):
    rng = np.random.default_rng(6)
    x, dy = torch.tensor(rng.normal(size=(3, 9000)) * 5).to(dtype), torch.tensor([[1.0], [-2.0], [0.3]]).to(dtype)
    where = torch.tensor(rng.random((3, 9000)) < 0.9)
    where[2] = False
    t = torch.tensor([[0.5], [1.0], [1e30]], dtype=torch.float64) if temperature == "rows" else temperature
    for axis, keepdims, cuts in (
        (1, True, CUTS),
        (0, False, CUTS),
        (1, False, [0, 4096, 9000]),
        (1, True, [0, 0, 9000]),
    ):
        rows = x if axis else x.T.contiguous()
        options = {"temperature": t.T if axis == 0 and temperature == "rows" else t, "keepdims": keepdims}
        options["where"] = where if axis else where.T
        upstream = dy if keepdims else dy[:, 0]
        leaf = rows.clone().requires_grad_()
        expected = ct.logsumexp(leaf, axis, **options)
        expected.backward(upstream)
        y, gradient, _ = run_rows(ct.logsumexp, rows, upstream, axis, cuts, options)
        assert torch.equal(y, expected.detach())
        assert torch.equal(gradient, leaf.grad)


def test_ranks_with_different_sinks_are_refused():
    def work(group):
        with pytest.raises(ValueError, match="ranks disagree on sink"):
            ct.softmax(torch.zeros(3, 5), -1, group=group, sink=float(group.rank))
        with pytest.raises(ValueError, match="ranks disagree on the function: rows with a sink on rank 0 and softmax"):
            ct.softmax(torch.zeros(3, 5), -1, group=group, sink=None if group.rank else 1.0)

    results_of(work)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("shape", [(3, 1), (1,), ()])
@pytest.mark.parametrize(
    ("cuts", "order"), [(CUTS, None), ([0, 4096, 4096], None), ([0, 0, 30], [1, 0]), ([0, 4096, 8192, 8192], [2, 1, 0])]
)
def test_sinks_and_their_gradients_are_those_of_whole_rows(name, shape, cuts, order):
    rng = np.random.default_rng(7)
    n, function = cuts[-1], getattr(ct, name)
    x, dy = (torch.tensor(rng.normal(size=(3, n)) * 3) for _ in range(2))
    dy = dy[:, 0].contiguous() if name == "logsumexp" else dy
    sink = torch.tensor(rng.normal(size=shape) * 3).requires_grad_()
    options = {
        "sink": sink,
        "where": torch.tensor(rng.random((3, n)) < 0.8),
        "temperature": torch.tensor([[0.5], [1.0], [2.0]]),
    }
    leaf = x.clone().requires_grad_()
    expected = function(leaf, **options)
    expected.backward(dy)
    y, gradient, of_sink = run_rows(function, x, dy, 1, cuts, options, order)
    assert torch.equal(y, expected.detach())
    assert torch.equal(gradient, leaf.grad)
    assert torch.equal(of_sink, sink.grad)


@pytest.mark.parametrize("temperature", [1.0, torch.linspace(0.5, 2, 5)[:, None]], ids=["number", "rows"])
def test_layers(temperature):
    rng = np.random.default_rng(2)
    x, w, bias = (torch.tensor(rng.normal(size=shape)) for shape in ((5, 6), (9000, 6), (9000,)))
    target = torch.tensor(rng.integers(0, 9000, 5))
    leaves = [t.clone().requires_grad_() for t in (x, w, bias)]
    options = {"temperature": temperature, "softcap": 20.0}
    expected = ct.linear_cross_entropy(*leaves[:2], target, bias=leaves[2], **options)
    (3 * expected).backward()

    def work(group):
        s = slice(*CUTS[group.rank : group.rank + 2])
        shards = [t.clone().requires_grad_() for t in (x, w[s], bias[s])]
        loss = ct.linear_cross_entropy(*shards[:2], target, bias=shards[2], group=group, **options)
        (3 * loss).backward()
        return loss.detach(), *[t.grad for t in shards]

    results = results_of(work)
    close = {"rtol": 1e-11, "atol": 1e-14}
    for loss, grad_x, _, _ in results:
        torch.testing.assert_close(loss, expected.detach(), **close)
        torch.testing.assert_close(grad_x, leaves[0].grad, **close)
    torch.testing.assert_close(torch.cat([r[2] for r in results]), leaves[1].grad, **close)
    torch.testing.assert_close(torch.cat([r[3] for r in results]), leaves[2].grad, **close)


def test_samples():
    x = torch.tensor(np.random.default_rng(3).normal(size=(3, 9000)) * 3)
    expected = ct.sample(x, size=4, rng=5, top_p=0.9)

    def work(group):
        s = slice(*CUTS[group.rank : group.rank + 2])
        return ct.sample(x[:, s], size=4, rng=5 if group.rank == 0 else 6, top_p=0.9, group=group)

    for draws in results_of(work):
        assert torch.equal(draws, expected)


@pytest.mark.parametrize("classes", [5, 5000])
def test_gradcheck(classes):
    rng = np.random.default_rng(4)
    x = torch.tensor(rng.normal(size=(3, classes))).requires_grad_()
    target, group, rows = torch.tensor([0, 4, 2]), SingleProcess(), torch.tensor([[0.5], [1.0], [2.0]])
    functions = [
        lambda x: ct.cross_entropy(x, target, group=group, label_smoothing=0.1, temperature=0.7),
        lambda x: ct.cross_entropy(x, target, group=group, reduction="none"),
        lambda x: ct.log_softmax(x, group=group),
        lambda x: ct.softmax(x, group=group, temperature=2.0),
        lambda x: ct.logsumexp(x, group=group, temperature=rows, sink=0.5),
        lambda x: ct.cross_entropy(x, target, group=group, temperature=rows),
    ]
    for function in functions:
        assert torch.autograd.gradcheck(function, x, fast_mode=classes > 5)


def test_gradients_that_are_taken_twice_add_up():
    """Also where the array of the loss itself is what backward returns, since its own gradient is 1."""
    x, w = (torch.tensor(np.random.default_rng(8).normal(size=shape)).requires_grad_() for shape in ((3, 5), (5, 5)))
    leaf, target, group = x.detach().clone().requires_grad_(), torch.tensor([0, 4, 2]), SingleProcess()
    loss, other = ct.cross_entropy(x, target, group=group), ct.linear_cross_entropy(leaf, w, target, group=group)
    expected = torch.autograd.grad(loss, x, retain_graph=True)[0].clone()
    of_layer = [gradient.clone() for gradient in torch.autograd.grad(other, (leaf, w), retain_graph=True)]
    for count in (1, 2, 3):
        (loss + 0).backward(retain_graph=True)
        (other + 0).backward(retain_graph=True)
        assert torch.equal(x.grad, count * expected)
        assert all(torch.equal(t.grad, count * right) for t, right in zip((leaf, w), of_layer, strict=True))
    x.grad = leaf.grad = None
    (2 * loss + loss).backward()
    torch.testing.assert_close(x.grad, 3 * expected)


def test_second_derivatives_are_refused():
    x = torch.zeros(2, 5, requires_grad=True)
    loss = ct.cross_entropy(x, torch.tensor([0, 1]), group=SingleProcess())
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


@pytest.mark.parametrize("given", [{"n_classes": 3}, {"offset": 0}])
def test_what_is_of_groups_alone_is_refused_without_one(given):
    x, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    (name,) = given
    calls = [
        lambda: ct.cross_entropy(x, target, **given),
        lambda: ct.linear_cross_entropy(x, torch.zeros(4, 3), target, **given),
        lambda: ct.softmax(x, **given),
        lambda: ct.log_softmax(x, **given),
        lambda: ct.logsumexp(x, **given),
        lambda: ct.sample(x, rng=0, **given),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"{name} is {given[name]}, and group is None"):
            call()


def test_an_error_of_one_rank_is_raised_on_all():
    x, target = torch.zeros(2, 5000), torch.tensor([0, 1])

    def work(group):
        bad = group.rank == 1
        changes = {"logits": x.to("meta")}, {"logits": x.long()}, {"target": "no tensor"}, {"temperature": -1.0}
        for change in (*changes, {"temperature": torch.ones(3, 1)}, {"temperature": torch.ones(2, 1).requires_grad_()}):
            given = {"logits": x, "target": target, "temperature": 1.0} | (change if bad else {})
            with pytest.raises(DistributedError, match=r"rank 1: (DeviceError|TypeError|ValueError)"):
                ct.cross_entropy(given["logits"], given["target"], group=group, temperature=given["temperature"])
        for change in ({"sink": torch.ones(3, 1)}, {"sink": "0"}, {"where": x}, {"dim": 2}):
            given = {"dim": 1, "sink": torch.ones(2, 1)} | (change if bad else {})
            with pytest.raises(DistributedError, match=r"rank 1: (TypeError|ValueError)"):
                ct.logsumexp(x, group=group, **given)
        sink = torch.zeros(2, 1, requires_grad=bad)
        with pytest.raises(ValueError, match="disagree on sink requires grad: False on rank 0 and True on rank 1"):
            ct.softmax(x, group=group, sink=sink)
        with pytest.raises(IndexError, match=r"target\[0\] is 20000"):
            ct.cross_entropy(x, torch.tensor([20000, 1]), group=group)
        w = torch.zeros(3, 4, requires_grad=True)
        with pytest.raises(ValueError, match='"none" has no gradient'):
            ct.linear_cross_entropy(torch.zeros(2, 4), w, target, group=group, reduction="none")
        return ct.cross_entropy(x, target, group=group)

    for loss in results_of(work, 2):
        assert loss.item() == np.float32(np.log(10000))


@pytest.mark.slow  # a process takes some seconds to import PyTorch
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_dtensors(ranks, tmp_path):
    for output, code in run_ranks(PROGRAM, ranks, tmp_path / "meeting", "meshes"):
        assert code == 0, output
        assert output.strip().endswith("ok"), output


@pytest.mark.slow
def test_other_ranks_raise_if_one_is_killed_before_backward(tmp_path):
    results = run_ranks(PROGRAM, 3, tmp_path / "meeting", "lose")
    assert results[1][1] == -9
    for output, code in (results[0], results[2]):
        assert code == 0, output


@pytest.fixture
def process_group(request, tmp_path, monkeypatch):
    """The group of one process with a backend of that name."""
    dist = torch.distributed
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(request.param, init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield dist.group.WORLD
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("process_group", [None, "gloo", "cpu:gloo", "cpu:gloo,cuda:gloo"], indirect=True)
def test_gloo_is_known_whatever_names_it(process_group):
    """Without a name, torch tells of an undefined backend, and computes with gloo on the CPU."""
    from csoftmax._distributed.groups import ROOM, as_group

    collectives = as_group(process_group)
    assert collectives.sends_directly
    assert collectives.room == ROOM


@pytest.mark.parametrize("process_group", ["gloo"], indirect=True)
def test_a_destroyed_group_is_refused(process_group):
    x = np.zeros((2, 4))
    assert (softmax(x, group=process_group) == 0.25).all()
    torch.distributed.destroy_process_group()
    with pytest.raises(ValueError, match="not initialized"):
        softmax(x, group=process_group)


def test_a_group_without_arrays_on_the_cpu_is_refused(monkeypatch):
    from csoftmax._distributed import groups

    monkeypatch.setattr(torch.distributed, "get_backend", lambda group: "nccl")
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda group: "cuda:nccl")
    with pytest.raises(DeviceError, match="group has the backend nccl, which has no arrays on the CPU"):
        groups._torch_collectives(object())
