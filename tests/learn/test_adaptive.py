"""AdaptiveSoftmax: its definition, gradients, exact search with ties, draws, bits, stages and refusals."""

import copy
import itertools
import tracemalloc

import numpy as np
import pytest
from helpers import run_python

import csoftmax
from csoftmax._learn.adaptive import cutoffs as dividing
from csoftmax._learn.adaptive import search
from csoftmax.heads import AdaptiveSoftmax, RowOptimizer

LAYOUTS = [  # classes, features, cutoffs, div_value
    (60, 9, [10, 25], 2.0),
    (40, 5, [7, 8, 39], 4.0),  # clusters of one class, one feature in each
    (12, 3, [1], 1.0),  # a shortlist of one class
    (6, 4, [], 4.0),
    (1, 2, [], 4.0),
]


def make_layer(classes, features, cutoffs, div_value, *, seed=0, **options):
    rng = np.random.default_rng(seed)
    counts = rng.permutation(classes * 3)[:classes]
    options = {"dtype": np.float64, "counts": counts} | options
    layer = AdaptiveSoftmax(features, classes, cutoffs=cutoffs, div_value=div_value, rng=rng, **options)
    for a in layer.parameters.values():
        a[...] = rng.normal(size=a.shape)
    return layer


def make_rows(layer, rows=37, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, layer.n_features)).astype(layer.dtype), rng.integers(0, layer.n_classes, rows)


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def define(layer, x, temperature=1.0):
    """Log-probabilities of all classes by the definition, in long double, class by class in the caller's numbers."""
    p = {name: a.astype(np.longdouble) for name, a in layer.parameters.items()}
    x = np.asarray(x, np.longdouble)
    head = log_softmax((x @ p["head"].T + p.get("head_bias", 0)) / temperature)
    ends = [*layer.cutoffs, layer.n_classes]
    result = np.empty((len(x), layer.n_classes), np.longdouble)
    result[:, layer.order[: ends[0]]] = head[:, : ends[0]]
    for c, (begin, end) in enumerate(itertools.pairwise(ends)):
        tail = log_softmax((x @ p[f"projection{c}"].T @ p[f"tail{c}"].T) / temperature)
        result[:, layer.order[begin:end]] = head[:, ends[0] + c, None] + tail
    return result


@pytest.mark.parametrize("bias", [True, False])
def test_definition(bias):
    for layout in LAYOUTS:
        layer = make_layer(*layout, bias=bias)
        x, y = make_rows(layer)
        exact = define(layer, x)
        found = layer.log_proba(x)
        assert np.abs(found - exact).max() < 1e-13
        assert np.abs(np.exp(found).sum(axis=1) - 1).max() < 1e-14
        assert np.abs(layer.log_proba(x, y) - exact[np.arange(len(y)), y]).max() < 1e-13
        assert set(layer.parameters) >= {"head"}
        assert layer.has_bias == bias
        narrow = make_layer(*layout, bias=bias, dtype=np.float32)
        x32 = x.astype(np.float32)
        found = narrow.log_proba(x32)
        assert np.abs(np.exp(found).sum(axis=1) - 1).max() < 1e-6
        assert np.abs(found - define(narrow, x32)).max() < 2e-5
        for half in (np.float16, np.float64, np.int64):  # other dtypes are converted
            given = x.astype(half)
            assert np.array_equal(narrow.log_proba(given), narrow.log_proba(given.astype(np.float32)))
            grad = narrow.loss_with_grad(given, y).grad_x
            assert grad.dtype == (np.float64 if half is np.int64 else half)


