"""What follows from the counts: the vocabulary, the size of every split, and the place of every piece in
it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from charlm.config.fields import Config
from charlm.corpus.count_encode import Tally, Text, unfitting
from charlm.corpus.sources import describe
from charlm.corpus.vocabulary import END, Vocab
from charlm.errors import CharlmError
from charlm.files import replace

SHOWN = 8  # characters that a report names


@dataclass
class Layout:
    """Where the symbols of every piece go, and what is known of the whole.

    starts, lengths: int64[pieces, streams], of each piece in the streams of its text. begun: int64[pieces,
    streams], documents begun before it. pieces: [first, stop] of every text. ranges: [text, stream, split,
    low, high], the part of a stream that is a split. histograms: int64[V] per split, how often each symbol
    occurs. facts: for corpus.json.
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

    @property
    def splits(self) -> list[str]:
        return list(self.histograms)

    def size(self, split: str) -> dict[str, int]:
        """documents, where they are whole; characters, bytes and symbols of a split."""
        histogram = self.histograms[split]
        documents = {"documents": self.documents[split]} if split in self.documents else {}
        return documents | {
            "characters": int(histogram @ self.vocab.characters_per_symbol.astype(np.int64)),
            "bytes": int(histogram @ self.vocab.bytes_per_symbol.astype(np.int64)),
            "symbols": int(histogram.sum()),
        }

    def filled(self, split: str, number: int) -> int:
        """Symbols of a split that the pieces up to this one hold (-1: none)."""
        (text, stream, _, low, high) = next(r for r in self.ranges if r[2] == split)
        first, stop = self.pieces[text]
        last = min(number, stop - 1)
        if last < first:
            return 0
        return int(np.clip(self.starts[last, stream] + self.lengths[last, stream], low, high)) - low

    def save(self, folder: Path) -> None:
        """Write vocab.json, then layout.npz, which is there only when both are whole."""
        self.vocab.save(folder / "vocab.json")
        told = {
            "pieces": self.pieces,
            "ranges": self.ranges,
            "documents": self.documents,
            "facts": self.facts,
        }
        arrays = {f"histogram {split}": h for split, h in self.histograms.items()}
        arrays |= {"starts": self.starts, "lengths": self.lengths, "begun": self.begun}
        buffer = BytesIO()
        np.savez(buffer, told=np.array(json.dumps(told)), **arrays)
        replace(folder / "layout.npz", buffer.getvalue())

    @classmethod
    def load(cls, folder: Path) -> Layout:
        with np.load(folder / "layout.npz") as file:
            arrays = dict(file)
        told = json.loads(str(arrays.pop("told")))
        histograms = {n.partition(" ")[2]: a for n, a in arrays.items() if n.startswith("histogram ")}
        places = (arrays[name] for name in ("starts", "lengths", "begun"))
        rest = (told["pieces"], told["ranges"], histograms, told["documents"], told["facts"])
        return cls(Vocab.load(folder), *places, *rest)


