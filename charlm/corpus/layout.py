"""From the counts to the vocabulary, the size of every split, and the place of every piece in it; and the
arrays while they are written: any piece at any time, each to its own place."""

import errno
import json
import os
import shutil
import time
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from charlm.config.fields import Config
from charlm.corpus.batches import Piece
from charlm.corpus.count_encode import DOCUMENTS, ORDERED, Tally, Text
from charlm.corpus.prepared import IdFile
from charlm.corpus.sources import SPLITS, describe
from charlm.corpus.vocabulary import END, Vocab, codes_of, name_of
from charlm.errors import CharlmError
from charlm.files import Journal, replace, write_at

SYNC_EVERY = 0.25  # seconds between two points from which a killed build resumes
SHOWN = 8  # characters that a report names
LAYOUT_FILE = "layout-3.npz"  # in another format than layout.npz of older versions


@dataclass
class Layout:
    """Where the symbols of every piece go, and the sizes of the corpus.

    starts: per array int64[pieces + 1], its symbols before each piece and, at the end, all of them: of every
    split; for data.shuffle of ORDERED and DOCUMENTS, not of train. begun: int64[pieces, SPLITS], documents
    begun before each piece, in the columns of its text. histograms: per split int64[V], how often each symbol
    occurs. sizes: per split its characters, bytes and symbols, and its documents where they are whole. facts:
    for corpus.json.
    """

    vocab: Vocab
    starts: dict[str, np.ndarray]
    begun: np.ndarray
    histograms: dict[str, np.ndarray]
    sizes: dict[str, dict[str, int]]
    facts: dict

    def save(self, folder: Path) -> None:
        """Write vocab.json, then the layout, which exists only when both are whole."""
        self.vocab.save(folder / "vocab.json")
        arrays = {"starts": [*self.starts.values()], "histograms": [*self.histograms.values()]}
        buffer, facts = BytesIO(), json.dumps([self.sizes, self.facts, [*self.starts]])
        np.savez(buffer, json=facts, begun=self.begun, **arrays)
        replace(folder / LAYOUT_FILE, buffer.getvalue())

    @classmethod
    def load(cls, folder: Path) -> "Layout":
        with np.load(folder / LAYOUT_FILE) as file:
            sizes, facts, names = json.loads(str(file["json"]))
            starts, histograms = dict(zip(names, file["starts"], strict=True)), file["histograms"]
            histograms = dict(zip(sizes, histograms, strict=True))
            return cls(Vocab.load(folder), starts, file["begun"], histograms, sizes, facts)


def lay_out(texts: list[Text], journals: list[Path], config: Config) -> Layout:
    """Choose the vocabulary and place the pieces. journals: the tallies of all pieces of all texts, in order.
    Raises CharlmError for text that is empty, too short for its splits, or outside a closed vocabulary."""
    pieces = [(text, piece) for text in texts for piece in text.source.pieces]

    def tallies() -> Iterator[tuple[Text, Piece, Tally]]:
        contents = chain.from_iterable(map(Journal.read, journals))
        return ((*owned, Tally(content)) for owned, content in zip(pieces, contents, strict=True))

    begins, ends, lengths = (np.zeros((len(pieces), len(SPLITS)), np.int64) for _ in range(3))
    empty = 0  # documents
    piece_sizes = np.zeros(len(pieces), np.int64)  # codes of each piece
    totals = np.zeros(END + 1, np.int64)  # how often each code occurs
    for i, (text, _, tally) in enumerate(tallies()):
        begins[i, text.columns], ends[i, text.columns] = tally.begun, tally.ended
        empty += int(tally.empty.sum())
        piece_sizes[i] = tally.counts.sum()
        np.add.at(totals, tally.codes, tally.counts)
    first = len(texts[0].source.pieces)  # the first text alone can be cut into contiguous parts
    if not piece_sizes[:first].any():
        raise CharlmError(f"{describe(config.data)}: the text is empty")
    begun = np.cumsum(begins, 0) - begins
    glue, glued = texts[0].glue, ends  # glued: int64[pieces, SPLITS], how often the glue occurs
    if not config.vocab.end_of_document:  # it is before every document but the first of a stream
        glued = np.maximum(begun + begins - 1, 0) - np.maximum(begun - 1, 0)
    np.add.at(totals, glue, glued.sum())
    vocab = Vocab.from_counts(totals, config.vocab)
    vocab.normalize = config.data.normalize
    if not vocab.can_encode(np.flatnonzero(totals)):
        problem = f"is not in the closed vocabulary of {len(vocab)} symbols"
        advice = "add it to vocab.characters, or set vocab.unknown=bytes"
        outside = _first_outside(tallies(), vocab)
        raise CharlmError(f"{describe(config.data)}: {outside} {problem}; {advice}")

    piece_sizes += glued.sum(1) * len(glue)
    stops = np.cumsum(piece_sizes)
    borders = texts[0].borders(int(stops[first - 1]))
    per_glue = vocab.histogram(*np.unique(glue, return_counts=True)) if glued.any() else 0
    histograms = {split: np.zeros(len(vocab), np.int64) for text in texts for split in text.splits}
    for i, (text, piece, tally) in enumerate(tallies()):
        codes, counts = (np.split(a, np.cumsum(tally.sizes)[:-1]) for a in (tally.codes, tally.counts))
        counted = zip(codes, counts, glued[i, text.columns], strict=True)  # of every stream
        parts = [vocab.histogram(codes, counts) + times * per_glue for codes, counts, times in counted]
        splits = text.splits
        if text.contiguous:
            low, high = stops[i] - piece_sizes[i], stops[i]
            splits = splits[bisect_right(borders, low) - 1 :]
            if inside := [border - low for border in borders if low < border < high]:
                parts = _histograms(text.encode(piece, vocab, begun[i, text.columns]), inside, vocab)
        for split, part in zip(splits, parts, strict=False):
            histograms[split] += part
            lengths[i, SPLITS.index(split)] = part.sum()

    starts, sizes = {}, {}
    whole = [split for text in texts if not text.contiguous for split in text.splits]
    for split, histogram in histograms.items():
        column = SPLITS.index(split)
        size = {"documents": int(ends[:, column].sum())} if split in whole else {}
        size["characters"] = int(histogram @ vocab.characters_per_symbol)
        size["bytes"] = int(histogram @ vocab.bytes_per_symbol)
        size["symbols"] = int(histogram.sum())
        if size["symbols"] < 2 or not size["characters"]:
            advice = f"read more text, or change data.{split if split != 'train' else 'validation'}"
            held = f"the {split} split would hold fewer than 2 symbols of text"
            raise CharlmError(f"{describe(config.data)}: {held}; {advice}")
        starts[split], sizes[split] = np.append(0, np.cumsum(lengths[:, column])), size
    vocab.unseen = np.flatnonzero(histograms["train"] == 0).tolist()
    if config.data.shuffle:
        starts |= {ORDERED: starts.pop("train"), DOCUMENTS: np.append(begun[:, 0], begins[:, 0].sum())}
    return Layout(vocab, starts, begun, histograms, sizes, {"empty": empty} | _facts(totals, vocab))


