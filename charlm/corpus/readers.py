"""The files of a dataset, found by `datasets` and read in parts that threads take in any order.

Text and parquet files are read in place, parquet also over the network; of other formats the Arrow files that
`datasets` makes of them. Files are not memory-mapped, so that resident memory does not grow with the corpus.
"""

import glob
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.text.text import Text as TextBuilder
from datasets.utils.file_utils import xopen

from charlm.config.fields import BUILDERS, DataConfig
from charlm.corpus.sources import File, describe, files_of, read_error
from charlm.errors import CharlmError

PIECE = 8 << 20  # bytes of text per part, at least
BATCH = 4 << 20  # bytes of text per batch of rows, unless a row of parquet is longer
MOST_ROWS = 1 << 12  # per batch: parquet counts the bytes of repeated texts once
BUFFER = 4 << 20  # bytes of a parquet column read at a time
_CONTINUATION = bytes(range(0x80, 0xC0))  # bytes of UTF-8 after the first one of a character


class Reader:
    """One or more files. name: in errors.

    parts(): of every part, what read() takes; bool[rows], which rows end a document; bytes of text.
    read(part): its texts, string or binary, in order.
    """

    name: str


class Literal(Reader):
    """A text of the config."""

    name = "data.text"

    def __init__(self, text: str):
        self.texts = pa.array([text], pa.large_string())

    def parts(self) -> Iterator[tuple[object, np.ndarray, int]]:
        yield None, np.ones(1, bool), self.texts.nbytes

    def read(self, part) -> Iterator[pa.Array]:
        yield self.texts


class ArrowFile(Reader):
    """A file in Arrow's stream format, from the cache of `datasets`; a part is a list of message offsets.
    source: its text, in errors."""

    def __init__(self, path: str, column: str, source: str):
        self.name, self.column = path, column
        self._messages: list[tuple[int, int, int]] = []  # offset, rows, bytes of text
        with pa.memory_map(path) as file:  # reads little more than the heads of the messages
            stream = pa.ipc.open_stream(file)
            self.schema, offset = stream.schema, file.tell()
            _check_column(self.schema, column, source)
            for batch in stream:
                self._messages.append((offset, batch.num_rows, batch.column(column).nbytes))
                offset = file.tell()

    def parts(self) -> Iterator[tuple[object, np.ndarray, int]]:
        return _grouped(self._messages)

    def read(self, part) -> Iterator[pa.Array]:
        with pa.OSFile(self.name) as file:
            for offset in part:
                file.seek(offset)
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), self.schema)
                yield batch.column(self.column)


