"""What moves on with the steps of a run, how a run ends, and the clock that its speed is told by."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from charlm.lanes import Position
from charlm.model import Carry


@dataclass
class Summary:
    """How training ended.

    status: done or interrupted. best, test: figures as evaluate gives them, best with its step. sample: text.
    """

    status: str
    step: int
    run_dir: Path
    best: dict | None = None
    test: dict | None = None
    sample: str = ""


@dataclass
class State:
    """What moves on with the steps."""

    step: int = 0
    position: Position = field(default_factory=Position)
    carry: Carry | None = None  # of this rank's lanes; None is zeros
    best: dict | None = None  # {"step": …, **figures} of the best evaluation so far
    evaluated: int = -1  # the step last evaluated
    saved: int = -1  # the step last written to a checkpoint
    losses: list[Tensor] = field(default_factory=list)  # [] each, of the steps since the last log line
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])


class Clock:
    """Steps per second of training alone: evaluation, samples and checkpoints stop it.

    lost: the seconds these took since it was restarted; saving: those of checkpoints.
    """

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.steps, self.started, self.lost, self.saving = 0, time.perf_counter(), 0.0, 0.0

    def steps_per_second(self) -> float:
        return self.steps / max(time.perf_counter() - self.started - self.lost, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        since = time.perf_counter()
        try:
            yield
        finally:
            self.lost += time.perf_counter() - since
