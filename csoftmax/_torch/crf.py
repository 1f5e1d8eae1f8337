"""The linear-chain CRF for PyTorch: its loss as an operator, and a module in place of torchcrf.CRF."""

from __future__ import annotations

from typing import Any, Literal

import csoftmax

from .operators import (
    check_constants,
    check_floating,
    check_tensors,
    define,
    detach,
    keep_gradients,
    loss_dtype,
    multiply,
    of_loss,
)

# isort: split
import torch
from torch import Tensor, nn

from .._arguments.numbers import check_count, check_integer

Reduction = Literal["mean", "sum", "none", "token_mean"]
_SCHEMA = "(Tensor emissions, Tensor tags, Tensor transitions, Tensor? start, Tensor? end, Tensor? mask"


def _compute_grad(
    emissions: Tensor,
    tags: Tensor,
    transitions: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    mask: Tensor | None,
    ignore_index: int,
    reduction: str,
    upstream: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, and the gradients of emissions, transitions, start and end; empty tensors for what is None."""
    arrays = detach(emissions, tags, transitions, start, end, mask, upstream)
    result = csoftmax.crf_loss_with_grad(
        *arrays[:3],  # type: ignore[arg-type]
        start=arrays[3],
        end=arrays[4],
        mask=arrays[5],
        ignore_index=ignore_index,
        reduction=reduction,  # type: ignore[arg-type]
        upstream=1.0 if upstream is None else arrays[6],  # type: ignore[arg-type]
    )
    return tuple(emissions.new_empty(0) if g is None else g for g in result)  # type: ignore[return-value]


def _fake_grad(
    emissions: Tensor,
    tags: Tensor,
    transitions: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    mask: Tensor | None,
    ignore_index: int,
    reduction: str,
    upstream: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    loss = emissions.new_empty(emissions.shape[:-2] if reduction == "none" else (), dtype=loss_dtype(emissions))
    ends = [emissions.new_empty(0) if p is None else p.new_empty(p.shape) for p in (start, end)]
    return loss, emissions.new_empty(emissions.shape), transitions.new_empty(transitions.shape), ends[0], ends[1]


_crf_loss_grad = define(
    "crf_loss_grad",
    f"{_SCHEMA}, int ignore_index, str reduction, Tensor? upstream) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _compute_grad,
    _fake_grad,
)


def _compute(
    emissions: Tensor,
    tags: Tensor,
    transitions: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    mask: Tensor | None,
    ignore_index: int,
    reduction: str,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, and with it the gradients of a reduced loss; those of "none" are computed when upstream is known."""
    if gradient and reduction != "none":
        return _compute_grad(emissions, tags, transitions, start, end, mask, ignore_index, reduction, None)
    arrays = detach(emissions, tags, transitions, start, end, mask)
    loss = csoftmax.crf_loss(
        *arrays[:3],  # type: ignore[arg-type]
        start=arrays[3],
        end=arrays[4],
        mask=arrays[5],
        ignore_index=ignore_index,
        reduction=reduction,  # type: ignore[arg-type]
    )
    return loss, *(emissions.new_empty(0) for _ in range(4))  # type: ignore[return-value]


def _fake(
    emissions: Tensor,
    tags: Tensor,
    transitions: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    mask: Tensor | None,
    ignore_index: int,
    reduction: str,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    found = _fake_grad(emissions, tags, transitions, start, end, mask, ignore_index, reduction, None)
    if gradient and reduction != "none":
        return found
    return found[0], *(emissions.new_empty(0) for _ in range(4))  # type: ignore[return-value]


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    ctx.ignore_index, ctx.reduction = inputs[6], inputs[7]
    ctx.given = inputs[3] is not None, inputs[4] is not None
    keep_gradients(ctx, *(inputs[:6] if ctx.reduction == "none" else output[1:]))


@of_loss(9)
def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.reduction == "none":
        grads = _crf_loss_grad(*ctx.saved_tensors, ctx.ignore_index, "none", upstream)[1:]
    else:
        grads = [multiply(grad, upstream) for grad in ctx.saved_tensors]
    start, end = (grad if given else None for grad, given in zip(grads[2:], ctx.given, strict=True))
    return grads[0], None, grads[1], start, end, *[None] * 4


_crf_loss = define(
    "crf_loss",
    f"{_SCHEMA}, int ignore_index, str reduction, bool gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _compute,
    _fake,
    _differentiate,
    _save,
)


def crf_loss(
    emissions: Tensor,
    tags: Tensor,
    transitions: Tensor,
    *,
    start: Tensor | None = None,
    end: Tensor | None = None,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    """`csoftmax.crf_loss` with gradients with respect to the emissions and all parameters.

    Parameters
    ----------
    emissions : torch.Tensor of shape (..., T, L)
        Floating point.
    tags : torch.Tensor of shape (..., T), or of bool and shape (..., T, L)
        Labels, or sets of labels.
    transitions : torch.Tensor of shape (L, L)
        Floating point; may be wider than the emissions.
    start, end : torch.Tensor of shape (L,), optional
        Scores of the first and the last tag.
    mask : torch.Tensor of bool, of shape (..., T), optional
        Positions where it is False are taken out of the chain.
    ignore_index, reduction
        As in `csoftmax.crf_loss`.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 emissions, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `csoftmax.crf_loss`.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> emissions = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    >>> ct.crf_loss(emissions, torch.tensor([[0, 1]]), torch.zeros(2, 2)).backward()
    >>> emissions.grad
    tensor([[[-0.1192,  0.1192],
             [ 0.2689, -0.2689]]])
    """
    check_floating("emissions", emissions)
    check_constants(tags=tags, mask=mask)
    check_tensors(transitions=transitions, start=start, end=end)
    gradient = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (emissions, transitions, start, end)
    )
    ignore_index = check_integer("ignore_index", ignore_index)
    return _crf_loss(emissions, tags, transitions, start, end, mask, ignore_index, reduction, gradient)[0]


class CRF(nn.Module):
    """Linear-chain CRF, in place of ``torchcrf.CRF`` of pytorch-crf: the same arguments, parameters and state_dict.

    Masks may have any pattern, also with the first position off. Losses are exact where they are nearly 0, and never
    negative. On the CPU, one thread, a training step takes about a fiftieth of torchcrf's time.

    Parameters
    ----------
    num_tags : int
        Number of tags L.
    batch_first : bool, default False
        Whether arrays are (batch, position, ...) instead of (position, batch, ...).

    Raises
    ------
    ValueError, TypeError
        If num_tags is not an integer of at least 1.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> model = ct.CRF(3, batch_first=True)
    >>> emissions, tags = torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.long)
    >>> (-model(emissions, tags, reduction="token_mean")).backward()
    >>> model.transitions.grad.shape
    torch.Size([3, 3])
    >>> [len(path) for path in model.decode(emissions, torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]).bool())]
    [4, 2]
    """

    def __init__(self, num_tags: int, batch_first: bool = False) -> None:
        super().__init__()
        self.num_tags = check_count("num_tags", num_tags, 1)
        self.batch_first = batch_first
        self.start_transitions = nn.Parameter(torch.empty(num_tags))
        self.end_transitions = nn.Parameter(torch.empty(num_tags))
        self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters uniformly from [-0.1, 0.1].

        Examples
        --------
        >>> import torch
        >>> import csoftmax.torch as ct
        >>> model = ct.CRF(3)
        >>> before = model.transitions.clone()
        >>> model.reset_parameters()
        >>> torch.equal(model.transitions, before)
        False
        """
        for parameter in (self.start_transitions, self.end_transitions, self.transitions):
            nn.init.uniform_(parameter, -0.1, 0.1)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"num_tags={self.num_tags}, batch_first={self.batch_first}"

    def _with_batch_first(self, emissions: Tensor, *others: Tensor | None) -> list[Any]:
        check_floating("emissions", emissions)
        if emissions.dim() != 3 or emissions.shape[2] != self.num_tags:
            raise ValueError(
                f"emissions has shape {tuple(emissions.shape)}; allowed are three axes, the last of length "
                f"{self.num_tags}"
            )
        arrays = [None if a is None else a if self.batch_first else a.transpose(0, 1) for a in (emissions, *others)]
        return [a.bool() if a is not None and a.dtype == torch.uint8 else a for a in arrays]

    def forward(
        self, emissions: Tensor, tags: Tensor, mask: Tensor | None = None, reduction: Reduction = "sum"
    ) -> Tensor:
        """Log-likelihood of tags.

        Parameters
        ----------
        emissions : torch.Tensor of shape (positions, batch, num_tags), or (batch, positions, num_tags)
            Scores of the tags.
        tags : torch.Tensor of int of shape (positions, batch), or (batch, positions)
            Labels; -100 is an unknown one.
        mask : torch.Tensor of bool, of the shape of tags, optional
            Positions where it is False are taken out of the chain.
        reduction : {"sum", "mean", "none", "token_mean"}, default "sum"
            As in `csoftmax.crf_loss`.

        Returns
        -------
        torch.Tensor
            Minus `crf_loss`: of shape (), or (batch,) with reduction "none"; float64 for float64, else float32.

        Raises
        ------
        TypeError, ValueError, IndexError
            If emissions are not floating point or of another shape, and as from `crf_loss`.

        Examples
        --------
        >>> import torch
        >>> import csoftmax.torch as ct
        >>> model = ct.CRF(3, batch_first=True)
        >>> emissions, tags = torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.long)
        >>> model(emissions, tags, reduction="none").shape
        torch.Size([2])
        """
        if reduction not in ("none", "sum", "mean", "token_mean"):
            raise ValueError(f'reduction must be "none", "sum", "mean" or "token_mean", got {reduction!r}')
        emissions, tags, mask = self._with_batch_first(emissions, tags.long(), mask)
        parameters: dict[str, Any] = {"start": self.start_transitions, "end": self.end_transitions, "mask": mask}
        return -crf_loss(emissions, tags, self.transitions, reduction=reduction, **parameters)

    def _arguments(self, emissions: Tensor, mask: Tensor | None) -> tuple[list[Any], dict[str, Any], Any]:
        emissions, mask = self._with_batch_first(emissions, mask)
        arrays = detach(emissions, self.transitions, self.start_transitions, self.end_transitions, mask)
        return arrays[:2], {"start": arrays[2], "end": arrays[3], "mask": arrays[4]}, mask

    def decode(self, emissions: Tensor, mask: Tensor | None = None) -> list[list[int]]:
        """Most likely tags of each sequence (Viterbi).

        Parameters
        ----------
        emissions, mask
            As in `forward`.

        Returns
        -------
        list of list of int
            For each sequence the tags of the positions that take part.

        Raises
        ------
        TypeError, ValueError
            If emissions are not floating point or of another shape, or mask does not fit them.

        Examples
        --------
        >>> import torch
        >>> import csoftmax.torch as ct
        >>> model = ct.CRF(2, batch_first=True)
        >>> model.decode(torch.tensor([[[9.0, 0.0], [0.0, 9.0]]]))
        [[0, 1]]
        """
        arrays, options, mask = self._arguments(emissions, mask)
        tags = csoftmax.crf_decode(*arrays, **options).tags
        if mask is None:
            return tags.tolist()  # type: ignore[no-any-return]
        return [row[kept].tolist() for row, kept in zip(tags, mask, strict=True)]

    def marginals(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """Probabilities of the tags of each position, without a gradient.

        Parameters
        ----------
        emissions, mask
            As in `forward`.

        Returns
        -------
        torch.Tensor
            Of the shape and dtype of emissions, 0 at positions that take no part.

        Raises
        ------
        TypeError, ValueError
            If emissions are not floating point or of another shape, or mask does not fit them.

        Examples
        --------
        >>> import torch
        >>> import csoftmax.torch as ct
        >>> model = ct.CRF(2, batch_first=True)
        >>> model.marginals(torch.tensor([[[9.0, 0.0], [0.0, 9.0]]])).sum(2)
        tensor([[1., 1.]])
        """
        arrays, options, _ = self._arguments(emissions, mask)
        tags: Tensor = csoftmax.crf_marginals(*arrays, **options).tags
        return tags if self.batch_first else tags.transpose(0, 1)


for _public in (CRF, crf_loss):
    _public.__module__ = "csoftmax.torch"
