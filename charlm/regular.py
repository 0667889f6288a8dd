"""What keeps a recurrent model from learning its text by heart.

Shapes: B lanes, T window, H units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
