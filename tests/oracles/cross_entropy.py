"""What cross-entropy means: the formula of the documentation in longdouble for bulk, in mpmath for any precision.

Along the last axis, rows first.  Both return the row losses, the gradient of each row loss (before reduction and
clipping), what the row loss and the gradient may be wrong by in units of their last place (`scale`: the larger of the
two terms that are subtracted; the loss of a row with z-loss also knows that lse is good to its own magnitude only), and
the row's term of the mean's divisor.
"""

from typing import NamedTuple

import numpy as np
from oracle import LD, wide


class Rows(NamedTuple):
    loss: np.ndarray
    gradient: np.ndarray
    loss_scale: np.ndarray
    scale: np.ndarray
    divisor: np.ndarray
    kept: np.ndarray


def one_hot(labels, n, dtype=LD):
    q = np.zeros((*labels.shape, n), dtype)
    np.put_along_axis(q, np.where(labels < 0, 0, labels)[..., None].astype(np.int64), 1, -1)
    return q


def rows(
    x, target, weight=None, sample_weight=None, label_smoothing=0.0, ignore_index=-100, z_loss=0.0, temperature=1.0
):
    """In longdouble; soft labels and weights are taken as the compute type holds them."""
    real = np.float64 if np.asarray(x).dtype == np.float64 else np.float32
    x, t, eps, z_loss = wide(x), LD(temperature), LD(label_smoothing), LD(z_loss)
    n = x.shape[-1]
    hard = np.issubdtype(target.dtype, np.integer)
    kept = target != ignore_index if hard else np.ones(x.shape[:-1], bool)
    s = np.ones(kept.shape, LD) if sample_weight is None else np.broadcast_to(np.asarray(sample_weight, LD), kept.shape)
    kept = kept & (s != 0)
    x = np.where(kept[..., None], x, 0)
    q = one_hot(np.where(kept, target, 0), n) if hard else target.astype(real).astype(LD)
    w = np.ones(n, LD) if weight is None else np.asarray(weight).astype(real).astype(LD)
    divisor = np.where(kept, s * (w * q).sum(-1), 0)
    a = w * ((1 - eps) * q + (eps / n if eps else 0))
    m = x.max(-1, keepdims=True)
    z = (x - m) / t
    is_max = z == 0
    e = np.exp(z)
    count = is_max.sum(-1, keepdims=True)
    others = np.where(is_max, 0, e).sum(-1, keepdims=True)
    tail = np.log1p(others + (count - 1))
    total = others + count
    lse = m / t + tail
    big_q = a.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        far = np.where(a == 0, 0, a * -z).sum(-1, keepdims=True)
    loss = big_q * tail + far + z_loss * lse * lse
    loss_scale = loss + z_loss * 2 * np.abs(lse) * np.maximum(np.abs(lse), np.abs(m / t))
    g = big_q + 2 * z_loss * lse
    p = e / total
    gradient = p * g - a
    scale = np.maximum(p * (big_q + 2 * z_loss * np.maximum(np.abs(lse), np.abs(m / t))), a)
    if hard:  # p (g - a) - a (1 - p), with 1 - p as the sum of the others
        label = np.where(kept, target, 0).astype(np.int64)[..., None]
        rest = np.where(np.arange(n) == label, 0, e)
        rest = np.where(is_max, 0, rest).sum(-1, keepdims=True) + (count - np.take_along_axis(is_max, label, -1))
        a_t, p_t = np.take_along_axis(a, label, -1), np.take_along_axis(p, label, -1)
        np.put_along_axis(gradient, label, p_t * (g - a_t) - a_t * (rest / total), -1)
        if not eps and not z_loss:
            scale = np.abs(gradient)
    s = np.where(kept, s, 0)[..., None]
    return Rows(
        np.where(kept, (s * loss)[..., 0], 0),
        np.where(kept[..., None], s * gradient / t, 0),
        np.where(kept, (s * loss_scale)[..., 0], 0),
        np.where(kept[..., None], s * scale / t, 0),
        divisor,
        kept,
    )


def exact(x, target, **options):
    """One row in mpmath: (loss, gradient), from the definition and without any care for cancellation."""
    import mpmath

    with mpmath.workprec(3000):
        one = mpmath.mpf(1)
        n, t = len(x), mpmath.mpf(float(options.get("temperature", 1)))
        eps, z_loss = mpmath.mpf(options.get("label_smoothing", 0.0)), mpmath.mpf(options.get("z_loss", 0.0))
        weight = options.get("weight")
        w = [one] * n if weight is None else [mpmath.mpf(float(v)) for v in weight]
        q = [mpmath.mpf(float(v)) for v in target] if np.ndim(target) else [one * (j == target) for j in range(n)]
        a = [w[j] * ((1 - eps) * q[j] + eps / n) for j in range(n)]

        def loss(z):
            lse = mpmath.log(mpmath.fsum(mpmath.exp(v) for v in z))
            return mpmath.fsum(a[j] * (lse - z[j]) for j in range(n) if a[j]) + z_loss * lse**2

        z = [mpmath.mpf(float(v)) / t for v in x]
        e = [mpmath.exp(v) for v in z]
        total = mpmath.fsum(e)
        g = mpmath.fsum(a) + 2 * z_loss * mpmath.log(total)
        gradient = [(e[j] / total * g - a[j]) / t for j in range(n)]
        step = mpmath.mpf(2) ** -900
        for j in (0, n - 1):  # the gradient is that of the loss
            up, down = ([v + d * (i == j) / t for i, v in enumerate(z)] for d in (step, -step))
            difference = (loss(up) - loss(down)) / (2 * step)
            assert abs(difference - gradient[j]) <= mpmath.mpf(2) ** -700 * (1 + abs(gradient[j]))
        return loss(z), gradient
