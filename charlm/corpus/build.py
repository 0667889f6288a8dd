"""Build a corpus beside its place, and move it there when it is whole.

    .<name>-<fingerprint>.partial/          (.shards-<n> when n processes share the work)
        plan.txt            digest of the pieces of text that this is of
        counts-<i>.log      tallies of the pieces that shard i has counted
        layout.npz          what follows from all of them: where every piece goes; with vocab.json
        train.npy …         ids (train-<i>.npy: of shard i)
        encoded-<i>.json    how many pieces of shard i are safely in them

A process that is killed leaves this folder, and the next one goes on from there. One process is shard 0 of 1.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np

from charlm import __version__
from charlm.config.fields import Config
from charlm.corpus import baselines
from charlm.corpus.count_encode import Tally, Text, in_order, progress
from charlm.corpus.id_writer import Arrays, join
from charlm.corpus.layout import Layout, lay_out
from charlm.corpus.prepared import FORMAT, SPLITS, UNTOLD, Corpus, fingerprint
from charlm.corpus.sources import Unreadable, describe, open_sources
from charlm.errors import CharlmError
from charlm.files import IdFile, Journal, replace, sync_folder


class Build:
    """The work on one corpus, or the part of it that is one shard's."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        shard: int = 0,
        shards: int | None = None,
        partial: Path | None = None,
        cache: str | None = None,
    ):
        """shards: None for a process that does it all. partial: where the work is kept; by default beside the
        folder. cache: see open_sources."""
        self.config, self.folder, self.shard, self.shards = config, folder, shard, shards or 1
        self.alone = shards is None
        name = f".{folder.name}.partial" if self.alone else f".{folder.name}.shards-{shards}"
        self.partial = partial or folder.with_name(name)
        self.workers = config.data.workers or _cores()
        self.started, self.seconds = time.perf_counter(), {}
        self.texts = []
        for split, source in open_sources(config.data, config.vocab.bytes_only, cache).items():
            shares = {s: getattr(config.data, s) for s in SPLITS[1:]}
            drawn = [s for s, x in shares.items() if split == "train" and not isinstance(x, str) and x > 0]
            self.texts.append(Text(source, config, [split, *drawn]))
        self.pieces = [(text, piece) for text in self.texts for piece in text.source.pieces]
        self.sizes = [piece.size for _, piece in self.pieces]
        self.deal = self._deal()
        self.mine = self.deal[shard]

    def _deal(self) -> list[range]:
        """The pieces of every shard: contiguous, about the same bytes."""
        ends = np.cumsum([0, *self.sizes])
        borders = np.searchsorted(ends, np.arange(self.shards + 1) * (ends[-1] / self.shards)).tolist()
        borders[0], borders[-1] = 0, len(self.pieces)
        return [range(a, b) for a, b in itertools.pairwise(borders)]

    def open(self) -> None:
        """Make the partial folder; begin anew where another text left it."""
        plan = [[p.reader.name, p.first, p.rows, p.size, p.document, p.cut] for _, p in self.pieces]
        digest = sha256(json.dumps(plan).encode()).hexdigest()
        said = self.partial / "plan.txt"
        if self.partial.is_dir() and (not said.exists() or said.read_text() != digest):
            if not self.alone and said.exists():
                raise CharlmError(
                    f"{describe(self.config.data)} is not what another shard found: it changed, or differs "
                    f"between machines; delete {self.partial} and begin again"
                )
            shutil.rmtree(self.partial)
        self.partial.mkdir(exist_ok=True)
        if not said.exists():
            replace(said, digest)

    def whole(self) -> None:
        """All of it, by one process."""
        self.open()
        try:
            self.finish(self.step())
        except Unreadable:
            raise  # it may be readable next time
        except CharlmError:
            shutil.rmtree(self.partial, ignore_errors=True)  # of no use: the text or the config must change
            raise

    def step(self) -> dict[str, str] | None:
        """Count the pieces of this shard; or, when it is known where they go, encode them.

        Returns the sha256 of every split when all are whole.
        """
        if not self.laid_out:
            self.count()
            if not self.alone:
                return None
            self.lay_out().save(self.partial)
        layout = Layout.load(self.partial)
        tail = "" if self.alone else f"-{self.shard}"
        with (
            self._told("encode", resumed=self._encoded(self.shard) > 0),
            Arrays(layout, self.mine, self.partial, tail, self._progress(self.shard)) as arrays,
            closing(self.encode(layout, "encoding", arrays.done, arrays.write)) as written,
        ):
            for number in written:
                arrays.advance(number)
        return arrays.digests if self.alone else None

    def merge(self) -> bool:
        """Bring the shards together; True when the corpus is whole."""
        self.open()
        if not self.laid_out:
            self._require("counted", [i for i, mine in enumerate(self.deal) if self._counted(i) < len(mine)])
            self.lay_out().save(self.partial)
            return False
        self._require("encoded", [i for i, mine in enumerate(self.deal) if self._encoded(i) < len(mine)])
        self.finish()
        return True

    def _require(self, what: str, missing: list[int]) -> None:
        if missing:
            raise CharlmError(
                f"{self.folder}: {len(missing)} of {self.shards} shards are not {what} yet: "
                f"{', '.join(map(str, missing))}; the same command with --shard I/{self.shards} for each"
            )

    # the counting pass

    @property
    def laid_out(self) -> bool:
        return (self.partial / "layout.npz").exists()

    def _counts(self, shard: int) -> Path:
        return self.partial / f"counts-{shard}.log"

    def _counted(self, shard: int) -> int:
        return sum(1 for _ in Journal.read(self._counts(shard)))

    def count(self) -> None:
        """Tally every piece of this shard, in its journal."""

        def tally(number: int) -> bytes:
            text, piece = self.pieces[number]
            return text.count(piece).to_bytes()

        with Journal(self._counts(self.shard)) as journal, self._told("count", resumed=len(journal) > 0):
            done = len(journal)
            left = self.mine[done:]
            with (
                progress("counting", [self.sizes[i] for i in left]) as advance,
                closing(in_order(tally, left, self.workers)) as tallies,
            ):
                for number, content in tallies:
                    journal.append(content)
                    advance(self.sizes[number])

    def lay_out(self) -> Layout:
        """What follows from all tallies."""

        def tallies() -> Iterator[Tally]:
            for shard in range(self.shards):
                yield from map(Tally.from_bytes, Journal.read(self._counts(shard)))

        return lay_out(self.texts, tallies, self.config)

    # the encoding pass

    def _progress(self, shard: int) -> Path:
        return self.partial / f"encoded-{shard}.json"

    def _encoded(self, shard: int) -> int:
        path = self._progress(shard)
        return json.loads(path.read_text())["pieces"] if path.exists() else 0

    def encode(
        self, layout: Layout, title: str, done: int, place: Callable[[str, int, np.ndarray], None]
    ) -> Iterator[int]:
        """Encode the pieces of this shard but for the first `done`; place(split, position in it, ids) is
        called from many threads, each with its own positions. Yields the number of every piece that is
        placed."""
        ranges: dict[tuple[int, int], list] = {}
        for text, stream, *part in layout.ranges:
            ranges.setdefault((text, stream), []).append(part)
        number_of = {text: number for number, text in enumerate(self.texts)}

        def work(number: int) -> None:
            text, piece = self.pieces[number]
            at, end = layout.starts[number].copy(), layout.starts[number] + layout.lengths[number]
            for stream, ids in text.encode(piece, layout.vocab, layout.begun[number].copy()):
                if at[stream] + len(ids) > end[stream]:
                    break
                for split, low, high in ranges[number_of[text], stream]:
                    a, b = max(at[stream], low), min(at[stream] + len(ids), high)
                    if a < b:
                        place(split, int(a - low), ids[a - at[stream] : b - at[stream]])
                at[stream] += len(ids)
            if not np.array_equal(at, end):
                raise CharlmError(
                    f"{describe(self.config.data)}: {piece.reader.name} changed while it was read; try again"
                )

        left = self.mine[done:]
        with (
            progress(title, [self.sizes[i] for i in left]) as advance,
            closing(in_order(work, left, self.workers)) as placed,
        ):
            for number, _ in placed:
                advance(self.sizes[number])
                yield number

    def compare(self, corpus: Corpus) -> None:
        """Count and encode all pieces, and raise CharlmError where the corpus holds something else."""

        def changed(what: str) -> CharlmError:
            return CharlmError(
                f"{describe(self.config.data)} is not what {self.folder} was made of: {what}; delete that "
                f"folder to prepare it anew"
            )

        def compare(split: str, at: int, ids: np.ndarray) -> None:
            held = corpus[split][at : at + len(ids)]
            if not np.array_equal(held, ids):
                raise changed(f"{split} differs from symbol {at + int(np.argmin(held == ids)):,} on")

        self.count()
        layout = self.lay_out()
        if layout.vocab != corpus.vocab:
            raise changed("the vocabulary differs")
        for split, size in corpus.splits.items():
            if layout.size(split)["symbols"] != size["symbols"]:
                raise changed(
                    f"{split} holds {layout.size(split)['symbols']:,} symbols, not {size['symbols']:,}"
                )
        for _ in self.encode(layout, "comparing", 0, compare):
            pass

    # the end

    def finish(self, digests: dict[str, str] | None = None) -> None:
        """Join what shards wrote, describe it, and move the folder to its place."""
        layout = Layout.load(self.partial)
        if not (self.partial / "corpus.json").exists():  # else an earlier process ended while it cleaned up
            if fingerprint(self.config) != self.folder.name.rsplit("-", 1)[1]:
                raise CharlmError(f"{describe(self.config.data)}: changed while it was read; try again")
            if digests is None:
                parts = [shard for shard, mine in enumerate(self.deal) if mine]
                with self._told("join"):
                    digests = {split: join(self.partial, split, parts) for split in layout.splits}
            info = FORMAT | self._describe(layout, digests)
            replace(self.partial / "corpus.json", json.dumps(info, indent=2, ensure_ascii=False))
        for path in self.partial.glob("*-*.npy"):
            path.unlink()
        os.rename(self.partial, self.folder)
        sync_folder(self.folder.parent)
        for pattern in ("counts-*.log", "encoded-*.json", "layout.npz", "plan.txt"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _describe(self, layout: Layout, digests: dict[str, str]) -> dict:
        """What corpus.json says."""
        config, vocab = self.config, layout.vocab
        sizes = {split: layout.size(split) for split in layout.splits}
        total = {k: sum(size[k] for size in sizes.values()) for k in ("characters", "bytes", "symbols")}
        found = {}
        if "validation" in sizes:
            with self._told("floors"):
                ids = {split: IdFile(self.partial / f"{split}.npy") for split in ("train", "validation")}
                counts = layout.histograms
                # Not in this thread: a signal would break into compiled code.
                with ThreadPoolExecutor(2) as pool:
                    ngram = pool.submit(baselines.ngram, ids["train"], ids["validation"], vocab)
                    xz = pool.submit(baselines.xz, ids["validation"], vocab)
                    unigram = baselines.unigram(counts["train"], counts["validation"], vocab)
                    found = {"unigram": unigram, "ngram": ngram.result(), "xz": xz.result()}
        spelled = slice(len(vocab.characters), len(vocab.characters) + len(vocab.byte_symbols))
        fallback = sum(int(h[spelled].sum()) for h in layout.histograms.values())
        return {
            "fingerprint": self.folder.name.rsplit("-", 1)[1],
            "source": {
                k: v for k, v in asdict(config.data).items() if k not in UNTOLD and v not in (None, "")
            },
            "vocab": asdict(config.vocab) | {"size": len(vocab)},
            "documents": sum(text.source.documents for text in self.texts),
            **total,
            "fallback_rate": 0.0 if vocab.bytes_only else fallback / total["symbols"],
            **layout.facts,
            "splits": {split: size | {"sha256": digests[split]} for split, size in sizes.items()},
            "floors": found,
            "seconds": round(time.perf_counter() - self.started, 3),
            "passes": self.seconds,
            "versions": {"charlm": __version__, "python": sys.version.split()[0]}
            | {p: version(p) for p in ("datasets", "numpy", "pyarrow")},
        }

    @contextmanager
    def _told(self, name: str, resumed: bool = False) -> Iterator[None]:
        """Note how long a step takes, or the rest of it."""
        began = time.perf_counter()
        yield
        self.seconds[f"rest of {name}" if resumed else name] = round(time.perf_counter() - began, 6)


def _cores() -> int:
    """That this process may use; on a Mac it may use all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
