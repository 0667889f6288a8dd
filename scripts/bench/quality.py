"""Equal seconds of training for a list of ways, each then scored on the same test text.

    bench.py quality [options] [options of charlm: the corpus, and what all ways have in common]

A way is `name: options`. The options are charlm's, on top of the common ones. `name: textbook options` trains
nn.LSTM, nn.Linear and torch's AdamW with them; `name: gpt options` trains a plain GPT, whose options are
--layers --width --heads --block --batch --tie --learning_rate --final_ratio --betas --weight_decay --clip
--compile --stride (see scripts/bench/gpt.py). Any way may have its own --seconds and --warmup.

The seconds are of training alone, and of counting n-grams. A few steps at learning rate 0 come first, in
which kernels are chosen, recorded and compiled; then the optimizer's state and the data are put at their
start. The schedule follows the clock: the share of the seconds that has passed stands for the share of the
steps, so that train.steps and optim.warmup_steps have no effect. Recurrent ways are scored by evaluate(), the
carry handed on; the GPT by overlapping windows, each target predicted once, with half a block of context or
more.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from gpt import GPTConfig, gpt_config
from rounds import device, positive, sync, tell
from torch import nn
from trials import CharlmTrial, GPTTrial, TextbookTrial, Trial

from charlm.config.fields import Config
from charlm.config.parse import parse
from charlm.corpus.prepared import prepare
from charlm.errors import CharlmError
from charlm.evaluation.evaluate import LN2
from charlm.model.device import keep_freed_memory, peak_memory
from charlm.training.optimizer import learning_rate

SHARES = 1_000_000  # steps of a schedule that follows the clock
AHEAD = 4  # steps that may be in a GPU's queue, which would otherwise run on after the time
CHECKS = 20  # times that the loss is looked at: each waits for the GPU
KINDS = ("charlm", "textbook", "gpt")
DEFAULT = ("charlm:", "textbook: textbook", "gpt: gpt")
SPLITS = ("validation", "test")  # scored
HEADS = ("way", "parameters", "multiplied", "seconds", "characters/s", "characters seen")
HEADS = (*HEADS, "train bpc", "validation bpc", "test bpc")


@dataclass
class Way:
    """A line of the list, parsed."""

    name: str
    kind: str
    words: list[str]
    config: Config
    gpt: GPTConfig | None
    seconds: float
    warmup: float

    def trial(self) -> Trial:
        if self.kind == "gpt":
            return GPTTrial(self.config, self.gpt)
        return (TextbookTrial if self.kind == "textbook" else CharlmTrial)(self.config)


def parse_way(line: str, common: list[str], args: argparse.Namespace) -> Way:
    """Raises ValueError, naming the way, for options that are wrong."""
    name, colon, text = line.partition(":")
    name = name.strip()
    if not colon or not name:
        raise ValueError(f"{line!r}: a way is written `name: options`")
    words = shlex.split(text, comments=True)
    kind = words[0] if words and not words[0].startswith("-") else "charlm"
    if kind not in KINDS:
        raise ValueError(f"{name}: {kind} is none of {', '.join(KINDS)}")
    words = words[words[:1] == [kind] :]
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--seconds", type=float, default=args.seconds)
    own.add_argument("--warmup", type=float, default=args.warmup)
    try:
        limits, rest = own.parse_known_args(words)
        gpt = gpt_config(rest, device().type == "cuda") if kind == "gpt" else None
        config = parse(common if gpt else [*common, *rest])
    except (CharlmError, argparse.ArgumentError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    return Way(name, kind, words, config, gpt, limits.seconds, limits.warmup)


class Clock:
    """Seconds of training: wall, or the CPU time of this process."""

    def __init__(self, kind: str):
        self.now = {"wall": time.perf_counter, "cpu": time.process_time}[kind]
        self.queued: deque[torch.cuda.Event] = deque()
        sync()
        self.began = self.now()

    def elapsed(self) -> float:
        return self.now() - self.began

    def step(self) -> None:
        """After a step: wait until a GPU has at most AHEAD of them to do."""
        if device().type == "cuda":
            self.queued.append(torch.cuda.Event())
            self.queued[-1].record()
            if len(self.queued) > AHEAD:
                self.queued.popleft().synchronize()


def train(trial: Trial, way: Way, kind: str) -> dict:
    """Train for the seconds of a way. Returns seconds, steps, and the mean loss of the last tenth of them.

    Raises CharlmError when the loss is not finite.
    """
    optim = replace(trial.optim, warmup_steps=round(way.warmup * SHARES))
    trial.warm_up()
    clock, steps, checked, late = Clock(kind), 0, 0.0, []
    trial.read()
    while (share := clock.elapsed() / way.seconds) < 1:
        loss = trial.step(learning_rate(int(share * SHARES), optim, SHARES))
        clock.step()
        steps += 1
        if share >= 0.9:
            late.append(loss)
        if share >= checked:
            checked = share + 1 / CHECKS
            value = loss.item()  # sync
            if not math.isfinite(value):
                raise CharlmError(f"diverged: the loss is {value} at step {steps}")
            tell(f"{way.name}: {share:.0%}, step {steps}, {value / LN2:.3f} bits per symbol")
    sync()
    seconds = clock.elapsed()
    return {"seconds": seconds, "steps": steps, "loss": torch.stack(late or [loss]).mean().item()}


def sizes(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those that are multiplied: matrices, without tables that are only looked up."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    tables -= {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}  # tied
    parameters = [p for p in model.parameters() if p.requires_grad]  # without counts of n-grams
    multiplied = sum(p.numel() for p in parameters if p.ndim > 1 and id(p) not in tables)
    return sum(p.numel() for p in parameters), multiplied


@contextmanager
def alone(threads: int):
    """For each way the memory of those before it is free, and torch's settings are as they were."""
    backends = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = [backend.fp32_precision for backend in backends]
    torch.set_num_threads(threads)
    gc.collect()
    if device().type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        with keep_freed_memory(device()):
            yield
    finally:
        for backend, value in zip(backends, before, strict=True):  # a compiler refuses what charlm sets
            backend.fp32_precision = value


