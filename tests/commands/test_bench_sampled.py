"""The problems of bench for very many classes: their statements, and PyTorch's gradients beside csoftmax's."""

import json

import numpy as np
import pytest

import csoftmax
from csoftmax.__main__ import main
from csoftmax._bench import cases
from csoftmax._bench.compare import MANY_CLASS_PROBLEMS
from csoftmax._bench.problems import LeftOutError
from csoftmax._bench.sampled import AliasProblem, SampledProblem

SHAPES = {"alias": (50, 20), "sampled": (6, 5, 7, 40), "hs": (6, 5, 40), "adaptive": (6, 5, 100)}
SHAPES |= {"int8": (3, 5, 40, 2), "mach": (3, 5, 40, 8, 3)}


@pytest.mark.parametrize("op", SHAPES)
def test_the_command_measures(op, capsys):
    shape = "x".join(map(str, SHAPES[op]))
    options = ["--shapes", shape, "--rounds", "1", "--threads", "1", "--peers", "numpy", "--json"]
    assert main(["bench", "--op", op, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    (line,) = report["cases"]
    assert {"csoftmax", "numpy"} <= set(line["results"])
    assert any("NumPy's time is that of" in note for note in report["header"]["notes"]) == (op != "alias")


def test_wrong_shapes():
    for op, problem in MANY_CLASS_PROBLEMS.items():
        with pytest.raises(LeftOutError, match=f"{op} needs shapes"):
            problem(cases.Case("given", op, (3,), -1, "float32"), True)


def test_combinations_that_are_not_measured_are_left_out():
    for op, problem in MANY_CLASS_PROBLEMS.items():
        for axis, dtype in ((-1, "float64"), (0, "float32"), (-1, "float16")):
            with pytest.raises(LeftOutError, match=f"{op} is measured in float32, along the last axis"):
                problem(cases.Case("given", op, SHAPES[op], axis, dtype), True)


def test_draws_of_numpy_are_those_of_the_sampler():
    problem = AliasProblem(cases.Case("given", "alias", (50, 20_000), -1, "float32"), True)
    p = problem.sampler.probability()
    for contender in (problem.prepare_csoftmax(), problem.prepare_numpy()):
        counts = np.bincount(eval(contender.statement, dict(contender.names)), minlength=50)
        assert np.all(np.abs(counts - 20_000 * p) < 5 * np.sqrt(20_000 * p))


def test_gradients_of_pytorch_are_the_same():
    torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")
    problem = SampledProblem(cases.Case("given", "sampled", (20, 8, 30, 200), -1, "float32"), True)
    grad_w, grad_bias = eval("step()", dict(problem.prepare_torch(torch).names))
    expected = csoftmax.sampled_softmax_loss_with_grad(
        problem.x, problem.w, problem.target, problem.negatives, bias=problem.bias
    )
    np.testing.assert_allclose(grad_w.to_dense().numpy(), expected.grad_w.to_dense(200), 1e-4, 1e-6)
    np.testing.assert_allclose(grad_bias.to_dense().numpy()[:, 0], expected.grad_bias.to_dense(200), 1e-4, 1e-6)


def evaluate(contender):
    return eval(contender.statement, dict(contender.names))


def test_results_of_peers_of_heads_are_the_same():
    torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")

    def make(op, shape):
        return MANY_CLASS_PROBLEMS[op](cases.Case("given", op, shape, -1, "float32"), True)

    adaptive = make("adaptive", (20, 16, 200))
    expected = evaluate(adaptive.prepare_csoftmax())
    np.testing.assert_allclose(evaluate(adaptive.prepare_torch(torch)).numpy(), expected.grad_x, 1e-4, 1e-7)
    int8 = make("int8", (4, 8, 200, 5))
    best = evaluate(int8.prepare_csoftmax())
    found = evaluate(int8.prepare_torch(torch))
    np.testing.assert_allclose(found.values.numpy(), best.values, 1e-5, 1e-6)
    scores = evaluate(int8.prepare_numpy())
    np.testing.assert_allclose(np.take_along_axis(scores, best.indices, axis=1), best.values, 1e-5, 1e-6)
    mach = make("mach", (4, 8, 200, 16, 3))
    np.testing.assert_allclose(evaluate(mach.prepare_numpy()), evaluate(mach.prepare_csoftmax()), 1e-5, 1e-5)
    with pytest.raises(LeftOutError, match="has no layer like hs"):
        make("hs", (4, 8, 200)).prepare_torch(torch)
    with pytest.raises(LeftOutError, match="at least 50 classes"):
        make("adaptive", (4, 8, 49))
