"""A prepared corpus: text → counts → vocabulary → ids on disk, in a folder found by its fingerprint.

    <data.dir>/<name>-<fingerprint>/
        corpus.json      what it is: source, splits, sizes, sha256, floors
        vocab.json
        train.npy  validation.npy  test.npy      ids, uint8 or uint16, memory-mapped when read

Two passes over the text, a few megabytes at a time: one counts, the other encodes. The folder is built
beside its place and renamed into it: it is whole or it is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock

from charlm import __version__
from charlm.config import BUILDERS, CharlmError, Config
from charlm.files import sync_folder, write_synced
from charlm.passes import IdWriter, Text, unigram_floor
from charlm.sources import describe, local_files
from charlm.vocab import Vocab

SPLITS = ("train", "validation", "test")
FORMAT = {"format": "charlm corpus", "version": 1}


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
            digest = hashlib.sha256(self[split]).hexdigest()
            if digest != said["sha256"]:
                raise CharlmError(
                    f"{self.folder / split}.npy: sha256 {digest[:12]}…, corpus.json says "
                    f"{said['sha256'][:12]}…; delete {self.folder} to prepare it anew"
                )

    def report(self) -> str:
        """What a person wants to know of it, as a few lines of text."""
        lines = [str(self.folder), f"  {len(self.vocab)} symbols: {self.vocab}"]
        for split, size in self.splits.items():
            documents = f"{size['documents']:,} documents, " if "documents" in size else ""
            lines.append(f"  {split}: {documents}{size['characters']:,} characters, {size['bytes']:,} bytes")
        if self.info["fallback_rate"]:
            lines.append(
                f"  {100 * self.info['fallback_rate']:.3g} % of the symbols spell characters in bytes"
            )
        for name, floor in self.info["floors"].items():
            lines.append(
                f"  a {name} model scores {floor['bpc']:.3f} bpc, {floor['bpb']:.3f} bpb on validation"
            )
        return "\n".join(lines)


def fingerprint(config: Config) -> str:
    """12 hex digits of what decides the content: the data and vocab sections and the local files they name
    (size and time of change; for stdlib, names and sizes)."""
    data = asdict(config.data)
    del data["dir"]
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
    return Path(data.dir) / f"{name}-{fingerprint(config)}"


def prepare(config: Config) -> Corpus:
    """The prepared corpus of a config: found, or built.

    Raises CharlmError for text that cannot be read or encoded; nothing half-written is left.
    """
    folder = folder_of(config)
    try:
        if folder.is_dir():
            return Corpus(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with FileLock(lock):  # a second process waits here, then finds the folder
            if not folder.is_dir():
                _build(config, folder)
        lock.unlink(missing_ok=True)
    except OSError as error:
        raise CharlmError(
            f"{folder}: cannot be written ({error.strerror or error}); nothing was left behind. "
            f"Name another data.dir, or free some space"
        ) from error
    return Corpus(folder)


def wait_for(config: Config) -> Corpus:
    """The corpus of a config that another process prepares now.

    Looks at the disk instead of waiting in a collective call, which would time out on a large corpus.
    """
    folder, started, told = folder_of(config), time.monotonic(), False
    while not folder.is_dir():
        time.sleep(0.2)
        if not told and time.monotonic() - started > 60:
            told = True
            print(f"waiting for the main process to prepare {folder}: data.dir is shared?", file=sys.stderr)
    return Corpus(folder)


def _build(config: Config, folder: Path) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        info = _encode_into(partial, config) | {"fingerprint": folder.name.rsplit("-", 1)[1]}
        write_synced(partial / "corpus.json", json.dumps(FORMAT | info, indent=2, ensure_ascii=False))
        sync_folder(partial)
        os.rename(partial, folder)
        sync_folder(folder.parent)
    except BaseException:  # also Ctrl-C: a half-built corpus is of no use to anyone
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _encode_into(partial: Path, config: Config) -> dict:
    from charlm.rows import open_sources

    started = time.perf_counter()
    data = config.data
    bytes_only = config.vocab.bytes_only
    sources = open_sources(data, bytes_only)
    texts = {split: Text(source, config) for split, source in sources.items()}
    for split, text in texts.items():
        text.count(f"counting {split}")
    if texts["train"].characters == 0:
        raise CharlmError(f"{describe(data)}: the text is empty")
    vocab = Vocab.from_counts(sum(text.counts for text in texts.values()), config.vocab)
    vocab.save(partial / "vocab.json")
    writers = {}
    try:
        for split, text in texts.items():
            drawn = [s for s in SPLITS[1:] if split == "train" and not isinstance(getattr(data, s), str)]
            drawn = [split, *(s for s in drawn if getattr(data, s) > 0)]
            writers |= {s: IdWriter(partial / f"{s}.npy", vocab) for s in drawn}
            text.encode(f"encoding {split}", vocab, {s: writers[s] for s in drawn})
    finally:
        for writer in writers.values():
            writer.close()
    for split, writer in writers.items():
        if writer.symbols < 2 or not writer.size()["characters"]:
            raise CharlmError(
                f"{describe(data)}: the {split} split would hold {writer.symbols} symbols; "
                f"read more text, or change data.{split if split != 'train' else 'validation'}"
            )
    seconds = time.perf_counter() - started
    total = {k: sum(w.size()[k] for w in writers.values()) for k in ("characters", "bytes", "symbols")}
    spelled = sum(
        int(w.histogram[len(vocab.characters) :][: len(vocab.byte_symbols)].sum()) for w in writers.values()
    )
    return {
        "source": {k: v for k, v in asdict(data).items() if k != "dir" and v not in (None, "")},
        "vocab": asdict(config.vocab) | {"size": len(vocab)},
        "documents": sum(text.documents for text in texts.values()),
        **total,
        "fallback_rate": 0.0 if vocab.bytes_only else spelled / total["symbols"],
        "splits": {s: w.size() | {"sha256": w.sha256} for s, w in writers.items()},
        "floors": {"unigram": unigram_floor(writers["train"], writers["validation"])}
        if "validation" in writers
        else {},
        "seconds": round(seconds, 3),
        "versions": {"charlm": __version__, "python": sys.version.split()[0]}
        | {p: version(p) for p in ("datasets", "numpy", "pyarrow")},
    }
