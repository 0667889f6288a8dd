"""Evaluation and scores of characters against a pass written by hand, in float64, one symbol at a time."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import MIXED, small
from hypothesis import given
from hypothesis import strategies as st

from charlm.config.fields import EvaluateConfig, ModelConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.evaluation import evaluate as evaluation
from charlm.evaluation.evaluate import WINDOW, evaluate, figures_of, scores, states
from charlm.model.char_lm import CharLM
from charlm.training.loop import train
from charlm.training.trained import load

CLOSED = Vocab("abcé€😀\n ", unknown="error")
FALLBACK = Vocab("ab cé", end_of_document=True)
BYTES = Vocab("")
TEXT = "ab é€\n😀cab ba\n€éa 😀😀 cab\n abba é a€ "
TEXTS = {  # name: (vocabulary, ids)
    "characters": (CLOSED, CLOSED.encode(TEXT)),
    "byte fallback": (Vocab("ab cé"), Vocab("ab cé").encode(TEXT)),
    "documents": (
        FALLBACK,
        np.concatenate([[*FALLBACK.encode(t), FALLBACK.end] for t in TEXT.split("\n")]).astype(np.uint8),
    ),
    "bytes": (BYTES, BYTES.encode(TEXT)),
    "bytes and documents": (
        Vocab("", end_of_document=True),
        np.array([*TEXT.encode(), 256, *"é€".encode(), 256, 97, 98, 256], np.uint16),
    ),
}
each_text = pytest.mark.parametrize("name", TEXTS)


def make(vocab, cell="lstm", layers=2, embedding=3, hidden=5, seed=0, **options) -> CharLM:
    torch.manual_seed(seed)
    config = ModelConfig(
        cell=cell, embedding_size=embedding, hidden_size=hidden, num_layers=layers, **options
    )
    model = CharLM(config, len(vocab))
    with torch.no_grad():  # far from uniform, so that the carry shows in the figures
        for p in model.parameters():
            p.mul_(3)
    return model


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def nats_by_hand(model: CharLM, ids) -> list[float]:
    """-ln p of every symbol but the first: float64, one symbol at a time, from a carry of zeros."""
    w = {n: p.detach().double().numpy() for n, p in model.named_parameters()}
    c = model.config
    h = np.zeros((c.num_layers, c.hidden_size))
    s = np.zeros((c.num_layers, c.hidden_size))
    out = []
    for x, y in zip(map(int, ids[:-1]), map(int, ids[1:]), strict=True):
        v = w["input.weight"][x] if c.embedding_size else np.eye(model.vocab_size)[x]
        for i in range(c.num_layers):
            W, U, a, b = (w[f"layers.{i}.{n}_l0"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            p, q = W @ v + a, U @ h[i] + b
            if c.cell == "rnn":
                h[i] = np.tanh(p + q)
            elif c.cell == "gru":
                (pr, pz, pn), (qr, qz, qn) = np.split(p, 3), np.split(q, 3)
                z = sigmoid(pz + qz)
                h[i] = (1 - z) * np.tanh(pn + sigmoid(pr + qr) * qn) + z * h[i]
            else:
                gi, gf, gc, go = np.split(p + q, 4)
                s[i] = sigmoid(gf) * s[i] + sigmoid(gi) * np.tanh(gc)
                h[i] = sigmoid(go) * np.tanh(s[i])
            v = h[i]
        z = w["output.weight"] @ v + w["output.bias"]
        out.append(float(np.log(np.exp(z - z.max()).sum()) + z.max() - z[y]))
    return out


def sizes_by_hand(vocab: Vocab, ids) -> tuple[int, int]:
    """Characters and bytes of all symbols but the first."""
    spelled = [vocab.spelling[i] for i in ids[1:]]
    size = sum(map(len, spelled))
    if vocab.bytes_only:
        return size, size
    starts = [s for s in spelled if s and not 0x80 <= s[0] <= 0xBF]  # continuation bytes start none
    return len(starts), size


def settings_of(**options) -> EvaluateConfig:
    return EvaluateConfig(**({"lanes": 1, "context": 0, "bptt": 7} | options))


# one lane: the exact pass


@each_text
@pytest.mark.parametrize(("cell", "layers", "embedding"), [("lstm", 2, 3), ("gru", 1, 3), ("rnn", 2, 0)])
def test_one_lane_equals_the_pass_by_hand(name, cell, layers, embedding):
    vocab, ids = TEXTS[name]
    model = make(vocab, cell, layers, embedding)
    result = evaluate(model, vocab, ids, settings_of())
    nats = sum(nats_by_hand(model, ids))
    characters, size = sizes_by_hand(vocab, ids)
    assert result["symbols"] == len(ids) - 1
    assert (result["characters"], result["bytes"]) == (characters, size)
    assert result["nats_per_character"] == pytest.approx(nats / characters, rel=1e-6)
    assert result["bpc"] == pytest.approx(nats / characters / math.log(2), rel=1e-6)
    assert result["bpb"] == pytest.approx(nats / size / math.log(2), rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(nats / characters), rel=1e-5)
    assert (result["lanes"], result["context"]) == (1, 0)


def test_characters_and_bytes_are_those_of_the_text_less_its_first_character():
    for vocab in (CLOSED, Vocab("ab cé"), Vocab("ab")):
        result = evaluate(make(vocab), vocab, vocab.encode(TEXT), settings_of())
        assert result["characters"] == len(TEXT) - 1
        assert result["bytes"] == len(TEXT.encode()) - 1
    result = evaluate(make(BYTES), BYTES, BYTES.encode(TEXT), settings_of())
    assert result["characters"] == result["bytes"] == len(TEXT.encode()) - 1


def test_an_end_of_document_costs_nats_and_counts_as_no_character_and_no_byte():
    model = make(FALLBACK)
    ids = np.array([*FALLBACK.encode("ab"), FALLBACK.end, *FALLBACK.encode("c")], np.uint8)
    result = evaluate(model, FALLBACK, ids, settings_of())
    assert (result["symbols"], result["characters"], result["bytes"]) == (3, 2, 2)
    assert result["nats_per_character"] == pytest.approx(sum(nats_by_hand(model, ids)) / 2, rel=1e-6)


def test_in_a_bytes_only_vocabulary_bpc_is_bpb():
    result = evaluate(make(BYTES), BYTES, BYTES.encode(TEXT), settings_of(lanes=3, context=4))
    assert result["bpc"] == result["bpb"] > 0


def test_bits_per_byte_compare_across_vocabularies():
    """A model sure of nothing spells 'é' with 1 symbol or 2: bpb is per byte of the same text."""
    for vocab in (CLOSED, BYTES):
        model = make(vocab)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        ids = vocab.encode("aéé")
        result = evaluate(model, vocab, ids, settings_of())
        assert result["bpb"] == pytest.approx((len(ids) - 1) * math.log2(len(vocab)) / 4, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"lanes": 4, "context": 3}])
def test_a_model_of_zeros_scores_log2_of_the_vocabulary(options):
    vocab = Vocab("abcdefghijklm", unknown="error")
    model = make(vocab)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    result = evaluate(model, vocab, vocab.encode("abcdefghijklmabcabc"), settings_of(**options))
    assert result["bpc"] == pytest.approx(math.log2(13), rel=1e-6)
    assert result["bpb"] == result["bpc"]
    assert result["perplexity"] == pytest.approx(13, rel=1e-6)


def test_perplexity_is_the_exponential_of_nats_per_character():
    vocab, ids = TEXTS["byte fallback"]
    result = evaluate(make(vocab), vocab, ids, settings_of())
    assert result["perplexity"] == pytest.approx(math.exp(result["nats_per_character"]), rel=1e-12)
    assert result["bpc"] == pytest.approx(math.log2(result["perplexity"]), rel=1e-12)


def test_sums_are_divided_once():
    result = figures_of(nats=6.0, symbols=9, characters=4, size=5)
    assert result["nats_per_character"] == 1.5
    assert result["bpc"] == pytest.approx(1.5 / math.log(2), rel=1e-15)
    assert result["bpb"] == pytest.approx(1.2 / math.log(2), rel=1e-15)
    assert result["perplexity"] == pytest.approx(math.exp(1.5), rel=1e-15)
    assert (result["symbols"], result["characters"], result["bytes"]) == (9, 4, 5)


# bptt, lanes, context


@each_text
@pytest.mark.parametrize(("lanes", "context"), [(1, 0), (3, 8)])
def test_the_figures_do_not_depend_on_bptt(name, lanes, context):
    vocab, ids = TEXTS[name]
    model = make(vocab)
    whole = evaluate(model, vocab, ids, settings_of(lanes=lanes, context=context, bptt=1000))
    assert whole["lanes"] == lanes
    for bptt in (1, 2, 5, 13):
        result = evaluate(model, vocab, ids, settings_of(lanes=lanes, context=context, bptt=bptt))
        assert result == pytest.approx(whole, rel=1e-6)


def test_figures_of_lanes_equal_the_lanes_by_hand():
    vocab, ids = TEXTS["byte fallback"]
    model = make(vocab)
    for lanes, context in ((2, 0), (3, 5), (4, 7), (5, 1)):
        result = evaluate(model, vocab, ids, settings_of(lanes=lanes, context=context, bptt=4))
        length = math.ceil((len(ids) - 1) / lanes)
        nats = 0.0
        for start in range(0, len(ids) - 1, length):
            warm = min(start, context)
            nats += sum(nats_by_hand(model, ids[start - warm : start + length + 1])[warm:])
        assert (result["lanes"], result["context"]) == (lanes, context)
        assert result["nats_per_character"] * result["characters"] == pytest.approx(nats, rel=1e-6)


def bigram(vocab: Vocab) -> CharLM:
    """A model without memory: the cost of a symbol depends on the one before only."""
    model = make(vocab, "rnn", 1)
    with torch.no_grad():
        model.layers[0].weight_hh_l0.zero_()
    return model


LETTERS = Vocab("abcdefghijk", unknown="error")
BIGRAM = bigram(LETTERS)


@given(st.integers(2, 120), st.integers(1, 20), st.integers(0, 30), st.integers(1, 40))
def test_every_target_is_counted_exactly_once(n, lanes, context, bptt):
    ids = np.random.default_rng(n).integers(0, len(LETTERS), n, dtype=np.uint8)
    result = evaluate(BIGRAM, LETTERS, ids, settings_of(lanes=lanes, context=context, bptt=bptt))
    assert result["symbols"] == result["characters"] == result["bytes"] == n - 1
    pairs = torch.from_numpy(ids.astype(np.int64))
    nats = BIGRAM(pairs[:-1, None], None, pairs[1:, None], reduction="sum")[0].item()
    assert result["nats_per_character"] * (n - 1) == pytest.approx(nats, rel=1e-5)
    assert 1 <= result["lanes"] <= lanes


def test_the_first_lane_starts_cold_and_the_second_warm():
    """Two lanes with a context as long as a lane: both know all that comes before."""
    vocab, ids = TEXTS["characters"]
    ids = ids[: 2 * 15 + 1]
    model = make(vocab)
    exact = evaluate(model, vocab, ids, settings_of())
    result = evaluate(model, vocab, ids, settings_of(lanes=2, context=15, bptt=4))
    assert (result["lanes"], result["context"]) == (2, 15)
    assert result["nats_per_character"] == pytest.approx(exact["nats_per_character"], rel=1e-6)


def test_many_lanes_approach_the_single_pass_as_their_context_grows():
    ids = np.random.default_rng(0).integers(0, len(LETTERS), 900, dtype=np.uint8)
    model = make(LETTERS, forget_bias=-1.0)  # forgets soon
    exact = evaluate(model, LETTERS, ids, settings_of(bptt=100))["bpc"]
    error = {
        context: abs(evaluate(model, LETTERS, ids, settings_of(lanes=15, context=context))["bpc"] - exact)
        for context in (0, 4, 30)
    }
    assert error[0] > 1e-3, "a cold start makes no difference: no test"
    assert error[4] < error[0] / 10
    assert error[30] < 1e-6 * exact


def test_of_a_trained_model_many_warm_lanes_equal_the_single_pass_to_a_millionth_of_a_nat(tmp_path):
    """The tolerance on a model this small; what it is on real ones stands in configs/LOG.md."""
    config = small(tmp_path / "run", train={"steps": 100, "batch_size": 8, "bptt": 16})
    train(config, quiet=True)
    model, vocab, _ = load(config.run_dir, "cpu")
    ids = vocab.encode(MIXED)

    def nats(lanes: int, context: int) -> float:
        result = evaluate(model, vocab, ids, EvaluateConfig(lanes=lanes, context=context))
        assert result["lanes"] == lanes
        return result["nats_per_character"]

    exact = nats(1, 0)
    for lanes in (8, 30):
        assert abs(nats(lanes, 0) - exact) > 1e-3, "a cold start makes no difference: no test"
        assert abs(nats(lanes, 64) - exact) < 1e-6


def test_no_lane_is_shorter_than_its_context():
    ids = LETTERS.encode("abcdefghijk" * 4)
    for lanes, context, expected in ((30, 10, 4), (30, 100, 1), (3, 10, 3), (30, 0, 22)):
        result = evaluate(make(LETTERS), LETTERS, ids, settings_of(lanes=lanes, context=context))
        assert result["lanes"] == expected
        assert result["context"] == (context if expected > 1 else 0)


def test_ids_beyond_255():
    vocab = Vocab(map(chr, range(0x4E00, 0x4E00 + 300)), unknown="error")
    ids = np.random.default_rng(1).integers(0, 300, 40).astype(np.uint16)
    model = make(vocab)
    result = evaluate(model, vocab, ids, settings_of())
    assert result["nats_per_character"] == pytest.approx(sum(nats_by_hand(model, ids)) / 39, rel=1e-6)
    assert (result["characters"], result["bytes"]) == (39, 3 * 39)


def test_a_memory_mapped_text_gives_the_same_figures(tmp_path):
    vocab, ids = TEXTS["documents"]
    np.save(tmp_path / "validation.npy", ids)
    mapped = np.load(tmp_path / "validation.npy", mmap_mode="c")
    options = settings_of(lanes=3, context=2)
    assert evaluate(make(vocab), vocab, mapped, options) == evaluate(make(vocab), vocab, ids, options)


# ranks


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize(("lanes", "context"), [(1, 0), (2, 4), (5, 6)])
def test_ranks_together_equal_one(world, lanes, context):
    vocab, ids = TEXTS["documents"]
    model, options = make(vocab), settings_of(lanes=lanes, context=context)
    alone = evaluate(model, vocab, ids, options)
    stored = []

    def store(sums: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        stored.append(sums.clone())
        return sums

    def process(rank: int, reduce) -> SimpleNamespace:
        """As an Accelerator."""
        return SimpleNamespace(process_index=rank, num_processes=world, reduce=reduce)

    for rank in range(world):
        evaluate(model, vocab, ids, options, process(rank, store))
    assert [(s.dtype, tuple(s.shape)) for s in stored] == [(torch.float64, (4,))] * world
    assert sum(bool(s.any()) for s in stored) == min(world, lanes), "a rank has read nothing, or too much"
    together = [
        evaluate(model, vocab, ids, options, process(r, lambda *_: sum(stored))) for r in range(world)
    ]
    assert together[0] == pytest.approx(alone, rel=1e-6)
    assert all(t == together[0] for t in together)


# the model is left as it was


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_training_flag_is_restored(training):
    vocab, ids = TEXTS["characters"]
    plain = evaluate(make(vocab), vocab, ids, settings_of())
    model = make(vocab, dropout=0.5).train(training)
    before = torch.get_rng_state()
    assert evaluate(model, vocab, ids, settings_of()) == plain
    assert all(m.training is training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_the_training_flag_is_restored_after_an_error():
    model = make(LETTERS)
    with pytest.raises((IndexError, RuntimeError)):
        evaluate(model, LETTERS, np.array([0, 200, 1], np.uint8), settings_of())
    assert model.training


# the shortest text


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("options", [{}, {"lanes": 32, "context": 256}])
def test_a_text_of_fewer_than_two_symbols_is_refused(n, options):
    with pytest.raises(CharlmError, match=rf"{n} symbol"):
        evaluate(make(LETTERS), LETTERS, np.zeros(n, np.uint8), settings_of(**options))


@pytest.mark.parametrize("options", [{}, {"lanes": 32, "context": 256}, {"lanes": 32, "context": 0}])
def test_a_text_of_two_symbols_works(options):
    model, ids = make(LETTERS), np.array([3, 7], np.uint8)
    result = evaluate(model, LETTERS, ids, settings_of(**options))
    assert result["symbols"] == result["lanes"] == 1
    assert result["nats_per_character"] == pytest.approx(nats_by_hand(model, ids)[0], rel=1e-6)


# scores of every character

SPELLING = Vocab("ab cé")  # €, 😀 and the newline in bytes
VOCABULARIES = {"closed": CLOSED, "byte fallback": SPELLING, "documents": FALLBACK, "bytes": BYTES}
each_vocab = pytest.mark.parametrize("vocab", VOCABULARIES.values(), ids=VOCABULARIES)
FIGURES = ("nats_per_character", "bpc", "bpb", "perplexity", "characters", "bytes")


def score(model, vocab, text: str, context: str = ""):
    """The score of one text."""
    return scores(model, vocab, [text], context)[0]


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
def test_score_agrees_with_evaluate_in_one_lane(vocab, cell):
    model = make(vocab, cell)
    result = score(model, vocab, TEXT)
    evaluated = evaluate(model, vocab, vocab.encode(TEXT), settings_of())
    assert {k: getattr(result, k) for k in FIGURES} == pytest.approx(
        {k: evaluated[k] for k in FIGURES}, rel=1e-6
    )


@each_vocab
@pytest.mark.parametrize("context", ["", "b€a"])
def test_every_character_costs_what_its_symbols_cost(vocab, context):
    model = make(vocab)
    result = score(model, vocab, TEXT, context)
    before = vocab.encode(context).tolist() or ([vocab.end] if vocab.end is not None else [])
    assert (result.bits.dtype, result.bits.shape) == (np.float64, (len(TEXT),))
    expected = bits_by_hand(vocab, model, before, TEXT)
    assert result.bits == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert math.isnan(result.bits[0]) == (not before)


def test_a_text_is_normalized_once():
    """Twice would take another carriage return away."""
    vocab = Vocab("ab\r\n", normalize=["crlf"])
    model = make(vocab)
    ids = vocab.encode("a\r\r\nb")
    result = score(model, vocab, "a\r\r\nb")
    assert result.text == "a\r\nb" and len(ids) == 4
    assert result.bits[1:] == pytest.approx(np.array(nats_by_hand(model, ids)) / math.log(2), rel=1e-5)
    with pytest.raises(CharlmError, match="lone surrogate"):
        score(model, Vocab("ab\r\n", normalize=["nfc"]), "a\ud800")


@each_vocab
@pytest.mark.parametrize("context", ["", "b€a"])
def test_the_figures_are_sums_over_the_characters_that_were_predicted(vocab, context):
    result = score(make(vocab), vocab, TEXT, context)
    counted = TEXT if context or vocab.end is not None else TEXT[1:]
    assert (result.text, result.characters, result.bytes) == (TEXT, len(counted), len(counted.encode()))
    assert result.bpc == pytest.approx(np.nansum(result.bits) / len(counted), rel=1e-12)
    assert result.bpb == pytest.approx(np.nansum(result.bits) / len(counted.encode()), rel=1e-12)
    assert result.nats_per_character == pytest.approx(result.bpc * math.log(2), rel=1e-12)
    assert result.perplexity == pytest.approx(2**result.bpc, rel=1e-12)


@each_vocab
def test_the_bits_and_the_entropy_of_every_byte(vocab):
    model, text = make(vocab), "ab€ c"
    result, ids = score(model, vocab, text, "b"), [*vocab.encode("b"), *vocab.encode(text)]
    logs = model(torch.tensor([[int(i) for i in ids]]))[0][0].log_softmax(-1).detach().double().numpy()
    symbols = [(-logs[t, ids[t + 1]], -(np.exp(logs[t]) * logs[t]).sum()) for t in range(len(ids) - 1)]
    expected = []
    for symbol, pair in zip(ids[1:], symbols, strict=True):
        expected += [np.array(pair) / math.log(2)] + [np.zeros(2)] * (len(vocab.spelling[symbol]) - 1)
    by_byte = np.stack([result.byte_bits, result.byte_entropy], 1)
    np.testing.assert_allclose(by_byte, np.array(expected), rtol=1e-5)
    firsts = [len(text[:i].encode()) for i in range(len(text))]
    assert np.array_equal(result.entropy, result.byte_entropy[firsts])
    assert result.bits.sum() == pytest.approx(result.byte_bits.sum(), rel=1e-12)


MANY = ["ab", "€" * 40 + "a", TEXT, " c ab" * 9, "b€"]


@each_vocab
def test_several_texts_side_by_side_score_as_each_alone(vocab, monkeypatch):
    model = make(vocab)
    monkeypatch.setattr(evaluation, "AT_ONCE", 300)  # more than one batch
    for text, result in zip(MANY, scores(model, vocab, MANY, "a"), strict=True):
        alone = score(model, vocab, text, "a")
        assert result.text == text and result.bpb == pytest.approx(alone.bpb, rel=1e-6)
        for name in ("bits", "entropy", "byte_bits", "byte_entropy"):
            np.testing.assert_allclose(getattr(result, name), getattr(alone, name), rtol=1e-4)
    assert scores(model, vocab, []) == []


@each_vocab
@pytest.mark.parametrize("options", [{}, {"norm": "layer"}])
def test_the_states_are_those_of_the_layers_after_each_character(vocab, options, monkeypatch):
    model = make(vocab, layers=3, **options).eval()
    monkeypatch.setattr(evaluation, "AT_ONCE", 300)
    for layer in (0, 1, -1):
        every, last = states(model, vocab, MANY, layer, at="all"), states(model, vocab, MANY, layer)
        assert (last.shape, last.dtype) == ((len(MANY), 5), np.float32)
        for text, found, final in zip(MANY, every, last, strict=True):
            by_hand, carry = [], model.zeros(1)
            for ids in [[] if vocab.end is None else [vocab.end], *map(vocab.encode, text)]:
                for symbol in ids:
                    _, carry = model.step(torch.tensor([int(symbol)]), carry)
                by_hand.append(carry[0][layer, 0].detach().numpy())
            np.testing.assert_allclose(found, by_hand[1:], atol=1e-5)
            np.testing.assert_array_equal(found[-1], final)


def test_with_residual_layers_a_state_includes_what_the_layer_reads():
    model = make(CLOSED, residual=True).eval()
    below, own = (states(model, CLOSED, ["abé"], layer)[0] for layer in (0, 1))
    carry = model(torch.from_numpy(CLOSED.encode("abé").astype(np.int64))[None])[1]
    np.testing.assert_allclose(own, below + carry[0][1, 0].detach().numpy(), atol=1e-5)


def test_states_that_cannot_be_are_named():
    for texts, options, said in (
        (["ab"], {"layer": 2}, "layer=2: the model has 2, numbered from 0"),
        (["ab"], {"at": "first"}, "at='first': choose last or all"),
        ("ab", {}, "texts='ab': give a list of texts"),
        (["ab", ""], {}, "give a list of texts, none of them empty"),
        (["aX"], {}, "'X' .* is not in the closed vocabulary"),
    ):
        with pytest.raises(CharlmError, match=said):
            states(make(CLOSED), CLOSED, texts, **options)
    marks = Vocab("ab", normalize=["strip_bom"])
    with pytest.raises(CharlmError, match="none of them empty"):
        states(make(marks), marks, ["\ufeff"])


def test_a_first_character_in_bytes_without_anything_before_it_is_left_out_whole():
    result = score(make(SPELLING), SPELLING, "€a")
    assert math.isnan(result.bits[0]) and (result.characters, result.bytes) == (1, 1)


def test_a_text_longer_than_a_window_is_read_on():
    text = "ab c" * (WINDOW // 4) + "cab"
    model = make(SPELLING)
    result = score(model, SPELLING, text)
    assert result.bits[-5:] == pytest.approx(bits_by_hand(SPELLING, model, [], text)[-5:], rel=1e-4)


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
def test_score_has_no_dropout_and_restores_the_training_flag(training):
    plain = score(make(CLOSED), CLOSED, TEXT)
    model = make(CLOSED, dropout=0.5).train(training)
    assert np.array_equal(score(model, CLOSED, TEXT).bits, plain.bits, equal_nan=True)
    assert all(m.training is training for m in model.modules())
    assert not torch.is_inference_mode_enabled()
