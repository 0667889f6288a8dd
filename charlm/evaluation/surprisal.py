"""How surprised a model is by every character of a text.

The surprisal of a character is -log2 of the probability that the model gave it before it read it. A character
that the vocabulary spells in bytes costs what its bytes cost together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.evaluation.evaluate import LN2, Sums
from charlm.model.char_lm import CharLM

WINDOW = 1024  # symbols per forward call; has no influence on the figures


@dataclass(frozen=True)
class Score:
    """What a model makes of a text. The figures are over the characters that were predicted: all of them,
    or all but the first where nothing comes before it."""

    text: str
    bits: np.ndarray
    """float64[len(text)]: the surprisal of every character in bits; NaN for a first one not predicted."""
    nats_per_character: float
    bpc: float
    """Bits per character: the mean of bits. (Of a bytes-only model, evaluate() counts bytes instead.)"""
    bpb: float
    """Bits per byte of UTF-8: the figure that compares across vocabularies."""
    perplexity: float
    """Per character."""
    characters: int
    """Characters that were predicted."""
    bytes: int
    """Their bytes in UTF-8."""


@torch.inference_mode()
def score(model: CharLM, vocab: Vocab, text: str, context: str = "") -> Score:
    """Score a text, read once from its start with the carry handed on, without dropout.

    context: text that is read first, from a carry of zeros, and not counted. The first character is scored
    from the carry after it; without a context, from the carry after the end-of-document symbol; and where the
    vocabulary has none, not at all. From the second character on, this is evaluate() in one lane.
    Raises CharlmError for a text without a character to predict, and for a character that a closed vocabulary
    does not have.
    """
    before, ids = vocab.encode(context), vocab.encode(text)
    if not len(before) and vocab.end is not None:
        before = np.array([vocab.end], vocab.dtype)  # what comes before a document
    if len(text) < (1 if len(before) else 2):
        what = "the text is empty" if not text else f"the text is {text!r} alone, with nothing before it"
        raise CharlmError(f"{what}: there is nothing to predict; give more text, or a context")
    nats = _nats(model, np.concatenate([before, ids]))[-len(ids) :]  # of every symbol of the text
    utf8 = np.frombuffer(text.encode("utf-8"), np.uint8)
    at = np.cumsum((utf8 & 0xC0) != 0x80) - 1  # the character that a byte belongs to
    sizes = vocab.bytes_per_symbol[ids].astype(np.int64)
    bits = np.bincount(at[np.cumsum(sizes) - sizes], nats / LN2, len(text))
    counted = slice(0 if len(before) else 1, None)
    size = len(text[counted].encode("utf-8"))
    told = Sums(float(bits[counted].sum()) * LN2, len(ids), len(text[counted]), size).figures()
    del told["symbols"]
    return Score(text, bits, **told)


def _nats(model: CharLM, ids: np.ndarray) -> np.ndarray:
    """float64[n]: what every id costs after those before it; NaN for the first."""
    stream = torch.from_numpy(ids.astype(np.int64)).to(model.device)[None]
    parts, carry = [torch.full((1,), torch.nan, dtype=torch.float64)], None
    training = model.training
    model.eval()
    try:
        for x, y in zip(stream[:, :-1].split(WINDOW, 1), stream[:, 1:].split(WINDOW, 1), strict=True):
            nats, carry = model(x, carry, y, reduction="none")
            parts.append(nats[0].double().cpu())  # sync
    finally:
        model.train(training)
    return torch.cat(parts).numpy()
