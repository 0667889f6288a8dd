"""Two passes over a text: count its characters, then encode it into the files of its splits.

Both read the same stream of codes (see vocab), a few megabytes at a time, in whole-array steps.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from charlm.config import CharlmError, Config
from charlm.sources import describe
from charlm.vocab import END, Vocab, codes_of, name_of


class Text:
    """One source as a stream of codes: what both passes read, so that they see the same text."""

    def __init__(self, source, config: Config):
        self.source, self.data = source, config.data
        self.bytes_only = config.vocab.bytes_only
        self.glue = np.array([END], np.uint32)  # after every document
        if not config.vocab.end_of_document:  # between documents
            separator = np.frombuffer(config.data.separator.encode("utf-8"), np.uint8)
            self.glue = separator if self.bytes_only else codes_of(separator)
        self.ends_with_glue = config.vocab.end_of_document
        self.counts = np.zeros(END + 1, np.int64)
        self.characters = self.documents = 0

    def batches(self, title: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(codes [n], where the rows start [rows + 1], which rows end a document [rows])."""
        left = self.data.max_characters
        with progress(title, self.source.total_bytes()) as bar:
            for rows in self.source.batches():
                try:
                    codes = rows.utf8 if self.bytes_only else codes_of(rows.utf8)
                except UnicodeDecodeError as error:
                    row = int(np.searchsorted(rows.offsets, error.start, side="right")) - 1
                    raise CharlmError(
                        f"{describe(self.data)}: row {rows.first + row:,}, "
                        f"byte {error.start - rows.offsets[row]:,} is not UTF-8 ({error.reason})"
                    ) from None
                starts = rows.offsets
                if len(codes) != len(rows.utf8):  # byte offsets → character offsets
                    lead = (rows.utf8 & 0xC0) != 0x80
                    starts = np.concatenate([[0], np.cumsum(lead)])[rows.offsets]
                ends = rows.ends
                if left is not None and len(codes) >= left:
                    keep = int(np.searchsorted(starts, left))  # rows that begin before the limit
                    starts, ends = np.minimum(starts[: keep + 1], left), ends[:keep].copy()
                    ends[-1:], codes = True, codes[:left]
                yield codes, starts, ends
                bar.update(len(rows.utf8))
                if left is not None:
                    left -= len(codes)
                    if left <= 0:
                        return

    def count(self, title: str) -> None:
        """First pass: counts per code, characters, documents."""
        for codes, _, ends in self.batches(title):
            counts = np.bincount(codes)
            self.counts[: len(counts)] += counts
            self.characters += len(codes)
            self.documents += int(ends.sum())
        glued = self.documents if self.ends_with_glue else max(self.documents - 1, 0)
        np.add.at(self.counts, self.glue, glued)
        self.length = self.characters + glued * len(self.glue)  # codes of the whole, glue included

    def encode(self, title: str, vocab: Vocab, writers: dict[str, IdWriter]) -> None:
        """Second pass: ids of every document to the writer of its split."""
        by_character = self.data.split_by == "character"
        route = None if by_character or len(writers) == 1 else self._draw(list(writers))
        borders = self._borders(list(writers))
        for writer in writers.values():
            writer.documents = self.documents if len(writers) == 1 else None if by_character else 0
        document = position = before = 0  # of the batch: its first document, code with glue, code without
        fresh = dict.fromkeys(writers, True)  # no document begun in this split yet
        begun = False  # the first row of the batch goes on with a document
        for codes, starts, ends in self.batches(title):
            begins = np.concatenate([[not begun], ends[:-1]])
            number = document + np.concatenate([[0], np.cumsum(ends[:-1])]).astype(np.int64)
            try:
                if route is None:
                    first = next(iter(writers))
                    glued, fresh[first] = self._glued(codes, starts, begins, ends, fresh[first])
                    for split, (low, high) in borders.items():
                        part = glued[max(low - position, 0) : max(high - position, 0)]
                        writers[split].write(vocab.encode_codes(part))
                    position += len(glued)
                else:
                    of_row = route[number]
                    width = np.diff(starts)
                    for k, (split, writer) in enumerate(writers.items()):
                        mine = of_row == k
                        if not mine.any():
                            continue
                        some = codes[np.repeat(mine, width)] if not mine.all() else codes
                        at = np.concatenate([[0], np.cumsum(width[mine])])
                        glued, fresh[split] = self._glued(some, at, begins[mine], ends[mine], fresh[split])
                        writer.write(vocab.encode_codes(glued))
                        writer.documents += int(ends[mine].sum())
            except CharlmError:
                raise self._misfit(codes, starts, number, before, vocab) from None
            before += len(codes)
            document += int(ends.sum())
            begun = not ends[-1] if len(ends) else begun

    def _glued(self, codes, starts, begins, ends, fresh: bool) -> tuple[np.ndarray, bool]:
        """Put the glue after documents (end-of-document symbol), or before all but a split's first."""
        if self.ends_with_glue:
            at = starts[1:][ends]
        else:
            at = starts[:-1][begins]
            if fresh and len(at):
                at, fresh = at[1:], False
        if len(self.glue) and len(at):
            wide = codes.astype(np.uint32) if self.glue.dtype != codes.dtype else codes
            codes = np.insert(wide, np.repeat(at, len(self.glue)), np.tile(self.glue, len(at)))
        return codes, fresh

    def _borders(self, splits: list[str]) -> dict[str, tuple[int, int]]:
        """Where the contiguous parts begin and end, in codes. Fractions are taken exactly as written."""
        cut, borders = self.length, {}
        for split in reversed(splits[1:]):
            share = sum(Fraction(str(getattr(self.data, s))) for s in splits[splits.index(split) :])
            low = math.floor(self.length * (1 - share))
            borders[split], cut = (low, cut), low
        return {splits[0]: (0, cut)} | dict(reversed(borders.items()))

    def _draw(self, splits: list[str]) -> np.ndarray:
        """uint8[documents]: the split of every document; held-out ones by a hash of seed and number."""
        order = np.argsort(_mix(np.arange(self.documents, dtype=np.uint64), self.data.seed), kind="stable")
        route, taken = np.zeros(self.documents, np.uint8), 0
        for k, split in enumerate(splits[1:], 1):
            some = max(1, round(self.documents * getattr(self.data, split)))
            route[order[taken : taken + some]] = k
            taken += some
        if taken >= self.documents:
            raise CharlmError(
                f"{describe(self.data)}: {self.documents} document(s) cannot be split in {len(splits)}; "
                f"set data.split_by=character, or data.validation=0 and data.test=0"
            )
        return route

    def _misfit(self, codes, starts, number, before: int, vocab: Vocab) -> CharlmError:
        """Name the first character outside a closed vocabulary by document and position."""
        known = np.isin(codes, np.array([ord(c) for c in vocab.characters], np.uint32))
        what = f"data.separator={self.data.separator!r}"
        if not known.all():
            at = int(np.argmin(known))
            row = int(np.searchsorted(starts, at, side="right")) - 1
            place = f"character {before + at:,} of the text (document {number[row]:,})"
            what = f"{name_of(chr(codes[at]))}, {place},"
        return CharlmError(
            f"{describe(self.data)}: {what} is not in the closed vocabulary of {len(vocab)} symbols; "
            f"add it to vocab.characters, or set vocab.unknown=bytes"
        )


