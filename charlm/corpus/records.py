"""How the content of JSON, CSV and text files becomes rows of text; and the steps of data.normalize."""

import csv
import io
import json
import mmap
import os
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from charlm.config.fields import DataConfig
from charlm.errors import CharlmError
from charlm.files import Local

NOT_UTF8 = "not UTF-8; set data.encoding"

csv.field_size_limit((1 << 31) - 1)


@dataclass(frozen=True)
class Span:
    """Bytes low to high of a file: whole rows, or a slice of one. last: they end a row. line: the number of its
    first line, rows and skipped: how many rows it has and how many bad ones, where they are counted at once."""

    file: Local
    low: int
    high: int
    last: bool = True
    line: int = 1
    rows: int = 1
    skipped: int = 0

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
    """The rows of files, in some columns."""

    def __init__(self, data: DataConfig):
        self.data, self.names, self.skips = data, columns_of(data), data.on_bad_line == "skip"

    def spans(self, file: Local, piece: int) -> Iterator[Span]:
        """The whole file, about piece bytes at a time."""
        yield Span(file, 0, os.path.getsize(file.path))

    def count(self, span: Span) -> tuple[np.ndarray, int]:
        """bool[rows], which rows end a document; and how many are left out. Raises CharlmError for a bad row."""
        return np.ones(len(self.read(span)), bool), 0

    def check(self) -> None:
        """Raise CharlmError for what only whole files show, after count of all spans."""

    def read(self, span: Span) -> pa.Array:
        """large_binary[rows], in the order of the file."""
        raise NotImplementedError

    def place_of(self, span: Span, row: int, byte: int) -> str:
        """Where a byte of one of the rows of read is."""
        return span.file.name

    def _skip(self, place: str, problem: str) -> None:
        """Raise the error of a bad row, unless such rows are left out."""
        if not self.skips:
            raise CharlmError(f"{place}: {problem}; mend it, or leave such rows out: data.on_bad_line=skip")


