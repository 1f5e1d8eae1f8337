"""csoftmax.jax over segments: the bits of csoftmax, traced ids and offsets, gradients, vmap, and what is refused."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
cj = pytest.importorskip("csoftmax.jax")

import jax.numpy as jnp  # noqa: E402

import csoftmax  # noqa: E402

IDS = np.array([2, 0, 2, -1, 0, 2])
FUNCTIONS = ("segment_softmax", "segment_log_softmax", "segment_logsumexp")


def make_logits(seed=0):
    return (np.random.default_rng(seed).standard_normal((6, 2)) * 3).astype(np.float32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bits(name):
    x = make_logits()
    function, expected = getattr(cj, name), getattr(csoftmax, name)(x, segment_ids=IDS)
    assert np.array_equal(function(jnp.asarray(x), segment_ids=IDS), expected)
    traced = jax.jit(lambda x, ids: function(x, segment_ids=ids, num_segments=3))
    assert np.array_equal(traced(x, IDS), expected)
    assert np.array_equal(traced(x, np.where(IDS < 0, 17, IDS)), expected)  # what is no segment takes no part
    by_offsets = jax.jit(lambda x, p: function(x, indptr=p))(x, np.array([0, 2, 2, 6]))
    assert np.array_equal(by_offsets, getattr(csoftmax, name)(x, indptr=[0, 2, 2, 6]))
    each = jax.vmap(lambda z: function(z, segment_ids=IDS))(jnp.stack([x, x + 1]))
    assert np.array_equal(each[0], expected)
    along = function(jnp.asarray(x.T), segment_ids=IDS, axis=-1)
    assert np.array_equal(np.asarray(along).T, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    """Against those of csoftmax.torch's formulas in NumPy: y (dy - sum dy y) and its kin, by the vjps."""
    x, dy = make_logits(1), make_logits(2)
    mask = np.arange(12).reshape(6, 2) % 4 > 0
    for options in ({}, {"temperature": 0.7}, {"where": mask}):
        y, pull = jax.vjp(lambda z, o=options: getattr(cj, name)(z, segment_ids=IDS, **o), x)
        (dx,) = pull(jnp.asarray(dy[: y.shape[0]]))
        if name == "segment_logsumexp":
            p = csoftmax.segment_softmax(x, segment_ids=IDS, **options)
            weight = np.where(IDS[:, None] < 0, 0, dy[np.maximum(IDS, 0)])
            np.testing.assert_allclose(dx, p * weight / options.get("temperature", 1.0), 1e-6, 1e-7)
        else:
            expected = getattr(csoftmax, f"{name}_vjp")(dy, np.asarray(y), segment_ids=IDS, **options)
            np.testing.assert_array_equal(dx, expected)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_losses(reduction):
    x, labels = make_logits(3), np.array([[0, 1], [-100, -100], [2, 0]])
    options = {"segment_ids": IDS, "reduction": reduction, "label_smoothing": 0.1}
    loss, pull = jax.vjp(lambda z: cj.segment_cross_entropy(z, labels, **options), x)
    expected = csoftmax.segment_cross_entropy_with_grad(x, labels, **options)
    np.testing.assert_allclose(loss, expected.loss, 1e-6)
    np.testing.assert_allclose(pull(jnp.ones_like(loss))[0], expected.grad, 1e-6, 1e-7)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_weights_of_losses(reduction):
    """Those of ignored segments are not read; a segment of weight 0 is left out, whatever its elements are."""
    x, labels = make_logits(3), np.array([[0, 1], [-100, -100], [2, 0]])
    weight = np.float32([[0.5, 0.0], [np.nan, np.inf], [3e38, 2.0]])
    x[IDS == 0, 1] = np.nan
    options = {"segment_ids": IDS, "reduction": reduction, "z_loss": 0.1}
    loss = jax.jit(lambda z, w: cj.segment_cross_entropy(z, labels, sample_weight=w, **options))
    expected = csoftmax.segment_cross_entropy_with_grad(
        x, labels, sample_weight=np.where(labels == -100, 1, weight), **options
    )
    got, pull = jax.vjp(lambda z: loss(z, weight), x)
    np.testing.assert_allclose(got, expected.loss, 1e-6)
    np.testing.assert_allclose(pull(jnp.ones_like(got))[0], expected.grad, 1e-6, 1e-7)
    for bad in (-1.0, np.nan, np.inf):
        each = cj.segment_cross_entropy(x, labels, segment_ids=IDS, sample_weight=bad, reduction="none")
        assert np.array_equal(np.isnan(each), labels >= 0)
    with pytest.raises(ValueError, match=r"sample_weight has shape \(3,\), which does not broadcast to \(3, 2\)"):
        cj.segment_cross_entropy(x, labels, segment_ids=IDS, sample_weight=np.ones(3))
    with pytest.raises(Exception, match=r"label|csoftmax"):
        cj.segment_cross_entropy(x, labels + 50, segment_ids=IDS, sample_weight=0.0).block_until_ready()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_temperatures_of_segments(name):
    """The bits of csoftmax, for one temperature a segment and one for each segment and head; and gradients."""
    x, dy, function = make_logits(4), make_logits(5), getattr(cj, name)
    for t in (np.float32([0.5, 2.0, 1.25]), np.float32([[0.5, 3], [1, 0.25], [2, 1e-25]])):
        options = {"segment_ids": IDS, "temperature": t}
        y, pull = jax.vjp(lambda z, t: function(z, segment_ids=IDS, temperature=t), x, t)
        assert np.array_equal(y, getattr(csoftmax, name)(x, **options))
        dx, dt = pull(jnp.asarray(dy[: y.shape[0]]))
        assert not np.any(dt)
        if name == "segment_logsumexp":
            each = np.broadcast_to(t[:, None] if t.ndim == 1 else t, (3, 2))[np.maximum(IDS, 0)]
            weight = np.where(IDS[:, None] < 0, 0, dy[np.maximum(IDS, 0)])
            np.testing.assert_allclose(dx, csoftmax.segment_softmax(x, **options) * (weight / each), 1e-6)
        else:
            np.testing.assert_array_equal(dx, getattr(csoftmax, f"{name}_vjp")(dy, np.asarray(y), **options))


