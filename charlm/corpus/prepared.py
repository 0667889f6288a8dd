"""A prepared corpus: vocabulary and ids on disk, in a folder found by its fingerprint.

    <data.dir>/<name>-<fingerprint>/
        corpus.json      what it is: source, splits, sizes, sha256, floors
        vocab.json
        train.npy  validation.npy  test.npy      ids, uint8 or uint16, memory-mapped when read

The folder is whole or it is not there: see build.py.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
from filelock import FileLock

from charlm.config.fields import BUILDERS, WITHOUT_EFFECT, Config
from charlm.corpus.sources import local_files
from charlm.corpus.vocabulary import Vocab, name_of
from charlm.errors import CharlmError
from charlm.files import IdFile

SPLITS = ("train", "validation", "test")
FORMAT = {"format": "charlm corpus", "version": 2}
UNTOLD = [key.removeprefix("data.") for key in WITHOUT_EFFECT if key.startswith("data.")]


def baseline_title(name: str, figures: dict) -> str:
    """How tables name a baseline of corpus.json: 'ngram' of order 6 as '6-gram, Witten-Bell'."""
    titles = {"ngram": f"{figures.get('order')}-gram, Witten-Bell", "xz": "xz -9e, on its own"}
    return titles.get(name, name)


class Corpus:
    """A prepared corpus, opened. Its arrays are memory-mapped.

    splits: what corpus.json says of each: documents, characters, bytes, symbols, sha256.
    """

    def __init__(self, folder: str | Path):
        """Raises CharlmError when the folder is not a whole prepared corpus."""
        self.folder = Path(folder)
        try:
            self.info = json.loads((self.folder / "corpus.json").read_text(encoding="utf-8"))
            known = {k: self.info[k] for k in FORMAT} == FORMAT
            self.splits, self.fingerprint = self.info["splits"], self.info["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CharlmError(f"{self.folder}: not a prepared corpus: {error}") from error
        if not known:
            raise CharlmError(
                f"{self.folder}: prepared by another version of charlm; delete it to prepare anew"
            )
        self.vocab = Vocab.load(self.folder)
        for split in self.splits:
            self[split]

    def __getitem__(self, split: str) -> np.ndarray:
        """The ids of a split: uint8[n] or uint16[n], memory-mapped.

        Raises CharlmError for a split the corpus does not have, or whose file is damaged.
        """
        if split not in self.splits:
            raise CharlmError(f"{self.folder} has no split {split!r} (it has {', '.join(self.splits)})")
        path = self.folder / f"{split}.npy"
        try:
            ids = np.load(path, mmap_mode="c")  # private pages: torch wants them writable
        except (OSError, ValueError, EOFError) as error:
            raise CharlmError(
                f"{path}: damaged ({error}); delete {self.folder} to prepare it anew"
            ) from error
        if ids.shape != (self.splits[split]["symbols"],) or ids.dtype != self.vocab.dtype:
            raise CharlmError(
                f"{path}: holds {ids.dtype}{list(ids.shape)}, corpus.json says "
                f"{self.vocab.dtype}[{self.splits[split]['symbols']}]; delete the folder to prepare anew"
            )
        return ids

    def verify(self) -> None:
        """Compare every array with its sha256. Raises CharlmError when one differs."""
        for split, said in self.splits.items():
            self[split]  # as long as it says
            ids, hashed = IdFile(self.folder / f"{split}.npy"), hashlib.sha256()
            for low in range(0, len(ids), 1 << 22):
                hashed.update(ids[low : low + (1 << 22)])
            digest = hashed.hexdigest()
            if digest != said["sha256"]:
                raise CharlmError(
                    f"{self.folder / split}.npy: sha256 {digest[:12]}…, corpus.json says "
                    f"{said['sha256'][:12]}…; delete {self.folder} to prepare it anew"
                )

    def report(self) -> str:
        """What a person wants to know of it, as a table of at most 80 columns."""
        info = self.info
        lines = [str(self.folder), f"  symbols      {len(self.vocab):,}: {self.vocab}"]
        lines += _wrapped(
            f"  text         {info['documents']:,} documents, {info['characters']:,} characters, "
            f"{info['bytes']:,} bytes"
        )
        if not self.vocab.bytes_only:
            lines.append(
                f"  coverage     {100 * info['coverage']:.6g} % of the characters have a symbol of their own"
            )
            if info["left_out_characters"]:
                lines.append(
                    f"  left out     {info['left_out_characters']:,} characters, spelled in bytes: "
                    f"{100 * info['fallback_rate']:.3g} % of the symbols"
                )
        for title, key in (("most frequent", "most_frequent"), ("first left out", "first_left_out")):
            if info[key]:
                lines.append(f"  {title}")
                lines += [_short(f"    {count:>15,}  {self._name(code)}") for code, count in info[key]]
        lines.append(f"  {'split':<12} {'documents':>11} {'characters':>16} {'bytes':>16} {'symbols':>16}")
        for split, size in self.splits.items():
            documents = f"{size['documents']:,}" if "documents" in size else "cut"
            numbers = " ".join(f"{size[k]:>16,}" for k in ("characters", "bytes", "symbols"))
            lines.append(f"  {split:<12} {documents:>11} {numbers}")
        if info["floors"]:
            lines.append(f"  {'floors on validation':<30} {'bpc':>8} {'bpb':>8}")
        for name, floor in info["floors"].items():
            what = baseline_title(name, floor)
            lines.append(f"    {what:<28} {floor['bpc']:>8.3f} {floor['bpb']:>8.3f}")
        passes = []
        for name, seconds in info["passes"].items():
            speed = (
                f" ({info['bytes'] / 1e6 / seconds:,.0f} MB/s)"
                if name in ("count", "encode") and info["bytes"] > 1e7
                else ""
            )
            passes.append(f"{name} {seconds:.1f} s{speed}")
        lines += _wrapped(f"  prepared     in {info['seconds']:.1f} s: {', '.join(passes)}")
        return "\n".join(lines)

    def _name(self, code: int) -> str:
        return f"byte 0x{code:02X}" if self.vocab.bytes_only else name_of(chr(code))


def _wrapped(line: str) -> list[str]:
    """In lines of at most 80 columns, broken between facts."""
    first, *others = line.split(", ")
    lines = [first]
    for part in others:
        if len(f"{lines[-1]}, {part},") <= 80:
            lines[-1] += f", {part}"
        else:
            lines[-1] += ","
            lines.append(" " * 15 + part)
    return lines


def _short(line: str) -> str:
    return line if len(line) <= 80 else f"{line[:79]}…"


def fingerprint(config: Config) -> str:
    """12 hex digits of what decides the content: the data and vocab sections and the local files they name
    (size and time of change; for stdlib, names and sizes)."""
    data = {k: v for k, v in asdict(config.data).items() if k not in UNTOLD}
    told = {"format": FORMAT, "data": data, "vocab": asdict(config.vocab)}
    if config.data.source == "stdlib" or config.data.source in BUILDERS:
        files = local_files(config.data)
        if config.data.source == "stdlib":
            told["files"] = [(f.name, f.stat().st_size) for f in files]
        else:
            told["files"] = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def folder_of(config: Config) -> Path:
    """Where the corpus of a config is, or will be."""
    data = config.data
    name = data.source.rsplit("/", 1)[-1]
    if data.name:
        name += f"-{data.name}"
    if data.data_files:
        files = data.data_files
        while not isinstance(files, str):
            files = next(iter(files.values() if isinstance(files, dict) else files))
        name = Path(files.split("::")[-1]).stem
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "text"
    name = name.encode()[:100].decode(errors="ignore")  # most disks allow 255 bytes
    return Path(data.dir) / f"{name}-{fingerprint(config)}"


# The prepared corpus of a config: found, or built by one process or by shards; checked; waited for.


# charlm.corpus.build is imported where something is built: with it come datasets and a compiler.


def prepare(config: Config) -> Corpus:
    """The prepared corpus of a config: found, or built.

    Raises CharlmError for text that cannot be read or encoded, and for a disk that cannot be written. A build
    that is killed is gone on with by the next.
    """
    folder = folder_of(config)
    if not _exists(folder):
        with _building(folder):
            if not _exists(folder):  # a second process waits for the first, then finds the folder
                from charlm.corpus.build import Build

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
        from charlm.corpus.build import Build

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
                from charlm.corpus.build import Build

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
    from charlm.corpus.build import Build

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