def lay_out(texts: list[Text], tallies: Callable[[], Iterator[Tally]], config: Config) -> Layout:
    """Choose the vocabulary and place the pieces. tallies: of all pieces of all texts in order, once per
    call.

    Raises CharlmError for text that is empty, too short for its splits, or outside a closed vocabulary.
    """
    shape = (sum(len(text.source.pieces) for text in texts), max(text.streams for text in texts))
    begun, glued = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    codes_in = np.zeros(shape[0], np.int64)  # codes of each piece, glue included
    totals = np.zeros(END + 1, np.int64)  # how often each code occurs
    for i, text, tally, before in _each(texts, tallies()):
        glue = text.glued(before, tally)
        begun[i, : text.streams], glued[i, : text.streams] = before, glue
        before += tally.begun
        codes_in[i] = tally.characters + glue.sum() * len(text.glue)
        for codes, counts in zip(tally.codes, tally.counts, strict=True):
            totals[codes] += counts
        np.add.at(totals, text.glue, glue.sum())
    first = len(texts[0].source.pieces)
    if not (codes_in[:first].sum() - glued[:first].sum() * len(texts[0].glue)):
        raise CharlmError(f"{describe(config.data)}: the text is empty")
    vocab = Vocab.from_counts(totals, config.vocab)
    if not vocab.can_encode(np.flatnonzero(totals)):
        raise _misfit(texts, tallies(), vocab)

    layout = Layout(vocab, np.zeros(shape, np.int64), np.zeros(shape, np.int64), begun, [], [], {}, {}, {})
    layout.histograms = {s: np.zeros(len(vocab), np.int64) for text in texts for s in text.splits}
    layout.documents = {s: 0 for text in texts if not text.cut for s in text.splits}
    stops = np.cumsum([len(text.source.pieces) for text in texts]).tolist()
    layout.pieces = [[first, stop] for first, stop in zip([0, *stops], stops, strict=False)]
    firsts = dict(zip(texts, [0, *stops], strict=False))
    codes_before = np.cumsum(codes_in) - codes_in
    lengths = {text: int(codes_in[a:b].sum()) for text, (a, b) in zip(texts, layout.pieces, strict=True)}
    for i, text, tally, at in _each(texts, tallies()):
        parts = _histograms(text, tally, vocab, glued[i])
        layout.starts[i, : text.streams] = at
        layout.lengths[i, : text.streams] = [part.sum() for part in parts]
        at += layout.lengths[i, : text.streams]
        owners = text.splits
        if text.cut:
            low = int(codes_before[i] - codes_before[firsts[text]])
            owners, parts = _cut(
                text, i - firsts[text], low, int(codes_in[i]), lengths[text], vocab, begun[i], parts
            )
        for split, part in zip(owners, parts, strict=True):
            layout.histograms[split] += part
        if not text.cut:
            for split, ended in zip(owners, tally.ended, strict=True):
                layout.documents[split] += int(ended)
    for number, text in enumerate(texts):
        low = 0
        for stream, split in enumerate(text.splits):
            high = low + int(layout.histograms[split].sum())
            layout.ranges.append([number, 0 if text.cut else stream, split, low, high])
            low = high if text.cut else 0
    for split in layout.splits:
        size = layout.size(split)
        if size["symbols"] < 2 or not size["characters"]:
            raise CharlmError(
                f"{describe(config.data)}: the {split} split would hold {size['symbols']} symbols; "
                f"read more text, or change data.{split if split != 'train' else 'validation'}"
            )
    layout.facts = _facts(totals, vocab)
    return layout


def _each(texts: list[Text], tallies: Iterator[Tally]) -> Iterator[tuple[int, Text, Tally, np.ndarray]]:
    """(number, text, tally, int64[streams] that starts at zero with every text) of all pieces."""
    number = 0
    for text in texts:
        state = np.zeros(text.streams, np.int64)
        for _ in text.source.pieces:
            yield number, text, next(tallies), state
            number += 1


def _histograms(text: Text, tally: Tally, vocab: Vocab, glued: np.ndarray) -> list[np.ndarray]:
    """int64[V] per stream: the symbols of a piece, glue included."""
    codes, times = np.unique(text.glue.astype(np.uint32), return_counts=True)
    return [
        vocab.histogram(some, counts) + (vocab.histogram(codes, times * n) if n else 0)
        for some, counts, n in zip(tally.codes, tally.counts, glued, strict=False)
    ]


def _cut(text: Text, number: int, low: int, size: int, length: int, vocab: Vocab, begun, whole: list):
    """(splits, histogram of each) that a piece of a text in contiguous parts belongs to, usually one.

    number: of the piece in its text. low, size: codes before it and in it; length: in the whole text.
    """
    pieces = text.source.pieces
    borders = text.borders(length)
    owner = max(k for k, (_, begin, _) in enumerate(borders) if begin <= low)
    inside = [begin - low for _, begin, _ in borders if low < begin < low + size]
    if not inside:
        return text.splits[owner : owner + 1], whole
    begins_code = np.maximum(vocab.characters_per_symbol, np.arange(len(vocab)) == vocab.end).astype(np.int64)
    parts = [np.zeros(len(vocab), np.int64) for _ in range(len(inside) + 1)]
    k = done = 0  # borders and codes that are behind
    for _, ids in text.encode(pieces[number], vocab, begun.copy()):
        reached = done + np.cumsum(begins_code[ids])
        cuts = [0]
        for border in inside[k:]:
            if border < reached[-1]:
                cuts.append(int(np.searchsorted(reached, border + 1)))
        for j, (a, b) in enumerate(zip(cuts, [*cuts[1:], len(ids)], strict=True)):
            parts[k + j] += np.bincount(ids[a:b], minlength=len(vocab))
        k, done = k + len(cuts) - 1, int(reached[-1])
    return text.splits[owner : owner + len(parts)], parts


def _misfit(texts: list[Text], tallies: Iterator[Tally], vocab: Vocab) -> CharlmError:
    """Name the first character that a closed vocabulary lacks, or the separator."""
    for i, text, tally, before in _each(texts, tallies):
        if not all(vocab.can_encode(codes) for codes in tally.codes):
            number = i - sum(len(t.source.pieces) for t in texts[: texts.index(text)])
            return text.misfit(text.source.pieces[number], vocab, int(before[0]))
        before[0] += tally.characters
    return unfitting(texts[0].data, f"data.separator={texts[0].data.separator!r}", vocab)


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
