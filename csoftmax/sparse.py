"""Sparse softmax: top-k, sparsemax and alpha-entmax with their losses, and drawing from logits."""

import math
from typing import Any, NamedTuple

import numpy as np

from ._args import (
    DeviceError,
    as_array,
    check_alpha,
    check_count,
    is_cupy,
    plan,
    plan_entmax_loss,
    plan_sample,
    plan_topk,
)
from ._foreign import native, running, takes_foreign
from .cross_entropy import cross_entropy_with_grad
from .softmax import log_softmax, logsumexp, softmax, softmax_vjp

_topk, _sample = running(plan_topk), running(plan_sample)


class TopK(NamedTuple):
    """What `topk` and `topk_softmax` return."""

    values: Any
    indices: Any


class EntmaxLossResult(NamedTuple):
    """What `entmax_loss_with_grad` returns."""

    loss: Any
    grad: Any


def topk(x, k, axis=-1, *, largest=True, sorted=True, device=None, num_threads=None):
    """The k largest (or smallest) elements along an axis, and where they are.

    Parameters
    ----------
    x : array_like of shape (..., n)
        In one of the dtypes of `softmax`; n is the length of `axis`.
    k : int
        How many, 0 to n.
    axis : int, tuple of ints or None, default -1
        Along which to select. A tuple, and None for all axes, makes one axis of them, the last of the result; indices
        then count in C order of the axes as named.
    largest : bool, default True
        False: the k smallest.
    sorted : bool, default True
        Best first. False: in whatever order is quickest, which may change.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    TopK
        ``values``, `x` with k in place of n, and ``indices`` of the same shape, int64.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`; ValueError also for a k that is negative or greater than n.

    Notes
    -----
    The order is total: NaN is greater than every number, -0 equals +0, and of equal elements the one with the lowest
    index comes first, ``largest`` or not; ``torch.topk`` leaves ties open. Values are exact copies (NaN canonical);
    integers are compared as float64, exact to 2**53.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.topk(np.array([3.0, 1.0, 4.0, 1.0, 5.0, 4.0]), 3)
    TopK(values=array([5., 4., 4.]), indices=array([4, 2, 5]))
    """
    return TopK(*_topk(x, k, axis, largest=largest, sorted=sorted, device=device, num_threads=num_threads))


def topk_softmax(
    x,
    k,
    axis=-1,
    *,
    temperature=1.0,
    normalize="topk",
    sorted=True,
    where=None,
    out=None,
    device=None,
    num_threads=None,
):
    """Softmax of the k largest elements along an axis, and where they are.

    Parameters
    ----------
    x, k, axis, sorted
        As in `topk`.
    temperature : float, default 1.0
        T >= 0, as in `softmax`.
    normalize : {"topk", "full"}
        "topk": the k probabilities sum to 1. "full": they are those of the softmax of all elements, to the last bit.
    where : array_like of bool, broadcastable to x, optional
        Elements where it is False take no part. They may be among the k if there are too few others; their probability
        is 0.
    out : pair of ndarrays of the shapes and dtypes of the result, optional
        Where values and indices go.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    TopK
        ``values``, the probabilities, and ``indices``.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `topk`.

    Notes
    -----
    One pass over the row finds the elements, a second, while the row is in cache, adds up the exponentials of "full";
    no array of the size of `x` is written (on a GPU "full" computes `softmax` into one and takes the elements from
    it). NaN, +inf, or nothing but -inf among what takes part makes the row NaN, as
    in `softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> x = np.log([0.1, 0.4, 0.2, 0.3])
    >>> csoftmax.topk_softmax(x, 2, normalize="full").values.round(3)
    array([0.4, 0.3])
    >>> csoftmax.topk_softmax(x, 2).values.round(3)
    array([0.571, 0.429])
    """
    if normalize not in ("topk", "full"):
        raise ValueError(f'normalize must be "topk" or "full", got {normalize!r}')
    result = _topk(
        x,
        k,
        axis,
        sorted=sorted,
        normalize=normalize,
        temperature=temperature,
        where=where,
        out=out,
        device=device,
        num_threads=num_threads,
    )
    return TopK(*result)