def test_losses_by_the_definition():
    for layout in LAYOUTS:
        layer = make_layer(*layout)
        x, y = make_rows(layer)
        rng = np.random.default_rng(2)
        weight, s = rng.random(layer.n_classes) + 0.5, rng.random(len(y))
        s[::5], y[3] = 0, -7
        kept = y >= 0
        known = np.where(kept, y, 0)
        rows = -define(layer, x, 1.7)[np.arange(len(y)), known] * weight[known] * s * kept
        options = {"weight": weight, "sample_weight": s, "ignore_index": -7, "temperature": 1.7}
        divisor = (weight[known] * s * kept).sum()
        for reduction, exact in (("none", rows), ("sum", rows.sum()), ("mean", rows.sum() / divisor)):
            loss = layer.loss(x, y, reduction=reduction, **options)
            assert np.abs(loss - exact).max() < 1e-12
            result = layer.loss_with_grad(x, y, reduction=reduction, **options)
            assert np.array_equal(result.loss, loss)
        cube = layer.loss(x[:36].reshape(2, 18, -1), y[:36].reshape(2, 18), reduction="none", ignore_index=-7)
        assert np.array_equal(cube.reshape(36), layer.loss(x[:36], y[:36], reduction="none", ignore_index=-7))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_are_finite_differences(reduction):
    for layout in LAYOUTS[:3]:
        layer = make_layer(*layout)
        x, y = make_rows(layer, 11)
        y[1] = -100
        rng = np.random.default_rng(3)
        weight, s = rng.random(layer.n_classes) + 0.5, rng.random(len(y))
        s[2] = 0
        upstream = rng.normal(size=len(y)) if reduction == "none" else 2.5
        options = {"weight": weight, "sample_weight": s, "temperature": 0.8, "reduction": reduction}
        result = layer.loss_with_grad(x, y, upstream=upstream, **options)
        assert result.gradients.keys() == layer.parameters.keys()
        h = 1e-6
        for a, g in ((x, result.grad_x), *((layer.parameters[n], g) for n, g in result.gradients.items())):
            assert a.shape == g.shape
            assert a.dtype == g.dtype
            for at in rng.choice(a.size, min(a.size, 25), replace=False):
                old, sides = a.flat[at], []
                for step in (h, -h):
                    a.flat[at] = old + step
                    sides.append(np.sum(layer.loss(x, y, **options) * upstream))
                a.flat[at] = old
                assert abs((sides[0] - sides[1]) / (2 * h) - g.flat[at]) < 1e-7


