"""The rows of JSON, CSV and text files: what finds them, and what is wrong with bad ones."""

import codecs
import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from charlm.config.fields import DataConfig
from charlm.corpus import kernels
from charlm.corpus.kernels import BAD, MISSING, NO_TEXT, SURROGATE, TEXT, TWICE, UNCLOSED
from charlm.corpus.parsers import SKIP, STATE, Parsed, parse_json
from charlm.errors import CharlmError
from charlm.files import Local

_OF_COLUMN = {
    SURROGATE: "holds a lone surrogate, half of a character",
    NO_TEXT: "holds no text",
    TWICE: "is there twice",
}
_OF_ROW = {
    BAD: "not JSON",
    kernels.QUOTE: 'a quote within quotes is not doubled ("")',
    kernels.FIELDS: "more fields than the header",
    UNCLOSED: "a quote is not closed",
    kernels.NOT_UTF8: "not UTF-8; set data.encoding",
}


@dataclass(frozen=True, eq=False)
class Span:
    """Bytes low to high of a file. last: they end a row. state: of the parser before them; columns: its other
    arguments, for each column."""

    file: Local
    low: int
    high: int
    last: bool
    state: np.ndarray | None = None
    columns: tuple[tuple, ...] = ()

    def read(self) -> bytes:
        with open(self.file.path, "rb") as file:
            file.seek(self.low)
            return file.read(self.high - self.low)


def columns_of(data: DataConfig) -> list[str]:
    """The names of data.text_column."""
    return [*map(str, data.text_column if isinstance(data.text_column, list) else [data.text_column])]


def joined(columns: list[pa.Array]) -> pa.Array:
    """The texts of several columns, row by row, with line breaks between those that are not null."""
    texts, empty, line_break = columns[0], *(pa.scalar(s, pa.large_binary()) for s in (b"", b"\n"))
    for column in columns[1:]:  # null_handling="skip" of Arrow's join loses rows that are all null
        first, second = texts.cast(empty.type), column.cast(empty.type)
        between = pc.if_else(pc.and_(first.is_valid(), second.is_valid()), line_break, empty)
        both = pc.binary_join_element_wise(first.fill_null(b""), between, second.fill_null(b""), empty)
        texts = pc.if_else(pc.or_(first.is_valid(), second.is_valid()), both, pa.scalar(None, empty.type))
    return texts


def lacks(column: str, file: str, names: list[str]) -> CharlmError:
    """The error of a file without a column."""
    problem = f"data.text_column={column!r} is not a column of {file}"
    return CharlmError(f"{problem} (columns: {', '.join(names)})")


