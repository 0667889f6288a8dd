"""What torch leaves to its user: freed memory of a CPU, float32 precision and recorded steps of a GPU."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # options of mallopt, in glibc's malloc.h
_depth = 0
WARM_UP = 3  # runs before a recording: torch and cuDNN choose their kernels and allocate their memory


def keep(yes: bool) -> None:
    """Keep all freed memory, or return it to the system: blocks from 32 MB at once, others from 64 MB free.

    Returning it is what glibc's malloc does: a step allocates again what the one before has freed, and the
    system clears every page of it first, a quarter of the time of an LSTM of 512 units with 64 lanes × 64
    characters. Other allocators are not changed.
    """
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError on Windows
        return
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_MMAP_MAX, 0 if yes else 65536)
        libc.mallopt(_TRIM_THRESHOLD, -1 if yes else 64 << 20)  # -1: never
        if not yes:
            libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
            libc.malloc_trim(0)


@contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """keep(True) within the block, for work on a CPU; blocks may be nested."""
    global _depth
    nested = _depth or device.type != "cpu"
    if not nested:
        keep(True)
    _depth += device.type == "cpu"
    try:
        yield
    finally:
        _depth -= device.type == "cpu"
        if not nested:
            keep(False)


def set_float32_precision(kind: str) -> None:
    """How a GPU multiplies float32: ieee, or tf32, torch's own default for recurrent layers."""
    torch.backends.cudnn.rnn.fp32_precision = kind
    torch.backends.cuda.matmul.fp32_precision = kind


def set_precision(
    model: nn.Module, precision: str, device: torch.device, name: str, say: Callable[[str], object]
) -> None:
    """What a model computes in on a GPU: fp32, tf32 or bf16 (fp16 is accelerate's). A CPU computes in fp32,
    and says so, with the name of the option, if another one is set."""
    if device.type == "cuda":
        model.compute_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        set_float32_precision("tf32" if precision == "tf32" else "ieee")
    elif precision != "fp32":
        say(f"{name}={precision} is for GPUs: this CPU computes in fp32")


def record_cuda_graph(run: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    """run() on a GPU, as one launch: replay() of the result does the same with the same tensors.

    run works on tensors that keep their place in memory, and must not wait for the GPU. It runs a few times
    first.
    """
    with torch.cuda.device(device):
        random = torch.cuda.get_rng_state(device)
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        # By default torch records on a stream of the GPU that it first recorded on, and forbids operations in
        # other threads (one reads the next window) that would be wrong in this thread only.
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
            run()
        torch.cuda.empty_cache()  # of the first runs
        torch.cuda.set_rng_state(random, device)
    return graph


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
