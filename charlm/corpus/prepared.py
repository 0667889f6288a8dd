"""A prepared corpus: vocabulary and ids on disk, in a folder found by its fingerprint.

    <data.dir>/<name>-<fingerprint>/
        corpus.json      source, splits, sizes, sha256, baselines
        vocab.json
        train.npy  validation.npy  test.npy      ids, uint8 or uint16, memory-mapped when read

The folder exists only when it is complete. build.py makes it, and is imported only there: datasets is slow.
"""

import hashlib
import os
import re
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np

from charlm.checked import read, size_of
from charlm.config.fields import Config
from charlm.corpus.sources import INFO, SPLITS, describe, files_of, fingerprint, former_fingerprint
from charlm.corpus.vocabulary import Vocab, name_of
from charlm.errors import CharlmError, redact
from charlm.locks import NO_LOCKS, locked
from charlm.terminal import titled


def baseline_title(name: str, figures: dict) -> str:
    """How tables name a baseline of corpus.json: 'ngram' of order 6 as '6-gram, Witten-Bell'."""
    titles = {"ngram": f"{figures.get('order')}-gram, Witten-Bell", "xz": "xz -9e, on its own"}
    return titles.get(name, name)


class Corpus:
    """A prepared corpus, opened. Its arrays are memory-mapped. info: corpus.json. splits: of each, its
    documents, characters, bytes, symbols and sha256."""

    def __init__(self, folder: str | Path):
        """Raises CharlmError when the folder is not a complete prepared corpus."""
        self.folder = self.ids_folder = Path(folder)
        problem = "not a prepared corpus of this version (delete its folder to prepare it again)"
        self.info = read(self.folder / "corpus.json", INFO, problem)
        self.splits = {split: size for split, size in self.info["splits"].items() if split in SPLITS}
        self.vocab = Vocab.load(self.folder)
        for split in self.splits:
            self[split]
        if self.vocab.end is None:  # nothing else marks where a text begins
            start, newline = self["train"][:4096], self.vocab.tables[0][ord("\n")]
            begins = (start[:-1] == newline) & (start[1:] != newline)
            self.vocab.first = [int(start[0]), *start[1:][begins][:63].tolist()]

    def __getitem__(self, split: str) -> np.ndarray:
        """The ids of a split: uint8[n] or uint16[n], memory-mapped. Raises CharlmError for a split that the
        corpus does not have, or whose file is damaged."""
        if split not in self.splits:
            raise CharlmError(f"{self.folder} has no split {split!r} (it has {', '.join(self.splits)})")
        path, symbols = self.ids_folder / f"{split}.npy", self.splits[split]["symbols"]
        try:
            size_of(path)  # refuses a pipe, which would be waited for
            ids = np.load(path, mmap_mode="c")  # private pages: torch requires them writable
        except (FileNotFoundError, ValueError, EOFError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition(". ")[0]  # numpy advises pickle
            raise self._damaged(path, f"damaged ({reason})") from error
        except OSError as error:  # such as too little memory: the file may be good
            raise CharlmError(f"{path}: cannot be read ({error.strerror}); try again") from error
        if ids.shape != (symbols,) or ids.dtype != self.vocab.dtype:
            found, expected = f"{ids.dtype}{list(ids.shape)}", f"{self.vocab.dtype}[{symbols}]"
            raise self._damaged(path, f"holds {found} instead of {expected} of corpus.json")
        return ids

    def copy_ids(self, scratch: str, here: bool) -> None:
        """Read the ids from a folder of this node; here: this process copies what is not there yet. Variables
        such as $TMPDIR are expanded. Raises CharlmError if the folder cannot be written."""
        self.ids_folder = folder = Path(os.path.expandvars(scratch)).expanduser() / self.folder.name
        if "$" in str(folder):
            raise CharlmError(f"data.scratch={scratch!r}: this variable is not set here")
        try:
            for split in self.splits if here else ():
                path, own = folder / f"{split}.npy", self.folder / f"{split}.npy"
                if not path.exists() or path.stat().st_size != own.stat().st_size:
                    folder.mkdir(parents=True, exist_ok=True)
                    with tempfile.TemporaryDirectory(dir=folder) as partial:  # another run may copy it, too
                        shutil.copyfile(own, f"{partial}/ids")
                        os.replace(f"{partial}/ids", path)
        except OSError as error:
            raise CharlmError(f"data.scratch={scratch!r}: {folder}: {error.strerror}") from error

    def _damaged(self, path: Path, problem: str) -> CharlmError:
        return CharlmError(f"{path}: {problem}; delete {path.parent} to prepare again")

    def verify(self, *splits: str) -> None:
        """Compare splits, or all, with their sha256 and the vocabulary. CharlmError when one differs."""
        for split in splits or self.splits:
            self[split]  # checks the length
            ids, sha256, largest = IdFile(self.ids_folder / f"{split}.npy"), hashlib.sha256(), 0
            for block in ids.blocks():
                sha256.update(block)
                largest = max(largest, block.max())
            found, expected = sha256.hexdigest(), self.splits[split]["sha256"]
            if found != expected or largest >= len(self.vocab):
                problem = f"sha256 {found[:12]}… instead of {expected[:12]}… of corpus.json"
                raise self._damaged(ids.path, f"{problem}, largest id {largest} of {len(self.vocab)} symbols")

    def report(self) -> str:
        """A table of what corpus.json holds, of at most 80 columns."""
        info, sizes = self.info, ("documents", "characters", "bytes", "symbols")
        lines = [str(self.folder), f"  symbols      {len(self.vocab):,}: {self.vocab}"]
        origins = [f"{part}: {origin}" for part, origin in info.get("origins", {}).items()]
        lines += [titled("from", origins)] * bool(origins)
        lines.append(titled("text", [f"{info[k]:,} {k}" for k in sizes[:3]]))
        kept = [f"{name}: {n:,}" for name, n in info.get("kept", {}).items() if n]
        lines += [titled("kept", kept)] * bool(kept)
        if seed := info["source"].get("shuffle"):
            lines.append(f"  order        training documents are shuffled, data.shuffle={seed}")
        notes = {"duplicates": "documents, left out", "skipped": "rows without text that can be read"}
        for name, what in (notes | {"empty": "documents without text (empty, null or absent)"}).items():
            lines += [f"  {name:<12} {info.get(name, 0):,} {what}"] * bool(info.get(name))
        if info.get("decomposed"):
            problem = f"{info['decomposed']:,} accents or parts of syllables are characters of their own"
            lines.append(titled("warning", [problem, "data.normalize: [nfc] joins them to letters"]))
        if not self.vocab.bytes_only:
            own = f"{100 * info['coverage']:.6g} % of the characters have a symbol of their own"
            lines.append(f"  coverage     {own}")
        if omitted := info["left_out_characters"]:
            spelled = f"spelled in bytes: {100 * info['fallback_rate']:.3g} % of the symbols"
            lines.append(f"  left out     {omitted:,} characters, {spelled}")
        for title in ("most frequent", "first left out"):
            shown = info[title.replace(" ", "_")]
            lines += [f"  {title}"] * bool(shown)
            for code, times in shown:
                name = f"byte 0x{code:02X}" if self.vocab.bytes_only else name_of(chr(code))
                lines.append(f"    {times:>15,}  {textwrap.shorten(name, 59, placeholder='…')}")
        row = "  {:<12} {:>11} {:>16} {:>16} {:>16}".format
        lines.append(row("split", *sizes))
        for split, size in self.splits.items():
            lines.append(row(split, *(f"{size[k]:,}" if k in size else "cut" for k in sizes)))
            drawn = "%" in info.get("origins", {}).get(split, "")
            if drawn and 0 < 200 * size["characters"] < info["characters"]:
                problem = f"{split} holds {size['characters']:,} of {info['characters']:,} characters"
                lines.append(titled("warning", [problem, "--data.split_by character cuts the text"]))
        if info["floors"]:
            lines.append(f"  {'baselines on validation':<30} {'bpc':>8} {'bpb':>8}")
            for name, figures in info["floors"].items():
                title = baseline_title(name, figures)
                lines.append(f"    {title:<28} {figures['bpc']:>8.3f} {figures['bpb']:>8.3f}")
            if (repeated := info["floors"].get("ngram", {}).get("repeated", 0)) > 0.25:
                problem = f"{100 * repeated:.0f} % of validation repeats passages of the training text"
                lines.append(titled("warning", [problem, "counts copy them, and a trained model may not"]))
            lines.append("    bpc, bpb: bits per character, bits per byte; lower is better")
            lines.append("    Witten-Bell: smoothing, which leaves some probability for unseen symbols")
        steps = []
        for name, seconds in info["passes"].items():
            timed = name in ("count", "encode") and info["bytes"] > 1e7
            speed = f" ({info['bytes'] / 1e6 / seconds:,.0f} MB/s)" if timed and seconds > 0 else ""
            steps.append(f"{'baselines' if name == 'floors' else name} {seconds:.1f} s{speed}")
        steps[:1] = [f"in {info['seconds']:.1f} s: {''.join(steps[:1])}"]
        text = "\n".join([*lines, titled("prepared", steps)])
        return re.sub(r"(?<![\d,.])1 (document|row|character|byte|symbol)s\b", r"1 \1", text)


class IdFile:
    """The ids of a .npy file, read slice by slice: memory-mapped pages would count as resident memory."""

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            (self.length,), _, self.dtype = np.lib.format.read_array_header_1_0(file)
            self.offset = file.tell()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> np.ndarray:
        low, high, _ = part.indices(self.length)
        return np.fromfile(self.path, self.dtype, high - low, offset=self.offset + low * self.dtype.itemsize)

    def blocks(self, low: int = 0, high: int | None = None) -> Iterator[np.ndarray]:
        """The ids from low up to high (None: to the end), at most 2^22 at a time."""
        high = self.length if high is None else high
        for start in range(low, high, 1 << 22):
            yield self[start : min(start + (1 << 22), high)]


def folder_of(config: Config) -> Path:
    """Where the corpus of a config is, or will be: one place for all names of the same files."""
    data, listed = config.data, files_of(config.data)
    found = fingerprint(config, listed)
    for known in (found, ""):
        if made := sorted(Path(data.dir).glob(f"*-{known or former_fingerprint(config, listed) or found}")):
            return made[0]
    name = "-".join(filter(None, [data.source.rsplit("/", 1)[-1], data.name]))
    if data.data_files:
        files = data.data_files
        while not isinstance(files, str):
            files = next(iter(files.values() if isinstance(files, dict) else files))
        name = Path(redact(files).split("::")[-1]).stem
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "text"
    name = name.encode()[:100].decode(errors="ignore")  # most disks allow 255 bytes
    return Path(data.dir) / f"{name}-{found}"


def prepare(config: Config) -> Corpus:
    """The prepared corpus of a config: found, or built. A build that was killed is resumed by the next.
    Raises CharlmError for text that cannot be read or encoded, and for a disk that cannot be written."""
    return merge(config, 0)


def merge(config: Config, shards: int) -> Corpus | None:
    """When all shards have counted: choose the vocabulary, return None. When all have encoded: join the
    arrays, return the corpus; so does a process that does all of it (shards=0). Raises CharlmError naming the
    shards that are not done."""
    folder = folder_of(config)
    if not os.path.isdir(folder):
        with _locked(folder):
            if not os.path.isdir(folder):  # a second process waits for the first, then finds the folder
                from charlm.corpus.build import Build

                build = Build(config, folder, shards=shards)
                (build.merge if shards else build.run)()
    return Corpus(folder) if os.path.isdir(folder) else None


def prepare_shard(config: Config, shard: int, shards: int) -> str:
    """Count the pieces of shard `shard` (from 0) of `shards`; or, after merge(), encode them. Shards may run
    at the same time, on different machines. Returns a message. Raises CharlmError as prepare does."""
    folder = folder_of(config)
    if os.path.isdir(folder):
        return f"{folder} is prepared already"
    with _locked(folder, f"-{shard}-of-{shards}"):
        from charlm.corpus.build import Build

        build = Build(config, folder, shard, shards)
        with _locked(folder, f"-opening-{shards}"):  # shards start together, and one makes their folder
            build.open()
        stage = "encoded" if build.laid_out else "counted"
        build.step()
    return f"shard {shard} of {shards} is {stage}. When all are, the same command with --merge {shards}"


def verify(config: Config) -> Corpus:
    """Compare the corpus of a config with its checksums, then with its source, read and encoded again beside
    it. Raises CharlmError when they differ, or when there is no such corpus."""
    folder = folder_of(config)
    if not os.path.isdir(folder):
        problem = "no corpus of this config is prepared"
        raise CharlmError(f"{folder}: {problem}; if there was one, its files have changed since")
    corpus = Corpus(folder)
    corpus.verify()
    from charlm.corpus.build import Build

    place = folder.parent if os.access(folder.parent, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".charlm-verify-", dir=place) as scratch:
        again = Path(scratch) / folder.name
        with _locked(again):
            vocab, digests = Build(config, again).again()
    differ = [split for split, size in corpus.splits.items() if digests[split] != size["sha256"]]
    if differ or vocab != corpus.vocab:
        problem = "the vocabulary" if vocab != corpus.vocab else " and ".join(differ)
        text = f"{describe(config.data)} is not what {folder} was made of: {problem} differs"
        raise CharlmError(f"{text}; delete that folder to prepare again")
    return corpus


def wait_for(config: Config) -> Corpus:
    """The corpus that another process is preparing. Polls the disk: a collective call would time out."""
    folder = folder_of(config)
    for polls in count():
        if os.path.isdir(folder):
            return Corpus(folder)
        if polls == 50:
            print(f"waiting for the main process to prepare {folder}: data.dir is shared?", file=sys.stderr)
        time.sleep(0.2)


@contextmanager
def _locked(folder: Path, suffix: str = "") -> Iterator[None]:
    """Hold the lock of a folder. Raises CharlmError, with the fix, for an error of the disk."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}{suffix}.lock")
        with locked(lock):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)  # while held: a waiting process checks that it exists
    except OSError as error:
        advice = "Name another data.dir, or free some space; the next try resumes from what was kept"
        if error.errno in NO_LOCKS:  # an archive is extracted, or a file downloaded, by `datasets`
            advice = "Set HF_HOME to a folder on a disk that has locks"
        raise CharlmError(f"{folder}: cannot be written ({error.strerror or error}). {advice}") from error
