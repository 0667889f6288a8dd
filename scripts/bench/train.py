"""Training: the textbook loop, charlm's step, the whole train(), and the peak of matrix products.

train() reads a prepared text, hands the carry on, logs every 50 steps or once a round, and takes as many
threads as it thinks right, --threads at most. Its first steps and its ending are not counted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rounds import (
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
LOG_EVERY = 50
SCORED = 20_000  # symbols of validation
PHASES = ("input", "replay", "forward", "backward", "clip", "optimizer", "logging", "rest")


def windows(ids: Tensor, bptt: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """x and y of so many steps; ids: int64[lanes, length]."""
    count = (ids.shape[1] - 1) // bptt
    for i in range(steps):
        at = i % count * bptt
        yield ids[:, at : at + bptt], ids[:, at + 1 : at + bptt + 1]


def textbook_steps(model: Textbook, optimizer, ids: Tensor, bptt: int, steps: int) -> float:
    """Characters/s of forward, backward, clipping and the optimizer, as tutorials write them."""
    carry, low = None, torch.autocast("cuda", torch.bfloat16) if ids.is_cuda else nullcontext()

    def run() -> None:
        nonlocal carry
        for x, y in windows(ids, bptt, steps):
            with low:
                logits, carry = model(x, carry)
                loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
            carry = tuple(c.detach() for c in carry) if isinstance(carry, tuple) else carry.detach()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return timed(run, ids.shape[0] * bptt * steps)


class Steps:
    """charlm's step on its own: forward, backward and clipping, recorded or not, and the optimizer."""

    def __init__(self, model, optimizer, ids: Tensor, bptt: int, recorded: bool):
        self.model, self.optimizer, self.ids, self.bptt = model, optimizer, ids, bptt
        self.parameters, self.carry, self.recorded = list(model.parameters()), model.zeros(len(ids)), recorded
        self.step = None

    def _step(self, x: Tensor, y: Tensor, *carry: Tensor):
        self.optimizer.zero_grad()
        loss, carry = self.model(x, carry, y)
        loss.backward()
        return loss.detach(), nn.utils.clip_grad_norm_(self.parameters, 1.0), carry

    def __call__(self, steps: int) -> float:
        """Characters/s. The first call records the step, whose memory is its own from then on."""
        from charlm.model.device import Recorded

        if self.step is None:
            window = next(windows(self.ids, self.bptt, 1))
            self.step = self._step
            if self.recorded:
                self.step = Recorded(self._step, *window, *self.carry, record=self.ids.is_cuda)

        def run() -> None:
            for x, y in windows(self.ids, self.bptt, steps):
                _, _, self.carry = self.step(x, y, *self.carry)
                self.optimizer.step()
                if not self.recorded:
                    self.optimizer.zero_grad()

        return timed(run, len(self.ids) * self.bptt * steps)


def phases_of(setup, position, steps: int) -> dict[str, float]:
    """Milliseconds per step of the parts of charlm's step, each waited for; setup: what set_up returns."""
    spent, carry, step = {}, setup.model.zeros(len(setup.lanes.lanes)), setup.step
    for _ in range(steps):
        sync()
        since = time.perf_counter()

        def done(name: str) -> None:
            nonlocal since
            sync()
            now = time.perf_counter()
            spent[name], since = spent.get(name, 0.0) + (now - since) * 1000 / steps, now

        x, y = setup.lanes.window(position)
        done("input")
        if step.recorded:
            _, _, carry = step(x, y, carry)
            done("replay")
        else:
            loss, carry = step.model(x, carry, y)
            done("forward")
            loss.backward()
            done("backward")
            nn.utils.clip_grad_norm_(step.parameters, 1.0)
            done("clip")
        step.update()
        done("optimizer")
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
    from charlm.training import loop
    from charlm.training.run import Run

    speeds, phases, logging, scoring = [], {}, [], []
    began, setup = 0.0, None
    count_step, log_figures, validate, set_up = Run.count_step, loop.log_figures, loop.validate, loop.set_up
    units = steps * config.train.batch_size * config.train.bptt

    def build(*args):
        nonlocal setup
        setup = set_up(*args)
        return setup

    def count(run) -> None:  # train's own `watch` would wait for a GPU in every step
        nonlocal began
        count_step(run)
        at, rest = divmod(run.state.step - WARM_UP, steps)
        if at < 0 or rest:
            return
        sync()
        if at:
            speeds.append(units / (time.perf_counter() - began))
        if at < rounds:
            between(at)
        else:
            phases.update(phases_of(setup, run.state.position, min(steps, 20)))
        sync()
        began = time.perf_counter()

    def log(*args) -> None:
        logging.append(1 / timed(lambda: log_figures(*args), 1))

    def score(*args) -> None:
        scoring.append(timed(lambda: validate(*args), SCORED))

    Run.count_step, loop.log_figures, loop.validate, loop.set_up = count, log, score, build
    try:
        loop.train(config, quiet=True)
    finally:
        Run.count_step, loop.log_figures, loop.validate = count_step, log_figures, validate
        loop.set_up = set_up
    phases["logging"] = statistics.median(logging) * 1000 / config.log.every
    return speeds, phases, scoring[-1]


