"""Files of HashedSoftmax and BloomSoftmax: what is read is what was written, and nothing else is accepted."""

import numpy as np
import pytest

from csoftmax._learn import store
from csoftmax.heads import BloomSoftmax, HashedSoftmax, RowOptimizer

pytest.importorskip("safetensors")


def make_layers():
    counts = np.arange(50) % 7
    yield HashedSoftmax(8, 50, n_buckets=20, n_hashes=6, counts=counts, aggregate="prior", rng=0).freeze([3, 4])
    yield HashedSoftmax(8, 50, n_buckets=20, n_hashes=6, bias=False, dtype=np.float64, aggregate="min", rng=0)
    yield HashedSoftmax(8, n_buckets=20, n_hashes=6, rng=0)
    yield BloomSoftmax(8, 50, n_buckets=20, n_hashes=6, rng=0).freeze([1])


def test_files(tmp_path):
    path = tmp_path / "layer.safetensors"
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 8)), rng.integers(0, 50, 20)
    for layer in make_layers():
        layer.step(x, y, RowOptimizer())
        layer.save(path)
        cls, classes = type(layer), np.arange(50)
        for options in ({"num_threads": 2}, {"mmap": True}, {"verify": False}):
            loaded = cls.load(path, **options)
            assert loaded.num_threads == options.get("num_threads")
            assert np.array_equal(loaded.scores(x, classes), layer.scores(x, classes))
            for name in ("n_classes", "n_buckets", "n_hashes", "has_bias", "dtype", "nbytes", "aggregate"):
                assert getattr(loaded, name, None) == getattr(layer, name, None)
            for name in ("counts", "frozen"):
                assert np.array_equal(getattr(loaded, name, None), getattr(layer, name, None))
            reference = cls.load(path)
            for each in (loaded, reference):
                each.step(x, y, RowOptimizer())
            for name, a in loaded.parameters.items():
                assert np.array_equal(a, reference.parameters[name])
            assert np.array_equal(cls.load(path).scores(x, classes), layer.scores(x, classes))
        good = path.read_bytes()
        layer.save(path)
        assert path.read_bytes() == good
        other = HashedSoftmax if cls is BloomSoftmax else BloomSoftmax
        with pytest.raises(ValueError, match="it is a"):
            other.load(path)
        for at in range(8, len(good), 997):
            path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
            with pytest.raises(ValueError):
                cls.load(path)
    with pytest.raises(FileNotFoundError, match="file not found"):
        HashedSoftmax.load(tmp_path / "none")
    with pytest.raises(ValueError, match="models are safetensors files"):
        layer.save(tmp_path / "layer.npz")


def test_hostile_files(tmp_path):
    """Files with right checksums and wrong contents."""
    path = tmp_path / "layer.safetensors"
    for layer in make_layers():
        cls = type(layer)
        layer.save(path)
        arrays, header = store.read(path, cls.__name__)
        entries = {name: value for name, value in header.items() if name not in ("format", "version", "class")}

        def check(**changed):
            given = arrays | {name: a for name, a in changed.items() if isinstance(a, np.ndarray) or name in arrays}  # noqa: B023
            given = {name: a for name, a in given.items() if a is not None}
            rest = {name: changed.get(name, value) for name, value in entries.items()}  # noqa: B023
            store.write(path, cls.__name__, given, rest)  # noqa: B023
            with pytest.raises(ValueError, match="cannot be read as a model"):
                cls.load(path)  # noqa: B023

        for name, a in arrays.items():
            if name in ("w", "hashes"):
                check(**{name: None})
            if name != "hashes" or a.shape[1] == layer.n_hashes:
                check(**{name: a[:-1]})
            check(**{name: a[..., None]})
            check(**{name: a.astype(np.int32)})
        check(hashes=arrays["hashes"][:, :0], w=arrays["w"][:0])
        check(w=arrays["w"][:, :0])
        check(extra=np.zeros(3))
        for n in ("50", 0, -1, 2.0, True, 2**64):
            check(n_classes=n)
        for n in (None, "20", 1, 0, 20.0, 2**40, 21):
            check(n_buckets=n)
        if cls is HashedSoftmax:
            for aggregate in (None, "sum", [], "prior" if layer.counts is None else 1):
                check(aggregate=aggregate)
            for counts in (np.full(50, np.nan), np.full(50, -1.0), np.zeros(50), np.ones(50, np.float32), np.ones(49)):
                check(counts=counts)
        else:
            check(counts=np.ones(50))
        store.write(path, cls.__name__, arrays, entries)
        assert cls.load(path).n_buckets == 20
