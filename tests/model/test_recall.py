"""model.recall: what followed the same symbols before in the text that is read."""

import numpy as np
import pytest
import torch
from helpers import MIXED, carries_of_pieces, changed, small

from charlm.config.fields import EvaluateConfig, ModelConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.evaluation.dynamic import evaluate_dynamic
from charlm.evaluation.evaluate import evaluate, scores, side_by_side
from charlm.model.char_lm import CharLM
from charlm.sampling.generate import ModelStepper
from charlm.training.loop import train
from charlm.training.trained import load

B, T, V = 3, 150, 5
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, V, (B, T)))


def model_of(recall: int, cell: str = "gru", vocab_size: int = V) -> CharLM:
    torch.manual_seed(1)
    sizes = {"embedding_size": 5, "hidden_size": 16, "num_layers": 2, "recall": recall}
    model = CharLM(ModelConfig(cell=cell, **sizes), vocab_size).eval()
    torch.nn.init.normal_(model.recall.weight)
    torch.nn.init.normal_(model.recall.bias)
    return model


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def found_in(recall, ids):
    """For every length, [B][T]: (the symbol that recall predicts, or None; the kind)."""
    found, _ = recall(ids.t(), torch.zeros(len(ids), recall.carried))
    for count, total, kinds in found:
        assert torch.equal(count.sum(-1), total[..., 0]) and set(total.flatten().tolist()) <= {0.0, 1.0}
        symbol = torch.where(total[..., 0] > 0, count.argmax(-1), -1)
        yield [
            [(s if s >= 0 else None, k) for s, k in zip(*lane, strict=True)]
            for lane in zip(symbol.t().tolist(), kinds.t().tolist(), strict=True)
        ]


def test_it_predicts_what_followed_the_last_time_and_counts_what_was_right():
    recall, missing, known = model_of(4096).recall, 0, 0
    for n, lanes in zip(recall.lengths, found_in(recall, IDS), strict=True):
        for text, got in zip(IDS.tolist(), lanes, strict=True):
            right, before = 0, None
            for t in range(T):
                context = text[max(0, t - n + 1) : t + 1]
                ends = [s for s in range(n - 1, t) if text[s - n + 1 : s + 1] == context]
                symbol, kind = got[t]
                if len(context) == n and ends:
                    known += 1
                    missing += symbol is None  # where another context came into its slot
                    assert symbol in (text[ends[-1] + 1], None)
                else:
                    assert symbol is None
                right = min(right + 1, 15) if t and before == text[t] else 0
                assert kind == right
                before = symbol
    assert known > 500 and missing < 0.02 * known


def test_a_full_table_remembers_what_came_last():
    period = torch.arange(30).repeat(3)[None]
    few, many = (
        [sum(s is not None for s, _ in lanes[0]) for lanes in found_in(model_of(n, "rnn", 30).recall, period)]
        for n in (4, 4096)
    )
    assert all(n >= 50 for n in many) and all(n < 10 for n in few)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("slots", [3, 64])
@torch.no_grad()
def test_a_text_in_pieces_and_symbol_by_symbol_equals_the_text_at_once(cell, slots):
    model = model_of(slots, cell)
    log_p, carry = model(IDS)
    assert carry[-1][..., : 6 * slots].any(-1).all() and not carry[-1][..., 6 * slots].any()
    close(log_p.exp().sum(-1), torch.ones(B, T))
    nats, _ = model(IDS[:, :-1], None, IDS[:, 1:], "none")
    close(nats, -log_p[:, :-1].gather(-1, IDS[:, 1:, None])[..., 0])
    for after in carries_of_pieces(model, IDS, [1, 7, 1, 41, 100], log_p):  # shorter than a context, too
        assert torch.equal(after[-1], carry[-1])
        for a, b in zip(after, carry, strict=True):
            close(a, b)


@torch.no_grad()
def test_a_prediction_does_not_depend_on_what_comes_later():
    model, changed_late = model_of(64), IDS.clone()
    changed_late[:, 100:] = (changed_late[:, 100:] + 1) % V
    a, b = model(IDS)[0], model(changed_late)[0]
    assert torch.equal(a[:, :100], b[:, :100]) and not torch.equal(a[:, 100:], b[:, 100:])


