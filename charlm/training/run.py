"""What moves on with the steps of a run, how a run ends, and the clock that its speed is told by."""

from __future__ import annotations

import errno
import json
import math
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from charlm.config.fields import Config
from charlm.errors import CharlmError
from charlm.evaluation.evaluate import LN2, evaluate
from charlm.files import replace
from charlm.model.char_lm import Carry
from charlm.model.device import peak_memory
from charlm.sampling.generate import generate
from charlm.sharing.model_card import model_card
from charlm.terminal import visible
from charlm.training.checkpoint import Saver, steps_of
from charlm.training.lanes import Position
from charlm.training.logger import Logger
from charlm.training.setup import Parts


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


class Clock:
    """Steps per second of training alone: evaluation, samples and checkpoints stop it.

    lost: the seconds these took since it was restarted; saving: those of checkpoints.
    """

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.steps, self.started, self.lost, self.saving = 0, time.perf_counter(), 0.0, 0.0

    def steps_per_second(self) -> float:
        return self.steps / max(time.perf_counter() - self.started - self.lost, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        since = time.perf_counter()
        try:
            yield
        finally:
            self.lost += time.perf_counter() - since


# A run: the parts of its training, its directory and report, and what the loop does with them.


_LOST = r"gloo|NCCL|Connection (closed|reset)|ProcessGroup|TCPStore"  # in errors of torch.distributed
_MEMORY = r"out of memory|can't allocate memory"  # in errors of torch, on a GPU and on a CPU
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)


class NonFiniteLoss(CharlmError):
    """The loss became infinite or not a number."""


