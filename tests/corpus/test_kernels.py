"""charlm.corpus.kernels: what is UTF-8 to the compiled loops is UTF-8 to Python."""

import itertools
import random

import numba
import numpy as np
import pytest
from corpus_helpers import strict

from charlm.corpus import kernels
from charlm.corpus.vocabulary import END


@numba.njit(nogil=True)
def _accepted(count, utf8, offsets, route, counts, ascii_counts, touched, out):
    """Whether each row, alone, is UTF-8 to the compiled loop."""
    for row in range(len(offsets) - 1):
        out[row] = count(utf8, offsets[row : row + 2], route, False, counts, ascii_counts, touched) < 0


def accepted(utf8: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """bool[rows]: which rows are UTF-8 to kernels.count."""
    out = np.zeros(len(offsets) - 1, bool)
    tables = (np.zeros((1, END + 256), np.int64), np.zeros((1, 4, 256), np.int64))
    touched = np.zeros((1, (END >> 8) + 1), bool)
    _accepted(kernels.count, utf8, offsets, np.zeros(1, np.uint8), *tables, touched, out)
    return out


@pytest.mark.parametrize("width", [1, 2, 3])
def test_every_short_sequence_is_refused_exactly_when_python_refuses_it(width):
    """All 256, 65,536 and 16,777,216 of them."""
    numbers = np.arange(256**width, dtype=">u4")
    utf8 = numbers.view(np.uint8).reshape(-1, 4)[:, 4 - width :].ravel()
    got = accepted(utf8, np.arange(len(numbers) + 1, dtype=np.int64) * width)
    one = [[chr(c).encode() for c in codes] for codes in (range(128), range(128, 2048))]
    three = [chr(c).encode() for c in range(2048, 65536) if not 0xD800 <= c < 0xE000]
    ways = {1: [[one[0]]], 2: [[one[0]] * 2, [one[1]]], 3: [[one[0]] * 3, one, one[::-1], [three]]}[width]
    want = np.zeros(256**width, bool)
    for way in ways:
        for parts in itertools.product(*way):
            want[int.from_bytes(b"".join(parts), "big")] = True
    assert np.array_equal(got, want)


def _join(rows: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    return np.frombuffer(b"".join(rows), np.uint8), np.cumsum([0, *map(len, rows)])


def test_longer_sequences_are_refused_exactly_when_python_refuses_them():
    """Around every border of table 3-7, and at random, in the open and between ASCII of every stride."""
    draw = random.Random(2)
    edges = [0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0]
    edges += [0xED, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xF7, 0xF8, 0xFF]
    rows = [
        bytes([lead, *rest])
        for lead in range(0xF0, 256)
        for rest in itertools.product(edges[1:13:2], repeat=3)
    ]
    rows += [bytes(draw.choices(edges, k=draw.randint(4, 9))) for _ in range(20_000)]
    rows += [chr(c).encode() for c in range(0x10000, 0x110000, 61)]
    whole = [r for r in rows if strict(r) is None]
    for before, after in ((0, 0), (31, 1), (32, 0), (33, 40), (127, 2), (128, 3), (129, 31), (161, 130)):
        some = draw.sample(rows, 3000) + draw.sample(whole, 300)
        padded = [b"a" * before + r + b"b" * after for r in some]
        want = [strict(r) is None for r in padded]
        assert sum(want) > 100 and accepted(*_join(padded)).tolist() == want