class Json(Rows):
    """JSON: an object per line, read by Arrow; or objects over any lines, or an array of objects or strings,
    read by Python, which holds the file in memory."""

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.found: set[tuple[Local, str]] = set()  # the columns that a file has
        self.keys: dict[Local, list[str]] = {}  # of its first object, while some are not found
        tree: dict = {}
        for keys in chain(([name] for name in self.names), (name.split(".") for name in self.names)):
            node = tree
            for key in keys:
                node = node.setdefault(key, {})
        self.schema = pa.schema(_fields(tree))

    def spans(self, file: Local, piece: int) -> Iterator[Span]:
        with open(file.path, "rb") as opened:
            head = opened.read(1 << 20)
        low = 3 * head.startswith(BOM_UTF8)
        if _by_line(head[low:].decode("utf-8", "replace").lstrip()):
            yield from _lines(file, low, piece)
        else:
            yield Span(file, low, os.path.getsize(file.path), last=False)

    def count(self, span: Span) -> tuple[np.ndarray, int]:
        texts, skipped = self._parse(span)
        return np.ones(len(texts), bool), skipped

    def check(self) -> None:
        for file, keys in self.keys.items():
            for name in self.names:
                if (file, name) not in self.found:
                    raise lacks(name, file.name, keys)

    def read(self, span: Span) -> pa.Array:
        return self._parse(span)[0]

    def place_of(self, span: Span, row: int, byte: int) -> str:
        lines = span.read().split(b"\n") if span.last else []
        rows = [i for i, line in enumerate(lines) if line.strip()]
        return self._place(span, rows[row] if rows else row)

    def _place(self, span: Span, i: int) -> str:
        """Of line i of a span; or of row i, where rows are not lines."""
        if not span.last:
            return f"{span.file.name}: row {i + 1:,}"
        blocks = (Span(span.file, low, min(low + (1 << 20), span.low)) for low in range(0, span.low, 1 << 20))
        return f"{span.file.name}: line {1 + i + sum(block.read().count(10) for block in blocks):,}"

    def _parse(self, span: Span) -> tuple[pa.Array, int]:
        """The texts, and how many rows are left out."""
        columns = self._by_arrow(span.read()) if span.last else []
        for name, column in zip(self.names, columns, strict=False):
            if column.null_count < len(column):
                self.found.add((span.file, name))
        if columns and all((span.file, name) in self.found for name in self.names):
            return joined(columns), 0
        return self._by_python(span)  # also where all are null: it tells null from no column

    def _by_arrow(self, block: bytes) -> list[pa.Array]:
        """The columns; none where Arrow refuses a row, or does not take each line for one."""
        begins = re.findall(rb"\n[ \t\r]*([^ \t\r\n])", b"\n" + block)
        # With null in the place of an object, Arrow ends the process.
        if begins.count(b"{") < len(begins) or (self.skips and not_utf8(block) is not None):
            return []
        try:
            table = pj.read_json(
                pa.BufferReader(block),
                pj.ReadOptions(use_threads=False, block_size=len(block) + 64),
                pj.ParseOptions(explicit_schema=self.schema, unexpected_field_behavior="ignore"),
            )
            columns = [self._column(table, name) for name in self.names]
        except (pa.ArrowException, OverflowError):
            return []
        return columns if len(table) == len(begins) else []

    @staticmethod
    def _column(table: pa.Table, name: str) -> pa.Array:
        key, *keys = name.split(".")
        columns = [table[name], *([pc.struct_field(table[key], keys)] if keys else [])]
        return pc.coalesce(*columns).cast(pa.large_binary()).combine_chunks()

    def _by_python(self, span: Span) -> tuple[pa.Array, int]:
        """As _parse. Raises CharlmError for a row that may not be left out."""
        block, rows, skipped = span.read(), [], 0
        errors = "strict" if not_utf8(block) is None else "surrogateescape"
        values = _values_of_lines if span.last else _values_of_file
        for i, value in values(block.decode("utf-8", errors), span.file.name):
            try:
                rows.append([self._text(value, name, span.file, errors) for name in self.names])
            except ValueError as error:
                self._skip(self._place(span, i), str(error))
                skipped += 1
        columns = [pa.array([row[k] for row in rows], pa.large_binary()) for k in range(len(self.names))]
        return joined(columns), skipped

    def _text(self, value, name: str, file: Local, errors: str) -> bytes | None:
        """A column of one row, None for null. Raises ValueError with what is wrong."""
        if isinstance(value, dict):
            self.keys.setdefault(file, [*value])
            for key in [name] if name in value else name.split("."):
                if not isinstance(value, dict) or key not in value:
                    return None
                value = value[key]
        elif not isinstance(value, str) or len(self.names) > 1:
            raise ValueError("not JSON" if value is None else "not JSON of an object")
        self.found.add((file, name))
        if value is None:
            return None
        if not isinstance(value, str):
            problem = "is there twice" if value is _TWICE else "holds no text"
            raise ValueError(f"data.text_column={name!r} {problem}")
        try:
            text = value.encode("utf-8", errors)
        except UnicodeEncodeError:
            if not self.skips:
                problem = "holds a lone surrogate, half of a character"
                raise ValueError(f"data.text_column={name!r} {problem}") from None
            text = re.sub(r"[\ud800-\udfff]", "\ufffd", value).encode()
        if self.skips and not_utf8(text) is not None:
            raise ValueError(NOT_UTF8)
        return text


_TWICE = object()  # the value of a key that is there twice


def _object(pairs: list[tuple[str, object]]) -> dict:
    counts = Counter(key for key, _ in pairs)
    return {key: value if counts[key] == 1 else _TWICE for key, value in pairs}


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_object)


def _by_line(head: str) -> bool:
    """Whether a file that begins so has a row per line."""
    line = head.partition("\n")[0].rstrip()
    try:
        _DECODER.decode(line)
    except json.JSONDecodeError as error:  # neither cut off nor followed by another
        return head[:1] != "[" and error.pos < len(line) and line[error.pos] != "{"
    except RecursionError:
        pass
    return head[:1] != "["


def _values_of_lines(text: str, name: str) -> Iterator[tuple[int, object]]:
    """(line, its value); None for what is no object."""
    for i, line in enumerate(text.split("\n")):
        if line.strip(" \t\r"):
            try:
                value = _DECODER.decode(line)
            except (ValueError, RecursionError):
                value = None
            yield i, value if isinstance(value, dict) else None


def _values_of_file(text: str, name: str) -> Iterator[tuple[int, object]]:
    """(number, value) of each value in a row, or each of an array."""
    values, end = [], 0
    try:
        if text.lstrip().startswith("["):
            values = _DECODER.decode(text)
        else:
            while (low := len(text) - len(text[end:].lstrip())) < len(text):
                value, end = _DECODER.raw_decode(text, low)
                values.append(value)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise CharlmError(
            f"{name}: line {line:,}: not JSON ({getattr(error, 'msg', error)}); mend it"
        ) from None
    return enumerate(values)


def _fields(tree: dict) -> list[pa.Field]:
    return [pa.field(k, pa.struct(_fields(below)) if below else pa.string()) for k, below in tree.items()]