@pytest.mark.parametrize(
    "clips",
    [{"clip_norm": 0.6}, {"clip_value": 0.2}, {"clip_norm": 0.6, "clip_value": 0.3}, {"clip_norm": 1e9}],
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_clips_are_of_the_logits_of_head_and_cluster(clips, reduction):
    layer = make_layer(30, 6, [5, 12], 2.0)
    x, y = make_rows(layer)
    s, t, rng = np.linspace(0.1, 2, len(x)), 0.7, np.random.default_rng(3)
    y[4], s[7] = -100, 0
    kept = (y >= 0) & (s > 0)
    upstream = rng.normal(size=len(x)) if reduction == "none" else 1.5
    factor = np.broadcast_to(upstream, len(x)) / (s[kept].sum() if reduction == "mean" else 1)
    options = {"sample_weight": s, "temperature": t, "reduction": reduction}
    got = layer.loss_with_grad(x, y, upstream=upstream, **options, **clips)
    assert np.array_equal(got.loss, layer.loss(x, y, **options), equal_nan=True)
    expected, grad_x = {name: np.zeros(a.shape) for name, a in layer.parameters.items()}, np.zeros(x.shape)
    parts, classes = layer.parameters, layer.classes
    for i in np.flatnonzero(kept):
        rank = int(classes.rank[y[i]])
        c = next((c for c, ranks in enumerate(classes.clusters) if ranks.start <= rank < ranks.stop), None)
        inputs = [(parts["head"], parts["head_bias"], x[i], rank if c is None else classes.shortlist + c)]
        if c is not None:
            hidden = parts[f"projection{c}"] @ x[i]
            inputs.append((parts[f"tail{c}"], 0, hidden, rank - classes.clusters[c].start))
        grads = []
        for w, bias, features, label in inputs:
            g = np.exp(log_softmax((w @ features + bias)[None] / t))[0]
            g[label] -= 1
            grads.append(g * s[i] / t)
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        shrink = min(1, clips.get("clip_norm", np.inf) / norm)
        limit = clips.get("clip_value", np.inf)
        grads = [np.clip(g * shrink, -limit, limit) * factor[i] for g in grads]
        expected["head"] += np.outer(grads[0], x[i])
        expected["head_bias"] += grads[0]
        grad_x[i] += grads[0] @ parts["head"]
        if c is not None:
            of_hidden = grads[1] @ parts[f"tail{c}"]
            expected[f"tail{c}"] += np.outer(grads[1], hidden)
            expected[f"projection{c}"] += np.outer(of_hidden, x[i])
            grad_x[i] += of_hidden @ parts[f"projection{c}"]
    np.testing.assert_allclose(got.grad_x, grad_x, atol=1e-13)
    for name, right in expected.items():
        np.testing.assert_allclose(got.gradients[name], right, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norms_are_clipped_where_their_squares_overflow_or_vanish(dtype):
    layer = AdaptiveSoftmax(4, 6, cutoffs=[2], dtype=dtype, rng=0)
    x, options = np.random.default_rng(0).normal(size=(2, 4)), {"reduction": "sum", "temperature": 0.7}
    expected = layer.loss_with_grad(x, [1, 5], clip_norm=0.1, **options).grad_x
    for weight in (1e-30, 1e-200, 1e-300, 1e30, 1e39, 1e155, 1e160, 1e300):
        norm, factor = (0.1 * weight, weight) if weight < 1 else (0.1, 1)
        if norm < np.finfo(dtype).tiny:
            continue
        got = layer.loss_with_grad(x, [1, 5], sample_weight=[weight] * 2, clip_norm=norm, **options)
        np.testing.assert_allclose(got.grad_x / factor, expected, rtol=1e-5)
    free = layer.loss_with_grad(x, [1, 5], sample_weight=[1e-3] * 2, **options).grad_x
    same = layer.loss_with_grad(x, [1, 5], sample_weight=[1e-3] * 2, clip_norm=1e200, **options).grad_x
    assert np.array_equal(free, same)


def test_a_cluster_without_rows_has_a_gradient_of_0_and_is_not_visited():
    layer = make_layer(*LAYOUTS[0])
    x, _ = make_rows(layer)
    y = layer.order[np.arange(len(x)) % 25]  # none in the second cluster
    gradients = layer.loss_with_grad(x, y).gradients
    assert not gradients["projection1"].any()
    assert not gradients["tail1"].any()
    assert gradients["tail0"].any()
    before = copy.deepcopy(layer.parameters)
    optimizer = RowOptimizer("adam", 0.1, penalty_l2=0.1)
    layer.step(x, y, optimizer)
    for name, a in layer.parameters.items():
        assert np.array_equal(a, before[name]) == name.endswith("1"), name
    empty = layer.loss_with_grad(x[:0], y[:0])
    assert np.isnan(empty.loss)
    assert not any(g.any() for g in empty.gradients.values())
    assert layer.loss(x[:0], [], reduction="sum") == 0


def test_labels_that_are_nearly_certain():
    """-log p keeps its digits where it is 1e-12, in the head and in a cluster."""
    layer = make_layer(*LAYOUTS[0])
    for a in layer.parameters.values():
        a[...] = 0
    layer.parameters["head_bias"][10] = 28
    layer.parameters["projection0"][0, 0] = 1
    layer.parameters["tail0"][2, 0] = 27
    x = np.eye(9)[:1]
    y = layer.order[12]
    exact = float(np.log1p(11 * np.exp(np.longdouble(-28))) + np.log1p(14 * np.exp(np.longdouble(-27))))
    assert abs(layer.loss(x, [y]) / exact - 1) < 1e-14
    assert abs(layer.log_proba(x)[0, y] / -exact - 1) < 1e-14
    best = layer.topk(x, 1)
    assert best.indices[0, 0] == y
    assert abs(best.values[0, 0] / -exact - 1) < 1e-14


# Search


def rank_all(layer, x, k):
    """The k best by a full sort, ties to the lowest number."""
    scores = layer.log_proba(x)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize("elements", [1 << 20, 100])
def test_search_is_exact(elements, monkeypatch):
    """With panels of 64 classes, too, and rows of the head one by one."""
    monkeypatch.setattr(search, "PANEL_ELEMENTS", elements)
    if elements == 100:
        monkeypatch.setattr(search, "HEAD_ELEMENTS", 1)
        monkeypatch.setattr(search, "HEAD_ROWS", 1)
    for layout in (*LAYOUTS, (700, 16, [20, 200, 201], 2.0)):
        for dtype in (np.float32, np.float64):
            for scale in (1, 5):  # of a shift of the clusters' logits, so that they win or do not
                layer = make_layer(*layout, dtype=dtype)
                layer.parameters["head_bias"][len(layer.parameters["head"]) - len(layer.cutoffs) :] += scale
                x, _ = make_rows(layer)
                for k in {1, 2, 10, 65, layer.n_classes}:
                    if k <= layer.n_classes:
                        values, order = rank_all(layer, x, k)
                        found = layer.topk(x, k)
                        # float32 products of other shapes have other last bits
                        limit = 1e-4 if dtype is np.float32 else 1e-13
                        assert np.array_equal(found.indices, order) or dtype is np.float32
                        scores = np.take_along_axis(layer.log_proba(x), found.indices, 1)
                        assert np.abs(found.values - values).max() < limit
                        assert np.abs(scores - values).max() < limit
                        assert (np.diff(found.values, axis=1) <= 0).all()
                assert np.array_equal(layer.predict(x), layer.topk(x, 1).indices[:, 0])


def test_ties_go_to_the_lowest_class(monkeypatch):
    """Weights of -1, 0 and 1 and whole features: products are exact, and most rows have ties at the boundary."""
    monkeypatch.setattr(search, "PANEL_ELEMENTS", 1000)
    rng = np.random.default_rng(0)
    ties = 0
    for dtype in (np.float32, np.float64):
        for cutoffs in ([], [10], [10, 60], [1, 2, 3], [299]):
            layer = AdaptiveSoftmax(4, 300, order=rng.permutation(300), cutoffs=cutoffs, dtype=dtype, rng=0)
            for a in layer.parameters.values():
                a[...] = rng.integers(-1, 2, a.shape)
            if cutoffs:
                layer.parameters["head_bias"][-len(cutoffs) :] = 4
            x = rng.integers(-1, 2, (50, 4))
            for k in (1, 3, 17, 100, 300):
                values, order = rank_all(layer, x, k)
                found = layer.topk(x, k)
                assert np.array_equal(found.indices, order), (dtype, cutoffs, k)
                ties += int((values[:, -1] == values[:, -2]).sum()) if k > 1 else 0
            assert np.array_equal(layer.predict(x), rank_all(layer, x, 1)[1][:, 0])
    assert ties > 500


def test_ties_between_clusters_and_shortlist():
    """Equal probabilities in different clusters, of one class each, and in the shortlist."""
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        layer = AdaptiveSoftmax(1, 4, order=order, cutoffs=[1, 2, 3], init="zero", rng=0)
        assert layer.topk([[1.0]], 4).indices.tolist() == [[0, 1, 2, 3]]
        assert layer.predict([[1.0]]).tolist() == [0]


def test_rows_without_a_softmax():
    layer = make_layer(*LAYOUTS[0])
    x, _ = make_rows(layer, 6)
    x[1, 2], x[4, 0] = np.nan, np.inf
    found = layer.topk(x, 3)
    bad = [1, 4]
    assert np.isnan(found.values[bad]).all()
    assert (found.indices[bad] == [0, 1, 2]).all()
    assert np.isnan(layer.log_proba(x)[bad]).all()
    assert (layer.predict(x)[bad] == 0).all()
    good = [0, 2, 3, 5]
    assert np.array_equal(found.indices[good], layer.topk(x[good], 3).indices)
    with pytest.raises(ValueError, match="a row of x has no probabilities"):
        layer.sample(x)
    layer.parameters["tail0"][3] = np.nan  # as NaN comes first in topk
    layer.parameters["head_bias"][10] = 50
    rows = x[good]
    assert np.array_equal(layer.topk(rows, 3).indices, np.tile(np.sort(layer.order[10:25])[:3], (4, 1)))


def test_nothing_of_all_rows_and_classes_exists():
    layer = AdaptiveSoftmax(16, 200_000, cutoffs=[1000, 20_000], rng=0)
    layer.parameters["head_bias"][-2:] = 9
    x, y = make_rows(layer, 512)
    layer.topk(x[:4], 3)
    for call in (lambda: layer.topk(x, 3), lambda: layer.loss_with_grad(x, y), lambda: layer.sample(x, 2, rng=0)):
        tracemalloc.start()
        call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 180e6  # the logits of all would be 410 MB


# Draws


def test_draws_have_the_probabilities():
    for layout in LAYOUTS[:2]:
        layer = make_layer(*layout)
        layer.parameters["head_bias"][layout[2][0] :] += 2
        x, _ = make_rows(layer, 3)
        draws = layer.sample(x, 60_000, rng=0)
        assert draws.shape == (3, 60_000)
        assert draws.dtype == np.int64
        for row, p in zip(draws, np.exp(layer.log_proba(x))):
            found = np.bincount(row, minlength=layer.n_classes) / 60_000
            assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / 60_000) + 1e-5).all()
    assert np.array_equal(draws, layer.sample(x, 60_000, rng=np.random.default_rng(0)))
    assert np.array_equal(layer.sample(x, (2, 3), rng=[1, 2, 3])[1], layer.sample(x[1:2], (2, 3), rng=[2])[0])
    assert layer.sample(x[0], rng=0).shape == ()
    assert layer.sample(x, 0, rng=0).shape == (3, 0)
    rng = np.random.default_rng(5)
    x[1] = np.nan
    with pytest.raises(ValueError, match="no probabilities"):
        layer.sample(x, rng=rng)
    assert rng.random() == np.random.default_rng(5).random()


