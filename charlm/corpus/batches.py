"""The rows of one split of a dataset as batches of UTF-8, in pieces that threads read in parallel. Rows
stay in Arrow's buffers: none becomes a Python string."""

import logging
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from charlm.config.fields import DataConfig
from charlm.corpus import readers
from charlm.corpus.readers import Reader, read_error, readers_of
from charlm.corpus.sources import describe, resolve
from charlm.corpus.texts import normalized, not_utf8
from charlm.errors import CharlmError, CharlmWarning
from charlm.terminal import shows_bars


@dataclass
class TextBatch:
    """Consecutive rows, or a slice of one long row.

    utf8: uint8[n]. offsets: int64[rows + 1], where the rows are in utf8. ends, begins, document, first: see
    Piece. skipped: bytes of the first row that were in earlier batches.
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


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive rows of one part of a reader, after the first `skip`.

    ends: bool[rows], True for the last row of a document. first: number of the first row in the split. size:
    bytes of text, approximately. document: number of the document of the first row. begins: the first row is
    the first of that document. cut: how many bytes of the last row are kept; None for all. kept: bool[rows],
    False for the rows that are left out; document and begins count without them. None: all are kept.
    """

    reader: Reader
    part: object
    skip: int
    ends: np.ndarray
    first: int
    size: int
    document: int
    begins: bool
    cut: int | None = None
    kept: np.ndarray | None = None

    @property
    def rows(self) -> int:
        return len(self.ends)

    def place(self, row: int, byte: int) -> str:
        """Where a byte of one of its rows is; in a file that charlm parses, the line or the offset."""
        if place_of := getattr(self.reader, "place_of", None):
            return place_of(self.part, self.skip + row, byte)
        return f"{self.reader.name}: row {self.first + row:,}, byte {byte:,}"


class TextSource:
    """One split of a dataset. pieces: its rows, in order. documents: how many it has. skipped: rows that were
    left out by data.on_bad_line. duplicates: documents that were left out by data.deduplicate."""

    def __init__(self, *selections: tuple[list[Reader], int, int | None], steps: Sequence[str] | None = None):
        """selections: of all rows of these readers, those from low to high (None: to the end). steps: of
        data.normalize."""
        self.pieces: list[Piece] = []
        self.steps = steps
        self.documents = first = self.skipped = self.duplicates = 0
        for files, low, high in selections:
            row, begins = 0, True
            for reader in files:
                for part, ends, size in reader.parts():
                    skip, rows = max(low - row, 0), len(ends)
                    stop = None if high is None else max(high - row, 0)
                    row += rows
                    if not len(ends := ends[skip:stop]):
                        continue
                    size = size * len(ends) // rows
                    self.pieces.append(Piece(reader, part, skip, ends, first, size, self.documents, begins))
                    first, begins = first + len(ends), bool(ends[-1])
                    self.documents += int(np.count_nonzero(ends))
            self.skipped += sum(reader.skipped for reader in files)
            if not begins:  # the selection stops within a document
                self._stop(len(self.pieces) - 1, self.pieces[-1].rows)

    def batches(self, piece: Piece, whole_characters: bool = True) -> Iterator[TextBatch]:
        """The rows of a piece in order. A row longer than readers.BATCH bytes comes in slices, cut between
        characters if whole_characters."""
        document, begins = piece.document, piece.begins
        stop = -piece.skip  # rows of the piece read so far, negative before its first
        for texts in piece.reader.read(piece.part):
            low, high = max(-stop, 0), min(len(texts), piece.rows - stop)
            start, stop = stop + low, stop + len(texts)
            if low >= high:
                continue
            numbers, texts = np.arange(start, start + high - low), texts[low:high]  # rows of the piece
            texts = self._normalized(texts, piece, start) if self.steps else texts
            if piece.kept is not None:
                numbers = start + np.flatnonzero(piece.kept[numbers])
                texts = texts.take(pa.array(numbers - start))
            utf8, offsets = utf8_of(texts)
            if len(numbers) and numbers[-1] + 1 == piece.rows and piece.cut is not None:
                offsets[-1] = offsets[-2] + piece.cut
            for row, next_row, first_byte, stop_byte in _cut(utf8, offsets, whole_characters):
                batch_offsets = offsets[row : next_row + 1].clip(first_byte, stop_byte)
                whole = stop_byte == offsets[next_row]  # else the batch is a slice within a row
                ends = piece.ends[numbers[row:next_row]] & whole
                first, skipped = piece.first + int(numbers[row]), int(first_byte - offsets[row])
                yield TextBatch(utf8, batch_offsets, ends, begins, document, first, skipped)
                document += int(np.count_nonzero(ends))
                begins = bool(ends[-1])
            if stop >= piece.rows:
                return

    def _normalized(self, texts: pa.Array, piece: Piece, start: int) -> pa.Array:
        """Rows of a piece, from one on, after data.normalize. Raises CharlmError for what is not UTF-8."""
        try:
            return normalized(texts.cast(pa.large_string()), self.steps)
        except pa.ArrowInvalid:
            errors = ((row, not_utf8(text or b"")) for row, text in enumerate(texts.to_pylist(), start))
            place = next(piece.place(row, error.start) for row, error in errors if error)
            advice = "set data.encoding, or mend it: data.normalize needs UTF-8"
            raise CharlmError(f"{place} is not UTF-8; {advice}") from None

    def limit(self, documents: int | None, characters: int | None, by_bytes: bool) -> None:
        """Keep so many documents, then so many characters (bytes if by_bytes); None for all."""
        if documents is not None and documents < self.documents:
            i = bisect_left([piece.document for piece in self.pieces], documents) - 1
            piece = self.pieces[i]
            self._stop(i, int(np.flatnonzero(piece.ends)[documents - piece.document - 1]) + 1)
        if characters is None:
            return
        for i, piece in enumerate(self.pieces):
            for batch in self.batches(piece, whole_characters=not by_bytes):
                low, high = batch.offsets[0], batch.offsets[-1]
                begins = by_bytes | (batch.utf8[low:high] & 0xC0 != 0x80)
                starts = np.append(low + np.flatnonzero(begins), high)  # of the characters; the end
                if len(starts) > characters:
                    row = int(np.searchsorted(batch.offsets, starts[characters - 1], side="right")) - 1
                    stop = min(starts[characters], batch.offsets[row + 1])
                    cut = int(stop - batch.offsets[row]) + (batch.skipped if row == 0 else 0)
                    self._stop(i, batch.first + row - piece.first + 1, cut)
                    return
                characters -= len(starts) - 1

    def deduplicate(self, seen: set[bytes]) -> int:
        """Leave out documents that are in seen or occurred before; seen gets the digests of the others. Reads
        the whole text. Returns how many were left out."""
        kept, digest = np.ones(self.documents, bool), xxhash.xxh3_128()
        for piece in self.pieces:
            for batch in self.batches(piece, whole_characters=False):
                for row, document in enumerate(batch.documents):
                    digest.update(batch.utf8[batch.offsets[row] : batch.offsets[row + 1]])
                    if batch.ends[row]:
                        kept[document] = (found := digest.digest()) not in seen
                        seen.add(found)
                        digest.reset()
        for i, piece in enumerate(self.pieces):
            documents = piece.document + np.cumsum(np.append(0, piece.ends[:-1]))
            first = int(np.count_nonzero(kept[: piece.document]))
            begins, rows = piece.begins or not kept[piece.document], kept[documents]
            size = piece.size * int(np.count_nonzero(rows)) // piece.rows
            self.pieces[i] = replace(piece, kept=rows, document=first, begins=begins, size=size)
        self.documents = int(np.count_nonzero(kept))
        return len(kept) - self.documents

    def _stop(self, i: int, rows: int, cut: int | None = None) -> None:
        """End the text, and its last document, after so many rows of piece i."""
        piece = self.pieces[i]
        ends = piece.ends[:rows].copy()
        ends[-1] = True
        self.pieces[i:] = [replace(piece, ends=ends, size=piece.size * rows // piece.rows, cut=cut)]
        self.documents = piece.document + int(np.count_nonzero(ends))


def _cut(utf8, offsets, whole_characters: bool) -> Iterator[tuple[int, int, int, int]]:
    """(first row, row after the last, first byte, byte after the last) of batches of about BATCH bytes: whole
    rows but for the start of the first one, or a slice of one row."""
    row = low = 0
    while row < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, low + readers.BATCH, side="right")) - 1
        high = int(offsets[stop])
        if stop == row:  # no row ends here
            stop, high = row + 1, low + readers.BATCH
            if whole_characters:  # a character has at most 3 bytes beyond its first
                continues = utf8[high : min(high + 3, offsets[stop])] & 0xC0 == 0x80
                high += int(np.argmin(np.append(continues, False)))
        yield row, stop, low, high
        row, low = stop if high == offsets[stop] else row, high


