"""From the counts to the vocabulary, the size of every split, and the place of every piece in it."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from charlm.config.fields import Config
from charlm.corpus.batches import Piece
from charlm.corpus.count_encode import Tally, Text
from charlm.corpus.sources import describe
from charlm.corpus.vocabulary import END, Vocab, codes_of, name_of
from charlm.errors import CharlmError
from charlm.files import Journal, replace

SHOWN = 8  # characters that a report names
_JSON = "told"  # the name in layout.npz of what is not an array


@dataclass
class Layout:
    """Where the symbols of every piece go, and the sizes of the corpus.

    starts, lengths: int64[pieces, streams], of each piece in the streams of its text. begun: int64[pieces,
    streams], documents begun before it. pieces: [first, stop] of every text. ranges: [text, stream, split,
    low, high], the part of a stream that is a split. histograms: int64[V] per split, how often each symbol
    occurs. documents: per split that holds whole documents. facts: for corpus.json.
    """

    vocab: Vocab
    starts: np.ndarray
    lengths: np.ndarray
    begun: np.ndarray
    pieces: list[list[int]]
    ranges: list[list]
    histograms: dict[str, np.ndarray]
    documents: dict[str, int]
    facts: dict

    def size(self, split: str) -> dict[str, int]:
        """documents, where they are whole; characters, bytes and symbols of a split."""
        histogram = self.histograms[split]
        documents = {"documents": self.documents[split]} if split in self.documents else {}
        return documents | {
            "characters": int(histogram @ self.vocab.characters_per_symbol),
            "bytes": int(histogram @ self.vocab.bytes_per_symbol),
            "symbols": int(histogram.sum()),
        }

    def filled(self, split: str, number: int) -> int:
        """Symbols of a split that the pieces up to this one hold (-1: none)."""
        (text, stream, _, low, high) = next(r for r in self.ranges if r[2] == split)
        first, stop = self.pieces[text]
        last = min(number, stop - 1)
        end = self.starts[last, stream] + self.lengths[last, stream] if last >= first else 0
        return int(np.clip(end, low, high)) - low

    def save(self, folder: Path) -> None:
        """Write vocab.json, then layout.npz, which exists only when both are whole."""
        self.vocab.save(folder / "vocab.json")
        values = {name: getattr(self, name) for name in ("pieces", "ranges", "documents", "facts")}
        arrays = {f"histogram {split}": h for split, h in self.histograms.items()}
        arrays |= {name: getattr(self, name) for name in ("starts", "lengths", "begun")}
        buffer = BytesIO()
        np.savez(buffer, **{_JSON: json.dumps(values)}, **arrays)
        replace(folder / "layout.npz", buffer.getvalue())

    @classmethod
    def load(cls, folder: Path) -> Layout:
        with np.load(folder / "layout.npz") as file:
            arrays = dict(file)
        values = json.loads(str(arrays.pop(_JSON)))
        splits = [name.partition(" ")[2] for name in arrays if name.startswith("histogram ")]
        histograms = {split: arrays.pop(f"histogram {split}") for split in splits}
        return cls(Vocab.load(folder), histograms=histograms, **arrays, **values)


def lay_out(texts: list[Text], journals: list[Path], config: Config) -> Layout:
    """Choose the vocabulary and place the pieces. journals: the tallies of all pieces of all texts, in order.

    Raises CharlmError for text that is empty, too short for its splits, or outside a closed vocabulary.
    """

    def tallies() -> Iterator[Tally]:
        return map(Tally, chain.from_iterable(map(Journal.read, journals)))

    stops = np.cumsum([0, *(len(text.source.pieces) for text in texts)]).tolist()
    spans = list(map(list, pairwise(stops)))  # [first, stop] of the pieces of every text
    owners = [text for text in texts for _ in text.source.pieces]
    pieces = [piece for text in texts for piece in text.source.pieces]
    shape = (len(pieces), max(text.streams for text in texts))
    begins, ends, lengths = (np.zeros(shape, np.int64) for _ in range(3))
    sizes = np.zeros(len(pieces), np.int64)  # codes of each piece
    totals = np.zeros(END + 1, np.int64)  # how often each code occurs
    for i, tally in enumerate(tallies()):
        begins[i, : len(tally.begun)], ends[i, : len(tally.begun)] = tally.begun, tally.ended
        sizes[i] = tally.counts.sum()
        np.add.at(totals, tally.codes, tally.counts)
    if not sizes[: stops[1]].any():
        raise CharlmError(f"{describe(config.data)}: the text is empty")
    begun = _before(begins, spans)
    glue, glued = texts[0].glue, ends  # glued: int64[pieces, streams], how often the glue occurs
    if not config.vocab.end_of_document:  # it is before every document but the first of a stream
        glued = np.maximum(begun + begins - 1, 0) - np.maximum(begun - 1, 0)
    np.add.at(totals, glue, glued.sum())
    vocab = Vocab.from_counts(totals, config.vocab)
    if not vocab.can_encode(np.flatnonzero(totals)):
        outside = _first_outside(zip(owners, pieces, tallies(), _before(sizes, spans), strict=True), vocab)
        raise CharlmError(
            f"{describe(config.data)}: {outside} is not in the closed vocabulary of {len(vocab)} symbols; "
            f"add it to vocab.characters, or set vocab.unknown=bytes"
        )

    sizes += glued.sum(1) * len(glue)
    before = _before(sizes, spans)
    borders = {text: text.borders(int(sizes[a:b].sum())) for text, (a, b) in zip(texts, spans, strict=True)}
    per_glue = vocab.histogram(*np.unique(glue, return_counts=True)) if glued.any() else 0
    histograms = {split: np.zeros(len(vocab), np.int64) for text in texts for split in text.splits}
    for i, (text, tally) in enumerate(zip(owners, tallies(), strict=True)):
        codes, counts = (np.split(a, np.cumsum(tally.sizes)[:-1]) for a in (tally.codes, tally.counts))
        counted = zip(codes, counts, glued[i], strict=False)  # of every stream
        parts = [vocab.histogram(codes, counts) + times * per_glue for codes, counts, times in counted]
        lengths[i, : text.streams] = [part.sum() for part in parts]
        splits = text.splits
        if text.contiguous:
            low, high = before[i], before[i] + sizes[i]
            splits = splits[bisect_right(borders[text], low) - 1 :]
            if inside := [border - low for border in borders[text] if low < border < high]:
                parts = _histograms(text.encode(pieces[i], vocab, begun[i].copy()), inside, vocab)
        for split, part in zip(splits, parts, strict=False):
            histograms[split] += part

    ranges, documents = [], {}
    for number, (text, (first, stop)) in enumerate(zip(texts, spans, strict=True)):
        low = 0
        for stream, split in enumerate(text.splits):
            high = low + int(histograms[split].sum())
            ranges.append([number, 0 if text.contiguous else stream, split, low, high])
            low = high if text.contiguous else 0
        if not text.contiguous:
            documents |= zip(text.splits, ends[first:stop].sum(0).tolist(), strict=False)
    starts, facts = _before(lengths, spans), _facts(totals, vocab)
    layout = Layout(vocab, starts, lengths, begun, spans, ranges, histograms, documents, facts)
    for split in layout.histograms:
        size = layout.size(split)
        if size["symbols"] < 2 or not size["characters"]:
            advice = f"read more text, or change data.{split if split != 'train' else 'validation'}"
            held = f"the {split} split would hold {size['symbols']} symbols"
            raise CharlmError(f"{describe(config.data)}: {held}; {advice}")
    return layout


def _before(numbers: np.ndarray, spans: list[list[int]]) -> np.ndarray:
    """int64[pieces, …]: the sum of the numbers of all pieces before each in its text."""
    return np.concatenate([np.cumsum(numbers[a:b], 0) - numbers[a:b] for a, b in spans])


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


def _first_outside(counted: Iterable[tuple[Text, Piece, Tally, int]], vocab: Vocab) -> str:
    """The first character that the vocabulary lacks, or the separator. counted: with characters before."""
    for text, piece, tally, before in counted:
        if not vocab.can_encode(tally.codes):
            for rows in text.batches(piece):
                for document, low, high in zip(rows.documents, rows.offsets, rows.offsets[1:], strict=False):
                    codes = codes_of(rows.utf8[low:high])
                    held = vocab.holds(codes)
                    if not held.all():
                        at = int(np.argmin(held))
                        place = f"character {before + at:,} of the text (document {document:,})"
                        return f"{name_of(chr(codes[at]))}, {place},"
                    before += len(codes)
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
