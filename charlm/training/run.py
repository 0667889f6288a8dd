"""A run: its directory and lock, its state, its log, and how it ends."""

import json
import re
import time
import uuid
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from charlm.checked import read, refuse_links
from charlm.config.fields import Config
from charlm.errors import CharlmError
from charlm.files import replace, writing
from charlm.locks import locked
from charlm.model.char_lm import Carry, CharLM
from charlm.sharing.model_card import model_card
from charlm.training.checkpoint import refuse_lost, steps_of
from charlm.training.lanes import Position
from charlm.training.logger import Logger
from charlm.training.optimizer import averaged
from charlm.training.setup import Setup, make_accelerator
from charlm.training.signals import Stop, Watchdog
from charlm.training.step import Clock, records_steps

_LOST = r"gloo|NCCL|Connection (closed|reset)|ProcessGroup|TCPStore"  # in errors of torch.distributed
_MEMORY = r"out of memory|can't allocate memory"  # in errors of torch, on a GPU and on a CPU


class Diverged(CharlmError):
    """The loss became infinite, not a number, or far higher than it was."""


@dataclass
class Summary:
    """How training ended."""

    status: str  # done or interrupted
    step: int
    run_dir: Path
    best: dict | None = None  # figures of evaluate(), with the step of these weights
    test: dict | None = None  # figures of evaluate()
    sample: str = ""


@dataclass
class State:
    """What changes with the steps of a run; all of it is in a checkpoint."""

    step: int = 0
    steps: int | None = None  # of the whole run; None until train.minutes is measured
    position: Position = field(default_factory=Position)
    carry: Carry | None = None  # of the lanes of this process; None is zeros
    best: dict | None = None  # {"step": …, **figures} of the best evaluation so far
    evaluated: int = -1  # the step last evaluated
    saved: int = -1  # the step last written to a checkpoint
    losses: list[Tensor] = field(default_factory=list)  # [] each, of the steps since the last log line
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def advance(self, loss: Tensor, carry: Carry, position: Position) -> None:
        """Count a step. position: of the next window; at the start of an epoch the carry is zero again."""
        self.step += 1
        self.position = position
        self.carry = carry if position.window else None
        self.losses.append(loss)


