"""A user's program that calls every public function once: `mypy --strict` must accept it (.ci/run), and it must run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import csoftmax
from csoftmax import (
    adversarial,
    calibration,
    choice,
    class_weight,
    geometric,
    heads,
    linear_model,
    metrics,
    samplers,
    sequence,
)


def use_softmax(x: NDArray[np.float32]) -> NDArray[np.float32]:
    y: NDArray[np.float32] = csoftmax.softmax(x, temperature=2.0, where=x > -1)
    z: NDArray[np.float32] = csoftmax.log_softmax(x, axis=0, out=np.empty_like(x))
    total = float(np.sum(csoftmax.logsumexp(x, keepdims=True)))
    assert total == total
    assert float(np.sum(csoftmax.entropy(x, temperature=2.0))) >= 0
    dx: NDArray[np.float32] = csoftmax.log_softmax_vjp(x, z, axis=0)
    dx += csoftmax.softmax_vjp(x, y)
    return dx


def use_losses(x: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    csoftmax.check_labels(labels, x.shape[1])
    loss = csoftmax.cross_entropy(x, labels, label_smoothing=0.1, reduction="sum")
    result = csoftmax.cross_entropy_with_grad(x, labels, clip_norm=1.0)
    w = np.ones((x.shape[1], x.shape[1]), np.float32)
    loss += csoftmax.linear_cross_entropy(x, w, labels)
    linear = csoftmax.linear_cross_entropy_with_grad(x, w, labels, bias=np.zeros(x.shape[1]))
    loss += np.sum(csoftmax.kl_divergence(x, x, keepdims=True))
    divergence = csoftmax.kl_divergence_with_grad(x, -x, temperature=2.0, reduction="sum")
    assert divergence.grad.shape == x.shape
    return float(loss + result.loss + linear.loss + divergence.loss)


def use_segments(x: NDArray[np.float32]) -> None:
    segments = csoftmax.Segments(segment_ids=np.arange(len(x)) % 2)
    y = csoftmax.segment_softmax(x, segments=segments)
    z = csoftmax.segment_log_softmax(x, indptr=[0, len(x)], temperature=[2.0])
    sums = csoftmax.segment_logsumexp(x, segments=segments)
    dx = csoftmax.segment_softmax_vjp(x, y, segments=segments)
    dx += csoftmax.segment_log_softmax_vjp(x, z, indptr=[0, len(x)], temperature=2.0)
    labels = np.zeros(sums.shape, np.int64)
    loss = float(csoftmax.segment_cross_entropy(x, labels, segments=segments))
    result = csoftmax.segment_cross_entropy_with_grad(x, x > 0, segments=segments, positives="any", reduction="none")
    assert loss > 0
    assert result.grad.shape == dx.shape == x.shape
    assert result.loss.shape == sums.shape


def use_sparse(x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    best = csoftmax.topk(x, 2)
    csoftmax.to_csr(csoftmax.topk_softmax(x, 2, normalize="full"), x.shape[1])
    y = csoftmax.sparsemax(x)
    csoftmax.entmax_vjp(x, csoftmax.entmax(x, 1.5), 1.5)
    csoftmax.entmax_vjp(x, csoftmax.entmax(x, [[1.5]]), [[1.5]], return_alpha_grad=True)
    csoftmax.entmax_loss(x, labels, reduction="none", ignore_index=0, weight=np.ones(3), sample_weight=2.0)
    grad = csoftmax.entmax_loss_with_grad(x, labels).grad
    drawn = csoftmax.sample(x, temperature=0.7, top_k=2, size=3, rng=0)
    draws: csoftmax.Draws = csoftmax.sample(x, typical_p=0.9, order=("typical_p",), rng=0, return_log_prob=True)
    assert draws.log_prob.shape == csoftmax.penalize(x, [[0]], repetition=1.2, bias={1: 0.5}).shape[:-1]
    assert best.values.shape == (len(x), 2)
    assert y.shape == grad.shape == x.shape
    assert drawn.shape == (len(x), 3)


def use_sequences(x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    transitions = np.zeros((x.shape[1], x.shape[1]))
    loss = float(csoftmax.crf_loss(x, labels, transitions, reduction="sum"))
    result: csoftmax.CrfLossResult = csoftmax.crf_loss_with_grad(x, labels, transitions, start=np.zeros(x.shape[1]))
    difference = csoftmax.crf_log_partition(x, transitions) - csoftmax.crf_score(x, labels, transitions)
    marginals: csoftmax.CrfMarginals = csoftmax.crf_marginals(x, transitions, pairs="each")
    best: csoftmax.CrfDecoded = csoftmax.crf_decode(x, transitions, n_best=2, log_prob=True)
    assert abs(loss - difference) < 1e-4
    assert result.grad_emissions.shape == marginals.tags.shape == x.shape
    assert best.tags.shape == csoftmax.crf_sample(x, transitions, size=2, rng=0).shape


def use_many_classes(x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    w, log_z = np.zeros((1000, x.shape[1]), np.float32), np.float32(0)
    sampler = samplers.UnigramSampler(np.arange(1, 1001), power=0.75)
    negatives: samplers.Negatives = sampler.sample(20, target=labels, rng=0, exclude=[999])
    tree = adversarial.TreeSampler(1000, n_components=4, penalty=0.2).fit(x, labels)
    of_rows: samplers.Negatives = tree.sample(x, 3, target=labels, rng=0)
    assert (tree.log_q(x, of_rows.ids, 3) == of_rows.log_q).all()
    assert tree.log_prob(x, labels).shape == tree.log_prob_all(x).shape[:1]
    each = sampler.sample((len(x), 5), rng=0, scheme="iid")
    loss = csoftmax.sampled_softmax_loss(x, w, labels, negatives, correction="partition")
    loss += csoftmax.negative_sampling_loss(x, w, labels, each.ids) + csoftmax.nce_loss(x, w, labels, negatives)
    gradient: csoftmax.RowGradient = csoftmax.sampled_softmax_loss_with_grad(x, w, labels, negatives).grad_w
    csoftmax.add_rows(w, gradient, -0.1)
    csoftmax.add_rows(w, csoftmax.negative_sampling_loss_with_grad(x, w, labels, each.ids).grad_w, -0.1)
    log_z -= csoftmax.nce_loss_with_grad(x, w, labels, negatives, log_z=log_z).grad_log_z
    loss += csoftmax.in_batch_softmax_loss(x, x, ids=labels)
    towers = csoftmax.in_batch_softmax_loss_with_grad(x, x, symmetric=True)
    loss += csoftmax.margin_cross_entropy(x, w, labels, arc=0.0, cosine=0.35, classes=np.arange(500))
    on_sphere: csoftmax.LinearCrossEntropyResult = csoftmax.margin_cross_entropy_with_grad(x, w, labels, scale=16)
    assert on_sphere.grad_w.shape == w.shape
    assert towers.grad_x.shape == towers.grad_y.shape == x.shape
    assert gradient.to_dense(1000).shape == w.shape
    optimizer = heads.RowOptimizer("adam", 0.1, penalty_l2=0.01)
    optimizer.update("w", w, gradient)
    optimizer.apply_decay("w", w)
    layer = heads.AdaptiveSoftmax(x.shape[1], 1000, counts=np.arange(1000), cutoffs=[10, 100], rng=0)
    step_loss, grad_x = layer.step(x, labels, heads.RowOptimizer())
    result = layer.loss_with_grad(x, labels, upstream=2.0)
    assert result.gradients["tail0"].shape == layer.parameters["tail0"].shape
    assert grad_x.shape == result.grad_x.shape
    assert step_loss > layer.loss(x, labels) - 1
    assert layer.freeze([0]).add_classes(2, counts=[1, 1]).n_classes == 1002
    assert layer.topk(x, 3).indices.shape == (*layer.predict(x).shape, 3)
    assert layer.log_proba(x, labels).shape == layer.sample(x, rng=0).shape
    assert heads.AdaptiveSoftmax.suggest_cutoffs([3, 2, 1], 8) == []
    hashed = heads.HashedSoftmax(x.shape[1], 1000, n_buckets=64, counts=np.arange(1000), aggregate="prior", rng=0)
    assert hashed.log_proba(x).shape == hashed.unbiased(x).shape == hashed.scores(x).shape
    assert hashed.loss_with_grad(x, labels).gradients["w"].shape == hashed.parameters["w"].shape
    bloom = heads.BloomSoftmax(x.shape[1], n_buckets=64, rng=0)
    step_loss, grad_x = bloom.step(x, labels, heads.RowOptimizer())
    assert bloom.topk(x, 3, classes=np.arange(5)).indices.shape == (*bloom.predict(x, [1, 2]).shape, 3)
    assert bloom.buckets(labels).shape == heads.hash_buckets(labels, 64, 4, seed=0).shape
    model = linear_model.ManyClassRegression(n_sampled=2, sampler=samplers.UniformSampler(3)).fit(x, labels)
    assert model.topk(x, 2).indices.shape == (len(x), 2)
    served: heads.Int8Head = model.serving()
    served.update([0], x[:1])
    listed: heads.ClusteredHead = model.serving("clustered")
    close: heads.ClusteredTopK = listed.topk(x, 2, n_probe=1)
    estimated: heads.ClusteredInterval = listed.log_partition(x, n_sample=2, rng=0)
    assert listed.predict(x, exact=True).shape == listed.logits(x, [0])[:, 0].shape
    assert close.certified.shape == estimated.estimate.shape
    bounds: heads.Interval = served.log_partition(x)
    likely: heads.TopKInterval = served.topk_softmax(x, 2)
    assert (bounds.lower <= bounds.upper).all()
    assert (likely.lower <= likely.upper).all()
    assert (served.predict(x) == csoftmax.int8_topk(x, w[:3], 1).indices[:, 0]).shape == served.sample(x).shape
    assert sampler.log_q([0, 1], 20).shape == sampler.probability([0, 1]).shape
    assert loss > 0


def use_the_process() -> None:
    csoftmax.set_num_threads(1)
    with csoftmax.threads(1):
        assert csoftmax.get_num_threads() == 1
    csoftmax.set_num_threads(None)
    csoftmax.show_config()
    config = csoftmax.show_config("dicts")
    paths: list[str] = [csoftmax.get_include(), csoftmax.get_library(), csoftmax.get_cmake_dir()]
    assert config["csoftmax"] == csoftmax.__version__
    assert all(paths)


def use_geometry(x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    cost = geometric.Cost(points=np.arange(x.shape[1]))
    y: NDArray[np.float32] = geometric.g_softmax(x, cost, where=x > -9)
    assert geometric.g_logsumexp(x, cost).shape == labels.shape
    assert geometric.g_softmax_vjp(x, y, cost).shape == y.shape
    assert geometric.g_cross_entropy_with_grad(x, labels, cost.matrix).grad.shape == y.shape
    assert geometric.poincare_logits(x, np.ones_like(x)).shape == (len(x), len(x))
    result: geometric.HyperbolicLossResult = geometric.poincare_cross_entropy_with_grad(x, np.ones_like(x), labels)
    assert result.grad_x.shape == x.shape
    assert geometric.vmf_logits(x, np.ones_like(x), 2.0).shape == (len(x), len(x))
    on_sphere: geometric.VmfLossResult = geometric.vmf_cross_entropy_with_grad(x, np.ones_like(x), 2.0, labels)
    assert on_sphere.grad_mu.shape == x.shape
    assert geometric.log_bessel_iv(1.0, x**2).shape == geometric.bessel_ratio(1.0, x**2).shape == x.shape


def use_learning(x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    weights = class_weight.inverse_frequency(labels)
    class_weight.effective_number(labels)
    model = linear_model.SoftmaxRegression(max_epochs=5).fit(x, labels)
    probabilities = model.predict_proba(x)
    calibration.TemperatureScaling().fit(model.decision_function(x), labels).transform(x)
    calibration.CalibratedModel(model, "vector", cv=3).fit(x, labels).predict_proba(x)
    metrics.expected_calibration_error(labels, probabilities, norm=2, strategy="quantile", debiased=True)
    error: float = metrics.smooth_calibration_error(labels, probabilities)
    report: metrics.Report = metrics.evaluate(model, x, labels, sample_weight=np.ones(len(x)))
    report.title, report.data = "points", "points.csv"
    report.add_images(x, (1, x.shape[1]))
    figures = report.to_dict()
    assert error >= 0
    assert report.to_json() is not None
    assert figures["rows"] == len(x)
    assert len(weights) == x.shape[1]


def use_adversarial(x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    w = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], np.float32)
    certificate: adversarial.Certificate = adversarial.certify(x, w, target=labels, norm=2)
    moved = adversarial.perturb(x, w, labels, eps=1.0, method="exact", norm=2)
    assert moved.shape == x.shape
    assert (certificate.radius >= 0).all()
    loss = adversarial.robust_cross_entropy(x, w, labels, eps=0.1)
    assert loss == adversarial.robust_cross_entropy_with_grad(x, w, labels, eps=0.1).loss
    trades = adversarial.trades_loss_with_grad(x, w, labels, eps=0.1, rng=0)
    vat = adversarial.vat_loss_with_grad(x, w, eps=0.1)
    assert trades.grad_w.shape == vat.grad_w.shape == w.shape
    model = linear_model.SoftmaxRegression(adversarial="certified", adversarial_eps=0.01).fit(x, labels)
    assert 0 <= model.score_certified(x, labels, 0.01) <= 1


def use_tagger() -> None:
    x, y = [[["a"], ["b"]], [["c"]]], [["B-P", "I-P"], ["O"]]
    tagger = sequence.CRFTagger(max_epochs=5, tol=1.0, constraints="BIO").fit(x, y)
    transitions, start, end = sequence.span_transitions(tagger.classes_)
    labels = tagger.predict(x)
    best = tagger.predict_n_best(x, 2)
    f1 = sequence.span_f1(y, labels, average="macro")
    assert transitions.shape == (len(start), len(end))
    assert len(tagger.predict_proba(x)) == len(best) == len(tagger.predict_marginals(x))
    assert tagger.log_likelihood(x, y).shape == (2,)
    assert tagger.score(x, y) == f1 == 1.0
    adamw = sequence.CRFTagger(solver="adamw").partial_fit(x, y, classes=["B-P", "I-P", "O"])
    assert len(adamw.state_features_) + len(adamw.transition_features_) > 0


def use_rankings(x: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    loss = csoftmax.plackett_luce_loss(x, x, ties="efron", top=2)
    result: csoftmax.CrossEntropyResult = csoftmax.plackett_luce_loss_with_grad(x, x, ties="efron", top=2)
    assert loss == result.loss
    assert csoftmax.subset_logsumexp(x, 2).shape == csoftmax.subset_marginals(x, 2).shape[:-1]
    state = csoftmax.SoftmaxState(len(x), values=2).update(x, values=np.zeros((*x.shape, 2)))
    again = csoftmax.SoftmaxState.from_bytes(state.copy().to_bytes()).merge(state)
    merged: csoftmax.MergedStates = csoftmax.merge_states(state.weighted_mean()[None], state.logsumexp()[None])
    assert merged.value.shape == again.weighted_mean().shape
    groups, features = np.repeat(np.arange(len(x)), x.shape[1]), np.arange(2.0 * x.size).reshape(-1, 2) % 7 % 3
    model = choice.ConditionalLogit(penalty_l2=0.1).fit(features, np.eye(x.shape[1])[labels].ravel(), groups=groups)
    assert model.predict(features, groups=groups).sum() == len(x)
    assert "coef" in model.summary()
    worths = choice.PlackettLuce(penalty_l2=0.1).fit(groups % 3, x.ravel(), groups=groups // 3)
    assert worths.coef_.shape == (3,)


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((12, 3)).astype(np.float32), np.arange(12) % 3
    use_softmax(logits)
    use_losses(logits, targets)
    use_segments(logits)
    use_sparse(logits, targets)
    use_sequences(logits, targets)
    use_many_classes(logits, targets)
    use_the_process()
    use_learning(logits, targets)
    use_adversarial(logits, targets)
    use_tagger()
    use_geometry(logits, targets)
    use_rankings(logits, targets)
