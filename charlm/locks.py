"""Locks that name their owner, also where a file system has none, and waits that are not silent."""

import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import gethostname

from filelock import FileLock, SoftFileLock, Timeout

from charlm.errors import CharlmError
from charlm.terminal import visible

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)  # of file systems without flock
_due: dict[str, float] = {}  # lock that this process waits for → when that is printed next


@contextmanager
def locked(path: Path, refusal: str = "") -> Iterator[Callable[[], bool]]:
    """Hold a lock file, which names its owner. Waits for another one; with a refusal raises CharlmError. On
    a file system without locks <path>.owner is one while it exists, but for that of a process of this host
    that is gone. Gives a function: whether it is held still, for who deletes the file lets others in."""
    logger, timeout = logging.getLogger("filelock"), 0 if refusal else -1
    logger.addFilter(_print_waits)
    logger.setLevel(logging.DEBUG)
    lock = FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout)
            with suppress(OSError):  # a full disk
                path.write_text(f"{os.getpid()}\n{gethostname()}\n")
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            lock = SoftFileLock(f"{path}.owner")
            lock.acquire(timeout)
    except Timeout:
        raise CharlmError(f"{refusal} ({_owner_of(lock.lock_file)})") from None
    try:
        with open(lock.lock_file) as file:
            kept = os.fstat(file.fileno())
            yield lambda: os.path.exists(file.name) and os.path.samestat(os.stat(file.name), kept)
    finally:
        lock.release()


def _owner_of(path: str) -> str:
    """Who holds a lock, since when, and what to do about it."""
    owner = "it does not name its owner"
    with suppress(OSError, ValueError), open(path) as file:
        process, host = file.read(500).split()[:2]  # as SoftFileLock writes them, too
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.stat(path).st_mtime))
        owner = visible(f"process {process} on {host}, since {since}")
    return f"{owner}; if that no longer runs, delete {path}"


def _print_waits(record: logging.LogRecord) -> bool:
    """A filter of filelock's log, which has every try, also of `datasets`: prints after ten seconds, then
    every minute, what this process waits for."""
    if "not acquired" in record.msg:
        path, now = str(record.args[1]), time.monotonic()
        if now > _due.setdefault(path, now + 9):
            _due[path] = now + 60
            print(f"waiting for the lock {path}: {_owner_of(path)}", file=sys.stderr, flush=True)
    return record.levelno > logging.DEBUG
