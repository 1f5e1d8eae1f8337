"""Files of Int8Head, and ManyClassRegression.serving."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from csoftmax._learn import store
from csoftmax.heads import Int8Head
from csoftmax.linear_model import ManyClassRegression


def make(dtype=np.float32, limbs=2, bias=True, k=37, d=9):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((k, d)).astype(dtype)
    return w, Int8Head(w, rng.standard_normal(k) if bias else None, limbs=limbs), rng.standard_normal((4, d))


def same(a, b, x):
    results = [(h.topk(x, 5), h.log_partition(x), h.topk_softmax(x, 3), h.sample(x, 4, rng=0)) for h in (a, b)]
    for left, right in zip(*results):
        for one, other in zip(left, right, strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_round_trips(tmp_path):
    """With and without weights, mapped or not, every dtype; a mapped layer can be updated and grown in memory."""
    path = tmp_path / "head.safetensors"
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        for limbs, bias in ((1, False), (2, True)):
            w, head, x = make(dtype, limbs, bias)
            head.save(path)
            first = path.read_bytes()
            head.save(path)
            assert path.read_bytes() == first
            for mmap in (False, True):
                loaded = Int8Head.load(path, mmap=mmap)
                same(head, loaded, x)
                assert loaded._w.flags.writeable != mmap
            with pytest.raises(ValueError, match="read-only"):
                loaded.update([0], w[:1])
            loaded.add_classes(w[:2])
            assert loaded.n_classes == 39
            same(head, Int8Head.load(path, w), x)
            head.save(path, weights=False)
            assert "w" not in load_file(path)
            with pytest.raises(ValueError, match="without weights: pass w="):
                Int8Head.load(path)
            mapped = Int8Head.load(path, w.copy(), mmap=True)
            same(head, mapped, x)
            mapped.update([3], w[5:6])
            head.update([3], w[5:6])
            same(head, mapped, x)


def rewrite(path, change):
    """Write a model file again with other arrays or another header, and checksums that fit them."""
    arrays, header = store.read(path, "Int8Head")
    arrays = {name: a.copy() for name, a in arrays.items()}
    header = {name: v for name, v in header.items() if name not in ("format", "version", "class")}
    class_name = change(arrays, header) or "Int8Head"
    target = path.with_name("changed.safetensors")
    store.write(target, class_name, arrays, header)
    return target


def test_hostile_files(tmp_path):
    """Whatever a forged file holds is refused before a kernel reads it, although its checksums fit."""
    path = tmp_path / "head.safetensors"
    w, head, _ = make()
    head.save(path)

    def set_array(name, value):
        return lambda arrays, header: arrays.__setitem__(name, value)

    def set_header(name, value):
        return lambda arrays, header: header.__setitem__(name, value)

    codes = load_file(path)["codes"]
    for message, change in (
        ("it is an 'Other', not an Int8Head", lambda arrays, header: "Other"),
        ("codes has shape", set_array("codes", codes[:-1])),
        ("codes has shape", set_array("codes", codes.astype(np.int16))),
        ("codes is missing", lambda arrays, header: arrays.pop("codes") is None),
        ("second has shape", set_array("second", codes[:, :1])),
        ("second_residual is missing", lambda arrays, header: arrays.pop("second_residual") is None),
        ("scale has shape", set_array("scale", np.ones(36, np.float32))),
        ("scale is infinite", set_array("scale", np.full(37, np.inf, np.float32))),
        ("scale is negative or NaN", set_array("scale", np.full(37, np.nan, np.float32))),
        ("residual is negative or NaN", set_array("residual", np.full(37, -1, np.float32))),
        ("norm has shape", set_array("norm", np.ones(37))),
        ("exponent has shape", set_array("exponent", np.zeros(10, np.int16))),
        ("exponent is out of range", set_array("exponent", np.full(9, -32768, np.int16))),
        ("bias has shape", set_array("bias", np.zeros(37, np.float32))),
        ("w has shape", set_array("w", w[:, :8])),
        ("w has shape", set_array("w", w.astype(np.float64))),
        ("n_classes is 0", set_header("n_classes", 0)),
        ("n_classes is True", set_header("n_classes", True)),
        ("n_classes is 1000000000.0", set_header("n_classes", 1e9)),
        ("codes has shape", set_header("n_classes", 2**31 - 1)),
        ("n_features is -3", set_header("n_features", -3)),
        ("n_features is None", set_header("n_features", None)),
        ("codes has shape", set_header("n_features", 13)),
        ("exponent has shape", set_header("n_features", 10)),
        ("dtype is 'int8'", set_header("dtype", "int8")),
        ("w has shape", set_header("dtype", "float64")),
    ):
        changed = rewrite(path, lambda a, h: c if isinstance(c := change(a, h), str) else None)  # noqa: B023
        for mmap in (False, True):
            with pytest.raises(ValueError, match=message):
                Int8Head.load(changed, mmap=mmap)
    with pytest.raises(ValueError, match=r"w has shape \(36, 9\)"):
        Int8Head.load(path, w[:36])
    with pytest.raises(ValueError, match="w has dtype float64"):
        Int8Head.load(path, w.astype(np.float64))
    other = w.copy()
    other[36] *= 2
    with pytest.raises(ValueError, match="row 36 differs"):
        Int8Head.load(path, other)
    for same_norms in (-w, w[:, ::-1]):
        with pytest.raises(ValueError, match="row 0 differs"):
            Int8Head.load(path, same_norms)
    assert Int8Head.load(path, other, verify=False).n_classes == 37
    with pytest.raises(FileNotFoundError):
        Int8Head.load(tmp_path / "none")


def test_damaged_files(tmp_path):
    """Every changed byte of every part is noticed, and every file that ends early."""
    path = tmp_path / "head.safetensors"
    make(k=17, d=3)[1].save(path)
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8:begin])
    places = [begin + a for name, e in entries.items() if name != "__metadata__" for a in e["data_offsets"][:1]]
    for at in (*places, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            Int8Head.load(path)
        with pytest.raises(ValueError, match="damaged"):
            Int8Head.load(path, mmap=True)
    for size in (0, 7, 8, begin - 1, begin, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cannot be read as a model"):
            Int8Head.load(path, mmap=True, verify=False)


def test_any_codes_are_safe(tmp_path):
    """Codes that no quantiser writes, with checksums that fit: integers stay within range on every kernel."""
    path = tmp_path / "head.safetensors"
    _, head, x = make()
    head.save(path)
    for byte in (0, 255):
        changed = rewrite(path, lambda arrays, header: arrays["codes"].fill(byte))  # noqa: B023
        loaded = Int8Head.load(changed)
        assert np.isfinite(loaded.topk(x, 3).values).all()


RESIDENT = """
import sys
import numpy as np
from csoftmax.heads import Int8Head

