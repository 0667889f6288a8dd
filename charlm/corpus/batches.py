"""Text as Arrow batches of UTF-8: the rows of one split of a dataset, in pieces that threads read apart.

A piece yields Rows. Rows of Arrow are never turned into Python strings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from charlm.config.fields import DataConfig
from charlm.corpus import readers
from charlm.corpus.readers import ArrowFile, Memory, ParquetFile
from charlm.corpus.textfile import TextFiles


@dataclass
class Rows:
    """A batch of text.

    utf8: uint8[n]. offsets: int64[rows + 1], where the rows lie in utf8. ends: bool[rows], True where a row
    is the last of its document. begins: the first row is the first of its document, whose number is
    document. first: number of the first row in its split, of which `skipped` bytes came in the batch
    before.
    """

    utf8: np.ndarray
    offsets: np.ndarray
    ends: np.ndarray
    begins: bool
    document: int
    first: int
    skipped: int

    @property
    def documents(self) -> np.ndarray:
        """int64[rows]: the number of the document that each row belongs to."""
        return self.document + np.concatenate([[0], np.cumsum(self.ends[:-1])]).astype(np.int64)


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one file.

    part: what the file's reader calls them; skip: rows of it that are left out first. rows: how many are
    read; first: number of the first in its split. size: bytes of text, about. document: number of the
    document the first row belongs to; begins: and starts; documents: how many end here. closes: so does the
    last row, whatever the file says; cut: and only so many bytes of it are kept.
    """

    reader: ArrowFile | ParquetFile | TextFiles | Memory
    part: object
    skip: int
    rows: int
    first: int
    size: int
    document: int
    begins: bool
    documents: int
    closes: bool = False
    cut: int | None = None


class Source:
    """One split of a dataset, in pieces. documents: how many it holds."""

    def __init__(self, data: DataConfig, files: list, low: int = 0, high: int | None = None):
        """files: their readers, in order. low, high: the rows that are wanted."""
        self.data = data
        self.pieces: list[Piece] = []
        row = first = document = 0
        begins = True
        for reader in files:
            for part, rows, size in reader.parts():
                skip = min(max(low - row, 0), rows)
                keep = min(rows, rows if high is None else max(high - row, 0)) - skip
                row += rows
                if keep <= 0:
                    continue
                ends = reader.ends(part)
                ends = None if ends is None else ends[skip : skip + keep]
                documents = keep if ends is None else int(np.count_nonzero(ends))
                size = size * keep // rows
                self.pieces.append(Piece(reader, part, skip, keep, first, size, document, begins, documents))
                first, document = first + keep, document + documents
                begins = ends is None or bool(ends[-1])
        if not begins:  # the wanted rows end within a document
            document += 1
            self.pieces[-1] = replace(self.pieces[-1], documents=documents + 1, closes=True)
        self.documents = document

    def __add__(self, other: Source) -> Source:
        """The rows of both, one after the other."""
        joined = Source(self.data, [])
        rows = self.pieces[-1].first + self.pieces[-1].rows if self.pieces else 0
        joined.pieces = self.pieces + [
            replace(p, first=p.first + rows, document=p.document + self.documents) for p in other.pieces
        ]
        joined.documents = self.documents + other.documents
        return joined

    def batches(self, piece: Piece, whole_characters: bool = True) -> Iterator[Rows]:
        """The rows of a piece in order. Batches longer than BATCH are one row of parquet cut in slices,
        between characters if whole_characters."""
        ends = piece.reader.ends(piece.part)
        at, document, begins = 0, piece.document, piece.begins  # rows of the piece read so far
        skip = piece.skip
        for texts in piece.reader.read(piece.part):
            if skip >= len(texts):
                skip -= len(texts)
                continue
            texts = texts[skip : skip + piece.rows - at]
            skip = 0
            utf8, offsets = utf8_of(texts)
            last = at + len(texts) == piece.rows
            mine = np.ones(len(texts), bool)
            if ends is not None:
                mine = ends[piece.skip + at :][: len(texts)].copy()
            if last and piece.closes:
                mine[-1] = True
                offsets[-1] = offsets[-1] if piece.cut is None else offsets[-2] + piece.cut
            for low, high, starts, end_of_row, skipped in _cut(utf8, offsets, mine, whole_characters):
                finished = mine[low:high] if end_of_row else np.zeros(1, bool)
                yield Rows(utf8, starts, finished, begins, document, piece.first + at + low, skipped)
                document += int(np.count_nonzero(finished))
                begins = bool(finished[-1])
            at += len(texts)
            if last:
                return

    def until(self, documents: int | None, characters: int | None, by_bytes: bool) -> None:
        """Leave out what comes after so many documents, or characters (bytes if by_bytes)."""
        if documents is not None and documents < self.documents:
            for i, piece in enumerate(self.pieces):
                if piece.document + piece.documents >= documents:
                    ends = piece.reader.ends(piece.part)
                    rows = documents - piece.document
                    if ends is not None:
                        rows = 1 + int(np.flatnonzero(ends[piece.skip :])[rows - 1])
                    self._stop(i, rows, documents)
                    break
        if characters is None:
            return
        left = characters
        for i, piece in enumerate(self.pieces):
            for rows in self.batches(piece, whole_characters=not by_bytes):
                low, high = rows.offsets[0], rows.offsets[-1]
                lead = np.ones(high - low, bool) if by_bytes else rows.utf8[low:high] & 0xC0 != 0x80
                reached = np.cumsum(lead)
                if high > low and reached[-1] >= left:
                    begin = low + np.searchsorted(reached, left)  # of the last character
                    row = int(np.searchsorted(rows.offsets, begin, side="right")) - 1
                    stop = min(low + np.searchsorted(reached, left + 1), rows.offsets[row + 1])
                    cut = int(stop - rows.offsets[row]) + (rows.skipped if row == 0 else 0)
                    self._stop(i, rows.first + row - piece.first + 1, int(rows.documents[row]) + 1, cut)
                    return
                left -= int(reached[-1]) if high > low else 0

    def _stop(self, i: int, rows: int, documents: int, cut: int | None = None) -> None:
        piece = self.pieces[i]
        size = piece.size * rows // piece.rows
        some = documents - piece.document
        self.pieces[i:] = [replace(piece, rows=rows, documents=some, closes=True, cut=cut, size=size)]
        self.documents = documents