class Rows:
    """The rows of files, in some columns. A row longer than a block comes in slices."""

    kernel: Callable
    marks: bytes  # every row but the last ends with one of these bytes

    def __init__(self, data: DataConfig):
        self.names, self.data = columns_of(data), data
        self.left_out: list[int] = []  # rows that are skipped, of every span
        self.skips = data.on_bad_line == "skip"
        # Columns are joined row by row, and data.normalize needs whole texts.
        self.slices = len(self.names) == 1 and not data.normalize

    def begin(self, file: Local) -> tuple[int, np.ndarray, np.ndarray, list[tuple]]:
        """Where the rows of a file begin; the state of the parser there, and between rows; Span.columns."""
        raise NotImplementedError

    def spans(self, file: Local, piece: int) -> Iterator[tuple[Span, np.ndarray, int]]:
        """About piece bytes at a time: (span, bool[rows], which rows end a document, bytes). Raises
        CharlmError for a bad row, and for a file that lacks a column."""
        low, state, between, columns = self.begin(file)
        size, length, rows, found = os.path.getsize(file.path), piece, 0, np.zeros(len(self.names), bool)
        while low < size:
            high = min(to_character(file.path, low + length), size)
            span = Span(file, low, high, high == size, state, columns)
            parsed = self._parse(span)
            first, good = parsed[0], self._good(span, parsed)
            found |= [(p.kinds != MISSING).any() for p in parsed]
            rows += len(good)
            self.left_out.append(len(good) - int(good.sum()))
            if len(good) or span.last:
                high = size if span.last else low + first.done
                yield replace(span, high=high, last=True), np.ones(good.sum(), bool), high - low
                low, state, length = high, between, piece
            elif first.used and (self.slices or not first.state[0]):
                if first.state[0]:
                    yield span, np.zeros(1, bool), first.used
                low, state, length = low + first.used, first.state, piece
            else:
                length *= 2
        if rows and not found.all():
            raise lacks(self.names[int(np.argmin(found))], file.name, self.keys(file))

    def keys(self, file: Local) -> list[str]:
        """The columns of a file, in an error."""
        return []

    def _run(self, data: bytes, state: np.ndarray, column: tuple, last: bool) -> Parsed:
        return Parsed(self.kernel, self.marks, data, state, column, last)

    def _parse(self, span: Span) -> list[Parsed]:
        """Of every column."""
        data = span.read()
        parsed = [self._run(data, span.state, column, span.last) for column in span.columns]
        for column in parsed if self.skips else ():
            column.mark_not_utf8()
        return parsed

    def _good(self, span: Span, parsed: list[Parsed]) -> np.ndarray:
        """bool[rows]: which rows are not skipped. Raises CharlmError for those that may not be."""
        kinds = np.stack([p.kinds for p in parsed])
        good, bad = (kinds <= SURROGATE).all(0), (kinds > TEXT).any(0)
        fatal = ((kinds == UNCLOSED) | (kinds == BAD) & (not span.columns[0][-1])).any(0)
        fatal[:1] |= ~good[:1] & (span.state[0] == 1)  # its first slices are in the text already
        if (bad := fatal if self.skips else bad).any():
            row = int(np.argmax(bad))
            kind, name = int(kinds[:, row].max()), self.names[int(kinds[:, row].argmax())]
            problem = f"data.text_column={name!r} {_OF_COLUMN[kind]}" if kind in _OF_COLUMN else _OF_ROW[kind]
            advice = "mend it" if fatal[row] else "mend it, or leave such rows out: data.on_bad_line=skip"
            raise CharlmError(f"{self.place(span, int(parsed[0].starts[row]))}: {problem}; {advice}")
        return good

    def place(self, span: Span, offset: int) -> str:
        """The file and the line of a byte of a span."""
        stop = span.low + offset
        blocks = (Span(span.file, low, min(low + (1 << 20), stop), True) for low in range(0, stop, 1 << 20))
        return f"{span.file.name}: line {1 + sum(block.read().count(10) for block in blocks):,}"

    def read(self, span: Span) -> pa.Array:
        """large_binary[rows], in the order of the file; or the slice of one row."""
        parsed = self._parse(span)
        rows = joined([column.texts() for column in parsed])
        bad = (np.stack([p.kinds for p in parsed]) > SURROGATE).any(0)
        return rows.filter(pa.array(~bad)) if bad.any() else rows

    def place_of(self, span: Span, row: int, byte: int) -> str:
        """Where a byte of one of the rows of read is: for data.source=text exactly, else its line."""
        parsed = self._parse(span)
        good = (np.stack([p.kinds for p in parsed]) <= SURROGATE).all(0)
        return self.place(span, int(parsed[0].starts[good][row]) + byte if len(good) else byte)


class Json(Rows):
    """JSON: an object per line; objects over any lines; or an array of objects or strings."""

    kernel, marks = staticmethod(parse_json), b'\n}"'

    def begin(self, file: Local) -> tuple[int, np.ndarray, np.ndarray, list[tuple]]:
        head = Span(file, 0, 1 << 20, True).read()
        low = len(head) - len(head.removeprefix(codecs.BOM_UTF8).lstrip())
        state, lines = np.zeros(STATE, np.int64), head[low : low + 1] != b"["
        size = os.path.getsize(file.path)
        if not lines and not Span(file, max(size - 999, 0), size, True).read().rstrip().endswith(b"]"):
            raise CharlmError(f"{file.name}: cut off: the array that it begins with does not end")
        if lines and b"\n" in head[low:]:
            line = self._run(head[low : head.index(b"\n", low)], state, self._column("", False), False)
            open_object = line.state[0] and line.state[1] < SKIP
            lines = BAD in line.kinds or not (open_object or len(line.kinds) > 1)
        return low, state, state, [self._column(name, lines) for name in self.names]

    @staticmethod
    def _column(name: str, lines: bool) -> tuple:
        keys = [key.encode() for key in name.split(".")]
        bounds = np.cumsum([0, *(len(key) + 1 for key in keys)])
        return np.frombuffer(name.encode(), np.uint8), bounds, lines

    def keys(self, file: Local) -> list[str]:
        head = Span(file, 0, 1 << 20, True).read().decode("utf-8-sig", "replace").lstrip(" \t\r\n[")
        try:
            return [*json.JSONDecoder().raw_decode(head)[0]]
        except (ValueError, TypeError):
            return []


