"""The prepared corpus of a config: found, or built by one process or by shards; checked; waited for."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock

from charlm.config import CharlmError, Config
from charlm.corpus import Corpus, folder_of

# charlm.build is imported where something is built: with it come datasets and a compiler.


def prepare(config: Config) -> Corpus:
    """The prepared corpus of a config: found, or built.

    Raises CharlmError for text that cannot be read or encoded, and for a disk that cannot be written. A build
    that is killed is gone on with by the next.
    """
    folder = folder_of(config)
    if not _exists(folder):
        with _building(folder):
            if not _exists(folder):  # a second process waits for the first, then finds the folder
                from charlm.build import Build

                Build(config, folder).whole()
    return Corpus(folder)


def prepare_shard(config: Config, shard: int, shards: int) -> str:
    """Do the part of shard `shard` (from 0) of `shards`, which may run on different machines, at the same
    time: count its pieces; or, after merge(), encode them. Returns what was done, in words.

    Raises CharlmError as prepare does.
    """
    folder = folder_of(config)
    if _exists(folder):
        return f"{folder} is prepared already"
    with _building(folder, f"-{shard}-of-{shards}"):
        from charlm.build import Build

        build = Build(config, folder, shard, shards)
        with _building(folder, f"-opening-{shards}"):  # shards start together, and one makes their folder
            build.open()
        what = "encoded" if build.laid_out else "counted"
        build.step()
    return f"shard {shard} of {shards} is {what}. When all are, the same command with --merge {shards}"


def merge(config: Config, shards: int) -> Corpus | None:
    """Bring together what the shards did. After counting: choose the vocabulary, and return None. After
    encoding: join the arrays, and return the corpus.

    Raises CharlmError naming the shards that are not done.
    """
    folder = folder_of(config)
    if not _exists(folder):
        with _building(folder):
            if not _exists(folder):
                from charlm.build import Build

                if not Build(config, folder, 0, shards).merge():
                    return None
    return Corpus(folder)


def verify(config: Config) -> Corpus:
    """Hold the prepared corpus of a config against its checksums, then against its source, which is read and
    encoded anew.

    Raises CharlmError when they differ, or when there is no such corpus.
    """
    folder = folder_of(config)
    if not _exists(folder):
        raise CharlmError(
            f"{folder}: no corpus of this config is prepared; if there was one, its files have changed since"
        )
    corpus = Corpus(folder)
    corpus.verify()
    from charlm.build import Build

    with tempfile.TemporaryDirectory() as beside, _anew(config) as cache:
        Build(config, folder, partial=Path(beside), cache=cache).compare(corpus)
    return corpus


def _anew(config: Config):
    """A folder for Arrow files of local files: those of an earlier time are found by size and time of change,
    which is what --verify is not to trust. Text and parquet are read where they are; what is downloaded has
    checksums."""
    if config.data.source not in ("json", "csv"):
        return nullcontext()
    from datasets.config import HF_DATASETS_CACHE

    Path(HF_DATASETS_CACHE).mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="charlm-verify-", dir=HF_DATASETS_CACHE)


def wait_for(config: Config) -> Corpus:
    """The corpus of a config that another process prepares now.

    Looks at the disk instead of waiting in a collective call, which would time out on a large corpus.
    """
    folder, started, told = folder_of(config), time.monotonic(), False
    while not _exists(folder):
        time.sleep(0.2)
        if not told and time.monotonic() - started > 60:
            told = True
            print(f"waiting for the main process to prepare {folder}: data.dir is shared?", file=sys.stderr)
    return Corpus(folder)


@contextmanager
def _building(folder: Path, suffix: str = "") -> Iterator[None]:
    """Hold the lock of a folder, which one process at a time has."""
    with _explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}{suffix}.lock")
        with FileLock(lock):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)  # while it is held: who waits looks whether it is still there


def _exists(folder: Path) -> bool:
    with _explained(folder):
        return folder.is_dir()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Say what to do about a disk that will not do."""
    try:
        yield
    except OSError as error:
        raise CharlmError(
            f"{folder}: cannot be written ({error.strerror or error}). Name another data.dir, or free some "
            f"space; the next try goes on from what was kept"
        ) from error
