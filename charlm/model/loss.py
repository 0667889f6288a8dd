"""The cross-entropy of a linear layer's logits, without holding all logits at once.

A window of 512 lanes × 1,024 characters and 2,048 symbols has a billion of them: 4.3 GB in float32, and as
much again for their gradient. Here they are made some rows at a time, and their gradient is taken on the
spot, so that a few rows' worth is all that ever exists.

Shapes: N symbols to predict, V vocabulary, H hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST = 1 << 24  # logits at once: 64 MB in float32


def cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """F.cross_entropy(F.linear(x, weight, bias), targets), in nats, computed in float32.

    x: [N, H] in the dtype to compute in; weight [V, H], bias [V]: float32; targets: int64[N].
    reduction: mean, sum (both []) or none ([N]).
    """
    if len(x) * len(weight) <= MOST or torch.is_autocast_enabled(x.device.type):
        logits = F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
        return F.cross_entropy(logits.float(), targets, reduction=reduction)
    if reduction == "none":
        parts = zip(x.split(_rows(weight)), targets.split(_rows(weight)), strict=True)
        return torch.cat([cross_entropy(some, weight, bias, wanted, "none") for some, wanted in parts])
    total = _Summed.apply(x, weight, bias, targets)
    return total / len(x) if reduction == "mean" else total


def _rows(weight: Tensor) -> int:
    """Rows of logits at once."""
    return max(1, MOST // len(weight))


class _Summed(torch.autograd.Function):
    """The sum over all rows. The gradient is taken in forward, while the logits are there."""

    @staticmethod
    def forward(ctx, x, weight, bias, targets):
        needed = any(ctx.needs_input_grad)
        w, b = weight.to(x.dtype), bias.to(x.dtype)
        total = torch.zeros((), device=x.device)
        if needed:
            grad_x, grad_w, grad_b = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        for low in range(0, len(x), _rows(weight)):
            some, wanted = (t[low : low + _rows(weight)] for t in (x, targets[:, None]))
            logits = F.linear(some, w, b).float()
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - logits.gather(1, wanted)).sum()
            if needed:  # softmax minus one-hot
                grad = logits.sub_(norm).exp_().scatter_add_(1, wanted, -torch.ones_like(norm)).to(x.dtype)
                torch.mm(grad, w, out=grad_x[low : low + len(some)])
                grad_w += grad.t() @ some
                grad_b += grad.float().sum(0)
        if needed:
            ctx.save_for_backward(grad_x, grad_w, grad_b)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return (*(grad.to(g.dtype) * g for g in ctx.saved_tensors), None)
