"""Model files: every kind of label in every format, damaged and hostile files, failed saves, killed processes."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris

from csoftmax.linear_model import SoftmaxRegression

pytest.importorskip("safetensors", reason="the learn extra has it; no wheel for a free-threaded CPython")


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "model"])
@pytest.mark.parametrize("labels", ["int", "str", "object", "bool", "float"])
def test_save_and_load(tmp_path, suffix, labels):
    X, y = load_iris(return_X_y=True)
    if labels == "bool":
        y = y == 1
    elif labels != "int":
        y = {
            "str": np.array(["a", "b", "ä"]),
            "object": np.array(["x", "y", "z"], object),
            "float": np.array([0.0, 1, 2]),
        }[labels][y]
    model = SoftmaxRegression(class_weight={y[0]: 2.0}, random_state=3, callbacks="progress").fit(
        X.astype(np.float32), y
    )
    path = tmp_path / f"m.{suffix}"
    model.save(path)
    back = SoftmaxRegression.load(path)
    assert np.array_equal(back.predict(X), model.predict(X))
    assert back.classes_.dtype == model.classes_.dtype
    assert np.array_equal(back.coef_, model.coef_)
    assert back.coef_.dtype == np.float32
    assert back.history_.keys() == model.history_.keys()
    assert back.get_params() == {**model.get_params(), "callbacks": None}
    assert os.listdir(tmp_path) == [path.name]
    assert clone(back).fit(X, y).n_iter_ > 0


def test_damaged_files(tmp_path):
    X, y = load_iris(return_X_y=True)
    model = SoftmaxRegression().fit(X, y)
    for suffix in ("safetensors", "npz"):
        path = tmp_path / f"m.{suffix}"
        model.save(path)
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        places = [*range(0, 200, 3), *rng.integers(0, len(whole), 150)]
        for cut in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:cut])
            with pytest.raises(ValueError, match="cannot be read as a model"):
                SoftmaxRegression.load(path)
        for place in places:  # refused, or read with another number
            damaged = bytearray(whole)
            damaged[place] ^= 0xFF
            path.write_bytes(damaged)
            try:
                back = SoftmaxRegression.load(path)
            except ValueError:
                continue
            assert back.coef_.shape == model.coef_.shape
    with pytest.raises(FileNotFoundError, match="file not found"):
        SoftmaxRegression.load(tmp_path / "nothing")


def read_safetensors(path):
    """Arrays and header of a file."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as f:
        return {name: f.get_tensor(name) for name in f.keys()}, json.loads(f.metadata()["csoftmax"])  # noqa: SIM118


def test_hostile_files(tmp_path):
    """Forged headers, pickles, zip bombs: an error before anything large is allocated, and nothing is executed."""
    from safetensors.numpy import save_file

    X, y = load_iris(return_X_y=True)
    path = tmp_path / "m.safetensors"
    SoftmaxRegression().fit(X, y).save(path)
    arrays, header = read_safetensors(path)
    changes = [
        {"version": 99}, {"format": "else"}, {"class": "Other"}, {"classes": ["a"]}, {"history": 3}, {"n_iter": "x"},
        {"parameters": {"__class__": "os.system"}}, {"parameters": {"solver": "sgd"}}, {"feature_names": ["a"]},
        {"frozen": [True]}, {"parameters": 5}, {"frozen": 5}, {"feature_names": 7},
        {"parameters": {"class_weight": {"__pairs__": 5}}}, {"parameters": {"class_weight": {"__pairs__": [[[], 1]]}}},
    ]  # fmt: skip
    for change in changes:
        save_file(arrays, path, metadata={"csoftmax": json.dumps({**header, **change})})
        with pytest.raises(ValueError, match="cannot be read as a model"):
            SoftmaxRegression.load(path)
    for name, value in (("coef", np.zeros(3)), ("intercept", np.zeros(7)), ("coef", np.zeros((3, 4), np.int64))):
        save_file({**arrays, name: value}, path, metadata={"csoftmax": json.dumps(header)})
        with pytest.raises(ValueError, match="cannot be read as a model"):
            SoftmaxRegression.load(path)
    save_file(arrays, path)
    with pytest.raises(ValueError, match="no csoftmax header"):
        SoftmaxRegression.load(path)

    path = tmp_path / "m.npz"
    np.savez(path, coef=np.array([print], object), csoftmax=np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match="dtype object"):
        SoftmaxRegression.load(path)
    np.savez_compressed(path, coef=np.zeros((1000, 1000)))
    with pytest.raises(ValueError, match="compressed"):
        SoftmaxRegression.load(path)
    with zipfile.ZipFile(path, "w") as archive:  # a header that promises a petabyte
        text = "{'descr': '<f8', 'fortran_order': False, 'shape': (100000000, 1000000), }".ljust(117) + "\n"
        archive.writestr("coef.npy", b"\x93NUMPY\x01\x00v\x00" + text.encode())
    with pytest.raises(ValueError, match="not those of shape"):
        SoftmaxRegression.load(path)


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    X, y = load_iris(return_X_y=True)
    path = tmp_path / "m.safetensors"
    model = SoftmaxRegression().fit(X, y)
    model.save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        model.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


KILLED = """
import sys
from sklearn.datasets import load_digits
from csoftmax.linear_model import SoftmaxRegression
X, y = load_digits(return_X_y=True)
save = lambda model, record: (model.save(sys.argv[1]), print(record["epoch"], flush=True))[0]
SoftmaxRegression(solver="adamw", max_epochs=10**6, callbacks=save, random_state=0).fit(X / 16, y)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_training(tmp_path):
    """A model that is saved after each epoch is complete at any moment."""
    X, y = load_digits(return_X_y=True)
    processes = {}
    for number in (signal.SIGKILL, signal.SIGINT):
        command = [sys.executable, "-c", KILLED, str(tmp_path / f"{number}.safetensors")]
        processes[number] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for i, (number, process) in enumerate(processes.items()):
        process.stdout.readline()
        time.sleep(0.05 * i)
        process.send_signal(number)
        process.wait(60)
        process.stdout.close()
        assert process.returncode != 0
        assert SoftmaxRegression.load(tmp_path / f"{number}.safetensors").predict(X / 16).shape == y.shape
