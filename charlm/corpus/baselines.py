"""What simple models score on the validation split, to compare a trained model with.

Three: symbol frequencies (unigram), an n-gram with Witten-Bell smoothing, and the compressor xz. They read
nothing but the ids; time and memory are bounded for a corpus of any size.

The counts of the n-gram are exact: nothing is hashed. All text is one array, a border after every block:

    | t h e   c a t | s a t   o n | t h e   m a t |
      train block 0   block 1       held out

Positions are in groups, one per context; from order n to n + 1 each group is split by the symbol n places
back. Contexts that the held-out text lacks are dropped on the way, and so are positions with a border n
places back, whose context is shorter. Memory is slow: so a few groups at a time go through all orders, and
each position brings the symbols before it along (a record).
"""

import lzma
import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from charlm.corpus.kernels import compiled
from charlm.corpus.vocabulary import Vocab

# Of a larger split, so many blocks of so many symbols are counted or scored: evenly spread, as text changes
# from start to end; long, for network disks. 1 s and 360 MB, or 1 GB where one context is most of the text.
TRAIN_BLOCKS, TRAIN_BLOCK = 512, 1 << 15
HELD_OUT_BLOCKS, HELD_OUT_BLOCK = 40, 15_000  # enough for bpc within some thousandths
XZ_BYTES = 500_000  # of these are compressed: half a second
# The order rises while that saves so many nats per symbol: past the best order (5 for 1 MB of Shakespeare, 6
# for 4 MB of enwik8) Witten-Bell smoothing gets worse with each.
MIN_GAIN = 0.005
MAX_ORDER = 8  # at most: a record has no more symbols
REPEATED = 24  # symbols in a row that a held-out text shares with the training text where it repeats it
RECORDS = 1 << 21  # made at a time, 32 MB
PART = 1 << 15  # of them that go through all orders at a time: they fit a processor's cache


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
    blocks = _spread(train, TRAIN_BLOCKS, TRAIN_BLOCK)
    scored = _spread(held_out, HELD_OUT_BLOCKS, HELD_OUT_BLOCK)
    size, symbols = len(vocab), sum(map(len, scored))
    border = np.array([size], np.uint16)
    text = np.concatenate([border] * 8 + [part for block in [*blocks, *scored] for part in (block, border)])
    start = len(text) - symbols - len(scored)
    counts = sum(np.bincount(block, minlength=size + 1) for block in blocks)
    followed = sum(np.bincount(block[:-1], minlength=size) for block in [*blocks, *scored])
    bounds = np.append(0, np.cumsum(followed))  # of the groups of order 2, by the symbol before
    parts = _parts(bounds, RECORDS)
    first = [low for low, _ in parts]
    positions = _positions(text, size, np.digitize(np.arange(size), first) - 1, bounds[first], bounds[-1])
    p = np.full(symbols + len(scored), 1 / size)  # of every held-out symbol, at the order reached
    if total := int(counts.sum()):
        distinct = np.count_nonzero(counts)
        p = (counts[text[start:]] + distinct / size) / (total + distinct)
    nats = 0.0 - float(np.log(p[text[start:] != size]).sum())  # 0.0, never -0.0

    def all_orders(low: int, inner: np.ndarray) -> np.ndarray:
        return higher_orders(2, _records(text, start, positions[bounds[low] :], low, inner), inner)

    def higher_orders(order: int, records: np.ndarray, bounds: np.ndarray) -> np.ndarray:
        gains = np.zeros(MAX_ORDER + 1)  # in nats, of each order over the one before
        while order <= MAX_ORDER:
            inner = _parts(bounds, PART)
            if len(inner) > 1 and len(records) <= 2 * RECORDS:  # larger ones would be held at every order
                for low, part in inner:
                    gains += higher_orders(order, records[bounds[low] :][: part[-1]], part)
                break
            gains[order], records, bounds = _split(text[start:], size, p, records, bounds)
            order += 1
        return gains

    with ThreadPoolExecutor(min(workers, 4)) as pool:  # more would take more memory
        repeated = pool.submit(_repeated, text, start)
        gains = sum(pool.map(all_orders, *zip(*parts, strict=True)), np.zeros(MAX_ORDER + 1))
    order = 1
    while order < MAX_ORDER and gains[order + 1] > MIN_GAIN * max(symbols, 1):
        order += 1
        nats -= float(gains[order])
    return {
        "order": order,
        "smoothing": "Witten-Bell",
        "train_symbols": sum(map(len, blocks)),
        "held_out_symbols": symbols,
        "repeated": repeated.result(),
        **_figures(nats, np.bincount(np.concatenate(scored), minlength=size), vocab),
    }


