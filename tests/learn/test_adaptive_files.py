"""Files of AdaptiveSoftmax, and state dicts: what is read is what was written, and nothing else is accepted."""

import json

import numpy as np
import pytest

from csoftmax._learn import store
from csoftmax.heads import AdaptiveSoftmax, RowOptimizer

pytest.importorskip("safetensors")


def make_layer(**options):
    layer = AdaptiveSoftmax(8, 50, counts=np.arange(50) % 7, cutoffs=[10, 30, 49], div_value=2, rng=0, **options)
    return layer.freeze([3, 4])


def test_files(tmp_path):
    path = tmp_path / "layer.safetensors"
    rng = np.random.default_rng(0)
    for layer in (make_layer(), make_layer(bias=False, dtype=np.float64), AdaptiveSoftmax(3, 1), AdaptiveSoftmax(3, 9)):
        x = rng.normal(size=(20, layer.n_features))
        y = rng.integers(0, layer.n_classes, 20)
        layer.save(path)
        for options in ({"num_threads": 2}, {"mmap": True}, {"verify": False}):
            loaded = AdaptiveSoftmax.load(path, **options)
            assert loaded.num_threads == options.get("num_threads")
            assert np.array_equal(loaded.log_proba(x), layer.log_proba(x))
            assert loaded.cutoffs == layer.cutoffs
            assert np.array_equal(loaded.order, layer.order)
            assert loaded.div_value == layer.div_value
            assert loaded.has_bias == layer.has_bias
            assert (loaded.counts is None) == (layer.counts is None)
            assert layer.counts is None or np.array_equal(loaded.counts, layer.counts)
            assert np.array_equal(loaded.frozen, layer.frozen)
            reference = AdaptiveSoftmax.load(path)
            for each in (loaded, reference):
                each.step(x, y, RowOptimizer())
            for name, a in loaded.parameters.items():
                assert np.array_equal(a, reference.parameters[name])
            assert np.array_equal(AdaptiveSoftmax.load(path).log_proba(x), layer.log_proba(x))
    with pytest.raises(FileNotFoundError, match="file not found"):
        AdaptiveSoftmax.load(tmp_path / "none")
    with pytest.raises(ValueError, match="models are safetensors files"):
        layer.save(tmp_path / "layer.npz")