def to_csr(topk, n_classes):
    """Top-k results as a sparse matrix, one row for each row of the batch.

    Parameters
    ----------
    topk : TopK, or a pair of arrays (values, indices) of shape (..., k)
        What `topk` or `topk_softmax` returned for the last axis.
    n_classes : int
        Columns of the matrix.

    Returns
    -------
    scipy.sparse.csr_array of shape (rows, n_classes)
        In canonical form: indices sorted, none twice. float16 and bfloat16, which SciPy does not have, become float32.
        Probabilities that are 0 stay as explicit zeros.

    Raises
    ------
    ImportError
        Without SciPy.
    IndexError
        For an index outside [0, n_classes).
    TypeError, ValueError
        For arrays of different shapes, indices that are no integers, or one index twice in a row.

    Notes
    -----
    Rows are those of the batch in C order; a single row makes a matrix of one.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> best = csoftmax.topk_softmax(np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 3.0]]), 2)
    >>> csoftmax.to_csr(best, 3).toarray().round(3)
    array([[0.   , 0.731, 0.269],
           [0.5  , 0.   , 0.5  ]])
    """
    try:
        from scipy.sparse import csr_array
    except ImportError:
        raise ImportError("to_csr needs SciPy: pip install scipy") from None
    if not isinstance(topk, (tuple, list)) or len(topk) != 2:
        raise TypeError(f"topk must be a TopK or a pair of arrays, got {type(topk).__name__}")
    if any(map(is_cupy, topk)):
        raise DeviceError("topk is on a CUDA device, where SciPy has no matrices: pass values.get() and indices.get()")
    values, indices = (as_array(n, native(a, n)) for n, a in zip(("values", "indices"), topk, strict=True))
    n_classes = check_count("n_classes", n_classes)
    if values.shape != indices.shape or values.ndim == 0:
        raise ValueError(f"values have shape {values.shape}, indices {indices.shape}; both must be (..., k)")
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {indices.dtype}")
    k = values.shape[-1]
    rows = int(np.prod(values.shape[:-1], dtype=np.int64))
    indices = indices.reshape(rows, k)
    bad = (indices < 0) | (indices >= n_classes)
    if bad.any():
        at = np.unravel_index(int(bad.argmax()), indices.shape)
        raise IndexError(f"indices have {indices[at]} in row {at[0]}: the classes are 0 to {n_classes - 1}")
    order = np.argsort(indices, axis=-1, kind="stable")
    indices = np.take_along_axis(indices, order, -1)
    if k > 1 and np.any(indices[:, 1:] == indices[:, :-1]):
        raise ValueError("indices have a class twice in one row")
    values = np.take_along_axis(values.reshape(rows, k), order, -1)
    if values.dtype.itemsize == 2:
        values = values.astype(np.float32)
    starts = np.arange(rows + 1, dtype=np.int64) * k
    matrix = csr_array((values.ravel(), indices.ravel().astype(np.int64), starts), shape=(rows, n_classes))
    matrix.has_canonical_format = True
    return matrix


def sparsemax(x, axis=-1, *, where=None, out=None, device=None, num_threads=None):
    """Sparsemax, the Euclidean projection onto the simplex: ``max(x - tau, 0)``, which sums to 1.

    Parameters
    ----------
    x, axis, where, out, device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of the shape of x
        Probabilities, most of them exactly 0 where the logits are spread.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Martins & Astudillo, "From softmax to sparsemax", ICML 2016. `entmax` with ``alpha=2``. Within 0.5 ULP of the exact
    result, float64 included. Special values are those of `softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.sparsemax(np.array([1.0, 0.5, -1.0]))
    array([0.75, 0.25, 0.  ])
    """
    return entmax(x, 2.0, axis, where=where, out=out, device=device, num_threads=num_threads)


def entmax(x, alpha=1.5, axis=-1, *, where=None, out=None, device=None, num_threads=None):
    """alpha-entmax, ``max((alpha - 1) x - tau, 0) ** (1 / (alpha - 1))``, which sums to 1.

    Parameters
    ----------
    x : array_like of shape (...)
        Logits, in one of the dtypes of `softmax`.
    alpha : float, default 1.5
        At least 1 and finite: 1 is `softmax`, 2 is `sparsemax`.
    axis, where, out, device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of the shape of x
        Probabilities; for alpha > 1 those of logits more than ``1 / (alpha - 1)`` below the largest are exactly 0.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Peters, Niculae & Martins, "Sparse sequence-to-sequence models", ACL 2019. Numbers that can have probability are
    filtered first, then tau is found by Newton's method on the norm of what is left; nothing is sorted. Results are
    within 0.51 ULP of the exact ones in float32 and the half types, and in float64 for alpha 1.5 and 2. For another
    alpha the float64 error is that of a change of tau by 2**-53. NaN, +inf, or nothing but -inf: the row is NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.entmax(np.array([1.0, 0.5, -1.0, -2.0])).round(4)
    array([0.674, 0.326, 0.   , 0.   ])
    """
    alpha = check_alpha(alpha)
    if alpha == 1:
        return softmax(x, axis, where=where, out=out, device=device, num_threads=num_threads)
    return _entmax(x, alpha, axis, where=where, out=out, device=device, num_threads=num_threads)


@takes_foreign
def _entmax(x, alpha, axis, *, where, out, device, num_threads):
    return plan("softmax", x, axis, where=where, out=out, device=device, num_threads=num_threads).entmax(alpha)


