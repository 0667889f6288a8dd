"""Parsers find the rows of blocks of a file: of JSON here, of CSV and delimited text in kernels.py.

The steps of data.normalize are at the end.

Every parser gets a block, uint8[n], and s, int64[STATE]: what it needs to continue in the next block; zeros
at the start of a file and between rows; s[0] is 1 within a row. Its last arguments are:

    final   bool: the block ends with a row
    out     uint8[n + 8]: the text of the rows, one after the other, and of the row that the block breaks off
    stops   int64[rows + 1]: where each row ends in out, after a 0
    starts  int64[rows]: where each row starts in the block
    kinds   uint8[rows]: MISSING, NULL, TEXT, or what is wrong with the row; then its text is empty

It returns the number of rows, of bytes in out, of bytes up to the end of the last row, and of bytes read.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from charlm.corpus.kernels import BAD, NO_TEXT, NOT_UTF8, NULL, SURROGATE, TEXT, TWICE, compiled, plain, same

STATE = 1400

# JSON: classes of characters outside strings, states, and the classes that each state allows.
_SPACE, _QUOTE, _OPEN, _CLOSE, _COLON, _COMMA, _WORD = range(1, 8)
_CLASS = np.zeros(256, np.int64)
for _class, _characters in enumerate((b" \t\n\r", b'"', b"{[", b"}]", b":", b",", b"+-.0123456789"), 1):
    _CLASS[[*_characters]] = _class
_CLASS[[*range(65, 91), *range(97, 123)]] = _WORD
_ROW, _AFTER, _FIRST_KEY, _KEY, _AFTER_KEY, _VALUE, _FIRST_VALUE, _IN_WORD, _DONE, SKIP = range(10)
_STRING, _ESCAPE, _HEX = range(10, 13)
_ALLOWS = np.zeros((10, 8), np.bool_)
_ALLOWS[_ROW, [_QUOTE, _OPEN]] = _ALLOWS[_AFTER, [_COMMA, _CLOSE]] = True
_ALLOWS[_FIRST_KEY, [_QUOTE, _CLOSE]] = _ALLOWS[_KEY, _QUOTE] = _ALLOWS[_AFTER_KEY, _COLON] = True
_ALLOWS[[_VALUE, _FIRST_VALUE]] = [0, 0, 1, 1, 0, 0, 0, 1]
_ALLOWS[_FIRST_VALUE, _CLOSE] = True
_ALLOWS[_IN_WORD] = [0, 0, 0, 0, 1, 0, 1, 1]
_ESCAPED = np.zeros(256, np.int64)  # what follows a backslash → the character it stands for
_ESCAPED[[*b'"\\/bfnrt']] = [*b'"\\/\b\f\n\r\t']
_DEPTH, _LONGEST_KEY = 1024, 256  # levels of JSON; bytes


@compiled
def _put(code, out, size):
    """Write a code point as UTF-8 at out[size]. Returns where it ends."""
    width = 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)
    for k in range(width - 1, 0, -1):
        out[size + k] = 0x80 | code & 0x3F
        code >>= 6
    out[size] = code if width == 1 else 0xF00 >> width & 0xFF | code
    return size + width


@compiled
def parse_json(block, s, path, bounds, lines, final, out, stops, starts, kinds):
    """The string at a path of keys, uint8[m], whose k-th key is path[bounds[k] : bounds[k + 1] - 1]; or at
    the key that is all of path. lines: an object per line; else objects and strings, between brackets and
    commas. A lone surrogate becomes U+FFFD. Words and numbers are not checked."""
    begun, state, depth, kind, own, matched, here, high, code, digits, length = s[:11]
    # own: the string is a key (1) or the text (2). matched: keys of the path that lead to this object. here:
    # the next value is on the path (1) or the text (2). high: a surrogate, until the next character.
    line_end = 10 if lines else 34
    stack, key = s[16 : 16 + _DEPTH], s[16 + _DEPTH :]
    n, i, size, rows, done, start = len(block), 0, 0, 0, 0, 0
    while i < n + final:
        c = block[i] if i < n else 10
        what, ends = _CLASS[c], False
        if i == n or (lines and c == 10):
            kind = BAD if begun and state != _DONE else kind
            ends, done = begun == 1, min(i + 1, n)
        elif state == _STRING:
            if high and c != 92:
                size, high, kind = _put(0xFFFD, out, size), 0, max(kind, SURROGATE)
            if c == 92:
                state = _ESCAPE
            elif c != 34 and own == 1:
                if length < _LONGEST_KEY:
                    key[length] = c
                    length += 1
            elif c != 34:
                stop = plain(block, i, 34, 92, line_end)
                if own == 2:
                    out[size : size + stop - i] = block[i:stop]
                    size += stop - i
                i = stop
                continue
            elif own == 1:
                state, here = _AFTER_KEY, 0
                if depth == matched + 1:
                    low, stop = bounds[matched], bounds[matched + 1] - 1
                    if length == stop - low and same(key, path, low, stop):
                        here = 2 if matched == len(bounds) - 2 else 1
                    elif matched == 0 and length == len(path) and same(key, path, 0, length):
                        here = 2
            else:
                state, ends = _AFTER, depth == 0
        elif state == _ESCAPE and c == 117:
            state, code, digits = _HEX, 0, 0
        elif state in (_ESCAPE, _HEX):
            if state == _ESCAPE:
                code, digits = _ESCAPED[c], 4
                kind = kind if code else BAD
            else:
                digit = c - 48 if 48 <= c < 58 else (c | 32) - 87 if 97 <= (c | 32) < 103 else -1
                code, digits = code * 16 + digit, digits + 1
                kind = kind if digit >= 0 else BAD
            if digits == 4:
                state = _STRING
                if high and 0xDC00 <= code < 0xE000:
                    code = 0x10000 + ((high - 0xD800) << 10) + code - 0xDC00
                elif high:
                    size, kind = _put(0xFFFD, out, size), max(kind, SURROGATE)
                high = code if own == 2 and 0xD800 <= code < 0xDC00 else 0
                if own == 2 and not high:
                    if 0xDC00 <= code < 0xE000:
                        code, kind = 0xFFFD, max(kind, SURROGATE)
                    size = _put(code, out, size)
                elif own == 1 and length < _LONGEST_KEY - 4:
                    length = _put(code, key, length)
        elif what == _SPACE:
            state = _AFTER if state == _IN_WORD else state
        elif state == SKIP or (state == _ROW and not lines and (what == _COMMA or c == 91 or c == 93)):
            pass
        elif not _ALLOWS[state, what] or (state == _ROW and c != 123 and lines):
            start, begun, kind = start if begun else i, 1, BAD
        elif what == _COLON:
            state = _VALUE
        elif what == _COMMA:
            state = _KEY if stack[depth - 1] == 125 else _VALUE
        elif what == _CLOSE:
            depth -= 1
            kind = kind if stack[depth] == c else BAD
            matched -= 0 < matched == depth
            state, ends = _AFTER, depth == 0
        elif what == _QUOTE and state in (_FIRST_KEY, _KEY):
            state, own, length = _STRING, 1, 0
        elif state != _IN_WORD:  # a value
            if state == _ROW:
                begun, start, here = 1, i, 2 * (c == 34)
            if here == 2:
                kind = TWICE if kind else TEXT if c == 34 else NULL if c == 110 else NO_TEXT
            if what == _OPEN:
                kind = BAD if depth == _DEPTH else kind
                depth = min(depth, _DEPTH - 1)
                stack[depth] = c + 2  # the bracket that closes it
                matched += here == 1 and c == 123
                depth, state = depth + 1, _FIRST_KEY if c == 123 else _FIRST_VALUE
            else:
                state, own = _STRING if c == 34 else _IN_WORD, here & 2
            here = 0
        if kind == BAD and state != SKIP:
            state, ends = SKIP, ends or not lines
        if ends and lines and i < n and c != 10:
            state, ends = _DONE, False
        if ends:
            size = size if kind <= SURROGATE else stops[rows]
            starts[rows], kinds[rows], done = start, kind, min(i + 1, n)
            rows += 1
            stops[rows] = size
            if kind == BAD and not lines:
                break  # where the next row begins cannot be told
            begun = state = depth = kind = own = matched = here = high = 0
        i += 1
    s[:11] = begun, state, depth, kind, own, matched, here, high, code, digits, length
    return rows, size, done, n


class Parsed:
    """What a parser finds in a block, with the arrays above. done, used: the last two numbers."""

    def __init__(
        self, parser: Callable, marks: bytes, data: bytes, state: np.ndarray, arguments: tuple, final: bool
    ):
        """marks: every row but the last ends with one of these bytes. arguments: between s and final."""
        self.state, most = state.copy(), 2 + sum(map(data.count, marks))
        out, kinds = np.empty(len(data) + 8, np.uint8), np.zeros(most, np.uint8)
        stops, starts = np.zeros((2, most), np.int64)
        arguments = self.state, *arguments, final, out, stops, starts, kinds
        n, size, self.done, self.used = parser(np.frombuffer(data, np.uint8), *arguments)
        self.out, self.stops, self.starts, self.kinds = out[:size], stops[: n + 1], starts[:n], kinds[:n]

    def texts(self) -> pa.Array:
        """large_binary[rows]; without rows, the slice of one. Null where there is no text."""
        stops = self.stops if len(self.kinds) else np.array([0, len(self.out)])
        valid = pa.py_buffer(np.packbits(self.kinds >= TEXT, bitorder="little")) if len(self.kinds) else None
        buffers = [valid, pa.py_buffer(stops), pa.py_buffer(self.out)]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(stops) - 1, buffers)

    def mark_not_utf8(self) -> None:
        """Set the kind of rows that are not UTF-8."""
        if not_utf8(self.out.data) is not None:
            for row, (low, high) in enumerate(pairwise(self.stops)):
                if not_utf8(self.out[low:high].data) is not None:
                    self.kinds[row] = NOT_UTF8


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
