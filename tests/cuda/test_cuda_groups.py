"""Functions over groups, which compute on the CPU: arrays on a GPU are refused, and copied where device says so."""

import numpy as np
import pytest

import csoftmax
from csoftmax import distributed
from csoftmax.distributed import SingleProcess

X = np.random.default_rng(0).normal(size=(3, 9000)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(5, 9000)).astype(np.float32)
Y = [0, 3, 2]
CALLS = {
    "softmax": ((), {"where": X > 0}),
    "log_softmax": ((), {"sink": np.float32([[1], [2], [3]])}),
    "logsumexp": ((), {"temperature": np.array([[1.0], [2.0], [3.0]])}),
    "softmax_vjp": ((X,), {}),
    "cross_entropy": ((Y,), {"sample_weight": np.ones(3)}),
    "cross_entropy_with_grad": ((np.array(Y),), {"weight": np.ones(9000), "upstream": 2.0}),
    "linear_cross_entropy_with_grad": ((W, np.array(Y)), {"bias": np.ones(5)}),
    "topk": ((4,), {}),
    "topk_softmax": ((4,), {"temperature": np.array([[1.0], [2.0], [3.0]]), "normalize": "full"}),
    "sample": ((), {"uniforms": np.array([0.1, 0.5, 0.9]), "top_p": np.array([0.5, 0.9, 1.0])}),
}


@pytest.mark.parametrize("name", CALLS)
def test_arrays_on_a_gpu(gpu, name):
    arguments, options = CALLS[name]

    def there(a):
        return gpu.cupy.asarray(a) if isinstance(a, np.ndarray) else a

    function, group = getattr(distributed, name), SingleProcess()
    expected = function(X, *arguments, group=group, **options)
    given = [there(a) for a in (X, *arguments)], {key: there(a) for key, a in options.items()}
    with pytest.raises(csoftmax.DeviceError, match="is a CuPy array, and the call computes on the CPU"):
        function(*given[0], group=group, **given[1])
    with pytest.raises(csoftmax.DeviceError, match="device is 'cuda'; functions over a group compute on the CPU"):
        function(*given[0], group=group, device="cuda", **given[1])
    found = function(*given[0], group=group, device="cpu", **given[1])
    np.testing.assert_equal(found, expected)
