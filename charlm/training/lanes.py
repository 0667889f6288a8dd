"""Lanes: ids cut into contiguous streams that are read side by side, a window of bptt characters at a time.

Text of 27 ids, batch_size 2, bptt 4 (an epoch starts `offset` ids into the text; · is not read this epoch):

    ·  a b c d e f g h i j k l  m n o p q r s t u v w x  ·  ·     offset 1, lanes of 3 windows × 4

             window 0     window 1     window 2
    lane 0   a b c d      e f g h      i j k l         rank 0
    lane 1   m n o p      q r s t      u v w x         rank 1

    x of lane 0, window 1:  e f g h
    y of lane 0, window 1:  f g h i      the next character of each

The carry of a lane (its recurrent state) is handed from each window to the next. It starts at zero with every
epoch, and every carry_windows windows, one lane after the other: a model that seldom began there may answer a
prompt with noise, for ever. Epochs start at different offsets, so that neither windows nor lane borders
repeat. A position is two integers.
"""

import random
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from charlm.errors import CharlmError


class Position(NamedTuple):
    """The window that training reads next."""

    epoch: int = 0
    window: int = 0


class Lanes:
    """The windows of a split, for one rank.

    ids: uint8[n] or uint16[n]. batch_size: lanes over all ranks, of which rank r reads the r-th contiguous
    block (blocks differ by one lane at most). Raises CharlmError when the text is shorter than one window of
    every lane, or there are more ranks than lanes.
    """

    def __init__(
        self,
        ids: np.ndarray,
        batch_size: int,
        bptt: int,
        carry_windows: int | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        if batch_size < world:
            raise CharlmError(f"train.batch_size={batch_size}: too few lanes for {world} processes")
        if len(ids) < (needed := batch_size * bptt + 1):
            windows = f"train.batch_size={batch_size} lanes × train.bptt={bptt} need {needed:,}"
            advice = "lower one of them, or read more text"
            raise CharlmError(f"the text has {len(ids):,} symbols, but {windows}; {advice}")
        self.batch_size, self.bptt, self.carry_windows, self.seed = batch_size, bptt, carry_windows, seed
        self.device = torch.device(device)
        self.lanes = range(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.windows = (len(ids) - 1) // (batch_size * bptt)
        self.spare = len(ids) - 1 - self.windows * batch_size * bptt  # ids to choose an offset from
        if self.spare < batch_size * bptt // 2 and self.windows >= 10:
            self.windows -= 1  # read less per epoch, so that the next one has other windows
            self.spare += batch_size * bptt
        # What these lanes read in any epoch: other processes keep the rest.
        first, last = (n * self.windows * bptt for n in (self.lanes.start, self.lanes.stop))
        self._file, self._name = getattr(ids, "_mmap", None), getattr(ids, "filename", None)
        self.ids = torch.from_numpy(ids[first : last + self.spare + 1])
        if self.device.type == "cuda" and self.ids.nbytes < torch.cuda.mem_get_info(self.device)[0] // 8:
            self.ids = self.ids.to(self.device)  # no copy per window
        pins = self.device.type == "cuda" and not self.ids.is_cuda
        self._reader = ThreadPoolExecutor(1, "lanes") if pins else None
        self._ahead: tuple[Position, Future] | None = None  # the window being read

    def offset(self, epoch: int) -> int:
        """Where an epoch starts in the text: 0 for the first, then drawn from the seed."""
        return random.Random(f"{self.seed}-{epoch}").randint(0, self.spare) if epoch else 0

    def window(self, position: Position) -> tuple[torch.Tensor, torch.Tensor]:
        """x and y: int64[B, T] on the device, B the lanes of this rank, T bptt."""
        if self._reader is None:
            both = self._view(position).long().to(self.device)
        else:  # while the device computes, the next window is read from the disk and pinned for its copy
            expected, reading = self._ahead or (None, None)
            pinned = reading.result() if expected == position else self._read(position)
            both = pinned.to(self.device, non_blocking=True).long()
            self._ahead = (self.after(position), self._reader.submit(self._read, self.after(position)))
        return both[:, :-1], both[:, 1:]

    def restart(self, position: Position, carry: Sequence[torch.Tensor] | None) -> None:
        """Set to zero, in place, the carry of the lanes that start anew with this window: [·, B, ·] each."""
        if carry is not None and (every := self.carry_windows):
            turn, n, first = position.window % every, self.batch_size, self.lanes.start
            low, high = (max(-(-i * n // every) - first, 0) for i in (turn, turn + 1))
            if low < high:
                torch._foreach_zero_([part[:, low:high] for part in carry])

    def _view(self, position: Position) -> torch.Tensor:
        """[B, T + 1] of the ids. Raises CharlmError where their file has shrunk: a read would be a SIGBUS."""
        if self._file is not None and self._file.size() < len(self._file):
            advice = "copy it again, or delete its folder to prepare it again"
            raise CharlmError(f"{self._name}: was cut off while training read it; {advice}")
        stride = self.windows * self.bptt
        start = self.offset(position.epoch) + position.window * self.bptt
        return self.ids.as_strided((len(self.lanes), self.bptt + 1), (stride, 1), start)

    def _read(self, position: Position) -> torch.Tensor:
        return self._view(position).contiguous().pin_memory()

    def after(self, position: Position) -> Position:
        """The position one window on. A new epoch (window 0) means a carry of zeros."""
        epochs, window = divmod(position.window + 1, self.windows)
        return Position(position.epoch + epochs, window)
