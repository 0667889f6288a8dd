"""The log of a run: metrics.jsonl always, the trackers of log.trackers, and a progress bar or lines."""

from __future__ import annotations

import atexit
import io
import json
import netrc
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

from tqdm.auto import tqdm

from charlm.checked import LARGEST, Count, mismatch, parse
from charlm.config.fields import Config, LogConfig
from charlm.config.parse import flatten, public
from charlm.errors import CharlmError
from charlm.files import replace
from charlm.terminal import moving_bar, shown, shows_bars


def read_records(file: BinaryIO) -> Iterator[dict]:
    """The records in the next lines of metrics.jsonl, with step and time; what is no figure is left out. An
    incomplete last line, half written, stays to be read."""
    while line := file.readline(LARGEST):
        whole, size = line.endswith(b"\n"), len(line)
        while not line.endswith(b"\n") and (line := file.readline(LARGEST)):  # too long for a record
            size += len(line)
        if not line:
            file.seek(-size, os.SEEK_CUR)
            return
        with suppress(ValueError):
            record = parse(line if whole else b"", {"step": Count, "time": float})
            if 0 < record["time"] < 1e11:  # seconds since 1970
                kinds = {"sample": str, "changed": str}
                yield {k: v for k, v in record.items() if not mismatch(v, kinds.get(k, float))}


def wandb_mode(log: LogConfig) -> tuple[str, str]:
    """(online | offline | disabled, why) for wandb. Never prompts, never waits longer than 3 seconds."""
    if "wandb" not in log.trackers:
        return "disabled", "log.trackers"
    if log.wandb != "auto":
        return log.wandb, "log.wandb"
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled", "WANDB_DISABLED"
    if mode := os.environ.get("WANDB_MODE"):
        mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
        if mode not in ("online", "offline", "disabled"):
            raise CharlmError(f"WANDB_MODE={mode}: choose one of online, offline, disabled")
        return mode, "WANDB_MODE"
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    account = None
    with suppress(OSError, netrc.NetrcParseError):
        account = netrc.netrc(os.environ.get("NETRC")).authenticators(url.hostname or "")
    if not os.environ.get("WANDB_API_KEY") and account is None:
        return "disabled", "no account found; log.wandb=offline records for a later `wandb sync`"
    with suppress(OSError, ValueError):
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname, port), timeout=3).close()
        return "online", "account found"
    return "offline", f"{url.hostname} cannot be reached; `wandb sync` later"


