"""Baselines: the fast n-gram equals the obvious one, nothing is counted that should not be, limits hold."""

import lzma
import math
import random
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers import small
from hypothesis import given
from hypothesis import strategies as st

from charlm.corpus import baselines
from charlm.corpus.prepared import prepare
from charlm.corpus.vocabulary import Vocab

LN2 = math.log(2)


def letters(size: int, **options) -> Vocab:
    """A vocabulary of so many characters."""
    codes = (code for code in range(0x41, 0x20000) if not 0xD800 <= code < 0xE000)
    return Vocab([chr(next(codes)) for _ in range(size)], unknown="error", **options)


def ids(symbols, vocab: Vocab) -> np.ndarray:
    return np.array(symbols, vocab.dtype)


@pytest.fixture
def limits(monkeypatch):
    """Sets the limits of the module: limits(MAX_ORDER=3)."""

    def set_to(**values):
        for name, value in values.items():
            monkeypatch.setattr(baselines, name, value)

    return set_to


class WittenBell:
    """The definition, one symbol at a time."""

    def __init__(self, pieces: list[list[int]], size: int, order: int):
        self.size, self.after = size, defaultdict(Counter)
        for piece in pieces:
            for i, symbol in enumerate(piece):
                for length in range(min(order, i + 1)):
                    self.after[tuple(piece[i - length : i])][symbol] += 1

    def p(self, symbol: int, before: list[int], order: int) -> float:
        if order == 0:
            return 1 / self.size
        lower = self.p(symbol, before, order - 1)
        if len(before) < order - 1:
            return lower
        seen = self.after.get(tuple(before[len(before) - order + 1 :]), Counter())
        total, distinct = seen.total(), len(seen)
        return (seen[symbol] + distinct * lower) / (total + distinct) if total else lower

    def nats(self, held_out: list[int], order: int) -> float:
        return -math.fsum(math.log(self.p(w, held_out[:i], order)) for i, w in enumerate(held_out))


@st.composite
def trials(draw):
    """(V, training symbols, held-out symbols): few symbols, so that contexts meet again; or any at all."""
    size = draw(st.one_of(st.integers(1, 5), st.sampled_from([255, 256, 257, 65535])))
    symbol = st.one_of(st.integers(0, min(size, 3) - 1), st.sampled_from([size - 1]))
    return size, draw(st.lists(symbol, max_size=80)), draw(st.lists(symbol, max_size=30))


VOCABS = {size: letters(size) for size in (*range(1, 6), 255, 256, 257, 65535)}


@given(trials())
def test_the_ngram_equals_the_obvious_one_at_every_order(limits, trial):
    size, train, held_out = trial
    vocab = VOCABS[size]
    for order in range(1, 7):
        limits(MAX_ORDER=order, MIN_GAIN=-math.inf)
        got = baselines.ngram(ids(train, vocab), ids(held_out, vocab), vocab)
        assert (got["order"], got["smoothing"]) == (order, "Witten-Bell")
        assert (got["train_symbols"], got["held_out_symbols"]) == (len(train), len(held_out))
        expected = WittenBell([train], size, order).nats(held_out, order)
        assert got["nats_per_character"] * max(len(held_out), 1) == pytest.approx(
            expected, rel=1e-9, abs=1e-12
        )


@given(trials(), st.integers(1, 6))
def test_probabilities_over_the_vocabulary_sum_to_one(limits, trial, order):
    size, train, before = trial
    if size > 5:
        size, train, before = 5, [w % 5 for w in train], [w % 5 for w in before]
    vocab = VOCABS[size]
    limits(MAX_ORDER=order, MIN_GAIN=-math.inf)

    def nats(held_out):
        got = baselines.ngram(ids(train, vocab), ids(held_out, vocab), vocab)
        return got["nats_per_character"] * len(held_out)

    shares = [math.exp(nats(before) - nats([*before, symbol])) for symbol in range(size)]
    assert math.fsum(shares) == pytest.approx(1, rel=1e-9)
    slow = WittenBell([train], size, order)
    assert math.fsum(slow.p(symbol, before, order) for symbol in range(size)) == pytest.approx(1, rel=1e-12)


