"""The arrays of a corpus while they are written: any piece at any time, each to its own place."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from charlm.corpus.layout import Layout
from charlm.files import IdFile, replace

BLOCK = 8 << 20  # bytes that are hashed or copied at a time
TELL_EVERY = 1.0  # seconds between two points that a killed build goes on from


class Arrays:
    """The parts of the arrays that hold the pieces `mine`, as .npy files.

    Pieces may be written in any order, by any thread. Written, not memory-mapped: dirty pages of a mapping
    would count as resident. done: pieces that an earlier try left safely written.
    """

    def __init__(self, layout: Layout, mine: range, folder: Path, tail: str, progress: Path):
        """tail: follows the split in the names of the files. progress: says how many pieces are safe.

        Raises OSError when the disk has too little room.
        """
        self.layout, self.mine, self.progress, self.dtype = layout, mine, progress, layout.vocab.dtype
        self.low = {split: layout.filled(split, mine.start - 1) for split in layout.splits}
        self.paths = {split: folder / f"{split}{tail}.npy" for split in layout.splits}
        self.done = 0
        if progress.exists() and all(path.exists() for path in self.paths.values()):
            self.done = json.loads(progress.read_text())["pieces"]
        else:
            self._require_room(folder)
        self.files = {s: open(p, "rb+" if self.done else "wb+", 0) for s, p in self.paths.items()}  # noqa: SIM115
        for split, file in self.files.items():
            if not self.done:
                write_header(file, layout.filled(split, mine.stop - 1) - self.low[split], self.dtype)
        self.header = {split: IdFile(path).offset for split, path in self.paths.items()}
        self.hashes = {split: sha256() for split in layout.splits}
        self.hashed = dict(self.low)
        self.written = self.done
        self._closing = threading.Event()
        self._fault: Exception | None = None
        self._keeper = threading.Thread(target=self._keep_safe, daemon=True)
        self._keeper.start()

    def _require_room(self, folder: Path) -> None:
        symbols = sum(self.layout.filled(s, self.mine.stop - 1) - low for s, low in self.low.items())
        need, free = symbols * self.dtype.itemsize, shutil.disk_usage(folder).free
        if need > free:
            told = f"{os.strerror(errno.ENOSPC)}: {need / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB free"
            raise OSError(errno.ENOSPC, told)

    def write(self, split: str, at: int, ids: np.ndarray) -> None:
        """Put ids at their place in a split."""
        offset = self.header[split] + (at - self.low[split]) * self.dtype.itemsize
        left = memoryview(ids).cast("B")
        while left:
            some = os.pwrite(self.files[split].fileno(), left, offset)
            left, offset = left[some:], offset + some

    def advance(self, number: int) -> None:
        """All pieces up to this one are written: hash them."""
        if self._fault is not None:
            raise self._fault
        self.written = number - self.mine.start + 1
        for split, file in self.files.items():
            filled = self.layout.filled(split, number)
            while self.hashed[split] < filled:
                some = min(filled - self.hashed[split], BLOCK // self.dtype.itemsize)
                offset = self.header[split] + (self.hashed[split] - self.low[split]) * self.dtype.itemsize
                self.hashes[split].update(os.pread(file.fileno(), some * self.dtype.itemsize, offset))
                self.hashed[split] += some

    def _keep_safe(self) -> None:
        """Push what is written to the disk while more is encoded, so that little is left to wait for."""
        try:
            told = time.monotonic()
            while not self._closing.wait(0.02):
                pieces = self._sync()
                if time.monotonic() - told > TELL_EVERY:
                    self._tell(pieces)
                    told = time.monotonic()
        except Exception as error:  # raised again by who goes on writing
            self._fault = error

    def _sync(self) -> int:
        """Wait until what is written is on the disk. Returns how many pieces that is at least."""
        pieces = self.written
        for file in self.files.values():
            os.fsync(file.fileno())
        return pieces

    def _tell(self, pieces: int) -> None:
        replace(self.progress, json.dumps({"pieces": pieces}))

    @property
    def digests(self) -> dict[str, str]:
        """sha256 of the ids of every split: what corpus.json says."""
        return {split: digest.hexdigest() for split, digest in self.hashes.items()}

    def __enter__(self) -> Arrays:
        return self

    def __exit__(self, kind, error, _) -> None:
        try:
            self._closing.set()
            self._keeper.join()
            if error is None:
                self.advance(self.mine.stop - 1)  # of an earlier try, if all were done
                self._tell(self._sync())
        finally:
            for file in self.files.values():
                file.close()
            if isinstance(error, OSError):  # leave room on a disk that is full
                for path in (*self.paths.values(), self.progress):
                    path.unlink(missing_ok=True)


def join(folder: Path, split: str, parts: Sequence[int]) -> str:
    """Put the arrays that shards wrote one after the other into one. Returns its sha256."""
    digest = sha256()
    sources = [IdFile(folder / f"{split}-{part}.npy") for part in parts]
    with open(folder / f"{split}.npy", "wb") as file:
        write_header(file, sum(map(len, sources)), sources[0].dtype)
        for source in sources:
            for low in range(0, len(source), BLOCK):
                block = source[low : low + BLOCK]
                digest.update(block)
                file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_header(file, symbols: int, dtype: np.dtype) -> None:
    """Begin a .npy file of so many symbols."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": (symbols,)}
    np.lib.format.write_array_header_1_0(file, header)
