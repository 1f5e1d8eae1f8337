"""Writes tests/records/golden.json: the hash of the result bits for every function, dtype and case below.

    python tests/tools/make_golden.py

A change of these hashes is a change of bits for every user: a deliberate decision, noted in CHANGELOG.md.  Inputs are
made with integer arithmetic and exact divisions only, so that no random generator's version enters.
"""

import hashlib
import json
from pathlib import Path

import ml_dtypes  # noqa: F401
import numpy as np

import csoftmax
from csoftmax._cpu import binding
from csoftmax._spec.formats import DTYPES, dtype_of
from csoftmax._spec.operations import SOFTMAX_FAMILY
from csoftmax._spec.samples import integers
from csoftmax.samplers import Negatives, UnigramSampler

FILE = Path(__file__).resolve().parents[1] / "records" / "golden.json"
# name: (rows, K, scale of the logits, offset, temperature)
CASES = {
    "1x1": (1, 1, 8, 0, 1.0),
    "7x2": (7, 2, 8, 0, 1.0),
    "9x16": (9, 16, 8, 0, 1.0),
    "5x97": (5, 97, 8, 0, 1.0),
    "4x1000": (4, 1000, 8, 0, 1.0),
    "3x4096": (3, 4096, 8, 0, 1.0),
    "2x10007": (2, 10007, 8, 0, 1.0),
    "1x50257": (1, 50257, 16, 0, 1.0),
    "4x300 tails": (4, 300, 120, 0, 1.0),
    "4x300 offset": (4, 300, 8, 3000, 1.0),
    "4x300 T=0.3": (4, 300, 8, 0, 0.3),
    "4x300 T=7": (4, 300, 8, 0, 7.0),
    "4x300 T=2**-70": (4, 300, 2.0**-11, 0, 2.0**-70),
}


def inputs(op, dtype, case):
    rows, k, scale, offset, _ = CASES[case]
    x = ((integers(rows * k, 1).reshape(rows, k) / 2**24 - 0.5) * scale + offset).astype(dtype_of(dtype))
    if op.inputs == 1:
        return (x,)
    y = integers(rows * k, 2).reshape(rows, k) / 2**24
    y = -8 * y - 2**-20 if op.log else y / k
    return x, y.astype(dtype_of(dtype))


def hashed(*results):
    """Return the hash of the bits of all results, which CuPy copies to the host."""
    host = (r.get() if hasattr(r, "get") else np.asarray(r) for r in results)
    return hashlib.sha256(b"".join(np.ascontiguousarray(r).tobytes() for r in host)).hexdigest()[:32]


def digest(op, dtype, case, place=np.asarray):
    """Return the hash of a case of the softmax family; `place` copies the inputs to the device that computes it."""
    return hashed(op.function()(*map(place, inputs(op, dtype, case)), temperature=CASES[case][4]))


LOSSES = {
    "labels": {},
    "weights, smoothing, clipped": {"label_smoothing": 0.125, "clip_norm": 0.5, "clip_value": 0.25},
    "soft, z-loss": {"z_loss": 0.0625},
}


def loss_digest(dtype, case, kind, place=np.asarray):
    """Return the hash of the row losses, their mean and its gradient."""
    rows, k, _, _, temperature = CASES[case]
    (x,) = inputs(SOFTMAX_FAMILY[0], dtype, case)
    options = dict(LOSSES[kind], temperature=temperature)
    target = (integers(rows, 3) % k).astype(np.int64)
    if "label_smoothing" in options:
        options["weight"] = place(integers(k, 4) / 2**24)
    if "z_loss" in options:
        target = integers(rows * k, 5).reshape(rows, k) / 2**24 / k
    x, target = place(x), place(target)
    loss, grad = csoftmax.cross_entropy_with_grad(x, target, **options)
    each = csoftmax.cross_entropy(x, target, reduction="none", **{k: options[k] for k in options if "clip" not in k})
    return hashed(each, loss, grad)


SPARSE = (1.25, 1.5, 2.0)  # alpha


def sparse_digest(dtype, case, alpha, place=np.asarray):
    """Return the hash of top-k, its softmax, entmax with gradient and loss, and draws."""
    rows, k, _, _, temperature = CASES[case]
    (x,) = inputs(SOFTMAX_FAMILY[0], dtype, case)
    x, labels, count = place(x), place((integers(rows, 3) % k).astype(np.int64)), min(k, 40)
    full = csoftmax.topk_softmax(x, count, temperature=temperature, normalize="full")
    smallest = csoftmax.topk(x, count, largest=False)
    y = csoftmax.entmax(x, alpha)
    loss, grad = csoftmax.entmax_loss_with_grad(x, labels, alpha, reduction="none")
    draws = [csoftmax.sample(x, temperature=temperature, rng=Uniform(), size=9, top_p=p) for p in (None, 0.75)]
    return hashed(*full, *smallest, y, csoftmax.entmax_vjp(x, y, alpha), loss, grad, *draws)


