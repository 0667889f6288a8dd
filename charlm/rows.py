"""Where text comes from: `datasets`, read as Arrow batches of UTF-8.

A source is one split of a dataset. It yields Rows: the bytes of a few megabytes of text, where each row of it
starts, and which rows end a document. Rows of Arrow are never turned into Python strings.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.builder import Key
from datasets.packaged_modules.text.text import Text, TextConfig

from charlm.config import BUILDERS, CharlmError, DataConfig
from charlm.sources import describe, stdlib_files

CHUNK = 4 << 20  # bytes of a file per row
BATCH = 8 << 20  # bytes of text per batch, unless one row is longer


@dataclass
class Rows:
    """A batch of text.

    utf8: uint8[n]. offsets: int64[rows + 1], where the rows start in utf8 (the last: n).
    ends: bool[rows], True where a row is the last of its document. first: number of the first row.
    """

    utf8: np.ndarray
    offsets: np.ndarray
    ends: np.ndarray
    first: int


@dataclass
class ExactTextConfig(TextConfig):
    """strict: refuse bytes that are not UTF-8. document: 'file' or 'line'."""

    strict: bool = True
    document: str = "file"


class ExactText(Text):
    """The text builder of `datasets`, but exact: that one turns \\r and \\r\\n into \\n.

    Files are found, downloaded, unpacked and cached by `datasets`. Columns: text (large_binary) and
    ends (bool); a file is rows of up to CHUNK bytes, cut between characters.
    """

    BUILDER_CONFIG_CLASS = ExactTextConfig

    def _info(self):
        columns = {"text": datasets.Value("large_binary"), "ends": datasets.Value("bool")}
        return datasets.DatasetInfo(features=datasets.Features(columns))

    def _generate_tables(self, base_files, files_iterables):
        rows = self._lines if self.config.document == "line" else self._chunks
        for shard, (base, files) in enumerate(zip(base_files, files_iterables, strict=True)):
            number = 0
            for file in files:
                where = file if str(base) in str(file) else f"{base} ({file})"
                with open(file, "rb") as handle:
                    for texts, ends in rows(handle, where):
                        table = pa.table({"text": pa.array(texts, pa.large_binary()), "ends": ends})
                        yield Key(shard, number), table
                        number += 1

    def _chunks(self, handle, where: str) -> Iterator[tuple[list[bytes], list[bool]]]:
        """One row at a time, cut between characters; the last row of the file ends the document."""
        offset, row, more = 0, b"", handle.read(CHUNK)
        while True:
            row += more
            more = handle.read(CHUNK)
            keep = len(row) - (_unfinished(row) if more else 0)
            self._check(row[:keep], where, offset)
            yield [row[:keep]], [not more]
            if not more:
                return
            offset += keep
            row = row[keep:]

    def _lines(self, handle, where: str) -> Iterator[tuple[list[bytes], list[bool]]]:
        """Every line, without its newline, is a document."""
        offset = 0
        while text := handle.read(CHUNK):
            text += handle.readline()
            self._check(text, where, offset)
            offset += len(text)
            lines = text.removesuffix(b"\n").split(b"\n")
            yield lines, [True] * len(lines)

    def _check(self, text: bytes, where: str, offset: int) -> None:
        if self.config.strict:
            try:
                text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise CharlmError(
                    f"{where}: byte {offset + error.start:,} (0x{text[error.start]:02X}) is not UTF-8 "
                    f"({error.reason}); convert the file, or read it as bytes with vocab.bytes_only=true"
                ) from None


def _unfinished(row: bytes) -> int:
    """How many bytes at the end of a row belong to a character that goes on in the next."""
    for back in range(1, min(3, len(row)) + 1):
        byte = row[-back]
        if byte >= 0xC0:
            return back if back < 2 + (byte >= 0xE0) + (byte >= 0xF0) else 0
        if byte < 0x80:
            return 0
    return 0


class Source:
    """One split of a dataset as batches of Rows."""

    def __init__(self, dataset: datasets.Dataset, column: str, data: DataConfig, bytes_only: bool):
        if column not in dataset.column_names:
            raise CharlmError(
                f"data.text_column={column!r} is not a column of {data.source} "
                f"(columns: {', '.join(dataset.column_names)})"
            )
        if dataset._indices is not None:  # .data ignores a selection of rows
            dataset = dataset.flatten_indices()
        kind = dataset.data.schema.field(column).type
        texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        if not texts and not binary and not pa.types.is_null(kind):
            raise CharlmError(f"data.text_column={column!r} of {data.source} holds {kind}, not text")
        self.column, self.data, self.bytes_only = column, data, bytes_only
        self.table = dataset.data.table
        self.has_ends = data.source in ("text", "stdlib")  # read by ExactText

    def batches(self) -> Iterator[Rows]:
        """All rows in order, at most data.max_documents documents."""
        documents = number = 0
        for record in self.table.to_batches():
            texts = record.column(self.column)
            ends = np.ones(len(texts), bool)
            if self.has_ends:
                ends = record.column("ends").to_numpy(zero_copy_only=False)
            utf8, offsets = utf8_of(texts)
            start = 0
            while start < len(ends):
                stop = int(np.searchsorted(offsets, offsets[start] + BATCH, side="right")) - 1
                stop = min(max(stop, start + 1), len(ends))
                part = ends[start:stop]
                last = (
                    self.data.max_documents is not None and documents + part.sum() >= self.data.max_documents
                )
                if last:
                    stop = start + 1 + int(np.flatnonzero(part)[self.data.max_documents - documents - 1])
                    part = ends[start:stop]
                yield Rows(
                    utf8[offsets[start] : offsets[stop]],
                    offsets[start : stop + 1] - offsets[start],
                    part,
                    number,
                )
                if last:
                    return
                documents += int(part.sum())
                number += stop - start
                start = stop

    def total_bytes(self) -> int:
        """Bytes of text in all rows, for progress bars."""
        return sum(
            int(offsets[-1] - offsets[0]) for _, offsets in map(utf8_of, self.table[self.column].chunks)
        )


def utf8_of(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The buffers of a string or binary array: utf8 uint8[n], offsets int64[rows + 1]; null is empty."""
    if pa.types.is_null(texts.type):
        return np.empty(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    if texts.null_count:
        texts = pc.fill_null(texts, b"" if "binary" in str(texts.type) else "")
    wide = pa.types.is_large_string(texts.type) or pa.types.is_large_binary(texts.type)
    _, offset_buffer, value_buffer = texts.buffers()
    if len(texts) == 0 or offset_buffer is None:
        return np.empty(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    offsets = np.frombuffer(offset_buffer, np.int64 if wide else np.int32)
    offsets = offsets[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    values = np.frombuffer(value_buffer, np.uint8) if value_buffer is not None else np.empty(0, np.uint8)
    return values[offsets[0] : offsets[-1]], offsets - offsets[0]


def open_sources(data: DataConfig, bytes_only: bool) -> dict[str, Source]:
    """The splits to read: 'train', and 'validation' and 'test' where they are the dataset's own.

    Raises CharlmError for anything that cannot be found, reached or read.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    wanted = {"train": data.split}
    wanted |= {s: n for s in ("validation", "test") if isinstance(n := getattr(data, s), str)}
    try:
        load = _opener(data, bytes_only)
        return {split: Source(load(name), _column(data), data, bytes_only) for split, name in wanted.items()}
    except CharlmError:
        raise
    except Exception as error:
        raise _explained(error, data) from error


def _column(data: DataConfig) -> str:
    return data.text_column if data.source not in ("text", "stdlib", "literal") else "text"


def _opener(data: DataConfig, bytes_only: bool):
    """A function from the name of a dataset's split to that split."""
    if data.source == "literal":
        splits = {"train": datasets.Dataset.from_dict({"text": [data.text]})}
    elif data.source in ("text", "stdlib"):
        files = [str(p) for p in stdlib_files()] if data.source == "stdlib" else data.data_files
        builder = ExactText(hash="charlm-1", data_files=files, strict=not bytes_only, document=data.document)
        builder.download_and_prepare()
        splits = builder.as_dataset()
    else:
        options = {"data_files": data.data_files} if data.data_files else {}
        if data.source == "csv":
            options["keep_default_na"] = False  # pandas would read the text "NA" as nothing
        if data.source not in BUILDERS:
            options |= {"name": data.name or None, "revision": data.revision or None}
        return lambda name: datasets.load_dataset(data.source, split=name, **options)

    def load(name: str) -> datasets.Dataset:
        if name not in splits:
            raise CharlmError(f"{data.source} has no split {name!r} (splits: {', '.join(splits)})")
        return splits[name]

    return load


def _explained(error: BaseException, data: DataConfig) -> CharlmError:
    """What went wrong inside `datasets`, in the user's terms."""
    what = describe(data)
    chain = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    for e in chain:
        if isinstance(e, CharlmError):
            return e
        if isinstance(e, OSError) and e.errno == 28:
            cache = datasets.config.HF_DATASETS_CACHE
            return CharlmError(f"{what}: no space left for the cache of datasets in {cache}; set HF_HOME")
    message = " ".join(str(error).split()) or type(error).__name__
    if "corresponds to no data" in message:
        return CharlmError(f"{what}: the text is empty")
    lost = isinstance(error, FileNotFoundError) and "://" in message
    if (
        lost
        or isinstance(error, ConnectionError)
        or any(w in message.lower() for w in ("connect", "offline"))
    ):
        return CharlmError(
            f"{what}: cannot be reached ({message}). Run `charlm prepare` where there is a network; nodes "
            f"without one find the prepared corpus in data.dir (HF_HUB_OFFLINE=1 spares them the wait)"
        )
    deepest = " ".join(str(chain[-1]).split())
    return CharlmError(
        f"{what}: datasets cannot read it: {message}" + (f" ({deepest})" if deepest not in message else "")
    )
