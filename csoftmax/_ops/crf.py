"""Linear-chain conditional random fields: partition function, score of a path, loss with its gradients."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.labels import check_ignore_index, check_upstream, check_weight
from .._arguments.recorded import hand_over_recorded
from .._arguments.sequences import Tags, check_tags, choose_result, raise_bad_tag
from .._cpu import binding
from .._cpu.dtypes import as_buffer
from .crf_plan import CrfPlan, give_rows, plan_crf

__all__ = ["CrfLossResult", "crf_log_partition", "crf_loss", "crf_loss_with_grad", "crf_score"]


class CrfLossResult(NamedTuple):
    """The result of `crf_loss_with_grad`.

    Attributes
    ----------
    loss : scalar, or ndarray of the shape of the batch with reduction "none"
        The loss, as from `crf_loss`: float64 for float64 and integer emissions, else float32.
    grad_emissions : ndarray of the shape of the emissions
        Their gradient, in their dtype (float64 for integers); exactly 0 at positions that take no part.
    grad_transitions : ndarray of shape (L, L)
        The gradient of the transitions, in their dtype (float64 for integers).
    grad_start : ndarray of shape (L,), or None
        The gradient of the scores of the first tag, in their dtype (float64 for integers); None without `start`.
    grad_end : ndarray of shape (L,), or None
        The same for the last tag; None without `end`.
    """

    loss: Any
    grad_emissions: Any
    grad_transitions: Any
    grad_start: Any
    grad_end: Any


@accept_foreign
def _run_log_partition(emissions: Any, transitions: Any, **options: Any) -> Any:
    plan = plan_crf(emissions, transitions, **options)
    result = np.empty(plan.sequences.total)
    plan.run("log_partition", result=result)
    return plan.finish(result)


@accept_foreign
def _run_score(emissions: Any, tags: Any, transitions: Any, **options: Any) -> Any:
    plan = plan_crf(emissions, transitions, **options)
    checked = check_tags(tags, plan.sequences, plan.place, None, sets=False)
    result = np.empty(plan.sequences.total)
    bad = plan.run("score", checked, result=result)
    if bad is not None:
        raise_bad_tag(bad, checked, plan.sequences, None)
    return plan.finish(result)


@accept_foreign
@keep_labels(1)
def _run_loss(
    emissions: Any,
    tags: Any,
    transitions: Any,
    *,
    ignore_index: Any,
    sample_weight: Any,
    reduction: Any,
    upstream: Any = None,
    out: Any = None,
    gradient: bool,
    **options: Any,
) -> Any:
    if not isinstance(reduction, str) or reduction not in binding.CRF_REDUCTIONS:
        raise ValueError(f'reduction must be "none", "sum", "mean" or "token_mean", got {reduction!r}')
    ignore_index = check_ignore_index(ignore_index)
    plan = plan_crf(emissions, transitions, **options)
    s, place = plan.sequences, plan.place
    checked = check_tags(tags, s, place, ignore_index)
    weight = None
    if sample_weight is not None:
        weight = check_weight("sample_weight", sample_weight, s.batch, np.float64, place)
        weight = np.ascontiguousarray(weight).reshape(s.total)
    upstream = check_upstream(upstream, reduction, s.batch, place) if gradient else None
    result = np.empty(s.total if reduction == "none" else 0)
    total = np.zeros(1)
    outputs: dict[str, Any] = {"total": total, "result": result if reduction == "none" else None}
    if gradient:
        if upstream is not None:
            upstream = np.ascontiguousarray(upstream).reshape(s.total)
        outputs |= _make_gradients(plan, out, upstream, checked)
    bad = plan.run("loss", checked, sample_weight=weight, reduction=binding.CRF_REDUCTIONS[reduction], **outputs)
    if bad is not None:
        raise_bad_tag(bad, checked, s, ignore_index)
    loss = plan.finish(result) if reduction == "none" else plan.loss_dtype().type(total[0])
    return (loss, *_gradients(plan, out, outputs)) if gradient else loss


def _make_gradients(plan: CrfPlan, out: Any, upstream: Any, tags: Tags) -> dict[str, Any]:
    """The arrays that receive gradients: that of the emissions in its dtype, the others in float64."""
    s, n = plan.sequences, plan.sequences.n
    target = choose_result(out, s.given_shape, s, (plan.allowed, tags.sets), s.x.dtype)
    return {
        "upstream": upstream,
        "single": sum(1 << i for i, dtype in enumerate(plan.parameters.dtypes) if _is_rounded_to_float(dtype)),
        "by_tag": as_buffer(target),
        "grad_transitions": np.empty((n, n)),
        "grad_start": None if plan.parameters.arrays[1] is None else np.empty(n),
        "grad_end": None if plan.parameters.arrays[2] is None else np.empty(n),
    }


def _is_rounded_to_float(dtype: Any) -> bool:
    """Whether the core rounds the gradient of a parameter: NumPy would do so in the caller's rounding mode."""
    return dtype is not None and dtype not in (np.float64, np.float16)


