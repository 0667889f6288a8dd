"""A run: its parts (accelerator, corpus, lanes, model, optimizer, report), and what the loop does with it."""

from __future__ import annotations

import errno
import json
import math
import resource
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import Tensor

from charlm.checkpoint import steps_of
from charlm.config import CharlmError, Config
from charlm.corpus import prepare, wait_for
from charlm.evaluate import evaluate
from charlm.files import replace
from charlm.generate import generate, visible
from charlm.lanes import Lanes, Position
from charlm.metrics import LN2
from charlm.model import Carry, CharLM
from charlm.optim import make_optimizer
from charlm.report import Reporter

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)


class NonFiniteLoss(CharlmError):
    """The loss became infinite or not a number."""


@dataclass
class Summary:
    """How training ended.

    status: done or interrupted. best, test: figures as evaluate gives them, best with its step. sample: text.
    """

    status: str
    step: int
    run_dir: Path
    best: dict | None = None
    test: dict | None = None
    sample: str = ""


@dataclass
class State:
    """What moves on with the steps."""

    step: int = 0
    position: Position = field(default_factory=Position)
    carry: Carry | None = None  # of this rank's lanes; None is zeros
    best: dict | None = None  # {"step": …, **figures} of the best evaluation so far
    evaluated: int = -1  # the step last evaluated
    saved: int = -1  # the step last written to a checkpoint
    losses: list[Tensor] = field(default_factory=list)  # [] each, of the steps since the last log line
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])


