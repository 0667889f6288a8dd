"""Files that are either complete or absent, also after a crash of the machine."""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path


def write_synced(path: str | Path, content: bytes | str, synced: bool = True) -> None:
    """Write a file and, unless synced=False, wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        if synced:
            os.fsync(file.fileno())


def replace(path: str | Path, content: bytes | str, synced: bool = True) -> None:
    """Write a temporary file in the same folder and rename it: readers see the old file or the new one.

    With synced=False it does not wait for the disk, and a crash of the machine may leave the file empty.
    """
    partial = Path(path).with_name(f".{Path(path).name}.partial")
    try:
        write_synced(partial, content, synced)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if synced:
        sync_folder(Path(path).parent)


def sync_folder(path: str | Path) -> None:
    """Wait until the entries of a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Journal(AbstractContextManager):
    """An append-only file of records, readable after a kill: opening it drops an incomplete last record.

    A record is its length and CRC-32 (uint64 each, little-endian), then its bytes, at least one.
    """

    def __init__(self, path: str | Path):
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
        if not os.path.exists(path):
            return
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            while len(head := file.read(16)) == 16:
                length, crc = struct.unpack("<QQ", head)
                if not 0 < length <= size:  # a crash of the machine can leave zeros, or anything
                    return
                content = file.read(length)
                if len(content) < length or zlib.crc32(content) != crc:
                    return
                yield content

    def __exit__(self, *_) -> None:
        self._file.close()
