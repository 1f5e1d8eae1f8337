"""Linear-chain conditional random fields: marginals, best paths, draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import accept_foreign
from .._arguments.generators import draw_ragged_uniforms, restore_states, save_states
from .._arguments.kinds import keep_labels
from .._arguments.numbers import check_choice, check_flag, check_integer
from .._arguments.recorded import hand_over_recorded
from .._arguments.sequences import check_size, choose_result
from .._cpu import binding
from .._cpu.dtypes import as_buffer
from .crf_plan import CrfPlan, give_rows, plan_crf

__all__ = ["CrfDecoded", "CrfMarginals", "crf_decode", "crf_marginals", "crf_sample"]


class CrfMarginals(NamedTuple):
    """The result of `crf_marginals`.

    Attributes
    ----------
    tags : ndarray of the shape of the emissions
        Probability of each tag at each position, in the dtype of the emissions (float64 for integers); 0 at positions
        that take no part.
    pairs : ndarray of shape (..., L, L) or (..., T - 1, L, L), packed (N, L, L) or (M, L, L); or None
        With pairs="sum" the expected number of each transition, one matrix for each sequence, in the dtype of
        log_partition. With pairs="each" the probability of each pair of tags, in the dtype of tags: element t - 1 is
        the pair whose later position is t, and packed, element p is that of position p. None without `pairs`.
    log_partition : scalar, or ndarray of the shape of the batch
        log Z, as from `crf_log_partition`: float64 for float64 and integer emissions, else float32.
    """

    tags: Any
    pairs: Any
    log_partition: Any


class CrfDecoded(NamedTuple):
    """The result of `crf_decode`.

    Attributes
    ----------
    tags : ndarray of int64 of shape (..., T), or (..., n_best, T); packed (M,) or (n_best, M)
        The paths, best first with `n_best`; `fill` at positions that take no part and where there is no path.
    score : scalar, or ndarray of the shape of the batch, followed by n_best if given
        Score of each path, float64 for float64 and integer emissions, else float32; -inf where there is no path.
    log_prob : scalar, or ndarray of the shape and dtype of score, or None
        Logarithm of the probability of each path, NaN where there is none; None without ``log_prob=True``.
    """

    tags: Any
    score: Any
    log_prob: Any


@accept_foreign
@keep_labels()
def _run_marginals(emissions: Any, transitions: Any, *, pairs: Any, out: Any, **options: Any) -> Any:
    if pairs is not None:
        check_choice("pairs", pairs, ("sum", "each"), or_also="None")
    plan = plan_crf(emissions, transitions, **options)
    s, n = plan.sequences, plan.sequences.n
    target = as_buffer(choose_result(out, s.given_shape, s, (plan.allowed,), s.x.dtype))
    log_partition = np.empty(s.total)
    sums = np.empty((s.total, n, n)) if pairs == "sum" else None
    each = np.zeros((*s.positions, n, n), s.x.dtype) if pairs == "each" else None
    plan.run(
        "marginals",
        result=log_partition,
        by_tag=target,
        pair_sums=sums,
        pairs=None if each is None else as_buffer(each),
    )
    found = None
    if sums is not None:
        found = sums.astype(plan.loss_dtype(), copy=False).reshape(*s.batch, n, n)
    elif each is not None:
        found = each if s.is_packed else each[..., 1:, :, :]
    return give_rows(plan, out, target), found, plan.finish(log_partition)


def _paths(plan: CrfPlan, count: int | None, fill: int) -> tuple[Any, dict[str, Any]]:
    """The array of tags of paths, and what tells the core where each of them lies."""
    s, paths = plan.sequences, 1 if count is None else count
    extra = () if count is None else (count,)
    if s.is_packed:
        shape, path_step, sequence_step = (*extra, *s.positions), s.positions[0], 0
    else:
        shape, path_step = (*s.batch, *extra, s.length), s.length
        sequence_step = (paths - 1) * s.length
    if math.prod(shape) >= 2**60:
        raise ValueError(f"{paths} paths of {s.total} sequences do not fit in memory, of whatever size")
    decoded = np.full(shape, fill, np.int64)
    places = {"sequence_step": sequence_step % 2**64, "path_step": path_step, "paths": paths, "fill": fill}
    return decoded, {"decoded": decoded, **places}


def _check_fill(fill: Any) -> int:
    value = check_integer("fill", fill)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"fill must be within the range of int64, got {fill}")
    return value


@accept_foreign
def _run_decode(
    emissions: Any, transitions: Any, *, method: Any, n_best: Any, fill: Any, log_prob: Any, **options: Any
) -> Any:
    check_choice("method", method, ("viterbi", "posterior", "posterior_path"))
    paths = check_size("n_best", n_best, 1)
    if paths is not None and method != "viterbi":
        raise ValueError(f'n_best needs method="viterbi", got method={method!r}')
    fill, log_prob = _check_fill(fill), check_flag("log_prob", log_prob)
    plan = plan_crf(emissions, transitions, **options)
    tags, outputs = _paths(plan, paths, fill)
    score = np.empty(plan.sequences.total * outputs["paths"])
    probabilities = np.empty(score.size) if log_prob else None
    plan.run("decode", method=binding.CRF_METHODS[method], result=score, log_prob=probabilities, **outputs)
    return tags, plan.finish(score, paths), None if probabilities is None else plan.finish(probabilities, paths)


@accept_foreign
def _run_sample(emissions: Any, transitions: Any, *, size: Any, rng: Any, fill: Any, **options: Any) -> Any:
    paths, fill = check_size("size", size, 0), _check_fill(fill)
    plan = plan_crf(emissions, transitions, **options)
    tags, outputs = _paths(plan, paths, fill)
    states = save_states(rng)
    try:
        counts = plan.sequences.lengths() * outputs["paths"]
        uniforms = draw_ragged_uniforms(rng, plan.sequences.batch, counts)
        plan.run("sample", uniforms=uniforms, **outputs)
    except BaseException:
        restore_states(states)
        raise
    return tags


def _is_plain(method: Any, fill: Any) -> bool:
    return type(method) is str and method == "viterbi" and type(fill) is int and fill == -1


@hand_over_recorded
def crf_marginals(
    emissions: ArrayLike,
    transitions: ArrayLike,
    *,
    start: ArrayLike | None = None,
    end: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    indptr: ArrayLike | None = None,
    allowed: ArrayLike | None = None,
    pairs: Literal["sum", "each"] | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> CrfMarginals:
    """Probabilities of the tags of each position, and of pairs of neighbours (forward-backward).

    Parameters
    ----------
    emissions : array_like of shape (..., T, L), or (M, L) with indptr
        As in `crf_log_partition`.
    pairs : {None, "sum", "each"}, default None
        "sum": the expected number of each transition in each sequence. "each": the probabilities of the tags of each
        position and of the one before it.
    out : ndarray, optional
        Array that receives the probabilities of the tags; may be emissions.
    transitions, start, end, lengths, mask, indptr, allowed, device, num_threads
        As in `crf_log_partition`.

    Returns
    -------
    CrfMarginals
        ``tags`` in the shape and dtype of the emissions, 0 at positions that take no part; ``pairs``: None, or
        (..., L, L) in the dtype of log Z, or (..., T - 1, L, L) in that of the emissions, where element t - 1 is the
        pair whose later position is t (packed: (M, L, L), element p for position p, 0 for the first position of a
        sequence); ``log_partition`` as in `crf_log_partition`. NaN where no path is possible, and for NaN or +inf in
        what takes part.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `crf_log_partition`.

    Notes
    -----
    Products and sums of positive numbers only: the relative error is at most (8 n + 8) 2^-53 for n positions, before it
    is rounded to the dtype of the result. Probabilities below 2^-600 may come out as 0.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> result = csoftmax.crf_marginals(np.zeros((3, 2)), [[1.0, -1.0], [-1.0, 1.0]], start=[1.0, 0.0], pairs="sum")
    >>> result.tags.round(4)
    array([[0.7311, 0.2689],
           [0.676 , 0.324 ],
           [0.634 , 0.366 ]])
    >>> result.pairs.round(4)
    array([[1.2393, 0.1677],
           [0.0707, 0.5223]])
    """
    if pairs is mask is indptr is allowed is device is None:
        quick = binding.quick_crf_marginals(emissions, transitions, start, end, lengths, out, num_threads)
        if quick is not None:
            return CrfMarginals(quick[0], None, quick[1])
    return CrfMarginals(
        *_run_marginals(
            emissions,
            transitions,
            pairs=pairs,
            out=out,
            start=start,
            end=end,
            lengths=lengths,
            mask=mask,
            indptr=indptr,
            allowed=allowed,
            device=device,
            num_threads=num_threads,
        )
    )


@hand_over_recorded
def crf_decode(
    emissions: ArrayLike,
    transitions: ArrayLike,
    *,
    start: ArrayLike | None = None,
    end: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    indptr: ArrayLike | None = None,
    allowed: ArrayLike | None = None,
    method: Literal["viterbi", "posterior", "posterior_path"] = "viterbi",
    n_best: SupportsIndex | None = None,
    fill: SupportsIndex = -1,
    log_prob: bool = False,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> CrfDecoded:
    """Best paths through linear-chain conditional random fields.

    Parameters
    ----------
    emissions : array_like of shape (..., T, L), or (M, L) with indptr
        As in `crf_log_partition`.
    method : {"viterbi", "posterior", "posterior_path"}, default "viterbi"
        The path of the largest score (Viterbi 1967); the most probable tag of each position; or, of the possible paths,
        the one with the largest sum of the probabilities of its tags (maximum expected accuracy).
    n_best : int, optional
        With "viterbi": this number of best paths, best first, along a new axis before that of the positions.
    fill : int, default -1
        Tag of positions that take no part, and of paths that do not exist.
    log_prob : bool, default False
        Also compute the logarithm of the probability of each path, score - log Z, exact where it is nearly 0.
    transitions, start, end, lengths, mask, indptr, allowed, device, num_threads
        As in `crf_log_partition`.

    Returns
    -------
    CrfDecoded
        ``tags``: int64 of shape (..., T), or (..., n_best, T); packed (M,) or (n_best, M). ``score`` of each path as in
        `crf_score`, and ``log_prob``, None unless asked for: of the shape of the batch, followed by n_best. Where there
        is no path, `fill`, -inf and NaN; for NaN or +inf in what takes part, `fill`, NaN and NaN.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `crf_log_partition`; ValueError also for n_best with another method.

    Notes
    -----
    Scores are added in float64. Among paths of equal score the smallest comes first, read from the last position; ties
    of "posterior" go to the lowest tag. The n best paths are found by A* search with the exact best score of the prefix
    (Hart, Nilsson & Raphael 1968); they are in the order of the search's sums, so that scores of neighbours may differ
    from that order by rounding. "posterior" may give an impossible path: score and log_prob -inf.

    Examples
    --------
    >>> import csoftmax
    >>> result = csoftmax.crf_decode([[1.0, 0.0], [0.0, 2.0]], [[0.5, -0.5], [-0.5, 0.5]], n_best=2, log_prob=True)
    >>> result.tags
    array([[0, 1],
           [1, 1]])
    >>> result.score
    array([2.5, 2.5])
    >>> result.log_prob.round(4)
    array([-0.8828, -0.8828])
    """
    if mask is indptr is allowed is n_best is device is None and log_prob is False and _is_plain(method, fill):
        quick = binding.quick_crf_decode(emissions, transitions, start, end, lengths, num_threads)
        if quick is not None:
            return CrfDecoded(*quick, None)
    return CrfDecoded(
        *_run_decode(
            emissions,
            transitions,
            method=method,
            n_best=n_best,
            fill=fill,
            log_prob=log_prob,
            start=start,
            end=end,
            lengths=lengths,
            mask=mask,
            indptr=indptr,
            allowed=allowed,
            device=device,
            num_threads=num_threads,
        )
    )


@hand_over_recorded
def crf_sample(
    emissions: ArrayLike,
    transitions: ArrayLike,
    *,
    start: ArrayLike | None = None,
    end: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    indptr: ArrayLike | None = None,
    allowed: ArrayLike | None = None,
    size: SupportsIndex | None = None,
    rng: int
    | np.random.SeedSequence
    | np.random.Generator
    | np.random.RandomState
    | Sequence[Any]
    | NDArray[Any]
    | None = None,
    fill: SupportsIndex = -1,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Draw paths of linear-chain conditional random fields by their probabilities.

    Parameters
    ----------
    emissions : array_like of shape (..., T, L), or (M, L) with indptr
        As in `crf_log_partition`.
    size : int, optional
        Number of paths of each sequence, along a new axis before that of the positions; None: one, without that axis.
    rng : int, SeedSequence, Generator or RandomState of numpy.random, or a sequence of them, optional
        As in `sample`: a sequence has one of them for each sequence of the batch.
    fill : int, default -1
        Tag of positions that take no part, and of sequences without a possible path or with NaN or +inf.
    transitions, start, end, lengths, mask, indptr, allowed, device, num_threads
        As in `crf_log_partition`.

    Returns
    -------
    ndarray of int64
        Tags of shape (..., T), or (..., size, T); packed (M,) or (size, M).

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `crf_log_partition`.

    Notes
    -----
    Tags are drawn from the last position to the first, each given the next one (forward filtering, backward sampling).
    Each consumes one number u of ``rng.random``, in the order of sequences, draws, and positions from the last; the tag
    is the first one at which the cumulative sum of the weights exceeds u times their sum. Masked positions consume
    none. A call that raises leaves the generators of `rng` as they were.

    Examples
    --------
    >>> import csoftmax
    >>> csoftmax.crf_sample([[0.0, 1.0], [0.0, 0.0], [3.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]], size=3, rng=0)
    array([[0, 0, 0],
           [1, 1, 0],
           [0, 0, 0]])
    """
    return _run_sample(
        emissions,
        transitions,
        size=size,
        rng=rng,
        fill=fill,
        start=start,
        end=end,
        lengths=lengths,
        mask=mask,
        indptr=indptr,
        allowed=allowed,
        device=device,
        num_threads=num_threads,
    )