def drawn(lanes: int, bptt: int) -> np.ndarray:
    """The ids that are learnt: int64[lanes, 40 windows and one more]."""
    return np.random.default_rng(0).integers(0, V, (lanes, 40 * bptt + 1))


def config_of(cell: str, layers: int, hidden: int, lanes: int, bptt: int, steps: int, folder: Path):
    """What train() is given."""
    from charlm.config.parse import from_dict

    symbols = bytes(range(32, 127)) + b"\n" + bytes(160)
    text = drawn(lanes, bptt).astype(np.uint8).tobytes().translate(symbols)
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
    return from_dict(config)


def train_row(cell: str, layers: int, hidden: int, lanes: int, bptt: int, args, folder: Path) -> dict:
    from charlm import CharLM
    from charlm.model.device import keep
    from charlm.training.optimizer import make_optimizer
    from charlm.training.setup import threads_for

    low = torch.bfloat16 if device().type == "cuda" else torch.float32
    textbook = Textbook(cell, hidden, layers).to(device())
    plain = torch.optim.AdamW(textbook.parameters(), lr=1e-3, fused=True)
    flops = 6 * sum(m.numel() for m in matrices_of(textbook))  # per character: forward 2, backward 4
    name = f"{cell} {layers} × {hidden}, {lanes} × {bptt}"
    ids = torch.from_numpy(drawn(lanes, bptt)).to(device())
    textbook_steps(textbook, plain, ids, bptt, 2)
    # Steps for about a second, so that every way meets the same hour.
    steps = args.steps or max(5, int(textbook_steps(textbook, plain, ids, bptt, 3) / lanes / bptt))
    config = config_of(cell, layers, hidden, lanes, bptt, steps * args.rounds + WARM_UP, folder)
    config.train.cuda_graph, config.log.every = False if args.eager else None, min(LOG_EVERY, steps)
    ours = CharLM(config.model, V).to(device())
    ours.compute_dtype = low
    optimizer = make_optimizer(ours, config.optim)
    own = threads_for(config, 1)
    alone = Steps(ours, optimizer, ids, bptt, recorded=ids.is_cuda and not args.eager)

    def step() -> float:
        with threads(own):
            return alone(steps)

    def of_textbook() -> float:  # within train(), which keeps freed memory on a CPU
        if ids.is_cuda:
            return textbook_steps(textbook, plain, ids, bptt, steps)
        keep(False)
        try:
            textbook_steps(textbook, plain, ids, bptt, 1)  # the heap finds its size
            return textbook_steps(textbook, plain, ids, bptt, steps)
        finally:
            keep(True)

    # train() comes next, and finds its memory where the step left it.
    ways = {LIMIT: lambda: matmul_peak(low) / flops, TEXTBOOK: of_textbook, STEP: step}
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
    whole = lanes * bptt / row["characters_per_second"][WHOLE] * 1000
    phases["rest"] = whole - sum(phases.values())  # what the parts of a step do not account for
    return row


def main(words: list[str]) -> None:
    """Run the command."""
    parser = parser_of("train", __doc__, ["256x16x64", "512x64x64"], "HIDDENxLANESxWINDOW", 15)
    parser.add_argument("--steps", type=positive, help="steps in a round (about a second's)")
    parser.add_argument("--eager", action="store_true", help="on a GPU: launch every kernel of a step anew")
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
    shown = [name for name in PHASES if any(name in row["phases_ms"] for row in rows)]
    print("".join(f"{name[:8]:>9}" for name in shown) + f"{'scored':>10}")
    for row in rows:
        spent = "".join(f"{row['phases_ms'].get(name, 0):>9.2f}" for name in shown)
        print(f"{row['name']:<27}{spent}{row['scored_per_second']:>10,.0f}")
