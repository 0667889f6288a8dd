"""The files of a dataset, read in parts that threads take in any order.

Files are read in place, parquet also over the network; of archives and of text that is not UTF-8 a copy; of
formats that charlm does not read, the Arrow files that `datasets` makes of them. Files are not memory-mapped,
so that resident memory does not grow with the corpus.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.utils.file_utils import xopen

from charlm.config.fields import BUILDERS, DataConfig
from charlm.corpus.records import ROWS, joined, no_column
from charlm.corpus.sources import Unreadable, describe, files_of
from charlm.corpus.texts import Span
from charlm.errors import CharlmError
from charlm.files import UTF16, Local, head_of, local_files

PIECE = 8 << 20  # bytes of text per part, at least
BATCH = 4 << 20  # bytes of text per batch of rows, unless a row of parquet is longer
MOST_ROWS = 1 << 12  # per batch: parquet counts the bytes of repeated texts once
TEXT = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.null())
BUFFER = 4 << 20  # bytes of a parquet column read at a time


class Reader:
    """One or more files. name: in errors.

    parts(): of every part, what read() takes; bool[rows], which rows end a document; bytes of text.
    read(part): its texts, string or binary, in order.
    """

    name: str
    skipped = 0  # rows that parts() left out


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
        groups = enumerate(map(self.metadata.row_group, range(self.metadata.num_row_groups)))
        sizes = ((i, g.num_rows, sum(g.column(k).total_uncompressed_size for k in chosen)) for i, g in groups)
        for numbers, ends, size in _grouped(sizes):
            yield (numbers, max(1, len(ends) * BATCH // max(size, 1))), ends, size

    def read(self, part) -> Iterator[pa.Array]:
        groups, rows = part
        options = {"columns": self.columns, "use_threads": False}
        with self._open() as file:
            for batch in file.iter_batches(min(rows, MOST_ROWS), groups, **options):
                # By name: for a.b it also holds the leaf b of a column a.
                yield joined([_column(batch, column) for column in self.columns])


class Records(Reader):
    """Local files whose rows charlm finds; a part is a list of spans."""

    def __init__(self, files: list[Local], rows):
        self.files, self.rows = files, rows
        self.name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"

    def parts(self) -> Iterator[tuple[object, np.ndarray, int]]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            spans = [*chain(*pool.map(lambda file: [*self.rows.spans(file, PIECE)], self.files))]
        self.skipped = sum(span.skipped for span in spans)
        return _grouped((span, np.full(span.rows, span.last), span.high - span.low) for span in spans)

    def read(self, part: list[Span]) -> Iterator[pa.Array]:
        yield pa.concat_arrays([*map(self.rows.read, part)])

    def place_of(self, part: list[Span], row: int, byte: int) -> str:
        """Where a byte of a row is: the file, and the line or the offset in it."""
        for span in part:
            if row < (rows := len(self.rows.read(span))):
                return self.rows.place_of(span, row, byte)
            row -= rows


def _grouped(items: Iterable[tuple]) -> Iterator[tuple[list, np.ndarray, int]]:
    """Consecutive items (item, rows, bytes) in groups of at least PIECE bytes: (items, bool[rows], bytes).
    rows: their number, or for each whether it ends a document."""
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
    column, *keys = [name] if name in batch.schema.names else name.split(".")
    texts = pc.struct_field(batch.column(column), keys) if keys else batch.column(column)
    return texts.dictionary_decode() if pa.types.is_dictionary(texts.type) else texts


def _check_columns(schema: pa.Schema, columns: list[str], file: str) -> None:
    for column in columns:
        kind = pa.struct(list(schema))
        for key in [column] if column in schema.names else column.split("."):
            if not pa.types.is_struct(kind) or kind.get_field_index(key) < 0:  # none, or several
                raise no_column(column, file, schema.names)
            kind = kind.field(key).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if kind not in TEXT:
            raise CharlmError(f"data.text_column={column!r} of {file} holds {kind}, not text")


def readers_of(data: DataConfig) -> dict[str, list[Reader]]:
    """The files of every split of the dataset."""
    splits = {}
    if data.source == "literal":
        splits["train"] = [Literal(data.text)]
    elif data.source not in (*BUILDERS, "stdlib"):
        splits = _of_dataset(data)
    for split, files in files_of(data).items():
        if split:
            groups = groupby(files, key=lambda file: file.format)
            splits[split] = [r for kind, of in groups for r in _readers(data, kind, [f.path for f in of])]
    return splits


def _of_dataset(data: DataConfig) -> dict[str, list[Reader]]:
    """The splits of a dataset of the Hub, or of a folder that describes itself to `datasets`."""
    options = {"data_files": data.data_files} if data.data_files else {}
    options |= {"name": data.name or None, "revision": data.revision or None}
    builder = datasets.load_dataset_builder(data.source, **options)
    names = [kind.__name__.lower() for kind in type(builder).__mro__]  # of a subclass, with a configuration
    if format := next((name for name in names if name in ("parquet", *ROWS)), ""):
        files = builder.config.data_files.items()
        return {str(split): _readers(data, format, [*map(str, paths)]) for split, paths in files}
    _refuse_streaming(data)
    builder.download_and_prepare()
    made = {name: split.cache_files for name, split in builder.as_dataset().items()}
    files = {str(name): [Local(file["filename"], describe(data)) for file in made[name]] for name in made}
    return {split: [ArrowFile(file, data.columns) for file in files[split]] for split in files}


def _refuse_streaming(data: DataConfig) -> None:
    advice = f"{describe(data)} is not made of parquet files; set data.streaming=false"
    data.require(not data.streaming, "streaming", advice)


def _readers(data: DataConfig, format: str, paths: list[str]) -> list[Reader]:
    """Of files of one format: paths, URLs, or members::archives."""
    if format == "parquet" and data.streaming:
        files = [Local(path, path) for path in paths]
    else:
        _refuse_streaming(data)
        files = local_files(paths, "utf-8" if format in ("parquet", "arrow") else data.encoding)
    for file in files if format in ("json", "csv") else ():
        if head_of(file.path)[:2] in UTF16:
            raise CharlmError(f"{file.name}: begins as UTF-16 does; set data.encoding=utf-16")
    if format in ROWS:
        return [Records(files, ROWS[format](data))] if files else []
    kind, readers = ParquetFile if format == "parquet" else ArrowFile, []
    for file in files:
        try:
            readers.append(kind(file, data.columns))
        except Exception as error:  # names the file among many
            raise read_error(error, data, file.name) from error
    return readers


def read_error(error: BaseException, data: DataConfig, file: str = "") -> CharlmError:
    """An error of `datasets`, Arrow or the disk in the terms of the config. file: the one being read."""
    text = describe(data) + (f", {file}" if file else "")
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, CharlmError):
            return cause
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            problem = f"no space left for the cache of datasets in {datasets.config.HF_DATASETS_CACHE}"
            return CharlmError(f"{text}: {problem}; set HF_HOME")
    message = " ".join(str(error).split()) or type(error).__name__
    if "corresponds to no data" in message:
        return CharlmError(f"{text}: the text is empty")
    missing = isinstance(error, FileNotFoundError) and "://" in message
    offline = any(word in message.lower() for word in ("connect", "offline"))
    if missing or offline or isinstance(error, ConnectionError):
        advice = "Run `charlm prepare` where there is a network; machines without one open the prepared"
        advice += " corpus in data.dir (HF_HUB_OFFLINE=1 spares them the wait)"
        return Unreadable(f"{text}: cannot be reached ({message}). {advice}")
    first = " ".join(str(cause).split())
    message += f" ({first})" if first not in message else ""
    return Unreadable(f"{text}: datasets cannot read it: {message}")