def divergence_digest(dtype, case, place=np.asarray):
    """Return the hash of divergences with their gradients, of logits that differ and of logits that are close."""
    x, other = (
        place(((integers(rows * k, seed).reshape(rows, k) / 2**24 - 0.5) * scale + offset).astype(dtype_of(dtype)))
        for rows, k, scale, offset, _ in (CASES[case],)
        for seed in (1, 2)
    )
    close = (x.astype(np.float64) * (1 + 2.0**-9)).astype(x.dtype)
    results = (
        csoftmax.kl_divergence_with_grad(x, y, temperature=CASES[case][4], reduction="none") for y in (other, close)
    )
    return hashed(*(part for result in results for part in result))


def crf_digest(dtype, case, place=np.asarray):
    """Return the hash of the loss with gradients, marginals, paths and draws of sequences of up to 7 tags."""
    rows, k, _, _, _ = CASES[case]
    (x,) = inputs(SOFTMAX_FAMILY[0], dtype, case)
    tags = min(k, 7)
    length = k // tags
    x = place(np.ascontiguousarray(x[:, : length * tags]).reshape(rows, length, tags))
    transitions = place(integers(tags * tags, 7).reshape(tags, tags) / 2**22 - 2)
    start, labels = place(integers(tags, 8) / 2**23), (integers(rows * length, 3) % tags).astype(np.int64)
    options = {"start": start, "lengths": place((integers(rows, 9) % (length + 1)).astype(np.int64))}
    loss = csoftmax.crf_loss_with_grad(x, place(labels.reshape(rows, length)), transitions, **options)
    marginals = csoftmax.crf_marginals(x, transitions, pairs="sum", **options)
    decoded = csoftmax.crf_decode(x, transitions, log_prob=True, **options)
    draws = csoftmax.crf_sample(x, transitions, rng=Uniform(), **options)
    return hashed(*loss[:4], *marginals, *decoded, draws)


