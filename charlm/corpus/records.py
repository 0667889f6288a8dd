"""How the content of JSON and CSV files becomes rows of text."""

import csv
import io
import json
import os
import re
from codecs import BOM_UTF8
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import PurePath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from charlm.config.fields import DataConfig
from charlm.corpus.texts import Span, Text, WikiExtractor, lines_of, not_utf8
from charlm.errors import CharlmError
from charlm.files import Local

NOT_UTF8 = "not UTF-8; set data.encoding"

csv.field_size_limit((1 << 31) - 1)


def joined(columns: list[pa.Array]) -> pa.Array:
    """The texts of several columns, row by row, with line breaks between those that are not null."""
    texts, line_break = columns[0], pa.scalar(b"\n", pa.large_binary())
    for column in columns[1:]:
        first, second = texts.cast(line_break.type), column.cast(line_break.type)
        both = pc.binary_join_element_wise(first, second, line_break)  # null where one of them is
        texts = pc.coalesce(both, first, second)
    return texts


def no_column(column: str, file: str, names: list[str]) -> CharlmError:
    """The error of a file that does not have one column of that name."""
    problem, advice = ("more than one", "rename one") if column in names else ("not a", "name one of them")
    problem = f"data.text_column={column!r} is {problem} column of {file}"
    return CharlmError(f"{problem} (columns: {', '.join(names)}); {advice}")


class Table:
    """The rows of files of one format, in some columns; bad ones may be left out. A subclass has _rows, and
    spans as those of Text, which raise CharlmError for a bad row and for a file that lacks a column."""

    def __init__(self, data: DataConfig):
        self.data, self.names, self.skips = data, data.columns, data.on_bad_line == "skip"

    def read(self, span: Span) -> pa.Array:
        """large_binary[rows], in the order of the file."""
        rows = [texts for _, texts, *_ in self._rows(span) if texts]
        return joined([pa.array([row[k] for row in rows], pa.large_binary()) for k in range(len(self.names))])

    def place_of(self, span: Span, row: int, byte: int) -> str:
        """Where one of the rows of read is."""
        return span.place([i for i, texts, *_ in self._rows(span) if texts][row])

    def _skip(self, place: str, problem: str) -> None:
        """Raise the error of a bad row, unless such rows are left out."""
        if not self.skips:
            raise CharlmError(f"{place}: {problem}; mend it, or leave such rows out: --data.on_bad_line skip")


class Json(Table):
    """JSON: an object per line, read by Arrow; or an array of objects or strings, or objects over several
    lines, read by Python, which holds the file in memory. Python also reads what Arrow refuses."""

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.found: dict[Local, dict[str, None]] = defaultdict(dict)  # the columns of a file
        self.schema = pa.schema([(name, pa.string()) for name in self.names])

    def spans(self, file: Local, piece: int) -> Iterator[Span]:
        head = Span(file, 0, 1 << 20).read()
        low, rows, found = 3 * head.startswith(BOM_UTF8), 0, self.found[file]
        whole = re.match(rb"\s*(\[|[^\n]*[{\[,:][ \t\r]*\n)", head[low:])
        one = [Span(file, low, os.path.getsize(file.path))]
        for span in one if whole else lines_of(file, low, piece):
            columns = self._by_arrow(span)
            found |= {c: None for c, x in zip(self.names, columns, strict=False) if x.null_count < len(x)}
            known = columns and found.keys() >= {*self.names}  # else all are null, or there is no such column
            kept = [True] * len(columns[0]) if known else [t is not None for _, t in self._rows(span)]
            rows += sum(kept)
            yield span._replace(rows=sum(kept), skipped=kept.count(False))
        if rows and (lacking := [name for name in self.names if name not in found]):
            raise no_column(lacking[0], file.name, [*found])

    def read(self, span: Span) -> pa.Array:
        columns = self._by_arrow(span)
        return joined(columns) if columns else super().read(span)

    def _by_arrow(self, span: Span) -> list[pa.Array]:
        """The columns; none where Arrow refuses a row, or does not take each line for one."""
        block, nested = span.read(), any("." in name for name in self.names)
        begins = re.findall(rb"\n[ \t\r]*([^ \t\r\n])", b"\n" + block)
        # With null in the place of an object, Arrow ends the process. It does not check UTF-8.
        if nested or not span.line or {*begins} != {b"{"} or (self.skips and not_utf8(block)):
            return []
        options = pj.ReadOptions(use_threads=False, block_size=min(len(block) + 64, (1 << 31) - 1))
        chosen = pj.ParseOptions(explicit_schema=self.schema, unexpected_field_behavior="ignore")
        try:
            table = pj.read_json(pa.BufferReader(block), options, chosen)
        except pa.ArrowInvalid:
            return []
        columns = [table[name].cast(pa.large_binary()).combine_chunks() for name in self.names]
        return columns if len(table) == len(begins) else []

    def _rows(self, span: Span) -> Iterator[tuple[int, list[bytes | None] | None]]:
        """(line or row in the span, its columns), without columns for a row that is left out."""
        block, found = span.read(), self.found[span.file]
        errors = "surrogateescape" if not_utf8(block) else "strict"
        text = block.decode("utf-8", errors)
        for i, value in _values_of_lines(text) if span.line else _values_of_file(text, span):
            try:
                texts = [self._text(value, name, found, errors) for name in self.names]
            except ValueError as error:
                self._skip(span.place(i), str(error))
                texts = None
            yield i, texts

    def _text(self, value, name: str, found: dict[str, None], errors: str) -> bytes | None:
        """A column of one row, None for null. Raises ValueError with what is wrong."""
        if isinstance(value, dict):
            inner = (f"{key}.{k}" for key, x in value.items() if isinstance(x, dict) for k in x)
            found.update(dict.fromkeys(chain(value, inner) if name not in found else ()))
            for key in [name] if name in value else name.split("."):
                if not isinstance(value, dict) or key not in value:
                    return None
                value = value[key]
        elif not isinstance(value, str) or len(self.names) > 1:
            raise ValueError("not JSON" if value is None else "neither an object nor text")
        found[name] = None
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
        if self.skips and not_utf8(text):
            raise ValueError(NOT_UTF8)
        return text


