"""What a run has told so far: metrics.jsonl as series, status.json, the samples; while it writes too."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class History:
    """records: the lines of metrics.jsonl, steps ascending. status: what status.json says, {} for none.

    samples: (step, text), of what was drawn on the way.
    """

    records: list[dict] = field(default_factory=list)
    status: dict = field(default_factory=dict)
    samples: list[tuple[int, str]] = field(default_factory=list)

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps int64[n], values float64[n]) of one figure; empty when it was never told."""
        told = [(r["step"], r[name]) for r in self.records if isinstance(r.get(name), int | float)]
        steps, values = zip(*told, strict=True) if told else ((), ())
        return np.array(steps, np.int64), np.array(values, np.float64)

    @property
    def last_step(self) -> int:
        """The last step that a record or the status tells of; 0 for none."""
        said = self.status.get("step", 0)
        return max(self.records[-1]["step"] if self.records else 0, said if isinstance(said, int) else 0)


def read_history(run_dir: str | Path) -> History:
    """What there is of it. Files that are missing count as empty, lines that are no records as not there:
    the last one of a run under way may be half written."""
    run_dir = Path(run_dir)
    history = History(_records(run_dir / "metrics.jsonl"), _status(run_dir / "status.json"))
    history.samples = [(r["step"], r["sample"]) for r in history.records if isinstance(r.get("sample"), str)]
    return history


def _records(path: Path) -> list[dict]:
    records: list[dict] = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if not isinstance(step, int):
            continue
        while records and records[-1]["step"] > step:  # a requeued job told these once more
            records.pop()
        records.append(record)
    return records


def _status(path: Path) -> dict:
    try:
        status = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def thinned(steps: np.ndarray, values: np.ndarray, most: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """A long series as at most so many points, means of neighbours: int64[n], float64[n] → the same."""
    if len(steps) <= most:
        return steps, values
    edges = np.linspace(0, len(steps), most + 1).astype(int)
    size = np.diff(edges)
    mean = np.add.reduceat(values, edges[:-1]) / size
    return steps[edges[1:] - 1], mean
