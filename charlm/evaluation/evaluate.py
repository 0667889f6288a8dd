"""Figures: nats, characters and bytes are summed, over lanes, windows and ranks, and divided once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from charlm.config.fields import EvaluateConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM
from charlm.model.device import keep_freed_memory

LN2 = math.log(2)


@dataclass
class Sums:
    """What a pass over text adds up. nats: the loss; the others: what it was counted on."""

    nats: float = 0.0
    symbols: float = 0
    characters: float = 0
    bytes: float = 0

    def figures(self) -> dict[str, float]:
        """nats/char, bits per character (bpc), bits per byte (bpb), perplexity per character, and counts.

        The cost of end-of-document symbols is in the nats; they count as no character and no byte.
        """
        characters, size = max(self.characters, 1), max(self.bytes, 1)
        nats = self.nats / characters
        return {
            "nats_per_character": nats,
            "bpc": nats / LN2,
            "bpb": self.nats / size / LN2,
            "perplexity": math.exp(min(nats, 700.0)),
            "symbols": int(self.symbols),
            "characters": int(self.characters),
            "bytes": int(self.bytes),
        }


# Evaluation: one stateful pass over ids, every symbol but the first predicted once.
#
# The targets are cut into lanes that are read side by side. Before its first counted target a lane reads
# `context` symbols, so that its carry is warm:
#
#     text      a b c d e f g h i j k l m            targets b … m
#     lane 0    a→b b→c c→d d→e e→f f→g              starts the text: its carry is zero
#     lane 1        (d→e e→f f→g) g→h h→i …  l→m     3 symbols of context, not counted
#
# With one lane this is the exact single pass.


@torch.inference_mode()
def evaluate(
    model: CharLM,
    vocab: Vocab,
    ids: np.ndarray,
    config: EvaluateConfig,
    *,
    rank: int = 0,
    world: int = 1,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict:
    """Score a model on a text.

    ids: uint8[n] or uint16[n]. With several ranks each reads its share of the lanes and `reduce` adds up
    float64[4] over them. Returns Sums.figures() and the protocol: lanes and context.
    Raises CharlmError for a text of fewer than 2 symbols.
    """
    targets = len(ids) - 1
    if targets < 1:
        raise CharlmError(f"a text of {len(ids)} symbol(s) cannot be evaluated: predicting takes 2 or more")
    lanes = max(1, min(config.lanes, targets // max(config.context, 1)))  # no lane shorter than its context
    length = -(-targets // lanes)  # targets per lane, rounded up; the last lanes may have fewer
    lanes = -(-targets // length)
    context = min(config.context, length) if lanes > 1 else 0
    mine = np.arange(lanes)[lanes * rank // world : lanes * (rank + 1) // world]
    sums = torch.zeros(4, dtype=torch.float64, device=model.device)
    if len(mine):
        training = model.training
        model.eval()
        try:
            with keep_freed_memory(model.device):
                sums[0] = _nats(model, ids, config, mine, length, context)
        finally:
            model.train(training)
        counted = ids[mine[0] * length + 1 : min((mine[-1] + 1) * length, targets) + 1]
        sums[1:] = torch.tensor(sizes(vocab, counted), dtype=torch.float64)
    if reduce is not None:
        sums = reduce(sums)
    return Sums(*sums.tolist()).figures() | {"lanes": lanes, "context": context}


def _nats(
    model: CharLM, ids: np.ndarray, config: EvaluateConfig, mine: np.ndarray, length: int, context: int
) -> torch.Tensor:
    """float64 []: what the targets of some lanes cost together; mine: their numbers."""
    carry, targets = None, len(ids) - 1
    if context:
        for low in range(-context, 0, config.bptt):
            at = mine[:, None] * length + np.arange(low, min(low + config.bptt, 0))
            _, carry = model(take(ids, at, model.device), carry)
        for state in carry:
            state[:, mine == 0] = 0  # the first lane starts the text
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    for low in range(0, length, config.bptt):
        at = mine[:, None] * length + np.arange(low, min(low + config.bptt, length) + 1)
        both = take(ids, at, model.device)
        nats, carry = model(both[:, :-1], carry, both[:, 1:], reduction="none")
        at = at[:, :-1]
        if at[-1, -1] >= targets:  # the last lanes may be shorter
            nats = nats.masked_fill(torch.from_numpy(at >= targets).to(model.device), 0)
        total += nats.double().sum()
    return total


def sizes(vocab: Vocab, ids: np.ndarray) -> tuple[int, int, int]:
    """Symbols, characters and bytes in ids: what the cost of predicting them is divided by."""
    each = np.bincount(ids, minlength=len(vocab))
    characters, size = (
        each @ per.astype(np.int64) for per in (vocab.characters_per_symbol, vocab.bytes_per_symbol)
    )
    return len(ids), int(characters), int(size)


def take(ids: np.ndarray, at: np.ndarray, device: torch.device) -> torch.Tensor:
    """ids at positions, int64 on the device; positions outside the text repeat its ends (never counted)."""
    return torch.from_numpy(ids[np.clip(at, 0, len(ids) - 1)].astype(np.int64)).to(device)