def run_way(way: Way, args: argparse.Namespace) -> dict:
    """Train and score a way. Returns its figures."""
    corpus = prepare(way.config)
    train_size = corpus.splits["train"]
    trial = way.trial()
    try:
        row = train(trial, way, args.clock)
        row["parameters"], row["multiplied"] = sizes(trial.model)
        characters = row["steps"] * trial.symbols * train_size["characters"] / train_size["symbols"]
        row |= {"characters": round(characters), "characters_per_second": characters / row["seconds"]}
        row["train_bpc"] = row["loss"] / LN2 * train_size["symbols"] / train_size["characters"]
        for split in SPLITS:
            if split in corpus.splits:
                tell(f"{way.name}: {split}")
                row[split] = trial.score(corpus[split][: args.max_characters])
        row["peak_gb"] = round(peak_memory(device()) / 1e9, 3)
        if not row["test"]["bpc"] < 2 * math.log2(len(corpus.vocab)):  # twice that of guessing
            raise CharlmError(f"diverged: test bpc is {row['test']['bpc']:.4g}")
    finally:
        trial.close()
    return row


def attempt(way: Way, args: argparse.Namespace) -> dict:
    """The figures of a way, or {"error": one line}."""
    try:
        with alone(args.threads):
            return run_way(way, args)
    except Exception as error:  # out of memory, say: the ways that follow are not concerned
        lines = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0]}"}


def cells(row: dict) -> list[str]:
    """A row of the table."""
    if "error" in row:
        return [row["way"], *[""] * (len(HEADS) - 2), row["error"]]
    figures = [f"{row[key]:,}" for key in ("parameters", "multiplied")] + [f"{row['seconds']:.1f}"]
    figures += [f"{row['characters_per_second']:,.0f}", f"{row['characters']:,}", f"{row['train_bpc']:.4f}"]
    return [row["way"], *figures, *(f"{row[s]['bpc']:.4f}" if s in row else "" for s in SPLITS)]


def print_table(rows: list[dict]) -> None:
    print("\n" + "\n".join(f"| {' | '.join(some)} |" for some in (HEADS, ["---"] * len(HEADS))))
    for row in rows:
        print(f"| {' | '.join(cells(row))} |")


def commit() -> str:
    """Of this program, with -dirty where it was changed since; empty outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8").stdout.strip()
    except OSError:
        return ""


def arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and those that are charlm's."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench.py quality", description=__doc__, formatter_class=form)
    parser.allow_abbrev = False
    parser.add_argument("--ways", type=Path, help="file with a way per line; # starts a comment")
    parser.add_argument("--way", action="append", default=[], metavar="'NAME: OPTIONS'", help="one more way")
    parser.add_argument("--seconds", type=float, default=60, help="of training, each way (60)")
    parser.add_argument("--warmup", type=float, default=0.03, help="share of the seconds (0.03)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: time of this process")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="of torch (all cores)")
    parser.add_argument("--max_characters", type=positive, help="score this many symbols of each split (all)")
    parser.add_argument("--limit", type=float, help="skip ways that would end later than this, in seconds")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="append the figures of each way")
    return parser.parse_known_args(words)


def main(words: list[str]) -> None:
    """Run the command."""
    began = time.perf_counter()
    args, common = arguments(words)
    if args.clock == "cpu" and device().type == "cuda":
        sys.exit("quality: --clock cpu does not measure a GPU")
    lines = args.ways.read_text(encoding="utf-8").splitlines() if args.ways else []
    lines = [line for line in [*lines, *args.way] if line.strip() and not line.lstrip().startswith("#")]
    try:
        ways = [parse_way(line, common, args) for line in lines or DEFAULT]
        for way in ways:
            if "test" not in prepare(way.config).splits:
                raise ValueError(f"{way.name}: the corpus needs a test split; set data.test")
    except (CharlmError, ValueError) as error:
        sys.exit(f"quality: {error}")
    name = torch.cuda.get_device_name() if device().type == "cuda" else "CPU"
    about = {"torch": torch.__version__, "device": name, "threads": args.threads, "clock": args.clock}
    about |= {"commit": commit(), "common": common}
    print(f"torch {torch.__version__}, {name}, {args.threads} thread(s), {args.clock} seconds", flush=True)
    rows, beyond = [], dict.fromkeys(KINDS, 0.0)  # seconds that a way of this kind took beyond its training
    try:
        for way in ways:
            since = time.perf_counter() - began
            if args.limit and since + way.seconds + beyond[way.kind] > args.limit:
                row = {"error": f"skipped: {since:.0f} of {args.limit:g} s have passed"}
            else:
                row = attempt(way, args)
                took = time.perf_counter() - began - since
                beyond[way.kind] = max(beyond[way.kind], took - way.seconds)
            tell("")
            row = {"way": way.name, "kind": way.kind, "options": way.words} | row
            rows.append(row)
            since = time.perf_counter() - began
            told = [f"{h} {c}" for h, c in zip(HEADS[1:], cells(row)[1:], strict=True) if c]
            print(f"{since:5.0f} s  {way.name}: {row.get('error') or ', '.join(told)}", flush=True)
            if args.out:
                with args.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row | about | {"elapsed": round(since, 1)}) + "\n")
    finally:
        print_table(rows)
