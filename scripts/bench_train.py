"""`bench.py train`: training against the textbook loop and the peak of matrix products."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bench_rounds import (
    LIMIT,
    STEP,
    TEXTBOOK,
    WHOLE,
    Memory,
    Textbook,
    V,
    figures,
    finish,
    matmul_peak,
    matrices_of,
    sync,
    tell,
    timed,
)
from torch import Tensor, nn

WARM_UP = 5  # steps of train() that are not counted: the first ones find neither memory nor kernels ready
PHASES = ("input", "forward", "backward", "clip", "optimizer")


def plain_steps(model: nn.Module, optimizer, ids: Tensor, bptt: int, steps: int, textbook: bool) -> float:
    """Characters/s of forward, backward, clipping and the optimizer; ids: int64[lanes, length]."""
    carry, windows = None, (ids.shape[1] - 1) // bptt
    low = torch.autocast("cuda", torch.bfloat16) if ids.is_cuda and textbook else nullcontext()

    def run() -> None:
        nonlocal carry
        for i in range(steps):
            at = i % windows * bptt
            x, y = ids[:, at : at + bptt], ids[:, at + 1 : at + bptt + 1]
            if textbook:
                with low:
                    logits, carry = model(x, carry)
                    loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
                carry = tuple(c.detach() for c in carry) if isinstance(carry, tuple) else carry.detach()
            else:
                loss, carry = model(x, carry, y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return timed(run, ids.shape[0] * bptt * steps)


def phases_of(run, steps: int) -> dict[str, float]:
    """Milliseconds per step of what charlm's step consists of, each waited for; run: a charlm.run.Run."""
    spent, carry = dict.fromkeys(PHASES, 0.0), run.model.zeros(len(run.lanes.lanes))
    for _ in range(steps):
        sync()
        times = [time.perf_counter()]

        def done(times=times) -> None:
            sync()
            times.append(time.perf_counter())

        x, y = run.lanes.window(run.state.position)
        done()
        loss, carry = run.wrapped(x, carry, y)
        done()
        run.accelerator.backward(loss)
        done()
        run.accelerator.clip_grad_norm_(run.model.parameters(), 1.0)
        done()
        run.update()
        done()
        for name, began, ended in zip(PHASES, times, times[1:], strict=False):
            spent[name] += (ended - began) * 1000 / steps
    return spent


def whole_train(config, steps: int, rounds: int, between: Callable[[int], None]) -> tuple[list, dict]:
    """train(config) in rounds, with between(round) run before each, in the same process.

    Returns characters/s of each round (data, carry, logging; no start, no ending), and the phases of a step.
    """
    from charlm.run import Run
    from charlm.train import train

    speeds, phases = [], {}
    began, original = 0.0, Run.advance
    units = steps * config.train.batch_size * config.train.bptt

    def advance(run, loss, carry) -> None:  # train's own `watch` would wait for a GPU in every step
        nonlocal began
        original(run, loss, carry)
        at, rest = divmod(run.state.step - WARM_UP, steps)
        if at < 0 or rest:
            return
        sync()
        if at:
            speeds.append(units / (time.perf_counter() - began))
        if at < rounds:
            between(at)
        elif not run.config.train.cuda_graph:
            phases.update(phases_of(run, min(steps, 20)))
        sync()
        began = time.perf_counter()

    Run.advance = advance
    try:
        train(config, quiet=True)
    finally:
        Run.advance = original
    return speeds, phases