_TWICE = object()  # the value of a key that is there twice


def _object(pairs: list[tuple[str, object]]) -> dict:
    counts = Counter(key for key, _ in pairs)
    return {key: value if counts[key] == 1 else _TWICE for key, value in pairs}


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_object)


def _values_of_lines(text: str) -> Iterator[tuple[int, dict | None]]:
    """(line, its object); None for what is none."""
    for i, line in enumerate(text.split("\n")):
        if line.strip(" \t\r"):
            try:
                value = _DECODER.decode(line)
            except (ValueError, RecursionError):
                value = None
            yield i, value if isinstance(value, dict) else None


def _values_of_file(text: str, span: Span) -> Iterator[tuple[int, object]]:
    """(number, value) of values in a row, or in an array. Raises CharlmError for what is not JSON."""
    array, end, space = text.lstrip().startswith("["), 0, re.compile(r"[ \t\r\n]*")
    try:
        values = _DECODER.decode(text) if array else []
        while not array and (low := space.match(text, end).end()) < len(text):
            value, end = _DECODER.raw_decode(text, low)
            values.append(value)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise CharlmError(f"{span.file.name}: line {line:,}: not JSON; mend it") from None
    yield from enumerate(values)


class Csv(Table):
    """CSV (RFC 4180) with any delimiter, with a header or without, read by Python. Lines are decoded as
    latin-1, so that a character is a byte."""

    def __init__(self, data: DataConfig):
        super().__init__(data)
        self.quoting = csv.QUOTE_MINIMAL if data.quotes else csv.QUOTE_NONE
        self.layouts: dict[Local, tuple[str, int, list[int]]] = {}  # delimiter, fields, those of the columns

    def spans(self, file: Local, piece: int) -> Iterator[Span]:
        delimiter = self.data.field_delimiter or ("\t" if ".tsv" in PurePath(file.name).suffixes else ",")
        with open(file.path, encoding="latin-1", newline="") as lines:
            low, kept = 3 * (lines.read(3) == BOM_UTF8.decode("latin-1")), []
            lines.seek(low)
            first = next(filter(None, csv.reader(lines, delimiter=delimiter, quoting=self.quoting)), [])
            names = [str(i + 1) for i in range(len(first))]
            if self.data.header:
                names = [name.encode("latin-1").decode("utf-8", "replace") for name in first]
            for name in self.names if names else ():
                if names.count(name) != 1:
                    error = no_column(name, file.name, names)
                    raise CharlmError(f"{error}, or see data.field_delimiter, data.header and data.encoding")
            self.layouts[file] = delimiter, len(names), [names.index(name) for name in self.names if names]
            lines.seek(low)
            for i, texts, start in self._rows(span := Span(file, low, low, line=1), lines):
                if start - span.low >= piece:
                    yield span._replace(high=start, rows=sum(kept), skipped=kept.count(False))
                    span, kept = Span(file, start, start, line=i + 1), []
                kept.append(texts is not None)
        if kept:
            high = os.path.getsize(file.path)
            yield span._replace(high=high, rows=sum(kept), skipped=kept.count(False))

    def _rows(self, span: Span, lines: Iterable[str] | None = None) -> Iterator[tuple]:
        """As of Json, with the offset of each row. lines: of the whole file."""
        (delimiter, width, columns), low = self.layouts[span.file], span.low
        header = self.data.header and span.line == 1

        def counted() -> Iterator[str]:
            nonlocal low
            for line in lines or io.StringIO(span.read().decode("latin-1"), newline=""):
                low += len(line)
                yield line

        reader = csv.reader(counted(), delimiter=delimiter, strict=True, quoting=self.quoting)
        while True:
            i, start, problem, row = reader.line_num, low, "", []
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error) or reader.line_num > i + 1:  # that may be any number of rows
                    advice = "mend it, or set data.quotes=false"
                    raise CharlmError(f"{span.place(i)}: a quote is not closed; {advice}") from None
                quote = 'a quote within quotes is not doubled (""; see data.quotes)'
                problem = quote if "expected after" in str(error) else str(error)
            blank = not row or (len(row) == 1 < width and not row[0].strip(" \t"))
            if not problem and (blank or header):
                header &= blank
                continue
            texts = [row[k].encode("latin-1") if k < len(row) else None for k in columns]
            if any(row[width:]):
                problem = "more fields than the header"
            elif self.skips and any(text and not_utf8(text) for text in texts):
                problem = NOT_UTF8
            if problem:
                self._skip(span.place(i), problem)
            yield i, None if problem else texts, start


ROWS = {"json": Json, "csv": Csv, "text": Text, "wikiextractor": WikiExtractor}