# Bits


def test_permuted_labels_give_the_permuted_model():
    rng = np.random.default_rng(0)
    counts, new = rng.permutation(200), rng.permutation(200)  # class j becomes class new[j]
    moved = np.empty_like(counts)
    moved[new] = counts
    first, second = (AdaptiveSoftmax(8, 200, counts=c, cutoffs=[20, 70], rng=0) for c in (counts, moved))
    x, y = make_rows(first, 64)
    optimizers = RowOptimizer(), RowOptimizer()
    for _ in range(3):
        a, b = first.step(x, y, optimizers[0]), second.step(x, new[y], optimizers[1])
        assert np.array_equal(a[0], b[0])
        assert np.array_equal(a[1], b[1])
    for name, a in first.parameters.items():
        assert np.array_equal(a, second.parameters[name])
    assert np.array_equal(first.log_proba(x), second.log_proba(x)[:, new])
    assert np.array_equal(new[first.predict(x)], second.predict(x))
    assert np.array_equal(new[first.topk(x, 7).indices], second.topk(x, 7).indices)
    assert np.array_equal(new[first.sample(x, 5, rng=0)], second.sample(x, 5, rng=0))


BITS = """
import hashlib, numpy as np
from csoftmax.heads import AdaptiveSoftmax
layer = AdaptiveSoftmax(32, 2000, cutoffs=[300, 1000], rng=0)
layer.parameters["head_bias"][-2:] = 6
rng = np.random.default_rng(0)
x, y = rng.standard_normal((700, 32), np.float32), rng.integers(0, 2000, 700)
digests = set()
for threads in (1, 2, 3, 8):
    layer.num_threads = threads
    result = layer.loss_with_grad(x, y)
    best = layer.topk(x, 20)
    sums = hashlib.sha256()
    arrays = result.loss, result.grad_x, *result.gradients.values(), *best, layer.log_proba(x[:9])
    for a in (*arrays, layer.sample(x, 3, 0)):
        sums.update(np.ascontiguousarray(a))
    digests.add(sums.hexdigest())
print(*digests)
"""


