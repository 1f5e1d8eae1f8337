HEAD


class EntmaxLossResult(NamedTuple):
    """What `entmax_loss_with_grad` returns."""

    loss: Any
    grad: Any


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



class EntmaxLossPlan(NamedTuple):
    """What a backend's run_entmax_loss takes; x and target have the axis of the classes last."""

    dtype: int
    x: np.ndarray
    target: np.ndarray
    alpha: float
    reduction: str
    num_threads: int | None
    wide: np.dtype
    result: np.ndarray | None  # the gradient as the caller gets it
    rows: np.ndarray | None  # what a backend writes of it
    work: np.ndarray | None
    final: np.ndarray | None
    given: bool  # the result is the caller's out
    place: Place

    @property
    def on_cuda(self):
        return self.place.number is not None

    def run(self):
        """Compute; returns the loss and the gradient or None."""
        soft = self.target if self.target.dtype.kind == "f" else None
        rows = None if self.rows is None else bits(self.rows)
        what = self.dtype, bits(self.x), self.target if soft is None else None, soft, rows
        how = self.alpha, _cpu.REDUCTIONS[self.reduction]
        shape = self.x.shape[:-1] if self.reduction == "none" else ()
        if not self.on_cuda:
            loss = np.empty(shape, np.float64)
            _cpu.run_entmax_loss(*what, loss, *how, self.num_threads)
            return self.finish(loss)
        with self.x.device:
            if self.x.size:
                loss = self.place.xp.empty(shape, self.wide)
                _cuda.run_entmax_loss(*what, loss, *how)
            else:  # the sum of no rows; rows without classes have no loss, and no rows no mean
                nothing = math.prod(self.x.shape[:-1]) == 0 and self.reduction == "sum"
                loss = self.place.xp.full(shape, 0 if nothing else math.nan, self.wide)
            return self.finish(loss)

    def reduced(self, loss, grad):
        """The same from a loss a row and the gradient of their sum."""
        count = loss.size if self.reduction == "mean" else 1
        if self.reduction != "none":
            with np.errstate(invalid="ignore"):  # the mean of no rows
                loss = loss.sum() / np.float64(count)
        if self.rows is not None:
            self.rows[...] = grad if count == 1 else (grad.astype(self.wide) / self.wide.type(count)).astype(grad.dtype)
        return self.finish(loss.astype(self.wide) if self.on_cuda else np.asarray(loss, np.float64))

    def finish(self, loss):
        if self.work is not self.final:
            self.final[...] = self.work
        result = self.result
        if self.on_cuda:
            return loss, result
        if result is not None and result.ndim == 0 and not self.given:
            result = result[()]
        with np.errstate(over="ignore", under="ignore"):
            return loss.astype(self.wide)[()], result


def plan_entmax_loss(
    x, target, alpha, *, gradient, axis, reduction, where=None, out=None, device=None, num_threads=None
):
    """Check the arguments of entmax_loss or, with `gradient`, of entmax_loss_with_grad, and lay them out."""
    place = place_of(device, x)
    with place.context():
        return lay_out_entmax_loss(place, x, target, alpha, gradient, axis, reduction, where, out, num_threads)


def lay_out_entmax_loss(place, x, target, alpha, gradient, axis, reduction, where, out, num_threads):
    xp = place.xp
    x, code = as_float("x", x, place)
    axes = normalize_axes(axis, x.ndim)
    wide = wide_dtype(x.dtype)
    batch = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    labels, soft = check_target(target, x.shape, batch, wide, place)
    check_reduction(reduction)
    mask = None if where is None else check_where(where, x.shape, place)
    result = final = work = rows = None
    if gradient:
        if out is not None:
            check_out(out, x.shape, x.dtype, place)
            if may_share_memory(out, x) and not same_place(out, x):
                x = x.copy()
            if soft is not None and may_share_memory(out, soft):
                soft = soft.copy()
        result = place.result_like(x) if out is None else out
    if mask is not None:
        x = masked(xp, mask, x)
    if x.ndim == 0:
        x, soft = x.reshape(1), None if soft is None else soft.reshape(1)
    if gradient:
        final, work, rows = result_rows(result, x, axes, xp=xp)
    x = axis_last(x, axes)
    target = labels if soft is None else axis_last(soft, axes)
    if place.number is None:
        target = target.copy() if soft is None else target  # what is checked is what is used
        raise_bad_label(target, x.shape[-1], None)
        target = target.astype(np.int64) if soft is None else target
    elif os.environ.get("CSOFTMAX_SYNC_CHECKS") == "1":
        raise_bad_label(target.get(), x.shape[-1], None)
    return EntmaxLossPlan(
        code, x, target, alpha, reduction, num_threads, wide, result, rows, work, final, out is not None, place
    )

