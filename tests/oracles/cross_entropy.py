"""Cross-entropy for one row in mpmath: the definition, without any care for cancellation.

csoftmax/_spec/cross_entropy.py has the same in long double, for many rows.
"""

import mpmath
import numpy as np


def exact(x, target, **options):
    """Return loss and gradient of one row; differences of the loss check the gradient."""
    with mpmath.workprec(3000):
        n, t = len(x), mpmath.mpf(float(options.get("temperature", 1)))
        eps, z_loss = mpmath.mpf(options.get("label_smoothing", 0.0)), mpmath.mpf(options.get("z_loss", 0.0))
        weight = options.get("weight")
        w = [mpmath.mpf(1)] * n if weight is None else [mpmath.mpf(float(v)) for v in weight]
        q = [mpmath.mpf(float(v)) for v in target] if np.ndim(target) else [mpmath.mpf(j == target) for j in range(n)]
        a = [w[j] * ((1 - eps) * q[j] + eps / n) for j in range(n)]

        def loss(z):
            lse = mpmath.log(mpmath.fsum(mpmath.exp(v) for v in z))
            return mpmath.fsum(a[j] * (lse - z[j]) for j in range(n) if a[j]) + z_loss * lse**2

        x, slope = [mpmath.mpf(float(v)) for v in x], [mpmath.mpf(1)] * n
        if options.get("softcap") is not None:
            c = mpmath.mpf(float(options["softcap"]))
            x, slope = [c * mpmath.tanh(v / c) for v in x], [mpmath.sech(v / c) ** 2 for v in x]
        z = [v / t for v in x]
        e = [mpmath.exp(v) for v in z]
        total = mpmath.fsum(e)
        g = mpmath.fsum(a) + 2 * z_loss * mpmath.log(total)
        gradient = [(e[j] / total * g - a[j]) / t for j in range(n)]
        step = mpmath.mpf(2) ** -900
        for j in (0, n - 1):  # the gradient is that of the loss
            up, down = ([v + d * (i == j) / t for i, v in enumerate(z)] for d in (step, -step))
            difference = (loss(up) - loss(down)) / (2 * step)
            assert abs(difference - gradient[j]) <= mpmath.mpf(2) ** -700 * (1 + abs(gradient[j]))
        return loss(z), [g * s for g, s in zip(gradient, slope)]
