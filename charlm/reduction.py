"""How several processes average their gradients: what DistributedDataParallel, which does it, leaves open."""

from __future__ import annotations

import torch
from torch import nn


def settle(wrapped: nn.parallel.DistributedDataParallel, device: torch.device) -> None:
    """Let DDP choose the order in which gradients are summed, before the first step that counts.

    It chooses anew after its first backward pass: by the order in which the gradients came. A sum of three or
    more numbers depends on its order in the last bits, and a resumed run begins with a first pass that the
    uninterrupted one had long behind it. So the first pass is one that nothing depends on. It draws random
    numbers: seed after it.
    """
    ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
    loss, _ = wrapped(ids, None, ids)
    loss.backward()
    wrapped.zero_grad()
