"""What simple models score on the validation split, to compare a trained model with.

Three: symbol frequencies (unigram), an n-gram with Witten-Bell smoothing, and the compressor xz. They read
nothing but the ids; time and memory are bounded for a corpus of any size.

The counts of the n-gram are exact: nothing is hashed. All text is one array, a border before every block:

    | t h e   c a t | s a t   o n | t h e   m a t
      train block 0   block 1       held out

Positions are in groups, one per context. At order 1 all are in one group; from order n to n + 1 each group is
split by the symbol n places back. Contexts that the held-out text lacks are dropped on the way, and so are
positions with a border n places back, whose context is shorter.
"""

import lzma
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import numpy as np

from charlm.corpus.kernels import compiled
from charlm.corpus.vocabulary import Vocab

# Of a larger training split, this many blocks of this many symbols are counted: evenly spread, because text
# changes from start to end; long, because the split may be on a network disk. Takes seconds and 300 MB.
TRAIN_BLOCKS, TRAIN_BLOCK = 512, 1 << 15
# Of a larger held-out split the start is scored: enough for bpc within some thousandths, and for xz, which
# starts with nothing learned.
HELD_OUT_SYMBOLS = 1_000_000
# The order rises while that saves so many nats per symbol: past the best order (5 for 1 MB of Shakespeare, 6
# for 4 MB of enwik8) Witten-Bell smoothing gets worse with each.
MIN_GAIN = 0.005
MAX_ORDER = 8
REPEATED = 24  # symbols in a row that a held-out text shares with the training text where it repeats it


def unigram(train_counts: np.ndarray, held_out_counts: np.ndarray, vocab: Vocab) -> dict[str, float]:
    """The score of the symbol frequencies of the training split, one added to each count. train_counts,
    held_out_counts: int64[V]. Returns nats_per_character, bpc and bpb (bits per byte)."""
    probability = (train_counts + 1) / (train_counts.sum() + len(vocab))
    return _figures(-float(held_out_counts @ np.log(probability)), held_out_counts, vocab)


def ngram(train: np.ndarray, held_out: np.ndarray, vocab: Vocab, workers: int = 1) -> dict[str, float | str]:
    """The score of an interpolated n-gram; n rises while the held-out text gains MIN_GAIN.

    train, held_out: ids, uint8 or uint16: arrays, or files with slices that are arrays. Returns order (n:
    contexts have n - 1 symbols), smoothing, train_symbols and held_out_symbols (how many were counted and
    scored, see the limits above), repeated (the share of held-out symbols that follow REPEATED symbols which
    the training text has, too), nats_per_character, bpc, bpb: the same for any number of workers (threads).

    With c(h, w) the count of symbol w after context h, c(h) their sum, T(h) the number of distinct w after h:

        p_n(w | h) = (c(h, w) + T(h) p_{n-1}(w | h')) / (c(h) + T(h))      h' is h without its first symbol

    p_0 is uniform over the vocabulary; p_n is p_{n-1} where training has no h, or the held-out text starts
    within h. (Witten and Bell 1991, "The zero-frequency problem", method C; interpolated as in Chen and
    Goodman 1998, "An empirical study of smoothing techniques for language modeling".)
    """
    blocks = _blocks(train)
    held_out = held_out[:HELD_OUT_SYMBOLS]
    border = np.array([len(vocab)], np.uint16)
    text = np.concatenate([part for block in [*blocks, held_out] for part in (border, block)])
    start = len(text) - len(held_out)
    positions = np.flatnonzero(text != border).astype(np.int32)
    parts = [(positions, text[positions], np.array([0, len(positions)]))]
    p = np.full(len(held_out), 1 / len(vocab))
    order, nats = 0, math.inf
    with ThreadPoolExecutor(workers) as pool:

        def refine(back: int) -> list[tuple[np.ndarray, ...]]:
            split = partial(_refine, text, start, len(vocab), len(held_out), back)
            return [*pool.map(split, *zip(*parts, strict=True))]

        while order < MAX_ORDER:
            if order:
                parts = refine(order)
            if order == 1:
                parts = _shared(*parts[0], workers)
            [*pool.map(partial(_score, start, len(vocab), p), *zip(*parts, strict=True))]
            higher = 0.0 - float(np.log(p).sum())  # 0.0 instead of -0.0 for a certainty
            if nats - higher <= MIN_GAIN * len(held_out):
                break
            order, nats = order + 1, higher
        every = 1 + len(held_out) // 16384  # of a sample of the held-out symbols
        for i, (positions, symbols, bounds) in enumerate(parts):
            kept = (positions < start) | ((positions - start) % every == 0)
            parts[i] = positions[kept], symbols[kept], np.append(0, np.cumsum(kept))[bounds]
        for back in range(min(order + 1, MAX_ORDER), REPEATED + 2):  # the last drops what training lacks
            parts = refine(back)
    repeated = sum(int((positions >= start).sum()) for positions, *_ in parts)
    return {
        "order": order,
        "smoothing": "Witten-Bell",
        "train_symbols": sum(map(len, blocks)),
        "held_out_symbols": len(held_out),
        "repeated": repeated * every / max(len(held_out), 1),
        **_figures(nats, np.bincount(held_out, minlength=len(vocab)), vocab),
    }


