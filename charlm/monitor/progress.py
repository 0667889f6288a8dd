"""What the files of a run tell about it, while it runs and afterwards: status.json and metrics.jsonl.

Nothing here waits for torch, and nothing is asked of the process that trains.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from itertools import pairwise
from pathlib import Path

import yaml

from charlm.errors import CharlmError

ENDED = ("done", "interrupted", "failed")
_OURS = ("status.json", "metrics.jsonl", "config.yaml", ".lock", "checkpoints")  # what a run begins with


class Progress:
    """A run as its files tell it; refresh() reads what is new.

    status: waiting (there is no run yet), running, done, interrupted, failed. Curves are (step, bpc).
    """

    def __init__(self, run_dir: str | Path):
        self.dir = Path(run_dir)
        self.told: dict = {}  # status.json
        self.steps = 0  # in all, as config.yaml has it; 0 when that is not known
        self._forget()

    def _forget(self) -> None:
        self.train: list[tuple[int, float]] = []
        self.validation: list[tuple[int, float]] = []
        self.last: dict = {}  # the newest record of training
        self.scores: dict = {}  # the newest of validation
        self.sample: tuple[int, str] | None = None
        self.written = 0.0  # when the newest record was
        self._times: list[tuple[int, float]] = []  # (step, when) of the newest records of training
        self._file, self._read = 0, 0  # inode of metrics.jsonl, and how many of its bytes are known

    @property
    def status(self) -> str:
        return self.told.get("status", "waiting")

    @property
    def step(self) -> int:
        return max(self.last.get("step", 0), self.told.get("step", 0))

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, bpc) of the best evaluation on validation."""
        return min(self.validation, key=lambda point: point[1], default=None)

    def refresh(self) -> None:
        """Read what is new. Raises CharlmError for a folder that is no run's."""
        self._check()
        self.told = self._json("status.json")
        self._read_metrics()
        if not self.steps and (config := self._text("config.yaml")):
            try:
                self.steps = yaml.safe_load(config)["train"]["steps"]
            except (yaml.YAMLError, KeyError, TypeError):
                raise CharlmError(f"{self.dir / 'config.yaml'}: is not the config of a run") from None

    def _check(self) -> None:
        if self.dir.exists() and not self.dir.is_dir():
            raise CharlmError(f"{self.dir}: is a file; name a run directory, such as runs/stdlib")
        if self.dir.is_dir() and not any((self.dir / name).exists() for name in _OURS):
            inside = [p.name for p in sorted(self.dir.iterdir()) if Progress.holds_run(p)]
            if inside:
                raise CharlmError(f"{self.dir}: is not a run itself, but holds some: {', '.join(inside)}")
            if any(self.dir.iterdir()):
                raise CharlmError(f"{self.dir}: is not the directory of a run (no status.json in it)")

    @staticmethod
    def holds_run(folder: Path) -> bool:
        return (folder / "status.json").is_file()

    def _text(self, name: str) -> str:
        try:
            return (self.dir / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise CharlmError(f"{self.dir / name}: cannot be read ({error})") from error

    def _json(self, name: str) -> dict:
        text = self._text(name)
        try:
            told = json.loads(text) if text else {}
        except ValueError as error:
            raise CharlmError(f"{self.dir / name}: is not JSON ({error})") from error
        if not isinstance(told, dict):
            raise CharlmError(f"{self.dir / name}: is not what a run writes there")
        return told

    def _read_metrics(self) -> None:
        """The lines that were added. A run that goes on replaces the file: then from its start."""
        try:
            with open(self.dir / "metrics.jsonl", "rb") as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._file or now.st_size < self._read:
                    self._forget()
                    self._file, self.steps = now.st_ino, 0
                file.seek(self._read)
                whole, newline, _torn = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            raise CharlmError(f"{self.dir / 'metrics.jsonl'}: cannot be read ({error.strerror})") from error
        self._read += len(whole + newline)
        for line in whole.split(b"\n"):
            try:
                record = json.loads(line)
                step, when = int(record["step"]), float(record["time"])
                self._take(step, record)
            except (ValueError, KeyError, TypeError):
                continue  # not one of a run's
            self.written = when

    def _take(self, step: int, record: dict) -> None:
        if "loss" in record:
            self.last = record
            self.train.append((step, record["bpc"]))
            self._times = [*self._times[-20:], (step, record["time"])]
        elif "validation/bpc" in record:
            self.scores = {k.removeprefix("validation/"): v for k, v in record.items()}
            self.validation.append((step, record["validation/bpc"]))
        elif "sample" in record:
            self.sample = (step, record["sample"])

    def seconds_per_step(self) -> float | None:
        """Of the newest records, evaluation and checkpoints included, pauses between two jobs left out."""
        steps = [(b - a, t - s) for (a, s), (b, t) in pairwise(self._times) if b > a]
        if not steps:
            return None
        usual = statistics.median(seconds / count for count, seconds in steps)
        steps = [(count, seconds) for count, seconds in steps if seconds <= 20 * usual * count]
        return sum(seconds for _, seconds in steps) / sum(count for count, _ in steps)

    def seconds_left(self) -> float | None:
        """Until the last step, when that can be told; 0 for a run that is done."""
        pace = self.seconds_per_step()
        if self.status == "done":
            return 0.0
        return pace * max(self.steps - self.step, 0) if pace is not None and self.steps else None

    def silent(self) -> float:
        """Seconds since a running run wrote a figure, if that is much longer than between its figures."""
        if self.status != "running" or not self.written:
            return 0.0
        since = time.time() - self.written
        gaps = [t - s for (_, s), (_, t) in pairwise(self._times)]
        return since if since > max(120, 10 * max(gaps, default=0)) else 0.0

    def figures(self) -> dict:
        """All of it for a script; what is not known is null."""
        return {
            "run": str(self.dir),
            "status": self.status,
            "reason": self.told.get("reason") or self.told.get("error"),
            "step": self.step,
            "steps": self.steps or None,
            "seconds_left": self.seconds_left(),
            "seconds_silent": self.silent() or None,
            "train": {k: v for k, v in self.last.items() if k != "time"} or None,
            "validation": {k: v for k, v in self.scores.items() if k != "time"} or None,
            "best": dict(zip(("step", "bpc"), self.best, strict=True)) if self.best else None,
            "test": self.told.get("test"),
            "sample": self.sample[1] if self.sample else None,
        }
