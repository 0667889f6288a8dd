"""The kinds of training that `bench.py quality` compares, step by step: charlm, the textbook, the GPT."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from gpt import GPT, GPTConfig, gpt_optimizer, score_gpt, windows_at
from rounds import Textbook, device
from torch import Tensor, nn

from charlm.config.fields import Config, OptimConfig
from charlm.corpus.prepared import prepare
from charlm.errors import CharlmError
from charlm.evaluation.evaluate import evaluate
from charlm.model.char_lm import CharLM
from charlm.model.pretrained import load_weights, weights_of
from charlm.training.lanes import Lanes
from charlm.training.loop import train_step
from charlm.training.optimizer import set_learning_rate
from charlm.training.run import State
from charlm.training.setup import make_accelerator, set_up

WARM_UP = 3  # steps: they record or compile, and choose kernels


def low_precision() -> torch.autocast:
    """bf16 on a GPU, nothing on a CPU."""
    return torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda")


class Trial:
    """A training. symbols: that a step reads; optim: its schedule, which the caller follows."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    optim: OptimConfig
    symbols: int

    def begin(self) -> None:
        """Put the data and what a step hands to the next at their start."""
        raise NotImplementedError

    def read(self) -> None:
        """What is done with the training text before the first step, in the seconds of training."""

    def step(self, rate: float) -> Tensor:
        """A step at a learning rate. Returns the loss [] in nats per symbol."""
        raise NotImplementedError

    def score(self, ids: np.ndarray) -> dict:
        """The figures of a text, as evaluate() returns them."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """Steps at rate 0, which leave the weights as they are; then all else is put at its start."""
        self.begin()
        for _ in range(WARM_UP):
            self.step(0.0)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()  # in place: a recorded step may hold it
        self.begin()

    def close(self) -> None:
        """Let go of what a compiler holds of it."""


class CharlmTrial(Trial):
    """charlm's own set_up and train_step."""

    def __init__(self, config: Config):
        self.optim, self.config = config.optim, copy(config)
        # learning_rate() of a constant schedule is optim.learning_rate, which step() sets.
        self.config.optim = replace(config.optim, schedule="constant", warmup_steps=0)
        AcceleratorState._reset_state()  # the trial before may have had another precision
        self.setup = set_up(self.config, make_accelerator(config), lambda line: None)
        self.model, self.optimizer = self.setup.model, self.setup.optimizer
        self.symbols = config.train.batch_size * config.train.bptt

    def begin(self) -> None:
        self.state = State()
        torch.manual_seed(self.config.train.seed + 1)
        if self.setup.average is not None:
            load_weights(self.setup.average.model, weights_of(self.model), "the average")

    def read(self) -> None:
        if self.model.ngrams is not None:
            self.model.ngrams.count(self.setup.corpus["train"])

    def step(self, rate: float) -> Tensor:
        self.config.optim.learning_rate = rate
        train_step(self.config, self.setup, self.state)
        return self.state.losses.pop()

    def score(self, ids: np.ndarray) -> dict:
        return evaluate(self.setup.evaluated, self.setup.corpus.vocab, ids, self.config.evaluate)


class Evaluated(Textbook):
    """The textbook's model with what evaluate() needs: nats instead of logits, and autocast."""

    device, evaluating, recall = CharLM.device, CharLM.evaluating, None

    def forward(self, ids: Tensor, carry=None, targets: Tensor | None = None, reduction: str = "mean"):
        with low_precision():
            logits, carry = super().forward(ids, carry)
            nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
        return nats.view(targets.shape) if reduction == "none" else nats, carry


class TextbookTrial(Trial):
    """torch's modules and AdamW, the carry detached window by window.

    Of the config it reads embedding_size, hidden_size, num_layers, learning_rate, betas, weight_decay,
    schedule, final_ratio, clip, batch_size, bptt, seed and the data.
    """

    def __init__(self, config: Config):
        model, self.train, self.evaluate = config.model, config.train, config.evaluate
        if model.cell != "lstm" or not model.embedding_size:
            raise CharlmError("the textbook is for model.cell=lstm with an embedding")
        self.corpus, self.optim = prepare(config), config.optim
        place = {"seed": self.train.seed, "device": device()}
        self.lanes = Lanes(self.corpus["train"], self.train.batch_size, self.train.bptt, **place)
        torch.manual_seed(self.train.seed)
        sizes = (model.hidden_size, model.num_layers, len(self.corpus.vocab), model.embedding_size)
        self.model = Evaluated("lstm", *sizes).to(device())
        options = {"betas": self.optim.betas, "eps": self.optim.eps, "weight_decay": self.optim.weight_decay}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True, **options)
        self.symbols = self.train.batch_size * self.train.bptt

    def begin(self) -> None:
        self.state = State()

    def step(self, rate: float) -> Tensor:
        set_learning_rate(self.optimizer, rate)
        x, y = self.lanes.window(self.state.position)
        loss, carry = self.model(x, self.state.carry, y)
        loss.backward()
        if self.optim.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        carry = tuple(c.detach() for c in carry)
        self.state.advance(loss.detach(), carry, self.lanes.after(self.state.position))
        return self.state.losses.pop()

    def score(self, ids: np.ndarray) -> dict:
        return evaluate(self.model, self.corpus.vocab, ids, self.evaluate)


class GPTTrial(Trial):
    """A GPT on windows drawn at random. Of charlm's config it reads the data and train.seed."""

    def __init__(self, config: Config, gpt: GPTConfig):
        self.corpus, self.gpt, self.seed = prepare(config), gpt, config.train.seed
        self.ids = self.corpus["train"]
        if len(self.ids) <= gpt.block:
            raise CharlmError(f"the text has {len(self.ids):,} symbols, too few for a block of {gpt.block}")
        rates = {"learning_rate": gpt.learning_rate, "final_ratio": gpt.final_ratio}
        self.optim = OptimConfig(schedule="cosine", **rates)
        torch.manual_seed(self.seed)
        self.model = GPT(gpt, len(self.corpus.vocab)).to(device())
        self.compiled = torch.compile(self.model) if gpt.compile else self.model
        self.optimizer = gpt_optimizer(self.model, gpt)
        self.symbols = gpt.batch * gpt.block

    def begin(self) -> None:
        self.draw = np.random.default_rng(self.seed)

    def step(self, rate: float) -> Tensor:
        set_learning_rate(self.optimizer, rate)
        starts = self.draw.integers(0, len(self.ids) - self.gpt.block, self.gpt.batch)
        x, y = windows_at(self.ids, starts, self.gpt.block)
        if device().type == "cuda":  # copied while the step before is computed
            x, y = (t.pin_memory().to(device(), non_blocking=True) for t in (x, y))
        with low_precision():
            loss = self.compiled(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.gpt.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def score(self, ids: np.ndarray) -> dict:
        stride = self.gpt.stride or max(self.gpt.block // 2, 1)
        return score_gpt(self.model, self.corpus.vocab, ids, self.gpt.block, stride, low_precision())

    def close(self) -> None:
        if self.gpt.compile:
            torch._dynamo.reset()
