"""Build a corpus in a temporary folder next to its final one, and rename it when it is complete.

    .<name>-<fingerprint>.partial/          (.shards-<n> when n processes share the work)
        plan.txt            digest of the pieces of text that it is built from
        counts-<i>.log      tallies of the pieces that shard i has counted
        layout-3.npz        what follows from all of them: where every piece goes; with vocab.json
        train.npy …         ids (train-<i>.npy: of shard i; train-ordered.npy: before data.shuffle)
        encoded-<i>.json    how many pieces of shard i are safely in them

A process that is killed leaves this folder, and the next one resumes from it. A process alone is shard 0.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from dataclasses import replace as with_fields
from hashlib import sha256
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from charlm import __version__
from charlm.config.fields import Config
from charlm.corpus import baselines, sources
from charlm.corpus.batches import Piece, open_sources
from charlm.corpus.count_encode import DOCUMENTS, ORDERED, Text, in_order, mix
from charlm.corpus.layout import LAYOUT_FILE, IdWriter, Layout, lay_out, pieces_written, write_ids
from charlm.corpus.prepared import IdFile
from charlm.corpus.sources import FORMAT, SPLITS, Unreadable, describe
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError, redact
from charlm.files import Journal, replace, sync_folder


class Build:
    """The work on one corpus, or one shard's share of it."""

    def __init__(self, config: Config, folder: Path, shard: int = 0, shards: int = 0):
        """folder: the final one. shards: 0 for a process that does it all."""
        self.started, self.seconds = time.perf_counter(), {}
        data, found = open_sources(config.data, config.vocab.bytes_only)
        self.given = config
        self.config = config = with_fields(config, data=data)
        self.folder, self.shard, self.shards = folder, shard, shards
        suffix = f"shards-{shards}" if shards else "partial"
        self.partial = folder.with_name(f".{folder.name}.{suffix}")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.workers = config.data.workers or cores
        held_out = [s for s in SPLITS[1:] if not isinstance(x := getattr(config.data, s), str) and x > 0]
        parts = {"train": ["train", *held_out]}
        self.texts = [Text(source, config, parts.get(split, [split])) for split, source in found.items()]
        self.pieces = [(text, piece) for text in self.texts for piece in text.source.pieces]
        # The pieces of every shard: contiguous, about the same bytes.
        ends = np.cumsum([0, *(piece.size for _, piece in self.pieces)])
        inner = np.searchsorted(ends, np.arange(1, shards or 1) * (ends[-1] / (shards or 1))).tolist()
        self.shares = [range(a, b) for a, b in pairwise([0, *inner, len(self.pieces)])]
        self.share = self.shares[shard]
        self.fingerprint = folder.name.rsplit("-", 1)[1]

    def open(self) -> None:
        """Make the temporary folder; delete one of another text, or raise CharlmError if shards share it."""
        plan = [[p.reader.name, p.first, p.rows, p.size, p.document, p.cut] for _, p in self.pieces]
        digest = sha256(json.dumps([2, *plan]).encode()).hexdigest()  # 2: the version of the counts
        path = self.partial / "plan.txt"
        found = path.read_text() if path.exists() else None
        if found == digest:
            return
        if found is not None and self.shards:
            text = f"{describe(self.config.data)} is not what another shard found"
            advice = f"delete {self.partial} and start again"
            raise CharlmError(f"{text}: it changed, or differs between machines; {advice}")
        if self.partial.is_dir():
            shutil.rmtree(self.partial)
        self.partial.mkdir(exist_ok=True)
        replace(path, digest)

    def run(self) -> None:
        """Build the whole corpus in this process."""
        self.open()
        try:
            self.finish(self.step())
        except CharlmError as error:
            if not isinstance(error, Unreadable):  # useless: the text or the config must change
                shutil.rmtree(self.partial, ignore_errors=True)
            raise

    def step(self) -> dict[str, str] | None:
        """Count the pieces of this shard; or, once the layout exists, encode them. A process alone does both.
        Returns the sha256 of the part of every split that was encoded."""
        if not self.laid_out:
            self.count()
            if self.shards:
                return None
            self.lay_out().save(self.partial)
        layout = Layout.load(self.partial)
        suffix = f"-{self.shard}" if self.shards else ""
        progress = self.partial / f"encoded-{self.shard}.json"
        writer = IdWriter(layout, self.share, self.partial, suffix, progress)
        with self._timed("encode", resumed=writer.done > 0), writer:
            self._encode(layout, writer)
        return {split: digest.hexdigest() for split, digest in writer.hashes.items()}

    def merge(self) -> None:
        """Choose the vocabulary when all shards have counted, join the arrays when all have encoded. Raises
        CharlmError naming the shards that are not done."""
        self.open()
        stage, missing = "encoded" if self.laid_out else "counted", []
        for i, share in enumerate(self.shares):
            if stage == "encoded":
                done = pieces_written(self.partial / f"encoded-{i}.json")
            else:
                done = sum(1 for _ in Journal.read(self.partial / f"counts-{i}.log"))
            missing += [str(i)] * (done < len(share))
        if missing:
            problem = f"{len(missing)} of {self.shards} shards are not {stage} yet: {', '.join(missing)}"
            advice = f"the same command with --shard I/{self.shards} for each"
            raise CharlmError(f"{self.folder}: {problem}; {advice}")
        if stage == "counted":
            self.lay_out().save(self.partial)
        else:
            self.finish()

    @property
    def laid_out(self) -> bool:
        return (self.partial / LAYOUT_FILE).exists()

    def _in_order(self, title: str, work: Callable, use: Callable, done: int) -> None:
        """use(work(number, text, piece)) for each piece of this shard but for the first `done`."""
        sizes = {number: self.pieces[number][1].size for number in self.share[done:]}
        in_order(title, lambda number: work(number, *self.pieces[number]), use, sizes, self.workers)

    def count(self) -> None:
        """Tally every piece of this shard, in its journal."""
        with Journal(self.partial / f"counts-{self.shard}.log") as journal:
            done = len(journal)
            with self._timed("count", resumed=done > 0):
                self._in_order("counting", lambda _, text, piece: text.count(piece), journal.append, done)

    def lay_out(self) -> Layout:
        """The layout that follows from the tallies of all shards."""
        journals = [self.partial / f"counts-{shard}.log" for shard in range(len(self.shares))]
        return lay_out(self.texts, journals, self.config)

    def _encode(self, layout: Layout, writer: IdWriter) -> None:
        """Encode the pieces of this shard that are not written yet; many threads write, each to its own
        positions. Raises CharlmError for a text that is not as long as when it was counted."""

        def work(number: int, text: Text, piece: Piece) -> int:
            at, end = ({s: int(x[i]) for s, x in layout.starts.items()} for i in (number, number + 1))
            rest, begun = 0, layout.begun[number, text.columns]
            for stream, ids, begins in text.encode(piece, layout.vocab, begun):
                for split in text.splits_of[stream]:
                    if split == ORDERED and len(begins):
                        writer.write(DOCUMENTS, at[DOCUMENTS], at[split] + begins)
                        at[DOCUMENTS] += len(begins)
                    if len(part := ids[: end[split] - at[split]]):
                        writer.write(split, at[split], part)
                    at[split], ids = at[split] + len(part), ids[len(part) :]
                rest += len(ids)
            if rest or at != end:
                name = f"{describe(self.config.data)}: {piece.reader.name}"
                raise CharlmError(f"{name} changed while it was read; try again")
            return number

        self._in_order("encoding", work, writer.advance, writer.done)

    def again(self) -> tuple[Vocab, dict[str, str]]:
        """Count and encode the text. Returns its vocabulary, and of the ids of every split the sha256."""
        self.open()
        digests, layout = self.step(), Layout.load(self.partial)
        return layout.vocab, digests | (self.shuffle(layout) if DOCUMENTS in layout.starts else {})

    def finish(self, digests: dict[str, str] | None = None) -> None:
        """Write corpus.json and rename the folder. digests: None joins what the shards wrote. Raises
        CharlmError when the files of the text changed meanwhile."""
        layout = Layout.load(self.partial)
        if not (self.partial / "corpus.json").exists():  # else an earlier process ended while it cleaned up
            if sources.fingerprint(self.given) != self.fingerprint:
                raise CharlmError(f"{describe(self.config.data)}: changed while it was read; try again")
            if digests is None:
                parts = [shard for shard, share in enumerate(self.shares) if share]
                with self._timed("join"):
                    digests = {}
                    for name, starts in layout.starts.items():
                        files = (IdFile(self.partial / f"{name}-{part}.npy") for part in parts)
                        blocks = chain.from_iterable(file.blocks() for file in files)
                        digests[name] = write_ids(self.partial / f"{name}.npy", starts[-1], blocks)
            if DOCUMENTS in layout.starts:
                with self._timed("shuffle"):
                    digests |= self.shuffle(layout)
            info = FORMAT | self._describe(layout, digests)
            replace(self.partial / "corpus.json", json.dumps(info, indent=2, ensure_ascii=False))
        for path in self.partial.glob("*-*.npy"):
            path.unlink()
        os.rename(self.partial, self.folder)
        sync_folder(self.folder.parent)
        for pattern in ("counts-*.log", "encoded-*.json", "layout*.npz", "plan.txt", ".*.partial"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def shuffle(self, layout: Layout) -> dict[str, str]:
        """Write train.npy: the documents of ORDERED in the order of data.shuffle. Returns its sha256 by the
        name of the split. Takes some 40 bytes of memory per document, and reads ORDERED at random places."""
        ids = np.asarray(np.load(self.partial / f"{ORDERED}.npy", mmap_mode="r"))
        lows = np.load(self.partial / f"{DOCUMENTS}.npy")
        between = len(lows) > 1 and not self.config.vocab.end_of_document  # which is within documents
        glue = layout.vocab.encode_codes(self.texts[0].glue if between else lows[:0]).astype(ids.dtype)
        highs = np.append(lows[1:] - len(glue), len(ids))
        order = np.argsort(mix(np.arange(len(lows), dtype=np.uint64), int(self.config.data.shuffle)))

        def blocks() -> Iterator[np.ndarray]:
            for first in range(0, len(order), 1 << 12):
                chosen = order[first : first + (1 << 12)]
                bounds = zip(lows[chosen].tolist(), highs[chosen].tolist(), strict=True)
                parts = [part for low, high in bounds for part in (glue, ids[low:high])][first == 0 :]
                yield from [np.concatenate(parts)] if sum(map(len, parts)) < 1 << 22 else parts

        return {"train": write_ids(self.partial / "train.npy", len(ids), blocks())}

    def _describe(self, layout: Layout, digests: dict[str, str]) -> dict:
        """The content of corpus.json, in addition to FORMAT."""
        config, vocab, histograms, sizes = self.config, layout.vocab, layout.histograms, layout.sizes
        found, counted = [text.source for text in self.texts], ("duplicates", "documents", "skipped")
        total = {name: sum(getattr(source, name) for source in found) for name in counted}
        total |= {k: sum(size[k] for size in sizes.values()) for k in ("characters", "bytes", "symbols")}
        named, figures = sources.fingerprinted(config.data), {}
        if "validation" in sizes:
            train, validation = (IdFile(self.partial / f"{s}.npy") for s in ("train", "validation"))
            # Not in this thread: a signal would interrupt compiled code.
            with self._timed("floors"), ThreadPoolExecutor(2) as pool:
                ngram = pool.submit(baselines.ngram, train, validation, vocab, self.workers)
                xz = pool.submit(baselines.xz, validation, vocab)
                unigram = baselines.unigram(histograms["train"], histograms["validation"], vocab)
                figures = {"unigram": unigram, "ngram": ngram.result(), "xz": xz.result()}
        spelled = slice(len(vocab.characters), len(vocab.characters) + len(vocab.byte_symbols))
        fallback = sum(int(h[spelled].sum()) for h in histograms.values())
        return {
            "fingerprint": self.fingerprint,
            "source": redact({k: v for k, v in named.items() if v not in (None, "")}),
            "vocab": asdict(config.vocab) | {"size": len(vocab)},
            "origins": sources.origins(config.data),
            **total,
            "fallback_rate": 0.0 if vocab.bytes_only else fallback / total["symbols"],
            **layout.facts,
            "splits": {split: size | {"sha256": digests[split]} for split, size in sizes.items()},
            "floors": figures,
            "seconds": round(time.perf_counter() - self.started, 3),
            "passes": self.seconds,
            "versions": {"charlm": __version__, "python": sys.version.split()[0]}
            | {p: version(p) for p in ("datasets", "numpy", "pyarrow")},
        }

    @contextmanager
    def _timed(self, name: str, resumed: bool = False) -> Iterator[None]:
        """Store the seconds of a step, or of the rest of it."""
        began = time.perf_counter()
        yield
        self.seconds[f"rest of {name}" if resumed else name] = round(time.perf_counter() - began, 6)
