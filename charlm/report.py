"""What a run tells: metrics.jsonl always, Weights & Biases if wanted, a bar on a terminal or lines."""

from __future__ import annotations

import json
import netrc
import os
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

from tqdm import tqdm

from charlm.config import CharlmError, Config, flatten
from charlm.files import replace


def wandb_mode(choice: str) -> tuple[str, str]:
    """(online | offline | disabled, why) for log.wandb. Never asks, never waits longer than 3 seconds."""
    modes = ("online", "offline", "disabled")
    if choice != "auto":
        return choice, "log.wandb"
    if os.environ.get("WANDB_MODE"):
        mode = os.environ["WANDB_MODE"]
        mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
        if mode not in modes:
            raise CharlmError(f"WANDB_MODE={mode}: choose one of {', '.join(modes)}")
        return mode, "WANDB_MODE"
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if not os.environ.get("WANDB_API_KEY") and not _in_netrc(url.hostname):
        return "disabled", "no account found; log.wandb=offline records for a later `wandb sync`"
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname, port), timeout=3).close()
    except (OSError, ValueError):
        return "offline", f"{url.hostname} cannot be reached; `wandb sync` later"
    return "online", "account found"


def _in_netrc(host: str | None) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Reporter:
    """Tells the figures of a run. On ranks other than the main one every method does nothing."""

    def __init__(self, config: Config, accelerator, *, quiet: bool = False):
        self.config, self.accelerator = config, accelerator
        self.main = accelerator.is_main_process
        self.quiet = quiet or not self.main
        self.path = Path(config.run_dir) / "metrics.jsonl"
        self.mode, self.why = wandb_mode(config.log.wandb)
        self.bar = self.run = self.file = None

    def open(self, step: int, run_id: str) -> None:
        """Begin at a step: figures of later steps, told by a process that was killed, are dropped."""
        if self.main:
            kept = b""
            if self.path.exists():
                *lines, _torn = self.path.read_bytes().split(b"\n")
                for line in lines:
                    try:
                        if json.loads(line)["step"] <= step:
                            kept += line + b"\n"
                    except (ValueError, KeyError, TypeError):
                        continue  # not one of ours
            replace(self.path, kept)
            self.file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in close()
            self.say(f"wandb: {self.mode} ({self.why})")
        if self.mode != "disabled":
            self._open_wandb(run_id)
        steps, terminal = self.config.train.steps, sys.stderr.isatty()
        self.bar = tqdm(
            total=steps, initial=step, unit="step", dynamic_ncols=True, disable=self.quiet or not terminal
        )

    def _open_wandb(self, run_id: str) -> None:
        options = {"id": run_id, "resume": "allow", "mode": self.mode, "dir": self.config.run_dir}
        options["name"] = Path(self.config.run_dir).name
        if self.main:
            import wandb

            options["settings"] = wandb.Settings(console="off", silent=True)
        try:
            self.accelerator.init_trackers(self.config.log.project, flatten(self.config), {"wandb": options})
        except Exception as error:  # of wandb, pydantic, the network: whatever it is, it is wandb's
            message = " ".join(str(error).split())
            if self.config.log.wandb != "auto":
                raise CharlmError(
                    f"log.wandb={self.mode}: Weights & Biases does not start ({message}); "
                    f"try log.wandb=offline or disabled"
                ) from error
            self.mode = "disabled"
            self.say(f"wandb: disabled, because it does not start ({message})")
            return
        if self.main:
            self.run = self.accelerator.get_tracker("wandb", unwrap=True)
            self.run.define_metric("*", step_metric="step")
            if self.mode == "online":
                self.say(f"wandb: {self.run.url}")

    def say(self, text: str) -> None:
        """A line for people, above the bar."""
        if not self.quiet:
            try:
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()
            except BrokenPipeError:  # who read it has gone (`| head`): training has not
                self.quiet = True
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends

    def figures(self, step: int, values: dict) -> None:
        """One record: a line of metrics.jsonl and a wandb point."""
        if self.main:
            record = {"step": step} | values
            self.file.write(json.dumps(record | {"time": round(time.time(), 3)}, ensure_ascii=False) + "\n")
            if self.run is not None:
                self.run.log(record)

    def summary(self, values: dict) -> None:
        """Figures that stand for the whole run."""
        if self.run is not None:
            self.run.summary.update(values)

    def advance(self) -> None:
        """One step done."""
        self.bar.update()

    def training(self, step: int, values: dict, seconds_left: float) -> None:
        """The figures of the last steps: a record, and the bar's tail or a line."""
        self.figures(step, values)
        speed = values["characters_per_second"]
        short = f"loss {values['loss']:.3f}  bpc {values['bpc']:.3f}  {speed / 1000:.1f}k chars/s"
        if self.bar is not None and not self.bar.disable:
            self.bar.set_postfix_str(short)
        elif not self.quiet:
            left = tqdm.format_interval(seconds_left)
            self.say(f"step {step}/{self.config.train.steps}  {short}  {left} left")

    def close(self, failed: bool = False) -> None:
        """Finish the bar, the file and the wandb run; failed marks the run so at wandb."""
        if self.bar is not None:
            self.bar.close()
        if self.file is not None:
            self.file.close()
        if self.run is not None:
            if failed:
                self.run.finish(exit_code=1)
            self.accelerator.end_training()