def test_an_ngram_by_hand(limits):
    """abab, then ab. p_1(a) = (2 + 2/2) / 4 for both; p_2(b | a) = (2 + 1/2) / 3."""
    limits(MAX_ORDER=2, MIN_GAIN=-math.inf)
    vocab = letters(2)
    got = baselines.ngram(ids([0, 1, 0, 1], vocab), ids([0, 1], vocab), vocab)
    nats = -math.log(1 / 2) - math.log(2.5 / 3)
    assert got["nats_per_character"] == pytest.approx(nats / 2, rel=1e-12)
    assert got["bpc"] == got["bpb"] == pytest.approx(nats / 2 / LN2, rel=1e-12)


@given(st.lists(st.integers(0, 2), min_size=12, max_size=60), st.lists(st.integers(0, 2), max_size=20))
def test_of_a_large_training_split_blocks_are_counted_and_no_ngram_spans_two(limits, train, held_out):
    limits(TRAIN_BLOCKS=3, TRAIN_BLOCK=4, MAX_ORDER=4, MIN_GAIN=-math.inf)
    vocab = VOCABS[3]
    got = baselines.ngram(ids(train, vocab), ids(held_out, vocab), vocab)
    middle = 4 + (len(train) - 12) // 2
    pieces = [train] if len(train) == 12 else [train[:4], train[middle : middle + 4], train[-4:]]
    assert got["train_symbols"] == 12
    expected = WittenBell(pieces, 3, 4).nats(held_out, 4)
    assert got["nats_per_character"] * max(len(held_out), 1) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def some_text(n: int, seed: int) -> list[int]:
    """Words of a fixed list in random order: more context helps for a while, then it does not."""
    words = [[0, 1, 2, 3, 7], [0, 1, 4, 7], [2, 5, 6, 7], [4, 1, 0, 3, 5, 7], [6, 2, 7]]
    rng = np.random.default_rng(seed)
    return [w for k in rng.integers(0, len(words), n) for w in words[k]]


@pytest.mark.parametrize("gain", [0.0, 0.005, 0.05, 0.5])
def test_the_order_is_the_last_one_that_gains_enough(limits, gain):
    vocab, train, held_out = letters(8), some_text(300, 1), some_text(100, 2)
    slow = WittenBell([train], 8, 8)
    per_symbol = [slow.nats(held_out, order) / len(held_out) for order in range(9)]
    expected = 1
    while per_symbol[expected] - per_symbol[expected + 1] > gain:
        expected += 1
    limits(MIN_GAIN=gain)
    got = baselines.ngram(ids(train, vocab), ids(held_out, vocab), vocab)
    for workers in (2, 3, 40):
        assert baselines.ngram(ids(train, vocab), ids(held_out, vocab), vocab, workers) == got
    assert got["order"] == expected
    assert got["nats_per_character"] == pytest.approx(per_symbol[expected], rel=1e-9)
    limits(MAX_ORDER=2)
    assert baselines.ngram(ids(train, vocab), ids(held_out, vocab), vocab)["order"] == min(expected, 2)


def test_a_training_split_with_nothing_to_learn_from_scores_as_uniform():
    vocab = letters(7)
    for train in ([], [3]):
        got = baselines.ngram(ids(train, vocab), ids([0, 1, 2], vocab), vocab)
        expected = math.log(7) if not train else -math.log((0 + 1 / 7) / 2)
        assert got["nats_per_character"] == pytest.approx(expected, rel=1e-12)
        assert got["order"] == 1


