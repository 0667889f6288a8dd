"""Dynamic evaluation: the weights adapt to the text that has been read (Krause et al. 2018).

The text is read window by window, in one lane as in the paper or in several side by side. A window of all
lanes is scored with the weights as they are; then they take one step down the gradient of its mean loss, and
a small step back to the trained weights:

    w ← w - rate · g / sqrt(mean of g²) ;   w ← w + decay · (trained w - w)

So no figure depends on the window itself or on what its lane reads later. With several lanes the weights
have seen the parts that the other lanes have read, also those behind this one in the text: another protocol,
in which the number of lanes belongs to the figure. What warms up the carry of a lane changes no weight.

The mean of g² runs over the windows read so far: the paper takes it over training text, which a model
without its corpus does not have.
"""

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from charlm.config.fields import EvaluateConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.evaluation.evaluate import counts, evaluate, figures_of, lanes_of, targets_of, windows
from charlm.model.char_lm import Carry, CharLM
from charlm.model.device import Recorded, float64_device, keep_freed_memory

WINDOW = 32  # characters between two steps; shorter ones gain a little and take longer
RATE, DECAY = 5e-4, 1e-3  # chosen on tiny Shakespeare's validation, see configs/LOG.md
MEMORY = 0.99  # of the running mean of squared gradients


def evaluate_dynamic(
    model: CharLM,
    vocab: Vocab,
    ids: np.ndarray,
    config: EvaluateConfig,
    rate: float | None = None,
    decay: float = DECAY,
    lanes: int = 1,
    window: int = WINDOW,
) -> dict:
    """Score a model on a text: with the weights as they are, and with weights that adapt.

    ids: uint8[n] or uint16[n]. rate: of a step, ≥ 0; None: RATE · √lanes, at most 4 · RATE. decay: share
    of the difference to the trained weights that every step takes back, from 0 to 1. lanes: read side by
    side, at most so many. window: characters of each lane between two steps. Of config, bptt is used, and
    context with several lanes.
    Returns the figures of evaluate in these lanes, and under "dynamic" those of adapting weights with the
    lanes, rate, decay and window. The model is not changed: a copy adapts.
    Raises CharlmError for an option out of range, and a text of fewer than 2 symbols.
    """
    for name, value in (("lanes", lanes), ("window", window)):
        if value < 1:
            raise CharlmError(f"--dynamic_{name} {value}: must be 1 or more")
    if rate is not None and not (rate >= 0 and math.isfinite(rate)):
        raise CharlmError(f"--dynamic_rate {rate}: must be 0 or more, such as {RATE}")
    if not 0 <= decay <= 1:
        raise CharlmError(f"--dynamic_decay {decay}: must be from 0 to 1, such as {DECAY}")
    config = EvaluateConfig(lanes=lanes, context=config.context, bptt=config.bptt)
    plain = evaluate(model, vocab, ids, config)
    if rate is None:  # several lanes take fewer steps, along less noisy gradients: see configs/LOG.md
        rate = RATE * min(math.sqrt(plain["lanes"]), 4.0)
    total = torch.zeros((), dtype=torch.float64, device=float64_device(model.device))
    with keep_freed_memory(model.device):
        for nats in adapted_nats(model, ids, rate, decay, lanes, window, config.context):
            total += nats.to(total.device).double().sum()
    figures = figures_of(total.item(), *counts(vocab, ids[1:]))
    adapted = {name: figures[name] for name in ("nats_per_character", "bpc", "bpb", "perplexity")}
    protocol = {"lanes": plain["lanes"], "window": window, "rate": rate, "decay": decay}
    return plain | {"dynamic": adapted | protocol}


@torch.no_grad()
def adapted_nats(
    model: CharLM, ids: np.ndarray, rate: float, decay: float, lanes: int, window: int, context: int
) -> Iterator[Tensor]:
    """The nats of the predictions of each window: float32[N, window], the last one perhaps shorter."""
    starts, length, context = lanes_of(targets_of(ids), lanes, context)
    adapting = _Adapting(model, rate, decay)
    yield from windows(adapting.model, ids, starts, length, window, context, adapting)


class _Adapting:
    """A copy of a model, called as the model is, whose weights take a step after each window. A GPU records
    the first window with its step, and replays it for all of the same shape."""

    def __init__(self, model: CharLM, rate: float, decay: float):
        self.model = copy.deepcopy(model).eval().to(model.device)  # lays the weights out for cuDNN
        for module in self.model.modules():
            if isinstance(module, nn.RNNBase):
                module.train()  # cuDNN has a backward in training mode only; dropout lies outside
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.trained, self.decay = [p.detach().clone() for p in self.weights], decay
        options = {"fused": True, "capturable": model.device.type == "cuda"}
        self.optimizer = torch.optim.Adam(self.weights, rate, (0.0, MEMORY), **options)  # no momentum
        self.recorded: Recorded | None = None

    def __call__(self, x: Tensor, carry: Carry | None, y: Tensor, reduction: str) -> tuple[Tensor, Carry]:
        """x, y: int64[N, T]. The carry is overwritten by the next call, the nats [N, T] are not."""
        given = (x, y, *(carry or self.model.zeros(len(x))))
        if x.is_cuda and self.recorded is None:
            self.recorded = Recorded(self._step, *given, record=True)
            torch._foreach_copy_(self.weights, self.trained)  # recording has taken steps
            torch._foreach_zero_([t for state in self.optimizer.state.values() for t in state.values()])
        if self.recorded is None or x.shape != self.recorded.inputs[0].shape:
            return self._step(*given)
        nats, carry = self.recorded(*given)
        return nats.clone(), carry

    def _step(self, x: Tensor, y: Tensor, *carry: Tensor) -> tuple[Tensor, Carry]:
        self.optimizer.zero_grad()  # to None: a recording then always writes the same tensors
        with torch.enable_grad():
            nats, carry = self.model(x, carry, y, "none")
            (nats.sum() / (y >= 0).sum()).backward()
        self.optimizer.step()
        torch._foreach_lerp_(self.weights, self.trained, self.decay)
        return nats.detach(), carry
