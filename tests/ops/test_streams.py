"""SoftmaxState: the bits of whole rows for every cut, weighted means, merges, bytes; merge_states."""

import hashlib
import itertools
import pickle
import sys

import ml_dtypes
import mpmath
import numpy as np
import pandas as pd
import pytest
from helpers import assert_same_bits, looped, run_python
from helpers.signals import seconds_to_stop
from hypothesis import given, settings
from hypothesis import strategies as st

import csoftmax
from csoftmax import SoftmaxState, merge_states
from csoftmax._cpu import binding
from csoftmax._ops import streams

DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
LENGTHS = (0, 1, 5, 16, 33, 4095, 4096, 4097, 9001)
# scale and offset of the elements, temperature: ordinary rows, rows beyond the range of exp, every kind of temperature
RANGES = (
    (1, 0, 1.0),
    (20, 0, 0.5),
    (1, 5e6, 1.0),
    (1, -5e6, 1.0),
    (3, 1e30, 1.0),
    (2e6, 0, 1.0),
    (1, 999999.5, 1.0),
    (500, 999999.5, 2.0),
    (1, 0, 0.0),
    (1, 0, np.inf),
    (1, 0, 1e-25),
)


def make_rows(rng, n, dtype, scale=1.0, offset=0.0, rows=2):
    with np.errstate(over="ignore", invalid="ignore"):
        return (rng.normal(size=(rows, n)) * scale + offset).astype(dtype)


def feed(x, cuts, *, where=None, **options):
    """A state that has got x in pieces."""
    state = SoftmaxState(x.shape[:-1], x.dtype, **options)
    for begin, end in itertools.pairwise([0, *cuts, x.shape[-1]]):
        state.update(x[..., begin:end], where=None if where is None else where[..., begin:end])
    return state


def check_state(x, cuts, temperature, where):
    state = feed(x, cuts, temperature=temperature, where=where)
    whole = csoftmax.logsumexp(x, temperature=temperature, where=where)
    assert_same_bits(state.logsumexp(), whole, f"{x.dtype} {x.shape} {cuts}")
    seen = x if where is None else np.where(where, x, np.array(-np.inf, x.dtype))
    got = np.concatenate([state.probabilities(part) for part in np.split(seen, cuts, -1)], -1)
    expected = csoftmax.softmax(x, temperature=temperature, where=where)
    if where is not None:  # a state does not know which elements of a NaN row were masked
        got = np.where(where, got, np.zeros((), x.dtype))
    assert_same_bits(got, expected, f"probabilities, {x.dtype} {x.shape} {cuts}")
    counts = np.full(x.shape[:-1], x.shape[-1]) if where is None else where.sum(-1)
    np.testing.assert_array_equal(state.count(), counts)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@looped("n", LENGTHS)
def test_any_cut_gives_the_bits_of_the_whole_row(dtype, n):
    rng = np.random.default_rng(n)
    for scale, offset, temperature in RANGES:
        x = make_rows(rng, n, dtype, scale, offset)
        cuts = np.sort(rng.integers(0, n + 1, 3))
        check_state(x, cuts, temperature, None if rng.random() < 0.6 else rng.random(x.shape) < 0.8)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_special_value_at_any_place(data):
    n = data.draw(st.sampled_from((3, 17, 4099)))
    dtype = data.draw(st.sampled_from(DTYPES))
    x = make_rows(np.random.default_rng(data.draw(st.integers(0, 99))), n, dtype)
    for value in data.draw(st.lists(st.sampled_from((np.nan, np.inf, -np.inf)), max_size=3)):
        x[data.draw(st.integers(0, 1)), data.draw(st.integers(0, n - 1))] = value
    if data.draw(st.booleans()):
        x[1] = -np.inf
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    check_state(x, cuts, data.draw(st.sampled_from((1.0, 0.3, 0.0, np.inf))), None)


@pytest.mark.slow
def test_ten_million_elements():
    x = np.random.default_rng(0).normal(size=10_000_000).astype(np.float32)
    state = feed(x, np.sort(np.random.default_rng(1).integers(0, len(x), 300)))
    assert_same_bits(state.logsumexp(), csoftmax.logsumexp(x))


