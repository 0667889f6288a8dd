"""Two passes over a text: count its characters, then encode it; each piece of the text apart from the others.

After the first pass the length of everything is known. So the second can write any piece, in any order and
from any thread or machine, to its own place in the arrays of ids.

A text is dealt out to *streams* of symbols. Where documents are drawn for held-out splits, every split is a
stream. Where the text is cut in contiguous parts, it is one stream, and the splits are ranges of it.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from charlm.config.fields import Config
from charlm.corpus import kernels
from charlm.corpus.batches import Piece, TextBatch, TextSource
from charlm.corpus.readers import TextFiles
from charlm.corpus.sources import describe, read_error
from charlm.corpus.vocabulary import END, Vocab, codes_of, name_of
from charlm.errors import CharlmError

_CODES = (END + 256) >> 8 << 8  # places in a table of counts: whole pages of 256
_T = TypeVar("_T")


@dataclass
class Tally:
    """What the counting pass says of a piece, per stream: codes uint32[n] in order, how often each occurs
    int64[n], documents that begin and that end in the piece. Nothing between documents is counted."""

    codes: list[np.ndarray]
    counts: list[np.ndarray]
    begun: np.ndarray
    ended: np.ndarray

    def to_bytes(self) -> bytes:
        sizes = [len(c) for c in self.codes]
        parts = ([len(sizes), *sizes], self.begun, self.ended, *self.counts, *self.codes)
        return np.concatenate([np.asarray(p, np.int64) for p in parts]).tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> Tally:
        numbers = np.frombuffer(content, np.int64)
        n, numbers = int(numbers[0]), numbers[1:]
        sizes = [int(size) for size in numbers[:n]]
        *parts, _ = np.split(numbers[n:], np.cumsum([n, n, *sizes, *sizes]))
        return cls([c.astype(np.uint32) for c in parts[2 + n :]], parts[2 : 2 + n], parts[0], parts[1])

    @property
    def characters(self) -> int:
        return sum(int(c.sum()) for c in self.counts)


class Text:
    """One source and the splits that are made of it."""

    def __init__(self, source: TextSource, config: Config, splits: list[str]):
        """splits: their names; the first takes what the others leave.

        Raises CharlmError when there are too few documents to draw some for each.
        """
        self.source, self.data, self.splits = source, config.data, splits
        self.bytes_only = config.vocab.bytes_only
        self.after = config.vocab.end_of_document
        self.glue = np.array([END], np.uint32)  # codes after every document
        if not self.after:  # codes between documents
            separator = np.frombuffer(config.data.separator.encode("utf-8"), np.uint8)
            self.glue = separator if self.bytes_only else codes_of(separator)
        self.cut = config.data.split_by == "character" and len(splits) > 1
        self.streams = 1 if self.cut else len(splits)
        self._limits = [] if self.streams == 1 else self._draw()
        self._scratch = threading.local()

    def _draw(self) -> list[np.uint64]:
        """The greatest hash of a document in each held-out split: the k documents of least hash are held out.

        The hash is one-to-one, so that exactly k have it. Flat in memory, whatever the number of documents.
        """
        documents, taken, limits = self.source.documents, 0, []
        if not sum(piece.size for piece in self.source.pieces):  # no row, or files without a byte
            raise CharlmError(f"{describe(self.data)}: the text is empty")
        for split in self.splits[1:]:
            taken += max(1, round(documents * getattr(self.data, split)))
            if taken >= documents:
                raise CharlmError(
                    f"{describe(self.data)}: {documents} document(s) cannot be split in {len(self.splits)}; "
                    f"set data.split_by=character, or data.validation=0 and data.test=0"
                )
            limits.append(_kth_least(documents, taken, self.data.seed))
        return limits

    def route(self, rows: TextBatch) -> np.ndarray:
        """uint8[rows]: the stream of each row; held-out documents by a hash of seed and number."""
        if not self._limits:
            return np.zeros(len(rows.ends), np.uint8)
        mixed = _mix(rows.documents.astype(np.uint64), self.data.seed)
        return np.select([mixed <= limit for limit in self._limits], range(1, self.streams), 0).astype(
            np.uint8
        )

    def batches(self, piece: Piece) -> Iterator[TextBatch]:
        """The rows of a piece. Raises CharlmError when they cannot be read."""
        rows = self.source.batches(piece, whole_characters=not self.bytes_only)
        while True:
            try:
                batch = next(rows, None)
            except Exception as error:  # of Arrow, of the disk, of the network
                raise read_error(error, self.data, piece.reader.name) from error
            if batch is None:
                return
            yield batch

    def count(self, piece: Piece) -> Tally:
        """First pass, of one piece. Raises CharlmError, naming row and byte, for what is not UTF-8."""
        if not hasattr(self._scratch, "counts"):
            self._scratch.counts = np.zeros((self.streams, _CODES), np.int64)
        counts = self._scratch.counts
        ascii_counts = np.zeros((self.streams, 4, 256), np.int64)
        touched = np.zeros((self.streams, _CODES >> 8), bool)
        begun, ended = np.zeros(self.streams, np.int64), np.zeros(self.streams, np.int64)
        try:
            for rows in self.batches(piece):
                route = self.route(rows)
                bad = kernels.count(
                    rows.utf8, rows.offsets, route, self.bytes_only, counts, ascii_counts, touched
                )
                if bad >= 0:
                    raise self._not_utf8(rows, bad, piece)
                begins = np.concatenate([[rows.begins], rows.ends[:-1]])
                begun += np.bincount(route[begins], minlength=self.streams)
                ended += np.bincount(route[rows.ends], minlength=self.streams)
        except BaseException:
            del self._scratch.counts
            raise
        counts[:, :256] += ascii_counts.sum(1)
        touched[:, 0] = True
        tally = Tally([], [], begun, ended)
        for stream in range(self.streams):
            pages = counts[stream].reshape(-1, 256)
            written = np.flatnonzero(touched[stream])
            codes = (written[:, None] * 256 + np.arange(256)).ravel()
            found = pages[written].ravel()
            tally.codes.append(codes[found > 0].astype(np.uint32))
            tally.counts.append(found[found > 0])
            pages[written] = 0
        return tally

    def encode(self, piece: Piece, vocab: Vocab, begun: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Second pass, of one piece: (stream, its next ids) one after the other.

        begun: int64[streams], documents begun before the piece; advanced. The ids are overwritten at the
        next.
        """
        if not hasattr(self._scratch, "out"):
            self._scratch.out = np.empty(0, vocab.dtype)
        ids, spelling = vocab.tables
        glue = vocab.encode_codes(self.glue) if vocab.can_encode(self.glue) else self.glue[:0]
        glue = glue.astype(np.uint16)
        for rows in self.batches(piece):
            route = self.route(rows)
            room = np.bincount(route, np.diff(rows.offsets) + len(glue), self.streams).astype(np.int64)
            starts = np.cumsum(room) - room
            if len(self._scratch.out) < room.sum():
                self._scratch.out = np.empty(room.sum(), vocab.dtype)
            out, position = self._scratch.out, starts.copy()
            bad = kernels.encode(
                *(rows.utf8, rows.offsets, rows.ends, rows.begins, route, self.bytes_only),
                *(ids, spelling, glue, self.after, begun, out, position),
            )
            if bad >= 0:
                raise self._not_utf8(rows, bad, piece)
            for stream in np.flatnonzero(position > starts):
                yield int(stream), out[starts[stream] : position[stream]]

    def glued(self, begun: np.ndarray, tally: Tally) -> np.ndarray:
        """int64[streams]: how often the glue stands in a piece before which so many documents had begun."""
        if self.after:
            return tally.ended
        return np.maximum(begun + tally.begun - 1, 0) - np.maximum(begun - 1, 0)

    def borders(self, length: int) -> list[tuple[str, int, int]]:
        """The contiguous parts of a text of so many codes: (split, begin, end). Fractions are taken exactly
        as written."""
        share, begins = Fraction(0), [length]
        for split in reversed(self.splits[1:]):
            share += Fraction(str(getattr(self.data, split)))
            begins.insert(0, math.floor(length * (1 - share)))
        begins.insert(0, 0)
        return list(zip(self.splits, begins, begins[1:], strict=False))

    def _not_utf8(self, rows: TextBatch, bad: int, piece: Piece) -> CharlmError:
        try:
            rows.utf8[rows.offsets[bad] : rows.offsets[bad + 1]].tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            byte = error.start + (rows.skipped if bad == 0 else 0)
            place = f"{describe(self.data)}: {piece.reader.name}: row {rows.first + bad:,}, byte {byte:,}"
            if isinstance(piece.reader, TextFiles):
                row = piece.skip + rows.first + bad - piece.first
                value = rows.utf8[rows.offsets[bad] + error.start]
                place = f"{piece.reader.place_of(piece.part, row, byte)} (0x{value:02X})"
            return CharlmError(
                f"{place} is not UTF-8 ({error.reason}); convert the text, or read it as "
                f"bytes with vocab.bytes_only=true"
            )
        raise AssertionError("kernels and Python disagree about UTF-8")

    def misfit(self, piece: Piece, vocab: Vocab, before: int) -> CharlmError:
        """Name the first character of a piece that a closed vocabulary lacks; before: characters before
        it."""
        known = set(vocab.characters)
        for rows in self.batches(piece):
            for row, (low, high) in enumerate(zip(rows.offsets, rows.offsets[1:], strict=False)):
                text = rows.utf8[low:high].tobytes().decode("utf-8")
                for at, character in enumerate(text if not known.issuperset(text) else ""):
                    if character not in known:
                        place = f"character {before + at:,} of the text (document {rows.documents[row]:,})"
                        return unfitting(self.data, f"{name_of(character)}, {place},", vocab)
                before += len(text)
        raise AssertionError("the piece was said to hold a character outside the vocabulary")


