"""Set-up: the corpus, lanes, model, optimizer and step of a config's training, on this process."""

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object

from charlm.config.fields import Config
from charlm.corpus.prepared import Corpus, prepare, wait_for
from charlm.corpus.sources import fingerprint
from charlm.errors import CharlmError
from charlm.model.cells import cell_of
from charlm.model.char_lm import CharLM
from charlm.model.device import has_gpu, set_precision
from charlm.training.checkpoint import steps_of
from charlm.training.lanes import Lanes
from charlm.training.optimizer import AdamW, Average, make_optimizer
from charlm.training.step import Step, records_steps
from charlm.training.trained import recorded_corpus

# Settings that accelerate's launcher takes from a default config, and the fields that count instead.
ACCELERATES = (
    ("GRADIENT_ACCUMULATION_STEPS", "train.accumulate"),
    ("MIXED_PRECISION", "train.precision"),
    ("DYNAMO_BACKEND", "train.cuda_graph"),
)
# Values of the gates that keep a thread busy: with fewer, threads cost each other more than they gain.
VALUES_PER_THREAD = 1536


class Setup(NamedTuple):
    """What a training consists of, on this process."""

    corpus: Corpus
    lanes: Lanes
    model: CharLM
    optimizer: AdamW
    average: Average | None
    step: Step
    steps: int | None  # of the run; None: train.minutes, which is measured

    @property
    def evaluated(self) -> CharLM:
        """The model that is evaluated, sampled and exported: of averaged weights, with optim.average."""
        return self.model if self.average is None else self.average.model


def make_accelerator(config: Config, patient: bool = False) -> Accelerator:
    """accelerate's view of this process: its device, its rank, the gradient scaler of fp16, the trackers.
    patient: other processes may take any time, for a watchdog limits it. Raises CharlmError for a missing
    tracker, and if accelerate's environment, set by `accelerate launch`, splits the model over processes."""
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            problem = f"ACCELERATE_USE_{name}=true: each process of charlm holds the whole model"
            raise CharlmError(f"{problem}; choose plain multi-GPU in `accelerate config`, or use torchrun")
    for name in {*config.log.trackers} - {*map(str, get_available_trackers())}:
        raise CharlmError(f"log.trackers={name}: it is not installed: pip install {name.replace('_', '-')}")
    cuda = has_gpu()
    precision = "fp16" if cuda and config.train.precision == "fp16" else "no"
    if not patient and AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()  # of an earlier training in this process, as in a notebook
    return Accelerator(
        cpu=not cuda and not torch.backends.mps.is_available(),
        mixed_precision=precision,
        project_dir=config.run_dir,  # of trackers that need a folder
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=365))] if patient else [],
    )


def set_up(config: Config, accelerator: Accelerator, say: Callable[[str], None]) -> Setup:
    """Prepare or open the corpus, then build the rest. say: prints a line for people. Raises CharlmError."""
    rank, processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    cell_of(config.model), records_steps(config, accelerator)  # refuse these before the corpus is prepared
    corpus = _corpus(config, accelerator.is_main_process)
    if config.data.scratch:
        corpus.copy_ids(config.data.scratch, accelerator.is_local_main_process)
        accelerator.wait_for_everyone()
    train = config.train
    for name, ours in ACCELERATES:
        value = os.environ.get(f"ACCELERATE_{name}", "no")
        if value.lower() not in ("no", "1", train.precision):
            say(f"ACCELERATE_{name}={value} has no effect: {ours} decides")
    place = {"rank": rank, "world": processes, "seed": train.seed, "device": device}
    lanes = Lanes(corpus["train"], train.batch_size, train.bptt, train.carry_windows, **place)
    torch.manual_seed(train.seed)
    model = CharLM(config.model, len(corpus.vocab)).to(device)
    set_precision(model, train.precision, "train.precision", say)
    optimizer = make_optimizer(model, config.optim)
    step = Step(config, accelerator, model, optimizer)
    average = Average(model, config.optim.average) if config.optim.average else None
    torch.manual_seed(train.seed + 1 + rank)  # dropout differs by process
    if device.type == "cpu":
        torch.set_num_threads(threads_for(config, processes))
    steps = None if train.minutes else train.steps
    if train.epochs:
        steps = max(round(train.epochs * lanes.windows), 1)
        say(f"train.epochs={train.epochs:g}: {steps:,} steps, {lanes.windows:,} per epoch")
    return Setup(corpus, lanes, model, optimizer, average, step, steps)


def _corpus(config: Config, main: bool) -> Corpus:
    """The corpus of a config. A run with checkpoints keeps its own if it is the same or the text is gone."""
    own = recorded_corpus(config.run_dir, config) if main and steps_of(config.run_dir) else None
    if own is not None and config.data.source != "stdlib":  # which differs between machines
        with suppress(CharlmError, OSError):  # no such file
            own = own if own.info["fingerprint"] == fingerprint(config) else None
    folder = gather_object([own and str(own.folder)])[0]  # the same for all processes
    return Corpus(folder) if folder else prepare(config) if main else wait_for(config)


def threads_for(config: Config, processes: int) -> int:
    """torch's threads for training on a CPU: train.threads, or as many as the work of a step keeps busy."""
    if config.train.threads is not None:
        return config.train.threads
    lanes = config.train.batch_size / config.train.accumulate / processes
    values = int(cell_of(config.model).gates * config.model.hidden_size * lanes)
    return min(max(values // VALUES_PER_THREAD, 1), torch.get_num_threads())
