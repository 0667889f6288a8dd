"""What a step of training is made of: accelerator, corpus, lanes, model, optimizer; and the step itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor

from charlm.config import Config
from charlm.lanes import Lanes
from charlm.model import Carry, CharLM
from charlm.optim import make_optimizer
from charlm.prepared import prepare, wait_for


class Parts:
    """The parts of a config's training, on this rank. say: tells a line to people."""

    def __init__(self, config: Config):
        self.config = config
        cuda = torch.cuda.is_available()
        fp16 = cuda and config.train.precision == "fp16"
        self.accelerator = Accelerator(
            cpu=not cuda, mixed_precision="fp16" if fp16 else "no", log_with="wandb"
        )
        self.main = self.accelerator.is_main_process
        self.world = self.accelerator.num_processes

    def set_up(self, say: Callable[[str], None]) -> None:
        """Build all but the accelerator. say: tells a line to people."""
        config, accelerator = self.config, self.accelerator
        self.corpus = prepare(config) if self.main else wait_for(config)
        self.lanes = Lanes(
            self.corpus["train"],
            config.train.batch_size,
            config.train.bptt,
            rank=accelerator.process_index,
            world=self.world,
            seed=config.train.seed,
            device=accelerator.device,
        )
        self.slices = config.train.accumulate  # that the lanes of this rank are worked off in
        torch.manual_seed(config.train.seed)
        self.model = CharLM(config.model, len(self.corpus.vocab))
        self._set_precision(say)
        optimizer = make_optimizer(self.model.to(accelerator.device), config.optim)
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        torch.manual_seed(config.train.seed + 1 + accelerator.process_index)  # dropout differs by rank

    def _set_precision(self, say: Callable[[str], None]) -> None:
        precision = self.config.train.precision
        if self.accelerator.device.type != "cuda":
            if precision != "fp32":
                say(f"train.precision={precision} is for GPUs: this CPU computes in fp32")
            return
        if precision == "bf16":
            self.model.compute_dtype = torch.bfloat16
        exact = "tf32" if precision == "tf32" else "ieee"
        torch.backends.cudnn.rnn.fp32_precision = exact
        torch.backends.cuda.matmul.fp32_precision = exact

    @property
    def bare_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer inside accelerate's wrapper."""
        return self.optimizer.optimizer

    def forward_backward(self, x: Tensor, y: Tensor, carry: Carry | None) -> tuple[Tensor, Tensor, Carry]:
        """Loss [] in nats per symbol, norm [] of the gradient before clipping, and the carry.

        x, y: int64[B, T]. The mean of the losses over the ranks is the mean over all lanes, however many
        lanes each rank has: so are the gradients, which accelerate averages.
        """
        carry = carry or self.model.zeros(len(x))
        lanes_per_rank = self.config.train.batch_size / self.world
        slices = min(self.slices, len(x))
        parts = [t.tensor_split(slices) for t in (x, y)] + [c.tensor_split(slices, 1) for c in carry]
        losses, carries = [], []
        for i, (some_x, some_y, *some_carry) in enumerate(zip(*parts, strict=True), 1):
            with nullcontext() if i == slices else self.accelerator.no_sync(self.wrapped):
                loss, after = self.wrapped(some_x, tuple(some_carry), some_y)
                loss = loss * (len(some_x) / lanes_per_rank)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            carries.append(after)
        carry = tuple(torch.cat(c, 1) for c in zip(*carries, strict=True))
        clip = self.config.optim.clip
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), math.inf if clip is None else clip)
        return torch.stack(losses).sum(), norm, carry
