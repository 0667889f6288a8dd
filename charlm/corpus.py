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
from dataclasses import asdict
from pathlib import Path

import numpy as np

from charlm.config import BUILDERS, CharlmError, Config
from charlm.files import IdFile
from charlm.sources import local_files
from charlm.vocab import Vocab, name_of

SPLITS = ("train", "validation", "test")
FORMAT = {"format": "charlm corpus", "version": 2}
UNTOLD = ("dir", "streaming", "workers")  # settings that do not decide the content


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
            what = {"ngram": f"{floor.get('order')}-gram, Witten-Bell", "xz": "xz -9e, on its own"}
            lines.append(f"    {what.get(name, name):<28} {floor['bpc']:>8.3f} {floor['bpb']:>8.3f}")
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
