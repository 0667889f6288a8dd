"""`charlm doctor`: what a training would get on this machine, before it waits in a queue."""

from __future__ import annotations

import json
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
from charlm.terminal import say
from charlm.training.checkpoint import load_newest, steps_of
from charlm.training.logger import wandb_mode
from charlm.training.loop import train_step
from charlm.training.optimizer import averaged
from charlm.training.resume import fixed_steps
from charlm.training.run import State
from charlm.training.setup import Setup, make_accelerator, set_up, threads_for
from charlm.training.step import records_steps
from charlm.training.trained import recorded_corpus

SECONDS = 3  # of timed steps, at most 20


class Doctor:
    """Examines a config in this process and prints what it finds. No run is written.

    hours: a time limit to compare with. as_json: print all findings at the end, as JSON.
    """

    def __init__(self, config: Config, hours: float | None = None, as_json: bool = False):
        self.config, self.hours, self.as_json = config, hours, as_json
        self.accelerator = make_accelerator(config)
        self.main, self.world = self.accelerator.is_main_process, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.findings, self.failed = [], []

    def report(self, name: str, text: str, ok: bool = True) -> None:
        """Add a finding; what is bad on another node only is printed by the first process there."""
        if not self.main:
            text += f" (on {platform.node()})"
        if self.main or (not ok and self.accelerator.is_local_main_process):
            self.findings.append({"name": name, "ok": ok, "text": text})
            if not self.as_json:
                say(f"{'ok ' if ok else 'BAD'}  {name:<10} {text}", indent=16, flush=True)
        if not ok:
            self.failed.append(name)

    def examine(self) -> bool:
        """Make all findings; returns True if all are ok."""
        self.devices()
        if self.corpus():
            try:
                setup = set_up(self.config, self.accelerator, lambda text: self.report("note", text))
                with keep_freed_memory(self.device):
                    self.steps(setup)
            except CharlmError as error:
                self.report("config", str(error), ok=False)
            except torch.OutOfMemoryError as error:
                fix = "lower train.batch_size or train.bptt, or raise train.accumulate"
                if records_steps(self.config, self.accelerator):
                    fix += " (or train.cuda_graph=false)"
                self.report("memory", f"{str(error).splitlines()[0]} {fix}", ok=False)
        self.modes()
        self.failed = list(dict.fromkeys(gather_object(self.failed)))
        self.findings = gather_object(self.findings)
        if self.main and self.as_json:
            result = {"ready": not self.failed, "processes": self.world, "findings": self.findings}
            print(json.dumps(result))
        elif self.main:
            result = f"needs attention: {', '.join(self.failed)}" if self.failed else "ready to train"
            say(f"{self.world} process(es): {result}")
        return not self.failed

    def devices(self) -> None:
        """Versions, the device, cuDNN's kernels, lanes per process."""
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        others = f"accelerate {accelerate.__version__}, Python {platform.python_version()}"
        self.report("versions", f"charlm {__version__}, torch {torch.__version__} ({build}), {others}")
        batch, train = self.config.train.batch_size, self.config.train
        device = f"{self.world} process(es) on {self.device.type}"
        if self.device.type == "cuda":
            gpu = torch.cuda.get_device_properties(self.device)
            device += f", {gpu.name}, {gpu.total_memory / 1e9:.0f} GB, compute {gpu.major}.{gpu.minor}"
            too_old = train.precision == "bf16" and gpu.major < 8
            if too_old:
                device += "; train.precision=bf16 needs compute 8.0 or more: use fp16"
            self.report("device", device, ok=not too_old)
            cudnn = torch.backends.cudnn.version()
            kernels = dict.fromkeys(cudnn_kernels(self.config, -(-batch // self.world) // train.accumulate))
            found = f"{cudnn}, kernels by its rules: {', '.join(kernels)}"
            self.report("cudnn", found if cudnn else "missing: recurrent layers will be slow", ok=bool(cudnn))
        else:
            self.report("device", f"{device}, {threads_for(self.config, self.world)} thread(s) each")
        least, most = batch // self.world, -(-batch // self.world)
        each = f"{most}" if least == most else f"{least} or {most}"
        self.report("lanes", f"{batch} in all, {each} per process", ok=least > 0)

    def corpus(self) -> bool:
        """True if it is prepared."""
        try:
            folder = folder_of(self.config)
        except CharlmError as error:  # the text is gone, which a run that has begun does not need
            own = steps_of(self.config.run_dir) and recorded_corpus(self.config.run_dir, self.config)
            if not own:
                self.report("corpus", str(error), ok=False)
                return False
            folder = own.folder
        ready = folder.is_dir()
        missing = "" if ready else " is not prepared yet: charlm prepare, with the same options"
        self.report("corpus", f"{folder}{missing}", ok=ready)
        return ready

    def steps(self, setup: Setup) -> None:
        """A few timed steps of the training loop; the speed, memory, time and disk that follow from them."""
        config, state, dtypes = self.config, State(), []
        layer = setup.model.output_dropout
        hook = layer.register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))

        def timed(count: int) -> float:
            """Seconds per step, of the slowest process."""
            self.accelerator.wait_for_everyone()
            started = time.perf_counter()
            for _ in range(count):
                norm = train_step(config, setup, state)
            norm.item()  # sync
            seconds = torch.tensor((time.perf_counter() - started) / count, device=self.device)
            return self.accelerator.gather(seconds[None]).max().item()

        timed(1)
        hook.remove()
        seconds = timed(min(max(int(SECONDS / timed(1)), 1), 20))
        dtype = str(dtypes[0]).removeprefix("torch.")
        wanted = config.train.precision
        self.report("precision", f"train.precision={wanted}: recurrent layers compute in {dtype}")
        size = setup.corpus.splits["train"]
        per_step = config.train.batch_size * config.train.bptt * size["characters"] / size["symbols"]
        self.report("speed", f"{per_step / seconds:,.0f} characters/s, {seconds * 1000:.1f} ms per step")
        self.report("memory", f"{peak_memory(self.device) / 1e9:.2f} GB at most, per process")
        minutes, steps = config.train.minutes, setup.steps
        if minutes:
            steps = fixed_steps(config.train, (load_newest(config.run_dir) or [{}])[0])
            steps = steps or max(int(60 * minutes / seconds), 1)
            self.report("minutes", f"train.minutes={minutes:g}: about {steps:,} steps on this machine")
        left = max(steps - max(steps_of(config.run_dir), default=0), 0)
        hours, epochs = left * seconds / 3600, steps / setup.lanes.windows
        text = f"{left:,} of {steps:,} steps take {hours:.2f} h ({60 * hours:.1f} minutes), without "
        text += f"evaluation and samples; {steps:,} steps are {epochs:.2f} epochs"
        fits = self.hours is None or hours < self.hours
        if self.hours is not None:
            text += f"; a limit of {self.hours:g} h is {'enough' if fits else 'too short'}"
        if not fits:
            text += f", a job that is requeued restarts {int(hours / self.hours)} time(s)"
        self.report("time", text, ok=fits)
        self.disk(setup)

    def disk(self, setup: Setup) -> None:
        """Room for the checkpoints (weights, moments, average): those kept, the best, one being written."""
        tensors = [*setup.model.parameters(), *setup.model.zeros(self.config.train.batch_size)]
        tensors += [] if setup.average is None else averaged(setup.average.model).values()
        tensors += [t for state in setup.optimizer.state.values() for t in state.values()]
        bytes_each = 4 * sum(t.numel() for t in tensors)
        folder = Path(self.config.run_dir).absolute()
        folder = next(path for path in (folder, *folder.parents) if path.exists())
        free, needed = shutil.disk_usage(folder).free, bytes_each * (self.config.checkpoint.keep + 2)
        text = f"{free / 1e9:.1f} GB free at {folder}, checkpoints take up to {needed / 1e9:.3f} GB"
        self.report("disk", text, ok=free > needed)
        writable = os.access(folder, os.W_OK)
        self.report("run_dir", self.config.run_dir + " cannot be written" * (not writable), ok=writable)

    def modes(self) -> None:
        """Whether Weights & Biases and the Hub are used online."""
        mode, why = wandb_mode(self.config.log)
        jobs = mode == "online" and "SLURM_JOB_ID" not in os.environ and shutil.which("sbatch")
        note = "; in jobs of slurm/ offline, unless WANDB_MODE is set" * bool(jobs)
        self.report("wandb", f"{mode} ({why}){note}")
        names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
        offline = [n for n in names if os.environ.get(n, "").upper() in ("1", "ON", "YES", "TRUE")]
        self.report("hub", f"offline ({', '.join(offline)})" if offline else "online, if it can be reached")


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
