"""Files that are whole or not there, also after a crash of the machine."""

from __future__ import annotations

import os
from pathlib import Path


def write_synced(path: str | Path, content: bytes | str) -> None:
    """Write a file and wait until it is on the disk."""
    with open(path, "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: str | Path, content: bytes | str) -> None:
    """Write a file beside its place and rename it into it: readers see the old one or the new one."""
    beside = Path(path).with_name(f".{Path(path).name}.partial")
    try:
        write_synced(beside, content)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(Path(path).parent)


def sync_file(path: str | Path) -> None:
    """Wait until a file that something else wrote is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: str | Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
