"""Random calls with Dask arrays, compared by their bits with the calls of arrays in memory."""

import itertools

import numpy as np

import csoftmax
from helpers import assert_same_bits, assert_same_results
from helpers.sharded_calls import Call


def make_chunks(rng, shape):
    """Random chunks of each axis; some are empty."""
    chunks = []
    for n in shape:
        count = int(rng.choice([1, 1, 2, 3, 7]))
        inner = sorted(map(int, rng.integers(0, n + 1, count - 1)))
        bounds = [0, *inner, n]
        chunks.append(tuple(b - a for a, b in itertools.pairwise(bounds)))
    return tuple(chunks)


def as_lazy(rng, a):
    """An array as a Dask array in random chunks."""
    import dask.array as da

    return da.from_array(a, chunks=make_chunks(rng, a.shape))


def compute(result):
    """The values of one or several lazy results, after a check that their shape, dtype and meta were right."""
    import dask

    lazy = result if isinstance(result, tuple) else (result,)
    values = dask.compute(*lazy)
    for promised, got in zip(lazy, values, strict=True):
        if promised is None:  # the gradient of a bias that is not given
            continue
        assert promised.shape == np.shape(got)
        assert promised.dtype == promised._meta.dtype == np.asarray(got).dtype
        assert promised._meta.ndim == np.ndim(got)
        assert type(promised._meta) is np.ndarray
    return values if isinstance(result, tuple) else values[0]


class LazyCall(Call):
    """A random call whose arrays are all Dask arrays in chunks of their own."""

    def check(self, rng):
        """Compare with the call of whole rows."""
        name, arrays = self.operation, {"where": self.where}
        options = {"temperature": self.temperature}
        required = [self.x] if self.y is None else [self.x, self.y]
        if self.losses is not None:
            name = "cross_entropy_with_grad" if name == "gradient" else "cross_entropy"
            arrays = dict(self.losses)
            required.append(arrays.pop("target"))
            options["reduction"] = self.group_options["reduction"]
            options |= self.group_options if name == "cross_entropy_with_grad" else {}
            options |= {key: arrays.pop(key) for key in ("label_smoothing", "z_loss", "softcap") if key in arrays}
        by_rows = name not in ("cross_entropy", "cross_entropy_with_grad")
        if by_rows and rng.random() < 0.3:
            arrays["temperature"] = rng.random((self.rows, 1)) + 0.5
            del options["temperature"]
        arrays = {key: a for key, a in arrays.items() if a is not None}
        lazy = {key: as_lazy(rng, a) if rng.random() < 0.7 else a for key, a in arrays.items()}
        split_every = int(rng.integers(2, 5))
        with np.errstate(all="ignore"):
            expected = getattr(csoftmax, name)(*required, **arrays, **options)
            first, *others = (as_lazy(rng, a) for a in required)
            from csoftmax import dask as cd

            got = compute(getattr(cd, name)(first, *others, **lazy, **options, split_every=split_every))
        what = f"{self.description} chunks {first.chunks}"
        if isinstance(expected, tuple):
            assert_same_results(got, expected, what)
        else:
            assert_same_bits(np.asarray(got), np.asarray(expected), what)
