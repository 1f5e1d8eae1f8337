"""Results of several arrays keep their names, whatever the kind of the arguments."""

import inspect

import numpy as np
import pytest

import csoftmax
from csoftmax import adversarial, geometric, samplers

MODULES = csoftmax, adversarial, geometric
X = np.random.default_rng(34).standard_normal((4, 5)).astype(np.float32)
W, Y = np.ascontiguousarray(X[:, ::-1]), np.array([0, 3, 1, 2])
P = csoftmax.softmax(X)
PAIRS = np.zeros((5, 5), np.float32)
NEGATIVES = samplers.UniformSampler(4).sample(3, target=Y, rng=0)
# A call of each function with a named result: its arguments, the first of which decides the kind, and its options.
CALLS = {
    "cross_entropy_with_grad": ((X, Y), {}),
    "crf_decode": ((X, PAIRS), {"log_prob": True}),
    "crf_loss_with_grad": ((X, Y, PAIRS), {}),
    "crf_marginals": ((X, PAIRS), {}),
    "entmax_loss_with_grad": ((X, Y), {}),
    "entmax_vjp": ((X, P), {"return_alpha_grad": True}),
    "in_batch_softmax_loss_with_grad": ((X, W), {}),
    "int8_topk": ((X, W, 2), {}),
    "kl_divergence_with_grad": ((X, P), {}),
    "linear_cross_entropy_with_grad": ((X, W, Y), {}),
    "margin_cross_entropy_with_grad": ((X, W, Y), {}),
    "merge_states": ((X, X[:, 0].copy()), {}),
    "nce_loss_with_grad": ((X, W, Y, NEGATIVES), {}),
    "negative_sampling_loss_with_grad": ((X, W, Y, NEGATIVES), {}),
    "plackett_luce_loss_with_grad": ((X[0].copy(), Y[[0, 1, 2, 3, 0]]), {"indptr": [0, 2, 5]}),
    "sample": ((X,), {"rng": 0, "return_log_prob": True}),
    "sampled_softmax_loss_with_grad": ((X, W, Y, NEGATIVES), {}),
    "segment_cross_entropy_with_grad": ((X[0].copy(), np.array([1, 2])), {"indptr": [0, 2, 5]}),
    "topk": ((X, 2), {}),
    "topk_softmax": ((X, 2), {}),
    "adversarial.certify": ((X, W), {}),
    "adversarial.robust_cross_entropy_with_grad": ((X, W, Y), {"eps": 0.5}),
    "adversarial.trades_loss_with_grad": ((X, W, Y), {"eps": 0.5, "steps": 1, "rng": 0}),
    "adversarial.vat_loss_with_grad": ((X, W), {"eps": 0.5, "rng": 0}),
    "geometric.g_cross_entropy_with_grad": ((X, Y, np.zeros((5, 5))), {}),
    "geometric.poincare_cross_entropy_with_grad": ((X, W, Y), {}),
    "geometric.vmf_cross_entropy_with_grad": ((P, np.abs(W), np.ones(4, np.float32), Y), {}),
}


def named_results():
    """The public classes of results."""
    return {name for module in MODULES for name in module.__all__ if hasattr(getattr(module, name), "_fields")}


def function_of(name):
    module, _, of_module = name.rpartition(".")
    return getattr(getattr(csoftmax, module) if module else csoftmax, of_module)


def kinds():
    """Functions that make the first argument of another kind."""
    for name in ("torch", "jax.numpy", "array_api_strict", "pandas", "xarray"):
        make = "DataFrame" if name == "pandas" else "DataArray" if name == "xarray" else "asarray"
        yield pytest.param(name, make, id=name)


def test_every_function_is_called():
    classes = named_results() - {"RowGradient"}  # the gradient of w, within the results of sampled losses
    found = set()
    for module in MODULES:
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function) and inspect.signature(function).return_annotation in classes:
                found.add(name if module is csoftmax else f"{module.__name__.partition('.')[2]}.{name}")
    found |= {"entmax_vjp", "sample"}  # whose options choose the kind of the result
    found |= {"cross_entropy_with_grad", "kl_divergence_with_grad"}  # built-in functions, without annotations
    assert found == set(CALLS)
    results = {type(function_of(name)(*given, **options)).__name__ for name, (given, options) in CALLS.items()}
    assert results == classes


@pytest.mark.parametrize(("library", "make"), kinds())
def test_results_keep_their_names(library, make):
    make = getattr(pytest.importorskip(library), make)
    for name, ((first, *others), options) in CALLS.items():
        if first.ndim == 1 and library == "pandas":
            continue
        expected = function_of(name)(first, *others, **options)
        got = function_of(name)(make(first), *others, **options)
        assert type(got) is type(expected), name
        for field, a, b in zip(expected._fields, got, expected, strict=True):
            assert (a is None) == (b is None), (name, field)
            if isinstance(b, csoftmax.RowGradient):
                assert type(a) is csoftmax.RowGradient, (name, field)
                a, b = a.values, b.values
            if b is not None:
                a, b = np.asarray(a), np.asarray(b)  # JAX has no float64 by itself, in which radii are rounded down
                np.testing.assert_allclose(a, b, rtol=2e-7 if a.itemsize == 4 else 0, err_msg=f"{name} {field}")
