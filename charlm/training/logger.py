"""The log of a run: metrics.jsonl always, Weights & Biases if wanted, and a progress bar or lines."""

from __future__ import annotations

import atexit
import json
import netrc
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

from tqdm import tqdm

from charlm.checked import LARGEST, Count, mismatch, parse
from charlm.config.fields import Config
from charlm.config.parse import flatten, public
from charlm.errors import CharlmError
from charlm.files import replace
from charlm.terminal import visible


def _leave_others() -> None:
    """End the group of this run's processes."""
    from accelerate import PartialState  # here, because charlm watch imports this file

    PartialState().destroy_process_group()


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
                kinds = {"sample": str}
                yield {k: v for k, v in record.items() if not mismatch(v, kinds.get(k, float))}


def wandb_mode(choice: str) -> tuple[str, str]:
    """(online | offline | disabled, why) for log.wandb. Never prompts, never waits longer than 3 seconds."""
    if choice != "auto":
        return choice, "log.wandb"
    if mode := os.environ.get("WANDB_MODE"):
        mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
        if mode not in ("online", "offline", "disabled"):
            raise CharlmError(f"WANDB_MODE={mode}: choose one of online, offline, disabled")
        return mode, "WANDB_MODE"
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    try:
        account = netrc.netrc(os.environ.get("NETRC")).authenticators(url.hostname or "")
    except (OSError, netrc.NetrcParseError):
        account = None
    if not os.environ.get("WANDB_API_KEY") and account is None:
        return "disabled", "no account found; log.wandb=offline records for a later `wandb sync`"
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname, port), timeout=3).close()
    except (OSError, ValueError):
        return "offline", f"{url.hostname} cannot be reached; `wandb sync` later"
    return "online", "account found"


