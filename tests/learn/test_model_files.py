"""Model files: every kind of label in every format, damaged and hostile files, failed saves, killed processes."""

import collections
import copy
import fractions
import hashlib
import json
import mmap
import os
import pickle
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris

from csoftmax.linear_model import SoftmaxRegression

pytest.importorskip("safetensors", reason="the learn extra has it; no wheel for a free-threaded CPython")


@pytest.mark.parametrize("suffix", ["safetensors", "model"])
@pytest.mark.parametrize("labels", ["int", "str", "object", "bool", "float", "big-endian"])
@pytest.mark.parametrize("options", [{}, {"mmap": True}, {"mmap": True, "verify": False}], ids=str)
def test_save_and_load(tmp_path, suffix, labels, options):
    X, y = load_iris(return_X_y=True)
    if labels == "bool":
        y = y == 1
    elif labels != "int":
        y = {
            "str": np.array(["a", "b", "ä"]),
            "object": np.array(["x", "y", "z"], object),
            "float": np.array([0.0, 1, 2]),
            "big-endian": np.array([1, 256, 65536], ">i4"),
        }[labels][y]
    model = SoftmaxRegression(class_weight={y[0]: 2.0}, random_state=3, callbacks="progress").fit(
        X.astype(np.float32), y
    )
    path = tmp_path / f"m.{suffix}"
    model.save(path)
    back = SoftmaxRegression.load(path, **options)
    assert np.array_equal(back.predict(X), model.predict(X))
    assert back.classes_.dtype == model.classes_.dtype.newbyteorder("=")
    assert np.array_equal(back.coef_, model.coef_)
    assert np.array_equal(back.intercept_, model.intercept_)
    assert back.coef_.dtype == np.float32
    assert back.history_.keys() == model.history_.keys()
    assert back.get_params() == {**model.get_params(), "callbacks": None}
    assert os.listdir(tmp_path) == [path.name]
    assert clone(back).fit(X, y).n_iter_ > 0


def test_class_weight_may_be_any_mapping(tmp_path):
    X, y = load_iris(return_X_y=True)
    weights = {0: 2.0, 1: 0.5}
    for given in (weights, types.MappingProxyType(weights), collections.ChainMap({0: 2.0}, {1: 0.5})):
        model = SoftmaxRegression(class_weight=given).fit(X, y)
        model.save(tmp_path / "m.safetensors")
        loaded = SoftmaxRegression.load(tmp_path / "m.safetensors")
        assert loaded.class_weight == weights
        assert np.array_equal(loaded.fit(X, y).coef_, model.coef_)


def test_parameter_that_json_cannot_hold(tmp_path):
    X, y = load_iris(return_X_y=True)
    model = SoftmaxRegression().fit(X, y).set_params(class_weight={0: fractions.Fraction(1, 2)})
    with pytest.raises(TypeError, match="cannot be saved"):
        model.save(tmp_path / "m.safetensors")
    assert not os.listdir(tmp_path)


@pytest.fixture
def saved(tmp_path):
    """The file of a model with names of features, and its arrays and header."""
    pd = pytest.importorskip("pandas")
    X, y = load_iris(return_X_y=True)
    path = tmp_path / "m.safetensors"
    model = SoftmaxRegression(random_state=0).fit(pd.DataFrame(X, columns=list("abcä")), np.array(["u", "v", "w"])[y])
    model.save(path)
    return path, *read_safetensors(path)