def _histograms(encoded: Iterator[tuple], borders: list[int], vocab: Vocab) -> np.ndarray:
    """int64[parts, V], of an encoded piece that is cut before these codes (from 0)."""
    begins_code = np.maximum(vocab.characters_per_symbol, np.arange(len(vocab)) == vocab.end).astype(np.int64)
    shape = (len(borders) + 1, len(vocab))
    histograms, done = np.zeros(shape, np.int64), 0
    for _, ids, _ in encoded:
        reached = done + np.cumsum(begins_code[ids])
        part = np.searchsorted(borders, reached - 1, side="right")
        histograms += np.bincount(part * len(vocab) + ids, minlength=histograms.size).reshape(shape)
        done = int(reached[-1])
    return histograms


def _first_outside(counted: Iterable[tuple[Text, Piece, Tally]], vocab: Vocab) -> str:
    """The first character that the vocabulary lacks, or the separator."""
    before: Counter[Text] = Counter()  # characters
    for text, piece, tally in counted:
        if not vocab.can_encode(tally.codes):
            for rows in text.batches(piece):
                for document, (low, high) in zip(rows.documents, pairwise(rows.offsets), strict=True):
                    codes = codes_of(rows.utf8[low:high])
                    held = vocab.holds(codes)
                    if not held.all():
                        at = int(np.argmin(held))
                        place = f"character {before[text] + at:,} of the text (document {document:,})"
                        return f"{name_of(chr(codes[at]))}, {place},"
                    before[text] += len(codes)
        before[text] += int(tally.counts.sum())
    return f"data.separator={text.data.separator!r}"


def _facts(totals: np.ndarray, vocab: Vocab) -> dict:
    """How well the vocabulary covers the text, and the characters a report names. totals: int64[END + 1]."""
    codes = np.flatnonzero(totals[:END])
    codes = codes[np.argsort(-totals[codes], kind="stable")]
    own = vocab.holds(codes)
    # Of accents over letters, of kana, and parts of Korean syllables: Unicode has characters with them.
    blocks = ((0x300, 0x346), (0x3099, 0x309B), (0x1161, 0x1200))
    parts = int(sum(totals[low:high].sum() for low, high in blocks))
    whole = sum(int(totals[c]) for c in codes if unicodedata.normalize("NFD", chr(c)) != chr(c))
    composes = vocab.bytes_only or {"nfc", "nfkc"} & {*(vocab.normalize or ())}
    kept = {} if vocab.bytes_only else {"byte order marks": int(totals[0xFEFF])}
    return {
        "kept": {"carriage returns": int(totals[ord("\r")])} | kept,
        "coverage": float(totals[codes[own]].sum() / totals[codes].sum()),
        "left_out_characters": int((~own).sum()),
        "decomposed": 0 if composes or parts < max(whole, 0.01 * totals[:END].sum()) else parts,
        "most_frequent": [[int(c), int(totals[c])] for c in codes[:SHOWN]],
        "first_left_out": [[int(c), int(totals[c])] for c in codes[~own][:SHOWN]],
    }


