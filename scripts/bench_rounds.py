"""What `bench.py sample` and `bench.py train` share.

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


def timed(run: Callable[[], object], units: int) -> float:
    """Units per second of one call."""
    began = time.perf_counter()
    run()
    return units / (time.perf_counter() - began)


def in_turn(ways: dict[str, Way], rounds: int, what: str) -> dict[str, list[float]]:
    """Units per second of every way in every round, after one round that is thrown away."""
    told: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            print(f"{what}: {name}, round {i}/{rounds}".ljust(79), end="\r", file=sys.stderr)
            speed = way()
            if i:
                told[name].append(speed)
    print(" " * 79, end="\r", file=sys.stderr)
    return told


def ratio(told: dict[str, list[float]], above: str, below: str) -> float:
    """Median over rounds of how many times as fast one way is as another."""
    return statistics.median(a / b for a, b in zip(told[above], told[below], strict=True))


def figures(told: dict[str, list[float]]) -> dict:
    return {
        "characters_per_second": {name: statistics.median(v) for name, v in told.items()},
        "of_textbook": ratio(told, WHOLE, TEXTBOOK),
        "of_limit": ratio(told, WHOLE, LIMIT),
        "rounds": told,
    }


def finish(command: str, limit: str, rows: list[dict], args: argparse.Namespace) -> None:
    """Print the table; write the JSON."""
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    if args.json:
        told = {"command": command, "limit": limit, "rows": rows} | machine
        args.json.write_text(json.dumps(told, indent=2), encoding="utf-8")
    ways = list(rows[0]["characters_per_second"])
    print(f"torch {torch.__version__}, {machine['threads']} thread(s) of {machine['cores']}, CPU")
    print(f"characters/s; limit: {limit}")
    print(f"{'':<24}" + "".join(f"{way:>12}" for way in ways) + f"{'× textbook':>12}{'of limit':>10}")
    for row in rows:
        side = f"{row['streams']} stream(s)" if command == "sample" else f"{row['lanes']} × {row['bptt']}"
        name = f"{row['cell']} {row['layers']} × {row['hidden']}, {side}"
        speeds = "".join(f"{speed:>12,.0f}" for speed in row["characters_per_second"].values())
        print(f"{name:<24}{speeds}{row['of_textbook']:>12.2f}{row['of_limit']:>10.0%}")
