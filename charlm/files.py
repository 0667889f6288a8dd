"""Files that are either complete or absent, also after a crash of the machine."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # not at import time: `charlm watch` starts without numpy
    import numpy as np


def write_synced(path: str | Path, content: bytes | str) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: str | Path, content: bytes | str, synced: bool = True) -> None:
    """Write a temporary file in the same folder and rename it: readers see the old file or the new one.

    With synced=False it does not wait for the disk, and a crash of the machine may leave the file empty.
    """
    partial = Path(path).with_name(f".{Path(path).name}.partial")
    if not synced:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(partial, path)
        return
    try:
        write_synced(partial, content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(Path(path).parent)


def sync_folder(path: str | Path) -> None:
    """Wait until the entries of a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Journal:
    """An append-only file of records, readable after a kill: opening it drops an incomplete last record.

    A record is its length and CRC-32 (uint64 each, little-endian), then its bytes, at least one.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        lengths = [len(content) for content in self.read(path)]
        self._length = len(lengths)
        self._file = open(path, "ab")  # noqa: SIM115 - closed in __exit__
        self._file.truncate(16 * len(lengths) + sum(lengths))

    def __len__(self) -> int:
        return self._length

    def append(self, content: bytes) -> None:
        """Add a record, which survives a crash of this process, but not of the machine."""
        head = struct.pack("<QQ", len(content), zlib.crc32(content))
        self._file.write(head + content)
        self._file.flush()
        self._length += 1

    @staticmethod
    def read(path: str | Path) -> Iterator[bytes]:
        """The complete records of a journal, one after the other; none if the file does not exist."""
        try:
            file = open(path, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            while len(head := file.read(16)) == 16:
                length, crc = struct.unpack("<QQ", head)
                if not 0 < length <= size:  # a crash of the machine can leave zeros, or anything
                    return
                content = file.read(length)
                if len(content) < length or zlib.crc32(content) != crc:
                    return
                yield content

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


class IdFile:
    """The ids of a .npy file, read slice by slice: memory-mapped pages would count as resident memory."""

    def __init__(self, path: Path):
        import numpy as np

        self.path = path
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            (self.length,), _, self.dtype = np.lib.format.read_array_header_1_0(file)
            self.offset = file.tell()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> np.ndarray:
        import numpy as np

        low, high, _ = part.indices(self.length)
        return np.fromfile(self.path, self.dtype, high - low, offset=self.offset + low * self.dtype.itemsize)

    def blocks(self, low: int = 0, high: int | None = None) -> Iterator[np.ndarray]:
        """The ids from low up to high (None: to the end), at most 2^22 at a time."""
        high = self.length if high is None else high
        for start in range(low, high, 1 << 22):
            yield self[start : min(start + (1 << 22), high)]