class Run(AbstractContextManager):
    """The run of a config, on this process. Within it the run directory is locked."""

    def __init__(self, config: Config, quiet: bool, stop: Stop):
        self.config, self.dir = config, Path(config.run_dir)
        self.state, self.clock = State(), Clock()
        self._written: Future | None = None  # of the checkpoint that a thread writes
        self._verified: Future | None = None  # of the corpus: the first of these
        self.trend: tuple[float, float] | None = None  # of the loss: recent mean, and the lowest
        self._begun = False  # before it has begun, a failure leaves an earlier status
        self._threads, self._lock, self._held = torch.get_num_threads(), ExitStack(), lambda: False
        self.watchdog = Watchdog(config.train.stall_minutes, self._lost, stop)
        # Also while the processes connect: one may fail to.
        self.watchdog.watch(lambda: (self.state.step, not stop.in_loop or self.clock.in_pause))
        try:
            self.accelerator = make_accelerator(config, patient=not self.watchdog.alone)
            self.logger = Logger(config, self.accelerator, quiet=quiet, hold=self.hold)
            self.device, self.say = self.accelerator.device, self.logger.say
            self.main, self.world = self.accelerator.is_main_process, self.accelerator.num_processes
            with writing(f"run_dir={str(self.dir)!r}"):
                refuse_lost(self.dir)
                if self.main:
                    refuse_links(self.dir, ".lock", ".lock.owner", "checkpoints", "model", "samples", "wandb")
                    self.hold()
        except BaseException:
            self.watchdog.stop(done=False)  # it would end a process that goes on to something else
            raise

    def hold(self) -> None:
        """Lock the run directory, or again where its lock was deleted. Raises CharlmError if another process
        trains there by now."""
        if not self._held():
            self._lock.close()
            begun, self._begun = self._begun, False  # the status may be that of the other
            problem = f"{self.dir}: another process is training there; name another run_dir"
            self._held = self._lock.enter_context(locked(self.dir / ".lock", problem))
            self._begun = begun

    def begin(self, setup: Setup) -> None:
        """Open the log at the step that training starts from."""
        self._begun = True
        self._agreed = (self.state.step, time.perf_counter(), 1)  # of the last: step, time; steps to the next
        self.write_status("running")
        self.logger.open(self.state.step, self.state.run_id, self.state.steps)
        self.logger.summary({f"best/{k}": v for k, v in (self.state.best or {}).items()})
        corpus, train = setup.corpus, self.config.train
        threads = f", {torch.get_num_threads()} thread(s) each" if self.device.type == "cpu" else ""
        self.say(corpus.report() if self.state.step == 0 else str(corpus.folder))
        self.say(
            f"{setup.model.num_parameters:,} parameters; "
            f"{train.batch_size} lanes × {train.bptt} characters per step, "
            f"{setup.lanes.windows} steps per epoch; {self.world} process(es) on {self.device.type}{threads}"
        )
        if self.main and self.config.data.verify == "start":
            self._verified = self.write_in_background(corpus.verify)
        self.clock = Clock()

    def count_step(self) -> None:
        """Count a step on the clock and the bar."""
        self.clock.steps += 1
        self.logger.bar.update()

    def due(self, every: int) -> bool:
        """True every so many steps; never for 0."""
        return every > 0 and self.state.step % every == 0

    def agree(self, reason: str | None) -> str | None:
        """Why to stop, agreed by all processes, so that they stop at the same step; None to continue. They
        agree about once a second, at least every tenth step, because to agree is to wait for each other."""
        if self._written is not None and self._written.done():
            self._written.result()  # raises at once what went wrong
        if self.world == 1:
            return reason
        step, (last, since, patience) = self.state.step, self._agreed
        if step < last + patience:
            return None
        pace = (time.perf_counter() - since) / (step - last)
        votes = torch.tensor([float(reason is not None), pace], device=self.device)
        stop, seconds = self.accelerator.reduce(votes, "sum").tolist()  # sync
        patience = min(max(int(self.world / seconds), 1), 10)  # the same in all processes
        self._agreed = (step, time.perf_counter(), patience)
        return (reason or "another process was asked to stop") if stop else None

    def check_finite(self, model: CharLM) -> None:
        """Raise Diverged, naming the step, if a loss since the last line, or a weight, is not finite."""
        losses = self.state.losses
        weights = torch.stack([p.isfinite().all() for p in averaged(model).values()]).all()
        # Losses first: the loss of a step is older than its update.
        finite = torch.stack([*(loss.isfinite() for loss in losses), weights]).tolist()  # sync
        if not all(finite):
            step = self.state.step - len(losses) + finite.index(False) + 1
            raise self.diverged(f"the loss is not finite at step {step}")

    def diverged(self, problem: str) -> Diverged:
        """The error for a loss that went wrong, with the ways out."""
        self.wait_for_writes()
        fp16 = ", or train.precision=bf16" if self.config.train.precision == "fp16" else ""
        begin = f"; or begin with the best weights: another run_dir, train.init_from={self.dir / 'model'}"
        best = begin if self.state.best else ""
        return Diverged(
            f"{problem}; {self.last_checkpoint()}. "
            f"Try a lower optim.learning_rate (now {self.config.optim.learning_rate:g}), more "
            f"optim.warmup_steps, a lower optim.clip{fp16}; train.allow_change names what is changed{best}"
        )

    def write_in_background(self, write, *args) -> Future:
        """Call write(*args) in a thread, after the call before it has ended: of a checkpoint, or at first the
        verification of the corpus. Training waits for a disk only if that is slower than checkpoints come. An
        error is raised by agree(), in the next step, and by wait_for_writes()."""
        self.wait_for_writes()
        self._written = written = Future()

        def work() -> None:
            try:
                written.set_result(write(*args))
            except BaseException as error:  # for the thread that trains
                written.set_exception(error)

        # A daemon: after a second Ctrl-C the process does not wait for it. The checkpoint before is complete.
        Thread(target=work, name="checkpoint", daemon=True).start()
        return written

    def wait_for_writes(self) -> None:
        """Until the checkpoint is on the disk. Raises what went wrong."""
        if self._written is not None:
            self._written.result()

    def _lost(self, problem: str) -> str:
        """Store that the run failed, in any process, for the main one may be lost. Returns the message.
        While the processes have not met, a lock is that of another run, whose status stays."""
        message = f"{problem}; {self.last_checkpoint(command=True)}"
        path = self.dir / "status.json"
        with suppress(OSError, ValueError):  # an earlier status has the step of the checkpoint
            content = read(path) | {"status": "failed", "error": message}
            with nullcontext() if hasattr(self, "watchdog") else locked(self.dir / ".lock", "lost"):
                replace(path, json.dumps(content) + "\n")
        return message

    def write_card(self, setup: Setup, test: dict | None = None) -> None:
        """Write the model card next to the weights in model/. test: figures."""
        if self.main:
            best = self.state.best
            step = best["step"] if best else self.state.step
            facts = (setup.corpus.info, {"validation": best, "test": test}, step, self.state.steps)
            facts += ([f"at step {step}: {change}" for step, change in self.logger.changes.items()],)
            text = model_card(setup.model, setup.corpus.vocab, self.config, *facts)
            replace(self.dir / "model" / "README.md", text)

    def write_status(self, status: str, *, synced: bool = True, **more) -> None:
        """status.json: running, done, interrupted or failed."""
        if self.main:
            content = {"status": status, "step": self.state.step, "steps": self.state.steps} | more
            replace(self.dir / "status.json", json.dumps(content) + "\n", synced)

    def interrupted(self, reason: str) -> Summary:
        """The end of a run that was asked to stop, after its checkpoint or before its first step."""
        self.write_status("interrupted", reason=reason)
        saved = "the checkpoint is written, the same command resumes from it"
        if self.state.step == 0:
            self.watchdog.stop(done=False)  # a process that was not asked waits for this one
            saved = "the same command starts again, with what was counted of its text"
        self.logger.close_bar()
        self.say(f"stopped at step {self.state.step} ({reason}); {saved}")
        return Summary("interrupted", self.state.step, self.dir, self.state.best)

    def __exit__(self, kind, error, _) -> None:
        at_once = kind is KeyboardInterrupt  # waits for no disk and no network
        self.watchdog.stop(done=error is None)
        index = isinstance(error, IndexError)  # may be due to a damaged corpus
        if self._written is not None and not at_once and (index or self._written is not self._verified):
            self._written.exception()  # waits
        explained = None
        try:
            explained = self._explained(error)
            self.logger.close(failed=error is not None, at_once=at_once)
            if at_once and self._begun:
                self.write_status("interrupted", reason="Ctrl-C, at once", synced=False)
            elif error is not None and self._begun:
                self.write_status("failed", error=str(explained or error) or kind.__name__)
        except OSError:
            if error is None:
                raise
        finally:
            self._lock.close()
            torch.set_num_threads(self._threads)
        if explained:
            raise explained from error

    def last_checkpoint(self, command: bool = False) -> str:
        """For messages: which checkpoint a run that fails now would resume from. command: and how."""
        steps = steps_of(self.dir)
        last = f"the last checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
        then = f", the same command {'resumes from it' if steps else 'starts again'}"
        return last + then if command else last

    def _explained(self, error: BaseException | None) -> CharlmError | None:
        """As a CharlmError what the machine, not the program, is to blame for."""
        if isinstance(error, IndexError) and re.search("out of range in self|out of bounds", str(error)):
            found = self._verified and self._verified.exception()
            message = str(found or "an id is outside the vocabulary; `charlm prepare --verify` looks for it")
        elif isinstance(error, OSError) and error.errno and not isinstance(error, BrokenPipeError):
            place = error.filename2 or error.filename or f"{self.dir}: cannot be written"
            message = f"{place} ({error.strerror}); {self.last_checkpoint()}"
        elif isinstance(error, RuntimeError) and re.search(_MEMORY, str(error)):
            recorded = records_steps(self.config, self.accelerator)
            message = (
                f"{str(error).strip().splitlines()[0]} Raise train.accumulate: the same training in slices; "
                f"{'or set train.cuda_graph=false, ' if recorded else ''}or lower train.batch_size, "
                f"train.bptt or model.hidden_size; {self.last_checkpoint()}"
            )
        elif isinstance(error, RuntimeError) and self.world > 1 and re.search(_LOST, str(error)):
            lost = "has lost another process of this run, which has ended or cannot be reached"
            message = f"process {self.accelerator.process_index} {lost}; {self.last_checkpoint(True)}"
        else:
            return None
        return CharlmError(message)
