"""Sinks of rows that are finished from partial results: those of the call with whole rows."""

import itertools

import numpy as np
import pytest
from helpers import assert_same_bits
from helpers.sharded_calls import DTYPES, KINDS, TEMPERATURES, make_boundaries, make_rows, merge_in_a_tree

import csoftmax
from csoftmax import distributed
from csoftmax.distributed import merge, partial

SINKS = [0.0, 3.0, -5.0, 60.0, 1e4, 1e30, -np.inf, np.nan, np.inf]


def halves(x, **options):
    n, half = x.shape[-1], x.shape[-1] // 2 // 4096 * 4096
    return [partial(part, offset=at, n_classes=n, **options) for at, part in ((0, x[:, :half]), (half, x[:, half:]))]


def check_random_sinks(seed, count):
    """Rows of any length, of which some need a second round because of their sinks; classes along either axis."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        n = int(rng.choice([0, rng.integers(1, 4096), 4096, 8192, 12288, rng.integers(4097, 20000)]))
        rows, dtype = int(rng.integers(1, 4)), DTYPES[rng.integers(len(DTYPES))]
        x = make_rows(rng, str(rng.choice(KINDS)), (rows, n), dtype) if n else np.empty((rows, 0), dtype)
        where = rng.random((rows, n)) < 0.5 if rng.random() < 0.3 else None
        with np.errstate(over="ignore"):
            sinks = np.array(SINKS).astype(dtype).astype(float)  # 1e30 is infinite in float16, and refused as it is
        sink = rng.choice(sinks, (rows, 1)) if rng.random() < 0.7 else float(rng.choice(sinks))
        temperature = float(rng.choice(TEMPERATURES))
        axis, name = int(rng.choice([-1, 0])), str(rng.choice(["softmax", "log_softmax", "logsumexp"]))
        if axis == 0:
            x, where, sink = (a.T if isinstance(a, np.ndarray) else a for a in (x, where, sink))
        expected = getattr(csoftmax, name)(x, axis, sink=sink, temperature=temperature, where=where)
        bounds = make_boundaries(rng, n) if n else [0, 0]
        options = {
            "kind": "softmax" if name == "softmax" else "log",
            "has_sink": n == 4096 or (n > 4096 and n % 4096 != 0) or bool(rng.random() < 0.5),
            "keep": bool(rng.random() < 0.5),
        }
        text = f"{name} {x.dtype} n={n} axis={axis} {bounds} sink={sink} T={temperature} {where is not None} {options}"
        options |= {"n_classes": n, "axis": axis, "temperature": temperature}
        cuts = [(slice(None),) * (axis == -1) + (slice(a, b),) for a, b in itertools.pairwise(bounds)]
        row_max = None
        for _ in range(2):
            parts = [
                partial(x[cut], offset=cut[-1].start, where=None if where is None else where[cut], row_max=row_max,
                        **options)
                for cut in cuts
            ]  # fmt: skip
            merged = merge_in_a_tree(rng, parts)
            row_max = merged.with_sink(sink).second_round if row_max is None else None
            if row_max is None:
                break
        if name == "logsumexp":
            for cut, part in zip(cuts, parts, strict=True):
                got = distributed.finish_logsumexp(x[cut], part, merged, sink=sink)
                assert_same_bits(np.asarray(got), np.asarray(expected), text)
            continue
        finish = getattr(distributed, f"finish_{name}")
        results = [finish(x[cut], part, merged, axis=axis, sink=sink) for cut, part in zip(cuts, parts, strict=True)]
        assert_same_bits(np.concatenate(results, axis=axis), expected, text)


def test_random_sinks():
    check_random_sinks(0, 150)


@pytest.mark.long
def test_many_random_sinks():
    check_random_sinks(1, 20000)


def test_records_alone_take_a_sink_that_is_a_block_of_its_own():
    x = np.random.default_rng(1).normal(size=(2, 12288))
    parts = halves(x)
    y = distributed.finish_softmax(x[:, :4096], parts[0], merge([p.records for p in parts]), sink=[[1.0], [2.0]])
    assert_same_bits(y, csoftmax.softmax(x, sink=[[1.0], [2.0]])[:, :4096])


def test_sinks_that_do_not_fit_are_refused():
    x = np.zeros((1, 9000))
    plain, with_sink = halves(x), halves(x, has_sink=True)
    finish, shard = distributed.finish_softmax, x[:, :4096]
    cases = [
        (r"sink needs partial results of partial\(\.\.\., has_sink=True\).*; it is 9000", plain, merge(plain), 0.0),
        ("sink must be given where partial was called with has_sink=True", with_sink, merge(with_sink), None),
        ("merged has a sink already", with_sink, merge(with_sink).with_sink(0.0), 0.0),
        ("merged must be a Partial where", with_sink, merge(with_sink).records, 0.0),
        (r"sink has shape \(3,\)", with_sink, merge(with_sink), np.zeros(3)),
        ("call partial again with row_max=merged.with_sink", with_sink, merge(with_sink), 1e300),
    ]
    for message, parts, merged, sink in cases:
        with pytest.raises(ValueError, match=message):
            finish(shard, parts[0], merged, sink=sink)
    with pytest.raises(ValueError, match="partial results differ in n_classes"):
        merge(plain[0], with_sink[1])
    with pytest.raises(ValueError, match="kind 'loss' takes no has_sink"):
        halves(x, kind="loss", target=[1], has_sink=True)
    with pytest.raises(ValueError, match="sums of kind 'loss' take no sink"):
        merge(halves(x, kind="loss", target=[1])).with_sink(0.0)
