"""What a step of training is made of: accelerator, corpus, lanes, model, optimizer; and the step itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from charlm.config.fields import Config
from charlm.corpus.prepared import prepare, wait_for
from charlm.errors import CharlmError
from charlm.model.cells import cell_of
from charlm.model.char_lm import Carry, CharLM
from charlm.model.device import set_float32_precision
from charlm.training import distributed as reduction
from charlm.training.lanes import Lanes
from charlm.training.optimizer import AdamW, Average, make_optimizer
from charlm.training.step import Recorded

# Values of the gates that keep a thread busy: with fewer, threads cost each other more than they gain.
VALUES_PER_THREAD = 1536


def threads_for(config: Config, world: int) -> int:
    """Threads of torch for training on a CPU: train.threads, or as many as the work of a step keeps busy."""
    if config.train.threads is not None:
        return config.train.threads
    gates = cell_of(config.model).gates
    values = gates * config.model.hidden_size * config.train.batch_size // config.train.accumulate // world
    return min(max(values // VALUES_PER_THREAD, 1), torch.get_num_threads())


class Parts:
    """The parts of a config's training, on this rank. say: tells a line to people."""

    def __init__(self, config: Config):
        self.config = config
        cuda = torch.cuda.is_available()
        fp16 = cuda and config.train.precision == "fp16"
        self.accelerator = Accelerator(
            cpu=not cuda,
            mixed_precision="fp16" if fp16 else "no",
            log_with="wandb",
            kwargs_handlers=[reduction.options(config.train.gradients if cuda else "fp32")],
        )
        self.main = self.accelerator.is_main_process
        self.world = self.accelerator.num_processes
        alone = self.accelerator.distributed_type == DistributedType.NO
        self.recordable = alone and self.accelerator.scaler is None
        self.records = config.train.cuda_graph  # are steps recorded?
        if self.records is None:
            self.records = self.recordable and cuda
        self.recorded: Recorded | None = None  # the step, from the first one on

    def set_up(self, say: Callable[[str], None]) -> None:
        """Build all but the accelerator. say: tells a line to people."""
        config, accelerator = self.config, self.accelerator
        cell_of(config.model)  # an unknown cell is an error before the corpus is prepared
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
        if config.train.cuda_graph and not self.recordable:
            raise CharlmError(
                "train.cuda_graph=True: is for one process without a launcher, and not for fp16; leave it out"
            )
        self.slices = config.train.accumulate  # that the lanes of this rank are worked off in
        torch.manual_seed(config.train.seed)
        self.model = CharLM(config.model, len(self.corpus.vocab))
        self._set_precision(say)
        optimizer = make_optimizer(self.model.to(accelerator.device), config.optim)
        # They are where they belong; to see to that, accelerate would import torch's compiler: seconds.
        placed = {"device_placement": [False, False]}
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer, **placed)
        self.parameters = list(self.model.parameters())
        decay = config.optim.average
        self.average = Average(self.model, decay) if decay else None
        if self.world > 1:
            reduction.settle(self.wrapped, accelerator.device)
        torch.manual_seed(config.train.seed + 1 + accelerator.process_index)  # dropout differs by rank
        if accelerator.device.type == "cpu":
            torch.set_num_threads(threads_for(config, self.world))

    def _set_precision(self, say: Callable[[str], None]) -> None:
        precision = self.config.train.precision
        if self.accelerator.device.type != "cuda":
            if precision != "fp32":
                say(f"train.precision={precision} is for GPUs: this CPU computes in fp32")
            if self.config.train.gradients != "fp32" and self.world > 1:
                say("train.gradients=bf16 is for GPUs: these CPUs average gradients in fp32")
            return
        if precision == "bf16":
            self.model.compute_dtype = torch.bfloat16
        set_float32_precision("tf32" if precision == "tf32" else "ieee")

    @property
    def judged(self) -> CharLM:
        """The model that is evaluated, sampled and kept: of averaged weights, with optim.average."""
        return self.model if self.average is None else self.average.model

    def update(self) -> None:
        """Change the weights by the gradients, and clear these.

        accelerate's wrapper of the optimizer is gone through only for its gradient scaler: it looks for
        packages on the disk twice a step.
        """
        optimizer = self.bare_optimizer if self.accelerator.scaler is None else self.optimizer
        optimizer.step()
        if self.recorded is None:  # which overwrites them
            optimizer.zero_grad()

    @property
    def bare_optimizer(self) -> AdamW:
        """The optimizer inside accelerate's wrapper."""
        return self.optimizer.optimizer

    def forward_backward(self, x: Tensor, y: Tensor, carry: Carry | None) -> tuple[Tensor, Tensor, Carry]:
        """Loss [] in nats per symbol, norm [] of the gradient before clipping, and the carry.

        x, y: int64[B, T]. The mean of the losses over the ranks is the mean over all lanes, however many
        lanes each rank has: so are the gradients, which accelerate averages.
        """
        carry = carry or self.model.zeros(len(x))
        if not self.records:
            return self._forward_backward(x, y, carry)
        if self.recorded is None:
            self.recorded = Recorded(self._forward_backward, self.model, x, y, carry)
        return self.recorded(x, y, carry)

    def _forward_backward(self, x: Tensor, y: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Carry]:
        lanes_per_rank = self.config.train.batch_size / self.world
        slices = min(self.slices, len(x))
        if slices == 1 and len(x) == lanes_per_rank:
            loss, carry = self.wrapped(x, carry, y)
            self.accelerator.backward(loss)
            return loss.detach(), self._clip(), carry
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
        return torch.stack(losses).sum(), self._clip(), carry

    def _clip(self) -> Tensor:
        """Clip the gradient; returns its norm [] before."""
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients()
        clip = self.config.optim.clip
        if clip is None:
            return nn.utils.get_total_norm([p.grad for p in self.parameters])
        return nn.utils.clip_grad_norm_(self.parameters, clip)