class ParquetFile(Reader):
    """A parquet file, on disk or behind a URL; a part is a list of row groups and the rows per batch."""

    def __init__(self, path: str, column: str):
        self.name, self.column = path, column
        self.metadata: pq.FileMetaData | None = None
        with self._open() as file:
            _check_column(file.schema_arrow, column, path)
            self.metadata = file.metadata

    def _open(self) -> pq.ParquetFile:
        handle = xopen(self.name, "rb") if "://" in self.name else self.name
        return pq.ParquetFile(handle, metadata=self.metadata, pre_buffer=False, buffer_size=BUFFER)

    def parts(self) -> Iterator[tuple[object, np.ndarray, int]]:
        leaves = [self.metadata.schema.column(i).path for i in range(self.metadata.num_columns)]
        column = leaves.index(self.column)
        groups = map(self.metadata.row_group, range(self.metadata.num_row_groups))
        sizes = ((i, g.num_rows, g.column(column).total_uncompressed_size) for i, g in enumerate(groups))
        for numbers, ends, size in _grouped(sizes):
            yield (numbers, max(1, len(ends) * BATCH // max(size, 1))), ends, size

    def read(self, part) -> Iterator[pa.Array]:
        groups, rows = part
        options = {"columns": [self.column], "use_threads": False}
        with self._open() as file:
            for batch in file.iter_batches(min(rows, MOST_ROWS), groups, **options):
                yield batch.column(self.column)  # by name: for a.b it also holds the leaf b of a column a


@dataclass(frozen=True)
class ByteRange:
    """Bytes low to high of a text file: one row, or lines if data.document=line. last: up to its end."""

    path: str
    low: int
    high: int
    last: bool

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.low)
            return file.read(self.high - self.low)

    def rows(self) -> int:
        """The number of lines."""
        text = self.read()
        return text.count(b"\n") + (not text.endswith(b"\n"))

    def lines(self) -> pa.Array:
        """large_binary[rows], without the newlines."""
        text = pa.array([self.read().removesuffix(b"\n")], pa.large_binary())
        return pc.split_pattern(text, pattern="\n").flatten()


class TextFiles(Reader):
    """Local text files, to the byte; a part is a list of byte ranges. document: 'file' or 'line'. (`datasets`
    would turn every line ending into \\n, and hold a long file in memory.)"""

    def __init__(self, paths: list[str], document: str):
        self.paths, self.by_line = paths, document == "line"
        self.name = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"

    def parts(self) -> Iterator[tuple[object, np.ndarray, int]]:
        spans = (span for path in self.paths for span in self._ranges(path))
        sizes = ((s, s.rows() if self.by_line else 1, s.high - s.low) for s in spans)
        for part, ends, size in _grouped(sizes):
            yield part, ends if self.by_line else np.array([s.last for s in part]), size

    def _ranges(self, path: str) -> Iterator[ByteRange]:
        """The whole file, about PIECE bytes at a time, cut between lines or characters."""
        with open(path, "rb") as file:
            size, low = os.fstat(file.fileno()).st_size, 0
            if not size and not self.by_line:
                yield ByteRange(path, 0, 0, True)  # an empty document
            while low < size:
                high = low + PIECE
                if self.by_line:
                    file.seek(high - 1)
                    file.readline()
                    high = file.tell()
                else:
                    file.seek(high)
                    tail = file.read(3)  # a character has at most 3 bytes beyond its first
                    high += len(tail) - len(tail.lstrip(_CONTINUATION))
                high = min(high, size)
                yield ByteRange(path, low, high, high == size)
                low = high

    def read(self, part: list[ByteRange]) -> Iterator[pa.Array]:
        if self.by_line:
            yield from (span.lines() for span in part)
        else:
            yield pa.array([span.read() for span in part], pa.large_binary())

    def place_of(self, part: list[ByteRange], row: int, byte: int) -> str:
        """Where a byte of a row is: the file, and the offset in it."""
        for span in part:
            rows = span.rows() if self.by_line else 1
            if row < rows:
                rest = span.read().split(b"\n", row)[-1]  # from that row on
                return f"{span.path}: byte {span.high - len(rest) + byte:,}"
            row -= rows


def _grouped(items: Iterable[tuple[object, int, int]]) -> Iterator[tuple[list, np.ndarray, int]]:
    """Consecutive items (item, rows, bytes) in groups of at least PIECE bytes: (items, bool[rows], bytes),
    where every row ends a document."""
    group, rows, size = [], 0, 0
    for item, item_rows, item_size in items:
        group.append(item)
        rows, size = rows + item_rows, size + item_size
        if size >= PIECE:
            yield group, np.broadcast_to(True, rows), size
            group, rows, size = [], 0, 0
    if group:
        yield group, np.broadcast_to(True, rows), size


def _check_column(schema: pa.Schema, column: str, file: str) -> None:
    if column not in schema.names:
        names = ", ".join(schema.names)
        raise CharlmError(f"data.text_column={column!r} is not a column of {file} (columns: {names})")
    if schema.names.count(column) > 1:
        raise CharlmError(f"data.text_column={column!r}: {file} has more than one column of that name")
    kind = schema.field(column).type
    if kind not in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.null()):
        raise CharlmError(f"data.text_column={column!r} of {file} holds {kind}, not text")