def test_bits_of_every_instruction_set(keep_isa):
    rng = np.random.default_rng(0)
    x, values = make_rows(rng, 5000, np.float32, 3), rng.normal(size=(2, 5000, 7)).astype(np.float32)
    expected = None
    for name in binding.isa_available():
        binding.select_isa(name)
        state = SoftmaxState(2, values=7)
        state.update(x[:, :3], values[:, :3]).update(x[:, 3:4100], values[:, 3:4100])
        state.update(x[:, 4100:], values[:, 4100:])
        got = state.logsumexp(), state.probabilities(x), state.weighted_mean()
        expected = expected or got
        for a, b in zip(got, expected, strict=True):
            assert_same_bits(a, b, name)


def exact_mean(x, values, temperature=1.0):
    """The weighted mean of rows of values, in many digits."""
    with mpmath.workdps(40):
        top = max(x)
        w = [mpmath.exp((mpmath.mpf(float(v)) - mpmath.mpf(float(top))) / temperature) for v in x]
        total = mpmath.fsum(w)
        return [
            mpmath.fsum(a * mpmath.mpf(float(v)) for a, v in zip(w, column, strict=True)) / total for column in values.T
        ]


@looped(
    "case", [(np.float32, 1, 0), (np.float64, 30, 0), (np.float32, 1, 3e6), (np.float64, 1, -1e14), (np.float16, 3, 9)]
)
def test_weighted_mean(case):
    dtype, scale, offset = case
    rng = np.random.default_rng(3)
    x = make_rows(rng, 300, dtype, scale, offset)
    values = rng.normal(size=(2, 300, 3)).astype(dtype)
    state = SoftmaxState(2, dtype, values=3)
    for begin, end in itertools.pairwise((0, 1, 130, 300)):
        state.update(x[:, begin:end], values[:, begin:end])
    mean = state.weighted_mean()
    assert mean.shape == (2, 3)
    assert mean.dtype == dtype
    eps = float(np.finfo(dtype).eps)
    terms = 304 * 2.0**-53 + (2.0**-52 if dtype == np.float64 else 2.0**-23)  # sums and weights, as documented
    for row in range(2):
        exact = exact_mean(x[row], values[row])
        scale_of_mean = exact_mean(x[row], abs(values[row]))
        for got, right, size in zip(mean[row], exact, scale_of_mean, strict=True):
            assert abs(float(got) - right) <= eps / 2 * abs(right) + terms * size


def test_weighted_mean_has_one_value_for_every_cut():
    rng = np.random.default_rng(4)
    x, values = make_rows(rng, 9000, np.float32, 2), rng.normal(size=(2, 9000, 2, 3)).astype(np.float32)
    x[:, rng.integers(0, 9000, 50)] = -np.inf
    values[np.isneginf(x)] = np.nan  # which are not read
    means = []
    for cuts in ([], [1, 4097], [8999], list(range(100, 9000, 700))):
        state = SoftmaxState(2, values=(2, 3))
        for begin, end in itertools.pairwise([0, *cuts, 9000]):
            state.update(x[:, begin:end], values[:, begin:end])
        means.append(state.weighted_mean())
    for mean in means:
        assert_same_bits(mean, means[0])
    p = csoftmax.softmax(x.astype(np.float64))
    expected = np.einsum("rn,rnab->rab", p, np.where(np.isneginf(x)[..., None, None], 0, values).astype(np.float64))
    np.testing.assert_allclose(means[0], expected, rtol=0, atol=2e-6)


def test_weighted_means_of_rows_without_weight():
    state = SoftmaxState(3, np.float64, values=())
    assert list(state.weighted_mean()) == [0, 0, 0]
    for scalar in (SoftmaxState(values=()).weighted_mean(), SoftmaxState().logsumexp()):
        assert isinstance(scalar, np.float32)
    state.update([[-np.inf], [np.nan], [1.0]], [[5.0], [5.0], [np.inf]])
    np.testing.assert_array_equal(state.weighted_mean(), [0, np.nan, np.inf])
    np.testing.assert_array_equal(state.probabilities([[-np.inf], [np.nan], [1.0]]), [[np.nan], [np.nan], [1.0]])


