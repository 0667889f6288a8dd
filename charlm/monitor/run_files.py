"""The files of a run, while it trains and afterwards: status.json, metrics.jsonl, config.yaml."""

import math
import os
import statistics
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from charlm.checked import SOME_FIGURES, Count, load_yaml, read
from charlm.errors import CharlmError
from charlm.training.logger import read_records

ENDED = ("done", "interrupted", "failed")
STATUS = {
    "status": Literal["running", "done", "interrupted", "failed"],
    **{"step?": Count, "steps?": (Count, None), "reason?": str, "error?": str},
    **{"best?": (SOME_FIGURES | {"step": Count}, None), "test?": (SOME_FIGURES, None)},
}
TRAIN = {"train": {"minutes?": (float, None), "epochs?": (float, None), "steps?": Count}}
FILES = ("status.json", "metrics.jsonl", "config.yaml", ".lock", "checkpoints")  # one of them makes it a run


class History:
    """The records and the status of a run directory; refresh() reads what is new. Files may be missing.

    records: the lines of metrics.jsonl, steps ascending. status: status.json. steps: of the run, or 0.
    """

    def __init__(self, run_dir: str | Path = ""):
        self.dir = Path(run_dir)
        self.records: list[dict] = []
        self.status: dict = {}
        self.steps = self._inode = self._offset = 0  # inode: of metrics.jsonl; offset: its bytes read so far

    def refresh(self, must_exist: bool = False) -> None:
        """Read what is new. Raises CharlmError for a folder that is not a run's, or a damaged file."""
        if self.dir.is_file():
            raise CharlmError(f"{self.dir}: is a file; name a run directory, such as runs/stdlib")
        content = {path.name for path in self.dir.iterdir()} if self.dir.exists() else {}
        if content and content.isdisjoint(FILES):
            raise CharlmError(f"{self.dir}: is not a run directory{runs_near(self.dir)}")
        if must_exist and not self.dir.exists():
            raise CharlmError(f"{self.dir}: no such run directory{runs_near(self.dir)}")
        status, config = self.dir / "status.json", self.dir / "config.yaml"
        self.status = read(status, STATUS) if status.exists() else {}
        self.read_metrics()  # after the status: no record before "done" is missed
        self.steps = self.status.get("steps") or 0
        if not self.steps and config.exists():  # older, or its train.minutes are not measured yet
            train = read(config, TRAIN, loads=load_yaml)["train"]
            self.steps = 0 if train.get("minutes") or train.get("epochs") else train.get("steps", 0)

    def read_metrics(self) -> None:
        """Read the lines added to metrics.jsonl, or all of a new file, which a resumed run writes."""
        path = self.dir / "metrics.jsonl"
        if not path.is_file():
            return
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self.records, self._inode, self._offset = [], stat.st_ino, 0
            file.seek(self._offset)
            for record in read_records(file):
                while self.records and self.records[-1]["step"] > record["step"]:
                    self.records.pop()  # repeated by a requeued job
                self.records.append(record)
            self._offset = file.tell()

    @property
    def state(self) -> str:
        """waiting (there is no run yet), running, done, interrupted or failed."""
        return self.status.get("status", "waiting")

    @property
    def last_step(self) -> int:
        """The last step in the records and the status; 0 if there is none."""
        return max(self.status.get("step", 0), *(record["step"] for record in self.records[-1:]), 0)

    @property
    def best(self) -> dict | None:
        """The evaluation of the fewest bits per character."""
        return min(self.evaluations, key=lambda e: (math.isnan(e["bpc"]), e["bpc"]), default=None)

    @property
    def evaluations(self) -> list[dict]:
        """Step and figures of the evaluations on validation, without "validation/" in the names."""
        records = [r for r in self.records if "validation/bpc" in r]
        return [{k.removeprefix("validation/"): v for k, v in r.items() if k != "time"} for r in records]

    def points(self, name: str) -> list[tuple[int, Any]]:
        """(step, value) of one figure, or of the samples."""
        return [(r["step"], r[name]) for r in self.records if name in r]

    def latest(self, name: str) -> dict:
        """The newest record that has a figure, without its time; {} if there is none."""
        record = next((r for r in reversed(self.records) if name in r), {})
        return {key: value for key, value in record.items() if key != "time"}

    def _gaps(self) -> list[tuple[int, float]]:
        """(steps, seconds) between the newest training records."""
        times = [(r["step"], r["time"]) for r in self.records[-50:] if "loss" in r]
        return [(b - a, t - s) for (a, s), (b, t) in pairwise(times) if b > a and t >= s]

    def seconds_left(self) -> float | None:
        """Until the last step, at recent speed, without pauses between jobs; None if unknown, 0 if done."""
        gaps = self._gaps()
        if self.state == "done" or not gaps or not self.steps:
            return 0.0 if self.state == "done" else None
        median = statistics.median(seconds / steps for steps, seconds in gaps)
        gaps = [(steps, seconds) for steps, seconds in gaps if seconds <= 20 * median * steps]
        steps, seconds = map(sum, zip(*gaps, strict=True))
        return seconds / steps * max(self.steps - self.last_step, 0)

    def seconds_silent(self) -> float:
        """Since the newest record of a running run; 0 unless far longer than the time between its records."""
        if self.state != "running" or not self.records:
            return 0.0
        silent = time.time() - self.records[-1]["time"]
        return silent if silent > max([120, *(10 * seconds for _, seconds in self._gaps())]) else 0.0

    def figures(self) -> dict:
        """All figures for a script; None for one that is missing."""
        return {
            "run": str(self.dir),
            "status": self.state,
            "reason": self.status.get("reason") or self.status.get("error"),
            "step": self.last_step,
            "steps": self.steps or None,
            "seconds_left": self.seconds_left(),
            "seconds_silent": self.seconds_silent() or None,
            "train": self.latest("bpc") or None,
            "validation": (self.evaluations or [None])[-1],
            "best": {key: self.best[key] for key in ("step", "bpc")} if self.best else None,
            "test": self.status.get("test"),
            "sample": self.latest("sample").get("sample"),
        }


def read_history(run_dir: str | Path) -> History:
    """The history of a folder in which any file may be missing, and status.json damaged."""
    history = History(run_dir)
    with suppress(CharlmError):
        history.refresh()
    history.read_metrics()
    return history


def runs_near(folder: Path) -> str:
    """The end of an error message: the runs in a folder, beside it, or in runs/; "" for none."""
    for place in (folder, folder.parent, Path("runs")):
        if runs := [path.parent.name for path in sorted(place.glob("*/status.json"))]:
            return f"; runs in {place}: {', '.join(runs)}"
    return ""
