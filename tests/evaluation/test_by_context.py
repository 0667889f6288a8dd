"""The loss by the distance from a reset of the state, against passes written by hand."""

import numpy as np
import pytest
import torch
from test_evaluate import LETTERS, TEXTS, make, nats_by_hand, settings_of, sizes_by_hand

from charlm.errors import CharlmError
from charlm.evaluation.by_context import by_context, table
from charlm.evaluation.evaluate import evaluate


@pytest.mark.parametrize(
    ("name", "cell"), [("characters", "gru"), ("byte fallback", "lstm"), ("bytes", "rnn")]
)
@pytest.mark.parametrize("bptt", [3, 100])
def test_rows_equal_the_passes_by_hand(name, cell, bptt):
    vocab, ids = TEXTS[name]
    model = make(vocab, cell)
    rows = by_context(model, vocab, ids, settings_of(bptt=bptt), longest=8)
    assert [(r["characters_from"], r["characters_to"]) for r in rows] == [(1, 1), (2, 3), (4, 7), (8, 15)]
    carried, seen = nats_by_hand(model, ids), []
    for row in rows:
        width, nats, counted = row["characters_from"], 0.0, []
        for start in range(0, len(ids) - width, width):
            cold = nats_by_hand(model, ids[start : start + 2 * width])
            nats += sum(cold[width - 1 :])
            counted += range(start + width, min(start + 2 * width, len(ids)))
        assert counted == list(range(width, len(ids))), "every symbol once"
        characters = sizes_by_hand(vocab, [0, *ids[width:]])[0]
        assert row["characters"] == characters
        assert row["nats_per_character"] == pytest.approx(nats / characters, rel=1e-5)
        assert row["carried_nats_per_character"] == pytest.approx(
            sum(carried[width - 1 :]) / characters, rel=1e-5
        )
        seen += [row["nats_per_character"]] * width
        assert row["windows_nats_per_character"] == pytest.approx(np.mean(seen), rel=1e-9)


def test_a_model_without_memory_loses_nothing_by_a_reset_and_one_that_has_some_does():
    ids = np.random.default_rng(0).integers(0, len(LETTERS), 400, dtype=np.uint8)
    model = make(LETTERS, "rnn", 1)
    near, *_, far = by_context(model, LETTERS, ids, settings_of(), longest=64)
    assert abs(near["nats_per_character"] - near["carried_nats_per_character"]) > 1e-3
    assert far["nats_per_character"] == pytest.approx(far["carried_nats_per_character"], abs=2e-3)
    with torch.no_grad():
        model.layers[0].weight_hh_l0.zero_()
    for row in by_context(model, LETTERS, ids, settings_of(), longest=64):
        assert row["nats_per_character"] == pytest.approx(row["carried_nats_per_character"], rel=1e-6)


def test_the_first_row_s_carried_figure_is_the_exact_evaluation():
    vocab, ids = TEXTS["documents"]
    model = make(vocab)
    first = by_context(model, vocab, ids, settings_of())[0]
    exact = evaluate(model, vocab, ids, settings_of())
    assert first["carried_nats_per_character"] == pytest.approx(exact["nats_per_character"], rel=1e-6)
    assert first["characters"] == exact["characters"]


@pytest.mark.parametrize(("n", "rows"), [(2, 1), (3, 1), (4, 1), (5, 2), (9, 3), (16, 3), (17, 4)])
def test_a_row_holds_at_least_half_of_the_text(n, rows):
    ids = np.arange(n, dtype=np.uint8) % len(LETTERS)
    result = by_context(make(LETTERS), LETTERS, ids, settings_of())
    assert len(result) == rows
    assert [r["characters"] for r in result] == [n - r["characters_from"] for r in result]


def test_a_text_of_one_symbol_is_refused_and_the_model_left_as_it_was():
    model = make(LETTERS, dropout=0.5)
    with pytest.raises(CharlmError, match="1 symbol"):
        by_context(model, LETTERS, np.zeros(1, np.uint8), settings_of())
    by_context(model, LETTERS, np.zeros(9, np.uint8), settings_of())
    assert model.training


def test_the_table_shows_every_row():
    ids = np.arange(99, dtype=np.uint8) % len(LETTERS)
    rows = by_context(make(LETTERS), LETTERS, ids, settings_of())
    shown = table(rows).splitlines()
    assert len(shown) == 2 + len(rows) and all(len(line) <= 80 for line in shown)
    assert shown[-1].startswith("32 to 63 ") and f"{rows[-1]['nats_per_character']:.4f}" in shown[-1]