@looped("cuts", [(4096,), (4096, 8192), (8192, 8192)])
def test_merges_at_whole_blocks_have_the_bits_of_the_whole_row(cuts):
    x = make_rows(np.random.default_rng(5), 9999, np.float32, 10)
    states = [feed(part, [1]) if part.size else feed(part, []) for part in np.split(x, cuts, 1)]
    tail = states[-1].copy()
    for state in reversed(states[:-1]):  # from the right: ((a b) c) and (a (b c)) are one
        tail = state.copy().merge(tail)
    first = states[0]
    for state in states[1:]:
        assert first.merge(state) is first
    for merged in (first, tail):
        assert_same_bits(merged.logsumexp(), csoftmax.logsumexp(x))
        assert_same_bits(merged.probabilities(x), csoftmax.softmax(x))
        assert list(merged.count()) == [9999, 9999]
        assert_same_bits(merged.max(), x.max(1))


@looped("offset", [0.0, 4e6, 1e30])
def test_merges_elsewhere_have_the_accuracy(offset):
    rng = np.random.default_rng(6)
    x = make_rows(rng, 7000, np.float32, 3, offset)
    values = rng.normal(size=(2, 7000, 2)).astype(np.float32)
    state, whole = SoftmaxState(2, values=2), SoftmaxState(2, values=2).update(x, values)
    for begin, end in itertools.pairwise((0, 10, 11, 5000, 7000)):
        state.merge(SoftmaxState(2, values=2).update(x[:, begin:end], values[:, begin:end]))
    np.testing.assert_array_max_ulp(state.logsumexp(), whole.logsumexp(), 1)
    np.testing.assert_array_max_ulp(state.probabilities(x), whole.probabilities(x), 2)
    np.testing.assert_allclose(state.weighted_mean(), whole.weighted_mean(), 0, 1e-6)
    with pytest.raises(ValueError, match=r"other has temperature 2\.0"):
        state.merge(SoftmaxState(2, values=2, temperature=2))
    with pytest.raises(TypeError, match="other must be a SoftmaxState, got int"):
        state.merge(3)


def make_states():
    rng = np.random.default_rng(7)
    yield SoftmaxState()
    yield feed(make_rows(rng, 5000, ml_dtypes.bfloat16), [30])
    yield feed(make_rows(rng, 5000, np.float32, 1, 1e7), [30])
    x, values = make_rows(rng, 5000, np.float64, 1, 1e15), rng.normal(size=(2, 5000, 3))
    yield SoftmaxState(2, np.float64, values=3, temperature=2.5).update(x, values).update(x[:, :3], values[:, :3])


def test_bytes_give_the_same_state():
    for state in make_states():
        blob = state.to_bytes()
        for again in (SoftmaxState.from_bytes(blob), SoftmaxState.from_bytes(memoryview(blob)), state.copy()):
            assert again.to_bytes() == blob
            assert_same_bits(again.logsumexp(), state.logsumexp())
            assert repr(again) == repr(state)
        assert pickle.loads(pickle.dumps(state)).to_bytes() == blob


def test_bytes_of_another_process(tmp_path):
    code = """
import sys, numpy as np, csoftmax
x = np.random.default_rng(0).normal(size=10000).astype(np.float32)
state = csoftmax.SoftmaxState.from_bytes(open(sys.argv[1] if len(sys.argv) > 1 else {path!r}, 'rb').read())
state.update(x[5001:])
open({path!r}, 'wb').write(state.to_bytes())
"""
    x = np.random.default_rng(0).normal(size=10000).astype(np.float32)
    path = tmp_path / "state"
    path.write_bytes(SoftmaxState().update(x[:5001]).to_bytes())
    run_python(code.format(path=str(path)), CSOFTMAX_ISA="scalar")
    state = SoftmaxState.from_bytes(path.read_bytes())
    assert_same_bits(state.logsumexp(), csoftmax.logsumexp(x))
    assert state.to_bytes() == SoftmaxState().update(x).to_bytes()


