"""Two passes over a text: count its characters, then encode it; each piece of the text independently.

A text is divided into *streams* of symbols. Where documents are drawn for held-out splits, every split is a
stream. Where the text is cut into contiguous parts, it is one stream, and the splits are ranges of it.
"""

import math
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from io import StringIO
from itertools import islice

import numpy as np

from charlm.config.fields import Config
from charlm.corpus import kernels
from charlm.corpus.batches import Piece, TextBatch, TextSource
from charlm.corpus.readers import read_error
from charlm.corpus.sources import SPLITS, describe
from charlm.corpus.texts import not_utf8
from charlm.corpus.vocabulary import END, Vocab
from charlm.errors import CharlmError
from charlm.files import UTF16
from charlm.terminal import moving_bar, shows_bars

# Arrays for data.shuffle: the ids in the order of the text, instead of train; where documents begin in them.
ORDERED, DOCUMENTS = "train-ordered", "train-documents"
_CODES = (END + 256) >> 8 << 8  # size of a table of counts: whole pages of 256


class Tally:
    """The counts of a piece, without the glue between documents.

    sizes, begun, ended, empty: int64[streams], the number of different codes, and of documents that begin,
    end, are empty. codes: uint32[n], stream by stream, in order; counts: int64[n], how often each occurs.
    """

    def __init__(self, content: bytes):
        """content: of Text.count."""
        numbers = np.frombuffer(content, np.int64)
        n = int(numbers[0])
        self.sizes, self.begun, self.ended, self.empty = numbers[1 : 1 + 4 * n].reshape(4, n)
        self.counts, codes = numbers[1 + 4 * n :].reshape(2, -1)
        self.codes = codes.astype(np.uint32)


