"""Floors: what simple models score on the validation split, so that trained figures have a reference.

There are three: symbol frequencies (unigram), an n-gram with Witten-Bell smoothing, and the compressor xz.
They depend on nothing but the ids; time and memory stop growing with the corpus.

The n-gram's counts are exact: nothing is hashed. All text lies in one array, a border before every piece:

    | t h e   c a t | s a t   o n | t h e   m a t
      train block 0   block 1       held out

Positions are in groups, one for every context. At order 1 all are in one group; from order n to n + 1 each
group is split by the symbol n places back. Dropped on the way are contexts that the held-out text never asks
for, and positions with a border n places back, whose context is shorter.
"""

from __future__ import annotations

import lzma
import math
from functools import cache

import numpy as np

from charlm.corpus.vocabulary import Vocab

# Of a larger training split, 512 blocks of 32,768 symbols are counted: seconds and 200 MB, whatever its size.
# From all over it, for text is seldom alike from end to end; few and long, for it may lie on a network disk.
TRAIN_BLOCKS, TRAIN_BLOCK = 512, 1 << 15
# Of a larger held-out split, the start is scored: enough to know bpc within some thousandths, and for xz,
# which begins with nothing learnt, to have learnt a good deal.
HELD_OUT_SYMBOLS = 1_000_000
# One more order must save this many nats per symbol, or it is not taken and none beyond it is tried: past its
# best, Witten-Bell smoothing loses with every order. (The best is 5 for 1 MB of Shakespeare, 6 for 4 MB of
# enwik8.)
MIN_GAIN = 0.005
MAX_ORDER = 8


def unigram(train_counts: np.ndarray, held_out_counts: np.ndarray, vocab: Vocab) -> dict[str, float]:
    """What the simplest model scores: symbol frequencies of the training split, one added to each.

    train_counts, held_out_counts: int64[V], how often each symbol occurs. Returns nats_per_character, bpc and
    bpb.
    """
    share = (train_counts + 1) / (train_counts.sum() + len(vocab))
    return _figures(-float(held_out_counts @ np.log(share)), held_out_counts, vocab)


def ngram(train: np.ndarray, held_out: np.ndarray, vocab: Vocab) -> dict[str, int | float | str]:
    """What an interpolated n-gram scores; n is raised as long as that serves the held-out text.

    train, held_out: ids, uint8 or uint16, of any length, or what slices to them. Returns order (n, so
    contexts have n - 1 symbols), smoothing, train_symbols and held_out_symbols (how many were counted and
    scored, see the limits above), nats_per_character, bpc, bpb.

    With c(h, w) the count of symbol w after context h, c(h) their sum, T(h) the number of distinct w after h:

        p_n(w | h) = (c(h, w) + T(h) p_{n-1}(w | h')) / (c(h) + T(h))      h' is h without its first symbol

    p_0 is uniform over the vocabulary; p_n is p_{n-1} where training has no h, or the held-out text begins
    within h. (Witten and Bell 1991, "The zero-frequency problem", method C; interpolated as in Chen and
    Goodman 1998, "An empirical study of smoothing techniques for language modeling".)
    """
    score, refine = _kernels()
    blocks = _blocks(train)
    held_out = held_out[:HELD_OUT_SYMBOLS]
    border = np.array([len(vocab)], np.uint16)
    text = np.concatenate([part for piece in [*blocks, held_out] for part in (border, piece)])
    start = len(text) - len(held_out)
    at = np.arange(len(text), dtype=np.int32)[text != border]
    bounds = np.array([0, len(at)])
    p = np.full(len(held_out), 1 / len(vocab))
    count = np.zeros(len(vocab), np.int64)
    group_of = np.full(len(vocab) + 1, -1)  # one more: the border, which is in no group
    order, nats = 0, math.inf
    while order < MAX_ORDER:
        if order:
            at, bounds = refine(text, start, at, bounds, order, group_of, len(held_out))
        score(text, start, at, bounds, count, p)
        now = 0.0 - float(np.log(p).sum())  # not -0.0 for a certainty
        if nats - now <= MIN_GAIN * len(held_out):
            break
        order, nats = order + 1, now
    return {
        "order": order,
        "smoothing": "Witten-Bell",
        "train_symbols": sum(map(len, blocks)),
        "held_out_symbols": len(held_out),
        **_figures(nats, np.bincount(held_out, minlength=len(vocab)), vocab),
    }