def test_bytes_of_the_first_version():
    """Written by the first release that has the class: later ones read them."""
    state = SoftmaxState.from_bytes(bytes.fromhex(FIRST_VERSION))
    np.testing.assert_array_equal(state.count(), [2, 2])
    assert_same_bits(state.logsumexp(), csoftmax.logsumexp(np.float32([[1, 2], [3, -1]])))


FIRST_VERSION = (
    "63736f66746d617820536f66746d617853746174650a67010000000000007b2276657273696f6e223a20312c202273686170"
    "65223a205b325d2c20226474797065223a2022666c6f61743332222c202274656d7065726174757265223a20312e302c2022"
    "76616c756573223a206e756c6c2c202266696c6c6564223a20322c20226b657074223a205b5d2c2022617272617973223a20"
    "7b226c6f67223a205b22666c6f61743634222c205b322c20302c20395d5d2c2022736f66746d6178223a205b22666c6f6174"
    "3634222c205b322c20302c20395d5d2c2022636f756e7473223a205b22696e743634222c205b325d5d2c20226861735f6e61"
    "6e223a205b22626f6f6c222c205b325d5d2c2022746f74616c73223a205b22666c6f61743634222c205b322c20305d5d2c20"
    "226578706f6e656e7473223a205b22666c6f61743634222c205b325d5d2c20226b657074223a205b22666c6f61743332222c"
    "205b322c20305d5d2c20227461696c223a205b22666c6f61743332222c205b322c20325d5d7d7d0200000000000000020000"
    "00000000000000000000000000f0ff000000000000f0ff0000803f0000004000004040000080bfd7e956c3b03eccb7dd2487"
    "eca99a5e81e13d112be8526f015801cee2ee418fbe"
)


