"""The two inner loops of preparation, compiled: count the codes of text, and encode it.

A code is a code point (in a bytes-only vocabulary, a byte), or END after a document. Both loops take rows of
UTF-8 as Arrow stores them, check them strictly (The Unicode Standard, table 3-7), and release the GIL so that
threads run in parallel. tests/corpus/reference.py computes the same in plain Python.
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
def encode(utf8, offsets, ends, begins, route, raw, ids, spelling, glue, after, begun, out, position, at_row):
    """Write the ids of rows to their streams. Returns -1, or the first row that is not UTF-8.

    utf8, offsets, route, raw: see count. ends: bool[rows], the last row of a document. begins: the first row
    begins a document. ids, spelling: see Vocab.tables. glue: uint16[g], written after every document if
    after, else before all but the first document of a stream. begun: int64[streams], documents begun so far,
    and position: int64[streams], of the next symbol in out (uint8 or uint16); both are advanced. out has room
    for a symbol per byte, and the glue. at_row: int64[rows], set to where the text of each row begins in out.
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
        at_row[row] = at
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
