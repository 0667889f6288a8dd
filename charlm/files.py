"""Files that are whole or not there, also after a crash of the machine."""

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
    """Write a file beside its place and rename it into it: readers see the old one or the new one.

    Not synced, it waits for no disk, and a crash of the machine may leave it empty.
    """
    beside = Path(path).with_name(f".{Path(path).name}.partial")
    if not synced:
        beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(beside, path)
        return
    try:
        write_synced(beside, content)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(Path(path).parent)


def sync_folder(path: str | Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Journal:
    """A file of records that a killed process leaves readable: a torn last record is dropped when it is
    opened.

    Every record is its length and CRC-32 (uint64 each, little-endian), then its bytes, at least one.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        whole = 0
        self._length = 0
        for content in self.read(path):
            whole += 16 + len(content)
            self._length += 1
        self._file = open(path, "ab")  # noqa: SIM115 - closed in __exit__
        self._file.truncate(whole)

    def __len__(self) -> int:
        return self._length

    def append(self, content: bytes) -> None:
        """Add a record; it outlives this process, not a crash of the machine."""
        head = struct.pack("<QQ", len(content), zlib.crc32(content))
        self._file.write(head + content)
        self._file.flush()
        self._length += 1

    @staticmethod
    def read(path: str | Path) -> Iterator[bytes]:
        """The whole records of a journal, one after the other; none where there is no file."""
        try:
            file = open(path, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            while len(head := file.read(16)) == 16:
                length, crc = struct.unpack("<QQ", head)
                if not 0 < length <= size:  # a machine that went down leaves zeros, or anything
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
    """The ids of a .npy file, read from it slice by slice: mapped pages would count as resident."""

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