class Csv(Rows):
    """CSV (RFC 4180) with any delimiter, with a header or without."""

    kernel, marks = staticmethod(kernels.parse_csv), b"\r\n"

    def begin(self, file: Local) -> tuple[int, np.ndarray, np.ndarray, list[tuple]]:
        delimiter = self.data.field_delimiter or ("\t" if ".tsv" in PurePath(file.name).suffixes else ",")
        csv.field_size_limit(1 << 30)
        read: list[str] = []
        with open(file.path, encoding="utf-8", errors="surrogateescape", newline="") as lines:
            kept = (read.append(line) or line.removeprefix("\ufeff") for line in lines)
            names = next(filter(None, csv.reader(kept, delimiter=delimiter)), [])
        low = len("".join(read).encode("utf-8", "surrogateescape"))
        if not self.data.header:
            low = 3 * "".join(read).startswith("\ufeff")
            names = [str(i + 1) for i in range(len(names))]
        columns = []
        for name in self.names if names else ():
            if name not in names:
                advice = "see data.field_delimiter, data.header and data.encoding"
                raise CharlmError(f"{lacks(name, file.name, names)}; {advice}")
            columns.append((names.index(name), len(names), ord(delimiter)))
        state = np.zeros(STATE, np.int64)
        return low if names else os.path.getsize(file.path), state, state, columns


class Split(Rows):
    """Documents of text files: lines, or what is between delimiters."""

    kernel = staticmethod(kernels.split_text)

    def __init__(self, data: DataConfig):
        super().__init__(replace(data, text_column="", on_bad_line="error"))
        self.by_line, delimiter = not data.delimiter, data.delimiter.encode()
        blank = not delimiter.strip(b"\r\n")
        self.marks = b"\n" if blank else delimiter[-1:]
        self.columns = [(np.frombuffer(b"" if blank else delimiter, np.uint8), self.by_line)]

    def begin(self, file: Local) -> tuple[int, np.ndarray, np.ndarray, list[tuple]]:
        state, between = np.zeros((2, STATE), np.int64)
        state[1], between[1] = not len(self.columns[0][0]) and not self.by_line, not self.by_line
        return 0, state, between, self.columns

    def place(self, span: Span, offset: int) -> str:
        return f"{span.file.name}: byte {span.low + offset:,}"


class Whole(Rows):
    """Text files, each a document, to the byte: a long one in slices."""

    def spans(self, file: Local, piece: int) -> Iterator[tuple[Span, np.ndarray, int]]:
        cut = partial(_cut, self.data.normalize) if self.data.normalize else to_character
        size, low, last = os.path.getsize(file.path), 0, False
        while not last:
            high = min(cut(file.path, low + piece), size)
            last = high == size
            yield Span(file, low, high, last), np.array([last]), high - low
            low = high

    def read(self, span: Span) -> pa.Array:
        return pa.array([span.read()], pa.large_binary())

    def place_of(self, span: Span, row: int, byte: int) -> str:
        return f"{span.file.name}: byte {span.low + byte:,}"


def text_rows(data: DataConfig) -> Rows:
    """The documents of text files."""
    return Split(data) if data.delimiter or data.document == "line" else Whole(data)


def to_character(path: str, offset: int) -> int:
    """The offset in a file of UTF-8, or up to 3 more, so that it is between characters."""
    with open(path, "rb") as file:
        file.seek(offset)
        tail = file.read(3)  # a character has at most 3 bytes beyond its first
    return offset + len(tail) - len(tail.lstrip(bytes(range(0x80, 0xC0))))


def _cut(steps: list[str], path: str, offset: int) -> int:
    """The first offset, from one on, where a text may be cut so that the steps of data.normalize change its
    parts as they change the whole: before a letter of ASCII; without text8 also before other characters that
    combine with none before them."""
    before = rb"[A-Za-z]" if "text8" in steps else rb"[\t -~]|[\xe4-\xe9][\x80-\xbf]{2}"
    with open(path, "rb") as file:
        file.seek(offset)
        while len(block := file.read(1 << 16)) > 2:
            if found := re.search(before, block):
                return offset + found.start()
            offset += len(block) - 2  # of a character that the block breaks off
            file.seek(offset)
    return os.path.getsize(path)


ROWS = {"json": Json, "csv": Csv, "text": text_rows}