def xz(held_out: np.ndarray, vocab: Vocab) -> dict[str, int | float]:
    """The size of the held-out text alone under xz -9e, headers and checksum included. held_out: ids, uint8
    or uint16. Returns held_out_bytes (how many were compressed, see the limit above), nats_per_character,
    bpc, bpb. The ends of documents have no bytes and cost nothing here."""
    held_out = held_out[:HELD_OUT_SYMBOLS]
    text = vocab.decode_bytes(held_out)
    nats = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) * math.log(2)
    return {"held_out_bytes": len(text), **_figures(nats, np.bincount(held_out, minlength=len(vocab)), vocab)}


def _figures(nats: float, counts: np.ndarray, vocab: Vocab) -> dict[str, float]:
    """Averages of a sum of nats over the symbols that occur so often (int64[V])."""
    per_character = nats / max(int(counts @ vocab.characters_per_symbol), 1)
    bpb = nats / max(int(counts @ vocab.bytes_per_symbol), 1) / math.log(2)
    return {"nats_per_character": per_character, "bpc": per_character / math.log(2), "bpb": bpb}


def _blocks(train: np.ndarray) -> list[np.ndarray]:
    """All of it, or blocks evenly spread over it, the first at its start and the last at its end."""
    spare = len(train) - TRAIN_BLOCKS * TRAIN_BLOCK
    if spare <= 0:
        return [train[:]]
    starts = (k * TRAIN_BLOCK + k * spare // (TRAIN_BLOCKS - 1) for k in range(TRAIN_BLOCKS))
    return [train[s : s + TRAIN_BLOCK] for s in starts]


# text: uint16[n], held out from start on. positions: int32[m]; those of group g are positions[bounds[g] :
# bounds[g + 1]], ascending; symbols: uint16[m], of text there, because to look up far apart is slow.
# bounds: int64[groups + 1]. size: of the vocabulary; also the symbol of a border.


def _shared(positions, symbols, bounds, workers):
    """The groups in parts of about equal size, for so many threads."""
    cuts = np.searchsorted(bounds, np.linspace(0, len(positions), workers + 1))
    parts = ((slice(bounds[a], bounds[b]), bounds[a : b + 1] - bounds[a]) for a, b in pairwise(cuts))
    return [(positions[part], symbols[part], inner) for part, inner in parts]


@compiled
def _score(start, size, p, positions, symbols, bounds):
    """Update p: float64[n - start], the probability of every held-out symbol, from one order to the next."""
    count = np.zeros(size, np.int64)  # all zero again after every group
    for g in range(len(bounds) - 1):
        total = distinct = 0
        for k in range(bounds[g], bounds[g + 1]):
            i, symbol = positions[k], symbols[k]
            if i < start:
                total += 1
                distinct += count[symbol] == 0
                count[symbol] += 1
            elif total:
                p[i - start] = (count[symbol] + distinct * p[i - start]) / (total + distinct)
        for symbol in symbols[bounds[g] : bounds[g + 1]]:
            count[symbol] = 0


@compiled
def _refine(text, start, size, most, back, positions, symbols, bounds):
    """Split each group by the symbol `back` places back, into at most `most` groups with held-out text."""
    group_of = np.full(size + 1, -1)  # of a symbol; all -1 again after every group. The border has none.
    new_positions, new_symbols = np.empty_like(positions), np.empty_like(symbols)
    new_bounds, found = np.zeros(most + 1, np.int64), np.empty_like(positions)
    groups = filled = 0
    for g in range(len(bounds) - 1):
        group = positions[bounds[g] : bounds[g + 1]]
        held_out = len(group)  # where its held-out positions start
        while held_out and group[held_out - 1] >= start:
            held_out -= 1
        if not held_out:  # not in training: nor is any longer context
            continue
        first = groups
        for i in group[held_out:]:
            symbol = text[i - back]
            if symbol != size and group_of[symbol] < 0:
                group_of[symbol] = groups
                groups += 1
        for k in range(len(group)):  # sizes
            found[k] = new = group_of[text[group[k] - back]]
            if new >= 0:
                new_bounds[new + 1] += 1
        for new in range(first, groups):  # sizes → starts
            filled, new_bounds[new + 1] = filled + new_bounds[new + 1], filled
        for k in range(len(group)):  # starts → ends, which are the starts of the next
            new = found[k]
            if new >= 0:
                new_positions[new_bounds[new + 1]] = group[k]
                new_symbols[new_bounds[new + 1]] = symbols[bounds[g] + k]
                new_bounds[new + 1] += 1
        for i in group[held_out:]:
            group_of[text[i - back]] = -1
    return new_positions[:filled], new_symbols[:filled], new_bounds[: groups + 1]
