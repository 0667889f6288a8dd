"""Training: the textbook loop, charlm's step, the whole train(), and the peak of matrix products.

train() reads a prepared text, hands the carry on, logs every 20 steps or once a round, and takes as many
threads as it thinks right, --threads at most. Its first steps and its ending are not counted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bench_rounds import (
    LIMIT,
    STEP,
    TEXTBOOK,
    WHOLE,
    E,
    Rounds,
    Textbook,
    V,
    device,
    finish,
    matmul_peak,
    matrices_of,
    parser_of,
    positive,
    sync,
    tell,
    timed,
)
from torch import Tensor, nn

WARM_UP = 5  # steps of train() that are not counted: the first ones find neither memory nor kernels ready
LOG_EVERY = 20
SCORED = 20_000  # symbols of validation
PHASES = ("input", "forward", "backward", "clip", "optimizer", "logging")


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
    spent, carry = dict.fromkeys(PHASES[:-1], 0.0), run.model.zeros(len(run.lanes.lanes))
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
        nn.utils.clip_grad_norm_(run.parameters, 1.0)
        done()
        run.update()
        done()
        for name, began, ended in zip(spent, times, times[1:], strict=False):
            spent[name] += (ended - began) * 1000 / steps
    return spent


@contextmanager
def threads(count: int):
    """As many threads of torch meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def whole_train(config, steps: int, rounds: int, between: Callable[[int], None]) -> tuple[list, dict, float]:
    """train(config) in rounds, with between(round) run before each, in the same process.

    Returns characters/s of each round (data, carry, logging; no start, no ending), the phases of a step in
    ms, and how many symbols of validation it scores per second.
    """
    from charlm.run import Run
    from charlm.train import train

    speeds, phases, logging, scoring = [], {}, [], []
    began, plain = 0.0, (Run.advance, Run.log, Run.evaluate)
    units = steps * config.train.batch_size * config.train.bptt

    def advance(run, loss, carry) -> None:  # train's own `watch` would wait for a GPU in every step
        nonlocal began
        plain[0](run, loss, carry)
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

    def log(run, norm) -> None:
        logging.append(1 / timed(lambda: plain[1](run, norm), 1))

    def evaluate(run) -> None:
        scoring.append(timed(lambda: plain[2](run), SCORED))

    Run.advance, Run.log, Run.evaluate = advance, log, evaluate
    try:
        train(config, quiet=True)
    finally:
        Run.advance, Run.log, Run.evaluate = plain
    if phases:
        phases["logging"] = statistics.median(logging) * 1000 / config.log.every
    return speeds, phases, scoring[-1]


def config_of(cell: str, layers: int, hidden: int, lanes: int, bptt: int, steps: int, folder: Path):
    """What train() is given, and the ids it learns: int64[lanes, 40 windows and one more]."""
    from charlm.config import from_dict

    ids = np.random.default_rng(0).integers(0, V, (lanes, 40 * bptt + 1))
    symbols = bytes(range(32, 127)) + b"\n" + bytes(160)
    text = ids.astype(np.uint8).tobytes().translate(symbols)
    held = (text * (SCORED // len(text) + 1))[:SCORED]
    path = folder / f"{lanes}x{bptt}.txt"
    path.write_bytes(text + held)
    data = {"source": "text", "data_files": str(path), "dir": str(folder), "split_by": "character"}
    data |= {"validation": SCORED / (len(text) + SCORED), "test": 0}
    config = {
        "run_dir": f"{folder}/{cell}-{layers}-{hidden}-{lanes}-{bptt}",
        "data": data,
        "vocab": {"unknown": "error"},
        "model": {"cell": cell, "embedding_size": E, "hidden_size": hidden, "num_layers": layers},
        "optim": {"learning_rate": 1e-3, "warmup_steps": 0, "clip": 1.0},
        "train": {"steps": steps, "batch_size": lanes, "bptt": bptt},
        **{name: {"every": 0} for name in ("evaluate", "sample", "checkpoint")},
        "log": {"wandb": "disabled"},
    }
    if device().type == "cuda":
        config["train"]["precision"] = "bf16"
    return from_dict(config), torch.from_numpy(ids).to(device())


def train_row(cell: str, layers: int, hidden: int, lanes: int, bptt: int, args, folder: Path) -> dict:
    from charlm import CharLM
    from charlm.optim import make_optimizer
    from charlm.parts import threads_for

    low = torch.bfloat16 if device().type == "cuda" else torch.float32
    textbook = Textbook(cell, hidden, layers).to(device())
    plain = torch.optim.AdamW(textbook.parameters(), lr=1e-3, fused=True)
    flops = 6 * sum(m.numel() for m in matrices_of(textbook))  # per character: forward 2, backward 4
    # Steps for half a second at the peak, about one in truth, so that every way meets the same hour.
    steps = args.steps or max(5, int(0.5 * matmul_peak(low) / flops / lanes / bptt))
    name = f"{cell} {layers} × {hidden}, {lanes} × {bptt}"
    config, ids = config_of(cell, layers, hidden, lanes, bptt, steps * args.rounds + WARM_UP, folder)
    config.train.cuda_graph, config.log.every = args.cuda_graph, min(LOG_EVERY, steps)
    ours = CharLM(config.model, V).to(device())
    ours.compute_dtype = low
    optimizer = make_optimizer(ours, config.optim)
    own = threads_for(config, 1)

    def step() -> float:
        with threads(own):
            return plain_steps(ours, optimizer, ids, bptt, steps, False)

    ways = {
        LIMIT: lambda: matmul_peak(low) / flops,
        STEP: step,
        TEXTBOOK: lambda: plain_steps(textbook, plain, ids, bptt, steps, True),  # last: train() comes next
    }
    rounds = Rounds(name, ways, args.rounds)

    def between(number: int) -> None:
        with threads(args.threads):
            rounds.once(number)
        tell(f"{name}: train(), round {number + 1}/{args.rounds}")

    rounds.speeds[WHOLE], phases, scored = whole_train(config, steps, args.rounds, between)
    tell("")
    row = {"name": name, "cell": cell, "layers": layers, "hidden": hidden, "lanes": lanes, "bptt": bptt}
    row |= {"precision": config.train.precision, "steps": steps, "threads_of_charlm": own}
    row |= rounds.figures(flops) | {"scored_per_second": scored, "phases_ms": phases}
    if phases:  # what the parts of a step do not account for
        whole = lanes * bptt / row["characters_per_second"][WHOLE] * 1000
        row["phases_ms"] = phases | {"rest": whole - sum(phases.values())}
    return row


def main(words: list[str]) -> None:
    """Run the command."""
    parser = parser_of("train", __doc__, ["256x16x64", "512x64x64"], "HIDDENxLANESxWINDOW", 15)
    parser.add_argument("--steps", type=positive, help="steps in a round (about a second's)")
    parser.add_argument("--cuda_graph", action="store_true", help="with train.cuda_graph")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as folder:
        rows = [
            train_row(cell, layers, *size, args, Path(folder))
            for cell in args.cells
            for layers in args.layers
            for size in args.sizes
        ]
    finish("train", "peak / 6 FLOP per weight", rows, args)
    print(
        f"\nms per step of train(), each part waited for; scored: validation, characters/s\n{'':<27}", end=""
    )
    print("".join(f"{name[:8]:>9}" for name in (*PHASES, "rest")) + f"{'scored':>10}")
    for row in rows:
        spent = "".join(f"{ms:>9.2f}" for ms in row["phases_ms"].values()) or " " * 63
        print(f"{row['name']:<27}{spent}{row['scored_per_second']:>10,.0f}")
