"""How several processes average their gradients: what DistributedDataParallel, which does it, leaves open."""

from __future__ import annotations

import torch
from accelerate import DDPCommunicationHookType, DistributedDataParallelKwargs
from torch import nn


def options(gradients: str) -> DistributedDataParallelKwargs:
    """For the accelerator: gradients (fp32 or bf16) on their way, sent while the backward pass goes on.

    torch has the bf16 hook for NCCL alone.
    """
    hook = DDPCommunicationHookType.BF16 if gradients == "bf16" else DDPCommunicationHookType.NO
    return DistributedDataParallelKwargs(comm_hook=hook)


def settle(wrapped: nn.parallel.DistributedDataParallel, device: torch.device) -> None:
    """Let DDP choose the order in which gradients are summed, before the first step that counts.

    It chooses anew after its first backward pass: by the order in which the gradients came. A sum of three or
    more numbers depends on its order in the last bits, and a resumed run begins with a first pass that the
    uninterrupted one had long behind it. So the first pass is one that nothing depends on. It draws random
    numbers: seed after it.
    """
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    loss, _ = wrapped(ids, None, ids)
    loss.backward()
    wrapped.zero_grad()
