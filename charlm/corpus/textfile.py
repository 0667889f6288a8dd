"""Text files, to the byte, read where they are, in pieces of a few megabytes.

The text builder of `datasets` finds, downloads and unpacks them (see loading.py); its reading turns every
line ending into \\n, and holds a file of few rows in memory whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

CHUNK = 8 << 20  # bytes of text per piece, about


@dataclass(frozen=True)
class Stretch:
    """Bytes low to high of a file: one row, or (document: line) whole lines."""

    path: str
    low: int
    high: int
    last: bool  # the file ends here


class TextFiles:
    """Local files as rows of bytes; small ones share a part. document: 'file' or 'line'."""

    def __init__(self, paths: list[str], document: str):
        self.paths, self.by_line = paths, document == "line"
        self.name = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"

    def parts(self) -> Iterator[tuple[tuple[Stretch, ...], int, int]]:
        """(part, rows, bytes of text) of every part."""
        part, rows, size = [], 0, 0
        for path in self.paths:
            for stretch in self._stretches(path):
                part.append(stretch)
                rows += self._lines(stretch) if self.by_line else 1
                size += stretch.high - stretch.low
                if size >= CHUNK:
                    yield tuple(part), rows, size
                    part, rows, size = [], 0, 0
        if part:
            yield tuple(part), rows, size

    def _stretches(self, path: str) -> Iterator[Stretch]:
        """The whole file, about CHUNK bytes at a time, cut between lines or characters."""
        with open(path, "rb") as file:
            size, low = os.fstat(file.fileno()).st_size, 0
            if not size and not self.by_line:
                yield Stretch(path, 0, 0, True)  # an empty document
            while low < size:
                high = min(low + CHUNK, size)
                if high < size and self.by_line:
                    file.seek(high - 1)
                    file.readline()
                    high = file.tell()
                elif high < size:
                    file.seek(max(low, high - 3))
                    tail = file.read(high - max(low, high - 3))
                    high -= _unfinished(tail)
                    if high <= low:  # CHUNK is less than a character
                        file.seek(low)
                        high = low + max(1, _width(file.read(1)[0]))
                        high = min(high, size)
                yield Stretch(path, low, high, high == size)
                low = high

    def _lines(self, stretch: Stretch) -> int:
        text = self._read(stretch)
        return text.count(b"\n") + (not text.endswith(b"\n"))

    @staticmethod
    def _read(stretch: Stretch) -> bytes:
        with open(stretch.path, "rb") as file:
            file.seek(stretch.low)
            return file.read(stretch.high - stretch.low)

    def ends(self, part: tuple[Stretch, ...]) -> np.ndarray | None:
        """bool[rows], which rows of a part end a document; None where all of them do."""
        return None if self.by_line else np.array([stretch.last for stretch in part])

    def read(self, part: tuple[Stretch, ...]) -> Iterator[pa.Array]:
        """The rows of a part, in order."""
        texts = [self._read(stretch) for stretch in part]
        if not self.by_line:
            ends = np.cumsum([0, *map(len, texts)])
            yield _array(b"".join(texts), ends)
            return
        for text in texts:
            raw = np.frombuffer(text, np.uint8)
            newlines = np.flatnonzero(raw == 10)
            if not text.endswith(b"\n"):
                newlines = np.append(newlines, len(raw))
            ends = newlines - np.arange(len(newlines))  # once the newlines are out
            yield _array(raw[raw != 10].tobytes(), np.concatenate([[0], ends]))

    def place_of(self, part: tuple[Stretch, ...], row: int, byte: int) -> str:
        """Where a byte that is not UTF-8 stands: the file, and the offset in it."""
        if not self.by_line:
            return f"{part[row].path}: byte {part[row].low + byte:,}"
        for stretch in part:
            lines = self._lines(stretch)
            if row < lines:
                before = self._read(stretch).split(b"\n", row)[:row]
                return f"{stretch.path}: byte {stretch.low + sum(map(len, before)) + row + byte:,}"
            row -= lines
        raise AssertionError("the part has no such row")


def _array(text: bytes, offsets: np.ndarray) -> pa.Array:
    buffers = [None, pa.py_buffer(offsets.astype(np.int64).tobytes()), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _width(lead: int) -> int:
    """Bytes of the character that a byte begins; 1 where it begins none."""
    return 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)


def _unfinished(tail: bytes) -> int:
    """How many bytes at the end of a text belong to a character that goes on after it."""
    for back in range(1, min(3, len(tail)) + 1):
        byte = tail[-back]
        if byte >= 0xC0:
            return back if back < _width(byte) else 0
        if byte < 0x80:
            return 0
    return 0