def _gradients(plan: CrfPlan, out: Any, outputs: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    grad = give_rows(plan, out, outputs["by_tag"])
    names = "grad_transitions", "grad_start", "grad_end"
    with np.errstate(over="ignore", under="ignore"):
        others = [
            None if outputs[name] is None else outputs[name].astype(dtype, copy=False)
            for name, dtype in zip(names, plan.parameters.dtypes, strict=True)
        ]
    return grad, others[0], others[1], others[2]


@hand_over_recorded
def crf_log_partition(
    emissions: ArrayLike,
    transitions: ArrayLike,
    *,
    start: ArrayLike | None = None,
    end: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    indptr: ArrayLike | None = None,
    allowed: ArrayLike | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Logarithm of the partition function of linear-chain conditional random fields.

    A path y of n positions has the score ``start[y[0]] + emissions[0, y[0]] + transitions[y[0], y[1]] +
    emissions[1, y[1]] + ... + end[y[n - 1]]``; the partition function Z is the sum of exp(score) over all paths
    (Lafferty, McCallum & Pereira 2001).

    Parameters
    ----------
    emissions : array_like of shape (..., T, L), or (M, L) with indptr
        Scores of the L tags at each position, in one of the dtypes of `softmax`; leading axes are the batch.
    transitions : array_like of shape (L, L)
        Score of a tag (second axis) after another (first axis). -inf forbids it. Any float or integer dtype: all
        parameters are computed with in float64.
    start, end : array_like of shape (L,), optional
        Scores of the first and the last tag, 0 by default.
    lengths : array_like of int, of the shape of the batch, optional
        Number of positions of each sequence; later ones take no part.
    mask : array_like of bool, broadcastable to (..., T) or (M,), optional
        Positions where it is False, anywhere, are taken out of the chain: their neighbours become adjacent.
    indptr : array_like of int, of shape (N + 1,), optional
        The sequences are packed one after the other: sequence i has the positions indptr[i] to indptr[i + 1] - 1.
    allowed : array_like of bool, broadcastable to emissions, optional
        Where it is False, the tag is impossible, and its emission is not read.
    device, num_threads
        As in `softmax`; there are no kernels for CUDA.

    Returns
    -------
    scalar, or ndarray of the shape of the batch
        log Z: float64 for float64 and integer emissions, else float32. 0 for an empty sequence, -inf where no path is
        possible, +inf for +inf in what takes part.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        The message names the argument, its value and what is allowed.

    Notes
    -----
    Positions that take no part are never read. Everything is computed in float64, with the exponents of all weights
    counted apart, so that nothing overflows or vanishes: the error of a float64 result is at most 3 ULP of the larger
    of abs(log Z) and the sum over positions of the largest abs(emission) + 10. The bits of a sequence depend on nothing
    else: not on the batch, padding, masks, threads or instruction set.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.crf_log_partition(np.zeros((3, 2)), np.zeros((2, 2))).round(4)  # eight paths
    np.float64(2.0794)
    >>> emissions = np.array([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 1.0], [0.0, 0.0]]])
    >>> csoftmax.crf_log_partition(emissions, [[0.5, -0.5], [-0.5, 0.5]], lengths=[2, 1]).round(4)
    array([3.3828, 3.1269])
    """
    return _run_log_partition(
        emissions,
        transitions,
        start=start,
        end=end,
        lengths=lengths,
        mask=mask,
        indptr=indptr,
        allowed=allowed,
        device=device,
        num_threads=num_threads,
    )


@hand_over_recorded
def crf_score(
    emissions: ArrayLike,
    tags: ArrayLike,
    transitions: ArrayLike,
    *,
    start: ArrayLike | None = None,
    end: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    indptr: ArrayLike | None = None,
    allowed: ArrayLike | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Scores of paths in linear-chain conditional random fields.

    Parameters
    ----------
    emissions : array_like of shape (..., T, L), or (M, L) with indptr
        As in `crf_log_partition`.
    tags : array_like of int, of shape (..., T) or (M,)
        The path of each sequence; positions that take no part are not looked at.
    transitions, start, end, lengths, mask, indptr, allowed, device, num_threads
        As in `crf_log_partition`.

    Returns
    -------
    scalar, or ndarray of the shape of the batch
        Scores, in the dtype of `crf_log_partition`: 0 for an empty sequence, -inf for an impossible path, NaN for NaN
        or +inf anywhere in what takes part.

    Raises
    ------
    IndexError
        If a tag is not one of 0 to L - 1.
    TypeError, ValueError, DeviceError, MemoryError
        As in `crf_log_partition`.

    Notes
    -----
    The terms are added in their order along the chain, in float64.

    Examples
    --------
    >>> import csoftmax
    >>> csoftmax.crf_score([[1.0, 0.0], [0.0, 2.0]], [0, 1], [[0.5, -0.5], [-0.5, 0.5]])
    np.float64(2.5)
    """
    return _run_score(
        emissions,
        tags,
        transitions,
        start=start,
        end=end,
        lengths=lengths,
        mask=mask,
        indptr=indptr,
        allowed=allowed,
        device=device,
        num_threads=num_threads,
    )