def test_without_held_out_text_there_is_nothing_to_score():
    vocab = letters(3)
    nothing = ids([], vocab)
    got = baselines.ngram(ids([0, 1, 2], vocab), nothing, vocab)
    assert (got["order"], got["held_out_symbols"], got["bpc"], got["bpb"]) == (1, 0, 0, 0)
    assert baselines.xz(nothing, vocab)["held_out_bytes"] == 0


def test_a_vocabulary_of_one_symbol_costs_nothing():
    vocab = letters(1)
    got = baselines.ngram(ids([0] * 9, vocab), ids([0] * 5, vocab), vocab)
    assert [math.copysign(1, got[k]) * got[k] for k in ("nats_per_character", "bpc", "bpb")] == [0, 0, 0]
    assert math.copysign(1, got["bpc"]) == 1


def test_ends_of_documents_cost_nats_and_count_as_no_character(limits):
    limits(MAX_ORDER=1)
    vocab = Vocab("aé", unknown="error", end_of_document=True)
    text = ids([0, 1, 1, 2], vocab)  # a, é, é, end: three characters, five bytes
    per_symbol = {0: (1 + 3 / 3) / 7, 1: (2 + 3 / 3) / 7, 2: (1 + 3 / 3) / 7}
    nats = -sum(math.log(per_symbol[w]) for w in text.tolist())
    figures = {"nats_per_character": nats / 3, "bpc": nats / 3 / LN2, "bpb": nats / 5 / LN2}
    got = baselines.ngram(text, text, vocab)
    assert {k: got[k] for k in figures} == pytest.approx(figures, rel=1e-12)
    counts = np.bincount(text, minlength=3)  # and one added to 1, 2, 1 of 4 happens to be the same
    assert baselines.unigram(counts, counts, vocab) == pytest.approx(figures, rel=1e-12)


def test_the_unigram_adds_one_to_every_count():
    vocab = letters(3)
    got = baselines.unigram(np.array([3, 2, 0]), np.array([1, 1, 2]), vocab)
    nats = -(math.log(4 / 8) + math.log(3 / 8) + 2 * math.log(1 / 8))
    assert got == pytest.approx(
        {"nats_per_character": nats / 4, "bpc": nats / 4 / LN2, "bpb": nats / 4 / LN2}, rel=1e-12
    )


def test_xz_compresses_the_bytes_of_the_text_alone():
    vocab = Vocab("aé", unknown="error", end_of_document=True)
    rng = np.random.default_rng(0)
    text = ids(rng.integers(0, 3, 5000), vocab)
    spelled = vocab.decode_bytes(text)
    bits = 8 * len(lzma.compress(spelled, preset=9 | lzma.PRESET_EXTREME))
    characters = int((text < 2).sum())
    assert baselines.xz(text, vocab) == pytest.approx(
        {
            "held_out_bytes": len(spelled),
            "nats_per_character": bits * LN2 / characters,
            "bpc": bits / characters,
            "bpb": bits / len(spelled),
        },
        rel=1e-12,
    )


@given(trials(), st.integers(1, 3))
def test_what_repeats_the_training_text_is_counted(limits, trial, order):
    size, train, held_out = trial
    vocab = VOCABS[size]
    limits(MAX_ORDER=order, REPEATED=4)
    seen = {tuple(train[i - 4 : i]) for i in range(4, len(train) + 1)}
    repeats = sum(tuple(held_out[i - 4 : i]) in seen for i in range(4, len(held_out)))
    got = baselines.ngram(ids(train, vocab), ids(held_out, vocab), vocab)
    assert got["repeated"] == pytest.approx(repeats / max(len(held_out), 1))