def test_bits_do_not_depend_on_threads():
    names = {}
    exec(BITS, names)
    assert len(names["digests"]) == 1


@pytest.mark.slow
def test_bits_do_not_depend_on_the_instruction_set():
    found = {run_python(BITS, CSOFTMAX_ISA=isa).stdout for isa in csoftmax._cpu.binding.isa_available()}
    assert len(found) == 1


# Cutoffs


def test_suggested_cutoffs_are_the_best():
    """Every division of few classes, by enumeration."""
    rng = np.random.default_rng(0)
    original = dividing.CALL_SECONDS
    try:
        dividing.CALL_SECONDS = 1e-6  # so that clusters of few classes pay
        sizes = set()
        for classes, features, rows in ((1, 8, 8), (2, 64, 512), (9, 64, 4096), (11, 300, 512), (12, 16, 10**5)):
            shares = np.sort(rng.pareto(0.5, classes))[::-1]
            shares = shares / shares.sum()
            found = dividing.divide(shares, features, rows, 4.0, 3)

            def cost(cuts, shares=shares, features=features, rows=rows, classes=classes):
                ends = [*cuts, classes]
                seconds = dividing.estimate_seconds(rows, ends[0] + len(cuts), features)
                for c, (begin, end) in enumerate(itertools.pairwise(ends)):
                    width = dividing.count_features(features, 4.0, c)
                    n = rows * shares[begin:end].sum()
                    seconds += dividing.estimate_seconds(n, end - begin, width)
                    seconds += dividing.PRODUCT_SECONDS * features * width * (1 + n)
                return seconds

            every = [
                cuts
                for m in range(4)
                for cuts in itertools.combinations(range(1, classes), m)
                if m == 0 or ((m == 1 or features / 4**m >= 8) and shares[: cuts[0]].sum() >= 2 / 3)
            ]
            assert tuple(found) in every
            assert cost(found) <= min(map(cost, every)) * (1 + 1e-9), (classes, found)
            sizes.add(len(found))
        assert len(sizes) > 1
    finally:
        dividing.CALL_SECONDS = original


