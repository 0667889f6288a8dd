"""Predictions and cells of a model while it reads, similar symbols, and the display of symbols."""

import numpy as np
import pytest
import torch

from charlm.config.fields import ModelConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM
from charlm.report.probe import (
    GUESSES,
    PASSAGE,
    STRETCHES,
    cell_data,
    character_display,
    completed_characters,
    nearest_symbols,
    passage_data,
    plain_characters,
    probe_model,
    stretches,
    symbol_displays,
)

VOCAB = Vocab("\n abcdefg")  # others are spelled in bytes
TEXT = VOCAB.encode("a bad cab\nfed é\n" * 9)


def model(cell: str = "lstm", layers: int = 2, **more) -> CharLM:
    torch.manual_seed(1)
    return CharLM(
        ModelConfig(cell=cell, embedding_size=5, hidden_size=7, num_layers=layers, **more), len(VOCAB)
    )


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@torch.inference_mode()
def test_bits_guesses_and_cells_are_those_of_the_model(cell):
    probe, reader = probe_model(model(cell), VOCAB, TEXT), model(cell)
    assert probe.ids.tolist() == TEXT[:-1].tolist()  # a short text is the passage, but for its last symbol
    logits, _ = reader(torch.from_numpy(TEXT.astype(np.int64))[None])
    share = logits[0].softmax(-1).numpy()
    assert np.isnan(probe.bits[0])
    right = -np.log2(share[np.arange(len(TEXT) - 2), TEXT[1:-1]])
    assert probe.bits[1:] == pytest.approx(right, abs=1e-4)
    assert probe.guesses[5].tolist() == np.argsort(-share[4])[:GUESSES].tolist()
    assert probe.chances[5] == pytest.approx(np.sort(share[4])[::-1][:GUESSES], abs=1e-5)
    _, carry = reader(torch.from_numpy(TEXT[:21].astype(np.int64))[None])  # after symbol 20
    assert probe.cells[20] == pytest.approx(carry[-1].flatten().numpy(), abs=2e-3)


def test_stretches_are_spread_over_a_long_text_and_begin_where_lines_do():
    ids = VOCAB.encode("abc def\n" * 9000)
    found = stretches(ids, np.array([s == b"\n" for s in VOCAB.spelling]))
    assert found.shape == (STRETCHES, PASSAGE + 1)
    assert {VOCAB.decode(row[:5]) for row in found[1:]} == {"\nabc "}


def test_two_symbols_can_be_probed_and_one_cannot():
    assert probe_model(model(), VOCAB, TEXT[:2]).ids.tolist() == TEXT[:1].tolist()
    with pytest.raises(CharlmError, match="predicting takes 2 or more"):
        probe_model(model(), VOCAB, TEXT[:1])


def test_logits_that_are_not_finite_raise():
    broken = model()
    broken.output.bias.data[3] = torch.nan
    with pytest.raises(CharlmError, match="not finite"):
        probe_model(broken, VOCAB, TEXT)


@pytest.mark.parametrize("lines", [900, 30])  # 12 stretches; one that is shorter than PASSAGE
def test_a_cell_that_follows_a_fact_is_found_first(lines):
    counting = model(cell="rnn", layers=1, nonlinearity="relu")
    newline = int(VOCAB.encode("\n")[0])
    with torch.no_grad():  # cell 4 counts the characters of the line; the others do nothing
        for parameter in counting.parameters():
            parameter.zero_()
        counting.input.weight[:, 0] = 1
        counting.input.weight[newline, 0] = -1000
        counting.layers[0].weight_ih_l0[4, 0] = 1
        counting.layers[0].weight_hh_l0[4, 4] = 1
    probe = probe_model(
        counting, VOCAB, VOCAB.encode("".join("abc defg"[: 1 + k % 8] + "\n" for k in range(lines)))
    )
    data, (matches,) = cell_data(probe, 7)
    assert matches[0]["fact"] == "line position" and matches[0]["unit"] == 4
    assert matches[0]["score"] == pytest.approx(1, abs=1e-3)
    assert data["list"][0][:2] == [0, 4] and data["list"][0][4:] == ["line position", 1.0]
    assert data["total"] == 7 and len(data["list"]) == 7


def test_neighbours_have_similar_embeddings():
    similar = model()
    a, b = VOCAB.encode("ab").tolist()
    with torch.no_grad():
        similar.input.weight[b] = 2 * similar.input.weight[a]
    found = dict(nearest_symbols(similar, VOCAB, np.ones(len(VOCAB), np.int64)))
    assert found["a"][0] == ("b", pytest.approx(1)) and found["b"][0][0] == "a"


# display of symbols


@pytest.mark.parametrize(
    "character, display",
    [
        ("a", "a"),
        (" ", " "),
        ("\n", "↵"),
        ("\0", "␀"),
        ("\x7f", "␡"),
        ("\u202e", "U+202E"),
        ("\u0301", "◌\u0301"),
    ],
)
def test_every_character_is_visible(character, display):
    assert character_display(character) == display


def test_bytes_are_numbers_until_they_complete_a_character():
    vocab = Vocab("", unknown="bytes", end_of_document=True)
    ids = vocab.encode("é<\x01")
    assert completed_characters(vocab, ids) == {1: "é"}
    displays = symbol_displays(vocab)
    assert [displays[i][0] for i in ids] == ["C3", "A9", "<", "␁"] and displays[vocab.end] == (
        "■",
        "end of document",
    )
    assert plain_characters(vocab)[vocab.end] == "\0" and len(plain_characters(vocab)) == len(
        displays
    ) == len(vocab)
    data = passage_data(probe_model(CharLM(ModelConfig(hidden_size=3), len(vocab)), vocab, ids), vocab)
    kinds = {display: kind for display, _, kind, _ in data["symbols"]}
    assert kinds["C3"] == "byte" and kinds["<"] == ""