def test_changed_bytes_are_found(tmp_path):
    path = tmp_path / "layer.safetensors"
    make_layer().save(path)
    good = path.read_bytes()
    for at in range(8, len(good), 97):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        with pytest.raises(ValueError):
            AdaptiveSoftmax.load(path)
    for length in (0, 7, 100, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(ValueError):
            AdaptiveSoftmax.load(path)


def test_hostile_files(tmp_path):
    """Files with right checksums and wrong contents."""
    path = tmp_path / "layer.safetensors"
    layer = make_layer()
    layer.save(path)
    arrays, header = store.read(path, "AdaptiveSoftmax")
    entries = {name: header[name] for name in ("cutoffs", "div_value")}
    order = arrays["order"]

    def check(**changed):
        given = {name: changed.get(name, a) for name, a in arrays.items()} | {
            name: a for name, a in changed.items() if isinstance(a, np.ndarray)
        }
        given = {name: a for name, a in given.items() if a is not None}
        rest = {name: changed.get(name, value) for name, value in entries.items()}
        store.write(path, "AdaptiveSoftmax", given, rest)
        with pytest.raises(ValueError, match="cannot be read as a model"):
            AdaptiveSoftmax.load(path)

    for name, a in arrays.items():
        if name not in ("counts", "frozen", "head_bias"):
            check(**{name: None})
        if name != "order":
            check(**{name: a[:-1]})
            check(**{name: a[..., None]})
        if a.dtype == np.float32:
            check(**{name: a.astype(np.float64)})
            check(**{name: a.astype(np.int32)})
    twice, far, negative = (order.copy() for _ in range(3))
    twice[0], far[0], negative[0] = twice[1], 2**30, -1
    for bad in (twice, far, negative, order[:0], order.astype(np.float64), order.astype(np.int64), order[None]):
        check(order=bad)
    for cutoffs in (
        None,
        "auto",
        [],
        [10, 30],
        [30, 10, 49],
        [0, 30, 49],
        [10, 30, 50],
        [10.0, 30, 49],
        [True, 30, 49],
    ):
        check(cutoffs=cutoffs)
    check(cutoffs=[10, 30, 2**70])
    for div_value in (None, 0, "4", [4], True, -1):
        check(div_value=div_value)
    for counts in (np.full(50, np.nan), np.full(50, -1.0), np.ones(50, np.float32)):
        check(counts=counts)
    check(extra=np.zeros(3))
    store.write(path, "ManyClassRegression", arrays, entries)
    with pytest.raises(ValueError, match="it is a 'ManyClassRegression'"):
        AdaptiveSoftmax.load(path)
    store.write(path, "AdaptiveSoftmax", arrays, json.loads(json.dumps(entries)))
    assert np.array_equal(AdaptiveSoftmax.load(path).order, layer.order)


def make_state(features=8, shortlist=4, sizes=(6, 3), widths=(4, 2), dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"head.weight": (shortlist + len(sizes), features), "head.bias": (shortlist + len(sizes),)}
    for c, (size, width) in enumerate(zip(sizes, widths)):
        shapes |= {f"tail.{c}.0.weight": (width, features), f"tail.{c}.1.weight": (size, width)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def test_state_dicts():
    state = make_state()
    layer = AdaptiveSoftmax.from_torch(state)
    assert layer.n_classes == 13
    assert layer.cutoffs == [4, 10]
    assert layer.dtype == np.float32
    assert np.array_equal(layer.order, np.arange(13))
    before = state["head.weight"].copy()
    layer.parameters["head"][...] = 0  # a copy
    assert np.array_equal(state["head.weight"], before)
    del state["head.bias"]
    assert not AdaptiveSoftmax.from_torch(state).has_bias
    assert AdaptiveSoftmax.from_torch(make_state(dtype=np.float64)).dtype == np.float64
    assert AdaptiveSoftmax.from_torch(make_state(dtype=np.float16)).dtype == np.float32


@pytest.mark.parametrize(
    ("error", "match", "changed"),
    [
        (ValueError, "lacks 'head.weight'", {"head.weight": None}),
        (ValueError, "lacks 'tail.0.1.weight'", {"tail.0.1.weight": None}),
        (ValueError, "has 'tail.1.1.weight' without the rest", {"tail.1.0.weight": None}),
        (ValueError, "lacks 'tail.1.0.weight'", {"tail.1.0.weight": None, "tail.2.0.weight": np.zeros((1, 8))}),
        (ValueError, "has 'weight', which is no name", {"weight": np.zeros(3)}),
        (ValueError, "which is no name", {"tail.01.0.weight": np.zeros((1, 8))}),
        (ValueError, "which is no name", {3: np.zeros(3)}),
        (ValueError, "'head.weight'. has shape", {"head.weight": np.zeros((6, 8, 1), np.float32)}),
        (
            ValueError,
            "'head.bias' has shape .5,., dtype float32, not .6,., float32",
            {"head.bias": np.zeros(5, np.float32)},
        ),
        (ValueError, "has 2 rows for 2 clusters", {"head.weight": np.zeros((2, 8), np.float32)}),
        (ValueError, "'tail.0.0.weight' has shape", {"tail.0.0.weight": np.zeros((4, 7), np.float32)}),
        (ValueError, "'tail.0.1.weight' has shape", {"tail.0.1.weight": np.zeros((6, 3), np.float32)}),
        (ValueError, "'tail.0.1.weight'. has shape", {"tail.0.1.weight": np.zeros((0, 4), np.float32)}),
        (TypeError, "mixes dtypes", {"head.weight": np.zeros((6, 8))}),
        (TypeError, "must hold floats", {"head.weight": np.zeros((6, 8), int)}),
        (TypeError, "must hold floats", {"head.weight": "zeros"}),
        (TypeError, "must hold floats", {"head.weight": None, "head.bias": np.zeros(6, object)}),
    ],
)
def test_hostile_state_dicts(error, match, changed):
    state = {name: changed.get(name, a) for name, a in (make_state() | changed).items()}
    state = {name: a for name, a in state.items() if a is not None}
    with pytest.raises(error, match=match):
        AdaptiveSoftmax.from_torch(state)


def test_no_state_dict():
    for bad in (None, [], make_layer(), {}):
        with pytest.raises((TypeError, ValueError), match="state_dict"):
            AdaptiveSoftmax.from_torch(bad)
