"""What `bench.py train`, `evaluate` and `sample` share.

All ways of a row run in one process and in turn, round after round, so that a change of the machine's speed
meets all alike: compare the ratios, each the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

V = 96  # symbols: printable ASCII and newline
TEXTBOOK, STEP, WHOLE, LIMIT = "textbook", "step", "charlm", "limit"
Way = Callable[[], float]  # runs a little, returns units per second


class Textbook(nn.Module):
    """The model as tutorials write it: embedding, one multi-layer module of torch's, linear."""

    def __init__(self, cell: str, embedding: int, hidden: int, layers: int):
        super().__init__()
        kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell]
        self.input = nn.Embedding(V, embedding)
        self.net = kind(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, V)

    def forward(self, ids: Tensor, carry=None) -> tuple[Tensor, object]:
        out, carry = self.net(self.input(ids), carry)
        return self.output(out), carry


def matrices_of(model: nn.Module) -> list[Tensor]:
    """The weights that are multiplied, float32 [out, in] each; a table of embeddings is only looked up."""
    return [p.detach() for name, p in model.named_parameters() if p.ndim == 2 and name != "input.weight"]


def sync() -> None:
    """Until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(run: Callable[[], object], units: int) -> float:
    """Units per second of one call."""
    sync()
    began = time.perf_counter()
    run()
    sync()
    return units / (time.perf_counter() - began)


def matmul_peak(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of a large product, the best of three."""
    size, times = (8192, 10) if device.type == "cuda" else (1024, 1)
    a, b, out = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(3))

    def run() -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    return max(timed(run, 2 * size**3 * times) for _ in range(3))


class Memory:
    """MB that a block of code takes at most, beyond what was held before it."""

    def __enter__(self) -> Memory:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak of the process starts anew
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")
        self.mb = max(peak - self._before, 0) / 1e6


def _status(name: str) -> int:
    """Bytes, of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{name}:")[2].split()[0]) * 1024


def tell(line: str) -> None:
    """What is being measured, on a terminal."""
    if sys.stderr.isatty():
        print(line.ljust(79), end="\r", file=sys.stderr)


def in_turn(ways: dict[str, Way], rounds: int, what: str) -> dict[str, list[float]]:
    """Units per second of every way in every round, after one round that is thrown away."""
    told: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            tell(f"{what}: {name}, round {i}/{rounds}")
            speed = way()
            if i:
                told[name].append(speed)
    tell("")
    return told


def ratios(told: dict[str, list[float]], above: str, below: str) -> tuple[float, float, float]:
    """(median, least, most) over rounds of how many times as fast one way is as another."""
    some = sorted(a / b for a, b in zip(told[above], told[below], strict=True))
    return statistics.median(some), some[0], some[-1]


def figures(told: dict[str, list[float]]) -> dict:
    of_textbook, least, most = ratios(told, WHOLE, TEXTBOOK)
    return {
        "characters_per_second": {name: statistics.median(v) for name, v in told.items()},
        "of_textbook": of_textbook,
        "of_textbook_spread": [least, most],
        "of_limit": ratios(told, WHOLE, LIMIT)[0],
        "rounds": told,
    }


def finish(command: str, limit: str, rows: list[dict], args: argparse.Namespace) -> None:
    """Print the table; write the JSON."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    machine = {
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    if args.json:
        told = {"command": command, "limit": limit, "rows": rows} | machine
        args.json.write_text(json.dumps(told, indent=2), encoding="utf-8")
    ways = list(rows[0]["characters_per_second"])
    print(f"torch {torch.__version__}, {machine['threads']} thread(s) of {machine['cores']}, {device}")
    print(f"characters/s; limit: {limit}")
    heads = "".join(f"{way:>11}" for way in ways)
    print(f"{'':<24}{heads}{'× textbook':>18}{'of limit':>9}")
    for row in rows:
        speeds = "".join(f"{speed:>11,.0f}" for speed in row["characters_per_second"].values())
        least, most = row["of_textbook_spread"]
        spread = f"{row['of_textbook']:.2f} ({least:.2f}-{most:.2f})"
        print(f"{row['name']:<24}{speeds}{spread:>18}{row['of_limit']:>9.0%}")