@hand_over_recorded
def crf_loss(
    emissions: ArrayLike,
    tags: ArrayLike,
    transitions: ArrayLike,
    *,
    start: ArrayLike | None = None,
    end: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    indptr: ArrayLike | None = None,
    allowed: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    sample_weight: ArrayLike | None = None,
    reduction: Literal["none", "sum", "mean", "token_mean"] = "mean",
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Negative log-likelihood of tags under linear-chain conditional random fields.

    The loss of a sequence is log Z - log Z_Y: Z as in `crf_log_partition`, Z_Y the same sum over the paths that agree
    with `tags`.

    Parameters
    ----------
    emissions : array_like of shape (..., T, L), or (M, L) with indptr
        As in `crf_log_partition`.
    tags : array_like of int of shape (..., T) or (M,), or of bool of the shape of emissions
        Labels; or, if boolean, the set of labels that are possible at each position. Positions that take no part are
        not looked at.
    transitions, start, end, lengths, mask, indptr, allowed, device, num_threads
        As in `crf_log_partition`. `allowed` restricts both sums.
    ignore_index : int, default -100
        A label equal to it is unknown: every label is possible there.
    sample_weight : array_like broadcastable to the batch, optional
        Factors s >= 0 of the sequences' losses. A sequence with 0 is not read.
    reduction : {"mean", "sum", "none", "token_mean"}, default "mean"
        "mean" is the sum of s times loss over the sum of s of the sequences with a position; "token_mean" divides by
        the sum of s times the number of positions that take part.

    Returns
    -------
    scalar, or ndarray of the shape of the batch with reduction "none"
        float64 for float64 and integer emissions, else float32. +inf where no path agrees with the tags; NaN where no
        path is possible at all, and for NaN or +inf in what takes part.

    Raises
    ------
    IndexError
        If a label is neither one of 0 to L - 1 nor `ignore_index`.
    TypeError, ValueError, DeviceError, MemoryError
        As in `crf_log_partition`.

    Notes
    -----
    The loss is not computed as a difference but as log1p of the weight of all other paths over that of the paths that
    agree, so that small losses have all their digits: the relative error is at most (8 n + 8) 2^-53 for n positions,
    before it is rounded to the dtype of the result. A sum over sequences is formed in blocks of 32 and a binary tree,
    whose shape depends only on their number.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> emissions = np.array([[20.0, 0.0], [0.0, 25.0]])
    >>> print(f"{csoftmax.crf_loss(emissions, [0, 1], np.zeros((2, 2))):.4e}")
    2.0750e-09
    >>> sets = np.array([[True, False], [True, True]])  # the second label is unknown
    >>> print(f"{csoftmax.crf_loss(emissions, sets, np.zeros((2, 2))):.4e}")
    2.0612e-09
    """
    return _run_loss(
        emissions,
        tags,
        transitions,
        gradient=False,
        start=start,
        end=end,
        lengths=lengths,
        mask=mask,
        indptr=indptr,
        allowed=allowed,
        ignore_index=ignore_index,
        sample_weight=sample_weight,
        reduction=reduction,
        device=device,
        num_threads=num_threads,
    )


def _is_plain(upstream: Any, ignore_index: Any) -> bool:
    return type(upstream) is float and upstream == 1.0 and type(ignore_index) is int and ignore_index == -100


@hand_over_recorded
def crf_loss_with_grad(
    emissions: ArrayLike,
    tags: ArrayLike,
    transitions: ArrayLike,
    *,
    start: ArrayLike | None = None,
    end: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    indptr: ArrayLike | None = None,
    allowed: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    sample_weight: ArrayLike | None = None,
    reduction: Literal["none", "sum", "mean", "token_mean"] = "mean",
    upstream: ArrayLike = 1.0,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> CrfLossResult:
    """`crf_loss` together with its gradients.

    Parameters
    ----------
    emissions : array_like of shape (..., T, L), or (M, L) with indptr
        As in `crf_log_partition`.
    tags : array_like of int or bool
        As in `crf_loss`.
    upstream : float, or with reduction "none" array_like broadcastable to the batch, default 1.0
        Factor of the gradients, which are those of the reduced loss, with "none" of the sum of upstream times loss.
    out : ndarray, optional
        Array that receives the gradient of the emissions; may be emissions.
    transitions, start, end, lengths, mask, indptr, allowed, ignore_index, sample_weight, reduction, device, num_threads
        As in `crf_loss`.

    Returns
    -------
    CrfLossResult
        ``loss`` as in `crf_loss`; ``grad_emissions`` in the shape and dtype of the emissions, exactly 0 at positions
        that take no part; ``grad_transitions``, ``grad_start`` and ``grad_end`` in the dtypes of their arrays
        (integers count as float64), None where start or end are.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `crf_loss`.

    Notes
    -----
    The gradient of the emissions is the probability of a tag less that of the tag among the paths that agree. That of a
    single label is minus the sum of the other tags of its position, never a difference from 1, so that it has all its
    digits too. A path that is impossible although others are not has the loss +inf and finite gradients: probabilities
    less the labels as given; with sets of labels they are NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> result = csoftmax.crf_loss_with_grad([[[1.0, 0.0], [0.0, 2.0]]], [[0, 1]], np.zeros((2, 2)), start=[0.0, 0.0])
    >>> result.grad_emissions.round(4)
    array([[[-0.2689,  0.2689],
            [ 0.1192, -0.1192]]])
    >>> result.grad_start.round(4)
    array([-0.2689,  0.2689])
    """
    if mask is indptr is allowed is sample_weight is device is None and _is_plain(upstream, ignore_index):
        quick = binding.quick_crf_loss(emissions, tags, transitions, start, end, lengths, reduction, out, num_threads)
        if quick is not None:
            return CrfLossResult(*quick)
    return CrfLossResult(
        *_run_loss(
            emissions,
            tags,
            transitions,
            gradient=True,
            start=start,
            end=end,
            lengths=lengths,
            mask=mask,
            indptr=indptr,
            allowed=allowed,
            ignore_index=ignore_index,
            sample_weight=sample_weight,
            reduction=reduction,
            upstream=upstream,
            out=out,
            device=device,
            num_threads=num_threads,
        )
    )
