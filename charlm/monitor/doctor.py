"""`charlm doctor`: what a training would get here, before it waits in a queue for it.

Findings are lines; those to be seen to first are marked BAD. Nothing is written, no run directory made.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from pathlib import Path

import accelerate
import torch
from accelerate.utils import gather_object

from charlm import __version__
from charlm.config.fields import Config
from charlm.corpus.prepared import folder_of
from charlm.errors import CharlmError
from charlm.model.cells import cell_of
from charlm.model.device import keep_freed_memory, peak_memory
from charlm.training.checkpoint import steps_of
from charlm.training.lanes import Position
from charlm.training.logger import wandb_mode
from charlm.training.optimizer import learning_rate, set_learning_rate
from charlm.training.setup import Parts, threads_for

SECONDS = 3  # of timed steps, at most 20


class Doctor:
    """Examines a config on this rank; its findings are told as they are made.

    findings: (name, text, is it well); on the main process those of all.
    """

    def __init__(self, config: Config, hours: float | None = None, quiet: bool = False):
        self.config, self.hours, self.quiet = config, hours, quiet
        self.findings: list[tuple[str, str, bool]] = []
        self.parts = Parts(config)
        self.failed: list[str] = []

    def tell(self, name: str, text: str, ok: bool = True) -> None:
        """One finding; what is bad on another node only is told by the first process there."""
        if not self.parts.main:
            text += f" (on {platform.node()})"
        told = self.parts.main or (not ok and self.parts.accelerator.is_local_main_process)
        if told:
            self.findings.append((name, text, ok))
        if told and not self.quiet:
            print(f"{'ok ' if ok else 'BAD'}  {name:<10} {text}", flush=True)
        if not ok:
            self.failed.append(name)

    def examine(self) -> bool:
        """Tell all findings; is all well?"""
        self.devices()
        if self.corpus():
            try:
                self.parts.set_up(lambda text: self.tell("note", text))
                with keep_freed_memory(self.parts.accelerator.device):
                    self.steps()
            except CharlmError as error:
                self.tell("config", str(error), ok=False)
            except torch.OutOfMemoryError as error:
                mend = "lower train.batch_size or train.bptt, or raise train.accumulate"
                mend += " (or train.cuda_graph=false)" if self.parts.records else ""
                self.tell("memory", f"{str(error).splitlines()[0]} {mend}", ok=False)
        self.modes()
        self.failed = list(dict.fromkeys(gather_object(self.failed)))
        self.findings = gather_object(self.findings)
        if self.parts.main and not self.quiet:
            told = f"see to: {', '.join(self.failed)}" if self.failed else "ready to train"
            print(f"{self.parts.world} process(es): {told}")
        return not self.failed

    def devices(self) -> None:
        device = self.parts.accelerator.device
        versions = f"charlm {__version__}, torch {torch.__version__}, accelerate {accelerate.__version__}"
        self.tell("versions", f"{versions}, Python {platform.python_version()}")
        world, batch = self.parts.world, self.config.train.batch_size
        where = f"{world} process(es) on {device.type}"
        if device.type == "cuda":
            facts = torch.cuda.get_device_properties(device)
            where += f", {facts.name}, {facts.total_memory / 1e9:.0f} GB, compute {facts.major}.{facts.minor}"
            low = self.config.train.precision == "bf16" and facts.major < 8
            if low:
                where += "; train.precision=bf16 needs compute 8.0 or more: take fp16"
            self.tell("device", where, ok=not low)
            cudnn = torch.backends.cudnn.version()
            lanes = -(-batch // world) // self.config.train.accumulate
            kernels = ", ".join(dict.fromkeys(cudnn_kernels(self.config, lanes)))
            told = f"{cudnn}, kernels as its rules have it: {kernels}"
            self.tell("cudnn", told if cudnn else "missing: recurrent layers will be slow", ok=bool(cudnn))
        else:
            self.tell("device", f"{where}, {threads_for(self.config, world)} thread(s) each")
        least, most = batch // world, -(-batch // world)
        each = f"{most}" if least == most else f"{least} or {most}"
        self.tell("lanes", f"{batch} in all, {each} per process", ok=least > 0)

    def corpus(self) -> bool:
        """Is it prepared?"""
        try:
            folder = folder_of(self.config)
        except CharlmError as error:
            self.tell("corpus", str(error), ok=False)
            return False
        ready = folder.is_dir()
        self.tell(
            "corpus",
            f"{folder}{'' if ready else ' is not prepared yet: charlm prepare, with the same options'}",
            ok=ready,
        )
        return ready

    def steps(self) -> None:
        """A few timed steps as training does them; the memory, disk and time that follow from them."""
        parts, config = self.parts, self.config
        kinds = []
        hook = parts.model.output_dropout.register_forward_pre_hook(
            lambda _, args: kinds.append(args[0].dtype)
        )
        carry, position = None, Position()

        def step(number: int) -> None:
            nonlocal carry, position
            x, y = parts.lanes.window(position)
            set_learning_rate(parts.optimizer, learning_rate(number, config.optim, config.train.steps))
            _, _, carry = parts.forward_backward(x, y, carry)
            parts.update()
            position = parts.lanes.after(position)
            carry = carry if position.window else None

        def timed(first: int, count: int) -> float:
            """Seconds per step, of the slowest process."""
            self.wait()
            started = time.perf_counter()
            for number in range(first, first + count):
                step(number)
            self.wait()
            took = torch.tensor((time.perf_counter() - started) / count, device=parts.accelerator.device)
            return parts.accelerator.gather(took[None]).max().item()

        step(0)
        hook.remove()
        once = timed(1, 1)
        seconds = timed(2, min(max(int(SECONDS / once), 1), 20))
        asked, got = config.train.precision, str(kinds[0]).removeprefix("torch.")
        self.tell("precision", f"train.precision={asked}: recurrent layers compute in {got}")
        size = parts.corpus.splits["train"]
        per_step = config.train.batch_size * config.train.bptt * size["characters"] / size["symbols"]
        self.tell("speed", f"{per_step / seconds:,.0f} characters/s, {seconds * 1000:.1f} ms per step")
        self.tell("memory", f"{peak_memory(parts.accelerator.device) / 1e9:.2f} GB at most, per process")
        left = max(config.train.steps - max(steps_of(config.run_dir), default=0), 0)
        hours = left * seconds / 3600
        told = f"{left:,} of {config.train.steps:,} steps take {hours:.2f} h, without evaluation and samples"
        if self.hours is not None:
            restarts = int(hours / self.hours)
            told += f"; a limit of {self.hours:g} h is {'enough' if hours < self.hours else 'too short'}"
            told += f", a job that is requeued restarts {restarts} time(s)" if restarts else ""
        self.tell("time", told, ok=self.hours is None or hours < self.hours)
        self.disk()

    def wait(self) -> None:
        """Until all processes and devices are here."""
        if self.parts.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        self.parts.accelerator.wait_for_everyone()

    def disk(self) -> None:
        """Room for the checkpoints (weights, moments, average): those kept, the best, one being written."""
        parts, keep = self.parts, self.config.checkpoint.keep
        model, config = parts.model, self.config.model
        carry = self.config.train.batch_size * config.num_layers * config.hidden_size
        carry *= len(model.cell.states)
        copies = 3 if parts.average is None else 4
        one = 4 * (copies * sum(p.numel() for p in model.parameters()) + carry)
        folder = Path(self.config.run_dir).absolute()
        while not folder.exists():
            folder = folder.parent
        free, needed = shutil.disk_usage(folder).free, one * (keep + 2)
        told = f"{free / 1e9:.1f} GB free at {folder}, checkpoints take up to {needed / 1e9:.3f} GB"
        self.tell("disk", told, ok=free > needed)
        writable = os.access(folder, os.W_OK)
        self.tell("run_dir", f"{self.config.run_dir}{'' if writable else ' cannot be written'}", ok=writable)

    def modes(self) -> None:
        mode, why = wandb_mode(self.config.log.wandb)
        self.tell("wandb", f"{mode} ({why})")
        names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
        offline = [n for n in names if os.environ.get(n, "").upper() in ("1", "ON", "YES", "TRUE")]
        self.tell("hub", f"offline ({', '.join(offline)})" if offline else "online, when it can be reached")


def cudnn_kernels(config: Config, lanes: int) -> list[str]:
    """Which of cuDNN's recurrent kernels PyTorch asks for, layer by layer, with so many lanes at once.

    From the rules in PyTorch's ATen/native/cudnn/RNN.cpp, for GPUs of compute 7.0 and later. SMALL_H in
    brackets: in the forward pass only.
    """
    model, half = config.model, config.train.precision == "fp16"
    if not cell_of(model).in_one_call:
        return ["none: the cell is not one of cuDNN's"]
    hidden, kernels = model.hidden_size, []
    for layer in range(model.num_layers):
        width = (model.embedding_size or 1) if layer == 0 else hidden  # one-hot: seldom a multiple of 128
        fits = hidden <= 1024 and hidden % 128 == 0 and width % 128 == 0 and lanes % 8 == 0 and lanes <= 128
        fits = fits and not model.in_one_call
        if half and fits and model.cell != "gru":
            kernels.append("PERSIST_STATIC")
        elif model.cell != "rnn" and hidden <= 192:
            kernels.append("PERSIST_SMALL_H" if hidden <= 128 else "PERSIST_SMALL_H (forward only)")
        else:
            kernels.append("STANDARD")
    return kernels