def test_the_report_warns_of_a_text_that_repeats_itself(tmp_path):
    for copies, warns in ((1, False), (12, True)):
        text = "".join(
            "".join(random.Random(i % (60 // copies)).choices("abcdefgh ", k=40)) + "\n" for i in range(60)
        )
        data = {"source": "literal", "text": text, "split_by": "character", "validation": 0.2, "test": 0}
        report = prepare(small(tmp_path / "run", data=data)).report()
        assert ("of validation repeats passages of the training text" in report) == warns
        assert max(map(len, report.splitlines()[1:])) <= 80


def test_of_a_large_held_out_split_blocks_are_scored(limits):
    vocab = letters(8)
    train, held_out = ids(some_text(300, 1), vocab), ids(some_text(100, 2)[:400], vocab)
    limits(HELD_OUT_BLOCKS=3, HELD_OUT_BLOCK=50, MAX_ORDER=4, MIN_GAIN=-math.inf)
    slow = WittenBell([train.tolist()], 8, 4)
    blocks = [held_out[k : k + 50] for k in (0, 175, 350)]
    got = baselines.ngram(train, held_out, vocab)
    nats = sum(slow.nats(block.tolist(), 4) for block in blocks)
    assert got["held_out_symbols"] == 150
    assert got["nats_per_character"] == pytest.approx(nats / 150, rel=1e-9)
    assert baselines.xz(held_out, vocab) == baselines.xz(np.concatenate(blocks), vocab)


def test_xz_stops_after_so_many_bytes_and_says_the_average(limits):
    vocab = Vocab("aé", unknown="error")
    text = ids(np.random.default_rng(0).integers(0, 2, 5000), vocab)
    limits(XZ_BYTES=1000)
    bits = 8 * len(lzma.compress(vocab.decode_bytes(text)[:1000], preset=9 | lzma.PRESET_EXTREME))
    got = baselines.xz(text, vocab)
    assert (got["held_out_bytes"], got["bpb"]) == (1000, pytest.approx(bits / 1000, rel=1e-12))
    assert got["bpc"] == pytest.approx(got["bpb"] * len(vocab.decode_bytes(text)) / 5000, rel=1e-12)


@pytest.mark.parametrize(("records", "part"), [(1, 1), (40, 7), (300, 1 << 15)])
def test_groups_that_are_taken_together_change_nothing(limits, records, part):
    vocab, train, held_out = letters(8), some_text(300, 1), some_text(100, 2)
    expected = baselines.ngram(ids(train, vocab), ids(held_out, vocab), vocab)
    limits(RECORDS=records, PART=part)
    got = baselines.ngram(ids(train, vocab), ids(held_out, vocab), vocab, 3)
    near = pytest.approx(expected["bpc"], rel=1e-12)  # its sums are in another order
    assert (got["bpc"], got["order"], got["repeated"]) == (near, expected["order"], expected["repeated"])
    assert got == baselines.ngram(ids(train, vocab), ids(held_out, vocab), vocab, 1)


@pytest.mark.parametrize("size", [8, 300])
def test_a_memory_mapped_file_scores_as_an_array(tmp_path, size):
    vocab = letters(size)
    train, held_out = ids(some_text(300, 1), vocab), ids(some_text(100, 2), vocab)
    np.save(tmp_path / "train.npy", train)
    np.save(tmp_path / "validation.npy", held_out)
    expected = baselines.ngram(train, held_out, vocab), baselines.xz(held_out, vocab)
    for mode in ("c", "r"):
        mapped = [np.load(tmp_path / f"{split}.npy", mmap_mode=mode) for split in ("train", "validation")]
        assert (baselines.ngram(*mapped, vocab), baselines.xz(mapped[1], vocab)) == expected


def test_machine_code_that_can_be_kept_nowhere_is_compiled_anew():
    """A read-only package and home; numba refuses to cache the functions of a file that is not there, too."""
    elsewhere = ModuleType("elsewhere")
    source = Path(baselines.__file__).read_text(encoding="utf-8")
    exec(compile(source, "/not/there.py", "exec"), elsewhere.__dict__)
    vocab = letters(8)
    both = ids(some_text(30, 1), vocab), ids(some_text(10, 2), vocab)
    assert elsewhere.ngram(*both, vocab) == baselines.ngram(*both, vocab)
