"""What `bench.py train`, `evaluate` and `sample` share.

All ways of a row run in one process and in turn, round after round, so that a change of the machine's speed
meets all alike. A ratio is taken in every round; what is told is the median, and the quartiles as its spread.
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
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

V = 96  # symbols: printable ASCII and newline
E = 64  # embedding
PRODUCT = 1024  # rows and columns of the matrices whose product is a CPU's peak
TEXTBOOK, STEP, WHOLE, LIMIT = "textbook", "step", "charlm", "limit"
Way = Callable[[], float]  # runs a little, returns units per second


class Textbook(nn.Module):
    """The model as tutorials write it: embedding, one multi-layer module of torch's, linear."""

    def __init__(self, cell: str, hidden: int, layers: int, symbols: int = V, embedding: int = E):
        super().__init__()
        kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell]
        self.input = nn.Embedding(symbols, embedding)
        self.net = kind(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, symbols)

    def forward(self, ids: Tensor, carry=None) -> tuple[Tensor, object]:
        out, carry = self.net(self.input(ids), carry)
        return self.output(out), carry


def matrices_of(model: nn.Module) -> list[Tensor]:
    """The weights that are multiplied, float32 [out, in] each; a table of embeddings is only looked up."""
    return [p.detach() for name, p in model.named_parameters() if p.ndim == 2 and name != "input.weight"]


@cache
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def matmul_peak(dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of a large product, the best of three."""
    size, times = (8192, 10) if device().type == "cuda" else (PRODUCT, 8)
    a, b, out = (torch.randn(size, size, dtype=dtype, device=device()) for _ in range(3))

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
        print(line[:79].ljust(79), end="\r", file=sys.stderr)


class Rounds:
    """The ways of a row, in turn: speeds of every way by round, and the memory of its first run, which is
    not counted."""

    def __init__(self, name: str, ways: dict[str, Way], rounds: int):
        self.name, self.ways, self.rounds = name, ways, rounds
        self.speeds: dict[str, list[float]] = {way: [] for way in ways}
        self.memory_mb: dict[str, float] = {}

    def once(self, number: int) -> None:
        """One round of all ways; number 0 is the first."""
        for way, run in self.ways.items():
            tell(f"{self.name}: {way}, round {number + 1}/{self.rounds}")
            if way not in self.memory_mb:
                with Memory() as memory:
                    run()
                self.memory_mb[way] = memory.mb
            self.speeds[way].append(run())

    def all(self) -> Rounds:
        for number in range(self.rounds):
            self.once(number)
        tell("")
        return self

    def figures(self, flops: int) -> dict:
        """What a row tells of it; flops: of matrix products, per character."""
        of_textbook = ratios(self.speeds[WHOLE], self.speeds[TEXTBOOK])
        of_limit = ratios(self.speeds[WHOLE], self.speeds[LIMIT])
        speeds = {way: statistics.median(some) for way, some in self.speeds.items()}
        return {
            "characters_per_second": speeds,
            "of_textbook": statistics.median(of_textbook),
            "of_textbook_quartiles": quartiles(of_textbook),
            "of_limit": statistics.median(of_limit),
            "flops_per_character": flops,
            "gflops": speeds[WHOLE] * flops / 1e9,
            "memory_mb": self.memory_mb,
            "rounds": self.speeds,
        }


def ratios(above: list[float], below: list[float]) -> list[float]:
    """How many times as fast, round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def quartiles(values: list[float]) -> list[float]:
    """The lower and the upper one."""
    if len(values) == 1:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, method="inclusive")
    return [low, high]


def parser_of(command: str, doc: str, sizes: list[str], form: str, rounds: int) -> argparse.ArgumentParser:
    """The options that all have. form: of a size, as numbers with × between them."""
    parser = argparse.ArgumentParser(prog=f"bench.py {command}", description=doc.partition("\n\n")[0])
    parser.add_argument(
        "--cells", nargs="+", choices=["lstm", "gru", "rnn"], default=["lstm", "gru"], help="(lstm gru)"
    )
    parts = form.count("x") + 1
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=lambda text: size_of(text, parts),
        default=[size_of(text, parts) for text in sizes],
        metavar=form,
        help=f"({' '.join(sizes)})",
    )
    parser.add_argument("--layers", type=positive, nargs="+", default=[1], help="numbers of layers (1)")
    parser.add_argument("--rounds", type=positive, default=rounds, help=f"rounds ({rounds})")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="of torch (all cores)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return value


def size_of(text: str, parts: int) -> tuple[int, ...]:
    size = tuple(positive(part) for part in text.split("x"))
    if len(size) != parts:
        raise argparse.ArgumentTypeError(f"{text}: {parts} numbers with x between them")
    return size


def finish(command: str, limit: str, rows: list[dict], args: argparse.Namespace) -> None:
    """Print the table; write the JSON."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    machine = {
        "torch": torch.__version__,
        "device": name,
        "threads": args.threads,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    if args.json:
        told = {"command": command, "limit": limit, "rows": rows} | machine
        args.json.write_text(json.dumps(told, indent=2), encoding="utf-8")
    ways = list(rows[0]["characters_per_second"])
    print(
        f"torch {torch.__version__}, {args.threads} thread(s) of {machine['cores']} cores, {name}; "
        f"{args.rounds} rounds"
    )
    print(f"characters/s, medians; × textbook: median (quartiles); limit: {limit}")
    heads = "".join(f"{way:>10}" for way in ways)
    print(f"{'':<27}{heads}{'× textbook':>22}{'of limit':>9}")
    for row in rows:
        speeds = "".join(f"{row['characters_per_second'][way]:>10,.0f}" for way in ways)
        low, high = row["of_textbook_quartiles"]
        spread = f"{row['of_textbook']:.3f} ({low:.2f}-{high:.2f})"
        print(f"{row['name']:<27}{speeds}{spread:>22}{row['of_limit']:>9.0%}")
    print(f"\n{'':<27}{'GFLOP/s':>10}{'MB beyond the weights: charlm':>33}{'textbook':>10}")
    for row in rows:
        memory = row["memory_mb"]
        ours = memory.get(WHOLE, memory.get(STEP))
        print(f"{row['name']:<27}{row['gflops']:>10,.1f}{ours:>33,.1f}{memory[TEXTBOOK]:>10,.1f}")
