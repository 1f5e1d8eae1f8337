"""Differentiable functions for JAX: XLA calls the kernels itself (jax.ffi), under jit, grad and vmap; on the CPU only.

Results have the bits of the functions of the same names in `csoftmax`, except where XLA computes: means and sums of
losses, and products with upstream gradients.  A call uses the number of threads that is set when it is traced.
There is no `linear_cross_entropy`: its matrix products are NumPy's, and XLA's would have other bits.
"""

from __future__ import annotations

try:
    import jax as _jax_itself  # noqa: F401
except ImportError as error:
    raise ImportError(f"csoftmax.jax needs JAX >= 0.5 ({error}); install it with: pip install jax") from error

from ._jax.crf import crf_loss
from ._jax.losses import cross_entropy
from ._jax.rows import entmax, log_softmax, logsumexp, softmax, sparsemax

__all__ = ["crf_loss", "cross_entropy", "entmax", "log_softmax", "logsumexp", "softmax", "sparsemax"]
