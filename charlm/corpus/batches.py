"""The rows of one split of a dataset as batches of UTF-8, in pieces that threads read in parallel.

Rows stay in Arrow's buffers: none becomes a Python string.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from charlm.corpus import readers
from charlm.corpus.readers import Reader


@dataclass
class TextBatch:
    """Consecutive rows, or a slice of one long row.

    utf8: uint8[n]. offsets: int64[rows + 1], where the rows are in utf8. ends: bool[rows], True for the last
    row of a document. begins: the first row is the first of its document. document: number of that document
    in the split. first: number of the first row in the split. skipped: bytes of the first row that were in
    earlier batches.
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
        """int64[rows]: the number of the document of each row."""
        return self.document + np.concatenate([[0], np.cumsum(self.ends[:-1])]).astype(np.int64)


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one part of a reader: all but the first `skip`, and `rows` of the others.

    first: number of the first row in the split. size: bytes of text, approximately. document: number of the
    document of the first row; begins: the first row begins it. documents: how many end in the piece. closes:
    the last row ends a document in any case. cut: bytes that are kept of the last row; None for all.
    """

    reader: Reader
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


class TextSource:
    """One split of a dataset. pieces: its pieces, in order. documents: how many it has."""

    def __init__(self, *selections: tuple[list[Reader], int, int | None]):
        """selections: the rows low to high (None: to the end) of all rows of these readers, in order."""
        self.pieces: list[Piece] = []
        self.documents = first = 0
        for files, low, high in selections:
            row, begins = 0, True
            for reader in files:
                for part, rows, size in reader.parts():
                    skip = min(max(low - row, 0), rows)
                    keep = min(rows, rows if high is None else max(high - row, 0)) - skip
                    row += rows
                    if keep <= 0:
                        continue
                    ends = reader.ends(part)
                    ends = np.ones(keep, bool) if ends is None else ends[skip : skip + keep]
                    documents, size = int(np.count_nonzero(ends)), size * keep // rows
                    place = (skip, keep, first, size, self.documents, begins, documents)
                    self.pieces.append(Piece(reader, part, *place))
                    first, self.documents, begins = first + keep, self.documents + documents, bool(ends[-1])
            if not begins:  # the selection stops within a document
                self.documents += 1
                self.pieces[-1] = replace(self.pieces[-1], documents=documents + 1, closes=True)

    def batches(self, piece: Piece, whole_characters: bool = True) -> Iterator[TextBatch]:
        """The rows of a piece in order. A row longer than readers.BATCH bytes comes in slices, cut between
        characters if whole_characters."""
        ends_of_part = piece.reader.ends(piece.part)
        document, begins = piece.document, piece.begins
        stop = -piece.skip  # rows of the piece read so far, negative before its first
        for texts in piece.reader.read(piece.part):
            low, high = max(-stop, 0), min(len(texts), piece.rows - stop)
            start, stop = stop + low, stop + len(texts)
            if low >= high:
                continue
            utf8, offsets = utf8_of(texts[low:high])
            ends = np.ones(high - low, bool)
            if ends_of_part is not None:
                ends = ends_of_part[piece.skip + start :][: high - low].copy()
            if stop >= piece.rows and piece.closes:
                ends[-1] = True
                offsets[-1] = offsets[-1] if piece.cut is None else offsets[-2] + piece.cut
            for row, next_row, row_offsets, whole, skipped in _cut(utf8, offsets, whole_characters):
                row_ends = ends[row:next_row] if whole else np.zeros(1, bool)
                yield TextBatch(
                    utf8, row_offsets, row_ends, begins, document, piece.first + start + row, skipped
                )
                document += int(np.count_nonzero(row_ends))
                begins = bool(row_ends[-1])
            if stop >= piece.rows:
                return

    def limit(self, documents: int | None, characters: int | None, by_bytes: bool) -> None:
        """Keep so many documents, then so many characters (bytes if by_bytes); None for all."""
        if documents is not None and documents < self.documents:
            i = next(i for i, c in enumerate(self.pieces) if c.document + c.documents >= documents)
            piece = self.pieces[i]
            ends = piece.reader.ends(piece.part)
            rows = documents - piece.document
            if ends is not None:
                rows = 1 + int(np.flatnonzero(ends[piece.skip :])[rows - 1])
            self._stop(i, rows, documents)
        if characters is None:
            return
        left = characters
        for i, piece in enumerate(self.pieces):
            for batch in self.batches(piece, whole_characters=not by_bytes):
                low, high = batch.offsets[0], batch.offsets[-1]
                begins = np.ones(high - low, bool) if by_bytes else batch.utf8[low:high] & 0xC0 != 0x80
                reached = np.cumsum(begins)
                if high > low and reached[-1] >= left:
                    last = low + np.searchsorted(reached, left)  # first byte of the last character
                    row = int(np.searchsorted(batch.offsets, last, side="right")) - 1
                    stop = min(low + np.searchsorted(reached, left + 1), batch.offsets[row + 1])
                    cut = int(stop - batch.offsets[row]) + (batch.skipped if row == 0 else 0)
                    self._stop(i, batch.first + row - piece.first + 1, int(batch.documents[row]) + 1, cut)
                    return
                left -= int(reached[-1]) if high > low else 0

    def _stop(self, i: int, rows: int, documents: int, cut: int | None = None) -> None:
        """Drop everything after so many rows of piece i; documents: how many are left in all."""
        piece = self.pieces[i]
        size, ended = piece.size * rows // piece.rows, documents - piece.document
        self.pieces[i:] = [replace(piece, rows=rows, documents=ended, closes=True, cut=cut, size=size)]
        self.documents = documents


def _cut(
    utf8: np.ndarray, offsets: np.ndarray, whole_characters: bool
) -> Iterator[tuple[int, int, np.ndarray, bool, int]]:
    """Batches of about readers.BATCH bytes: (first row, row after the last, offsets, True if the end of a row
    ends it, bytes of the first row in earlier batches)."""
    row, rows = 0, len(offsets) - 1
    while row < rows:
        stop = int(np.searchsorted(offsets, offsets[row] + readers.BATCH, side="right")) - 1
        if stop > row:
            yield row, stop, offsets[row : stop + 1], True, 0
            row = stop
            continue
        start, low, high = offsets[row], offsets[row], offsets[row + 1]  # one long row, in slices
        while low < high:
            edge = min(low + readers.BATCH, high)
            if whole_characters:  # a character has at most 3 bytes beyond its first
                continues = utf8[edge : min(edge + 3, high)] & 0xC0 == 0x80
                edge += int(np.argmin(np.append(continues, False)))
            yield row, row + 1, np.array([low, edge]), bool(edge == high), int(low - start)
            low = edge
        row += 1


def utf8_of(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The buffers of a string or binary array: utf8 uint8[n], offsets int64[rows + 1]; null is empty."""
    texts = texts.cast(pa.large_binary())
    if texts.null_count:
        texts = pc.fill_null(texts, b"")
    if len(texts) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, values = texts.buffers()
    offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(values or b"", np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0]