def test_traced_temperatures():
    x, t = make_logits(6), np.float32([[1.0, 2.0, 3.0], [0.5, 1.0, 2.0]])
    stacked = jax.vmap(lambda z, t: cj.segment_softmax(z.T, axis=1, segment_ids=IDS, temperature=t))
    expected = csoftmax.segment_softmax(x + 1, segment_ids=IDS, temperature=t[1])
    assert np.array_equal(jax.jit(stacked)(np.stack([x, x + 1]), t)[1].T, expected)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_temperatures_of_losses(reduction):
    x, labels = make_logits(3), np.array([[0, 1], [-100, -100], [2, 0]])
    for t in (np.float32([0.5, 2.0, 1.25]), np.float32([[0.5, 3], [1, 0.25], [2, 0.75]])):
        options = {"segment_ids": IDS, "reduction": reduction, "label_smoothing": 0.1, "temperature": t}
        loss, pull = jax.vjp(lambda z, o=options: cj.segment_cross_entropy(z, labels, **o), x)
        expected = csoftmax.segment_cross_entropy_with_grad(x, labels, **options)
        np.testing.assert_allclose(loss, expected.loss, 1e-6)
        np.testing.assert_allclose(pull(jnp.ones_like(loss))[0], expected.grad, 1e-6, 1e-7)


def test_refused():
    with pytest.raises(ValueError, match=r"temperature has shape \(4,\); allowed are a number and what broadcasts to"):
        cj.segment_softmax(jnp.zeros((6, 2)), segment_ids=IDS, temperature=jnp.ones(4))
    with pytest.raises(Exception, match=r"temperature|csoftmax"):
        jax.grad(lambda z: cj.segment_softmax(z, segment_ids=IDS, temperature=jnp.zeros(3))[0])(
            jnp.zeros(6)
        ).block_until_ready()
    x = jnp.zeros(6)
    with pytest.raises(TypeError, match="num_segments is needed where segment_ids are traced"):
        jax.jit(lambda ids: cj.segment_softmax(x, segment_ids=ids))(IDS)
    with pytest.raises(TypeError, match="exactly one of indptr, segment_ids and segments is needed"):
        cj.segment_softmax(x)
    with pytest.raises(ValueError, match="target has shape"):
        cj.segment_cross_entropy(x, jnp.zeros(2, int), segment_ids=IDS)
    with pytest.raises(Exception, match=r"label|csoftmax"):
        cj.segment_cross_entropy(x, jnp.array([5, 0, 0]), segment_ids=IDS).block_until_ready()


def test_mean_over_no_segment_has_no_gradient():
    x, ignored = jnp.arange(6.0), jnp.array([-100, -100])
    loss, grad = jax.value_and_grad(lambda z: cj.segment_cross_entropy(z, ignored, indptr=jnp.array([0, 3, 6])))(x)
    assert np.isnan(loss)
    assert not np.asarray(grad).any()
    assert not np.isnan(grad).any()


def test_traced_ids_beside_segments():
    segments = csoftmax.Segments(segment_ids=IDS)
    with pytest.raises(TypeError, match=r"exactly one of .* got segment_ids and segments"):
        jax.jit(lambda x, ids: cj.segment_softmax(x, segment_ids=ids, segments=segments))(make_logits(), IDS)
    with pytest.raises(ValueError, match="num_segments must be at most"):
        jax.jit(lambda x, ids: cj.segment_softmax(x, segment_ids=ids, num_segments=2**70))(make_logits(), IDS)


def test_targets_are_labels():
    x, offsets = jnp.zeros(4), jnp.array([0, 2, 4])
    assert cj.segment_cross_entropy(x, target=jnp.array([0, 1]), indptr=offsets) == np.float32(np.log(2))
    for call in (csoftmax.segment_cross_entropy, cj.segment_cross_entropy):
        for target in (jnp.ones(4), jnp.ones(4, bool)):
            with pytest.raises(ValueError, match=r"has labels only, integers of shape \(2,\): of soft labels"):
                jax.grad(lambda z, call=call, t=target: call(z, t, indptr=offsets))(x)
    with pytest.raises(TypeError, match="target must hold integers, got float32"):
        cj.segment_cross_entropy(x, jnp.ones(2), indptr=offsets)