class Csv(Rows):
    """CSV (RFC 4180) with any delimiter, with a header or without. Lines are decoded as latin-1, so that a
    character is a byte."""

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.layouts: dict[Local, tuple[str, int, list[int]]] = {}  # delimiter, fields, those of the columns

    def spans(self, file: Local, piece: int) -> Iterator[Span]:
        suffixes, line = PurePath(file.name).suffixes, 1
        delimiter = self.data.field_delimiter or ("\t" if ".tsv" in suffixes else ",")
        with open(file.path, encoding="latin-1", newline="") as lines:
            low = 3 * (lines.read(3) == BOM_UTF8.decode("latin-1"))
            lines.seek(low)
            records = self._records(lines, delimiter, line, low)
            if not (first := next(records, None)):
                return
            names = [str(i + 1) for i in range(len(first[3]))]
            if self.data.header:
                _, line, low, row = first
                names = [name.encode("latin-1").decode("utf-8", "replace") for name in row]
            for name in self.names:
                if name not in names:
                    advice = "see data.field_delimiter, data.header and data.encoding"
                    raise CharlmError(f"{lacks(name, file.name, names)}; {advice}")
            self.layouts[file] = delimiter, len(names), [*map(names.index, self.names)]
            found = []
            for _, next_line, high, texts in self._rows(
                file, records if self.data.header else chain([first], records)
            ):
                found.append(bool(texts))
                if high - low >= piece:
                    yield Span(file, low, high, True, line, sum(found), found.count(False))
                    low, line, found = high, next_line, []
            if found:
                yield Span(file, low, high, True, line, sum(found), found.count(False))

    def count(self, span: Span) -> tuple[np.ndarray, int]:
        return np.ones(span.rows, bool), span.skipped

    def read(self, span: Span) -> pa.Array:
        rows = [texts for *_, texts in self._again(span) if texts]
        return joined([pa.array([row[k] for row in rows], pa.large_binary()) for k in range(len(self.names))])

    def place_of(self, span: Span, row: int, byte: int) -> str:
        return f"{span.file.name}: line {[line for line, *_, texts in self._again(span) if texts][row]:,}"

    def _again(self, span: Span) -> Iterator[tuple[int, int, int, list[bytes | None] | None]]:
        lines = io.StringIO(span.read().decode("latin-1"), newline="")
        return self._rows(span.file, self._records(lines, self.layouts[span.file][0], span.line, span.low))

    @staticmethod
    def _records(
        lines: Iterable[str], delimiter: str, line: int, low: int
    ) -> Iterator[tuple[int, int, int, list[str] | csv.Error]]:
        """(line, line after it, offset after it, fields) of records that are not empty. line, low: where they begin."""

        def counted():
            nonlocal low
            for text in lines:
                low += len(text)
                yield text

        reader, first, row = csv.reader(counted(), delimiter=delimiter, strict=True), line, []
        while row is not None:
            if row:
                yield first, line + reader.line_num, low, row
            first = line + reader.line_num
            try:
                row = next(reader, None)
            except csv.Error as error:
                row = error

    def _rows(self, file: Local, records) -> Iterator[tuple[int, int, int, list[bytes | None] | None]]:
        """The same with the columns of each row; None for one that is left out."""
        _, width, columns = self.layouts[file]
        for line, next_line, high, row in records:
            place, problem, texts = f"{file.name}: line {line:,}", "", []
            if isinstance(row, csv.Error):
                problem = str(row)
                if problem.startswith("unexpected end"):
                    raise CharlmError(f"{place}: a quote is not closed; mend it")
                if "expected after" in problem:
                    problem = 'a quote within quotes is not doubled ("")'
            elif len(row) == 1 < width and not row[0].strip(" \t"):
                continue
            elif any(row[width:]):
                problem = "more fields than the header"
            else:
                texts = [row[k].encode("latin-1") if k < len(row) else None for k in columns]
                if self.skips and any(text and not_utf8(text) is not None for text in texts):
                    problem = NOT_UTF8
            if problem:
                self._skip(place, problem)
            yield line, next_line, high, None if problem else texts


