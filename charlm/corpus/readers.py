"""The files that a dataset is made of, read in parts that threads take in any order.

Row groups of parquet files, read where they are, on disk or behind a URL; batches of the Arrow files that
`datasets` makes of everything else; arrays in memory. (Text files: textfile.py.) Files are read, not
memory-mapped, so that what is resident does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from charlm.errors import CharlmError

BATCH = 4 << 20  # bytes of text per batch, unless a row of parquet is longer
PIECE = 8 << 20  # bytes of text that one thread reads at a time, at least
BUFFER = 4 << 20  # bytes of a parquet column that are read at a time
MOST_ROWS = 1 << 12  # per batch: what parquet says of sizes is not to be trusted for text that repeats


class Memory:
    """A text that is at hand."""

    name = "data.text"

    def __init__(self, text: str):
        self.texts = pa.array([text], pa.large_string())

    def parts(self) -> Iterator[tuple[object, int, int]]:
        """(part, rows, bytes of text) of every part."""
        yield None, 1, self.texts.nbytes

    def ends(self, part) -> np.ndarray | None:
        """bool[rows], which rows of a part end a document; None where all of them do."""
        return None

    def read(self, part) -> Iterator[pa.Array]:
        """The texts of a part, in order."""
        yield self.texts


class ArrowFile:
    """A file in Arrow's stream format, as `datasets` caches it; a part is a list of offsets of its
    messages. text: what it was made of, as errors name it."""

    def __init__(self, path: str, column: str, text: str):
        self.name, self.column = path, column
        self._offsets: list[tuple[int, int, int]] = []  # offset, rows, bytes of text
        with pa.memory_map(path) as file:  # touches little more than the messages' heads
            self.schema = pa.ipc.read_schema(file)
            _check_column(self.schema, column, text)
            while True:
                offset = file.tell()
                try:
                    batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), self.schema)
                except EOFError:
                    break
                self._offsets.append((offset, batch.num_rows, batch.column(column).nbytes))

    def parts(self) -> Iterator[tuple[object, int, int]]:
        for group in _grouped(self._offsets):
            yield [o for o, _, _ in group], sum(n for _, n, _ in group), sum(s for _, _, s in group)

    def ends(self, part) -> np.ndarray | None:
        return None

    def read(self, part) -> Iterator[pa.Array]:
        with pa.OSFile(self.name) as file:
            for offset in part:
                file.seek(offset)
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(file), self.schema)
                yield batch.column(self.column)


class ParquetFile:
    """A parquet file, on disk or behind a URL; a part is a list of row groups, and how
    many of its rows make a batch."""

    def __init__(self, path: str, column: str):
        self.name, self.column = path, column
        self.metadata: pq.FileMetaData | None = None
        with self._open() as file:
            _check_column(file.schema_arrow, column, path)
            self.metadata = file.metadata

    def _open(self) -> pq.ParquetFile:
        handle = self.name
        if "://" in self.name:
            from datasets.utils.file_utils import xopen

            handle = xopen(self.name, "rb")
        return pq.ParquetFile(handle, metadata=self.metadata, pre_buffer=False, buffer_size=BUFFER)

    def parts(self) -> Iterator[tuple[object, int, int]]:
        leaves = [self.metadata.schema.column(i).path for i in range(self.metadata.num_columns)]
        at = leaves.index(self.column)
        groups = []
        for number in range(self.metadata.num_row_groups):
            group = self.metadata.row_group(number)
            groups.append((number, group.num_rows, group.column(at).total_uncompressed_size))
        for some in _grouped(groups):
            rows, size = sum(n for _, n, _ in some), sum(s for _, _, s in some)
            yield ([g for g, _, _ in some], max(1, rows * BATCH // max(size, 1))), rows, size

    def ends(self, part) -> np.ndarray | None:
        return None

    def read(self, part) -> Iterator[pa.Array]:
        groups, rows = part
        options = {"columns": [self.column], "use_threads": False}
        with self._open() as file:
            for batch in file.iter_batches(min(rows, MOST_ROWS), groups, **options):
                yield batch.column(self.column)  # there are two for a.b beside a column a of structs


def _grouped(items: list[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Consecutive items (which, rows, bytes), as few as make PIECE bytes."""
    group, total = [], 0
    for item in items:
        group.append(item)
        total += item[2]
        if total >= PIECE:
            yield group
            group, total = [], 0
    if group:
        yield group


def _check_column(schema: pa.Schema, column: str, where: str) -> None:
    if column not in schema.names:
        raise CharlmError(
            f"data.text_column={column!r} is not a column of {where} (columns: {', '.join(schema.names)})"
        )
    if schema.names.count(column) > 1:
        raise CharlmError(f"data.text_column={column!r}: {where} has more than one column of that name")
    kind = schema.field(column).type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(test(kind) for test in (*tests, pa.types.is_null)):
        raise CharlmError(f"data.text_column={column!r} of {where} holds {kind}, not text")