def xz(held_out: np.ndarray, vocab: Vocab) -> dict[str, int | float]:
    """The size of the held-out text alone under xz -9e, headers and checksum included. held_out: ids, uint8
    or uint16. Returns held_out_bytes (how many were compressed, see the limit above), nats_per_character,
    bpc, bpb. The ends of documents have no bytes and cost nothing here."""
    scored = np.concatenate(_spread(held_out, HELD_OUT_BLOCKS, HELD_OUT_BLOCK))
    whole = vocab.decode_bytes(scored)
    text = whole[:XZ_BYTES]
    # Up to 8 MB, preset 6 gives what 9 does, sooner.
    bits = 8 * len(lzma.compress(text, preset=6 | lzma.PRESET_EXTREME)) * len(whole) / max(len(text), 1)
    counts = np.bincount(scored, minlength=len(vocab))
    return {"held_out_bytes": len(text), **_figures(bits * math.log(2), counts, vocab)}


def _figures(nats: float, counts: np.ndarray, vocab: Vocab) -> dict[str, float]:
    """Averages of a sum of nats over the symbols that occur so often (int64[V])."""
    per_character = nats / max(int(counts @ vocab.characters_per_symbol), 1)
    bpb = nats / max(int(counts @ vocab.bytes_per_symbol), 1) / math.log(2)
    return {"nats_per_character": per_character, "bpc": per_character / math.log(2), "bpb": bpb}


