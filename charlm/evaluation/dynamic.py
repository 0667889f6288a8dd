"""Dynamic evaluation: the weights adapt to the text that has been read (Krause et al. 2018).

The text is read in one lane, window by window. Each window is scored with the weights as they are; then they
take one step down the gradient of its loss, and a small step back to the trained weights:

    w ← w - rate · g / sqrt(mean of g²) ;   w ← w + decay · (trained w - w)

So no figure knows anything of the text behind its window. The mean of g² runs over the windows read so far:
the paper takes it over training text, which a model that came without its corpus has not got.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from charlm.config.fields import EvaluateConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.evaluation.evaluate import Sums, evaluate, sizes, take
from charlm.model.char_lm import CharLM

WINDOW = 32  # characters between two steps; shorter ones gain a little and take longer
RATE, DECAY = 5e-4, 1e-3  # chosen on tiny Shakespeare's validation, see configs/LOG.md
MEMORY = 0.99  # of the running mean of squared gradients


def evaluate_dynamic(
    model: CharLM, vocab: Vocab, ids: np.ndarray, config: EvaluateConfig, rate: float, decay: float
) -> dict:
    """Score a model on a text, in one lane: with the weights as they are, and with weights that adapt.

    ids: uint8[n] or uint16[n]. rate: of a step, 0 or more. decay: the part of the way back to the trained
    weights that is gone after every step, from 0 to 1. Of config only bptt is used.
    Returns the figures of evaluate in one lane, and under "dynamic" those of adapting weights with the rate,
    decay and window. The model is left as it was: a copy adapts.
    Raises CharlmError for a rate or decay out of range, and a text of fewer than 2 symbols.
    """
    if not (rate >= 0 and math.isfinite(rate)):
        raise CharlmError(f"--dynamic_rate {rate}: must be 0 or more, such as {RATE}")
    if not 0 <= decay <= 1:
        raise CharlmError(f"--dynamic_decay {decay}: must be from 0 to 1, such as {DECAY}")
    plain = evaluate(model, vocab, ids, EvaluateConfig(lanes=1, context=0, bptt=config.bptt))
    nats = math.fsum(window.sum(dtype=np.float64) for window in adapting(model, ids, rate, decay))
    figures = Sums(nats, *sizes(vocab, ids[1:])).figures()
    told = {name: figures[name] for name in ("nats_per_character", "bpc", "bpb", "perplexity")}
    return plain | {"dynamic": told | {"rate": rate, "decay": decay, "window": WINDOW}}


def adapting(model: CharLM, ids: np.ndarray, rate: float, decay: float) -> Iterator[np.ndarray]:
    """What the predictions of each window cost: float32[WINDOW] in nats, the last one perhaps shorter."""
    adapted = copy.deepcopy(model).eval().to(model.device)  # which lays the copied weights out for cuDNN
    for module in adapted.modules():
        if isinstance(module, nn.RNNBase):
            module.train()  # cuDNN has a backward in training mode only; dropout lies outside of these layers
    weights = list(adapted.parameters())
    trained = [p.detach().clone() for p in weights]
    step = torch.optim.Adam(
        weights, rate, betas=(0.0, MEMORY), fused=True
    )  # without momentum: the rule above
    targets, carry = len(ids) - 1, None
    for low in range(0, targets, WINDOW):
        at = np.arange(low, min(low + WINDOW, targets))[None]
        x, y = take(ids, at, model.device), take(ids, at + 1, model.device)
        with torch.enable_grad():
            nats, carry = adapted(x, carry, y, reduction="none")
            step.zero_grad()
            nats.mean().backward()
        yield nats.detach().float().cpu().numpy()[0]
        step.step()
        with torch.no_grad():
            torch._foreach_lerp_(weights, trained, decay)