def test_suggested_cutoffs():
    suggest = AdaptiveSoftmax.suggest_cutoffs
    zipf = 1e6 / np.arange(1, 100_001)
    cuts = suggest(zipf, 128)
    assert 1 <= len(cuts) <= 5
    assert cuts == sorted(set(cuts))
    assert cuts[0] > 0
    assert cuts[-1] < 100_000
    share = zipf / zipf.sum()
    assert share[: cuts[0]].sum() >= 2 / 3
    assert share[: suggest(zipf, 64, max_clusters=1)[0]].sum() >= 2 / 3
    assert cuts == suggest(np.random.default_rng(0).permutation(zipf) * 1e300, 128)
    assert AdaptiveSoftmax(128, 100_000, counts=zipf, init="zero").cutoffs == cuts
    assert AdaptiveSoftmax(128, 100_000, init="zero").cutoffs == cuts  # Zipf's law without counts
    assert suggest([3, 2, 1], 64) == suggest([1], 8) == suggest(zipf, 128, max_clusters=0) == []
    assert len(suggest(zipf, 128, max_clusters=1)) == 1
    assert suggest(np.zeros(5), 8) == []
    assert AdaptiveSoftmax(64, 50).cutoffs == []
    wide = AdaptiveSoftmax(8, 50, cutoffs=[10, 20], div_value=1e300)
    assert wide.parameters["projection1"].shape == (1, 8)


# Stages


def test_freeze():
    layer = make_layer(*LAYOUTS[0])
    x, y = make_rows(layer)
    order = layer.order
    layer.freeze([order[3], order[12], *order[25:]])
    before = copy.deepcopy(layer.parameters)
    optimizer = RowOptimizer("adagrad", 0.1, penalty_l2=0.01)
    for _ in range(2):
        layer.step(x, y, optimizer)
    moved = {name: (a != before[name]).reshape(len(a), -1).any(axis=1) for name, a in layer.parameters.items()}
    for name in ("head", "head_bias"):
        assert np.flatnonzero(~moved[name]).tolist() == [3, 11]
    assert moved["projection0"].all()
    assert np.flatnonzero(~moved["tail0"]).tolist() == [2]
    assert not moved["projection1"].any()
    assert not moved["tail1"].any()
    before = copy.deepcopy(layer.parameters)
    layer.freeze().step(x, y, optimizer)
    assert all(np.array_equal(a, before[name]) for name, a in layer.parameters.items())
    layer.freeze([]).step(x, y, optimizer)
    assert all((a != before[name]).any() for name, a in layer.parameters.items())
    with pytest.raises(IndexError, match="classes has 60; the classes are 0 to 59"):
        layer.freeze([60])
    with pytest.raises(TypeError, match="classes must be integers"):
        layer.freeze([0.5])