def xz(held_out: np.ndarray, vocab: Vocab) -> dict[str, int | float]:
    """What xz makes of the held-out text alone, headers and checksum included.

    held_out: ids, uint8 or uint16. Returns held_out_bytes (compressed: see the limit above),
    nats_per_character, bpc, bpb. The ends of documents have no bytes, so they cost nothing here.
    """
    held_out = held_out[:HELD_OUT_SYMBOLS]
    text = vocab.decode_bytes(held_out)
    bits = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    counts = np.bincount(held_out, minlength=len(vocab))
    return {"held_out_bytes": len(text), **_figures(bits * math.log(2), counts, vocab)}


def _figures(nats: float, counts: np.ndarray, vocab: Vocab) -> dict[str, float]:
    """A sum of nats, divided once. counts: int64[V] of the symbols that it was summed over."""
    characters = int(counts @ vocab.characters_per_symbol)
    size = int(counts @ vocab.bytes_per_symbol)
    per_character = nats / max(characters, 1)
    return {
        "nats_per_character": per_character,
        "bpc": per_character / math.log(2),
        "bpb": nats / max(size, 1) / math.log(2),
    }


def _blocks(train: np.ndarray) -> list[np.ndarray]:
    """The whole, or blocks evenly spread over it, the first at its start and the last at its end."""
    spare = len(train) - TRAIN_BLOCKS * TRAIN_BLOCK
    if spare <= 0:
        return [train[:]]
    starts = (k * TRAIN_BLOCK + k * spare // (TRAIN_BLOCKS - 1) for k in range(TRAIN_BLOCKS))
    return [train[s : s + TRAIN_BLOCK] for s in starts]


@cache
def _kernels():
    """The two functions below, compiled. Importing numba takes half a second: only who counts pays for it."""
    from charlm.corpus.kernels import compiled

    return compiled(_score), compiled(_refine)


# text: uint16[n]; held-out text from start on. at: int32[m], positions in text, those of group g in
# at[bounds[g] : bounds[g + 1]], ascending: training text first. bounds: int64[groups + 1].


def _score(text, start, at, bounds, count, p):
    """p: float64[n - start], the probability of every held-out symbol, from one order to the next, in place.

    count: int64[V] of zeros, and zeros again afterwards.
    """
    for g in range(len(bounds) - 1):
        group = at[bounds[g] : bounds[g + 1]]
        total = distinct = 0
        for i in group:
            if i < start:
                total += 1
                distinct += count[text[i]] == 0
                count[text[i]] += 1
            elif total:
                p[i - start] = (count[text[i]] + distinct * p[i - start]) / (total + distinct)
        for i in group:
            count[text[i]] = 0


def _refine(text, start, at, bounds, back, group_of, most):
    """Split each group by the symbol `back` places back. Returns the next at and bounds.

    group_of: int64[V + 1] of -1, and -1 again afterwards. most: no more groups than this come out.
    """
    border = len(group_of) - 1
    next_at, next_bounds = np.empty_like(at), np.zeros(most + 1, np.int64)
    groups = filled = 0
    for g in range(len(bounds) - 1):
        group = at[bounds[g] : bounds[g + 1]]
        asked = len(group)  # where its held-out positions begin
        while asked and group[asked - 1] >= start:
            asked -= 1
        if not asked:  # never seen in training: nor is any longer context
            continue
        first = groups
        for i in group[asked:]:
            symbol = text[i - back]
            if symbol != border and group_of[symbol] < 0:
                group_of[symbol] = groups
                groups += 1
        for i in group:  # sizes
            into = group_of[text[i - back]]
            if into >= 0:
                next_bounds[into + 1] += 1
        for into in range(first, groups):  # sizes → starts
            size = next_bounds[into + 1]
            next_bounds[into + 1] = filled
            filled += size
        for i in group:  # starts → ends, which are the starts of the next
            into = group_of[text[i - back]]
            if into >= 0:
                next_at[next_bounds[into + 1]] = i
                next_bounds[into + 1] += 1
        for i in group[asked:]:
            group_of[text[i - back]] = -1
    return next_at[:filled], next_bounds[: groups + 1]