def _cut(utf8, offsets, ends, whole_characters: bool) -> Iterator[tuple[int, int, np.ndarray, bool, int]]:
    """Batches of at most readers.BATCH bytes, if they can be: (first row, row after the last, offsets, the
    batch ends where a row does, bytes of the first row that came before)."""
    row = 0
    while row < len(ends):
        stop = int(np.searchsorted(offsets, offsets[row] + readers.BATCH, side="right")) - 1
        if stop > row:
            yield row, stop, offsets[row : stop + 1], True, 0
            row = stop
            continue
        start, low, high = offsets[row], offsets[row], offsets[row + 1]  # one long row, in slices
        while low < high:
            edge = min(low + readers.BATCH, high)
            if whole_characters and edge < high:  # a character has at most 3 bytes beyond its first
                near = [*range(edge, max(edge - 4, low), -1), *range(edge + 1, min(edge + 4, high))]
                edge = next((at for at in near if utf8[at] & 0xC0 != 0x80), min(edge + 4, high))
            yield row, row + 1, np.array([low, edge]), bool(edge == high), int(low - start)
            low = edge
        row += 1


def utf8_of(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The buffers of a string or binary array: utf8 uint8[n], offsets int64[rows + 1]; null is empty."""
    if pa.types.is_null(texts.type):
        return np.empty(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    if texts.null_count:
        texts = pc.fill_null(texts, b"" if "binary" in str(texts.type) else "")
    wide = pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type)
    _, offset_buffer, value_buffer = texts.buffers()
    if len(texts) == 0 or offset_buffer is None:
        return np.empty(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    offsets = np.frombuffer(offset_buffer, np.int64 if wide else np.int32)
    offsets = offsets[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    values = np.frombuffer(value_buffer, np.uint8) if value_buffer is not None else np.empty(0, np.uint8)
    return values[offsets[0] : offsets[-1]], offsets - offsets[0]