def entmax_vjp(dy, y, alpha=1.5, axis=-1, *, where=None, out=None, device=None, num_threads=None):
    """Gradient of a loss through `entmax`: dL/dx from dL/dy and ``y = entmax(x, alpha)``.

    Parameters
    ----------
    dy : array_like of shape (...)
        dL/dy, in one of the dtypes of `softmax`.
    y : array_like of the shape and dtype of dy
        The result of ``entmax(x, alpha, axis)``.
    alpha : float, default 1.5
        As it was in `entmax`.
    axis, where, out, device, num_threads
        As in `softmax_vjp`.

    Returns
    -------
    ndarray of the shape of dy
        ``s * (dy - sum(s * dy) / sum(s))``, ``s = y ** (2 - alpha)`` where y > 0, else 0.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `entmax`.

    Notes
    -----
    Elements with y = 0 take no part, whatever their `dy` holds. The sums are exact to twice float64.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> y = csoftmax.sparsemax(np.array([1.0, 0.5, -1.0]))
    >>> csoftmax.entmax_vjp(np.array([1.0, 0.0, 5.0]), y, alpha=2.0)
    array([ 0.5, -0.5,  0. ])
    """
    alpha = check_alpha(alpha)
    if alpha == 1:
        return softmax_vjp(dy, y, axis, where=where, out=out, device=device, num_threads=num_threads)
    return _entmax_vjp(dy, y, alpha, axis, where=where, out=out, device=device, num_threads=num_threads)


@takes_foreign
def _entmax_vjp(dy, y, alpha, axis, *, where, out, device, num_threads):
    p = plan("softmax_vjp", dy, axis, y=y, where=where, out=out, device=device, num_threads=num_threads)
    return p.entmax(alpha)


@takes_foreign
def _loss(x, target, alpha, gradient, **options):
    p = plan_entmax_loss(x, target, check_alpha(alpha), gradient=gradient, **options)
    if p.alpha != 1:
        return p.run()
    # The limit: cross-entropy, and with soft labels the divergence of Kullback and Leibler.
    with p.place.context():
        no_label = 2**64  # nothing is ignored
        loss, grad = cross_entropy_with_grad(
            p.x, p.target, reduction="none", ignore_index=no_label, num_threads=p.num_threads
        )
        if p.target.dtype.kind == "f":
            loss, grad = _kullback_leibler(p, loss, grad)
        return p.reduced(loss, grad)


def _kullback_leibler(p, cross_entropy, grad):
    """Losses of rows, and their gradients, from those of cross-entropy, which take the mass of q to be 1."""
    xp = p.place.xp
    with np.errstate(all="ignore"):
        x, q = p.x.astype(np.float64), p.target.astype(np.float64)
        log_p = log_softmax(x, num_threads=p.num_threads)
        log_q = np.log(xp.where(q > 0, q, 1.0))
        terms = xp.where(q > 0, q * (log_q - log_p) - q, 0.0) + np.exp(log_p)
        left = 1 - q.sum(-1)
        lse = logsumexp(x, num_threads=p.num_threads)
        loss = np.maximum(terms, 0).sum(-1) + xp.where(left == 0, 0.0, left * (lse - 1))
        if p.on_cuda:  # where bad labels have made rows NaN
            loss = xp.where(cross_entropy == cross_entropy, loss, math.nan)
        if p.on_cuda or np.any(left):  # to look at a device's would be to wait for it
            grad = (grad + left[..., None] * np.exp(log_p)).astype(grad.dtype)
    return loss, grad


def entmax_loss(x, target, alpha=1.5, *, axis=-1, reduction="mean", where=None, device=None, num_threads=None):
    """Fenchel-Young loss of alpha-entmax: 0 exactly where ``entmax(x)`` is the target's distribution.

    Parameters
    ----------
    x : array_like of shape (..., K)
        Logits, in one of the dtypes of `softmax`; K is the length of `axis`.
    target : array_like
        Labels: integers of the shape of `x` without `axis`. Or soft labels: floating point, of the shape of `x`, at
        least 0 and finite.
    alpha : float, default 1.5
        As in `entmax`; 1 is cross-entropy (with soft labels the Kullback-Leibler divergence).
    axis : int, tuple of ints or None, default -1
        Of the classes.
    reduction : {"mean", "sum", "none"}
        The mean is over the rows.
    where, device, num_threads
        As in `softmax`.

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        float64 for float64 and integer logits, else float32.

    Raises
    ------
    IndexError
        For a label that is no class, with the first position and value. On a GPU, where looking would wait for the
        device, such a row's loss (and gradient) is NaN; ``CSOFTMAX_SYNC_CHECKS=1`` makes it wait and raise.
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Blondel, Martins & Niculae, "Learning with Fenchel-Young losses", JMLR 2020: ``Omega*(x) + Omega(q) - sum(q * x)``,
    ``Omega(p) = sum(p**alpha - p) / (alpha * (alpha - 1))``. It is computed as the Bregman divergence of q and
    ``entmax(x)`` and what the classes outside its support add, terms that are not negative, so that small losses keep
    their digits; the difference of large terms, which the formula suggests, rounds them away. A row of which nothing
    takes part has loss NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> x = np.array([[1.0, 0.5, -1.0], [3.0, 0.0, 0.0]])
    >>> csoftmax.entmax_loss(x, [0, 0], alpha=2.0, reduction="none")
    array([0.0625, 0.    ])
    """
    return _loss(
        x,
        target,
        alpha,
        False,
        axis=axis,
        reduction=reduction,
        where=where,
        device=device,
        num_threads=num_threads,
    )[0]


