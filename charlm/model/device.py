"""What torch leaves to its user: freed memory of a CPU, float32 precision and recorded steps of a GPU."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import torch
from torch import Tensor, nn

from charlm.errors import CharlmError

with suppress(ImportError):  # Windows
    import resource

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # options of mallopt, in glibc's malloc.h
_depth = 0
WARM_UP = 3  # runs before a recording: torch and cuDNN choose their kernels and allocate their memory


def keep(yes: bool) -> None:
    """Keep all freed memory, or return it to the system: blocks from 32 MB at once, others from 64 MB free.

    Returning it is what glibc's malloc does: a step allocates again what the one before has freed, and the
    system clears every page of it first, a quarter of the time of an LSTM of 512 units with 64 lanes × 64
    characters. Other allocators are not changed.
    """
    libc = None
    with suppress(OSError, TypeError):  # TypeError on Windows
        libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_MMAP_MAX, 0 if yes else 65536)
        libc.mallopt(_TRIM_THRESHOLD, -1 if yes else 64 << 20)  # -1: never
        if not yes:
            libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
            libc.malloc_trim(0)


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU to use; ACCELERATE_USE_CPU=true: none. Raises CharlmError in a job of
    slurm that was given GPUs of which torch sees none, for on a CPU it would last for weeks."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return False
    given = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    if torch.cuda.is_available() or given == "0":
        return torch.cuda.is_available()
    problem = f"SLURM_GPUS_ON_NODE={given}, but torch {torch.__version__} sees no GPU"
    advice = "install a build of torch for the node's CUDA driver (slurm/README.md), or ask slurm for none"
    raise CharlmError(f"{problem}; {advice}; ACCELERATE_USE_CPU=true trains on the CPUs nevertheless")


@contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """keep(True) within the block, for work on a CPU; blocks may be nested."""
    global _depth
    on_cpu = device.type == "cpu"
    if on_cpu and not _depth:
        keep(True)
    _depth += on_cpu
    try:
        yield
    finally:
        _depth -= on_cpu
        if on_cpu and not _depth:
            keep(False)


def own_rng(device: torch.device):
    """A context whose end restores the random states of torch: of the CPU, and of a CUDA device."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def float64_device(device: torch.device) -> torch.device:
    """Where to sum in float64: on the device itself, or on the CPU for Apple's GPUs, which lack it."""
    return torch.device("cpu") if device.type == "mps" else device


def set_precision(model: nn.Module, precision: str, name: str, say: Callable[[str], object]) -> None:
    """What a model computes in on an NVIDIA GPU: fp32, tf32, bf16 or fp16 (whose scaler is accelerate's).
    Other devices compute in fp32, and say so, with the name of the option, if another one is set."""
    if model.device.type == "cuda":
        model.compute_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
        kind = "tf32" if precision == "tf32" else "ieee"  # tf32 is torch's own default for recurrent layers
        torch.backends.cudnn.rnn.fp32_precision = torch.backends.cuda.matmul.fp32_precision = kind
    elif precision != "fp32":
        kind = "CPU" if model.device.type == "cpu" else "GPU"
        say(f"{name}={precision} is for NVIDIA GPUs: this {kind} computes in fp32")


class Recorded:
    """A function of tensors, run on copies of them that stay where they are, so that a GPU can record it once
    and replay it.

    The kernels of a small model run for less time than it takes to launch them one by one; a replay launches
    them all at once. The function may not wait for the GPU. It runs a few times before it is recorded. A
    recording draws as many random numbers as the function itself.
    record: False, as on a CPU: the function runs from the same tensors, without a recording.
    """

    def __init__(self, function: Callable, *given: Tensor, record: bool):
        self.function = function
        self.inputs = [t.clone(memory_format=torch.contiguous_format) for t in given]
        self.launch = self._record(given[0].device).replay if record else self._run

    def __call__(self, *given: Tensor):
        """What the function returns for these tensors; the next call may overwrite it."""
        for static, value in zip(self.inputs, given, strict=True):
            static.copy_(value)
        self.launch()
        return self.outputs

    def _run(self) -> None:
        self.outputs = self.function(*self.inputs)

    def _record(self, device: torch.device) -> torch.cuda.CUDAGraph:
        with torch.cuda.device(device):
            random = torch.cuda.get_rng_state(device)
            side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self._run()
            torch.cuda.current_stream().wait_stream(side)
            # By default torch records on a stream of the GPU that it first recorded on, and forbids in other
            # threads, too (one reads the next window), what would be wrong in this thread only.
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
                self._run()
            torch.cuda.empty_cache()  # of the first runs
            torch.cuda.set_rng_state(random, device)
        return graph


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if "resource" in globals():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return getattr(psutil.Process().memory_info(), "peak_wset", 0)
