"""The weights of a recurrent layer in a lower precision, within the graph: gradients reach the originals.

On a GPU torch keeps a layer's weights as views of one buffer, in the order that cuDNN wants. Cast one by one
they would lie apart, and cuDNN would gather them anew in every call; so their buffer is cast as a whole.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def cast(weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies of the weights in another dtype; views of one buffer become views of one, laid out alike."""
    return list(_Cast.apply(dtype, *weights))


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype, *weights):
        ctx.dtypes = [w.dtype for w in weights]
        if len({w.untyped_storage().data_ptr() for w in weights}) > 1:
            return tuple(w.to(dtype) for w in weights)
        first = min(w.storage_offset() for w in weights)
        end = max(w.storage_offset() + 1 + sum(map(_reach, w.size(), w.stride())) for w in weights)
        buffer = weights[0].detach().as_strided((end - first,), (1,), first).to(dtype)
        return tuple(buffer.as_strided(w.size(), w.stride(), w.storage_offset() - first) for w in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        return None, *(g.to(dtype) for g, dtype in zip(grads, ctx.dtypes, strict=True))


def _reach(size: int, stride: int) -> int:
    return (size - 1) * stride
