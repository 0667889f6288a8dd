"""The files of a dataset, read in parts that threads take in any order.

Files are read in place, parquet also over the network; of archives, and of text that is not UTF-8, a copy; of
formats that charlm does not read, the Arrow files that `datasets` makes of them. Files are not memory-mapped, so
that resident memory does not grow with the corpus.
"""

import codecs
import os
import re
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.utils.file_utils import xopen

from charlm.config.fields import BUILDERS, DataConfig
from charlm.corpus.records import (
    ROWS,
    Local,
    Rows,
    Span,
    columns_of,
    joined,
    lacks,
    not_utf8,
    to_character,
)
from charlm.corpus.sources import Unreadable, describe, files_of, read_error
from charlm.corpus.vocabulary import normalized
from charlm.errors import CharlmError

PIECE = 8 << 20  # bytes of text per part, at least
BATCH = 4 << 20  # bytes of text per batch of rows, unless a row of parquet is longer
MOST_ROWS = 1 << 12  # per batch: parquet counts the bytes of repeated texts once
BUFFER = 4 << 20  # bytes of a parquet column read at a time


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
    """A file in Arrow's stream format; a part is a list of message offsets."""

    def __init__(self, file: Local, columns: list[str]):
        self.path, self.name, self.columns = file.path, file.name, columns
        self._messages: list[tuple[int, int, int]] = []  # offset, rows, bytes of text
        with pa.memory_map(self.path) as source:  # reads little more than the heads of the messages
            stream = pa.ipc.open_stream(source)
            self.schema, offset = stream.schema, source.tell()
            _check_columns(self.schema, columns, self.name)
            for batch in stream:
                size = sum(_column(batch, column).nbytes for column in columns)
                self._messages.append((offset, batch.num_rows, size))
                offset = source.tell()

    def parts(self) -> Iterator[tuple[object, np.ndarray, int]]:
        return _grouped(self._messages)

    def read(self, part) -> Iterator[pa.Array]:
        with pa.OSFile(self.path) as file:
            for offset in part:
                file.seek(offset)
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), self.schema)
                yield joined([_column(batch, column) for column in self.columns])


