"""What keeps a recurrent model from learning its text by heart.

Shapes: B lanes, T window, H units.
"""

from __future__ import annotations

from torch import Tensor, nn


class LockedDropout(nn.Dropout):
    """Dropout with one mask per lane for all times of a window (Gal & Ghahramani 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, H] → the same; dropped units are dropped at every time."""
        if not self.training or not self.p:
            return x
        kept = x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(1 - self.p)
        return x * kept.div_(1 - self.p)