def unfitting(data, what: str, vocab: Vocab) -> CharlmError:
    """The error for what a closed vocabulary lacks."""
    return CharlmError(
        f"{describe(data)}: {what} is not in the closed vocabulary of {len(vocab)} symbols; "
        f"add it to vocab.characters, or set vocab.unknown=bytes"
    )


def in_order(work: Callable[[int], _T], items: Iterable[int], workers: int) -> Iterator[tuple[int, _T]]:
    """(item, work(item)) in the order of the items, of which so many threads work at a time."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque = deque()
        try:
            for item in items:
                pending.append((item, pool.submit(work, item)))
                if len(pending) > 2 * workers:
                    done, result = pending.popleft()
                    yield done, result.result()
            for done, result in pending:
                yield done, result.result()
        finally:
            for _, result in pending:
                result.cancel()


def _kth_least(n: int, k: int, seed: int) -> np.uint64:
    """The k-th least (from 1) of the hashes of 0 … n - 1, without holding them all."""
    step = 1 << 20
    blocks = [range(low, min(low + step, n)) for low in range(0, n, step)]

    def hashes() -> Iterator[np.ndarray]:
        for block in blocks:
            yield _mix(np.arange(block.start, block.stop, dtype=np.uint64), seed)

    counts = sum(np.bincount(h >> np.uint64(48), minlength=1 << 16) for h in hashes())
    below = np.cumsum(counts)
    page = int(np.searchsorted(below, k))
    within = np.concatenate([h[h >> np.uint64(48) == page] for h in hashes()])
    return np.sort(within)[k - 1 - int(below[page] - counts[page])]


def _mix(x: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 (Steele, Lea, Flood 2014): a well-mixed uint64 for each x, the same everywhere."""
    with np.errstate(over="ignore"):
        x = x + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@contextmanager
def progress(title: str, sizes: list[int]) -> Iterator[Callable[[int], None]]:
    """A bar in bytes, with MB/s and the time left: on a terminal a live one, in a log a line every half
    minute. Yields the function that moves it on by so many bytes."""
    terminal = sys.stderr.isatty()
    began = told = time.monotonic()
    done = 0
    options = {"total": sum(sizes), "unit": "B", "unit_scale": True}
    with tqdm(desc=title, disable=not terminal, dynamic_ncols=True, **options) as bar:

        def advance(size: int) -> None:
            nonlocal told, done
            bar.update(size)
            done += size
            now = time.monotonic()
            if not terminal and now - told > 30:
                told = now
                line = tqdm.format_meter(done, elapsed=now - began, prefix=title, ncols=79, **options)
                print(line, file=sys.stderr, flush=True)

        yield advance
