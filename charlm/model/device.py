"""Freed memory stays with the process while it trains or evaluates on a CPU.

A step frees what the next one asks for again. glibc's malloc gives large blocks back to the system at once,
which clears every page of them before it gives them again: an LSTM of 512 units with 64 lanes × 64 characters
waits a quarter of its time for that. Other systems' allocators are left as they are.
"""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # options of mallopt, in glibc's malloc.h
_depth = 0


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # TypeError: of Windows
        return None


def keep(yes: bool) -> None:
    """Keep all freed memory; or give it back as glibc does at its most patient: blocks from 32 MB on at once,
    others when 64 MB are free."""
    libc = _glibc()
    if libc is None:
        return
    libc.mallopt(_MMAP_MAX, 0 if yes else 65536)
    libc.mallopt(_TRIM_THRESHOLD, -1 if yes else 64 << 20)  # -1: never
    if not yes:
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
        libc.malloc_trim(0)


@contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """keep(True) meanwhile, for work on a CPU; one inside another changes nothing."""
    global _depth
    if device.type != "cpu":
        yield
        return
    if not _depth:
        keep(True)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            keep(False)


def set_float32_precision(kind: str) -> None:
    """How a GPU multiplies float32: ieee, or tf32, which torch would take for recurrent layers by itself."""
    torch.backends.cudnn.rnn.fp32_precision = kind
    torch.backends.cuda.matmul.fp32_precision = kind


WARM_UP = 3  # runs before the recording: torch and cuDNN choose their kernels and find their memory in them


def record_cuda_graph(run: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    """run() on a GPU, as one launch: replay() of the result does the same with the same tensors.

    run works on tensors that stay where they are, and may not wait for the GPU. It runs a few times first.
    """
    with torch.cuda.device(device):
        random = torch.cuda.get_rng_state(device)
        beside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(beside)
        # By default torch records on a stream of the GPU it recorded on first, and forbids other threads (one
        # reads the next window) what would only be wrong in this one.
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