def test_add_classes():
    layer = make_layer(*LAYOUTS[0])
    x, _ = make_rows(layer)
    before = layer.log_proba(x)
    layer.freeze([5]).add_classes(3, counts=[1, 2, 3])
    after = layer.log_proba(x)
    assert layer.n_classes == 63
    assert layer.parameters["tail1"].shape == (38, 2)
    assert np.abs(np.exp(after).sum(axis=1) - 1).max() < 1e-14
    known = layer.order[:25]
    assert np.array_equal(after[:, known], before[:, known])  # those outside the last cluster are as before
    assert layer.counts[60:].tolist() == [1, 2, 3]
    assert layer.frozen.tolist() == [i == 5 for i in range(63)]
    assert layer.add_classes(0) is layer
    assert layer.n_classes == 63
    flat = AdaptiveSoftmax(4, 3, counts=[5, 3, 2], cutoffs=[], rng=0)
    flat.parameters["head_bias"][:] = [1, -2, 0]
    assert flat.add_classes(1, counts=[10]).parameters["head_bias"].tolist() == [1, -2, 0, np.float32(np.log(0.5))]
    assert flat.add_classes(1).parameters["head_bias"].tolist()[-1] == -2
    with pytest.raises(ValueError, match="the layer was made without"):
        AdaptiveSoftmax(4, 3).add_classes(1, counts=[1])
    with pytest.raises(ValueError, match=r"counts has shape \(2,\); \(1,\)"):
        flat.add_classes(1, counts=[1, 2])
    assert flat.n_classes == 5


def test_step_is_the_mean_loss():
    layer = make_layer(*LAYOUTS[0], dtype=np.float32)
    other = copy.deepcopy(layer)
    x, y = make_rows(layer, 200)
    s = np.random.default_rng(0).random(200)
    result = other.loss_with_grad(x, y, sample_weight=s)
    loss, grad_x = layer.step(x, y, RowOptimizer("sgd", 0.5), sample_weight=s)
    assert loss == result.loss
    assert np.array_equal(grad_x, result.grad_x)
    for name, a in other.parameters.items():
        assert np.allclose(layer.parameters[name], a - np.float32(0.5) * result.gradients[name], atol=1e-7)
    before = copy.deepcopy(layer.parameters)
    with pytest.raises(IndexError, match=r"target\[1\] is 60: the classes are 0 to 59"):
        layer.step(x[:2], [0, 60], RowOptimizer())
    layer.step(x[:0], [], RowOptimizer())
    assert all(np.array_equal(a, before[name]) for name, a in layer.parameters.items())


# Arguments


def test_odd_inputs():
    layer = make_layer(*LAYOUTS[0])
    x, y = make_rows(layer, 8)
    expected = layer.loss_with_grad(x, y)
    wide = np.zeros((16, 18))
    wide[::2, ::2] = x
    for given in (x.tolist(), np.asfortranarray(x), wide[::2, ::2], x.astype(">f8")):
        result = layer.loss_with_grad(given, y.astype(np.uint16))
        # an old BLAS has other bits for other alignments
        np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-14)
        np.testing.assert_allclose(result.grad_x, expected.grad_x, rtol=1e-12, atol=1e-15)
    locked = x.copy()
    locked.flags.writeable = False
    assert np.array_equal(layer.predict(locked), layer.predict(x))
    assert layer.predict(x[0]).shape == ()
    assert layer.predict(x[:0]).shape == (0,)
    assert layer.topk(x[:0], 3).indices.shape == (0, 3)
    assert layer.topk(x, 0).values.shape == (8, 0)
    assert layer.log_proba(x[0], y[0]).shape == ()
    assert layer.log_proba(x[:0]).shape == (0, 60)
    assert layer.log_proba(x[:0], []).shape == (0,)
    assert layer.nbytes == sum(a.nbytes for a in layer.parameters.values())


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (ValueError, "n_features must be at least 1, got 0", {"n_features": 0}),
        (TypeError, "n_classes must be an int, got 2.5", {"n_classes": 2.5}),
        (ValueError, r"n_classes must be at most 2\*\*31", {"n_classes": 2**31 + 1}),
        (ValueError, r"counts has shape \(3,\); \(10,\)", {"counts": [1, 2, 3]}),
        (ValueError, "counts must be at least 0 and finite, got -1.0 at", {"counts": [1.0] * 9 + [-1]}),
        (ValueError, "counts must be at least 0 and finite, got nan", {"counts": [1.0] * 9 + [np.nan]}),
        (TypeError, "counts must hold real numbers", {"counts": ["a"] * 10}),
        (ValueError, "order must hold each class from 0 to 9 once", {"order": [0] * 10}),
        (ValueError, "order must hold each class from 0 to 9 once", {"order": [*range(9), 10]}),
        (TypeError, "order must hold integers", {"order": np.arange(10.0)}),
        (ValueError, 'cutoffs must be "auto" or ascending', {"cutoffs": "car"}),
        (ValueError, "ascending ints from 1 to 9, got .*10", {"cutoffs": [5, 10]}),
        (ValueError, "ascending ints from 1 to 9", {"cutoffs": [5, 5]}),
        (ValueError, "ascending ints from 1 to 9", {"cutoffs": [0]}),
        (TypeError, "each of cutoffs must be an int", {"cutoffs": [1.5]}),
        (TypeError, "each of cutoffs must be an int", {"cutoffs": [True]}),
        (ValueError, "cutoffs has shape", {"cutoffs": 3}),
        (ValueError, "div_value must be at least 1", {"div_value": 0.5}),
        (ValueError, "div_value must be at least 1", {"div_value": np.nan}),
        (TypeError, "bias must be a bool", {"bias": 1}),
        (TypeError, "dtype must be float32 or float64, got float16", {"dtype": np.float16}),
        (TypeError, "dtype must be float32 or float64", {"dtype": "real"}),
        (ValueError, "init must be 'xavier' or 'zero'", {"init": "kaiming"}),
        (TypeError, "rng must be", {"rng": "seed"}),
        (ValueError, "device must be", {"device": "tpu"}),
        (csoftmax.DeviceError, "AdaptiveSoftmax computes on the CPU only", {"device": "cuda"}),
        (ValueError, "num_threads must be at least 1", {"num_threads": 0}),
    ],
)
def test_refused_options(error, match, options):
    with pytest.raises(error, match=match):
        AdaptiveSoftmax(**({"n_features": 4, "n_classes": 10} | options))