def read_safetensors(path):
    """Arrays and header of a file."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as f:
        return {name: f.get_tensor(name) for name in f.keys()}, json.loads(f.metadata()["csoftmax"])  # noqa: SIM118


def forge(path, arrays, header):
    """Write a file with the checksums that belong to it."""
    from safetensors.numpy import save_file

    text = json.dumps(header)
    sums = {"csoftmax": hashlib.sha256(text.encode()).hexdigest()}
    for name, a in arrays.items():
        sums[name] = hashlib.sha256(f"{name} {a.dtype.str} {a.shape}".encode() + a.tobytes()).hexdigest()
    save_file(arrays, path, metadata={"csoftmax": text, "csoftmax-checksums": json.dumps(sums)})


def test_any_flipped_bit_is_refused(saved):
    """Every bit of the structure and of the checksums, and a bit of every byte of the rest."""
    path, arrays, _ = saved
    whole = path.read_bytes()
    data = len(whole) - sum(a.nbytes for a in arrays.values())
    text = whole.index(b"csoftmax-model")
    for place in range(len(whole)):
        for bit in range(8) if place < 64 or place > data - 400 else [place % 8]:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match="cannot be read as a model"):
                SoftmaxRegression.load(path, mmap=place % 2 == 0)
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"its array '\w+' is damaged: the checksum does not match"):
        SoftmaxRegression.load(path)
    SoftmaxRegression.load(path, verify=False)  # the number is another one, and nobody looked
    damaged = whole.replace(b"csoftmax-model", b"csoftmax-mod\x01l", 1)
    path.write_bytes(damaged)
    assert damaged[text : text + 8] == b"csoftmax"
    with pytest.raises(ValueError, match="cannot be read as a model"):
        SoftmaxRegression.load(path)


def test_truncated_and_foreign_files(saved):
    path, arrays, header = saved
    whole = path.read_bytes()
    for cut in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cannot be read as a model"):
            SoftmaxRegression.load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="cannot be read as a model"):
        SoftmaxRegression.load(path)
    for names in (("coef", "intercept"), ("intercept", "coef")):  # exchanged arrays have other checksums
        forge(path, dict(zip(names, (arrays["coef"], arrays["intercept"]))), header)
        if names[0] == "coef":
            SoftmaxRegression.load(path)
    with pytest.raises(ValueError, match="cannot be read as a model"):
        SoftmaxRegression.load(path)
    with pytest.raises(FileNotFoundError, match="file not found"):
        SoftmaxRegression.load(path.with_name("nothing"))


def test_hostile_files(saved):
    """Forged headers with right checksums: an error that names the problem, and nothing is executed."""
    from safetensors.numpy import save_file

    path, arrays, header = saved
    changes = [
        {"version": 99}, {"version": 1}, {"format": "else"}, {"class": "Other"}, {"classes": ["a"]}, {"history": 3},
        {"n_iter": "x"}, {"parameters": {"__class__": "os.system"}}, {"parameters": {"solver": "sgd"}},
        {"feature_names": ["a"]}, {"frozen": [True]}, {"parameters": 5}, {"frozen": 5}, {"feature_names": 7},
        {"parameters": {"class_weight": {"__pairs__": 5}}}, {"parameters": {"class_weight": {"__pairs__": [[[], 1]]}}},
    ]  # fmt: skip
    for change in changes:
        forge(path, arrays, {**header, **change})
        with pytest.raises(ValueError, match="cannot be read as a model"):
            SoftmaxRegression.load(path)
    for name, value in (("coef", np.zeros(3)), ("intercept", np.zeros(7)), ("coef", np.zeros((3, 4), np.int64))):
        forge(path, {**arrays, name: value}, header)
        with pytest.raises(ValueError, match="cannot be read as a model"):
            SoftmaxRegression.load(path, mmap=True)
    forge(path, {**arrays, "more": np.zeros(0)}, header)
    SoftmaxRegression.load(path, mmap=True)
    save_file(arrays, path)
    with pytest.raises(ValueError, match="no csoftmax header"):
        SoftmaxRegression.load(path)
    save_file(arrays, path, metadata={"csoftmax": json.dumps(header)})
    with pytest.raises(ValueError, match="no checksums"):
        SoftmaxRegression.load(path)
    sums = {"csoftmax": hashlib.sha256(json.dumps(header).encode()).hexdigest()}
    save_file({}, path, metadata={"csoftmax": json.dumps(header), "csoftmax-checksums": json.dumps(sums)})
    for is_mapped in (False, True):
        with pytest.raises(ValueError, match="coef or intercept is missing"):
            SoftmaxRegression.load(path, mmap=is_mapped)


def test_npz_is_no_model_file(saved):
    """Its numbers have no checksum."""
    path, arrays, _ = saved
    model = SoftmaxRegression.load(path)
    for name in ("m.npz", "M.NPZ"):
        with pytest.raises(ValueError, match="safetensors"):
            model.save(path.with_name(name))
    np.savez(path.with_name("m.npz"), **arrays)
    with pytest.raises(ValueError, match=r"zip archive.* models are safetensors files"):
        SoftmaxRegression.load(path.with_name("m.npz"))
    assert sorted(os.listdir(path.parent)) == ["m.npz", path.name]


def test_memory_map(saved):
    """A mapped model trains on, is replaced on disk, and pickles, all without changing its file or itself."""
    path, arrays, _ = saved
    mapped = SoftmaxRegression.load(path, mmap=True, verify=False)
    assert not mapped.coef_.flags.writeable
    bases = [mapped.coef_]
    while isinstance(bases[-1], np.ndarray):
        bases.append(bases[-1].base)
    assert isinstance(bases[-1], mmap.mmap)
    before = path.read_bytes()
    X, y = load_iris(return_X_y=True)
    trained = copy.deepcopy(mapped).set_params(solver="adamw", penalty_l2=0.0)
    del trained.feature_names_in_
    trained.partial_fit(X, np.array(["u", "v", "w"])[y])
    assert not np.array_equal(trained.coef_, arrays["coef"])
    trained.save(path)
    assert np.array_equal(mapped.coef_, arrays["coef"])
    assert path.read_bytes() != before
    assert np.array_equal(pickle.loads(pickle.dumps(mapped)).coef_, arrays["coef"])


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


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_saved_files_have_the_mode_of_new_ones(tmp_path, monkeypatch, mask):
    """Without a call of umask, whose change the other threads of the process would see."""
    model = SoftmaxRegression().fit(*load_iris(return_X_y=True))
    before = os.umask(mask)
    try:
        monkeypatch.delattr(os, "umask")
        model.save(tmp_path / "m.safetensors")
        (tmp_path / "new").touch()
    finally:
        monkeypatch.undo()
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("m.safetensors", "new")]
    assert modes == [0o666 & ~mask] * 2


def test_equal_models_give_equal_bytes(tmp_path):
    """Thirty times, since safetensors shuffles its metadata: two files of it are equal half the time."""
    model = SoftmaxRegression().fit(*load_iris(return_X_y=True))
    files = set()
    for _ in range(30):
        model.save(tmp_path / "m.safetensors")
        files.add((tmp_path / "m.safetensors").read_bytes())
    assert len(files) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_links_pipes_and_missing_folders(tmp_path):
    """A link stays and leads to the new file, a pipe gets the bytes, a missing folder is named."""
    X, y = load_iris(return_X_y=True)
    model = SoftmaxRegression().fit(X, y)
    target, link = tmp_path / "target.safetensors", tmp_path / "link.safetensors"
    target.write_bytes(b"old")
    link.symlink_to(target.name)
    model.save(link)
    assert link.is_symlink()
    assert np.array_equal(SoftmaxRegression.load(target).coef_, model.coef_)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        model.save(pipe)
        assert reader.stdout.read() == target.read_bytes()
    assert pipe.is_fifo()
    with pytest.raises(FileNotFoundError, match=r"cannot write '.*m\.safetensors': there is no folder '.*nowhere'"):
        model.save(tmp_path / "nowhere" / "m.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["link.safetensors", "pipe", "target.safetensors"]


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