class Logger:
    """Logs the figures of a run. In processes other than the main one every method does nothing."""

    def __init__(self, config: Config, accelerator, *, quiet: bool = False):
        self.config, self.accelerator = config, accelerator
        self.main = accelerator.is_main_process
        self.quiet = quiet or not self.main
        self.path = Path(config.run_dir) / "metrics.jsonl"
        self.mode, self.why = wandb_mode(config.log.wandb)
        # Seconds that wandb has at the end, by default days; offline it waits for a busy machine at most.
        self.timeout = float(os.environ.get("WANDB_FINISH_TIMEOUT", 60 if self.mode == "online" else 600))
        self.bar = self.run = self.file = None
        self.records = 0  # so far: the number of the next one, here and at wandb
        self.logged = 0  # records that wandb had when it was opened

    def open(self, step: int, run_id: str, steps: int | None) -> None:
        """Open at a step of so many: records of later steps, by a process that was killed, are dropped."""
        if self.main:
            with open(self.path, "rb") if self.path.exists() else BytesIO() as file:
                records = [record for record in read_records(file) if record["step"] <= step]
            replace(self.path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
            self.file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in close()
            self.say(f"wandb: {self.mode} ({self.why})")
            if self.mode != "disabled":
                self._open_wandb(run_id)
            for record in records:
                self._to_wandb(record)
        hidden = self.quiet or not sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True, disable=hidden)

    def _to_wandb(self, record: dict) -> None:
        """Record n is step n at wandb, so that no restart loses or doubles one. An offline run gets all
        records again: the newest one holds the whole curve, and close() removes the earlier ones."""
        if self.run is not None and self.records >= self.logged:
            values = {name: value for name, value in record.items() if name != "time"}
            with self._wandb_may_fail():
                self.run.log(values | {"_timestamp": record["time"]}, step=self.records)
        self.records += 1

    @contextmanager
    def _wandb_may_fail(self) -> Iterator[None]:
        """When wandb fails, the run continues without it."""
        try:
            yield
        except Exception as error:  # for instance, its process has ended
            kept = f"the figures are in {self.path}, and wandb gets them all when the run is resumed"
            self.say(f"wandb: failed, no longer used ({type(error).__name__} {error}); {kept}")
            self.run = None

    def _open_wandb(self, run_id: str) -> None:
        import wandb

        os.environ.setdefault("WANDB__SERVICE_WAIT", "600")  # 30 s, the default, may be too short
        online, run_dir = self.mode == "online", self.config.run_dir
        options = {"id": run_id, "mode": self.mode, "dir": run_dir, "name": Path(run_dir).name}
        timeouts = {"init_timeout": 90 if online else 600, "finish_timeout": self.timeout}
        fields = flatten(public(self.config))
        options["settings"] = wandb.Settings(console="off", silent=True, **timeouts)
        if online:  # an offline run holds all, and replaces what was synced before
            options["resume"] = "allow"
        try:
            self.accelerator.init_trackers(self.config.log.project, fields, {"wandb": options})
        except Exception as error:  # of wandb, pydantic, the network
            problem = f"does not start ({' '.join(str(error).split())})"
            if self.config.log.wandb != "auto":
                advice = "try log.wandb=offline or disabled"
                raise CharlmError(f"log.wandb={self.mode}: Weights & Biases {problem}; {advice}") from error
            self.mode = "disabled"
            self.say(f"wandb: disabled, because it {problem}")
            return
        self.run = self.accelerator.get_tracker("wandb", unwrap=True)
        self.run.define_metric("*", step_metric="step")
        self.logged = self.run.step
        if online:
            self.say(f"wandb: {self.run.url}")

    def say(self, text: str) -> None:
        """A line for people, above the bar."""
        if not self.quiet:
            try:
                tqdm.write(visible(text), file=sys.stdout)
                sys.stdout.flush()
            except BrokenPipeError:  # the reader has ended (`| head`), training has not
                self.quiet = True
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends

    def figures(self, step: int, values: dict) -> None:
        """One record: a line of metrics.jsonl and a wandb point."""
        if self.main:
            record = {"step": step} | values | {"time": round(time.time(), 3)}
            self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._to_wandb(record)

    def summary(self, values: dict) -> None:
        """Figures of the whole run, for the tracker."""
        if self.run is not None:
            with self._wandb_may_fail():
                self.run.summary.update(values)

    def sync(self) -> None:
        """Wait until the records are on the disk."""
        if self.main:
            os.fsync(self.file.fileno())

    def training(self, step: int, values: dict, steps: int | None, pace: float) -> None:
        """The figures of the last steps: a record, and the bar's tail or a line. pace: steps per second."""
        self.figures(step, values)
        speed = values["characters_per_second"]
        short = f"loss {values['loss']:.3f}  bpc {values['bpc']:.3f}  {speed / 1000:.1f}k chars/s"
        if not self.bar.disable:
            self.bar.set_postfix_str(short)
        else:
            left = f"  {tqdm.format_interval((steps - step) / pace)} left" if steps else ""
            self.say(f"step {step}{f'/{steps}' if steps else ''}  {short}{left}")

    def close(self, failed: bool = False, at_once: bool = False) -> None:
        """Close the bar, the file and the wandb run, which is marked if the run failed. at_once: wandb is
        left as it is; it gets all figures when the run is resumed."""
        if self.bar is not None:
            self.bar.close()
        if self.file is not None:
            self.file.close()
        if self.run is not None and not at_once:
            with self._wandb_may_fail():
                self._finish_wandb(failed)
        # When Python ends, for another run may follow. After a failure others may hang in the process group.
        atexit.unregister(_leave_others)
        if not failed:
            atexit.register(_leave_others)

    def _finish_wandb(self, failed: bool) -> None:
        folder, started = Path(self.run.dir).parent, time.monotonic()
        self.run.finish(exit_code=int(failed))
        if self.mode == "online" and time.monotonic() - started >= self.timeout:
            late = f"wandb: the server did not take the rest in {self.timeout:g} s"
            self.say(f"{late}; later: wandb sync {folder}")
        if self.mode == "offline":
            for earlier in folder.parent.glob(f"offline-run-*-{self.run.id}"):
                if earlier.name != folder.name:
                    shutil.rmtree(earlier, ignore_errors=True)
