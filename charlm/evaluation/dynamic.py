"""Dynamic evaluation: the weights adapt to the text that has been read (Krause et al. 2018).

The text is read in one lane, window by window. Each window is scored with the weights as they are; then they
take one step down the gradient of its loss, and a small step back to the trained weights:

    w ← w - rate · g / sqrt(mean of g²) ;   w ← w + decay · (trained w - w)

So no figure depends on the text behind its window. The mean of g² runs over the windows read so far: the
paper takes it over training text, which a model without its corpus does not have.
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
from charlm.evaluation.evaluate import counts, evaluate, figures_of, windows
from charlm.model.char_lm import CharLM

WINDOW = 32  # characters between two steps; shorter ones gain a little and take longer
RATE, DECAY = 5e-4, 1e-3  # chosen on tiny Shakespeare's validation, see configs/LOG.md
MEMORY = 0.99  # of the running mean of squared gradients


def evaluate_dynamic(
    model: CharLM, vocab: Vocab, ids: np.ndarray, config: EvaluateConfig, rate: float, decay: float
) -> dict:
    """Score a model on a text, in one lane: with the weights as they are, and with weights that adapt.

    ids: uint8[n] or uint16[n]. rate: of a step, 0 or more. decay: share of the difference to the trained
    weights that every step takes back, from 0 to 1. Of config only bptt is used.
    Returns the figures of evaluate in one lane, and under "dynamic" those of adapting weights with the rate,
    decay and window. The model is not changed: a copy adapts.
    Raises CharlmError for a rate or decay out of range, and a text of fewer than 2 symbols.
    """
    if not (rate >= 0 and math.isfinite(rate)):
        raise CharlmError(f"--dynamic_rate {rate}: must be 0 or more, such as {RATE}")
    if not 0 <= decay <= 1:
        raise CharlmError(f"--dynamic_decay {decay}: must be from 0 to 1, such as {DECAY}")
    plain = evaluate(model, vocab, ids, EvaluateConfig(lanes=1, context=0, bptt=config.bptt))
    nats = math.fsum(window.sum(dtype=np.float64) for window in adapted_nats(model, ids, rate, decay))
    figures = figures_of(nats, *counts(vocab, ids[1:]))
    adapted = {name: figures[name] for name in ("nats_per_character", "bpc", "bpb", "perplexity")}
    return plain | {"dynamic": adapted | {"rate": rate, "decay": decay, "window": WINDOW}}


@torch.enable_grad()
def adapted_nats(model: CharLM, ids: np.ndarray, rate: float, decay: float) -> Iterator[np.ndarray]:
    """The nats of the predictions of each window: float32[WINDOW], the last one perhaps shorter."""
    adapted = copy.deepcopy(model).eval().to(model.device)  # lays the copied weights out for cuDNN
    for module in adapted.modules():
        if isinstance(module, nn.RNNBase):
            module.train()  # cuDNN has a backward in training mode only; dropout lies outside of these layers
    weights = list(adapted.parameters())
    trained = [p.detach().clone() for p in weights]
    optimizer = torch.optim.Adam(weights, rate, (0.0, MEMORY), fused=True)  # no momentum: the rule above
    for _, nats in windows(adapted, ids, np.zeros(1, np.int64), len(ids) - 1, WINDOW):
        optimizer.zero_grad()
        nats.mean().backward()
        yield nats.detach().cpu().numpy()[0]
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(weights, trained, decay)
