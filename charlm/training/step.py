"""A step of training: forward and backward over one window, then the update of the weights.

Shapes: B lanes of this process, T window, L layers, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator, DDPCommunicationHookType, DistributedDataParallelKwargs
from accelerate.utils import DistributedType
from torch import Tensor, nn

from charlm.config.fields import Config
from charlm.errors import CharlmError
from charlm.model.char_lm import Carry, CharLM
from charlm.model.device import Recorded
from charlm.training.optimizer import AdamW, averaged


class Step:
    """step(x, y, carry) → (loss, norm, carry), with gradients left in the parameters; then step.update().

    x, y: int64[B, T]; carry: [L, B, H] each, or None for zeros; the carry returned is detached and may be
    overwritten by the next call. loss: [] in nats per symbol; norm: [] of the gradient before clipping. The
    mean of the losses over the processes is the mean over all lanes, also where processes have different
    numbers of lanes; so are the gradients, which DistributedDataParallel averages.

    The first call chooses what a step is: plain, in slices, or one of these recorded as a CUDA graph.
    slices: parts that the lanes of this process are computed in, one after the other.
    """

    def __init__(self, config: Config, accelerator: Accelerator, model: CharLM, optimizer: AdamW):
        self.accelerator, self.scaler = accelerator, accelerator.scaler
        self.lanes_per_process = config.train.batch_size / accelerator.num_processes
        self.slices, self.clip = config.train.accumulate, config.optim.clip
        self.recorded = records_steps(config, accelerator)
        self.model, self.optimizer = model, optimizer
        self.parameters = list(averaged(model).values())
        # Both are on their device; for placing them accelerate would import torch's compiler, which is slow.
        self.wrapped, self._scaled = accelerator.prepare(model, optimizer, device_placement=[False, False])
        if accelerator.num_processes > 1:
            fix_summation_order(self.wrapped, accelerator.device)
        self._run: Callable[..., tuple[Tensor, Tensor, Carry]] | None = None

    def __call__(self, x: Tensor, y: Tensor, carry: Carry | None) -> tuple[Tensor, Tensor, Carry]:
        carry = carry or self.model.zeros(len(x))
        if self._run is None:
            whole = self.slices == 1 and len(x) == self.lanes_per_process
            self._run = self._plain if whole else self._in_slices
            if self.recorded:
                self._run = Recorded(self._run, x, y, *carry, record=x.is_cuda)
        loss, norm, carry = self._run(x, y, *carry)
        return (loss.clone(), norm.clone(), carry) if self.recorded else (loss, norm, carry)

    def update(self) -> None:
        """Change the weights by the gradients, and drop these; a recorded step overwrites them."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self._scaled.step()  # skips the update when a gradient overflowed in fp16
        if not self.recorded:
            self.optimizer.zero_grad()

    def _plain(self, x: Tensor, y: Tensor, *carry: Tensor) -> tuple[Tensor, Tensor, Carry]:
        self.optimizer.zero_grad()  # to None: a recording then always writes the same tensors
        loss, carry = self.wrapped(x, carry, y)
        self._backward(loss)
        return loss.detach(), self._clip(), carry

    def _in_slices(self, x: Tensor, y: Tensor, *carry: Tensor) -> tuple[Tensor, Tensor, Carry]:
        self.optimizer.zero_grad()
        slices = min(self.slices, len(x))
        parts = [t.tensor_split(slices) for t in (x, y)] + [c.tensor_split(slices, 1) for c in carry]
        losses, carries = [], []
        for i, (some_x, some_y, *some_carry) in enumerate(zip(*parts, strict=True), 1):
            with nullcontext() if i == slices else self.accelerator.no_sync(self.wrapped):
                loss, after = self.wrapped(some_x, tuple(some_carry), some_y)
                loss = loss * (len(some_x) / self.lanes_per_process)
                self._backward(loss)
            losses.append(loss.detach())
            carries.append(after)
        carry = tuple(torch.cat(c, 1) for c in zip(*carries, strict=True))
        return torch.stack(losses).sum(), self._clip(), carry

    def _backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _clip(self) -> Tensor:
        """The norm [] of the gradient, which is clipped."""
        self.accelerator.unscale_gradients()  # of fp16
        if self.clip is None:
            return nn.utils.get_total_norm([p.grad for p in self.parameters])
        return nn.utils.clip_grad_norm_(self.parameters, self.clip)


def records_steps(config: Config, accelerator: Accelerator) -> bool:
    """True if steps are recorded as a CUDA graph: train.cuda_graph, or by default wherever it is possible.
    Raises CharlmError for train.cuda_graph=True where it is not."""
    possible = accelerator.distributed_type == DistributedType.NO and accelerator.scaler is None
    if config.train.cuda_graph and not possible:
        raise CharlmError("train.cuda_graph=True: works in one process without a launcher, not in fp16")
    if config.train.cuda_graph is None:
        return possible and accelerator.device.type == "cuda"
    return config.train.cuda_graph


def gradient_exchange(gradients: str) -> DistributedDataParallelKwargs:
    """How several processes send their gradients: in fp32 or bf16. torch has the bf16 hook for NCCL alone."""
    hook = DDPCommunicationHookType.BF16 if gradients == "bf16" else DDPCommunicationHookType.NO
    return DistributedDataParallelKwargs(comm_hook=hook)


def fix_summation_order(wrapped: nn.parallel.DistributedDataParallel, device: torch.device) -> None:
    """Make DistributedDataParallel choose the order in which it sums gradients, by a pass without effect.

    It chooses again after its first backward pass: by the order in which the gradients came. The last bits of
    a sum of three or more numbers depend on its order, and a resumed run begins with a first pass that the
    uninterrupted run had long ago. Draws random numbers: seed after it.
    """
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    loss, _ = wrapped(ids, None, ids)
    loss.backward()
    wrapped.zero_grad()
