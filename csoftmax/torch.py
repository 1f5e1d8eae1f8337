"""Differentiable functions for PyTorch: custom operators with gradients, which `torch.compile` takes as they are.

The numbers are csoftmax's; PyTorch records the graph.  There are no second derivatives: asking for one is an error.
Axes are called `dim`, as PyTorch calls them.  On CUDA the kernels run through CuPy (not yet run on hardware).
"""

# mypy: ignore-errors

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise ImportError(f"csoftmax.torch needs PyTorch >= 2.4 ({error}); see https://pytorch.org") from error

import csoftmax

__all__ = [
    "cross_entropy",
    "entmax",
    "linear_cross_entropy",
    "log_softmax",
    "softmax",
    "sparsemax",
    "topk_softmax",
]

REDUCTIONS = ("mean", "sum", "none")


def _wide(x):
    """The dtype of losses."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _like(x):
    """A contiguous tensor for a result, whatever the layout of x: what the fake versions promise."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _check_floating(name, x):
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point to have a gradient, got {x.dtype}")


# softmax and log_softmax: two operators, and their gradients as operators


def _family(name):
    forward, backward = getattr(csoftmax, name), getattr(csoftmax, f"{name}_vjp")

    @torch.library.custom_op(f"csoftmax::{name}_vjp", mutates_args=())
    def vjp(dy: Tensor, y: Tensor, dim: int, temperature: float) -> Tensor:
        return backward(dy.detach(), y.detach(), dim, temperature=temperature, out=_like(y))

    @vjp.register_fake
    def _(dy, y, dim, temperature):
        return _like(y)

    @torch.library.custom_op(f"csoftmax::{name}", mutates_args=())
    def op(x: Tensor, dim: int, temperature: float) -> Tensor:
        return forward(x.detach(), dim, temperature=temperature, out=_like(x))

    @op.register_fake
    def _(x, dim, temperature):
        return _like(x)

    def save(ctx, inputs, output):
        _, ctx.dim, ctx.temperature = inputs
        ctx.save_for_backward(output)

    op.register_autograd(
        lambda ctx, dy: (vjp(dy, *ctx.saved_tensors, ctx.dim, ctx.temperature), None, None), setup_context=save
    )
    return op, vjp


_softmax, _softmax_vjp = _family("softmax")
_log_softmax, _ = _family("log_softmax")


def softmax(x, dim=-1, *, temperature=1.0):
    """`csoftmax.softmax` with a gradient.

    Parameters
    ----------
    x : torch.Tensor
        Floating point.
    dim : int, default -1
        The axis that sums to 1.
    temperature : float > 0, default 1.0
        T.

    Returns
    -------
    torch.Tensor
        Of the shape and dtype of x.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
    >>> ct.softmax(x)[1].backward()
    >>> x.grad
    tensor([-0.1966,  0.1966])
    """
    _check_floating("x", x)
    return _softmax(x, dim, float(temperature))


def log_softmax(x, dim=-1, *, temperature=1.0):
    """`csoftmax.log_softmax` with a gradient; parameters as in `softmax`."""
    _check_floating("x", x)
    return _log_softmax(x, dim, float(temperature))


# entmax


@torch.library.custom_op("csoftmax::entmax_vjp", mutates_args=())
def _entmax_vjp(dy: Tensor, y: Tensor, alpha: float, dim: int) -> Tensor:
    return csoftmax.entmax_vjp(dy.detach(), y.detach(), alpha, dim, out=_like(y))


@_entmax_vjp.register_fake
def _(dy, y, alpha, dim):
    return _like(y)


@torch.library.custom_op("csoftmax::entmax", mutates_args=())
def _entmax(x: Tensor, alpha: float, dim: int) -> Tensor:
    return csoftmax.entmax(x.detach(), alpha, dim, out=_like(x))


@_entmax.register_fake
def _(x, alpha, dim):
    return _like(x)


def _save_entmax(ctx, inputs, output):
    _, ctx.alpha, ctx.dim = inputs
    ctx.save_for_backward(output)


_entmax.register_autograd(
    lambda ctx, dy: (_entmax_vjp(dy, *ctx.saved_tensors, ctx.alpha, ctx.dim), None, None), setup_context=_save_entmax
)


def entmax(x, alpha=1.5, dim=-1):
    """`csoftmax.entmax` with a gradient with respect to x.

    Parameters
    ----------
    x : torch.Tensor
        Floating point.
    alpha : float >= 1, default 1.5
        1 is softmax, 2 is sparsemax.
    dim : int, default -1
        The axis that sums to 1.

    Returns
    -------
    torch.Tensor
        Of the shape and dtype of x.
    """
    _check_floating("x", x)
    return _entmax(x, float(alpha), dim)


