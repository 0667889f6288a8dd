"""The arrays of a corpus while they are written: any piece at any time, each to its own place."""

import errno
import json
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path

import numpy as np

from charlm.corpus.layout import Layout
from charlm.corpus.prepared import IdFile
from charlm.files import replace

SYNC_EVERY = 0.25  # seconds between two points from which a killed build resumes


class IdWriter(AbstractContextManager):
    """Writes consecutive pieces of the arrays, as .npy files, in any order and from any thread. done: pieces
    that an earlier process has safely written."""

    def __init__(self, layout: Layout, pieces: range, folder: Path, suffix: str, progress: Path):
        """suffix: follows the split in the names of the files. progress: the file of pieces_written. Raises
        OSError when the disk has too little room."""
        self.pieces, self.progress, self.dtype = pieces, progress, layout.vocab.dtype
        self.paths = {split: folder / f"{split}{suffix}.npy" for split in layout.starts}
        self.firsts = {split: int(starts[pieces.start]) for split, starts in layout.starts.items()}
        self.starts = {s: starts - self.firsts[s] for s, starts in layout.starts.items()}  # in these arrays
        symbols = {split: int(starts[pieces.stop]) for split, starts in self.starts.items()}
        self.done = pieces_written(progress) if all(path.exists() for path in self.paths.values()) else 0
        need, free = sum(symbols.values()) * self.dtype.itemsize, shutil.disk_usage(folder).free
        if not self.done and need > free:
            message = f"{os.strerror(errno.ENOSPC)}: {need / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB free"
            raise OSError(errno.ENOSPC, message)
        self.files, self.arrays = {}, {}  # to write to, to read from
        for split, path in self.paths.items():
            self.files[split] = open(path, "rb+" if self.done else "wb+", 0)  # noqa: SIM115
            if not self.done:
                write_header(self.files[split], symbols[split], self.dtype)
            self.arrays[split] = IdFile(path)
        self.hashes = {split: sha256() for split in self.paths}
        self.next = pieces.start  # the next piece to hash
        # Syncs while more is encoded, so that little is left to wait for at the end.
        self._pool = ThreadPoolExecutor(1)
        self._syncing, self._next_sync = self._pool.submit(int), time.monotonic() + SYNC_EVERY

    def write(self, split: str, position: int, ids: np.ndarray) -> None:
        """Write ids to their place in a split."""
        offset = self.arrays[split].offset + (position - self.firsts[split]) * self.dtype.itemsize
        rest = memoryview(ids).cast("B")  # not through a mapping, whose dirty pages would count as resident
        while rest:
            size = os.pwrite(self.files[split].fileno(), rest, offset)
            rest, offset = rest[size:], offset + size

    def advance(self, number: int) -> None:
        """Hash the pieces up to this one, all of which are written."""
        for split, starts in self.starts.items():
            for block in self.arrays[split].blocks(starts[self.next], starts[number + 1]):
                self.hashes[split].update(block)
        self.next = number + 1
        if time.monotonic() > self._next_sync and self._syncing.done():
            self._syncing.result()  # raises the error of a disk that failed
            self._syncing = self._pool.submit(self._sync, self.next - self.pieces.start)
            self._next_sync = time.monotonic() + SYNC_EVERY

    def _sync(self, pieces: int) -> None:
        """Wait until the files are on the disk, then record how many pieces are."""
        for file in self.files.values():
            os.fsync(file.fileno())
        replace(self.progress, json.dumps({"pieces": pieces}))

    def __exit__(self, kind, error, _) -> None:
        try:
            if error is None:
                self.advance(self.pieces.stop - 1)  # hashes what an earlier process wrote, if it wrote all
                self._syncing.result()
                self._sync(len(self.pieces))
        finally:
            self._pool.shutdown()
            for file in self.files.values():
                file.close()
            if isinstance(error, OSError):  # free the space of a full disk
                for path in (*self.paths.values(), self.progress):
                    path.unlink(missing_ok=True)


def pieces_written(progress: Path) -> int:
    """The number of pieces that are safely on the disk, of a progress file; 0 where there is none."""
    return json.loads(progress.read_text())["pieces"] if progress.exists() else 0


def join(folder: Path, split: str, parts: Sequence[int]) -> str:
    """Concatenate the arrays of these shards. Returns the sha256 of their ids."""
    digest = sha256()
    sources = [IdFile(folder / f"{split}-{part}.npy") for part in parts]
    with open(folder / f"{split}.npy", "wb") as file:
        write_header(file, sum(map(len, sources)), sources[0].dtype)
        for source in sources:
            for block in source.blocks():
                digest.update(block)
                file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_header(file, symbols: int, dtype: np.dtype) -> None:
    """Begin a .npy file of so many symbols."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": (symbols,)}
    np.lib.format.write_array_header_1_0(file, header)
