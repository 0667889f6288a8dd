"""The inner loops of preparation, compiled: count the codes of text, and encode it; and two parsers.

A code is a code point (in a bytes-only vocabulary, a byte), or END after a document. The first two loops take
rows of UTF-8 as Arrow stores them and check them strictly (The Unicode Standard, table 3-7). All release the
GIL so that threads run in parallel. tests/corpus/reference.py computes the same in plain Python.
"""

import numba
import numpy as np

from charlm.corpus.vocabulary import UNKNOWN


def compiled(function):
    """The compiled function, cached next to its file or in the user's home."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither can be written: every process compiles
        return numba.njit(nogil=True)(function)


_inlined = numba.njit(inline="always")
# Unsigned: a signed index may be negative, and the check for that costs two thirds of the speed.
_1, _2, _3, _4, _6, _8, _11, _12, _18, _80 = map(np.uint64, (1, 2, 3, 4, 6, 8, 11, 12, 18, 0x80))
_STRIDE = np.uint64(32)  # bytes tested for ASCII at once: one AVX2 register
_SINGLY = np.uint64(128)  # bytes read one by one where some are not ASCII, until the next test


@_inlined
def _decode(utf8, i, stop):
    """(code point, length in bytes) of the character at i; (0, 0) if it is not UTF-8."""
    # Unrolled: a loop over the bytes is half as fast for Cyrillic.
    bad = np.uint64(0), np.uint64(0)
    b = np.uint64(utf8[i])
    if b < 0x80:
        return b, _1
    c = np.uint64(utf8[i + _1]) ^ _80 if i + _1 < stop else _80  # of a continuation byte: its six bits
    if b < 0xC2 or c > 0x3F:
        return bad
    if b < 0xE0:
        return (b & np.uint64(0x1F)) << _6 | c, _2
    d = np.uint64(utf8[i + _2]) ^ _80 if i + _2 < stop else _80
    if d > 0x3F:
        return bad
    if b < 0xF0:
        code = (b & np.uint64(0x0F)) << _12 | c << _6 | d
        if code < 0x800 or code >> _11 == 0x1B:  # overlong, surrogate
            return bad
        return code, _3
    e = np.uint64(utf8[i + _3]) ^ _80 if i + _3 < stop else _80
    code = (b & np.uint64(0x0F)) << _18 | c << _12 | d << _6 | e
    if e > 0x3F or code < 0x10000 or code > 0x10FFFF:  # overlong, past the last code point
        return bad
    return code, _4


@_inlined
def _ascii(utf8, i):
    """True when the next _STRIDE bytes are all ASCII."""
    union = np.uint8(0)
    for k in range(_STRIDE):
        union |= utf8[i + k]
    return union < 0x80


@compiled
def count(utf8, offsets, route, raw, counts, ascii_counts, touched):
    """Add the codes of rows to the counts of their streams. Returns -1, or the first row that is not UTF-8.

    utf8: uint8[n]. offsets: int64[rows + 1], where the rows are in utf8. route: uint8[rows], the stream of
    each row. raw: codes are bytes. counts: int64[streams, codes]. ascii_counts: int64[streams, 4, 256], to be
    added to counts by the caller: four tables in turn, so that equal neighbours do not wait for each other.
    touched: bool[streams, codes / 256], the pages of counts that were written to.
    """
    for row in range(len(route)):
        stream = np.uint64(route[row])
        i, stop = np.uint64(offsets[row]), np.uint64(offsets[row + 1])
        while i < stop:
            while i + _STRIDE <= stop and (raw or _ascii(utf8, i)):
                for k in range(_STRIDE):
                    ascii_counts[stream, k & _3, utf8[i + k]] += 1
                i += _STRIDE
            edge = min(i + _SINGLY, stop)
            while i < edge:
                if raw or utf8[i] < 0x80:
                    ascii_counts[stream, i & _3, utf8[i]] += 1
                    i += _1
                    continue
                code, width = _decode(utf8, i, stop)
                if width == 0:
                    return row
                if counts[stream, code] == 0:
                    touched[stream, code >> _8] = True
                counts[stream, code] += 1
                i += width
    return -1


@compiled
def encode(utf8, offsets, ends, begins, route, raw, ids, spelling, glue, after, begun, out, position):
    """Write the ids of rows to their streams. Returns -1, or the first row that is not UTF-8.

    utf8, offsets, route, raw: see count. ends: bool[rows], the last row of a document. begins: the first row
    begins a document. ids, spelling: see Vocab.tables. glue: uint16[g], written after every document if
    after, else before all but the first document of a stream. begun: int64[streams], documents begun so far,
    and position: int64[streams], of the next symbol in out (uint8 or uint16); both are advanced. out has room
    for a symbol per byte, and the glue.
    """
    for row in range(len(route)):
        stream = np.uint64(route[row])
        i, stop = np.uint64(offsets[row]), np.uint64(offsets[row + 1])
        at = np.uint64(position[stream])
        if begins if row == 0 else ends[row - 1]:
            if not after and begun[stream] > 0:
                for symbol in glue:
                    out[at] = symbol
                    at += _1
            begun[stream] += 1
        while i < stop:
            while i + _STRIDE <= stop and (raw or _ascii(utf8, i)):
                for k in range(_STRIDE):
                    out[at + k] = ids[utf8[i + k]]
                i += _STRIDE
                at += _STRIDE
            edge = min(i + _SINGLY, stop)
            while i < edge:
                if raw or utf8[i] < 0x80:
                    out[at] = ids[utf8[i]]
                    i, at = i + _1, at + _1
                    continue
                code, width = _decode(utf8, i, stop)
                if width == 0:
                    return row
                symbol = ids[code]
                if symbol != UNKNOWN:
                    out[at] = symbol
                    at += _1
                else:
                    for k in range(width):
                        out[at + k] = spelling[utf8[i + k]]
                    at += width
                i += width
        if after and ends[row]:
            for symbol in glue:
                out[at] = symbol
                at += _1
        position[stream] = at
    return -1


# Kinds of rows: without text, with text, and what is wrong with others. See parsers.py.
MISSING, NULL, TEXT, SURROGATE, BAD, NO_TEXT, TWICE, QUOTE, FIELDS, UNCLOSED, NOT_UTF8 = range(11)


@compiled
def same(key, path, low, high):
    """Whether key starts with path[low:high]."""
    for j in range(low, high):  # noqa: SIM110
        if key[j - low] != path[j]:
            return False
    return True


@compiled
def plain(block, i, a, b, c):
    """The next index, from i on, of one of three bytes; len(block) if there is none."""
    at, stop = np.uint64(i), np.uint64(len(block))
    while at < stop and block[at] != a and block[at] != b and block[at] != c:
        at += _1
    return np.int64(at)


@compiled
def parse_csv(block, s, column, width, delimiter, final, out, stops, starts, kinds):
    """A field by number, from 0. width: fields of the header; further ones must be empty. Lines of spaces are
    no rows. Quotes are doubled within quotes (RFC 4180); \\n, \\r or both end a row."""
    begun, state, field, kind = s[:4]  # state: 0 where a field starts, 1 within it, 2 in quotes, 3 after
    n, size, rows, done = len(block), 0, 0, 0
    i = -1
    while i + 1 < n + final:
        i += 1
        c = block[i] if i < n else 10
        if i < n and (state == 2 or (state == 1 and begun and c != delimiter and c != 10 and c != 13)):
            stop = plain(block, i, 34, 34, 34) if state == 2 else plain(block, i, delimiter, 10, 13)
            if field == column:
                out[size : size + stop - i] = block[i:stop]
                size += stop - i
            elif field >= width and kind == 0 and stop > i:
                kind = FIELDS
            i = stop - 1
            if state == 2 and stop < n:
                state, i = 3, stop
        elif c == 10 or c == 13:
            if begun:
                kind = UNCLOSED if state == 2 else kind if kind else TEXT if field >= column else MISSING
                starts[rows], kinds[rows] = done, kind
                rows += 1
            if not begun or kind > TEXT:
                size = stops[rows - begun]
            stops[rows] = size
            begun = state = field = kind = 0
            done = min(i + 1, n)
        elif c == delimiter:
            begun, state, field = 1, 0, field + 1
        elif c == 34 and state == 0:
            begun, state = 1, 2
        else:
            if state == 3:
                kind = kind if c == 34 else QUOTE
                state = 2 if c == 34 else 1
            else:
                state = 1
            begun = 1 if c != 32 and c != 9 else begun
            if field == column:
                out[size] = c
                size += 1
            elif field >= width and kind == 0:
                kind = FIELDS
    s[:4] = begun, state, field, kind
    return rows, size, done, n


@compiled
def _line_end(block, i):
    """The length of the \\n or \\r\\n at i; 0 if there is none."""
    if i < len(block) and block[i] == 10:
        return 1
    return 2 if i + 1 < len(block) and block[i] == 13 and block[i + 1] == 10 else 0


@compiled
def split_text(block, s, delimiter, by_line, final, out, stops, starts, kinds):
    """What is between delimiters, uint8[m], which include a line end before and after; what is empty is no
    row. by_line: between \\n; only what follows the last one may not be empty. Without a delimiter: between
    blank lines."""
    begun, skips = s[:2]  # skips: 1 where a line end belongs to the delimiter before it
    m, n, i, size, rows, done, start = len(delimiter), len(block), 0, 0, 0, 0, 0
    stop = n if final else max(n - m - 4, 0)  # so that a delimiter is seen whole
    for _ in range(3):
        stop -= 0 < stop < n and block[stop] & 0xC0 == 0x80  # to the start of a character
    while i < stop:
        c, end = block[i], 0
        if c == 10 or (c == 13 and not by_line) or (m and c == delimiter[0]):
            j = i if by_line else i + _line_end(block, i)
            if skips and j > i:
                i, skips = j, int(m == 0)
                start = i
                continue
            if by_line:
                end = i + 1
            elif m == 0:
                end = j + _line_end(block, j) if j > i and _line_end(block, j) else 0
            else:
                for at in (i, j):
                    if not end and at + m <= n and same(block[at:], delimiter, 0, m):
                        end = at + m
        if end:
            if begun or by_line:
                starts[rows], kinds[rows] = start, TEXT
                rows += 1
                stops[rows] = size
            i = done = start = end
            begun, skips = 0, int(not by_line)
        else:
            end = min(plain(block, i + 1, 10, 10 if by_line else 13, delimiter[0] if m else 10), stop)
            out[size : size + end - i] = block[i:end]
            size, i = size + end - i, end
            begun, skips = 1, 0
    if final and begun:
        starts[rows], kinds[rows] = start, TEXT
        rows, begun, done = rows + 1, 0, n
        stops[rows] = size
    s[:2] = begun, skips
    return rows, size, done, i
