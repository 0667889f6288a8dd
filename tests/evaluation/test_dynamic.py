"""Dynamic evaluation: what it gains, that it does not depend on what follows, and that it leaves no trace."""

import numpy as np
import pytest
import torch
from test_evaluate import LETTERS, TEXTS, make, settings_of

from charlm.errors import CharlmError
from charlm.evaluation.dynamic import DECAY, MEMORY, RATE, WINDOW, adapted_nats, evaluate_dynamic
from charlm.evaluation.evaluate import evaluate
from charlm.model.pretrained import weights_of

RANDOM = np.random.default_rng(0).integers(0, len(LETTERS), 5 * WINDOW + 9, dtype=np.uint8)
ODD = np.tile(LETTERS.encode("kajgbe"), 200)  # one word, again and again


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_an_odd_word_that_is_repeated_is_learnt_on_the_way(cell):
    result = evaluate_dynamic(make(LETTERS, cell), LETTERS, ODD, settings_of(), 0.01, 0.0)
    assert result["dynamic"]["nats_per_character"] < 0.8 * result["nats_per_character"]
    assert result["dynamic"]["bpb"] < 0.8 * result["bpb"]


@pytest.mark.parametrize("name", TEXTS)
def test_at_rate_0_the_figures_are_the_plain_ones_of_one_lane(name):
    vocab, ids = TEXTS[name]
    model = make(vocab)
    result = evaluate_dynamic(model, vocab, ids, settings_of(lanes=3, context=5), 0.0, DECAY)
    adapted = result.pop("dynamic")
    assert result == evaluate(model, vocab, ids, settings_of())
    assert adapted == pytest.approx(
        {k: result[k] for k in ("nats_per_character", "bpc", "bpb", "perplexity")}
        | {"rate": 0.0, "decay": DECAY, "window": WINDOW},
        rel=1e-6,
    )


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_window_s_figure_does_not_depend_on_what_follows(cell):
    model, other = make(LETTERS, cell), RANDOM.copy()
    changed = 3 * WINDOW + 1  # the first target of the fourth window
    other[changed:] = 0
    ours, theirs = (list(adapted_nats(model, ids, 0.01, 0.1)) for ids in (RANDOM, other))
    assert len(ours) == len(theirs) == 6
    for i, (one, two) in enumerate(zip(ours, theirs, strict=True)):
        assert np.array_equal(one, two) == (i < 3), i
    for n in (2, WINDOW + 1, WINDOW + 2, 3 * WINDOW):
        nats = np.concatenate(list(adapted_nats(model, RANDOM[:n], 0.01, 0.1)))
        assert nats == pytest.approx(np.concatenate(ours)[: n - 1], rel=1e-5)


def test_the_steps_are_those_of_the_rule():
    """Against the same written down with torch's own gradients, one window after the other."""
    rate, decay, model = 0.02, 0.25, make(LETTERS, layers=1)
    result = list(adapted_nats(model, RANDOM, rate, decay))
    trained = [p.detach().clone() for p in model.parameters()]
    mean, carry = [torch.zeros_like(p) for p in trained], None
    for k, low in enumerate(range(0, len(RANDOM) - 1, WINDOW), 1):
        window = torch.from_numpy(RANDOM[low : low + WINDOW + 1].astype(np.int64))[None]
        model.zero_grad()
        nats, carry = model(window[:, :-1], carry, window[:, 1:], "none")
        assert result[k - 1] == pytest.approx(nats[0].detach().numpy(), rel=1e-4)
        nats.mean().backward()
        with torch.no_grad():
            for p, m, was in zip(model.parameters(), mean, trained, strict=True):
                m.mul_(MEMORY).add_((1 - MEMORY) * p.grad**2)
                p -= rate * p.grad / ((m / (1 - MEMORY**k)).sqrt() + 1e-8)
                p += decay * (was - p)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = make(LETTERS, dropout=0.5).train(training)
    before, random = weights_of(model), torch.get_rng_state()
    result = evaluate_dynamic(model, LETTERS, RANDOM, settings_of(), RATE, DECAY)
    assert result["dynamic"]["nats_per_character"] != result["nats_per_character"]
    assert all(torch.equal(w, before[name]) for name, w in weights_of(model).items())
    assert all(m.training is training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random), "dropout was on"


def test_tied_weights_adapt_as_one():
    model = make(LETTERS, embedding=5, hidden=5, tie_weights=True)
    result = evaluate_dynamic(model, LETTERS, ODD, settings_of(), 0.01, 0.0)
    assert result["dynamic"]["nats_per_character"] < result["nats_per_character"]


@pytest.mark.parametrize(
    ("rate", "decay", "named"),
    [
        (-1.0, 0.0, "--dynamic_rate -1"),
        (float("nan"), 0.0, "--dynamic_rate nan"),
        (float("inf"), 0.0, "--dynamic_rate inf"),
        (0.0, -0.1, "--dynamic_decay -0.1"),
        (0.0, 1.5, "--dynamic_decay 1.5"),
    ],
)
def test_rates_that_cannot_be_are_refused(rate, decay, named):
    with pytest.raises(CharlmError, match=named):
        evaluate_dynamic(make(LETTERS), LETTERS, RANDOM, settings_of(), rate, decay)


def test_a_text_of_one_symbol_is_refused():
    with pytest.raises(CharlmError, match="1 symbol"):
        evaluate_dynamic(make(LETTERS), LETTERS, RANDOM[:1], settings_of(), RATE, DECAY)