class IdWriter:
    """A .npy file that grows: ids are appended, the header with their number comes last."""

    def __init__(self, path: Path, vocab: Vocab):
        self.path, self.vocab = path, vocab
        self.symbols = 0
        self.documents: int | None = 0  # None where documents are cut
        self.histogram = np.zeros(len(vocab), np.int64)
        self._hash = hashlib.sha256()
        self._file = open(path, "wb")  # noqa: SIM115 - closed in close()
        self._write_header()

    def _write_header(self) -> None:
        # numpy pads the header of a 1-d array so that it stays as long when the shape grows
        header = {"descr": self.vocab.dtype.str, "fortran_order": False, "shape": (self.symbols,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, ids: np.ndarray) -> None:
        self._file.write(ids.data)
        self._hash.update(ids.data)
        self.histogram += np.bincount(ids, minlength=len(self.vocab))
        self.symbols += len(ids)

    def close(self) -> None:
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    @cached_property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def size(self) -> dict[str, int]:
        return ({} if self.documents is None else {"documents": self.documents}) | {
            "characters": int(self.histogram @ self.vocab.characters_per_symbol.astype(np.int64)),
            "bytes": int(self.histogram @ self.vocab.bytes_per_symbol.astype(np.int64)),
            "symbols": self.symbols,
        }


def unigram_floor(train: IdWriter, held_out: IdWriter) -> dict[str, float]:
    """What the simplest model scores: symbol frequencies of train, one added to each."""
    share = (train.histogram + 1) / (train.symbols + len(train.vocab))
    nats, size = -float(held_out.histogram @ np.log(share)), held_out.size()
    per_character = nats / max(size["characters"], 1)
    return {
        "nats_per_character": per_character,
        "bpc": per_character / math.log(2),
        "bpb": nats / max(size["bytes"], 1) / math.log(2),
    }


def _mix(x: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 (Steele, Lea, Flood 2014): a well-mixed uint64 for each x, the same everywhere."""
    with np.errstate(over="ignore"):
        x = x + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


@contextmanager
def progress(title: str, total: int):
    """A bar in bytes on a terminal; nothing in a log file."""
    with tqdm(
        desc=title,
        total=total,
        unit="B",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
    ) as bar:
        yield bar
