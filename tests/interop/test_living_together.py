"""csoftmax beside other libraries with threads: PyTorch, scikit-learn, threadpoolctl, joblib, multiprocessing.

In every order of imports and through forks the numbers are right and nothing hangs; every process has a time limit.
"""

import hashlib
import importlib.util
import itertools
import os

import numpy as np
import pytest
from helpers import run_python

import csoftmax

LIBRARIES = ["csoftmax", "sklearn", "torch"] if importlib.util.find_spec("torch") else ["csoftmax", "sklearn"]
pytest.importorskip("sklearn", reason="the test extra has it")

# Defines ours() and theirs(): work with any number of threads. ours() returns a digest of csoftmax's results.
WORK = """
import hashlib, os, sys
import numpy as np
for name in os.environ["ORDER"].split(","):
    __import__(name)
import csoftmax
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
torch = sys.modules.get("torch")
rng = np.random.default_rng(0)
x = rng.standard_normal((256, 4000)).astype(np.float32)
w = rng.standard_normal((500, 64)).astype(np.float32)

def ours():
    loss, grad_x, grad_w, _ = csoftmax.linear_cross_entropy_with_grad(x[:, :64].copy(), w, np.arange(256))
    exact = csoftmax.softmax(x).tobytes() + csoftmax.entmax(x[:8]).tobytes()
    assert abs(float(loss) - 33.5) < 10 and np.isfinite(grad_w).all()
    return hashlib.sha256(exact).hexdigest()

def theirs():
    KMeans(3, n_init=1, random_state=0).fit(x[:, :8])
    LogisticRegression(max_iter=20).fit(x[:, :20], (x[:, 0] > 0).astype(int))
    if torch:
        t = torch.from_numpy(x)
        assert np.abs(torch.softmax(t, -1).numpy() - csoftmax.softmax(x)).max() < 1e-6
        (t @ t.T).sum()
"""


def compute_digest():
    """What ours() should return."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 4000)).astype(np.float32)
    return hashlib.sha256(csoftmax.softmax(x).tobytes() + csoftmax.entmax(x[:8]).tobytes()).hexdigest()


@pytest.mark.parametrize("order", list(itertools.permutations(LIBRARIES)), ids="-".join)
def test_import_orders(order):
    code = WORK + "\nfor _ in range(3):\n    theirs()\n    print(ours())\n"
    printed = run_python(code, ORDER=",".join(order), timeout=300).stdout.split()
    assert printed == [compute_digest()] * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("order", [LIBRARIES, pytest.param(LIBRARIES[::-1], marks=pytest.mark.slow)], ids="-".join)
def test_fork_after_use(order):
    """The child computes with csoftmax after its parent has started several thread pools."""
    code = WORK + (
        "\nimport signal\ntheirs()\nexpected = ours()\ntheirs()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    signal.alarm(60)\n"
        "    x = np.array(x)\n"
        "    exact = csoftmax.softmax(x).tobytes() + csoftmax.entmax(x[:8]).tobytes()\n"
        "    os._exit(0 if hashlib.sha256(exact).hexdigest() == expected else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "theirs()\nprint(ours())\n"
    )
    assert run_python(code, ORDER=",".join(order), timeout=300).stdout.split() == [compute_digest()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("order", [LIBRARIES, pytest.param(LIBRARIES[::-1], marks=pytest.mark.slow)], ids="-".join)
def test_fork_before_first_use(order):
    """The parent has only imported csoftmax; other libraries have started threads of the OpenMP that they share."""
    code = WORK + (
        "\nimport signal\ntheirs()\npid = os.fork()\n"
        "if pid == 0:\n    signal.alarm(60)\n    print(ours(), flush=True)\n    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    assert run_python(code, ORDER=",".join(order), timeout=300).stdout.split() == [compute_digest()]


def test_threadpoolctl_finds_and_limits_the_threads():
    """Its limits, which OpenMP keeps for each thread, end with their context, whenever csoftmax was imported."""
    code = """if True:
        import threadpoolctl, sklearn.utils  # which loads an OpenMP
        with threadpoolctl.threadpool_limits(1):
            import csoftmax
        from csoftmax._runtime import config
        seen = {entry["filepath"] for entry in threadpoolctl.threadpool_info() if entry["user_api"] == "openmp"}
        assert set(map(__import__("os").path.realpath, config.openmp_libraries())) <= set(
            map(__import__("os").path.realpath, seen)
        ), (seen, config.openmp_libraries())
        before = csoftmax.get_num_threads()
        assert before == 4
        for limit in (1, 2):
            with threadpoolctl.threadpool_limits(limit, user_api="openmp"):
                assert csoftmax.get_num_threads() == limit
                with csoftmax.threads(3):
                    assert csoftmax.get_num_threads() == limit
            assert csoftmax.get_num_threads() == before
        with threadpoolctl.threadpool_limits(100, user_api="openmp"):
            assert csoftmax.get_num_threads() == before
    """
    run_python(code, OMP_NUM_THREADS="4", CSOFTMAX_NUM_THREADS="4")


# A module of its own: workers that are not forked import the function by its name.
JOBLIB_WORK = """
import numpy as np
import csoftmax

x = np.random.default_rng(0).standard_normal((64, 3000))

def work(_):
    return csoftmax.get_num_threads(), csoftmax.softmax(x).tobytes()
"""


def test_joblib(tmp_path):
    """Workers of all backends compute the same bits; those of loky get their share of the CPUs."""
    (tmp_path / "joblib_work.py").write_text(JOBLIB_WORK)
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import joblib
        from joblib_work import work

        _, expected = work(0)
        for backend in ("loky", "threading", "multiprocessing"):
            found = joblib.Parallel(2, backend=backend)(joblib.delayed(work)(i) for i in range(6))
            assert all(bits == expected for _, bits in found), backend
            if backend == "loky":
                assert {{count for count, _ in found}} <= {{1, max(1, joblib.cpu_count() // 2)}}
    """
    run_python(code, timeout=300)
