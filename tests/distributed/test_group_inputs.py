"""What functions over shards read as arrays: masks are not dropped, and collections of Dask not computed."""

import numpy as np
import pytest

import csoftmax
from csoftmax import distributed
from csoftmax.distributed import Nodes, SingleProcess, merge, partial
from csoftmax.heads import AdaptiveSoftmax, HierarchicalSoftmax, Tree

GROUP = SingleProcess()
X = np.random.default_rng(0).random((3, 4097))
NUMBERS = np.array([0.5, 1.0, 1.0])
LABELS = [0, 1, 2]


def finish_records(a):
    part = partial(X, offset=0, n_classes=8192)
    return distributed.finish_softmax(X, part, a)


def finish_gradient(a):
    part = partial(X, offset=0, n_classes=4097, kind="loss", target=LABELS)
    return distributed.finish_gradient(X, part, merge(part), divisor=a[0])


def sample(name):
    return name, lambda a: distributed.sample(X, group=GROUP, **{"rng": 0, name: a})


CALLS = {
    "merged": finish_records,
    "divisor": finish_gradient,
    "row_max": lambda a: partial(X, offset=0, n_classes=4097, row_max=a),
    "records": lambda a: merge(a, a),
    "bias": lambda a: distributed.linear_cross_entropy(X[:, :3], X[:, :3], LABELS, group=GROUP, bias=a),
    "values": lambda a: Nodes.nodes(a, 0),
} | dict(map(sample, ("temperature", "top_k", "top_p", "min_p")))


@pytest.mark.parametrize("name", CALLS)
def test_masks_are_not_dropped(name):
    with pytest.raises(TypeError, match=f"^{name} is a masked array"):
        CALLS[name](np.ma.array(NUMBERS, mask=[True, False, False]))


@pytest.mark.parametrize("name", CALLS)
def test_collections_of_dask_are_not_computed(name):
    dask = pytest.importorskip("dask")
    arrays = pytest.importorskip("dask.array")

    def compute(*_arguments, **_options):
        raise AssertionError("a collection was computed")

    with dask.config.set(scheduler=compute), pytest.raises(TypeError, match=f"^{name} is a dask Array"):
        CALLS[name](arrays.from_array(NUMBERS, chunks=2))


def test_one_array_of_records_that_is_masked_is_refused():
    records = partial(X, offset=0, n_classes=4097).records
    with pytest.raises(TypeError, match=r"^records is a masked array"):
        merge(np.ma.array(records, mask=records > 0))


def test_row_max_holds_real_numbers():
    with pytest.raises(TypeError, match=r"^row_max has dtype complex128"):
        partial(X, offset=0, n_classes=4097, row_max=[1j] * 3)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_is_refused_whether_there_is_one_or_not(device):
    with pytest.raises(csoftmax.DeviceError, match="functions over a group compute on the CPU") as error:
        distributed.softmax(X, group=GROUP, device=device)
    assert "CuPy" not in str(error.value)
    with pytest.raises(ValueError, match='must be None, "cpu"'):
        distributed.softmax(X, group=GROUP, device="gpu")


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_layers_that_compute_on_the_cpu_say_so(device):
    with pytest.raises(csoftmax.DeviceError, match="AdaptiveSoftmax computes on the CPU only"):
        AdaptiveSoftmax(4, 9, device=device)
    with pytest.raises(csoftmax.DeviceError, match="HierarchicalSoftmax computes on the CPU"):
        HierarchicalSoftmax(4, Tree.balanced(9), device=device)


def test_temperatures_are_tensors_of_bfloat16():
    torch = pytest.importorskip("torch")
    pytest.importorskip("ml_dtypes")
    temperature = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.bfloat16)
    numbers = temperature.float().numpy()
    for name, more in (("softmax", ()), ("log_softmax", ()), ("logsumexp", ()), ("topk_softmax", (2,))):
        function = getattr(distributed, name)
        found, expected = (function(X, *more, group=GROUP, temperature=t) for t in (temperature, numbers))
        np.testing.assert_array_equal(found, expected, err_msg=name)
    parts = (partial(X, offset=0, n_classes=4097, temperature=t) for t in (temperature, numbers))
    np.testing.assert_array_equal(*(distributed.finish_softmax(X, part, merge(part)) for part in parts))