class Run(Parts):
    """One run of a config, on this rank."""

    def __init__(self, config: Config, quiet: bool = False):
        super().__init__(config)
        self.dir, self.state, self.clock = Path(config.run_dir), State(), Clock()
        self._threads = torch.get_num_threads()  # as it was before
        self._begun = False  # until then a failure leaves what an earlier run said of itself
        self._conferred = (0, 0.0, 1)  # at which step and when, and how many steps later again
        self._lock = FileLock(self.dir / ".lock")
        self.saver = Saver()
        self.report = Logger(config, self.accelerator, quiet=quiet)
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
            self.set_up(self.say)
        except BaseException as error:
            self._lock.release()
            self._explain(error)
            raise
        return self

    def begin(self) -> None:
        """Open the report at the step that training starts from."""
        self._begun = True
        self._conferred = (self.state.step, time.perf_counter(), 1)
        self.tell_status("running")
        self.report.open(self.state.step, self.state.run_id)
        if self.state.best is not None:
            self._tell_best()
        self.say(self.corpus.report() if self.state.step == 0 else str(self.corpus.folder))
        self.say(
            f"{sum(p.numel() for p in self.model.parameters()):,} parameters; "
            f"{self.config.train.batch_size} lanes × {self.config.train.bptt} characters per step, "
            f"{self.lanes.windows} steps per epoch; "
            f"{self.world} process(es) on {self.accelerator.device.type}"
        )
        self.clock.restart()

    # one step

    def advance(self, loss: Tensor, carry: Carry) -> None:
        """Count the step; at the end of an epoch the carry starts again at zero."""
        state = self.state
        state.step += 1
        if self.average is not None:
            self.average.update(self.model, state.step)
        state.position = self.lanes.after(state.position)
        state.carry = carry if state.position.window else None
        state.losses.append(loss)
        self.clock.steps += 1
        self.report.advance()

    def due(self, every: int) -> bool:
        """Is it time for what happens every so many steps?"""
        return every > 0 and self.state.step % every == 0

    def agreed(self, reason: str | None) -> str | None:
        """Stop when any rank was asked to, all of them at the same step.

        They confer about once a second, at least every tenth step: to confer is to wait for each other.
        """
        if self.world == 1:
            return reason
        step, (last, since, patience) = self.state.step, self._conferred
        if step < last + patience:
            return None
        pace = (time.perf_counter() - since) / (step - last)
        told = torch.tensor([float(reason is not None), pace], device=self.accelerator.device)
        asked, seconds = self.accelerator.reduce(told, "sum").tolist()  # sync
        patience = min(max(int(self.world / seconds), 1), 10)  # the same on all ranks
        self._conferred = (step, time.perf_counter(), patience)
        return (reason or "another process was asked to stop") if asked else None

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
            "memory_gb": round(peak_memory(self.accelerator.device) / 1e9, 3),
        }
        if self.clock.saving:  # that training waited for checkpoints
            values["checkpoint_seconds"] = round(self.clock.saving, 3)
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
        self.saver.wait()
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
            better = state.best is None or figures["nats_per_character"] < state.best["nats_per_character"]
            if better and math.isfinite(figures["nats_per_character"]):
                state.best = {"step": state.step} | figures
                self._tell_best()
                self.export()
            told = f"validation {figures['bpc']:.4f} bpc, {figures['bpb']:.4f} bpb"
            self.say(f"step {state.step}: {told}{' (best)' if better else ''}")

    def _tell_best(self) -> None:
        self.report.summary({f"best/{k}": v for k, v in self.state.best.items()})

    def score(self, split: str, most: int | None = None) -> dict:
        """The figures of evaluate() on a split, or on the first `most` symbols of it, over all ranks."""
        return evaluate(
            self.judged,
            self.corpus.vocab,
            self.corpus[split][:most],
            self.config.evaluate,
            rank=self.accelerator.process_index,
            world=self.world,
            reduce=lambda sums: self.accelerator.reduce(sums, "sum"),
        )

    def sample(self, name: str | None = None) -> str:
        """Draw a sample, show it, keep it in samples/."""
        if not self.main:
            return ""
        with self.clock.paused():
            options = asdict(self.config.sample)
            del options["every"]
            text = options["prompt"] + generate(self.judged, self.corpus.vocab, end="\n", **options)
            path = self.dir / "samples" / f"{name or f'step-{self.state.step:08d}'}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if name is None:
                self.report.figures(self.state.step, {"sample": text})
            else:
                self.report.summary({"sample": text})
            self.say(f"--- sample, {name or f'step {self.state.step}'} ---\n{visible(text)}\n---")
        return text

    def export(self) -> None:
        """Write the weights of now to model/."""
        if self.main:
            figures = {"step": self.state.step, "validation": self.state.best}
            self.judged.save_pretrained(self.dir / "model", self.corpus.vocab, **figures)
            self.describe()

    def describe(self, test: dict | None = None) -> None:
        """Write the model card beside the weights. test: figures."""
        figures = {"validation": self.state.best, "test": test}
        step = self.state.best["step"] if self.state.best else self.state.step
        text = model_card(self.model, self.corpus.vocab, self.config, self.corpus.info, figures, step)
        replace(self.dir / "model" / "README.md", text)

    # the end

    def tell_status(self, status: str, *, synced: bool = True, **more) -> None:
        """status.json: running, done, interrupted or failed."""
        if self.main:
            told = {"status": status, "step": self.state.step} | more
            replace(self.dir / "status.json", json.dumps(told) + "\n", synced)

    def interrupted(self, reason: str) -> Summary:
        """The checkpoint is written: say so."""
        self.tell_status("interrupted", reason=reason)
        self.say(
            f"stopped at step {self.state.step} ({reason}); the checkpoint is written, "
            f"the same command goes on from there"
        )
        return Summary("interrupted", self.state.step, self.dir, self.state.best)

    def __exit__(self, kind, error, _) -> None:
        at_once = kind is KeyboardInterrupt  # waits for no disk and no network
        if not at_once:
            self.saver.join()
        try:
            self.report.close(failed=error is not None, at_once=at_once)
            if at_once and self._begun:
                self.tell_status("interrupted", reason="Ctrl-C, at once", synced=False)
            elif error is not None and self._begun:
                self.tell_status("failed", error=str(error) or kind.__name__)
        except OSError:
            if error is None:
                raise
        finally:
            self._lock.release()
            torch.set_num_threads(self._threads)
        self._explain(error)

    def _explain(self, error: BaseException | None) -> None:
        """Raise as a CharlmError what the machine, not the program, is to blame for."""
        before = steps_of(self.dir)
        safe = f"the last checkpoint is of step {before[-1]}" if before else "there is no checkpoint yet"
        if isinstance(error, OSError) and error.errno in _DISK:
            raise CharlmError(f"{self.dir}: cannot be written ({error.strerror}); {safe}") from error
        if isinstance(error, RuntimeError) and re.search(_MEMORY, str(error)):
            plain = "or set train.cuda_graph=false, " if self.records else ""
            raise CharlmError(
                f"{str(error).strip().splitlines()[0]} Raise train.accumulate: the same training in slices; "
                f"{plain}or lower train.batch_size, train.bptt or model.hidden_size; {safe}"
            ) from error
        if isinstance(error, RuntimeError) and self.world > 1 and re.search(_LOST, str(error)):
            raise CharlmError(
                f"process {self.accelerator.process_index} has lost another process of this run, which has "
                f"ended or cannot be reached; {safe}, the same command goes on from it"
            ) from error
