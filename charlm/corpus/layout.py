"""From the counts to the vocabulary, the size of every split, and the place of every piece in it."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from charlm.config.fields import Config
from charlm.corpus.batches import Piece
from charlm.corpus.count_encode import Tally, Text
from charlm.corpus.sources import SPLITS, describe
from charlm.corpus.vocabulary import END, Vocab, codes_of, name_of
from charlm.errors import CharlmError
from charlm.files import Journal, replace

SHOWN = 8  # characters that a report names
LAYOUT_FILE = "layout-2.npz"  # in another format than layout.npz of older versions
_BY_SPLIT = ("starts", "histograms")  # fields of Layout


@dataclass
class Layout:
    """Where the symbols of every piece go, and the sizes of the corpus.

    starts: per split int64[pieces + 1], its symbols before each piece and, at the end, all of them. begun:
    int64[pieces, SPLITS], documents begun before each piece, in the columns of its text. histograms: per
    split int64[V], how often each symbol occurs. sizes: per split its characters, bytes and symbols, and its
    documents where they are whole. facts: for corpus.json.
    """

    vocab: Vocab
    starts: dict[str, np.ndarray]
    begun: np.ndarray
    histograms: dict[str, np.ndarray]
    sizes: dict[str, dict[str, int]]
    facts: dict

    def save(self, folder: Path) -> None:
        """Write vocab.json, then the layout, which exists only when both are whole."""
        self.vocab.save(folder / "vocab.json")
        by_split = {name: list(getattr(self, name).values()) for name in _BY_SPLIT}
        buffer = BytesIO()
        np.savez(buffer, json=json.dumps([self.sizes, self.facts]), begun=self.begun, **by_split)
        replace(folder / LAYOUT_FILE, buffer.getvalue())

    @classmethod
    def load(cls, folder: Path) -> Layout:
        with np.load(folder / LAYOUT_FILE) as file:
            sizes, facts = json.loads(str(file["json"]))
            by_split = {name: dict(zip(sizes, file[name], strict=True)) for name in _BY_SPLIT}
            return cls(Vocab.load(folder), begun=file["begun"], sizes=sizes, facts=facts, **by_split)


def lay_out(texts: list[Text], journals: list[Path], config: Config) -> Layout:
    """Choose the vocabulary and place the pieces. journals: the tallies of all pieces of all texts, in order.

    Raises CharlmError for text that is empty, too short for its splits, or outside a closed vocabulary.
    """
    pieces = [(text, piece) for text in texts for piece in text.source.pieces]

    def tallies() -> Iterator[tuple[Text, Piece, Tally]]:
        contents = chain.from_iterable(map(Journal.read, journals))
        return ((*owned, Tally(content)) for owned, content in zip(pieces, contents, strict=True))

    begins, ends, lengths = (np.zeros((len(pieces), len(SPLITS)), np.int64) for _ in range(3))
    piece_sizes = np.zeros(len(pieces), np.int64)  # codes of each piece
    totals = np.zeros(END + 1, np.int64)  # how often each code occurs
    for i, (text, _, tally) in enumerate(tallies()):
        begins[i, text.columns], ends[i, text.columns] = tally.begun, tally.ended
        piece_sizes[i] = tally.counts.sum()
        np.add.at(totals, tally.codes, tally.counts)
    first = len(texts[0].source.pieces)  # the first text alone can be cut into contiguous parts
    if not piece_sizes[:first].any():
        raise CharlmError(f"{describe(config.data)}: the text is empty")
    begun = np.cumsum(begins, 0) - begins
    glue, glued = texts[0].glue, ends  # glued: int64[pieces, SPLITS], how often the glue occurs
    if not config.vocab.end_of_document:  # it is before every document but the first of a stream
        glued = np.maximum(begun + begins - 1, 0) - np.maximum(begun - 1, 0)
    np.add.at(totals, glue, glued.sum())
    vocab = Vocab.from_counts(totals, config.vocab)
    vocab.normalize = config.data.normalize
    if not vocab.can_encode(np.flatnonzero(totals)):
        outside = (
            f"{_first_outside(tallies(), vocab)} is not in the closed vocabulary of {len(vocab)} symbols"
        )
        advice = "add it to vocab.characters, or set vocab.unknown=bytes"
        raise CharlmError(f"{describe(config.data)}: {outside}; {advice}")

    piece_sizes += glued.sum(1) * len(glue)
    stops = np.cumsum(piece_sizes)
    borders = texts[0].borders(int(stops[first - 1]))
    per_glue = vocab.histogram(*np.unique(glue, return_counts=True)) if glued.any() else 0
    histograms = {split: np.zeros(len(vocab), np.int64) for text in texts for split in text.splits}
    for i, (text, piece, tally) in enumerate(tallies()):
        codes, counts = (np.split(a, np.cumsum(tally.sizes)[:-1]) for a in (tally.codes, tally.counts))
        counted = zip(codes, counts, glued[i, text.columns], strict=True)  # of every stream
        parts = [vocab.histogram(codes, counts) + times * per_glue for codes, counts, times in counted]
        splits = text.splits
        if text.contiguous:
            low, high = stops[i] - piece_sizes[i], stops[i]
            splits = splits[bisect_right(borders, low) - 1 :]
            if inside := [border - low for border in borders if low < border < high]:
                parts = _histograms(text.encode(piece, vocab, begun[i, text.columns]), inside, vocab)
        for split, part in zip(splits, parts, strict=False):
            histograms[split] += part
            lengths[i, SPLITS.index(split)] = part.sum()

    starts, sizes = {}, {}
    whole = [split for text in texts if not text.contiguous for split in text.splits]
    for split, histogram in histograms.items():
        column = SPLITS.index(split)
        size = {"documents": int(ends[:, column].sum())} if split in whole else {}
        size["characters"] = int(histogram @ vocab.characters_per_symbol)
        size["bytes"] = int(histogram @ vocab.bytes_per_symbol)
        size["symbols"] = int(histogram.sum())
        if size["symbols"] < 2 or not size["characters"]:
            advice = f"read more text, or change data.{split if split != 'train' else 'validation'}"
            held = f"the {split} split would hold {size['symbols']} symbols"
            raise CharlmError(f"{describe(config.data)}: {held}; {advice}")
        starts[split], sizes[split] = np.append(0, np.cumsum(lengths[:, column])), size
    return Layout(vocab, starts, begun, histograms, sizes, _facts(totals, vocab))


def _histograms(encoded: Iterator[tuple[int, np.ndarray]], borders: list[int], vocab: Vocab) -> np.ndarray:
    """int64[parts, V], of an encoded piece that is cut before these codes (from 0)."""
    begins_code = np.maximum(vocab.characters_per_symbol, np.arange(len(vocab)) == vocab.end).astype(np.int64)
    shape = (len(borders) + 1, len(vocab))
    histograms, done = np.zeros(shape, np.int64), 0
    for _, ids in encoded:
        reached = done + np.cumsum(begins_code[ids])
        part = np.searchsorted(borders, reached - 1, side="right")
        histograms += np.bincount(part * len(vocab) + ids, minlength=histograms.size).reshape(shape)
        done = int(reached[-1])
    return histograms


def _first_outside(counted: Iterable[tuple[Text, Piece, Tally]], vocab: Vocab) -> str:
    """The first character that the vocabulary lacks, or the separator."""
    before: Counter[Text] = Counter()  # characters
    for text, piece, tally in counted:
        if not vocab.can_encode(tally.codes):
            for rows in text.batches(piece):
                for document, (low, high) in zip(rows.documents, pairwise(rows.offsets), strict=True):
                    codes = codes_of(rows.utf8[low:high])
                    held = vocab.holds(codes)
                    if not held.all():
                        at = int(np.argmin(held))
                        place = f"character {before[text] + at:,} of the text (document {document:,})"
                        return f"{name_of(chr(codes[at]))}, {place},"
                    before[text] += len(codes)
        before[text] += int(tally.counts.sum())
    return f"data.separator={text.data.separator!r}"


def _facts(totals: np.ndarray, vocab: Vocab) -> dict:
    """How well the vocabulary covers the text, and the characters a report names. totals: int64[END + 1]."""
    codes = np.flatnonzero(totals[:END])
    codes = codes[np.argsort(-totals[codes], kind="stable")]
    own = vocab.holds(codes)
    return {
        "coverage": float(totals[codes[own]].sum() / totals[codes].sum()),
        "left_out_characters": int((~own).sum()),
        "most_frequent": [[int(c), int(totals[c])] for c in codes[:SHOWN]],
        "first_left_out": [[int(c), int(totals[c])] for c in codes[~own][:SHOWN]],
    }