def readers_of(data: DataConfig, cache: str | None) -> dict[str, list[Reader]]:
    """The files of every split of the dataset."""
    if data.source == "literal":
        return {"train": [Literal(data.text)]}
    found = files_of(data)
    if data.source == "stdlib":
        return {"train": [TextFiles([file.path for file in found["train"]], "file")]}
    readers = {}
    if data.source not in BUILDERS:
        options = {"name": data.name or None, "revision": data.revision or None}
        options |= {"data_files": data.data_files} if data.data_files else {}
        readers = _built(datasets.load_dataset_builder(data.source, cache_dir=cache, **options), data)
    for split, files in found.items():
        if split:
            groups = groupby(files, key=lambda file: file.format)
            readers[split] = [r for kind, group in groups for r in _readers(data, kind, [*group], cache)]
    return readers


def _readers(data: DataConfig, format: str, files: list[File], cache: str | None) -> list[Reader]:
    """Of named files of one format."""
    paths = [file.path for file in files]
    if format == "text" and not data.streaming and not any(map(_is_packed, paths)):
        return [TextFiles(paths, data.document)]
    options = {"keep_default_na": False} if format == "csv" else {}  # pandas reads the text "NA" as missing
    paths = [path if "://" in path else glob.escape(path) for path in paths]
    builder = datasets.load_dataset_builder(format, data_files={"train": paths}, cache_dir=cache, **options)
    return _built(builder, data)["train"]


def _is_packed(path: str) -> bool:
    """Whether a file is not at hand as it is: a URL, an archive, or compressed, by its first bytes."""
    if "://" in path:
        return True
    with open(path, "rb") as file:
        head = file.read(262)
    magic = (b"\x1f\x8b", b"BZh", b"\xfd7z", b"\x28\xb5\x2f\xfd", b"\x04\x22M\x18", b"PK", b"7z\xbc", b"Rar!")
    return head.startswith(magic) or head.endswith(b"ustar")


def _built(builder, data: DataConfig) -> dict[str, list[Reader]]:
    """The readers of every split of a builder of `datasets`."""

    def parquet(file: str) -> ParquetFile:
        try:
            return ParquetFile(file, data.text_column)
        except Exception as error:  # names the file among many
            raise read_error(error, data, file) from error

    if isinstance(builder, Parquet):
        return {name: [*map(parquet, files)] for name, files in _files(builder, data.streaming).items()}
    if data.streaming:
        text = f"{describe(data)} is not made of parquet files"
        raise CharlmError(f"data.streaming=True: {text}; set data.streaming=false")
    if isinstance(builder, TextBuilder):
        return {name: [TextFiles(files, data.document)] for name, files in _files(builder).items()}
    builder.download_and_prepare()
    return {
        str(name): [ArrowFile(f["filename"], data.text_column, describe(data)) for f in split.cache_files]
        for name, split in builder.as_dataset().items()
    }


def _files(builder, streaming: bool = False) -> dict[str, list[str]]:
    """The files of every split of a builder: URLs if streaming, else local files, extracted from archives."""
    kind = datasets.StreamingDownloadManager if streaming else datasets.DownloadManager
    download = datasets.DownloadConfig(token=builder.token)
    manager = kind(builder.dataset_name, base_path=builder.base_path, download_config=download)
    found = {}
    for split in builder._split_generators(manager):
        parts = split.gen_kwargs.get("files_iterables") or [split.gen_kwargs["files"]]
        files = [str(file) for part in parts for file in part]
        found[str(split.name)] = files if streaming else [*map(_extracted, files)]
    return found


def _extracted(path: str) -> str:
    """The path of a local file; for a member of an archive (member::archive) that of a copy."""
    if "::" not in path:
        return path
    archive = os.stat(path.rsplit("::", 1)[1])
    key = f"{path} {archive.st_size} {archive.st_mtime_ns}"
    copy = Path(datasets.config.HF_DATASETS_CACHE) / "charlm" / sha256(key.encode()).hexdigest()
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=copy.parent) as partial:
            with xopen(path, "rb") as member, open(f"{partial}/member", "wb") as file:
                shutil.copyfileobj(member, file, 1 << 20)
            os.replace(f"{partial}/member", copy)
    return str(copy)
