"""Look at a model while it reads: what surprises it, what it would have guessed, what its cells do.

Shapes: N stretches of text read side by side, T symbols each; V vocabulary; C = L·H cells, layer after layer.
A cell's value is c of an LSTM, h of a GRU or RNN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM
from charlm.report.marks import plain
from charlm.report.text_facts import Agreement, detect

PASSAGE, STRETCHES = 2000, 12  # symbols of a stretch, and how many of them are read
WARM_UP = 50  # symbols at the start of a stretch that agreement is not counted on: the carry is cold
GUESSES = 5


@dataclass
class Look:
    """What a model did with a passage, and its cells with all the stretches.

    ids: int64[T], the passage. bits: float64[T], what each symbol cost, NaN for the first, which nothing
    foretells. guesses, chances: int64[T, 5], float64[T, 5], the likeliest before each was read. cells:
    float16[T, C], after each was read. to_choose, to_score: float64[detectors, C], correlations, from the
    first and the second half of every stretch. symbols: how many they are from, all in all.
    """

    ids: np.ndarray
    bits: np.ndarray
    guesses: np.ndarray
    chances: np.ndarray
    cells: np.ndarray
    to_choose: np.ndarray
    to_score: np.ndarray
    symbols: int


def stretches(ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """int64[N, T + 1]: evenly spread over a text, each from the symbol that ends a line or document, where
    there is one near. ids: of any length from 2. starts: bool[V], the symbols that end lines and documents.
    """
    if len(ids) < 2:
        raise CharlmError(f"a text of {len(ids)} symbol(s) is too short to look at: it takes 2 or more")
    length = min(PASSAGE, len(ids) - 1)
    count = max(1, min(STRETCHES, (len(ids) - 1) // length))
    found = []
    for k in range(count):
        at = k * (len(ids) - length - 1) // max(count - 1, 1)
        near = np.flatnonzero(starts[ids[at : min(at + 400, len(ids) - length)]]) if k else ()
        at += int(near[0]) if len(near) else 0
        found.append(ids[at : at + length + 1].astype(np.int64))
    return np.stack(found)


@torch.inference_mode()
def look(model: CharLM, vocab: Vocab, ids: np.ndarray) -> Look:
    """Read a text, of which the passage is the stretch where the detectors find most.

    ids: as the corpus keeps them, of any length from 2: a huge text costs no more than a small one.
    Raises CharlmError for fewer, and for a model whose logits are not finite.
    """
    letters = plain(vocab)
    texts = stretches(ids, np.array([c in "\n\0" for c in letters]))
    facts = np.stack([detect("".join(letters[i] for i in text[:-1])) for text in texts])  # [N, T, detectors]
    best = int(_eventful(facts).argmax())
    order = [best, *(k for k in range(len(texts)) if k != best)]
    texts, facts = texts[order], facts[order]
    training = model.training
    model.eval()
    try:
        return _read(model, texts, facts)
    finally:
        model.train(training)


def _eventful(facts: np.ndarray) -> np.ndarray:
    """float[N]: in how many detectors a stretch has its share of what changes."""
    spread, most = facts.std(1), facts.std((0, 1))
    return np.minimum(spread / np.where(most > 0, most, 1), 1).sum(1)


def _read(model: CharLM, texts: np.ndarray, facts: np.ndarray) -> Look:
    count, length = texts.shape[0], texts.shape[1] - 1
    carry = model.zeros(count)
    size = carry[0].shape[0] * carry[0].shape[2]
    top = min(GUESSES, model.vocab_size)
    bits, cells = np.full(length, np.nan), np.empty((length, size), np.float16)
    guesses, chances = np.zeros((length, top), np.int64), np.zeros((length, top))
    agreement, window = Agreement(size), []
    warm = min(WARM_UP, length // 4)
    for t in range(length):
        logits, carry = model.step(torch.from_numpy(texts[:, t]).to(model.device), carry)
        if t + 1 < length:
            nats = -torch.log_softmax(logits[0].double(), -1).cpu().numpy()  # sync
            if not np.isfinite(nats).all():
                raise CharlmError("the model's logits are not finite: take weights from before it diverged")
            bits[t + 1] = nats[texts[0, t + 1]] / np.log(2)
            likeliest = np.argpartition(nats, top - 1)[:top]
            guesses[t + 1] = likeliest[np.argsort(nats[likeliest], kind="stable")]
            chances[t + 1] = np.exp(-nats[guesses[t + 1]])
        now = carry[-1].transpose(0, 1).reshape(count, size).float().cpu().numpy()  # [N, C]
        cells[t] = now[0]
        if t >= warm:
            window.append(now)
        if window and (len(window) == 100 or t == length - 1):
            since, half = t + 1 - len(window), int(2 * t >= length + warm)
            read = np.stack(window, axis=1)  # [N, ≤ 100, C]
            agreement.add(half, facts[:, since : t + 1].reshape(-1, facts.shape[2]), read.reshape(-1, size))
            window.clear()
    to_choose, to_score = agreement.correlations()
    symbols = count * (length - warm)
    return Look(texts[0, :-1], bits, guesses, chances, cells, to_choose, to_score, symbols)