def test_damaged_bytes_are_refused():
    for state in make_states():
        blob = state.to_bytes()
        for end in (0, 5, 30, len(blob) // 2, len(blob) - 1):
            with pytest.raises(ValueError, match="data are"):
                SoftmaxState.from_bytes(blob[:end])
        for at in range(0, len(blob), max(1, len(blob) // 50)):
            with pytest.raises(ValueError, match="data are"):
                SoftmaxState.from_bytes(blob[:at] + bytes([blob[at] ^ 4]) + blob[at + 1 :])
        with pytest.raises(ValueError, match="data are"):
            SoftmaxState.from_bytes(blob + b"x")
    for was, now in (
        (b'"version": 1', b'"version": 2'),
        (b'"filled": 0', b'"filled": 9'),
        (b"[1, 0, 9]", b"[1, 7, 9]"),
    ):
        forged = SoftmaxState().to_bytes()[:-32].replace(was, now)
        assert was not in forged
        with pytest.raises(ValueError, match=r"data |version 2|array log|bytes are left"):
            SoftmaxState.from_bytes(forged + hashlib.sha256(forged).digest())
    with pytest.raises(TypeError, match="data must be bytes, got str"):
        SoftmaxState.from_bytes("state")


def test_bad_arguments():
    for arguments, error, match in (
        ({"shape": -1}, ValueError, "shape must be at least 0, got -1"),
        ({"shape": 1.5}, TypeError, "shape must be an int or a tuple of ints"),
        ({"dtype": np.int32}, TypeError, "dtype must be float16, bfloat16"),
        ({"dtype": "nonsense"}, TypeError, "dtype must be a floating-point dtype"),
        ({"temperature": -1}, ValueError, "temperature must be at least 0"),
        ({"values": "x"}, TypeError, "values must be an int or a tuple of ints"),
    ):
        with pytest.raises(error, match=match):
            SoftmaxState(**arguments)
    state, plain = SoftmaxState(2, values=3), SoftmaxState(2)
    for call, match in (
        (
            lambda: plain.update([1.0, 2.0]),
            r"x has shape \(2,\); the state has shape \(2,\), so that \(2, n\) is allowed",
        ),
        (lambda: plain.update(np.zeros((3, 1))), r"x has shape \(3, 1\)"),
        (lambda: plain.update(np.zeros((2, 1)), np.zeros((2, 1))), "values were given, and the state has none"),
        (lambda: plain.update(np.zeros((2, 1)), where=np.ones((5, 3), bool)), r"where has shape \(5, 3\)"),
        (lambda: state.update(np.zeros((2, 1))), r"values are needed, of shape \(2, 1, 3\)"),
        (
            lambda: state.update(np.zeros((2, 1)), np.zeros((2, 3))),
            r"values has shape \(2, 3\); \(2, 1, 3\) is allowed",
        ),
        (lambda: plain.probabilities(np.zeros(2)), r"x has shape \(2,\)"),
        (plain.weighted_mean, "the state has no values"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    assert list(plain.count()) == [0, 0]


def test_merge_states_is_attention():
    """Partial attentions of pieces give the attention of the whole."""
    rng = np.random.default_rng(8)
    scores, values = rng.normal(size=(4, 60)) * 5, rng.normal(size=(60, 6))
    parts = [(scores[:, part], values[part]) for part in (slice(0, 7), slice(7, 7), slice(7, 60))]
    means = np.stack([csoftmax.softmax(s, where=s > -np.inf) @ v for s, v in parts])
    lse = np.stack([csoftmax.logsumexp(s) for s, _ in parts])
    merged = merge_states(means, lse)
    np.testing.assert_allclose(merged.value, csoftmax.softmax(scores) @ values, rtol=1e-13)
    np.testing.assert_allclose(merged.lse, csoftmax.logsumexp(scores), rtol=1e-14)
    two = merge_states(means, lse / np.log(2), base=2)
    np.testing.assert_allclose(two.value, merged.value, rtol=1e-13)
    np.testing.assert_allclose(two.lse * np.log(2), merged.lse, rtol=1e-14)
    moved = merge_states(np.moveaxis(means, 0, 1), lse.T, axis=-1)
    assert_same_bits(moved.value, merged.value)


def test_merge_states_of_special_parts():
    empty = merge_states(np.full((3, 2), np.nan, np.float16), np.full(3, -np.inf, np.float32))
    np.testing.assert_array_equal(empty.value, [0, 0])
    assert empty.value.dtype == np.float16
    assert empty.lse == -np.inf
    assert empty.lse.dtype == np.float32
    one = merge_states(np.float32([[0.1, 7e30], [np.nan, np.nan]]), np.float32([1e4, -np.inf]))
    np.testing.assert_array_equal(one.value, np.float32([0.1, 7e30]))
    assert one.lse == 1e4
    assert np.isnan(merge_states([[1.0], [2.0]], [0.0, np.nan]).value).all()
    assert np.isnan(merge_states([[1.0], [np.nan]], [0.0, 0.0]).value).all()
    none = merge_states(np.zeros((0, 2)), np.zeros(0))
    np.testing.assert_array_equal(none.value, [0, 0])
    assert none.lse == -np.inf


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_masked_elements_of_a_piece_change_no_others(dtype):
    rng = np.random.default_rng(7)
    for n in (3, 17, 5000):
        x, where = make_rows(rng, n, dtype), rng.random((2, n)) < 0.7
        where[:, 0] = True
        expected = csoftmax.softmax(x, where=where)
        for masked in (1000, -1000, np.inf, np.nan, 3e4):
            piece = np.where(where, x, np.array(masked).astype(dtype))
            state = SoftmaxState(2, dtype).update(piece, where=where)
            assert_same_bits(np.where(where, state.probabilities(piece), np.zeros((), dtype)), expected, masked)
            assert_same_bits(state.probabilities(piece, where=where), expected, masked)
    state = SoftmaxState().update([1.0, 2.0])
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(state.probabilities([3.0]), np.exp(3 - np.logaddexp(1, 2)), rtol=1e-6)


@pytest.mark.parametrize("width", [None, 2])
def test_interrupted_updates_take_nothing(width, monkeypatch):
    rng = np.random.default_rng(8)
    monkeypatch.setattr(streams, "_PART", 4096)  # several parts
    x = rng.normal(size=(1, 20_000)).astype(np.float32)
    values = None if width is None else rng.normal(size=(1, 20_000, width)).astype(np.float32)

    def given(begin, end):
        return x[:, begin:end], None if values is None else values[:, begin:end]

    make = streams.make_blocks
    for calls in range(3):
        state, seen = SoftmaxState(1, values=width).update(*given(0, 5000)), []
        before = state.to_bytes()

        def interrupted(*arguments, calls=calls, seen=seen):
            seen.append(0)
            if len(seen) > calls:
                raise KeyboardInterrupt
            return make(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(streams, "make_blocks", interrupted)
            with pytest.raises(KeyboardInterrupt):
                state.update(*given(5000, 20_000))
        assert state.to_bytes() == before
        state.update(*given(5000, 20_000))
        assert_same_bits(state.logsumexp(), csoftmax.logsumexp(x))
        if width is not None:
            whole = SoftmaxState(1, values=width).update(x, values)
            assert_same_bits(state.weighted_mean(), whole.weighted_mean())


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_long_updates_see_ctrl_c():
    x = np.zeros((1, 30_000_000), np.float32)
    state = SoftmaxState(1)
    assert seconds_to_stop(lambda: [state.update(x) for _ in range(10_000)], after=0.05) < 0.1
    assert state.count()[0] % x.size == 0
    if state.count()[0]:
        np.testing.assert_allclose(state.logsumexp(), np.log(state.count()), rtol=1e-6)


def test_a_part_alone_gives_itself_in_every_base():
    for lse in (0.3, -700.1, 5.7):
        assert merge_states([[1.0]], [lse], base=2).lse == lse
        assert merge_states([[1.0], [np.nan]], [lse, -np.inf], base=2) == (1.0, lse)
    with pytest.raises(ValueError, match="base must be None"):
        merge_states([[1.0]], [0.0], base=np.array([2, 2]))


def test_every_nan_is_canonical():
    for dtype, bits, odd in ((np.float32, np.uint32, 0xFFC12345), (np.float64, np.uint64, 0xFFF8000000012345)):
        x = np.array([1.0, 1.0, 2.0], dtype)
        nan = np.array([odd, 0, 0], bits).view(dtype)
        canonical = np.array(np.nan, dtype).view(bits)
        state = csoftmax.SoftmaxState((), dtype, values=()).update(np.where(nan == 0, x, nan), values=x)
        infinite = csoftmax.SoftmaxState((), dtype, values=()).update(x, values=[np.inf, -np.inf, 1.0])
        odd_values = csoftmax.SoftmaxState((), dtype, values=()).update(x, values=nan)
        results = [state.probabilities(nan), state.logsumexp(), state.max(), state.weighted_mean()]
        results += [infinite.weighted_mean(), odd_values.weighted_mean(), infinite.probabilities(nan)[:1]]
        results += [*csoftmax.merge_states(nan, x), *csoftmax.merge_states(np.array([np.inf, -np.inf], dtype), x[:2])]
        results += [*csoftmax.merge_states(x[:1], nan[:1])]
        for i, result in enumerate(results):
            got = np.atleast_1d(result)
            assert np.all(got[np.isnan(got)].view(bits) == canonical), i


def test_probabilities_keep_labels():
    x = pd.Series([1.0, 2.0, 3.0], index=["a", "b", "c"], name="logits")
    state = csoftmax.SoftmaxState(dtype=np.float64).update(x)
    pd.testing.assert_series_equal(state.probabilities(x), csoftmax.softmax(x))
    table = pd.DataFrame([[1.0, 2.0], [0.0, 4.0]], index=["i", "j"], columns=["a", "b"])
    state = csoftmax.SoftmaxState(2, np.float64).update(table)
    pd.testing.assert_frame_equal(state.probabilities(table), csoftmax.softmax(table))
