"""Freed memory stays with the process while it trains or evaluates on a CPU.

A step frees what the next one asks for again. glibc's malloc gives large blocks back to the system at once,
which clears every page of them before it gives them again: an LSTM of 512 units with 64 lanes × 64 characters
waits a quarter of its time for that. Other systems' allocators are left as they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
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
def kept(device: torch.device) -> Iterator[None]:
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
