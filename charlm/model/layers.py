"""What keeps a recurrent model from learning its text by heart.

Shapes: B lanes, T window, H units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LockedDropout(nn.Dropout):
    """Dropout with one mask per lane for all times of a window (Gal & Ghahramani 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, H] → the same; dropped units are dropped at every time."""
        if not self.training or not self.p:
            return x
        return x * drawn(x[:, :1], self.p)


class RMSNorm(nn.RMSNorm):
    """Divides by the root of the mean square, in operations that ONNX knows (Zhang & Sennrich 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., H] → the same."""
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


def drawn(like: Tensor, p: float) -> Tensor:
    """A mask of the shape and dtype of `like`: 0 with probability p, else 1 / (1 - p)."""
    return torch.empty_like(like).bernoulli_(1 - p).div_(1 - p)


def activation_penalty(h: Tensor, dropped: Tensor, ar: float, tar: float) -> Tensor:
    """Activation and temporal activation regularisation (Merity et al. 2017): ar times the mean square of
    the dropped outputs, plus tar times that of what the outputs change by from one time to the next.

    h, dropped: [B, T, H], before and after dropout. Its value, [], is 0, so that the loss stays a figure in
    nats; the gradient is that of the penalty.
    """
    penalty = h.new_zeros((), dtype=torch.float32)
    if ar:
        penalty = penalty + ar * dropped.float().square().mean()
    if tar and h.shape[1] > 1:
        penalty = penalty + tar * h.float().diff(dim=1).square().mean()
    return penalty - penalty.detach()


# What a GPU computes in, and copies of a recurrent layer's weights, whose gradients reach the originals.
#
# On a GPU torch keeps a layer's weights as views of one buffer, in the order that cuDNN wants. Copied one by
# one they would lie apart, and cuDNN would gather them anew in every call; so their buffer is copied whole.


RECURRENT = 1  # place of the recurrent weights among a layer's: input, recurrent, and a bias of each


def cast(weights: list[Tensor], dtype: torch.dtype, mask: Tensor | None = None) -> list[Tensor]:
    """Copies of the weights in a dtype; views of one buffer become views of one, laid out alike.

    mask: of the recurrent weights' shape, which are multiplied by it.
    """
    return list(_Cast.apply(dtype, mask, *weights))


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype, mask, *weights):
        ctx.dtypes, ctx.mask = [w.dtype for w in weights], mask
        if len({w.untyped_storage().data_ptr() for w in weights}) > 1:
            copies = tuple(w.to(dtype, copy=True) for w in weights)
        else:
            first = min(w.storage_offset() for w in weights)
            end = max(w.storage_offset() + 1 + sum(map(_reach, w.size(), w.stride())) for w in weights)
            buffer = weights[0].detach().as_strided((end - first,), (1,), first).to(dtype, copy=True)
            copies = tuple(
                buffer.as_strided(w.size(), w.stride(), w.storage_offset() - first) for w in weights
            )
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


def _reach(size: int, stride: int) -> int:
    return (size - 1) * stride


# A window of one GRU layer on a CPU, with a backward of its own: torch's calls a dozen small kernels a step.
#
# The equations are nn.GRU's (biases b_i of the input and b_h of the hidden state, gates in the order r, z, n):
#
#     r, z = sigmoid(x W_i + b_i + h W_h + b_h)        a_n = h W_hn + b_hn
#     n    = tanh(x W_in + b_in + r · a_n)             h'  = n + z · (h - n)
#
# What depends on x alone is one product over the window, and so is every gradient of a weight. Of a step
# remain, forward, one product and four small kernels; backward, one product and three: with g the gradient at
# h', those at the pre-activations are g times factors that are known beforehand (below, `factors`).
#
# Shapes: B lanes, T window, E input, H hidden. Any float dtype.


class _Window(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, h, w_i, w_h, b_i, b_h):
        """x [B, T, E], h [B, H] → out [B, T, H], h at the end [B, H]."""
        size, lanes, steps = h.shape[1], len(x), x.shape[1]
        x = x.transpose(0, 1).contiguous()  # [T, B, E]
        gates = torch.addmm(b_i, x.flatten(0, 1), w_i.t()).view(steps, lanes, 3 * size)
        n = gates[:, :, 2 * size :].clone()
        gates[:, :, : 2 * size] += b_h[: 2 * size]
        gates[:, :, 2 * size :] = b_h[2 * size :]
        states = h.new_empty(steps + 1, lanes, size)
        states[0] = h
        w = w_h.t()
        r_z, r, z, a_n = (
            gates[:, :, low * size : high * size].unbind() for low, high in ((0, 2), (0, 1), (1, 2), (2, 3))
        )
        h = states.unbind()
        for t, (gate, new) in enumerate(zip(gates.unbind(), n.unbind(), strict=True)):
            gate.addmm_(h[t], w)
            r_z[t].sigmoid_()
            new.addcmul_(r[t], a_n[t]).tanh_()
            torch.lerp(new, h[t], z[t], out=h[t + 1])
        ctx.save_for_backward(x, w_i, w_h, gates, n, states)
        return states[1:].transpose(0, 1), states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, grad_h):
        x, w_i, w_h, gates, n, states = ctx.saved_tensors
        steps, lanes, size = n.shape
        r, z, a_n = gates.view(steps, lanes, 3, size).unbind(2)
        at_n = (1 - z) * (1 - n * n)
        factors = torch.empty_like(gates)  # of r, z and a_n
        of_r, of_z, of_a = factors.view(steps, lanes, 3, size).unbind(2)
        torch.mul(at_n, r, out=of_a)
        torch.mul(of_a, a_n * (1 - r), out=of_r)
        torch.mul(z * (1 - z), states[:-1] - n, out=of_z)
        g = grad_out.transpose(0, 1).clone(memory_format=torch.contiguous_format)  # becomes that at every h'
        views = zip(
            g.unbind(),
            z.unbind(),
            factors.view(steps, lanes, 3, size).unbind(),
            factors.unbind(),
            strict=True,
        )
        before = grad_h
        for at_h, update, by_gate, flat in reversed(list(views)):
            at_h += before
            by_gate *= at_h[:, None]
            before = torch.addmm(at_h * update, flat, w_h)
        at_gates = factors.flatten(0, 1)  # by now the gradients at r, z, a_n
        grad_w_h, grad_b_h = at_gates.t() @ states[:-1].flatten(0, 1), at_gates.sum(0)
        torch.mul(g, at_n, out=of_a)  # the pre-activation of n, from the input's side
        grad_x = (at_gates @ w_i).view_as(x).transpose(0, 1) if ctx.needs_input_grad[0] else None
        return grad_x, before, at_gates.t() @ x.flatten(0, 1), grad_w_h, at_gates.sum(0), grad_b_h


def gru_window(
    layer: nn.GRU, x: Tensor, h: Tensor, weights: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """layer(x, h) of a one-layer, batch-first GRU: x [B, T, E], h [1, B, H] → ([B, T, H], [1, B, H]).

    weights: others than the layer's own, in its order.
    """
    out, last = _Window.apply(x, h[0], *(layer._flat_weights if weights is None else weights))
    return out, last[None]