class Text(Rows):
    """Text files, to the byte: a document is a file, a line, or what is between delimiters. A long one comes in
    slices, but for lines."""

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.delimiter = data.delimiter.encode()
        self.by_line = data.document == "line" and not self.delimiter

    def spans(self, file: Local, piece: int) -> Iterator[Span]:
        if self.by_line:
            yield from _lines(file, 0, piece)
            return
        cut = partial(_cut, self.data.normalize) if self.data.normalize else to_character
        low = stop = rows = 0
        for start, end in self._documents_of(file):
            if rows and end - low > piece:
                yield Span(file, low, stop, rows=rows)
                rows = 0
            low, rows, stop = low if rows else start, rows + 1, end
            while end - low > piece and (high := cut(file.path, low + piece)) < end:
                yield Span(file, low, high, last=False)
                low = high
        if rows:
            yield Span(file, low, stop, rows=rows)

    def count(self, span: Span) -> tuple[np.ndarray, int]:
        if self.by_line:
            text = span.read()
            return np.ones(text.count(b"\n") + (not text.endswith(b"\n")), bool), 0
        return np.full(span.rows, span.last), 0

    def read(self, span: Span) -> pa.Array:
        text = span.read()
        if self.by_line:
            lines = pa.array([text.removesuffix(b"\n")], pa.large_binary())
            return pc.split_pattern(lines, pattern="\n").flatten()
        bounds = self._documents(text) if span.rows > 1 else [(0, len(text))]
        return pa.array([text[low:high] for low, high in bounds], pa.large_binary())

    def place_of(self, span: Span, row: int, byte: int) -> str:
        text = span.read()
        start = [*self._documents(text)][row][0] if span.rows > 1 else 0
        if self.by_line:
            start = len(text) - len(text.split(b"\n", row)[-1])
        return f"{span.file.name}: byte {span.low + start + byte:,}"

    def _documents_of(self, file: Local) -> Iterable[tuple[int, int]]:
        size = os.path.getsize(file.path)
        if not self.delimiter or not size:
            return [] if self.delimiter else [(0, size)]
        with open(file.path, "rb") as opened:
            return self._documents(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))

    def _documents(self, text: bytes | mmap.mmap) -> Iterator[tuple[int, int]]:
        """Where each document between delimiters begins and ends; empty ones are none. A line break before and
        after a delimiter belongs to it."""
        blank, low = not self.delimiter.strip(b"\r\n"), 0
        if blank:
            low = re.match(rb"(?:\r?\n)*", text).end()
        # Searched without the line break before it: a search is quick if its first byte is given.
        for match in re.finditer(
            rb"\n(?:\r?\n)+" if blank else re.escape(self.delimiter) + rb"(?:\r?\n)?", text
        ):
            high = match.start() - (not blank and text[match.start() - 1 : match.start()] == b"\n")
            if blank or high < match.start():
                high -= text[high - 1 : high] == b"\r"
            if high > low:
                yield low, high
            low = match.end()
        if low < len(text):
            yield low, len(text)


class WikiExtractor(Rows):
    """What WikiExtractor writes without --json: files of elements <doc …>, of which each is a document."""

    def read(self, span: Span) -> pa.Array:
        return pa.array(
            re.findall(rb"<doc [^\n]*>\n(.*?)\n*</doc>", span.read(), re.DOTALL), pa.large_binary()
        )


ROWS = {"json": Json, "csv": Csv, "text": Text, "wikiextractor": WikiExtractor}


def _lines(file: Local, low: int, piece: int) -> Iterator[Span]:
    """The bytes of a file from low on, cut between lines."""
    size = os.path.getsize(file.path)
    with open(file.path, "rb") as opened:
        while low < size:
            opened.seek(low + piece - 1)
            opened.readline()
            high = min(opened.tell(), size)
            yield Span(file, low, high)
            low = high


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


def not_utf8(text: bytes | memoryview) -> int | None:
    """The offset of the first byte that is not UTF-8; None if all are."""
    try:
        str(text, "utf-8")
    except UnicodeDecodeError as error:
        return error.start


_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_STEPS = {  # of data.normalize: calls of pyarrow.compute
    "nfc": [("utf8_normalize", "NFC")],
    "nfkc": [("utf8_normalize", "NFKC")],
    "lower": [("utf8_lower",)],
    "crlf": [("replace_substring", "\r\n", "\n")],
    "strip_bom": [("replace_substring", "\ufeff", "")],
    # the last steps of Matt Mahoney's filter, mattmahoney.net/dc/textdata
    "text8": [
        ("ascii_lower",),
        *(("replace_substring", str(digit), f" {word} ") for digit, word in enumerate(_DIGITS)),
        ("replace_substring_regex", "[^a-z]+", " "),
    ],
}


def normalized(texts: pa.Array, steps: Sequence[str]) -> pa.Array:
    """Texts, large_string[n], after some steps of data.normalize."""
    for function, *arguments in (call for step in steps for call in _STEPS[step]):
        texts = getattr(pc, function)(texts, *arguments)
    return texts
