"""Files of ClusteredHead: round trips, damaged and forged ones."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from csoftmax._learn import store
from csoftmax.heads import ClusteredHead, Int8Head


def make(dtype=np.float32, bias=True, k=87, d=9):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((k, d)).astype(dtype)
    given = rng.standard_normal(k) if bias else None
    return w, ClusteredHead(w, given, rng=0), rng.standard_normal((4, d))


def assert_same(a, b, x):
    results = [
        [*h.topk(x, 5, n_probe=2), *h.topk(x, 5, exact=True), *h.log_partition(x, n_sample=9, rng=0), h.logits(x, [3])]
        for h in (a, b)
    ]
    for one, other in zip(*results, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert a.nbytes == b.nbytes


def test_round_trips(tmp_path):
    """With and without weights, mapped or not, every dtype."""
    path = tmp_path / "head.safetensors"
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        for bias in (False, True):
            w, head, x = make(dtype, bias)
            head.save(path)
            first = path.read_bytes()
            head.save(path)
            assert path.read_bytes() == first
            for mmap in (False, True):
                loaded = ClusteredHead.load(path, mmap=mmap)
                assert_same(head, loaded, x)
                assert loaded._w.flags.writeable != mmap
            assert_same(head, ClusteredHead.load(path, w), x)
            head.save(path, weights=False)
            assert "w" not in load_file(path)
            with pytest.raises(ValueError, match="without weights: pass w="):
                ClusteredHead.load(path)
            assert_same(head, ClusteredHead.load(path, w, mmap=True), x)
    special = w.copy()
    special[0], special[1, 0] = np.nan, np.inf
    head = ClusteredHead(special, np.where(np.arange(87) % 5, 0.0, -np.inf), rng=0)
    head.save(path)
    assert_same(head, ClusteredHead.load(path), x)


def rewrite(path, change):
    """Write a model file again with other arrays or another header, and checksums that fit them."""
    arrays, header = store.read(path, "ClusteredHead")
    arrays = {name: a.copy() for name, a in arrays.items()}
    header = {name: v for name, v in header.items() if name not in ("format", "version", "class")}
    change(arrays, header)
    target = path.with_name("changed.safetensors")
    store.write(target, "ClusteredHead", arrays, header)
    return target


def test_hostile_files(tmp_path):
    """Whatever a forged file holds is refused before a kernel reads it, although its checksums fit."""
    path = tmp_path / "head.safetensors"
    w, head, x = make()
    head.save(path)
    given = load_file(path)

    def edited(name, at, value):
        array = given[name].copy()
        array[at] = value
        return lambda arrays, header: arrays.__setitem__(name, array)

    def put(name, value):
        return lambda arrays, header: arrays.__setitem__(name, value)

    n = head.n_clusters
    for message, change in (
        ("order names classes that do not exist", edited("order", 5, 87)),
        ("order names classes that do not exist", edited("order", 5, -1)),
        ("order does not hold every class once", edited("order", 5, given["order"][4])),
        ("order has shape", put("order", given["order"][:-1])),
        ("order has shape", put("order", given["order"].astype(np.int32))),
        ("order is missing", lambda arrays, header: arrays.pop("order")),
        ("begin is missing", lambda arrays, header: arrays.pop("begin")),
        ("begin does not rise from 0 to 87", edited("begin", 0, -5)),
        ("begin does not rise from 0 to 87", edited("begin", -1, 88)),
        ("begin does not rise from 0 to 87", edited("begin", 2, 80)),
        ("begin does not rise from 0 to 87", edited("begin", 2, 2**62)),
        ("begin has another dtype or shape", put("begin", np.array([0, 87]))),
        ("begin has another dtype or shape", put("begin", given["begin"].astype(np.float64))),
        ("means has shape", put("means", given["means"][:-1])),
        ("means has shape", put("means", given["means"].astype(np.float32))),
        ("means are not finite", edited("means", (0, 0), np.nan)),
        ("radius is not finite", edited("radius", 0, np.nan)),
        ("radius is negative", edited("radius", 0, -1)),
        ("variance is missing", lambda arrays, header: arrays.pop("variance")),
        ("spread has shape", put("spread", given["spread"][:-1])),
        ("largest is not finite", edited("largest", 0, np.inf)),
        ("largest ends with other numbers", edited("largest", n, 0)),
        ("codes has shape", put("codes", given["codes"][:-1])),
        ("scale is negative or NaN", edited("scale", 0, np.nan)),
        ("n_classes is 0", lambda arrays, header: header.__setitem__("n_classes", 0)),
        ("n_classes is -1", lambda arrays, header: header.__setitem__("n_classes", -1)),
        ("n_classes is True", lambda arrays, header: header.__setitem__("n_classes", True)),
        ("order has shape", lambda arrays, header: header.__setitem__("n_classes", 2**31 - 1)),
        ("n_features is None", lambda arrays, header: header.pop("n_features")),
    ):
        changed = rewrite(path, change)
        for mmap in (False, True):
            with pytest.raises(ValueError, match=message):
                ClusteredHead.load(changed, mmap=mmap)
    for change in (edited("radius", slice(None), 0), edited("means", slice(None), 1e300), edited("codes", 0, 255)):
        assert ClusteredHead.load(rewrite(path, change)).topk(x, 3).indices.shape == (4, 3), "wrong, but safe"
    other = w.copy()
    other[36] *= 2
    with pytest.raises(ValueError, match="row 36 differs"):
        ClusteredHead.load(path, other)
    assert ClusteredHead.load(path, other, verify=False).n_classes == 87
    with pytest.raises(ValueError, match="it is a 'ClusteredHead', not an Int8Head"):
        Int8Head.load(path)
    with pytest.raises(FileNotFoundError):
        ClusteredHead.load(tmp_path / "none")


def test_damaged_files(tmp_path):
    """A changed byte of every array is noticed, and every file that ends early."""
    path = tmp_path / "head.safetensors"
    make(k=17, d=3)[1].save(path)
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8:begin])
    for at in (begin + e["data_offsets"][0] for name, e in entries.items() if name != "__metadata__"):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            ClusteredHead.load(path)
    for size in (0, 8, begin, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cannot be read as a model"):
            ClusteredHead.load(path, mmap=True, verify=False)