def utf8_of(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The buffers of a string or binary array: utf8 uint8[n], offsets int64[rows + 1]; null is empty."""
    texts = pc.fill_null(texts.cast(pa.large_binary()), b"")  # the same buffers where none is null
    if len(texts) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, values = texts.buffers()
    offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(values or b"", np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0]


def open_sources(data: DataConfig, bytes_only: bool) -> tuple[DataConfig, dict[str, TextSource]]:
    """The config with the splits that are given; and 'train', and 'validation' and 'test' if they are splits.
    Raises CharlmError for text that cannot be found, reached or read."""
    if not shows_bars():
        datasets.disable_progress_bars()
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # read_error reports it
    try:
        files = readers_of(data)
        data = resolve(data, files)
        names = {"train": data.split}
        names |= {s: n for s in ("validation", "test") if isinstance(n := getattr(data, s), str)}
        if unread := [split for split in files if split not in " ".join(names.values())]:
            advice = f"data.validation={unread[0]} or data.test={unread[-1]} reads one"
            text = f"{describe(data)} has splits that are not read: {', '.join(unread)}; {advice}"
            warnings.warn(text, CharlmWarning, stacklevel=2)
        sources = {split: _selected(data, files, name) for split, name in names.items()}
        for source in sources.values():
            source.limit(data.max_documents, data.max_characters, bytes_only)
        if data.deduplicate:
            seen: set[bytes] = set()
            for split in reversed(sources):
                sources[split].duplicates = sources[split].deduplicate(seen)
        return data, sources
    except Exception as error:
        raise read_error(error, data) from error


def _selected(data: DataConfig, files: dict[str, list[Reader]], name: str) -> TextSource:
    """The rows of a split such as train, or train[10%:20%]."""
    if name in files:
        return TextSource((files[name], 0, None), steps=data.normalize)
    named = [split for split in files if split in name]
    rows = {s: sum(len(ends) for reader in files[s] for _, ends, _ in reader.parts()) for s in named}
    try:
        parts = datasets.ReadInstruction.from_spec(name).to_absolute(rows)
    except (ValueError, AssertionError) as error:
        splits = ", ".join(files)
        raise CharlmError(f"{data.source} has no split {name!r} (splits: {splits}): {error}") from error
    return TextSource(*((files[p.splitname], p.from_, p.to) for p in parts), steps=data.normalize)