def _spread(ids: np.ndarray, count: int, size: int) -> list[np.ndarray]:
    """All of it, or so many blocks evenly spread over it, the first at its start and the last at its end."""
    spare = len(ids) - count * size
    if spare <= 0:
        return [ids[:]]
    starts = (k * size + k * spare // (count - 1) for k in range(count))
    return [ids[s : s + size] for s in starts]


def _repeated(text: np.ndarray, start: int) -> float:
    """The share of held-out symbols (of a sample) that follow REPEATED symbols which training has, too."""
    hashes = _hashes(text[start:-2], REPEATED, np.ones(1 << 22, np.bool_))
    sample, likely = hashes[:: 1 + len(hashes) // 16384], np.zeros(1 << 22, np.bool_)
    likely[sample >> _42] = True
    found = np.isin(sample, _hashes(text[:start], REPEATED, likely))
    return float(found.sum() / max(len(found), 1) * len(hashes) / max(len(text) - start - 1, 1))


def _parts(bounds: np.ndarray, size: int) -> list[tuple[int, np.ndarray]]:
    """Groups in parts of about so many positions, or one larger group: (first group, bounds from there)."""
    if bounds[-1] <= size:
        return [(0, bounds)]
    cuts = np.searchsorted(bounds, np.append(np.arange(0, bounds[-1], size), bounds[-1]))
    return [(a, bounds[a : b + 1] - bounds[a]) for a, b in pairwise(np.unique(cuts).tolist())]


# text: uint16[n], held out from start on; size: of the vocabulary, also the symbol of a border. bounds:
# int64[groups + 1]; group g is records[bounds[g] : bounds[g + 1]], in the order of the text. A record is two
# uint64 of four times 16 bits, the lowest first: the symbol and those 2, 3 and 4 places back; 0 and those 5,
# 6 and 7 back. Where it is the held-out symbol number i, the low half of i stands for the symbol and 1 + the
# high half for the 0. (Unsigned: a signed index would be checked for its sign each time.)
_0, _1, _4, _16, _32, _42, _48 = map(np.uint64, (0, 1, 4, 16, 32, 42, 48))
_LOW, _FACTOR = map(np.uint64, (0xFFFF, 0x9E3779B97F4A7C15))


@compiled
def _hashes(text, width, likely):
    """uint64, of all `width` symbols in a row (two of 2^64 are hardly equal by chance), of the likely ones.
    likely: bool[2^22], by the first 22 bits of a hash."""
    hashes, found, rolling, factor = np.empty(len(text), np.uint64), 0, _0, _1
    for _ in range(width):
        factor *= _FACTOR
    for i in range(len(text)):
        rolling = rolling * _FACTOR + np.uint64(text[i])
        if i >= width:
            rolling -= factor * np.uint64(text[i - width])
        if i >= width - 1 and likely[rolling >> _42]:
            hashes[found] = rolling
            found += 1
    return hashes[:found]


@compiled
def _positions(text, size, part_of, ends, total):
    """uint32[total], by the part of the symbol before, part_of: int64[size], from ends: int64[parts] on."""
    positions = np.empty(total, np.uint32)
    for i in range(8, len(text)):
        if text[i] != size and text[i - 1] != size:
            part = part_of[text[i - 1]]
            positions[ends[part]] = i
            ends[part] += 1
    return positions


@compiled
def _records(text, start, positions, low, bounds):
    """The records of the first positions, by the symbol before: low, low + 1, … bounds: of these alone."""
    records, ends = np.empty((bounds[-1], 2), np.uint64), bounds[:-1].copy()
    for k in range(len(records)):
        i = np.uint64(positions[k])
        near, far = np.uint64(text[i]), _0
        if i >= start:
            near, far = np.uint64(i - start) & _LOW, np.uint64(1 + (i - start >> _16))
        for n in range(_1, _4):
            near |= np.uint64(text[i - _1 - n]) << _16 * n
            far |= np.uint64(text[i - _4 - n]) << _16 * n
        group = np.uint64(text[i - _1]) - np.uint64(low)
        end = np.uint64(ends[group])
        records[end, 0], records[end, 1] = near, far
        ends[group] += 1
    return records


@compiled
def _split(held_out, size, p, records, bounds):
    """Update p: float64[n], of held_out: uint16[n], from one order to the next. Returns what that gains in
    nats; the records and bounds of the groups of the next order: by the next symbol back in every record."""
    count = np.zeros(size, np.int64)  # all zero again after every group
    group_of = np.zeros(size + 1, np.uint32)  # of a symbol, from 1; zero again, too. The border has none.
    split, ends = np.empty_like(records), np.zeros(len(records) + 1, np.uint32)
    gain, groups, filled = 0.0, np.uint32(0), np.uint32(0)
    for g in range(len(bounds) - 1):
        a, z = np.uint64(bounds[g]), np.uint64(bounds[g + 1])
        b = z  # where its held-out records start
        while b > a and records[b - _1, 1] & _LOW:
            b -= _1
        if b in (a, z):  # training, or the held-out text, has no such context, nor a longer one
            continue
        known = groups
        for k in range(b, z):
            symbol = records[k, 0] >> _16 & _LOW
            if symbol != size and not group_of[symbol]:
                groups += np.uint32(1)
                group_of[symbol] = groups
        ends[0] = distinct = 0
        for k in range(a, b):
            symbol = records[k, 0] & _LOW
            distinct += count[symbol] == 0
            count[symbol] += 1
            ends[group_of[records[k, 0] >> _16 & _LOW]] += np.uint32(1)
        for k in range(b, z):
            i = (records[k, 1] & _LOW) - _1 << _16 | records[k, 0] & _LOW
            probability = (count[held_out[i]] + distinct * p[i]) / (b - a + distinct)
            gain += math.log(probability / p[i])
            p[i] = probability
            ends[group_of[records[k, 0] >> _16 & _LOW]] += np.uint32(1)
        for k in range(a, b):
            count[records[k, 0] & _LOW] = 0
        for group in range(known + 1, groups + 1):  # sizes → starts
            filled, ends[group] = filled + ends[group], filled
        ends[0] = filled  # those of no group end where the next ones start: a branch would cost more
        for k in range(a, z):  # starts → ends
            near, far = records[k, 0], records[k, 1]
            group = group_of[near >> _16 & _LOW]
            end = np.uint64(ends[group])
            split[end, 0] = near & _LOW | near >> _32 << _16 | far >> _16 << _48
            split[end, 1] = far & _LOW | far >> _32 << _16
            ends[group] += np.uint32(1)
        for k in range(b, z):
            group_of[records[k, 0] >> _16 & _LOW] = 0
    ends[0] = 0
    return gain, split[:filled], ends[: groups + 1].astype(np.int64)