class Text:
    """One source and the splits that are made of it."""

    def __init__(self, source: TextSource, config: Config, splits: list[str]):
        """splits: their names; the first takes what the others leave. Raises CharlmError for an empty text
        and for too few documents."""
        self.source, self.data, self.splits = source, config.data, splits
        self.raw = config.vocab.bytes_only  # codes are bytes
        self.end_of_document = config.vocab.end_of_document
        # glue: uint32[g], codes after every document or else between documents
        separator = list(config.data.separator.encode() if self.raw else map(ord, config.data.separator))
        self.glue = np.array([END] if self.end_of_document else separator, np.uint32)
        self.contiguous = config.data.split_by == "character" and len(splits) > 1
        self.splits_of = [splits] if self.contiguous else [[split] for split in splits]  # of each stream
        self.columns = [SPLITS.index(names[0]) for names in self.splits_of]  # of each stream, in a Layout
        self.streams = len(self.columns)
        if self.streams > 1:
            self._limits = self._draw()
        if config.data.shuffle and splits[0] == "train":
            self.splits_of[0] = [ORDERED]
            advice = "permutes documents, which data.split_by=character cuts: set data.split_by=document"
            config.data.require(not self.contiguous, "shuffle", advice)
        self._scratch = threading.local()

    def _draw(self) -> np.ndarray:
        """uint64[held-out splits]: the greatest hash of a document in each. The least hashes are drawn."""
        documents = self.source.documents
        if not sum(piece.size for piece in self.source.pieces):  # no row, or files without a byte
            raise CharlmError(f"{describe(self.data)}: the text is empty")
        shares = [getattr(self.data, split) for split in self.splits[1:]]
        taken = np.cumsum([max(1, round(documents * share)) for share in shares])
        if taken[-1] >= documents:
            options = " and ".join(f"data.{split}={getattr(self.data, split)}" for split in self.splits[1:])
            problem = f"{options} cannot hold out whole documents, of which it has {documents}"
            advice = f"set data.split_by=character to cut the text, or {re.sub(r'=[^ ]*', '=0', options)}"
            raise CharlmError(f"{describe(self.data)}: {problem}; {advice}")
        least, step = np.empty(0, np.uint64), max(1 << 20, int(taken[-1]))
        for low in range(0, documents, step):  # memory for the held-out documents only
            block = np.arange(low, min(low + step, documents), dtype=np.uint64)
            least = np.sort(np.concatenate([least, mix(block, self.data.seed)]))[: taken[-1]]
        return least[taken - 1]  # exactly as many as wanted: the hash is one-to-one

    def route(self, rows: TextBatch) -> np.ndarray:
        """uint8[rows]: the stream of each row; held-out documents by a hash of seed and number."""
        if self.streams == 1:
            return np.zeros(len(rows.ends), np.uint8)
        drawn = np.searchsorted(self._limits, mix(rows.documents.astype(np.uint64), self.data.seed))
        return ((drawn + 1) % self.streams).astype(np.uint8)

    def batches(self, piece: Piece) -> Iterator[TextBatch]:
        """The rows of a piece. Raises CharlmError when they cannot be read."""
        try:
            yield from self.source.batches(piece, whole_characters=not self.raw)
        except Exception as error:  # of Arrow, of the disk, of the network
            raise read_error(error, self.data, piece.reader.name) from error

    def count(self, piece: Piece) -> bytes:
        """First pass, of one piece: the content of its Tally. Raises CharlmError for what is not UTF-8."""
        # A table of zeros per thread, put back when it is all zeros again: clearing it would cost more.
        counts = vars(self._scratch).pop("counts", None)
        if counts is None:
            counts = np.zeros((self.streams, _CODES), np.int64)
        ascii_counts = np.zeros((self.streams, 4, 256), np.int64)
        touched = np.zeros((self.streams, _CODES >> 8), bool)
        documents = np.zeros((3, self.streams), np.int64)  # begun, ended, empty
        for rows in self.batches(piece):
            route = self.route(rows)
            bad = kernels.count(rows.utf8, rows.offsets, route, self.raw, counts, ascii_counts, touched)
            if bad >= 0:
                raise self._not_utf8(rows, bad, piece)
            begins = np.append(rows.begins, rows.ends[:-1])
            empty = begins & rows.ends & (rows.offsets[1:] == rows.offsets[:-1])
            for total, chosen in zip(documents, (begins, rows.ends, empty), strict=True):
                total += np.bincount(route[chosen], minlength=self.streams)
        counts[:, :256] += ascii_counts.sum(1)
        touched[:, 0] = True
        pages = counts.reshape(-1, 256)  # of all streams
        written = np.flatnonzero(touched)
        row, code = np.nonzero(pages[written])
        stream, page = np.divmod(written[row], _CODES >> 8)
        times = pages[written[row], code]
        pages[written] = 0
        self._scratch.counts = counts
        sizes = np.bincount(stream, minlength=self.streams)
        return np.concatenate([[self.streams], sizes, *documents, times, page * 256 + code]).tobytes()

    def encode(self, piece: Piece, vocab: Vocab, begun: np.ndarray) -> Iterator[tuple]:
        """Second pass, of one piece: (stream, its next ids, begins), one batch after the other.

        begun: int64[streams], documents begun before the piece; advanced. The ids, of dtype vocab.dtype, are
        overwritten by the next batch. begins: int64[n], where documents begin in them, for data.shuffle.
        """
        (ids, spelling), shuffled = vocab.tables, bool(self.data.shuffle)
        glue = vocab.encode_codes(self.glue) if vocab.can_encode(self.glue) else self.glue[:0]
        glue = glue.astype(np.uint16)
        out = getattr(self._scratch, "out", np.empty(0, vocab.dtype))
        for rows in self.batches(piece):
            route = self.route(rows)
            room = np.bincount(route, np.diff(rows.offsets) + len(glue), self.streams).astype(np.int64)
            starts = np.cumsum(room) - room
            if len(out) < room.sum():
                out = self._scratch.out = np.empty(room.sum(), vocab.dtype)
            position, at_row = starts.copy(), np.empty(len(route), np.int64)
            bad = kernels.encode(
                *(rows.utf8, rows.offsets, rows.ends, rows.begins, route, self.raw),
                *(ids, spelling, glue, self.end_of_document, begun, out, position, at_row),
            )
            if bad >= 0:
                raise self._not_utf8(rows, bad, piece)
            for stream in np.flatnonzero((position > starts) | shuffled):
                begins = np.append(rows.begins, rows.ends[:-1]) & (route == stream) if shuffled else slice(0)
                ids_of = out[starts[stream] : position[stream]]
                yield int(stream), ids_of, at_row[begins] - starts[stream]

    def borders(self, length: int) -> list[int]:
        """Where the contiguous parts of a text of so many codes begin. Fractions are exact, as written."""
        shares = [Fraction(str(getattr(self.data, split))) for split in self.splits[1:]]
        return [0, *(math.floor(length * (1 - sum(shares[i:]))) for i in range(len(shares)))]

    def _not_utf8(self, rows: TextBatch, bad: int, piece: Piece) -> CharlmError:
        text = rows.utf8[rows.offsets[bad] : rows.offsets[bad + 1]].tobytes()
        error = not_utf8(text)
        byte = error.start + (rows.skipped if bad == 0 else 0)
        row = at = rows.first - piece.first
        row += bad if piece.kept is None else int(np.flatnonzero(piece.kept[at:])[bad])
        place = f"{piece.place(row, byte)} (0x{text[error.start]:02X})"
        advice = "convert it, set data.encoding of all files (latin-1, cp1252, …), or vocab.bytes_only=true"
        if byte == 0 and text.startswith(UTF16):
            advice = "it begins as UTF-16 does: set data.encoding=utf-16"
        return CharlmError(f"{place} is not UTF-8 ({error.reason}); {advice}")


def in_order(title: str, work: Callable, use: Callable, sizes: dict[int, int], workers: int) -> None:
    """use(work(piece)) for each piece: work by so many threads, use in this one, in the order of sizes
    (piece → bytes). Shows a bar on a terminal, in a log a line every half minute."""
    terminal = shows_bars()
    screen = {} if terminal else {"mininterval": 30, "file": StringIO()}
    logged = time.monotonic()
    pieces, pending = iter(sizes), deque()
    pool = ThreadPoolExecutor(workers)
    try:
        with moving_bar(desc=title, total=sum(sizes.values()), unit="B", unit_scale=True, **screen) as bar:
            while True:
                for piece in islice(pieces, 2 * workers + 1 - len(pending)):
                    pending.append((sizes[piece], pool.submit(work, piece)))
                if not pending:
                    return
                size, future = pending.popleft()
                use(future.result())
                bar.update(size)
                if not terminal and time.monotonic() - logged > 30:
                    logged = time.monotonic()
                    print(bar, file=sys.stderr, flush=True)
    finally:
        pool.shutdown(cancel_futures=True)


def mix(x: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 (Steele, Lea, Flood 2014): a well-mixed uint64 for each x, the same everywhere."""
    with np.errstate(over="ignore"):
        x = x + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
