"""A step of training: forward and backward over one window, then the update of the weights; and its clock.

Shapes: B lanes of this process, T window, L layers, H hidden.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

from charlm.config.fields import Config
from charlm.model.char_lm import Carry, CharLM
from charlm.model.device import Recorded
from charlm.training.optimizer import AdamW, averaged


class Step:
    """step(x, y, carry) → (loss, norm, carry), with gradients left in the parameters; then step.update().

    x, y: int64[B, T]; carry: [L, B, H] each, or None for zeros; the carry returned is detached and may be
    overwritten by the next call. loss: [] in nats per symbol; norm: [] of the gradient before clipping. The
    mean of the losses over the processes is the mean over all lanes, also where processes have different
    numbers of lanes. So are the gradients: they are averaged in one tensor, and their sum has one order.

    Forward and backward are plain, or in slices, and may be recorded as a CUDA graph; the exchange between
    processes is not. slices: parts that the lanes of this process are computed in, one after the other.
    """

    def __init__(self, config: Config, accelerator: Accelerator, model: CharLM, optimizer: AdamW):
        self.scaler, self.processes = accelerator.scaler, accelerator.num_processes
        self.distributed = distributed.is_initialized()  # with one process, too, under a launcher
        self.lanes_per_process = config.train.batch_size / self.processes
        self.slices, self.clip = config.train.accumulate, config.optim.clip
        self.sent_as = torch.bfloat16 if config.train.gradients == "bf16" else torch.float32
        self.recorded = records_steps(config, accelerator)
        self.model, self.optimizer = model, optimizer
        self.parameters = list(averaged(model).values())
        if self.distributed:  # the same weights for all, also on machines that draw other random numbers
            for p in self.parameters:
                distributed.broadcast(p.data, 0)
        self._run: Callable[..., tuple] | None = None if self.recorded else self._gradients

    def __call__(self, x: Tensor, y: Tensor, carry: Carry | None) -> tuple[Tensor, Tensor, Carry]:
        carry = carry or self.model.zeros(len(x))
        if self._run is None:
            self._run = Recorded(self._gradients, x, y, *carry, record=x.is_cuda)
        loss, gradients, norm, carry = self._run(x, y, *carry)
        if gradients is not None:
            self._exchange(gradients)
            norm = self._clip()
        return (loss.clone(), norm.clone(), carry) if self.recorded else (loss, norm, carry)

    def update(self) -> None:
        """Change the weights by the gradients, and drop these; a recorded step overwrites them."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)  # skips the update when a gradient overflowed in fp16
            self.scaler.update()
        if not self.recorded:
            self.optimizer.zero_grad()

    def _gradients(self, x: Tensor, y: Tensor, *carry: Tensor) -> tuple:
        """(loss, gradients as one tensor, None, carry), or in a process alone (loss, None, norm, carry)."""
        self.optimizer.zero_grad()  # to None: a recording then always writes the same tensors
        slices = min(self.slices, len(x))
        parts = [t.tensor_split(slices) for t in (x, y)] + [c.tensor_split(slices, 1) for c in carry]
        losses, carries = [], []
        for some_x, some_y, *some_carry in zip(*parts, strict=True):
            loss, after = self.model(some_x, tuple(some_carry), some_y)
            if len(some_x) != self.lanes_per_process:
                loss = loss * (len(some_x) / self.lanes_per_process)
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            losses.append(loss.detach())
            carries.append(after)
        if slices > 1:
            loss = torch.stack(losses).sum()
            after = tuple(torch.cat(c, 1) for c in zip(*carries, strict=True))
        if not self.distributed:
            return loss.detach(), None, self._clip(), after
        flat = torch.cat([p.grad.flatten() for p in self._with_gradient()])
        return loss.detach(), flat.div_(self.processes).to(self.sent_as), None, after

    def _with_gradient(self) -> list[nn.Parameter]:
        """Those that the loss depends on: the same in all processes."""
        return [p for p in self.parameters if p.grad is not None]

    def _exchange(self, flat: Tensor) -> None:
        """Replace the gradients by their sum over the processes. flat: all of them, which this overwrites."""
        distributed.all_reduce(flat)
        parameters = self._with_gradient()
        parts = flat.float().split([p.numel() for p in parameters])
        for p, part in zip(parameters, parts, strict=True):
            p.grad = part.view_as(p)

    def _clip(self) -> Tensor:
        """The norm [] of the gradient, which is clipped."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip is None:
            return nn.utils.get_total_norm([p.grad for p in self._with_gradient()])
        return nn.utils.clip_grad_norm_(self.parameters, self.clip)


def records_steps(config: Config, accelerator: Accelerator) -> bool:
    """True if steps are recorded as a CUDA graph: train.cuda_graph, or by default wherever it is possible.
    Raises CharlmError for train.cuda_graph=True where it is not."""
    fits = not config.train.cuda_graph or accelerator.scaler is None
    config.train.require(fits, "cuda_graph", "does not work in fp16; set null, or train.precision=bf16")
    if config.train.cuda_graph is None:
        return accelerator.scaler is None and accelerator.device.type == "cuda"
    return config.train.cuda_graph


class Clock:
    """Steps per second of training alone: evaluation, samples and checkpoints pause it.

    paused_seconds: of pauses since the last restart; checkpoint_seconds: those of checkpoints. before:
    seconds of training on the clocks before this one.
    """

    def __init__(self, before: float = 0.0):
        self.steps, self.started, self.before = 0, time.perf_counter(), before
        self.paused_seconds = self.checkpoint_seconds = 0.0
        self.in_pause = False

    def seconds(self) -> float:
        """Of training in this process."""
        return self.before + time.perf_counter() - self.started - self.paused_seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        since, self.in_pause = time.perf_counter(), True
        try:
            yield
        finally:
            self.paused_seconds += time.perf_counter() - since
            self.in_pause = False
