"""model.ngrams: counted n-grams, exact wherever a text is cut; in a whole run, with model.recall, too."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import MIXED, assert_same_state, carries_of_pieces, changed, newest, small, train_on

from charlm import load
from charlm.config.fields import EvaluateConfig, ModelConfig, OptimConfig
from charlm.errors import CharlmError
from charlm.evaluation.dynamic import _Adapting, evaluate_dynamic
from charlm.evaluation.evaluate import evaluate
from charlm.model.char_lm import CharLM
from charlm.model.evidence import COUNTS, SLOTS, SYMBOLS, NGrams
from charlm.sampling.cpu_step import steppable
from charlm.sampling.generate import ModelStepper
from charlm.sharing.onnx import export
from charlm.training.loop import train
from charlm.training.optimizer import Average, averaged, make_optimizer

B, T, V, N, LINES = 3, 19, 11, 4, 1 << 12
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, V, (B, T)))
TEXT = np.random.default_rng(1).choice(V, 600, p=np.arange(1, V + 1) / 66).astype(np.uint8)


def model_of(cell: str = "lstm", **options) -> CharLM:
    torch.manual_seed(1)
    sizes = {"embedding_size": 5, "hidden_size": 16, "num_layers": 2, "ngrams": N, "ngram_lines": LINES}
    model = CharLM(ModelConfig(cell=cell, **sizes | options), V).eval()
    model.ngrams.count(TEXT)
    torch.nn.init.normal_(model.ngrams.weight)
    torch.nn.init.normal_(model.ngrams.bias)
    return model


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def followers(text: list[int], context: list[int], left_out: int | None = None) -> list[Counter]:
    """What followed a context, newest symbol last, for contexts of N // 2 to N symbols. left_out: the
    position of a symbol that is not counted."""
    found = []
    for n in range(N // 2, N + 1):
        at = [i for i in range(n, len(text)) if text[i - n : i] == context[-n:] and i != left_out]
        found.append(Counter(text[i] for i in at) if len(context) >= n else Counter())
    return found


def test_it_finds_what_followed_and_how_often():
    ngrams = model_of().ngrams.eval()
    found, last = ngrams(IDS.t(), torch.zeros(B, N - 1))
    of_targets, _ = ngrams(IDS.t()[:-1], torch.zeros(B, N - 1), IDS.t()[1:])
    met = set()
    for lane in range(B):
        text = IDS[lane].tolist()
        for t in range(T):
            for i, expected in enumerate(followers(TEXT.tolist(), text[: t + 1])):
                count, total, kinds = (x[t, lane] for x in found[i])
                assert count.tolist() == [expected[v] for v in range(V)]
                assert (total.item(), kinds.item()) == (expected.total(), len(expected))
                met |= {i} if expected else set()
                if t + 1 < T:
                    figures = [x[t, lane].item() for x in of_targets[i]]
                    assert figures == [expected[text[t + 1]], expected.total(), len(expected)]
    assert met == {0, 1, 2}
    close(last, IDS[:, 1 - N :] + 1.0)


def test_in_training_the_occurrence_that_is_predicted_is_left_out():
    ngrams, text = model_of().ngrams.train(), torch.from_numpy(TEXT).long()[:, None]
    found, _ = ngrams(text[:-1], torch.zeros(1, N - 1), text[1:])
    for t in range(0, len(text) - 1, 7):
        context, target = TEXT[: t + 1].tolist(), TEXT[t + 1]
        for i, expected in enumerate(followers(TEXT.tolist(), context, left_out=t + 1)):
            figures = [x[t, 0].item() for x in found[i]]
            assert figures == [expected[target], expected.total(), len(expected)]


def test_counts_correct_a_prediction():
    """By hand: p (count + g p) / (total + g) for every length, g = exp(weight · output + bias[kinds])."""
    ngrams, h = model_of().ngrams, torch.randn(T, B, 16)
    p = torch.rand(T, B, V).softmax(-1)
    found, _ = ngrams(IDS.t(), torch.zeros(B, N - 1))
    combined = ngrams.combine(p.log(), found, h).exp()
    for t, lane in [(0, 0), (5, 1), (T - 1, 2)]:
        expected = p[t, lane]
        for i, (count, total, kinds) in enumerate(x for x in found):
            g = (ngrams.weight[i] @ h[t, lane] + ngrams.bias[i, kinds[t, lane]]).exp()
            expected = (count[t, lane] + g * expected) / (total[t, lane] + g)
        close(combined[t, lane], expected)
    close(combined.sum(-1), torch.ones(T, B))


def test_it_counts_the_same_on_any_number_of_threads(monkeypatch):
    tables = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        tables.append(model_of().ngrams.table)
    assert tables[0].any() and torch.equal(tables[0], tables[1]) and torch.equal(tables[0], tables[2])


def test_a_table_too_small_keeps_what_is_frequent():
    ngrams = NGrams(N, 3, V, 16).eval()
    often = np.tile(np.array([7, 8], np.uint8), 4000)  # beyond what a slot can count
    ngrams.count(np.concatenate([often, TEXT]))
    assert (ngrams.table % COUNTS).max() < COUNTS - 1 and (ngrams.table > 0).all()
    found, _ = ngrams(torch.tensor([[7], [8], [7], [8], [7]]), torch.zeros(1, N - 1))
    for count, total, _ in found:
        assert count[-1, 0, 8] > 0.95 * total[-1, 0, 0] > 100


def test_a_full_slot_keeps_the_proportions():
    ngrams = NGrams(2, 64, 3, 16)
    ngrams.lengths = range(1, 2)
    ngrams.count(np.tile(np.array([0, 1, 0, 1, 0, 2], np.uint8), 2000))  # after 0: 1 twice as often as 2
    slots = {s // COUNTS % SYMBOLS: s % COUNTS for s in ngrams.table.flatten().tolist() if s}
    counts = [s % COUNTS for s in ngrams.table.flatten().tolist() if s]
    assert len(counts) == 4 and max(counts) < COUNTS and 1.6 < slots[1] / slots[2] < 2.4
    assert ngrams.table.shape == (64, SLOTS)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@torch.no_grad()
def test_a_text_in_pieces_and_symbol_by_symbol_equals_the_text_at_once(cell):
    model = model_of(cell)
    log_p, carry = model(IDS)
    close(log_p.exp().sum(-1), torch.ones(B, T))
    nats, _ = model(IDS[:, :-1], None, IDS[:, 1:], "none")
    close(nats, -log_p[:, :-1].gather(-1, IDS[:, 1:, None])[..., 0])
    for reduction in ("mean", "sum"):
        close(model(IDS[:, :-1], None, IDS[:, 1:], reduction)[0], getattr(nats, reduction)(), atol=1e-3)
    for after in carries_of_pieces(model, IDS, [7, 1, 2, 9], log_p):  # shorter than an n-gram, too
        for a, b in zip(after, carry, strict=True):
            close(a, b)


def test_lanes_of_an_evaluation_agree_with_one_pass_where_the_context_is_as_long(tmp_path):
    model, vocab = load_run(tmp_path)
    ids = vocab.encode(MIXED)
    one = evaluate(model, vocab, ids, EvaluateConfig(lanes=1))
    four = evaluate(model, vocab, ids, EvaluateConfig(lanes=4, context=200))
    assert four["lanes"] == 4 and four["bpc"] == pytest.approx(one["bpc"], abs=2e-3)


def test_dynamic_evaluation_adapts_how_much_the_counts_weigh_and_not_the_counts(tmp_path):
    model, vocab = load_run(tmp_path)
    before = copy.deepcopy(model.state_dict())
    figures = evaluate_dynamic(model, vocab, vocab.encode(MIXED[:800]), EvaluateConfig())
    assert figures["dynamic"]["bpc"] < figures["bpc"]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    adapting = _Adapting(model, 0.01, 0.0)
    with torch.no_grad():
        adapting(IDS[:, :-1], None, IDS[:, 1:], "none")
    adapted = adapting.model.state_dict()
    assert torch.equal(adapted["ngrams.table"], before["ngrams.table"])
    assert not torch.equal(adapted["ngrams.bias"], before["ngrams.bias"])


def test_no_output_of_the_network_makes_a_prediction_that_is_no_number():
    model, h = model_of().train(), torch.randn(T, B, 16)
    found, _ = model.ngrams(IDS.t()[:-1], torch.zeros(B, N - 1), IDS.t()[1:])
    for scale in (1e3, -1e3, 1e30):
        with torch.no_grad():
            model.ngrams.weight.fill_(scale)
        log_p = torch.full((T - 1, B), -2.0, requires_grad=True)
        combined = model.ngrams.combine(log_p, found, h[1:].abs())
        combined.sum().backward()
        assert combined.isfinite().all() and log_p.grad.isfinite().all()


def test_the_mean_is_over_targets_that_count():
    model, targets = model_of(), IDS[:, 1:].clone()
    targets[:, 9:] = -100
    mean, _ = model(IDS[:, :-1], None, targets)
    close(mean, model(IDS[:, :9], None, IDS[:, 1:10])[0])


def test_neither_the_counts_nor_how_much_they_weigh_by_kind_decay():
    model = model_of()
    groups = make_optimizer(model, OptimConfig(weight_decay=0.1)).param_groups
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    ngrams = model.ngrams
    assert id(ngrams.table) not in decays and len(decays) == len(averaged(model))
    assert (decays[id(ngrams.weight)], decays[id(ngrams.bias)]) == (0.1, 0.0)


@torch.no_grad()
def test_a_step_in_bf16_reads_the_same_counts():
    model = model_of()
    assert not steppable(model)
    _, carry = model(IDS)
    stepper = ModelStepper(model, carry)
    model.compute_dtype = torch.bfloat16
    rounded = ModelStepper(model, carry)
    for t in range(T):
        exact, out = stepper.step(IDS[:, t].numpy()), rounded.step(IDS[:, t].numpy())
        assert np.abs(exact - out).max() < 0.1
    assert torch.equal(rounded.carry[-1], stepper.carry[-1])


def test_the_average_of_weights_reads_the_same_counts():
    model = model_of()
    average = Average(model, 0.9)
    assert average.model.ngrams.table is model.ngrams.table
    with torch.no_grad():
        for name in ("output.weight", "ngrams.weight"):
            model.get_parameter(name).add_(1)
    average.update(model, 10)
    for name in ("output.weight", "ngrams.weight"):
        assert not torch.equal(average.model.get_parameter(name), model.get_parameter(name))


def test_one_symbol_of_context_is_refused():
    with pytest.raises(CharlmError, match=r"model\.ngrams=1: must be 0, or 2 or more"):
        ModelConfig(ngrams=1)


def test_a_vocabulary_that_does_not_fit_in_a_slot_is_refused():
    with pytest.raises(CharlmError, match=r"at most 2048 symbols, not 2049; set vocab.max_size=2048, or"):
        CharLM(ModelConfig(ngrams=2), 2049)


# runs


def run_config(run_dir, **changes):
    model = {"embedding_size": 6, "hidden_size": 12, "ngrams": N, "ngram_lines": LINES, "recall": 32}
    return small(run_dir, model=model, optim={"average": 0.8, "weight_decay": 0.1}, **changes)


def load_run(tmp_path):
    train(run_config(tmp_path / "run"), quiet=True)
    model, vocab, _ = load(tmp_path / "run")
    return model, vocab


class Stopped(Exception):
    pass


def test_a_run_that_was_ended_resumes_to_the_same_bits(tmp_path):
    def watch(step, model, loss):
        if step == 7:
            raise Stopped

    whole, ended = (
        run_config(tmp_path / name, checkpoint={"every": 3}, evaluate={"every": 5})
        for name in ("whole", "ended")
    )
    train(whole, quiet=True)
    with pytest.raises(Stopped):
        train(ended, quiet=True, watch=watch)
    train(ended, quiet=True)
    assert_same_state(whole.run_dir, ended.run_dir)
    _, tensors = newest(whole.run_dir)
    assert tensors["carry"]["2"].shape == (1, 4, N - 1) and tensors["carry"]["3"][..., :192].any(-1).all()
    assert "ngrams.table" in tensors["model"] and "ngrams.table" not in tensors["average"]
    assert "ngrams.weight" in tensors["average"]


def test_two_processes_train_as_one_does(tmp_path):
    one, two = (run_config(tmp_path / name) for name in ("one", "two"))
    train(one, quiet=True)
    train_on(2, two)
    (_, tensors), (_, others) = newest(one.run_dir), newest(two.run_dir)
    assert torch.equal(tensors["model"]["ngrams.table"], others["model"]["ngrams.table"])
    for group in ("model", "carry", "average"):
        for name, tensor in tensors[group].items():
            close(others[group][name], tensor, atol=1e-4)


def test_slices_train_as_the_whole_does(tmp_path):
    whole, slices = run_config(tmp_path / "whole"), run_config(tmp_path / "slices", train={"accumulate": 2})
    train(whole, quiet=True)
    train(slices, quiet=True)
    (_, tensors), (_, others) = newest(whole.run_dir), newest(slices.run_dir)
    for name, tensor in tensors["model"].items():
        close(others["model"][name], tensor, atol=1e-5)


def test_samples_and_onnx(tmp_path):
    model, vocab = load_run(tmp_path)
    trained = load(tmp_path / "run")
    options = {"prompt": "The ", "length": 40, "seed": 3}
    assert trained.generate(**options) == trained.generate(num_samples=2, **options)[0]
    assert export(model, vocab, tmp_path / "model.onnx") < 1e-4


def test_a_warm_start_keeps_the_counts_of_its_own_text(tmp_path):
    first = run_config(tmp_path / "run")
    train(first, quiet=True)
    seen = []
    later = {"train": {"init_from": str(first.run_dir), "steps": 1}}
    other = changed(run_config(tmp_path / "other"), data={"text": MIXED.replace("q", "Q")}, **later)
    train(other, quiet=True, watch=lambda step, model, loss: seen.append(copy.deepcopy(model.ngrams)))
    source = load(first.run_dir).model.ngrams
    assert torch.equal(seen[0].bias, source.bias) and seen[0].bias.any()
    assert seen[0].table.any() and not torch.equal(seen[0].table, source.table)


def test_a_text_that_repeats_itself_is_learned_sooner(tmp_path):
    text = {"text": MIXED * 3}
    scores = [
        train(changed(run_config(tmp_path / str(n)), model={"ngrams": n}, data=text), quiet=True).best["bpc"]
        for n in (0, N)
    ]
    assert scores[1] < scores[0] - 0.5
