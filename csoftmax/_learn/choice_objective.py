"""The log-likelihood of the conditional logit, its gradient and its Hessian, in blocks of groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import cross_entropy_with_grad, subset_logsumexp, subset_marginals

BLOCK_NUMBERS = 1 << 16  # of X in a block: 512 KB, which stay in the cache for all of its products


class LengthClass(NamedTuple):
    """Groups with the same number of alternatives and of choices."""

    x: Any  # (groups, alternatives, columns)
    offset: Any | None  # (groups, alternatives)
    target: Any  # one choice: its number (groups,), or shares (groups, alternatives); several: 0 and 1
    choices: int
    weight: Any | None  # (groups,)
    groups: Any  # numbers of the groups


class Block(NamedTuple):
    """A block at some coefficients."""

    losses: Any  # (groups,), not weighted
    residual: Any  # (groups, alternatives): probability less choice
    part: LengthClass


def make_classes(
    x: Any, y: Any, offset: Any, offsets: Any, choices: Any, weight: Any, *, shares: bool
) -> list[LengthClass]:
    """Classes of the groups whose rows lie one after another; `choices` is the number of each group."""
    lengths = np.diff(offsets)
    made = []
    keys = lengths * (int(choices.max(initial=1)) + 1) + choices
    for key in np.unique(keys):
        groups = np.flatnonzero(keys == key)
        length, m = int(lengths[groups[0]]), int(choices[groups[0]])
        if len(groups) == len(lengths):
            rows: Any = slice(None)
        else:
            rows = (offsets[groups][:, None] + np.arange(length)).reshape(-1)
        chosen = y[rows].reshape(-1, length)
        target = chosen if shares or m != 1 else chosen.argmax(1)
        made.append(
            LengthClass(
                x[rows].reshape(-1, length, x.shape[1]),
                None if offset is None else offset[rows].reshape(-1, length),
                target,
                1 if shares else m,
                None if weight is None else weight[groups],
                groups,
            )
        )
    return made


def evaluate(classes: list[LengthClass], beta: Any, num_threads: Any) -> Iterator[Block]:
    """Losses and residuals of all groups, block by block."""
    for whole in classes:
        step = max(1, BLOCK_NUMBERS // max(1, whole.x.shape[1] * whole.x.shape[2]))
        for begin in range(0, len(whole.x), step):
            cut: list[Any] = [a[begin : begin + step] if isinstance(a, np.ndarray) else a for a in whole]
            part = LengthClass(*cut)
            v = part.x.reshape(-1, part.x.shape[2]) @ beta
            v = v.reshape(part.x.shape[:2])
            if part.offset is not None:
                v += part.offset
            yield Block(*_losses(part, v, num_threads), part)


def _losses(part: LengthClass, v: Any, num_threads: Any) -> tuple[Any, Any]:
    if part.choices == 1:
        losses, residual = cross_entropy_with_grad(v, part.target, reduction="none", num_threads=num_threads)
        return losses, residual
    losses = subset_logsumexp(v, part.choices, num_threads=num_threads) - (v * part.target).sum(1)
    return np.maximum(losses, 0), subset_marginals(v, part.choices, num_threads=num_threads) - part.target


class Sums(NamedTuple):
    """Sums over all groups."""

    loglik: float
    gradient: Any  # of the log-likelihood
    information: Any | None  # minus its Hessian; None if a group has several choices
    scores: Any | None  # gradients of the groups


def add_up(
    classes: list[LengthClass], beta: Any, num_threads: Any, *, hessian: bool = True, scores: bool = False
) -> Sums:
    """The log-likelihood and its derivatives."""
    d = len(beta)
    loglik, gradient, information = 0.0, np.zeros(d), np.zeros((d, d))
    total = sum(len(c.groups) for c in classes)
    each = np.zeros((max((int(c.groups.max(initial=-1)) for c in classes), default=-1) + 1, d)) if scores else None
    for losses, residual, part in evaluate(classes, beta, num_threads):
        flat = part.x.reshape(-1, d)
        weighted = residual
        if part.weight is not None:
            losses, weighted = losses * part.weight, residual * part.weight[:, None]
        loglik -= float(losses.sum())
        gradient -= weighted.reshape(-1) @ flat
        if each is not None:
            each[part.groups] = -np.einsum("gj,gjd->gd", weighted, part.x)
        if hessian:
            information += _information(part, residual)
    has_hessian = hessian and total and all(c.choices == 1 for c in classes)
    return Sums(loglik, gradient, information if has_hessian or not total else None, each)


def add_products(classes: list[LengthClass]) -> Any:
    """Products of the columns centred within groups, whose null space is that of the information at any coefficients.

    A group whose alternatives are all chosen has none.
    """
    products = 0.0
    for c in classes:
        if c.choices < c.x.shape[1]:
            centred = (c.x - c.x.mean(axis=1, keepdims=True))[slice(None) if c.weight is None else c.weight > 0]
            flat = centred.reshape(-1, c.x.shape[2])
            products = products + flat.T @ flat
    return products


def _information(part: LengthClass, residual: Any) -> Any:
    """Sum over groups of the covariance of x under the probabilities, from centred rows: nothing cancels."""
    if part.choices != 1:
        return 0.0
    target = part.target
    p = residual + target if target.ndim == 2 else residual.copy()
    if target.ndim == 1:
        p[np.arange(len(p)), target] += 1
    root = np.sqrt(np.maximum(p, 0))
    if part.weight is not None:
        root *= np.sqrt(part.weight)[:, None]
    mean = np.matmul(p[:, None, :], part.x)
    centred = (part.x - mean) * root[:, :, None]
    flat = centred.reshape(-1, part.x.shape[2])
    return flat.T @ flat