class Logger:
    """Logs the figures of a run. In processes other than the main one every method does nothing."""

    def __init__(self, config: Config, accelerator, *, quiet: bool = False, hold=lambda: None):
        """hold() is called where metrics.jsonl was removed: raises CharlmError if another process did it."""
        self.config, self.accelerator = config, accelerator
        self.main = accelerator.is_main_process
        self.quiet, self.hold = quiet or not self.main, hold
        self.path = Path(config.run_dir) / "metrics.jsonl"
        self.mode, self.why = wandb_mode(config.log)
        # Seconds that wandb has at the end, by default days; offline it waits for a busy machine at most.
        self.timeout = float(os.environ.get("WANDB_FINISH_TIMEOUT", 60 if self.mode == "online" else 600))
        self.bar = self.file = None
        self.trackers: list = []  # of accelerate's, that are open
        self.records = 0  # so far: the number of the next one, here and at wandb
        self.logged = 0  # records that wandb had when it was opened
        self.last: dict = {}  # the last record
        self.changes: dict[int, str] = {}  # step → what train.allow_change changed there

    def open(self, step: int, run_id: str, steps: int | None) -> None:
        """Open at a step of so many: records of later steps, by a process that was killed, are dropped."""
        if self.main:
            with open(self.path, "rb") if self.path.exists() else io.BytesIO() as file:
                records = [record for record in read_records(file) if record["step"] <= step]
            replace(self.path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
            self.file = open(self.path, "a+", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in close()
            self.say(f"wandb: {self.mode} ({self.why})")
            for name in self.config.log.trackers:
                if name != "wandb" or self.mode != "disabled":
                    self._open_tracker(name, run_id)
            for record in records:
                self._track(record)
        hidden = self.quiet or not shows_bars()
        form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        self.bar = moving_bar(total=steps, initial=step, bar_format=form, disable=hidden)

    def _track(self, record: dict, summary: bool = False) -> None:
        """Send a record to the trackers. Record n is step n at wandb: no restart loses or doubles one. An
        offline run, like other trackers, gets all records again: the newest one holds the whole curve."""
        step, seconds = record["step"], record["time"]
        values = {name: value for name, value in record.items() if name not in ("step", "time")}
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        for tracker in [*self.trackers]:
            with self._may_fail(tracker):
                if tracker.name != "wandb":
                    when = {"walltime": seconds} if tracker.name == "tensorboard" else {}
                    text = tracker.name in ("tensorboard", "trackio", "comet_ml")
                    tracker.log(values if text else numbers, step=step, **when)
                elif summary:
                    tracker.run.summary.update(values)
                elif self.records >= self.logged:
                    tracker.log({"step": step, "_timestamp": seconds} | values, step=self.records)
        if not summary:
            self.records, self.last = self.records + 1, record
            self.changes |= {step: record["changed"]} if "changed" in record else {}

    @contextmanager
    def _may_fail(self, tracker) -> Iterator[None]:
        """When a tracker fails, the run continues without it."""
        try:
            yield
        except Exception as error:  # for instance, the process of wandb has ended
            kept = f"the figures are in {self.path}, and {tracker.name} gets them all when the run is resumed"
            self.say(f"{tracker.name}: failed, no longer used ({type(error).__name__} {error}); {kept}")
            self.trackers.remove(tracker)

    def _open_tracker(self, name: str, run_id: str) -> None:
        """Start a tracker through accelerate: one at a time, as one may fail. Only wandb online continues a
        run: what tensorboard has of it is replaced, and others show another run."""
        log, run_dir, config = self.config.log, Path(self.config.run_dir), flatten(public(self.config))
        project, options, title = log.project, {}, f"{run_dir.name}-{run_id}"
        place = f"project {project}, run {title}"
        try:
            with redirect_stdout(io.StringIO()):  # greetings would be in the output of --json
                if name == "wandb":
                    project, options = self._wandb_options(run_id)
                if name == "trackio":
                    options = {"name": title, "auto_log_cpu": False, "auto_log_gpu": False}
                if name == "tensorboard":
                    place, project = run_dir / name, name
                    shutil.rmtree(place, ignore_errors=True)
                    options = {"purge_step": 0}  # a viewer that is open drops what it has read
                    config = {k: v if isinstance(v, (int, float)) else str(v) for k, v in config.items()}
                self.accelerator.log_with, self.accelerator.trackers = [name], []
                self.accelerator.init_trackers(project, config, {name: options})
        except Exception as error:  # of the tracker, pydantic, the network
            problem = f"it does not start ({' '.join(str(error).split())})"
            if name != "wandb" or log.wandb != "auto":
                advice = "leave it out to train" + ", or try log.wandb=offline" * (name == "wandb")
                raise CharlmError(f"log.trackers={name}: {problem}; {advice}") from error
            return self.say(f"wandb: disabled, because {problem}")
        self.trackers += self.accelerator.trackers
        if name == "wandb":
            run = self.trackers[-1].run
            run.define_metric("*", step_metric="step")
            self.logged, place = run.step, run.url or run.dir
        self.say(f"{name}: {place}")

    def _wandb_options(self, run_id: str) -> tuple[str, dict]:
        """The project, and what wandb.init gets beside it; wandb itself reads the other WANDB_ variables."""
        import wandb

        os.environ.setdefault("WANDB__SERVICE_WAIT", "600")  # 30 s, the default, may be too short
        online, run_dir, project = self.mode == "online", self.config.run_dir, self.config.log.project
        if project == LogConfig.project:
            project = os.environ.get("WANDB_PROJECT") or project
        name = os.environ.get("WANDB_NAME") or Path(run_dir).name
        options = {"id": run_id, "mode": self.mode, "dir": run_dir, "name": name}
        timeouts = {"init_timeout": 90 if online else 600, "finish_timeout": self.timeout}
        options["settings"] = wandb.Settings(console="off", silent=True, **timeouts)
        # An offline run holds all, and replaces what was synced before.
        return project, options | {"resume": "allow"} if online else options

    def say(self, text: str) -> None:
        """A line for people, above the bar."""
        if not self.quiet:
            try:
                tqdm.write(shown(text, sys.stdout), file=sys.stdout)
                sys.stdout.flush()
            except OSError:  # the reader (`| head`) or the terminal has ended, training has not
                self.quiet = True
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends

    def figures(self, step: int, values: dict) -> None:
        """One record: a line of metrics.jsonl and a point of every tracker."""
        if self.main:
            self._secure()
            record = {"step": step} | values | {"time": round(time.time(), 3)}
            self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._track(record)

    def summary(self, values: dict) -> None:
        """Figures of the whole run, for the trackers; at those without a place for them, of the last step."""
        if values:
            self._track({"step": self.last.get("step", 0)} | values | {"time": time.time()}, summary=True)

    def sync(self) -> None:
        """Wait until the records are on the disk."""
        if self.main:
            self._secure()
            os.fsync(self.file.fileno())

    def _secure(self) -> None:
        """Write metrics.jsonl again where it was removed: the open file still has it."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), os.fstat(self.file.fileno())):
                return
        self.hold()
        self.file.seek(0)
        replace(self.path, self.file.read())
        self.file.close()
        self.file = open(self.path, "a+", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in close()
        self.say(f"warning: {self.path} was removed or replaced; it is written again")

    def training(self, step: int, values: dict, steps: int | None, pace: float) -> None:
        """The figures of the last steps: a record, and the bar's tail or a line. pace: steps per second."""
        self.figures(step, values)
        speed = tqdm.format_sizeof(values["characters_per_second"])
        short = f"loss {values['loss']:.3f}  bpc {values['bpc']:.3f}  {speed} chars/s"
        if not self.bar.disable:
            self.bar.set_postfix_str(short)
        else:
            left = f"  {tqdm.format_interval((steps - step) / pace)} left" if steps else ""
            self.say(f"step {step}{f'/{steps}' if steps else ''}  {short}{left}")

    def close_bar(self) -> None:
        """Leave the bar where it is; what is said from now on stands below it."""
        if self.bar is not None:
            self.bar.close()

    def close(self, failed: bool = False, at_once: bool = False) -> None:
        """Close the bar, the file and the trackers; wandb's run is marked if the run failed. at_once:
        trackers are left as they are; they get all figures when the run is resumed."""
        self.close_bar()
        if self.file is not None:
            self.file.close()
        for tracker in [] if at_once else [*self.trackers]:
            with self._may_fail(tracker):
                if tracker.name == "wandb":
                    self._finish_wandb(tracker.run, failed)
                else:
                    with redirect_stdout(io.StringIO()):  # trackio's own finish(): else it greets at the exit
                        sys.modules["trackio"].finish() if tracker.name == "trackio" else tracker.finish()
        # When Python ends, for another run may follow. After a failure others may hang in the process group.
        leave = type(self.accelerator.state).destroy_process_group
        atexit.unregister(leave)
        if not failed:
            atexit.register(leave, self.accelerator.state)

    def _finish_wandb(self, run, failed: bool) -> None:
        folder, started = Path(run.dir).parent, time.monotonic()
        run.finish(exit_code=int(failed))
        if self.mode == "online" and time.monotonic() - started >= self.timeout:
            late = f"wandb: the server did not take the rest in {self.timeout:g} s"
            self.say(f"{late}; later: wandb sync {folder}")
        if self.mode == "offline":
            for earlier in folder.parent.glob(f"offline-run-*-{run.id}"):
                if earlier.name != folder.name:
                    shutil.rmtree(earlier, ignore_errors=True)