@torch.no_grad()
def test_a_sample_remembers_its_prompt_and_not_what_is_drawn():
    model = model_of(64, vocab_size=30)
    torch.nn.init.zeros_(model.recall.weight)
    torch.nn.init.constant_(model.recall.bias, -12)  # it believes what it remembers
    prompt, drawn = torch.arange(10)[None], torch.tensor([[2, 3, 4, 20, 21, 22, 23, 20, 21, 22]])
    known = model(torch.cat([prompt, drawn], 1))[0].exp()[0, len(prompt[0]) :]
    stepper = ModelStepper(model, model(prompt)[1])
    steps = [torch.from_numpy(stepper.step(ids.numpy()))[0].exp() for ids in drawn.t()]
    assert known[2, 5] > 0.99 and steps[2][5] > 0.99  # 5 followed in the prompt
    assert known[9, 23] > 0.99 and steps[9][23] < 0.2  # 23 followed in what was drawn
    assert (
        model.recall.carried - model.recall.parts[0] == 15
    )  # as the loop in charlm/sharing/README.md has it


def test_more_slots_than_a_machine_has_memory_for_are_refused():
    with pytest.raises(CharlmError, match=r"model\.recall=65537: must be at most 65536"):
        ModelConfig(recall=65537)


def test_many_short_texts_take_memory_for_a_few_carries():
    model, vocab = model_of(16384), Vocab("abcde", unknown="error")
    assert side_by_side(model, 1 << 15, 1) * model.recall.carried <= 1 << 25
    texts = ["abc", "cab", "abcabcab"] * 200
    together = scores(model, vocab, texts)
    assert [s.bpc for s in together[:3]] == pytest.approx(
        [scores(model, vocab, [t])[0].bpc for t in texts[:3]]
    )


def test_a_lane_that_is_evaluated_remembers_all_that_is_before_it(tmp_path):
    config = changed(small(tmp_path / "run"), model={"recall": 64, "hidden_size": 12})
    train(config, quiet=True)
    model, vocab, _ = load(config.run_dir)
    ids = vocab.encode(MIXED)
    one = evaluate(model, vocab, ids, EvaluateConfig(lanes=1))
    seven = evaluate(model, vocab, ids, EvaluateConfig(lanes=7, context=200))
    assert seven["lanes"] == 7 and seven["bpc"] == pytest.approx(one["bpc"], abs=1e-3)
    cold = evaluate(model, vocab, ids, EvaluateConfig(lanes=7, context=0))
    assert cold["bpc"] > one["bpc"] + 0.05
    still = evaluate_dynamic(model, vocab, ids, EvaluateConfig(context=200), lanes=7, rate=0.0)
    assert still["dynamic"]["bpc"] == pytest.approx(seven["bpc"], abs=1e-5)


def test_a_text_that_repeats_itself_is_learned_sooner(tmp_path):
    """New words come again later on: a network of this size and time can learn none of them."""
    words = ["".join(w) for w in np.random.default_rng(2).choice([*"abcdefghij"], (400, 12))]
    text = " ".join(word for a in range(0, 400, 4) for word in words[a : a + 4] * 3)
    scores = [
        train(changed(small(tmp_path / str(n)), model={"recall": n}, data={"text": text}), quiet=True).best[
            "bpc"
        ]
        for n in (0, 256)
    ]
    assert scores[1] < scores[0] - 0.3


def test_a_warm_start_may_remember_more_or_less(tmp_path):
    first = changed(small(tmp_path / "first"), model={"recall": 64})
    train(first, quiet=True)
    later = {"train": {"init_from": str(first.run_dir), "steps": 1}}
    train(changed(small(tmp_path / "later"), model={"recall": 32}, **later), quiet=True)
    with pytest.raises(CharlmError, match=r"model\.recall is 0, there 64"):
        train(changed(small(tmp_path / "none"), **later), quiet=True)