class ParquetFile(Reader):
    """A parquet file, on disk or behind a URL; a part is a list of row groups and the rows per batch."""

    def __init__(self, file: Local, columns: list[str]):
        self.path, self.name, self.columns = file.path, file.name, columns
        self.metadata: pq.FileMetaData | None = None
        with self._open() as file:
            _check_columns(file.schema_arrow, columns, self.name)
            self.metadata = file.metadata

    def _open(self) -> pq.ParquetFile:
        handle = xopen(self.path, "rb") if "://" in self.path else self.path
        return pq.ParquetFile(handle, metadata=self.metadata, pre_buffer=False, buffer_size=BUFFER)

    def parts(self) -> Iterator[tuple[object, np.ndarray, int]]:
        leaves = [self.metadata.schema.column(i).path for i in range(self.metadata.num_columns)]
        chosen = [leaves.index(column) for column in self.columns]
        groups = map(self.metadata.row_group, range(self.metadata.num_row_groups))
        sizes = (
            (i, g.num_rows, sum(g.column(k).total_uncompressed_size for k in chosen))
            for i, g in enumerate(groups)
        )
        for numbers, ends, size in _grouped(sizes):
            yield (numbers, max(1, len(ends) * BATCH // max(size, 1))), ends, size

    def read(self, part) -> Iterator[pa.Array]:
        groups, rows = part
        options = {"columns": self.columns, "use_threads": False}
        with self._open() as file:
            for batch in file.iter_batches(min(rows, MOST_ROWS), groups, **options):
                # By name: for a.b it also holds the leaf b of a column a.
                yield joined([_column(batch, column) for column in self.columns])


class TextFiles(Reader):
    """Local text files, each a document, to the byte; a part is a list of byte ranges. (`datasets` would turn
    every line ending into \\n, and hold a long file in memory.) cut: where a range may end, from an offset on."""

    def __init__(self, files: list[Local], cut: Callable[[str, int], int] = to_character):
        self.files, self.cut, self.name = files, cut, _name(files)

    def parts(self) -> Iterator[tuple[object, np.ndarray, int]]:
        return _grouped((s, [s.last], s.high - s.low) for file in self.files for s in self._ranges(file))

    def _ranges(self, file: Local) -> Iterator[Span]:
        """The whole file, about PIECE bytes at a time."""
        size, low = os.path.getsize(file.path), 0
        if not size:
            yield Span(file, 0, 0, True)  # an empty document
        while low < size:
            high = min(self.cut(file.path, low + PIECE), size)
            yield Span(file, low, high, high == size)
            low = high

    def read(self, part: list[Span]) -> Iterator[pa.Array]:
        yield pa.array([span.read() for span in part], pa.large_binary())

    def place_of(self, part: list[Span], row: int, byte: int) -> str:
        """Where a byte of a row is: the file, and the offset in it."""
        return f"{part[row].file.name}: byte {part[row].low + byte:,}"


class Records(Reader):
    """Local files with the rows that a parser finds; a part is a list of spans."""

    def __init__(self, files: list[Local], rows: Rows):
        self.files, self.rows, self.name = files, rows, _name(files)

    def parts(self) -> Iterator[tuple[object, np.ndarray, int]]:
        self.rows.skipped = 0
        return _grouped(item for file in self.files for item in self.rows.spans(file, PIECE))

    def read(self, part: list[Span]) -> Iterator[pa.Array]:
        yield from map(self.rows.read, part)

    def place_of(self, part: list[Span], row: int, byte: int) -> str:
        """Where a byte of a row is: the file, and the line or the offset in it."""
        for span in part:
            if row < (rows := len(self.rows.read(span))):
                return self.rows.place_of(span, row, byte)
            row -= rows


class Normalized(Reader):
    """The texts of another reader after the steps of data.normalize."""

    def __init__(self, reader: Reader, steps: list[str]):
        self.reader, self.name, self.steps = reader, reader.name, steps
        self.parts = reader.parts

    def read(self, part) -> Iterator[pa.Array]:
        rows = 0
        for texts in self.reader.read(part):
            try:
                yield normalized(texts.cast(pa.large_string()), self.steps)
            except pa.ArrowInvalid:
                row, byte = next(
                    (i, bad) for i, x in enumerate(texts.to_pylist()) if (bad := not_utf8(x)) is not None
                )
                place = getattr(self.reader, "place_of", lambda *_: self.name)(part, rows + row, byte)
                advice = "set data.encoding, or mend it: data.normalize needs UTF-8"
                raise CharlmError(f"{place} is not UTF-8; {advice}") from None
            rows += len(texts)


def _name(files: list[Local]) -> str:
    return files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"


def cut_for(steps: list[str]) -> Callable[[str, int], int]:
    """Where texts may be cut so that the steps of data.normalize change the parts as they change the whole: before
    a letter of ASCII, or without text8 before more that nothing before it can change."""
    before = re.compile(rb"[A-Za-z]" if "text8" in steps else rb"[\t -~]|[\xe4-\xe9][\x80-\xbf]{2}")

    def cut(path: str, offset: int) -> int:
        with open(path, "rb") as file:
            file.seek(offset)
            while len(block := file.read(1 << 16)) > 2:
                if found := before.search(block):
                    return offset + found.start()
                offset += len(block) - 2  # of a character that the block breaks off
                file.seek(offset)
        return os.path.getsize(path)

    return cut


def _grouped(items: Iterable[tuple]) -> Iterator[tuple[list, np.ndarray, int]]:
    """Consecutive items (item, rows, bytes) in groups of at least PIECE bytes: (items, bool[rows], bytes). rows:
    their number, or for each whether it ends a document."""
    group, ends, size = [], [], 0
    for item, rows, item_size in items:
        group.append(item)
        ends.append(np.broadcast_to(True, rows) if isinstance(rows, int) else np.asarray(rows, bool))
        size += item_size
        if size >= PIECE:
            yield group, np.concatenate(ends), size
            group, ends, size = [], [], 0
    if group:
        yield group, np.concatenate(ends), size


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column by its name, or text within one: doc.text."""
    if name in batch.schema.names:
        return batch.column(name)
    column, *keys = name.split(".")
    return pc.struct_field(batch.column(column), keys)


def _check_columns(schema: pa.Schema, columns: list[str], file: str) -> None:
    for column in columns:
        if schema.names.count(column) > 1:
            raise CharlmError(f"data.text_column={column!r}: {file} has more than one column of that name")
        kind = pa.struct(list(schema))
        for key in [column] if column in schema.names else column.split("."):
            if not pa.types.is_struct(kind) or kind.get_field_index(key) < 0:
                raise lacks(column, file, schema.names)
            kind = kind.field(key).type
        if kind not in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.null()):
            raise CharlmError(f"data.text_column={column!r} of {file} holds {kind}, not text")


def readers_of(data: DataConfig, cache: str | None) -> dict[str, list[Reader]]:
    """The files of every split of the dataset. cache: of `datasets`, instead of its own."""
    if data.source == "literal":
        readers = {"train": [Literal(data.text)]}
    else:
        splits = {split: files for split, files in files_of(data).items() if split}
        readers = {} if data.source in (*BUILDERS, "stdlib") else _of_dataset(data, cache)
        for split, files in splits.items():
            groups = groupby(files, key=lambda file: file.format)
            readers[split] = [
                r for kind, group in groups for r in _readers(data, kind, [f.path for f in group])
            ]
    if not data.normalize:
        return readers
    return {split: [Normalized(reader, data.normalize) for reader in of] for split, of in readers.items()}


def _of_dataset(data: DataConfig, cache: str | None) -> dict[str, list[Reader]]:
    """The splits of a dataset of the Hub, or of a folder that describes itself to `datasets`."""
    options = {"data_files": data.data_files} if data.data_files else {}
    options |= {"name": data.name or None, "revision": data.revision or None}
    builder = datasets.load_dataset_builder(data.source, cache_dir=cache, **options)
    format = type(builder).__name__.lower()
    if format in ("parquet", "json", "csv", "text"):
        files = builder.config.data_files.items()
        return {str(split): _readers(data, format, [*map(str, paths)]) for split, paths in files}
    _no_streaming(data)
    builder.download_and_prepare()
    return {
        str(name): [
            ArrowFile(Local(f["filename"], describe(data)), columns_of(data)) for f in split.cache_files
        ]
        for name, split in builder.as_dataset().items()
    }


def _no_streaming(data: DataConfig) -> None:
    if data.streaming:
        text = f"{describe(data)} is not made of parquet files"
        raise CharlmError(f"data.streaming=True: {text}; set data.streaming=false")


def _readers(data: DataConfig, format: str, paths: list[str]) -> list[Reader]:
    """Of files of one format: paths, URLs, or members::archives."""
    if format == "parquet" and data.streaming:
        files = [Local(path, path) for path in paths]
    else:
        _no_streaming(data)
        files = [
            file
            for file in local_files(paths, data.encoding if format in ("text", "json", "csv") else "utf-8")
        ]
    if format == "text" and data.document == "file" and not data.delimiter:
        return [TextFiles(files, cut_for(data.normalize) if data.normalize else to_character)]
    if format in ROWS:
        return [Records(files, ROWS[format](data))]
    kind, readers = ParquetFile if format == "parquet" else ArrowFile, []
    for file in files:
        try:
            readers.append(kind(file, columns_of(data)))
        except Exception as error:  # names the file among many
            raise read_error(error, data, file.name) from error
    return readers


def local_files(paths: list[str], encoding: str = "utf-8") -> list[Local]:
    """Files on this disk, as UTF-8: those of paths, what archives at them hold, and downloads of URLs."""
    download = datasets.DownloadConfig(extract_on_the_fly=True)
    manager = datasets.DownloadManager("charlm", download_config=download)
    places = [path.rpartition("::")[2] for path in paths]
    urls = [*dict.fromkeys(place for place in places if "://" in place)]
    downloaded = dict(zip(urls, manager.download(urls), strict=True))
    files = []
    for path, place in zip(paths, places, strict=True):
        member, local = path[: len(path) - len(place)], downloaded.get(place, place)
        if member or _is_zstd(local):
            found = [member + local]
        else:
            found = manager.iter_files(manager.extract(local))
        for file in map(str, found):
            inner = re.match(r"(?:zip|tar)://(.*?)::", file)
            files.append(_copied(file, f"{place}::{inner[1]}" if inner else place, encoding))
    return files


def _is_zstd(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"\x28\xb5\x2f\xfd"


def _copied(path: str, name: str, encoding: str) -> Local:
    """A file, or a copy: of a member::archive, of compressed text, of text in another encoding. Raises CharlmError
    for what cannot be extracted or decoded."""
    place = path.rpartition("::")[2]
    decoder = codecs.getincrementaldecoder(encoding)() if codecs.lookup(encoding).name != "utf-8" else None
    zstd = "::" not in path and _is_zstd(path)
    if path == place and not zstd and not decoder:
        return Local(path, name)
    stat = os.stat(place)
    key = f"{path} {stat.st_size} {stat.st_mtime_ns}" + (f" {encoding}" if decoder else "")
    copy = Path(datasets.config.HF_DATASETS_CACHE) / "charlm" / sha256(key.encode()).hexdigest()
    if copy.exists():
        return Local(str(copy), name)
    copy.parent.mkdir(parents=True, exist_ok=True)
    read = 0
    try:
        with TemporaryDirectory(dir=copy.parent) as partial:
            with (
                pa.input_stream(path, "zstd") if zstd else xopen(path, "rb") as source,
                open(f"{partial}/member", "wb") as file,
            ):
                while block := source.read(1 << 20):
                    file.write(decoder.decode(block).encode() if decoder else block)
                    read += len(block)
                file.write(decoder.decode(b"", True).encode() if decoder else b"")
            os.replace(f"{partial}/member", copy)
    except UnicodeError as error:
        advice = "set another data.encoding, such as utf-8, latin-1, cp1252 or utf-16"
        raise CharlmError(
            f"{name}: is not {encoding} from about byte {read:,} on ({error.reason}); {advice}"
        ) from error
    except Exception as error:  # of gzip, bz2, lzma, zipfile, tarfile, Arrow
        if isinstance(error, OSError) and error.errno:
            raise
        raise Unreadable(f"{name}: cannot be extracted, it is damaged or cut off ({error})") from error
    return Local(str(copy), name)