def entmax_loss_with_grad(
    x, target, alpha=1.5, *, axis=-1, reduction="mean", where=None, out=None, device=None, num_threads=None
):
    """`entmax_loss` and its gradient with respect to the logits, ``entmax(x) - q``.

    Parameters
    ----------
    x, target, alpha, axis, reduction, where
        As in `entmax_loss`.
    out : ndarray of the shape and dtype of x, optional
        Where the gradient goes; may be `x` itself.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    EntmaxLossResult
        ``loss``, as from `entmax_loss`, and ``grad``, of the shape and dtype of `x`: of the reduced loss, with "none"
        of the sum.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `entmax_loss`.

    Notes
    -----
    The label's own gradient is minus the sum of the other probabilities.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.entmax_loss_with_grad(np.array([[1.0, 0.5, -1.0]]), [0], alpha=2.0)
    EntmaxLossResult(loss=np.float64(0.0625), grad=array([[-0.25,  0.25,  0.  ]]))
    """
    return EntmaxLossResult(
        *_loss(
            x,
            target,
            alpha,
            True,
            axis=axis,
            reduction=reduction,
            where=where,
            out=out,
            device=device,
            num_threads=num_threads,
        )
    )


def sample(
    logits,
    *,
    axis=-1,
    temperature=1.0,
    top_k=None,
    top_p=None,
    min_p=None,
    size=None,
    rng=None,
    where=None,
    out=None,
    device=None,
    num_threads=None,
):
    """Draw classes from rows of logits.

    Temperature, top-k, top-p and min-p are applied in this order, each to what the one before left; ties at a boundary
    go to the lowest index. Each of them is a number, or has one for each row.

    Parameters
    ----------
    logits : array_like of shape (..., K)
        In one of the dtypes of `softmax`; K is the length of `axis`.
    axis : int, tuple of ints or None, default -1
        Of the classes.
    temperature : float or array_like, broadcastable to the rows, default 1.0
        T >= 0; 0 takes the largest logit.
    top_k : int or array_like of int, optional
        At least 1: only the k largest logits take part.
    top_p : float or array_like, optional
        In (0, 1]: only the smallest set of most probable classes whose mass is at least top_p (Holtzman et al. 2020).
    min_p : float or array_like, optional
        In [0, 1]: only classes with at least min_p times the probability of the most probable one (Nguyen et al. 2025).
    size : int or tuple of ints, optional
        How many draws from each row; None is one, without an axis of its own.
    rng : None, int or numpy.random.Generator
        Source of the uniform numbers, or its seed.
    where : array_like of bool, broadcastable to logits, optional
        Classes where it is False are never drawn.
    out : ndarray of int64 of the shape of the result, optional
        Where to write.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of int64, or a scalar for one row and no size
        Of the shape of the rows, then `size`. Of CuPy logits a CuPy array.

    Raises
    ------
    ValueError
        For a parameter out of its range, and for a row without mass: it holds NaN or +inf, or nothing but -inf.
    TypeError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Every draw takes one number u of ``rng.random``, in C order of the result, and is the first class at which the sum
    of the probabilities exceeds u: of all classes in the order of their indices; if `top_k` or `top_p` selects, in
    falling order of the logits. So the same generator gives the same draws whatever the number of threads, the
    layout of the logits, the instruction set or the device. A CuPy array's draws are a CuPy array. The call waits for
    the device: parameters that lie there are copied, and rows without mass raise.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))
    >>> csoftmax.sample(logits, size=5, rng=0)
    array([[0, 0, 0, 0, 1],
           [2, 2, 2, 2, 2]])
    >>> csoftmax.sample(logits, temperature=[1.0, 0.0], top_k=2, rng=0)
    array([0, 2])
    """
    return _sample(
        logits,
        axis,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        size=size,
        rng=rng,
        where=where,
        out=out,
        device=device,
        num_threads=num_threads,
    )