class Run:
    """One run of a config, on this rank."""

    def __init__(self, config: Config, quiet: bool = False):
        self.config, self.dir, self.state = config, Path(config.run_dir), State()
        cuda = torch.cuda.is_available()
        fp16 = cuda and config.train.precision == "fp16"
        self.accelerator = Accelerator(
            cpu=not cuda, mixed_precision="fp16" if fp16 else "no", log_with="wandb"
        )
        self.main = self.accelerator.is_main_process
        self.clock = Clock()
        self._begun = False  # until then a failure leaves what an earlier run said of itself
        self._lock = FileLock(self.dir / ".lock")
        self.report = Reporter(config, self.accelerator, quiet=quiet)
        self.say = self.report.say

    def __enter__(self) -> Run:
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            if self.main:
                self._lock.acquire(timeout=0)
        except Timeout:
            raise CharlmError(f"{self.dir}: another process trains there now; name another run_dir") from None
        except OSError as error:
            raise CharlmError(f"run_dir={str(self.dir)!r}: cannot be written ({error.strerror})") from error
        try:
            self._set_up()
        except BaseException:
            self._lock.release()
            raise
        return self

    def _set_up(self) -> None:
        config, accelerator = self.config, self.accelerator
        self.corpus = prepare(config) if self.main else wait_for(config)
        self.lanes = Lanes(
            self.corpus["train"],
            config.train.batch_size,
            config.train.bptt,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            seed=config.train.seed,
            device=accelerator.device,
        )
        lanes, slices = len(self.lanes.lanes), config.train.accumulate
        if lanes % slices:
            raise CharlmError(f"train.accumulate={slices}: does not divide the {lanes} lanes of a process")
        torch.manual_seed(config.train.seed)
        self.model = CharLM(config.model, len(self.corpus.vocab))
        self._set_precision()
        optimizer = make_optimizer(self.model.to(accelerator.device), config.optim)
        self.wrapped, self.optimizer = accelerator.prepare(self.model, optimizer)
        torch.manual_seed(config.train.seed + 1 + accelerator.process_index)  # dropout differs by rank

    def _set_precision(self) -> None:
        precision = self.config.train.precision
        if self.accelerator.device.type != "cuda":
            if precision != "fp32":
                self.say(f"train.precision={precision} is for GPUs: this CPU computes in fp32")
            return
        if precision == "bf16":
            self.model.compute_dtype = torch.bfloat16
        exact = "tf32" if precision == "tf32" else "ieee"
        torch.backends.cudnn.rnn.fp32_precision = exact
        torch.backends.cuda.matmul.fp32_precision = exact

    @property
    def bare_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer inside accelerate's wrapper."""
        return self.optimizer.optimizer

    def begin(self) -> None:
        """Open the report at the step that training starts from."""
        self._begun = True
        self.tell_status("running")
        self.report.open(self.state.step, self.state.run_id)
        self.say(self.corpus.report())
        self.say(
            f"{sum(p.numel() for p in self.model.parameters()):,} parameters; "
            f"{self.config.train.batch_size} lanes × {self.config.train.bptt} characters per step, "
            f"{self.lanes.windows} steps per epoch; "
            f"{self.accelerator.num_processes} process(es) on {self.accelerator.device.type}"
        )
        self.clock.restart()

    # one step

    def forward_backward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss [] in nats per symbol over this rank's lanes; norm [] of the gradient before clipping."""
        slices = self.config.train.accumulate
        carry = self.state.carry or self.model.zeros(len(x))
        parts = zip(x.chunk(slices), y.chunk(slices), *(c.chunk(slices, 1) for c in carry), strict=True)
        losses, carries = [], []
        for i, (some_x, some_y, *some_carry) in enumerate(parts, 1):
            with nullcontext() if i == slices else self.accelerator.no_sync(self.wrapped):
                loss, after = self.wrapped(some_x, tuple(some_carry), some_y)
                self.accelerator.backward(loss / slices)
            losses.append(loss.detach())
            carries.append(after)
        self.state.carry = tuple(torch.cat(c, 1) for c in zip(*carries, strict=True))
        clip = self.config.optim.clip
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), math.inf if clip is None else clip)
        return torch.stack(losses).mean(), norm

    def advance(self, loss: Tensor) -> None:
        """Count the step; at the end of an epoch the carry starts again at zero."""
        state = self.state
        state.step += 1
        state.position = self.lanes.after(state.position)
        if state.position.window == 0:
            state.carry = None
        state.losses.append(loss)
        self.clock.steps += 1
        self.report.advance()

    def due(self, every: int) -> bool:
        """Is it time for what happens every so many steps?"""
        return every > 0 and self.state.step % every == 0

    def agreed(self, reason: str | None) -> str | None:
        """Stop when any rank was asked to, all of them at the same step; they confer every tenth."""
        if self.accelerator.num_processes == 1:
            return reason
        if self.state.step % 10:
            return None
        asked = torch.tensor(float(reason is not None), device=self.accelerator.device)
        if self.accelerator.reduce(asked, "sum").item() == 0:  # sync
            return None
        return reason or "another process was asked to stop"

    # every so often

    def log(self, norm: Tensor) -> None:
        """The figures of the steps since the last line."""
        self.check_finite()
        loss = self.accelerator.reduce(torch.stack(self.state.losses).mean(), "mean").item()  # sync
        self.state.losses.clear()
        size, train = self.corpus.splits["train"], self.config.train
        characters = train.batch_size * train.bptt * size["characters"] / size["symbols"]  # per step
        pace = self.clock.steps_per_second()
        values = {
            "loss": loss,
            "bpc": loss / LN2 * size["symbols"] / max(size["characters"], 1),
            "bpb": loss / LN2 * size["symbols"] / max(size["bytes"], 1),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "grad_norm": norm.item(),
            "characters_per_second": round(characters * pace, 1),
            "epoch": round(self.state.position.epoch + self.state.position.window / self.lanes.windows, 4),
            "memory_gb": round(_peak_memory(self.accelerator.device) / 1e9, 3),
        }
        self.report.training(self.state.step, values, seconds_left=(train.steps - self.state.step) / pace)
        self.clock.restart()

    def check_finite(self) -> None:
        """Raise NonFiniteLoss, naming the step, if a loss since the last line, or a weight, is not finite."""
        losses = self.state.losses
        finite = torch.stack(losses).isfinite().tolist() if losses else []  # sync
        weights = torch.stack([p.isfinite().all() for p in self.model.parameters()]).all()
        finite.append(weights.item())  # a step's loss is older than its update
        if all(finite):
            return
        step = self.state.step - len(losses) + finite.index(False) + 1
        before = steps_of(self.dir)
        safe = f"the last good checkpoint is of step {before[-1]}" if before else "there is no checkpoint yet"
        fp16 = ", or train.precision=bf16" if self.config.train.precision == "fp16" else ""
        raise NonFiniteLoss(
            f"the loss is not finite at step {step}; {safe}. Try a lower optim.learning_rate "
            f"(now {self.config.optim.learning_rate:g}), more optim.warmup_steps, a lower optim.clip{fp16}; "
            f"a changed config needs another run_dir"
        )

    def evaluate(self) -> None:
        """Score validation, once per step; keep the weights of the best score in model/."""
        state = self.state
        if "validation" not in self.corpus.splits or state.evaluated == state.step:
            return
        state.evaluated = state.step
        with self.clock.paused():
            self.check_finite()
            figures = self.score("validation", self.config.evaluate.max_characters)
            self.report.figures(state.step, {f"validation/{k}": v for k, v in figures.items()})
            best = state.best is None or figures["nats_per_character"] < state.best["nats_per_character"]
            if best and math.isfinite(figures["nats_per_character"]):
                state.best = {"step": state.step} | figures
                self.report.summary({f"best/{k}": v for k, v in state.best.items()})
                self._export()
            told = f"validation {figures['bpc']:.4f} bpc, {figures['bpb']:.4f} bpb"
            self.say(f"step {state.step}: {told}{' (best)' if best else ''}")

    def score(self, split: str, most: int | None = None) -> dict:
        """The figures of evaluate() on a split, or on the first `most` symbols of it, over all ranks."""
        return evaluate(
            self.model,
            self.corpus.vocab,
            self.corpus[split][:most],
            self.config.evaluate,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            reduce=lambda sums: self.accelerator.reduce(sums, "sum"),
        )

    def sample(self, name: str | None = None) -> str:
        """Draw a sample, show it, keep it in samples/."""
        if not self.main:
            return ""
        with self.clock.paused():
            options = asdict(self.config.sample)
            del options["every"]
            text = options["prompt"] + generate(self.model, self.corpus.vocab, end="\n", **options)
            path = self.dir / "samples" / f"{name or f'step-{self.state.step:08d}'}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if name is None:
                self.report.figures(self.state.step, {"sample": text})
            else:
                self.report.summary({"sample": text})
            self.say(f"--- sample, {name or f'step {self.state.step}'} ---\n{visible(text)}\n---")
        return text

    def _export(self) -> None:
        if self.main:
            try:
                self.model.save_pretrained(
                    self.dir / "model", self.corpus.vocab, step=self.state.step, validation=self.state.best
                )
            except OSError as error:
                raise CharlmError(f"{self.dir / 'model'}: cannot be written ({error.strerror})") from error

    # the end

    def tell_status(self, status: str, **more) -> None:
        """status.json: running, done, interrupted or failed."""
        if self.main:
            told = {"status": status, "step": self.state.step} | more
            replace(self.dir / "status.json", json.dumps(told) + "\n")

    def interrupted(self, reason: str) -> Summary:
        """The checkpoint is written: say so."""
        self.tell_status("interrupted", reason=reason)
        self.say(
            f"stopped at step {self.state.step} ({reason}); the checkpoint is written, "
            f"the same command goes on from there"
        )
        return Summary("interrupted", self.state.step, self.dir, self.state.best)

    def finish(self) -> Summary:
        """Load the best weights, score them on test, draw a sample."""
        if self.state.best is None:
            self._export()
        self.accelerator.wait_for_everyone()
        dtype = self.model.compute_dtype
        self.model = CharLM.from_pretrained(self.dir / "model", self.accelerator.device)
        self.model.compute_dtype = dtype
        summary = Summary("done", self.state.step, self.dir, self.state.best)
        if "test" in self.corpus.splits:
            summary.test = self.score("test")
            self.report.summary({f"test/{k}": v for k, v in summary.test.items()})
        if self.config.sample.every:
            summary.sample = self.sample("best")
        self.tell_status("done", best=summary.best, test=summary.test)
        for split, figures in (("validation", summary.best), ("test", summary.test)):
            if figures:
                self.say(
                    f"{split}: {figures['bpc']:.4f} bpc, {figures['bpb']:.4f} bpb, "
                    f"{figures['nats_per_character']:.4f} nats/char over {figures['characters']:,} characters"
                )
        self.say(f"done: {self.state.step} steps; the best weights are in {self.dir / 'model'}")
        return summary

    def __exit__(self, kind, error, _) -> None:
        try:
            self.report.close(failed=error is not None)
            if kind is KeyboardInterrupt and self._begun:
                self.tell_status("interrupted", reason="Ctrl-C, at once")
            elif error is not None and self._begun:
                self.tell_status("failed", error=str(error) or kind.__name__)
        except OSError:
            if error is None:
                raise
        finally:
            self._lock.release()
        if isinstance(error, OSError) and error.errno in _DISK:
            before = steps_of(self.dir)
            safe = f"the last checkpoint is of step {before[-1]}" if before else "there is no checkpoint yet"
            raise CharlmError(f"{self.dir}: cannot be written ({error.strerror}); {safe}") from error


class Clock:
    """Steps per second of training alone: evaluation, samples and checkpoints stop it."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.steps, self.started, self.lost = 0, time.perf_counter(), 0.0

    def steps_per_second(self) -> float:
        return self.steps / max(time.perf_counter() - self.started - self.lost, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        since = time.perf_counter()
        try:
            yield
        finally:
            self.lost += time.perf_counter() - since


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
