"""Dropout, norm, activation penalty, low-precision copies of weights, and the loss.

Shapes: B lanes, T window, V vocabulary, H hidden, N symbols to predict.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

RECURRENT = 1  # index of the recurrent weights among a layer's: input, recurrent, and a bias of each
MAX_LOGITS = 1 << 24  # in memory at once: 64 MB in float32


def bernoulli_mask(like: Tensor, p: float) -> Tensor:
    """A mask of the shape and dtype of `like`: 0 with probability p, else 1 / (1 - p)."""
    return torch.empty_like(like).bernoulli_(1 - p).div_(1 - p)


class LockedDropout(nn.Dropout):
    """Dropout with one mask per lane for all times of a window (Gal & Ghahramani 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, H] → the same shape; dropped units are dropped at every time."""
        return x * bernoulli_mask(x[:, :1], self.p) if self.training and self.p else x


class RMSNorm(nn.RMSNorm):
    """Divides by the root of the mean square (Zhang & Sennrich 2019), in operations that ONNX supports."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., H] → the same shape."""
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


def activation_penalty(h: Tensor, dropped: Tensor, ar: float, tar: float) -> Tensor:
    """Activation and temporal activation regularisation (Merity et al. 2017): ar times the mean square of the
    dropped outputs, plus tar times the mean square of the change of the outputs from one time to the next.

    h, dropped: [B, T, H], before and after dropout. Returns [] with the value 0, so that the loss stays a
    figure in nats, and the gradient of the penalty.
    """
    penalty = h.new_zeros((), dtype=torch.float32)
    if ar:
        penalty = penalty + ar * dropped.float().square().mean()
    if tar and h.shape[1] > 1:
        penalty = penalty + tar * h.float().diff(dim=1).square().mean()
    return penalty - penalty.detach()


class Cast(torch.autograd.Function):
    """Copies of recurrent layers' weights in a dtype, whose gradients reach the originals.

    On a GPU torch keeps the weights as views of one buffer in cuDNN's order. Copied one by one they would lie
    apart, and cuDNN would gather them again in every call; views of one buffer become views of its copy.
    mask: None, or of the shape of the (first layer's) recurrent weights, which are multiplied by it.
    """

    @staticmethod
    def forward(ctx, dtype, mask, *weights):
        ctx.dtypes, ctx.mask = [w.dtype for w in weights], mask
        if len({w.untyped_storage().data_ptr() for w in weights}) > 1:
            copies = tuple(w.to(dtype, copy=True) for w in weights)
        else:
            size = weights[0].untyped_storage().nbytes() // weights[0].element_size()
            buffer = weights[0].detach().as_strided((size,), (1,), 0).to(dtype, copy=True)
            copies = tuple(buffer.as_strided(w.size(), w.stride(), w.storage_offset()) for w in weights)
        if mask is not None:
            copies[RECURRENT].mul_(mask)
        return copies

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        grads = [g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True)]
        if ctx.mask is not None:
            grads[RECURRENT] = grads[RECURRENT] * ctx.mask
        return None, None, *grads


def cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """F.cross_entropy(F.linear(x, weight, bias), targets), in nats, computed in float32.

    x: [N, H] in the dtype to compute in; weight [V, H], bias [V]: float32; targets: int64[N].
    reduction: mean, sum (both []) or none ([N]).

    512 lanes × 1,024 characters and 2,048 symbols are a billion logits: 4.3 GB in float32, and as much for
    their gradient. Logits and gradient are computed in slices of rows, one slice in memory at a time.
    """
    rows = max(1, MAX_LOGITS // len(weight))  # of a slice
    if len(x) <= rows or torch.is_autocast_enabled(x.device.type):
        logits = F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
        return F.cross_entropy(logits.float(), targets, reduction=reduction)
    if reduction == "none":
        slices = zip(x.split(rows), targets.split(rows), strict=True)
        return torch.cat([cross_entropy(x, weight, bias, y, "none") for x, y in slices])
    total = _SummedCrossEntropy.apply(x, weight, bias, targets, rows)
    return total / len(x) if reduction == "mean" else total


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum over all rows; its gradient is computed in forward, while the logits of a slice exist."""

    @staticmethod
    def forward(ctx, x, weight, bias, targets, rows):
        needed = any(ctx.needs_input_grad)
        w, b = weight.to(x.dtype), bias.to(x.dtype)
        total = torch.zeros((), device=x.device)
        if needed:
            grad_x, grad_w, grad_b = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        for low in range(0, len(x), rows):
            inputs, labels = x[low : low + rows], targets[low : low + rows, None]
            logits = F.linear(inputs, w, b).float()
            norm = logits.logsumexp(1, keepdim=True)
            total += (norm - logits.gather(1, labels)).sum()
            if needed:  # softmax minus one-hot
                grad = logits.sub_(norm).exp_().scatter_add_(1, labels, -torch.ones_like(norm)).to(x.dtype)
                torch.mm(grad, w, out=grad_x[low : low + rows])
                grad_w += grad.t() @ inputs
                grad_b += grad.float().sum(0)
        if needed:
            ctx.save_for_backward(grad_x, grad_w, grad_b)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return (*(grad.to(g.dtype) * g for g in ctx.saved_tensors), None, None)