def sparsemax(x, dim=-1):
    """`csoftmax.sparsemax` with a gradient: `entmax` with alpha = 2."""
    return entmax(x, 2.0, dim)


# top-k softmax


@torch.library.custom_op("csoftmax::topk_softmax", mutates_args=())
def _topk_softmax(x: Tensor, k: int, dim: int, temperature: float, full: bool) -> tuple[Tensor, Tensor]:
    result = csoftmax.topk_softmax(x.detach(), k, dim, temperature=temperature, normalize="full" if full else "topk")
    return result.values.contiguous(), result.indices.contiguous()


@_topk_softmax.register_fake
def _(x, k, dim, temperature, full):
    shape = list(x.shape)
    shape[dim] = k
    make = {"device": x.device}
    return torch.empty(shape, dtype=x.dtype, **make), torch.empty(shape, dtype=torch.int64, **make)


def _save_topk(ctx, inputs, output):
    x, _, ctx.dim, ctx.temperature, ctx.full = inputs
    values, indices = output
    ctx.mark_non_differentiable(indices)
    ctx.shape = x.shape
    ctx.save_for_backward(values, indices, *([x] if ctx.full else []))


def _topk_gradient(ctx, dy, _):
    values, indices, *x = ctx.saved_tensors
    dx = torch.zeros(ctx.shape, dtype=dy.dtype, device=dy.device)
    if ctx.full:  # the rest of the classes are in the sum
        y = _softmax(x[0], ctx.dim, ctx.temperature)
        return _softmax_vjp(dx.scatter(ctx.dim, indices, dy), y, ctx.dim, ctx.temperature), None, None, None, None
    own = _softmax_vjp(dy, values, ctx.dim, ctx.temperature)
    return dx.scatter(ctx.dim, indices, own), None, None, None, None


_topk_softmax.register_autograd(_topk_gradient, setup_context=_save_topk)


def topk_softmax(x, k, dim=-1, *, temperature=1.0, normalize="topk"):
    """`csoftmax.topk_softmax` with a gradient of the values.

    Parameters
    ----------
    x : torch.Tensor
        Floating point.
    k : int
        How many of the largest.
    dim : int, default -1
        The axis of the classes.
    temperature : float > 0, default 1.0
        T.
    normalize : {"topk", "full"}
        Over the k, or over all classes.

    Returns
    -------
    csoftmax.TopK
        Tensors values and indices.
    """
    _check_floating("x", x)
    if normalize not in ("topk", "full"):
        raise ValueError(f'normalize must be "topk" or "full", got {normalize!r}')
    return csoftmax.TopK(*_topk_softmax(x, k, dim, float(temperature), normalize == "full"))


# cross-entropy: the gradient is computed with the loss, where one is wanted at all


def _loss_shape(logits, dim, reduction):
    if reduction != "none":
        return []
    shape = list(logits.shape)
    del shape[dim]
    return shape


