"""`bench.py train`: training against the textbook loop and the sgemm peak."""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bench_rounds import (
    LIMIT,
    STEP,
    TEXTBOOK,
    WHOLE,
    Textbook,
    V,
    figures,
    finish,
    in_turn,
    matrices_of,
    timed,
)
from torch import Tensor, nn

WARM_UP = 5  # steps of train() that are not counted: the first ones find neither memory nor kernels ready


def sgemm_peak() -> float:
    """GFLOP/s of a large float32 product, the best of three."""
    a, b = torch.ones(1024, 1024), torch.ones(1024, 1024)
    out = torch.empty(1024, 1024)
    return max(timed(lambda: torch.mm(a, b, out=out), 2 * 1024**3) for _ in range(3)) / 1e9


def plain_steps(model: nn.Module, optimizer, ids: Tensor, bptt: int, steps: int, textbook: bool) -> float:
    """Characters/s of forward, backward, clipping and the optimizer; ids: int64[lanes, length]."""
    carry, windows = None, (ids.shape[1] - 1) // bptt

    def run() -> None:
        nonlocal carry
        for i in range(steps):
            at = i % windows * bptt
            x, y = ids[:, at : at + bptt], ids[:, at + 1 : at + bptt + 1]
            if textbook:
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


def whole_train(config, steps: int) -> float:
    """Characters/s of train(config) once it has warmed up: data, carry, logging; no start, no ending."""
    from charlm.train import train

    at: list[float] = []
    with tempfile.TemporaryDirectory(dir=config.data.dir) as folder:
        config = replace(config, run_dir=folder, train=replace(config.train, steps=steps + WARM_UP + 1))
        train(config, quiet=True, watch=lambda step, model, loss: at.append(time.perf_counter()))
    return steps * config.train.batch_size * config.train.bptt / (at[-1] - at[WARM_UP])


def train_row(cell: str, hidden: int, lanes: int, args: argparse.Namespace, folder: Path) -> dict:
    from charlm import CharLM
    from charlm.config import from_dict
    from charlm.optim import make_optimizer

    draw = np.random.default_rng(0)
    ids = torch.from_numpy(draw.integers(0, V, (lanes, 40 * args.bptt + 1)))
    text = folder / f"{lanes}.txt"
    text.write_bytes(bytes(ids.flatten().tolist()).translate(bytes(range(32, 127)) + b"\n" + bytes(160)))
    config = from_dict(
        {
            "data": {"source": "text", "data_files": str(text), "dir": str(folder)}
            | {"split_by": "character", "validation": 0, "test": 0},
            "vocab": {"unknown": "error"},
            "model": {"cell": cell, "embedding_size": 64, "hidden_size": hidden, "num_layers": args.layers},
            "optim": {"learning_rate": 1e-3, "warmup_steps": 0, "clip": 1.0},
            "train": {"batch_size": lanes, "bptt": args.bptt},
            "evaluate": {"every": 0},
            "sample": {"every": 0},
            "checkpoint": {"every": 0},
            "log": {"every": 50, "wandb": "disabled"},
        }
    )
    textbook = Textbook(cell, 64, hidden, args.layers)
    plain = torch.optim.AdamW(textbook.parameters(), lr=1e-3, fused=True)
    ours = CharLM(config.model, V)
    optimizer = make_optimizer(ours, config.optim)
    flops = 6 * sum(m.numel() for m in matrices_of(textbook))  # per character: forward 2, backward 4
    # Steps for about half a second at half the peak, so that every way meets the same hour.
    steps = args.steps or max(4, int(0.25 * sgemm_peak() * 1e9 / flops / lanes / args.bptt))
    ways = {
        TEXTBOOK: lambda: plain_steps(textbook, plain, ids, args.bptt, steps, True),
        STEP: lambda: plain_steps(ours, optimizer, ids, args.bptt, steps, False),
        WHOLE: lambda: whole_train(config, steps),
        LIMIT: lambda: sgemm_peak() * 1e9 / flops,
    }
    told = in_turn(ways, args.rounds, f"{cell} {args.layers} × {hidden}, {lanes} lanes × {args.bptt}")
    row = {"cell": cell, "layers": args.layers, "hidden": hidden, "lanes": lanes, "bptt": args.bptt}
    return row | {"steps": steps, "flops_per_character": flops} | figures(told)


def train_bench(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as folder:
        rows = [
            train_row(cell, hidden, lanes, args, Path(folder))
            for cell in args.cells
            for hidden, lanes in zip(args.hidden, args.lanes, strict=True)
        ]
    finish("train", "the sgemm peak over 6 FLOP per weight", rows, args)