def test_refused_arguments():
    layer = make_layer(*LAYOUTS[0])
    x, y = make_rows(layer, 4)
    for error, match, call in (
        (ValueError, r"x has shape \(4, 8\); the layer has 9 features", lambda: layer.loss(x[:, :8], y)),
        (ValueError, "target has shape", lambda: layer.loss(x, y[:3])),
        (TypeError, "target must hold integer labels", lambda: layer.loss(x, np.ones(4, bool))),
        (ValueError, "soft labels need all classes", lambda: layer.loss(x, np.ones((4, 60)) / 60)),
        (ValueError, "label_smoothing needs all classes", lambda: layer.loss(x, y, label_smoothing=0.1)),
        (IndexError, r"target\[0\] is -1: the classes are 0 to 59", lambda: layer.loss(x, [-1, 0, 0, 0])),
        (ValueError, "weight must be at least 0", lambda: layer.loss(x, y, weight=-np.ones(60))),
        (ValueError, "temperature must be positive", lambda: layer.loss(x, y, temperature=0)),
        (ValueError, "reduction must be", lambda: layer.loss(x, y, reduction="max")),
        (ValueError, "upstream must be a number", lambda: layer.loss_with_grad(x, y, upstream=np.ones(4))),
        (TypeError, "x has dtype <U1", lambda: layer.predict(np.full((4, 9), "a"))),
        (TypeError, "x has dtype object", lambda: layer.predict(np.full((4, 9), None))),
        (ValueError, "k must be at most 60, the number of classes, got 61", lambda: layer.topk(x, 61)),
        (TypeError, "k must be an int", lambda: layer.topk(x, 1.0)),
        (TypeError, "optimizer must be a RowOptimizer, got NoneType", lambda: layer.step(x, y, None)),
        (IndexError, r"target\[0\] is 60", lambda: layer.log_proba(x, [60, 0, 0, 0])),
        (ValueError, "there is one label for each row", lambda: layer.log_proba(x, [0])),
        (TypeError, "target must hold integer labels", lambda: layer.log_proba(x, np.ones(4))),
        (ValueError, "size must be at least 0", lambda: layer.sample(x, -1)),
        (TypeError, "rng must be", lambda: layer.sample(x, rng="a")),
        (ValueError, "num_threads must be at least 1", lambda: layer.predict(x, num_threads=0)),
        (ValueError, "batch_size must be at least 1", lambda: AdaptiveSoftmax.suggest_cutoffs([1], 8, 0)),
        (ValueError, "counts has shape", lambda: AdaptiveSoftmax.suggest_cutoffs([], 8)),
    ):
        with pytest.raises(error, match=match):
            call()