path = sys.argv[1]
if sys.argv[2] == "write":
    Int8Head(np.random.default_rng(0).standard_normal((100000, 128)).astype(np.float32)).save(path)
else:
    head = Int8Head.load(path, mmap=True, verify=False)
    head.topk(np.random.default_rng(1).standard_normal((1, 128)), 10)
    with open("/proc/self/smaps") as f:
        of_file, resident = False, 0
        for line in f:
            name = line.split()
            if "-" in name[0]:
                of_file = line.rstrip().endswith(path)
            elif of_file and name[0] == "Rss:":
                resident += int(name[1]) * 1024
    print(resident)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory of maps from /proc")
def test_resident_memory_of_a_mapped_layer(tmp_path):
    """A query of a mapped file reads the codes, and of the weights only pages of rows that are scored exactly."""
    path = str(tmp_path / "head.safetensors")

    def run(action):
        done = subprocess.run(
            [sys.executable, "-c", RESIDENT, path, action], check=True, capture_output=True, text=True
        )
        return done.stdout

    run("write")
    with open(path, "rb") as f:  # only what is read becomes resident: no page is in the cache
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    codes, weights = 100000 * 128, 100000 * 128 * 4
    assert 0.9 * codes < int(run("read")) < codes + weights / 2


def test_serving():
    """The classes of the estimator, exactly; with embeddings, for the mean of a row's embeddings."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((200, 5)), rng.integers(0, 30, 200)
    for head in ("full", "sampled"):
        model = ManyClassRegression(head=head, max_epochs=2, n_sampled=10, random_state=0).fit(x, y)
        served = model.serving()
        assert (model.classes_[served.predict(x)] == model.predict(x)).all()
        assert (served.topk(x, 4).indices == model.topk(x, 4).indices).all()
        before = served.topk(x, 2).values
        model.partial_fit(x, y)
        assert (served.topk(x, 2).values == before).all(), "a copy"
        clustered = model.serving("clustered")
        assert (clustered.predict(x, exact=True) == model.serving().predict(x)).all()
        assert (clustered.topk(x, 2).values == model.serving("clustered").topk(x, 2).values).all(), "the same clusters"
        with pytest.raises(ValueError, match='kind must be "int8" or "clustered"'):
            model.serving("int4")
    ids = rng.integers(0, 12, (200, 3))
    model = ManyClassRegression(head="full", embedding=(12, 4), max_epochs=2, random_state=0).fit(ids, y)
    assert (model.classes_[model.serving().predict(model.embedding_[ids].mean(axis=1))] == model.predict(ids)).all()
    with pytest.raises(Exception, match="not fitted"):
        ManyClassRegression().serving()