@torch.library.custom_op("csoftmax::cross_entropy", mutates_args=())
def _cross_entropy(
    logits: Tensor,
    target: Tensor,
    dim: int,
    weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    z_loss: float,
    temperature: float,
    reduction: str,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """(loss, gradient of its sum or mean, or an empty tensor)."""
    given = {
        "axis": dim,
        "weight": None if weight is None else weight.detach(),
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
        "z_loss": z_loss,
        "temperature": temperature,
        "reduction": reduction,
    }
    if not gradient:
        loss = csoftmax.cross_entropy(logits.detach(), target.detach(), **given)
        return loss, logits.new_empty(0)
    result = csoftmax.cross_entropy_with_grad(logits.detach(), target.detach(), out=_like(logits), **given)
    return result.loss, result.grad


@_cross_entropy.register_fake
def _(logits, target, dim, weight, label_smoothing, ignore_index, z_loss, temperature, reduction, gradient):
    loss = torch.empty(_loss_shape(logits, dim, reduction), dtype=_wide(logits), device=logits.device)
    return loss, torch.empty(logits.shape if gradient else (0,), dtype=logits.dtype, device=logits.device)


def _save_loss(ctx, inputs, output):
    ctx.dim, ctx.reduction = inputs[2], inputs[8]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _loss_gradient(ctx, upstream, _):
    (grad,) = ctx.saved_tensors
    if ctx.reduction == "none":
        upstream = upstream.unsqueeze(ctx.dim)
    return (grad * upstream).to(grad.dtype), *[None] * 9


_cross_entropy.register_autograd(_loss_gradient, setup_context=_save_loss)


def cross_entropy(
    logits,
    target,
    *,
    dim=-1,
    weight=None,
    label_smoothing=0.0,
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    reduction="mean",
):
    """`csoftmax.cross_entropy` with a gradient with respect to the logits, computed with the loss in one pass.

    Parameters
    ----------
    logits : torch.Tensor of shape (..., K)
        Floating point.
    target : torch.Tensor
        Labels, or soft labels; no gradient flows to them.
    dim : int, default -1
        Of the classes; PyTorch's own function has 1.
    weight : torch.Tensor of shape (K,), optional
        Class weights.
    label_smoothing, ignore_index, z_loss, temperature, reduction
        As in `csoftmax.cross_entropy`.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 logits, else float32.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> logits = torch.tensor([[2.0, 0.0]], requires_grad=True)
    >>> ct.cross_entropy(logits, torch.tensor([0])).backward()
    >>> logits.grad
    tensor([[-0.1192,  0.1192]])
    """
    _check_floating("logits", logits)
    gradient = logits.requires_grad and torch.is_grad_enabled()
    options = float(label_smoothing), int(ignore_index), float(z_loss), float(temperature), reduction, gradient
    return _cross_entropy(logits, target, dim, weight, *options)[0]


@torch.library.custom_op("csoftmax::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
    z_loss: float,
    temperature: float,
    reduction: str,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, gradients of x, w and bias); empty where there are none."""
    given = {
        "bias": None if bias is None else bias.detach(),
        "weight": None if weight is None else weight.detach(),
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
        "z_loss": z_loss,
        "temperature": temperature,
        "reduction": reduction,
    }
    arrays = x.detach(), w.detach(), target.detach()
    if not gradient:
        return csoftmax.linear_cross_entropy(*arrays, **given), x.new_empty(0), x.new_empty(0), x.new_empty(0)
    loss, grad_x, grad_w, grad_bias = csoftmax.linear_cross_entropy_with_grad(*arrays, **given)
    return loss, grad_x, grad_w, x.new_empty(0) if grad_bias is None else grad_bias


@_linear_cross_entropy.register_fake
def _(x, w, target, bias, weight, label_smoothing, ignore_index, z_loss, temperature, reduction, gradient):
    def empty(shape, dtype=x.dtype):
        return torch.empty(shape, dtype=dtype, device=x.device)

    loss = empty(x.shape[:-1] if reduction == "none" else [], _wide(x))
    if not gradient:
        return loss, empty(0), empty(0), empty(0)
    return loss, empty(x.shape), empty(w.shape), empty(0 if bias is None else bias.shape)


def _save_linear(ctx, inputs, output):
    ctx.has_bias = inputs[3] is not None
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _linear_gradient(ctx, upstream, *_):
    grads = [(grad * upstream).to(grad.dtype) for grad in ctx.saved_tensors]
    return grads[0], grads[1], None, grads[2] if ctx.has_bias else None, *[None] * 7


_linear_cross_entropy.register_autograd(_linear_gradient, setup_context=_save_linear)


def linear_cross_entropy(
    x,
    w,
    target,
    *,
    bias=None,
    weight=None,
    label_smoothing=0.0,
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    reduction="mean",
):
    """`csoftmax.linear_cross_entropy` with gradients with respect to x, w and bias; the logits never exist as a whole.

    Parameters
    ----------
    x : torch.Tensor of shape (..., D), w : torch.Tensor of shape (K, D), bias : torch.Tensor of shape (K,), optional
        Features and the linear layer.
    target : torch.Tensor
        Labels, or soft labels; no gradient flows to them.
    weight, label_smoothing, ignore_index, z_loss, temperature
        As in `csoftmax.linear_cross_entropy`.
    reduction : {"mean", "sum", "none"}
        With "none" there is no gradient: it is computed with the loss, before the rows' own factors are known.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 x, else float32.
    """
    _check_floating("x", x)
    wanted = any(t is not None and t.requires_grad for t in (x, w, bias)) and torch.is_grad_enabled()
    if wanted and reduction == "none":
        raise ValueError('reduction="none" has no gradient here; take "sum" or "mean", or torch.no_grad()')
    options = float(label_smoothing), int(ignore_index), float(z_loss), float(temperature), reduction, wanted
    return _linear_cross_entropy(x, w, target, bias, weight, *options)[0]
