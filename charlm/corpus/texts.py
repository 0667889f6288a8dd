"""How the content of text files becomes rows; what other formats share with it; and data.normalize."""

import mmap
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from charlm.config.fields import DataConfig
from charlm.files import Local


class Span(NamedTuple):
    """Bytes low to high of a file: rows, or a slice of one. last: they end a row. line: the number of the
    first line; 0 where rows have none. skipped: how many bad rows are left out."""

    file: Local
    low: int
    high: int
    rows: int = 1
    last: bool = True
    line: int = 0
    skipped: int = 0

    def read(self) -> bytes:
        with open(self.file.path, "rb") as file:
            file.seek(self.low)
            return file.read(self.high - self.low)

    def place(self, i: int) -> str:
        """Of line i of it, or row i."""
        return f"{self.file.name}: " + (f"line {self.line + i:,}" if self.line else f"row {i + 1:,}")


class Text:
    """Text files, to the byte: a document is a file, a line, or what is between delimiters; a line break on
    either side of a delimiter belongs to it. A document that is no line comes in slices where it is long."""

    def __init__(self, data: DataConfig):
        self.delimiter, self.by_line = data.delimiter.encode(), data.document == "line" and not data.delimiter
        self.steps = data.normalize or ()

    def spans(self, file: Local, piece: int) -> Iterator[Span]:
        """The whole file, about piece bytes at a time."""
        if self.by_line:
            yield from lines_of(file, 0, piece)
            return
        size, low, stop, rows = os.path.getsize(file.path), 0, 0, 0
        bounds: Iterable[tuple[int, int]] = [] if self.delimiter else [(0, size)]
        if self.delimiter and size:
            with open(file.path, "rb") as opened:
                text = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            bounds = self._between(text)
        for start, end in bounds:
            if rows and end - low > piece:
                yield Span(file, low, stop, rows)
                rows = 0
                if hasattr(mmap, "MADV_DONTNEED"):
                    text.madvise(mmap.MADV_DONTNEED)  # so that resident memory does not grow
            low, rows, stop = low if rows else start, rows + 1, end
            while end - low > piece and (high := _cut(self.steps, file.path, low + piece)) < end:
                yield Span(file, low, high, last=False)
                low = high
        if rows:
            yield Span(file, low, stop, rows)

    def read(self, span: Span) -> pa.Array:
        """large_binary[rows], in the order of the file."""
        text = span.read()
        if self.by_line:
            lines = pa.array([text.removesuffix(b"\n")], pa.large_binary())
            return pc.split_pattern(lines, pattern="\n").flatten()
        bounds = self._between(text) if span.rows > 1 else [(0, len(text))]
        return pa.array([text[low:high] for low, high in bounds], pa.large_binary())

    def place_of(self, span: Span, row: int, byte: int) -> str:
        """Where a byte is that is the first bad one of a row of read."""
        start = span.read().index(self.read(span)[row].as_py())
        return f"{span.file.name}: byte {span.low + start + byte:,}"

    def _between(self, text: bytes | mmap.mmap) -> Iterator[tuple[int, int]]:
        """Where each document between delimiters begins and ends; empty ones are none."""
        blank = not self.delimiter.strip(b"\r\n")
        low = re.match(rb"(?:\r?\n)*", text).end() if blank and not isinstance(text, bytes) else 0
        # A search is quick where it begins with given bytes: not with the line break before a delimiter.
        pattern = rb"\n(?:\r?\n)+" if blank else re.escape(self.delimiter) + rb"(?:\r?\n)?"
        for match in re.finditer(pattern, text):
            high = match.start()
            if blank or text[high - 1 : high] == b"\n":
                high -= not blank
                high -= text[high - 1 : high] == b"\r"
            if high > low:
                yield low, high
            low = match.end()
        if low < len(text):
            yield low, len(text)


class WikiExtractor(Text):
    """What WikiExtractor writes without --json: files of elements <doc …>, of which each is a document."""

    def spans(self, file: Local, piece: int) -> Iterator[Span]:
        span = Span(file, 0, os.path.getsize(file.path))
        yield span._replace(rows=len(self.read(span)))

    def read(self, span: Span) -> pa.Array:
        found = re.findall(rb"<doc [^\n]*>\n(.*?)\n*</doc>", span.read(), re.DOTALL)
        return pa.array(found, pa.large_binary())


def lines_of(file: Local, low: int, piece: int) -> Iterator[Span]:
    """The bytes of a file from low on, cut between lines, of which each is a row."""
    line = 1
    with open(file.path, "rb") as opened:
        opened.seek(low)
        while text := opened.read(piece) + opened.readline():
            breaks = text.count(b"\n")
            yield Span(file, low, low + len(text), breaks + (not text.endswith(b"\n")), line=line)
            low, line = low + len(text), line + breaks


def _cut(steps: Sequence[str], path: str, offset: int) -> int:
    """The first offset, from one on, where a text may be cut: between characters, and so that the steps of
    data.normalize change its parts as they change the whole: before a letter of ASCII; without text8 also
    before other characters that combine with none before them."""
    before = rb"[\t -~]|[\xe4-\xe9][\x80-\xbf]{2}" if steps else rb"[^\x80-\xbf]"
    with open(path, "rb") as file:
        file.seek(offset)
        while len(block := file.read(1 << 16)) > 2:
            if found := re.search(rb"[A-Za-z]" if "text8" in steps else before, block):
                return offset + found.start()
            offset += len(block) - 2  # of a character that the block breaks off
            file.seek(offset)
    return os.path.getsize(path)


def not_utf8(text: bytes | memoryview) -> UnicodeDecodeError | None:
    """The error at the first byte that is not UTF-8; None if all are."""
    try:
        str(text, "utf-8")
    except UnicodeDecodeError as error:
        return error


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