def segments_digest(dtype, case):
    """Return the hash of the family over segments of the rows' elements, by offsets and by ids in another order."""
    rows, _, _, _, temperature = CASES[case]
    (x,) = inputs(SOFTMAX_FAMILY[0], dtype, case)
    x = x.reshape(-1)
    ids = (integers(len(x), 4) % (rows + 1)).astype(np.int64) - 1
    indptr = np.sort(integers(rows + 4, 5).astype(np.int64) % (len(x) + 1))
    positives = integers(len(x), 6) % 3 == 0
    parts = []
    for given in ({"indptr": indptr}, {"segment_ids": ids, "num_segments": rows}):
        segments = csoftmax.Segments(**given)
        options = {"segments": segments, "temperature": temperature}
        y, z = csoftmax.segment_softmax(x, **options), csoftmax.segment_log_softmax(x, **options)
        parts += [y, z, csoftmax.segment_logsumexp(x, **options)]
        parts += [csoftmax.segment_softmax_vjp(x, y, **options), csoftmax.segment_log_softmax_vjp(x, z, **options)]
        labels = np.where(segments.lengths > 0, (segments.lengths - 1) // 2, -100)
        parts += csoftmax.segment_cross_entropy_with_grad(x, labels, **options)
        parts += csoftmax.segment_cross_entropy_with_grad(x, positives, positives="any", reduction="none", **options)
    return hashed(*parts)


def ranking_digest(dtype, case):
    """Return the hash of losses and gradients of lists with every kind of ties, with and without a temperature."""
    k = CASES[case][1]
    (x,) = inputs(SOFTMAX_FAMILY[0], dtype, case)
    x, few = x[:, :4096], max(2, k // 3)
    relevance = (integers(x.size, 3) % few).reshape(x.shape)
    observed = (integers(x.size, 4) % 4 > 0).reshape(x.shape)
    parts = []
    for ties in ("breslow", "efron", "exact", "order"):
        part = slice(None, 100) if ties == "exact" else slice(None)
        parts += csoftmax.plackett_luce_loss_with_grad(
            x[:, part], relevance[:, part], observed=observed[:, part], ties=ties, reduction="none"
        )
    parts += csoftmax.plackett_luce_loss_with_grad(x, np.arange(x.shape[1]) + 0 * relevance, temperature=0.75)
    return hashed(*parts)


def subset_digest(dtype, case):
    """Return the hash of sums over subsets and of their marginals."""
    rows = CASES[case][0]
    (x,) = inputs(SOFTMAX_FAMILY[0], dtype, case)
    x = x[:, :1000]
    sizes = (integers(rows, 3) % min(30, x.shape[1] + 1)).astype(np.int64)
    return hashed(csoftmax.subset_logsumexp(x, sizes), csoftmax.subset_marginals(x, sizes))


SAMPLED_FEATURES, SAMPLED_CLASSES = 33, 5


def sampled_digest(dtype, case):
    """Return the hash of the losses whose negatives are given for each row, which no BLAS computes, and of a sampler.

    The loss of logistic terms and the softmax, gradients of x and w; masses, draws and logarithms of expected counts.
    """
    rows, k, scale, _, temperature = CASES[case]
    x, w = (
        ((integers(n * SAMPLED_FEATURES, seed).reshape(n, -1) / 2**24 - 0.5) * size).astype(dtype_of(dtype))
        for n, seed, size in ((rows, 7, scale), (k, 8, 1))
    )
    labels = (integers(rows, 3) % k).astype(np.int64)
    ids = (integers(rows * SAMPLED_CLASSES, 9).reshape(rows, -1) % k).astype(np.int64)
    log_q = -integers(ids.size, 10).reshape(ids.shape) / 2**22
    negatives = Negatives(ids, log_q, None, log_q[:, 0], "iid")
    options = {"reduction": "none", "temperature": temperature}
    results = (
        csoftmax.sampled_softmax_loss_with_grad(x, w, labels, negatives, **options),
        csoftmax.negative_sampling_loss_with_grad(x, w, labels, ids, **options),
        csoftmax.nce_loss_with_grad(x, w, labels, negatives, log_z=0.5, **options),
    )
    parts = [part for r in results for part in (r.loss, r.grad_x, r.grad_w.rows, r.grad_w.values)]
    sampler = UnigramSampler(integers(k, 11) + 1)
    drawn = np.empty(100, np.int64)
    binding.run_alias_draw(k, sampler._cells, integers(100, 12).astype(np.uint64) << np.uint64(40), drawn, None)
    return hashed(*parts, sampler._masses, sampler._cells, drawn, sampler.log_q(np.arange(k), 2, scheme="iid"))


def sampler_digest(dtype, case):
    """Return the hash of draws with every filter and without replacement, their log-probabilities, and penalties."""
    rows, k, _, _, temperature = CASES[case]
    (x,) = inputs(SOFTMAX_FAMILY[0], dtype, case)
    options = {"temperature": temperature, "size": min(k, 9), "return_log_prob": True}
    parts = []
    for filters in (
        {"typical_p": 0.625},
        {"top_n_sigma": 1.25, "min_p": 0.125},
        {"top_p": 0.875, "top_k": max(k // 2, 1), "order": ("top_p", "temperature", "top_k")},
        {"replace": False},
    ):
        parts += csoftmax.sample(x, rng=Uniform(), **options, **filters)
    tokens = (integers(rows * 6, 3).reshape(rows, 6) % (k + 1)).astype(np.int64)
    penalties = {"repetition": 1.25, "presence": 0.125, "frequency": 0.0625, "bias": {0: 2.5}}
    return hashed(*parts, csoftmax.penalize(x, tokens, **penalties))


class Uniform(np.random.Generator):
    """A generator whose uniform numbers are derived from integers."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def random(self, shape):
        return integers(int(np.prod(shape)), 6).reshape(shape) / 2**24


def hashes():
    found = {
        f"{op.name}/{dtype}/{case}": digest(op, dtype, case)
        for op in SOFTMAX_FAMILY
        for dtype in DTYPES
        for case in CASES
    }
    for kind in LOSSES:
        for dtype in DTYPES:
            for case in CASES:
                found[f"cross_entropy, {kind}/{dtype}/{case}"] = loss_digest(dtype, case, kind)
    for alpha in SPARSE:
        for dtype in DTYPES:
            for case in CASES:
                found[f"sparse, alpha={alpha}/{dtype}/{case}"] = sparse_digest(dtype, case, alpha)
    for dtype in DTYPES:
        for case in CASES:
            found[f"crf/{dtype}/{case}"] = crf_digest(dtype, case)
            found[f"kl_divergence/{dtype}/{case}"] = divergence_digest(dtype, case)
            found[f"sampled, of each row/{dtype}/{case}"] = sampled_digest(dtype, case)
    for dtype in DTYPES:
        for case in CASES:
            found[f"sampler/{dtype}/{case}"] = sampler_digest(dtype, case)
            found[f"segments/{dtype}/{case}"] = segments_digest(dtype, case)
    for dtype in DTYPES:
        for case in CASES:
            found[f"rankings/{dtype}/{case}"] = ranking_digest(dtype, case)
            found[f"subsets/{dtype}/{case}"] = subset_digest(dtype, case)
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(hashes(), indent=1) + "\n")
    print(f"wrote {FILE}")