class IdWriter(AbstractContextManager):
    """Writes consecutive pieces of the arrays, as .npy files, in any order and from any thread. done: pieces
    that an earlier process has safely written."""

    def __init__(self, layout: Layout, pieces: range, folder: Path, suffix: str, progress: Path):
        """suffix: follows the split in the names of the files. progress: the file of pieces_written. Raises
        OSError when the disk has too little room."""
        self.pieces, self.progress = pieces, progress
        self.paths = {split: folder / f"{split}{suffix}.npy" for split in layout.starts}
        self.firsts = {split: int(starts[pieces.start]) for split, starts in layout.starts.items()}
        self.starts = {s: starts - self.firsts[s] for s, starts in layout.starts.items()}  # in these arrays
        symbols = {split: int(starts[pieces.stop]) for split, starts in self.starts.items()}
        self.done = pieces_written(progress) if all(path.exists() for path in self.paths.values()) else 0
        dtypes = {s: np.dtype(np.int64) if s == DOCUMENTS else layout.vocab.dtype for s in symbols}
        need = sum(symbols[s] * dtypes[s].itemsize for s in symbols)
        free = shutil.disk_usage(folder).free
        if not self.done and need > free:
            message = f"{os.strerror(errno.ENOSPC)}: {need / 1e9:.3g} GB are needed, {free / 1e9:.3g} GB free"
            raise OSError(errno.ENOSPC, message)
        self.files, self.arrays = {}, {}  # to write to, to read from
        for split, path in self.paths.items():
            self.files[split] = open(path, "rb+" if self.done else "wb+", 0)  # noqa: SIM115
            if not self.done:
                write_header(self.files[split], symbols[split], dtypes[split])
            self.arrays[split] = IdFile(path)
        self.hashes = {split: sha256() for split in self.paths}
        self.next = pieces.start  # the next piece to hash
        # Syncs while more is encoded, so that little is left to wait for at the end.
        self._pool = ThreadPoolExecutor(1)
        self._syncing, self._next_sync = self._pool.submit(int), time.monotonic() + SYNC_EVERY

    def write(self, split: str, position: int, ids: np.ndarray) -> None:
        """Write ids to their place in a split."""
        offset = self.arrays[split].offset + (position - self.firsts[split]) * ids.itemsize
        rest = memoryview(ids).cast("B")  # not through a mapping, whose dirty pages would count as resident
        while rest:
            size = write_at(self.files[split], rest, offset)
            rest, offset = rest[size:], offset + size

    def advance(self, number: int) -> None:
        """Hash the pieces up to this one, all of which are written."""
        for split, starts in self.starts.items():
            for block in self.arrays[split].blocks(starts[self.next], starts[number + 1]):
                self.hashes[split].update(block)
        self.next = number + 1
        if time.monotonic() > self._next_sync and self._syncing.done():
            self._syncing.result()  # raises the error of a disk that failed
            self._syncing = self._pool.submit(self._sync, self.next - self.pieces.start)
            self._next_sync = time.monotonic() + SYNC_EVERY

    def _sync(self, pieces: int) -> None:
        """Wait until the files are on the disk, then record how many pieces are."""
        for file in self.files.values():
            os.fsync(file.fileno())
        replace(self.progress, json.dumps({"pieces": pieces}))

    def __exit__(self, kind, error, _) -> None:
        try:
            if error is None:
                self.advance(self.pieces.stop - 1)  # hashes what an earlier process wrote, if it wrote all
                self._syncing.result()
                self._sync(len(self.pieces))
        finally:
            self._pool.shutdown()
            for file in self.files.values():
                file.close()
            if isinstance(error, OSError):  # free the space of a full disk
                for path in (*self.paths.values(), self.progress):
                    path.unlink(missing_ok=True)


def pieces_written(progress: Path) -> int:
    """The number of pieces that are safely on the disk, of a progress file; 0 where there is none."""
    return json.loads(progress.read_text())["pieces"] if progress.exists() else 0


def write_ids(path: Path, symbols: int, blocks: Iterable[np.ndarray]) -> str:
    """Write so many ids as a .npy file. Returns their sha256."""
    digest = sha256()
    with open(path, "wb") as file:
        for block in blocks:
            if not file.tell():
                write_header(file, int(symbols), block.dtype)
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def write_header(file, symbols: int, dtype: np.dtype) -> None:
    """Begin a .npy file of so many symbols."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": (symbols,)}
    np.lib.format.write_array_header_1_0(file, header)
