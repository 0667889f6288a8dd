"""A model that is looked at while it reads, and how its symbols are shown."""

import numpy as np
import pytest
import torch

from charlm.config.fields import ModelConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM
from charlm.report.findings import cells, neighbours, passage
from charlm.report.looking import GUESSES, PASSAGE, STRETCHES, look, stretches
from charlm.report.marks import completed, mark_of, marks, plain

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
    seen, reader = look(model(cell), VOCAB, TEXT), model(cell)
    assert seen.ids.tolist() == TEXT[:-1].tolist()  # a short text is the passage, but for its last symbol
    logits, _ = reader(torch.from_numpy(TEXT.astype(np.int64))[None])
    share = logits[0].softmax(-1).numpy()
    assert np.isnan(seen.bits[0])
    right = -np.log2(share[np.arange(len(TEXT) - 2), TEXT[1:-1]])
    assert seen.bits[1:] == pytest.approx(right, abs=1e-4)
    assert seen.guesses[5].tolist() == np.argsort(-share[4])[:GUESSES].tolist()
    assert seen.chances[5] == pytest.approx(np.sort(share[4])[::-1][:GUESSES], abs=1e-5)
    _, carry = reader(torch.from_numpy(TEXT[:21].astype(np.int64))[None])  # after symbol 20
    assert seen.cells[20] == pytest.approx(carry[-1].flatten().numpy(), abs=2e-3)


def test_stretches_are_spread_over_a_long_text_and_begin_where_lines_do():
    ids = VOCAB.encode("abc def\n" * 9000)
    found = stretches(ids, np.array([s == b"\n" for s in VOCAB.spelling]))
    assert found.shape == (STRETCHES, PASSAGE + 1)
    assert {VOCAB.decode(row[:5]) for row in found[1:]} == {"\nabc "}


def test_two_symbols_can_be_looked_at_and_one_cannot():
    assert look(model(), VOCAB, TEXT[:2]).ids.tolist() == TEXT[:1].tolist()
    with pytest.raises(CharlmError, match="too short to look at"):
        look(model(), VOCAB, TEXT[:1])


def test_logits_that_are_not_finite_are_told():
    broken = model()
    broken.output.bias.data[3] = torch.nan
    with pytest.raises(CharlmError, match="not finite"):
        look(broken, VOCAB, TEXT)


def test_a_cell_that_follows_a_fact_is_found_first():
    counting = model(cell="rnn", layers=1, nonlinearity="relu")
    newline = int(VOCAB.encode("\n")[0])
    with torch.no_grad():  # cell 4 counts the characters of the line; the others do nothing
        for parameter in counting.parameters():
            parameter.zero_()
        counting.input.weight[:, 0] = 1
        counting.input.weight[newline, 0] = -1000
        counting.layers[0].weight_ih_l0[4, 0] = 1
        counting.layers[0].weight_hh_l0[4, 4] = 1
    seen = look(counting, VOCAB, VOCAB.encode("".join("abc defg"[: 1 + k % 8] + "\n" for k in range(900))))
    told, (matches,) = cells(seen, 7)
    assert matches[0].detector == "line position" and matches[0].unit == 4
    assert matches[0].score == pytest.approx(1, abs=1e-3)
    assert told["list"][0][:2] == [0, 4] and told["list"][0][4:] == ["line position", 1.0]
    assert told["of"] == 7 and len(told["list"]) == 7


def test_neighbours_have_alike_embeddings():
    alike = model()
    a, b = VOCAB.encode("ab").tolist()
    with torch.no_grad():
        alike.input.weight[b] = 2 * alike.input.weight[a]
    found = dict(neighbours(alike, VOCAB, np.ones(len(VOCAB), np.int64)))
    assert found["a"][0] == ("b", pytest.approx(1)) and found["b"][0][0] == "a"


# marks


@pytest.mark.parametrize(
    "character, mark",
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
def test_every_character_shows(character, mark):
    assert mark_of(character) == mark


def test_bytes_are_numbers_until_they_complete_a_character():
    vocab = Vocab("", unknown="bytes", end_of_document=True)
    ids = vocab.encode("é<\x01")
    assert completed(vocab, ids) == {1: "é"}
    told = marks(vocab)
    assert [told[i][0] for i in ids] == ["C3", "A9", "<", "␁"] and told[vocab.end] == ("■", "end of document")
    assert plain(vocab)[vocab.end] == "\0" and len(plain(vocab)) == len(told) == len(vocab)
    shown = passage(look(CharLM(ModelConfig(hidden_size=3), len(vocab)), vocab, ids), vocab)
    kinds = {mark: kind for mark, _, kind, _ in shown["symbols"]}
    assert kinds["C3"] == "byte" and kinds["<"] == ""
