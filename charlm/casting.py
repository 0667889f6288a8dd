"""What a GPU computes in, and copies of a recurrent layer's weights, whose gradients reach the originals.

On a GPU torch keeps a layer's weights as views of one buffer, in the order that cuDNN wants. Copied one by
one they would lie apart, and cuDNN would gather them anew in every call; so their buffer is copied whole.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

RECURRENT = 1  # place of the recurrent weights among a layer's: input, recurrent, and a bias of each


def arithmetic(kind: str) -> None:
    """How a GPU multiplies float32: ieee, or tf32, which torch would take for recurrent layers by itself."""
    torch.backends.cudnn.rnn.fp32_precision = kind
    torch.backends.cuda.matmul.fp32_precision = kind


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
