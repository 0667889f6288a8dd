"""Scores of a text, character by character, against evaluate() and against probabilities taken one by one."""

import math

import numpy as np
import pytest
import torch
from test_evaluate import BYTES, CLOSED, FALLBACK, TEXT, make, nats_by_hand, settings_of

from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.evaluation.evaluate import evaluate
from charlm.evaluation.surprisal import WINDOW, score

SPELLING = Vocab("ab cé")  # €, 😀 and the newline in bytes
VOCABULARIES = {"closed": CLOSED, "byte fallback": SPELLING, "documents": FALLBACK, "bytes": BYTES}
each_vocab = pytest.mark.parametrize("vocab", VOCABULARIES.values(), ids=VOCABULARIES)
FIGURES = ("nats_per_character", "bpc", "bpb", "perplexity", "characters", "bytes")


def bits_by_hand(vocab, model, before: list[int], text: str) -> list[float]:
    """The surprisal of every character: the sum over the symbols that spell it."""
    ids = [*before, *vocab.encode(text).tolist()]
    costs = [math.nan, *nats_by_hand(model, ids)][len(before) :]
    bits = []
    for character in text:
        length = len(vocab.encode(character))
        bits.append(sum(costs[:length]) / math.log(2))
        del costs[:length]
    assert not costs
    return bits


@pytest.mark.parametrize("vocab", [CLOSED, SPELLING], ids=["closed", "byte fallback"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_it_agrees_with_evaluate_in_one_lane(vocab, cell):
    model = make(vocab, cell)
    told = score(model, vocab, TEXT)
    evaluated = evaluate(model, vocab, vocab.encode(TEXT), settings_of())
    assert {k: getattr(told, k) for k in FIGURES} == pytest.approx(
        {k: evaluated[k] for k in FIGURES}, rel=1e-6
    )


@each_vocab
@pytest.mark.parametrize("context", ["", "b€a"])
def test_every_character_costs_what_its_symbols_cost(vocab, context):
    model = make(vocab)
    told = score(model, vocab, TEXT, context)
    before = vocab.encode(context).tolist() or ([vocab.end] if vocab.end is not None else [])
    assert (told.bits.dtype, told.bits.shape) == (np.float64, (len(TEXT),))
    expected = bits_by_hand(vocab, model, before, TEXT)
    assert told.bits == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert math.isnan(told.bits[0]) == (not before)


@each_vocab
@pytest.mark.parametrize("context", ["", "b€a"])
def test_the_figures_are_sums_over_the_characters_that_were_predicted(vocab, context):
    told = score(make(vocab), vocab, TEXT, context)
    counted = TEXT if context or vocab.end is not None else TEXT[1:]
    assert (told.text, told.characters, told.bytes) == (TEXT, len(counted), len(counted.encode()))
    assert told.bpc == pytest.approx(np.nansum(told.bits) / len(counted), rel=1e-12)
    assert told.bpb == pytest.approx(np.nansum(told.bits) / len(counted.encode()), rel=1e-12)
    assert told.nats_per_character == pytest.approx(told.bpc * math.log(2), rel=1e-12)
    assert told.perplexity == pytest.approx(2**told.bpc, rel=1e-12)


def test_a_first_character_in_bytes_without_anything_before_it_is_left_out_whole():
    told = score(make(SPELLING), SPELLING, "€a")
    assert math.isnan(told.bits[0]) and (told.characters, told.bytes) == (1, 1)


def test_a_text_longer_than_a_window_is_read_on():
    text = "ab c" * (WINDOW // 4) + "cab"
    model = make(SPELLING)
    told = score(model, SPELLING, text)
    assert told.bits[-5:] == pytest.approx(bits_by_hand(SPELLING, model, [], text)[-5:], rel=1e-4)


def test_the_shortest_texts():
    closed, documents = make(CLOSED), make(FALLBACK)
    for model, vocab in ((closed, CLOSED), (documents, FALLBACK)):
        with pytest.raises(CharlmError, match="the text is empty"):
            score(model, vocab, "")
        with pytest.raises(CharlmError, match="the text is empty"):
            score(model, vocab, "", context="ab")
    with pytest.raises(CharlmError, match=r"'a' alone, with nothing before it.* context"):
        score(closed, CLOSED, "a")
    assert score(closed, CLOSED, "a", context="b").characters == 1
    assert score(documents, FALLBACK, "a").characters == 1
    assert score(closed, CLOSED, "ab").characters == 1


def test_a_character_that_a_closed_vocabulary_lacks_is_named():
    for text, context in (("abX", ""), ("ab", "X")):
        with pytest.raises(CharlmError, match=r"'X' \(U\+0058 LATIN CAPITAL LETTER X\) at position"):
            score(make(CLOSED), CLOSED, text, context)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_training_flag_is_restored(training):
    plain = score(make(CLOSED), CLOSED, TEXT)
    model = make(CLOSED, dropout=0.5).train(training)
    assert np.array_equal(score(model, CLOSED, TEXT).bits, plain.bits, equal_nan=True)
    assert all(m.training is training for m in model.modules())
    assert not torch.is_inference_mode_enabled()
