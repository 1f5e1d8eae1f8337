"""The argument out of functions over groups: the same bits wherever it lies, and left as it is by a bad label."""

import numpy as np
import pytest
from helpers import assert_same_bits
from helpers.thread_group import run_on

import csoftmax
from csoftmax import distributed


@pytest.mark.parametrize("scale", [1.0, 1e7])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("cuts", [[0, 4096, 9000], [0, 5000, 9000]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_of_any_layout(scale, softcap, cuts, dtype):
    """It may be the logits, which a second round, of the rows with large ones, reads again."""
    rng = np.random.default_rng(0)
    x, target = (rng.normal(size=(3, 9000)) * [[1], [scale], [3]]).astype(dtype), np.array([1, 8999, 4500])
    expected = csoftmax.cross_entropy_with_grad(x, target, softcap=softcap)
    y = csoftmax.softmax(x)

    def work(group):
        own = x[:, slice(*cuts[group.rank : group.rank + 2])]
        wide, found = np.empty((3, 2 * own.shape[1]), dtype), []
        outs = np.empty(own.shape, dtype), np.empty(own.T.shape, dtype).T, wide[:, ::2], wide[:, own.shape[1] :]
        for out in outs:
            got = distributed.cross_entropy_with_grad(own, target, softcap=softcap, group=group, out=out)
            assert got.grad is out
            found += [out.copy(), distributed.softmax(own, group=group, out=out).copy()]
        logits = [own.copy(), own.copy()]
        distributed.cross_entropy_with_grad(logits[0], target, softcap=softcap, group=group, out=logits[0])
        distributed.softmax(logits[1], group=group, out=logits[1])
        return found + logits

    results = run_on(2, work)
    for result in results:
        assert not isinstance(result, Exception), result
    for i, parts in enumerate(zip(*results, strict=True)):
        assert_same_bits(np.concatenate(parts, axis=1), y if i % 2 else expected.grad)


@pytest.mark.parametrize(
    "options",
    [
        {"softcap": 1.0, "temperature": 0.5},
        {"softcap": 1.0, "upstream": 4.0, "reduction": "sum"},
        {"upstream": 1e30, "reduction": "sum"},
        {"softcap": 2.0, "clip_norm": 0.1},
    ],
)
@pytest.mark.parametrize("in_place", [{0}, {1}, {0, 1}])
def test_rows_whose_gradients_underflow(options, in_place):
    """These are computed from whole rows, which are gathered before a gradient is written over the logits of a rank."""
    x = (np.random.default_rng(3).normal(size=(2, 9000)) * [[1e4], [50]]).astype(np.float32)
    expected = csoftmax.cross_entropy_with_grad(x, [1, 8999], **options)

    def work(group):
        own = x[:, slice(*[0, 4096, 9000][group.rank : group.rank + 2])].copy()
        out = own if group.rank in in_place else None
        return distributed.cross_entropy_with_grad(own, [1, 8999], group=group, out=out, **options).grad

    assert_same_bits(np.concatenate(run_on(2, work), axis=1), expected.grad)


def test_a_bad_label_leaves_out_as_it_is():
    out = np.full((2, 8192), 7.0)
    with pytest.raises(IndexError, match=r"target\[1\] is 9000"):
        distributed.cross_entropy_with_grad(np.zeros((2, 8192)), [1, 9000], group=distributed.SingleProcess(), out=out)
    assert (out == 7).all()


@pytest.mark.parametrize(("n", "cut", "with_out"), [(8192, 4096, {0}), (8192, 4096, {1}), (3000, 0, {0, 1})])
def test_a_bad_label_is_raised_on_all_ranks_wherever_powers_are_kept(n, cut, with_out):
    """Only some ranks may keep powers in their out: those that have one, and whose blocks are not divided."""
    outs = {}

    def work(group):
        own = np.zeros((2, n))[:, slice(*[0, cut, n][group.rank : group.rank + 2])]
        out = outs[group.rank] = np.full(own.shape, 7.0) if group.rank in with_out else None
        return distributed.cross_entropy_with_grad(own, [0, n], group=group, out=out)

    for error in run_on(2, work):
        assert isinstance(error, IndexError), error
        assert f"target[1] is {n}" in str(error)
    assert all(out is None or (out == 7).all() for out in outs.values())
