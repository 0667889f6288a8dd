"""The two inner loops of preparation, compiled: count the codes of text, and encode it.

A *code* is a code point (a byte, for a bytes-only vocabulary), or END after a document. Both loops take
rows of UTF-8 as Arrow holds them, check it strictly (The Unicode Standard, table 3-7), and release the GIL,
so that threads run them side by side. charlm/corpus/reference.py says in plain Python what they compute.
"""

from __future__ import annotations

import numba
import numpy as np

from charlm.corpus.vocabulary import UNKNOWN


def compiled(function):
    """The function compiled, for good where a cache can be kept: beside this file or in the user's home."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither is writable: compile anew in every process
        return numba.njit(nogil=True)(function)


_inlined = numba.njit(inline="always")
# Unsigned on purpose: a signed index may be negative, and the check for that costs two thirds of the speed.
_1, _2, _3, _4, _6, _8, _11, _12, _18 = (np.uint64(n) for n in (1, 2, 3, 4, 6, 8, 11, 12, 18))
_STRIDE = np.uint64(32)  # bytes that are tested for ASCII at once: one AVX2 register
_LOOK = np.uint64(128)  # bytes read one by one where some are not, before the next test


@_inlined
def _decode(utf8, i, stop):
    """(code point, bytes it takes) of the character at i; (0, 0) where there is none."""
    bad = np.uint64(0), np.uint64(0)
    b = np.uint64(utf8[i])
    if b < 0x80:
        return b, _1
    if b < 0xC2 or i + _1 >= stop:
        return bad
    c = np.uint64(utf8[i + _1])
    if c >> _6 != _2:
        return bad
    c &= np.uint64(0x3F)
    if b < 0xE0:
        return (b & np.uint64(0x1F)) << _6 | c, _2
    if i + _2 >= stop:
        return bad
    d = np.uint64(utf8[i + _2])
    if d >> _6 != _2:
        return bad
    d &= np.uint64(0x3F)
    if b < 0xF0:
        code = (b & np.uint64(0x0F)) << _12 | c << _6 | d
        if code < 0x800 or code >> _11 == 0x1B:  # overlong, surrogate
            return bad
        return code, _3
    if i + _3 >= stop:
        return bad
    e = np.uint64(utf8[i + _3])
    if e >> _6 != _2:
        return bad
    e &= np.uint64(0x3F)
    code = (b & np.uint64(0x0F)) << _18 | c << _12 | d << _6 | e
    if code < 0x10000 or code > 0x10FFFF:  # overlong, past the last code point
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
    """Add the codes of rows to the counts of their splits. Returns -1, or the first row that is not UTF-8.

    utf8: uint8[n]. offsets: int64[rows + 1], where the rows lie in utf8. route: uint8[rows], the split of
    each row. raw: bytes are codes, whatever they mean. counts: int64[splits, codes]; ascii_counts:
    int64[splits, 4, 256], four tables in turn, so that equal neighbours do not wait for each other, to be
    added by the caller; touched: bool[splits, codes / 256], the pages of counts that were written to.
    """
    for row in range(len(route)):
        split = np.uint64(route[row])
        i, stop = np.uint64(offsets[row]), np.uint64(offsets[row + 1])
        while i < stop:
            while i + _STRIDE <= stop and (raw or _ascii(utf8, i)):
                for k in range(_STRIDE):
                    ascii_counts[split, k & _3, utf8[i + k]] += 1
                i += _STRIDE
            edge = min(i + _LOOK, stop)
            while i < edge:
                if raw or utf8[i] < 0x80:
                    ascii_counts[split, i & _3, utf8[i]] += 1
                    i += _1
                    continue
                code, width = _decode(utf8, i, stop)
                if width == 0:
                    return row
                if counts[split, code] == 0:
                    touched[split, code >> _8] = True
                counts[split, code] += 1
                i += width
    return -1


@compiled
def encode(utf8, offsets, ends, begins, route, raw, ids, spelling, glue, after, begun, out, position):
    """Write the ids of rows into the parts of their splits. Returns -1, or the first row that is not UTF-8.

    utf8, offsets, route, raw: as in count. ends: bool[rows], the last row of a document. begins: the first
    row begins one. ids: uint16[codes], UNKNOWN where a character is spelled in bytes; spelling:
    uint16[256], the symbols of bytes. glue: uint16[g], written after every document if after, else before
    all but the first of a split. begun: int64[splits], documents begun so far, and position: int64[splits],
    where the next symbol goes in out (uint8 or uint16): both are advanced. out has room for a symbol per
    byte, and the glue.
    """
    for row in range(len(route)):
        split = np.uint64(route[row])
        i, stop = np.uint64(offsets[row]), np.uint64(offsets[row + 1])
        at = np.uint64(position[split])
        if begins if row == 0 else ends[row - 1]:
            if not after and begun[split] > 0:
                for symbol in glue:
                    out[at] = symbol
                    at += _1
            begun[split] += 1
        while i < stop:
            while i + _STRIDE <= stop and (raw or _ascii(utf8, i)):
                for k in range(_STRIDE):
                    out[at + k] = ids[utf8[i + k]]
                i += _STRIDE
                at += _STRIDE
            edge = min(i + _LOOK, stop)
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
        position[split] = at
    return -1