def train_row(cell: str, hidden: int, lanes: int, args: argparse.Namespace, folder: Path) -> dict:
    from charlm import CharLM
    from charlm.config import from_dict
    from charlm.optim import make_optimizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bf16" if device.type == "cuda" else "fp32"
    draw = np.random.default_rng(0)
    ids = torch.from_numpy(draw.integers(0, V, (lanes, 40 * args.bptt + 1))).to(device)
    text = folder / f"{lanes}.txt"
    text.write_bytes(bytes(ids.flatten().tolist()).translate(bytes(range(32, 127)) + b"\n" + bytes(160)))
    textbook = Textbook(cell, 64, hidden, args.layers).to(device)
    plain = torch.optim.AdamW(textbook.parameters(), lr=1e-3, fused=True)
    flops = 6 * sum(m.numel() for m in matrices_of(textbook))  # per character: forward 2, backward 4
    low = torch.bfloat16 if device.type == "cuda" else torch.float32
    peak = matmul_peak(device, low)
    # Steps for about half a second at half the peak, so that every way meets the same hour.
    steps = args.steps or max(20, int(0.25 * peak / flops / lanes / args.bptt))
    name = f"{cell} {args.layers} × {hidden}, {lanes} × {args.bptt}"
    config = from_dict(
        {
            "run_dir": f"{folder}/{cell}-{hidden}-{lanes}",
            "data": {"source": "text", "data_files": str(text), "dir": str(folder)}
            | {"split_by": "character", "validation": 0, "test": 0},
            "vocab": {"unknown": "error"},
            "model": {"cell": cell, "embedding_size": 64, "hidden_size": hidden, "num_layers": args.layers},
            "optim": {"learning_rate": 1e-3, "warmup_steps": 0, "clip": 1.0},
            "train": {"steps": steps * args.rounds + WARM_UP, "batch_size": lanes, "bptt": args.bptt}
            | {"precision": precision, "cuda_graph": args.cuda_graph, "threads": torch.get_num_threads()},
            "evaluate": {"every": 0},
            "sample": {"every": 0},
            "checkpoint": {"every": 0},
            "log": {"wandb": "disabled"},
        }
    )
    ours = CharLM(config.model, V).to(device)
    if precision == "bf16":
        ours.compute_dtype = torch.bfloat16
    optimizer = make_optimizer(ours, config.optim)
    ways = {
        TEXTBOOK: lambda: plain_steps(textbook, plain, ids, args.bptt, steps, True),
        STEP: lambda: plain_steps(ours, optimizer, ids, args.bptt, steps, False),
        LIMIT: lambda: (
            matmul_peak(device, torch.bfloat16 if device.type == "cuda" else torch.float32) / flops
        ),
    }
    told: dict[str, list[float]] = {TEXTBOOK: [], STEP: [], WHOLE: [], LIMIT: []}
    memory = {}

    def between(number: int) -> None:
        for way, run in ways.items():
            tell(f"{name}: {way}, round {number + 1}/{args.rounds}")
            if not number and way != LIMIT:
                with Memory() as memory[way]:  # which warms up, too
                    run()
            told[way].append(run())

    told[WHOLE], phases = whole_train(config, steps, args.rounds, between)
    tell("")
    row = {"name": name, "cell": cell, "layers": args.layers, "hidden": hidden, "lanes": lanes}
    row |= {"bptt": args.bptt, "precision": precision, "steps": steps, "flops_per_character": flops}
    row |= figures(told) | {"memory_mb": {way: used.mb for way, used in memory.items()}}
    row["gflops"] = row["characters_per_second"][WHOLE] * flops / 1e9
    if phases:  # logging and all the rest: what the parts of a step do not account for
        whole = lanes * args.bptt / row["characters_per_second"][WHOLE] * 1000
        row["phases_ms"] = phases | {"rest": whole - sum(phases.values())}
    return row


def train_bench(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as folder:
        rows = [
            train_row(cell, hidden, lanes, args, Path(folder))
            for cell in args.cells
            for hidden, lanes in zip(args.hidden, args.lanes, strict=True)
        ]
    finish("train", "the peak of matrix products over 6 FLOP per weight", rows, args)
    print(f"\nms per step of charlm, each part waited for; MB beyond weights\n{'':<24}", end="")
    print("".join(f"{name:>10}" for name in (*PHASES, "rest")) + f"{'GFLOP/s':>9}{'MB':>6}{'textbook':>9}")
    for row in rows:
        spent = "".join(f"{ms:>10.2f}" for ms in row.get("phases_ms", {}).values()) or " " * 60
        used = row["memory_mb"]
        print(f"{row['name']:<24}{spent}{row['gflops']:>9,.0f}{used[STEP]:>6,.0f}{used[TEXTBOOK]:>9,.0f}")
