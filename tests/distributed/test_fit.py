"""`distributed.fit` on communicators of mpi4py, on process groups of PyTorch, and alone; a rank that is killed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from helpers.mpi import run_to_end
from sklearn.datasets import load_iris

from csoftmax import distributed
from csoftmax._distributed.agreement import find_difference
from csoftmax._learn.parts.group import _describe_parameters as describe_parameters
from csoftmax.linear_model import SoftmaxRegression

LIMIT = 60  # seconds of a program
PROGRAM = Path(__file__).with_name("fit_program.py")


def test_one_process_has_the_loss_of_a_plain_fit():
    X, y = load_iris(return_X_y=True)
    plain = SoftmaxRegression().fit(X, y)
    model = distributed.fit(SoftmaxRegression(), X, y, group=distributed.SingleProcess())
    assert abs(model.history_["loss"][-1] - plain.history_["loss"][-1]) <= 1e-12 * plain.history_["loss"][-1]
    assert np.allclose(model.coef_, plain.coef_, rtol=1e-8, atol=1e-10)
    assert np.array_equal(model.predict(X), plain.predict(X))


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"solver": "adamw"}, "solver='adamw' takes minibatches .* fit_batches"),
        ({"penalty_l2": "auto"}, "penalty_l2='auto' needs all of the data at once, which fit.group=...."),
        ({"adversarial": "certified", "adversarial_eps": 0.1}, "adversarial='certified'"),
        ({"device": "cuda"}, "device='cuda'"),
    ],
)
def test_parameters_that_need_all_rows_are_refused(parameters, text):
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=text):
        distributed.fit(SoftmaxRegression(**parameters), X, y, group=distributed.SingleProcess())


def test_other_models_and_groups_are_refused():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(TypeError, match="model must be"):
        distributed.fit(object(), X, y, group=distributed.SingleProcess())
    with pytest.raises(TypeError, match=r"group is a builtins\.int"):
        distributed.fit(SoftmaxRegression(), X, y, group=3)


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("early_stopping", (True, False), "True on rank 0 and False on rank 1"),
        ("random_state", (3, 4), "3 on rank 0 and 4 on rank 1"),
        ("random_state", (None, 4), "None on rank 0 and 4 on rank 1"),
        ("tol", (1e-3, None), "0.001 on rank 0 and None on rank 1"),
    ],
)
def test_ranks_with_other_parameters_are_named_with_their_values(name, values, shown):
    first, second = (describe_parameters(SoftmaxRegression(**{name: value})) for value in values)
    found = find_difference(first, second)
    assert found is not None
    assert f"{found[1]} on rank 0 and {found[2]} on rank 1" == shown
    assert found[0] == name


def test_parameters_that_are_equal_or_those_of_rank_0():
    first = SoftmaxRegression(random_state=np.random.RandomState(0), callbacks="progress", num_threads=1, tol=1e-3)
    second = SoftmaxRegression(random_state=np.random.RandomState(1), num_threads=2, tol=np.float64(1e-3))
    assert describe_parameters(first) == describe_parameters(second)
    assert describe_parameters(SoftmaxRegression(random_state=3)) == describe_parameters(
        SoftmaxRegression(random_state=np.int64(3))
    )


def test_a_communicator_without_ranks_is_refused():
    mpi = pytest.importorskip("mpi4py.MPI", reason="belongs to the extra distributed")
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=r"group is MPI\.COMM_NULL, which has no ranks"):
        distributed.fit(SoftmaxRegression(), X, y, group=mpi.COMM_NULL)


def run_mpi(ranks, *arguments):
    return run_to_end(LIMIT, ranks, *arguments)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_mpi(ranks):
    code, output = run_mpi(ranks, PROGRAM, "mpi")
    assert code == 0, output
    assert output.strip().endswith("ok"), output


@pytest.mark.mpi
def test_a_killed_rank_ends_the_job():
    program = (
        "import os, signal, numpy as np; from mpi4py import MPI; from csoftmax import distributed\n"
        "from csoftmax._learn.parts import sums; from csoftmax.linear_model import SoftmaxRegression\n"
        "comm = MPI.COMM_WORLD; original = sums.split_rows; calls = []\n"
        "def split(*arguments):\n"
        "    calls.append(0)\n"
        "    if comm.rank == 1 and len(calls) == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(*arguments)\n"
        "sums.split_rows = split; rng = np.random.default_rng(comm.rank)\n"
        "distributed.fit(SoftmaxRegression(), rng.normal(size=(99, 5)), rng.integers(0, 3, 99), group=comm)\n"
    )
    start = time.monotonic()
    code, _ = run_mpi(3, "-c", program)
    assert code != 0
    assert time.monotonic() - start < 20


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_gloo(ranks, tmp_path):
    pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(PROGRAM), "gloo"]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(tmp_path / "meeting")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks, outputs
    assert outputs[0].strip().endswith("ok")
