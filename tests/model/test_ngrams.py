"""model.ngrams: hashed embeddings of the last symbols, exact wherever a text is cut, in a whole run too."""

import copy

import numpy as np
import pytest
import torch
from helpers import MIXED, assert_same_state, changed, newest, small, train_on

from charlm import load
from charlm.config.fields import EvaluateConfig, ModelConfig, OptimConfig
from charlm.errors import CharlmError
from charlm.evaluation.dynamic import evaluate_dynamic
from charlm.evaluation.evaluate import evaluate
from charlm.model.char_lm import CharLM
from charlm.model.layers import HASH_FACTOR, HASH_PRIME, NGrams
from charlm.sampling.cpu_step import Stepper
from charlm.sampling.generate import ModelStepper
from charlm.sharing.onnx import export
from charlm.training.loop import train
from charlm.training.optimizer import Average, make_optimizer

B, T, V, N, ROWS, SIZE = 3, 19, 11, 4, 97, 6
NGRAMS = {"ngrams": N, "ngram_rows": ROWS, "ngram_size": SIZE}
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, V, (B, T)))


def model_of(cell: str = "lstm", **options) -> CharLM:
    torch.manual_seed(1)
    sizes = {"embedding_size": 5, "hidden_size": 16, "num_layers": 2}
    model = CharLM(ModelConfig(cell=cell, **sizes, **NGRAMS, **options), V).eval()
    torch.nn.init.normal_(model.ngrams.weight)
    return model


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def row_of(symbols: list[int]) -> int:
    """The row of an n-gram, newest symbol last; None is before the start of the text."""
    codes = [0 if s is None else s + 1 for s in reversed(symbols)]
    hashed = codes[0]
    for code in codes[1:]:
        hashed = (hashed * HASH_FACTOR + code) % HASH_PRIME
    return hashed * (2 * len(symbols) + 40503) % HASH_PRIME % ROWS


def test_it_is_the_sum_of_the_rows_of_the_last_2_to_n_symbols():
    table = NGrams(N, ROWS, SIZE)
    assert not table.weight.any()  # an n-gram that was never met adds nothing
    torch.nn.init.normal_(table.weight)
    x, last = table(IDS.t(), torch.zeros(B, N - 1))
    for lane in range(B):
        text = [None] * (N - 1) + IDS[lane].tolist()
        for t in range(T):
            rows = [row_of(text[t + N - n : t + N]) for n in range(2, N + 1)]
            close(x[t, lane], table.weight[rows].sum(0))
    close(last, IDS[:, 1 - N :] + 1.0)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@torch.no_grad()
def test_a_text_in_pieces_and_symbol_by_symbol_equals_the_text_at_once(cell):
    model = model_of(cell)
    logits, carry = model(IDS)
    parts, states = [], None
    for piece in IDS.split([7, 1, 2, 9], 1):  # shorter than an n-gram, too
        out, states = model(piece, states)
        parts.append(out)
    close(torch.cat(parts, 1), logits)
    steps, stepped = [], model.zeros(B)
    for t in range(T):
        out, stepped = model.step(IDS[:, t], stepped)
        steps.append(out)
    close(torch.stack(steps, 1), logits)
    for after in (states, stepped):
        for a, b in zip(after, carry, strict=True):
            close(a, b)


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@torch.no_grad()
def test_the_compiled_step_equals_the_model(cell, lanes):
    model = model_of(cell)
    _, carry = model(IDS[:lanes, :5])
    logits, _ = model(IDS[:lanes, 5:], carry)
    stepper = Stepper(model, carry)
    for t in range(5, T):
        close(torch.from_numpy(stepper.step(IDS[:lanes, t].numpy())), logits[:, t - 5], atol=1e-4)
    assert carry[-1][0, 0].tolist() == (IDS[0, 2:5] + 1).tolist()  # its own copy is what changes


def test_lanes_of_an_evaluation_agree_with_one_pass_where_the_context_is_as_long(tmp_path):
    model, vocab = load_run(tmp_path)
    ids = vocab.encode(MIXED)
    one = evaluate(model, vocab, ids, EvaluateConfig(lanes=1))
    four = evaluate(model, vocab, ids, EvaluateConfig(lanes=4, context=200))
    assert four["lanes"] == 4 and four["bpc"] == pytest.approx(one["bpc"], abs=2e-3)


def test_dynamic_evaluation_leaves_the_table_as_it_is(tmp_path):
    model, vocab = load_run(tmp_path)
    figures = evaluate_dynamic(model, vocab, vocab.encode(MIXED[:800]), EvaluateConfig())
    assert figures["dynamic"]["bpc"] < figures["bpc"] and model.ngrams.weight.requires_grad


@torch.no_grad()
def test_a_step_in_bf16_reads_the_same_rows():
    model = model_of()
    _, carry = model(IDS)
    stepper = ModelStepper(model, carry)
    model.compute_dtype = torch.bfloat16
    rounded = ModelStepper(model, carry)
    for t in range(T):
        exact, out = stepper.step(IDS[:, t].numpy()), rounded.step(IDS[:, t].numpy())
        assert np.abs(exact - out).max() < 0.05
    assert torch.equal(rounded.carry[-1], stepper.carry[-1])


def test_a_sparse_gradient_changes_the_rows_as_a_dense_one_and_no_others():
    optim = OptimConfig(learning_rate=0.01)
    sparse, dense = model_of(), model_of()
    dense.ngrams.sparse = False
    before = sparse.ngrams.weight.detach().clone()
    optimizers = [make_optimizer(model, optim) for model in (sparse, dense)]
    for ids in (IDS, IDS.flip(1)):
        for model, optimizer in zip((sparse, dense), optimizers, strict=True):
            optimizer.zero_grad()
            model(ids[:, :-1], None, ids[:, 1:])[0].backward()
            assert model.ngrams.weight.grad.is_sparse == (model is sparse)
            optimizer.step()
    close(sparse.ngrams.weight, dense.ngrams.weight, atol=1e-6)
    read = optimizers[0].state[sparse.ngrams.weight]["sum"] > 0
    assert 0 < read.sum() < ROWS
    assert torch.equal(sparse.ngrams.weight[~read], before[~read])
    assert (sparse.ngrams.weight != before).any(1).equal(read)


def test_the_average_of_weights_reads_the_table_itself():
    model = model_of()
    average = Average(model, 0.9)
    assert average.model.ngrams.weight is model.ngrams.weight and model.ngrams.weight.requires_grad
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    average.update(model, 10)
    assert torch.equal(average.model.ngrams.weight, model.ngrams.weight)
    assert not torch.equal(average.model.output.weight, model.output.weight)


# runs


def run_config(run_dir, **changes):
    model = {"embedding_size": 6, "hidden_size": 12, **NGRAMS}
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
    assert tensors["carry"]["2"].shape == (1, 4, N - 1)
    assert tensors["optimizer"]["ngrams.weight/sum"].shape == (ROWS,)
    assert "ngrams.weight" in tensors["model"] and "ngrams.weight" not in tensors["average"]


def test_two_processes_train_as_one_does(tmp_path):
    one, two = (run_config(tmp_path / name) for name in ("one", "two"))
    train(one, quiet=True)
    train_on(2, two)
    (_, tensors), (_, others) = newest(one.run_dir), newest(two.run_dir)
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
    torch.nn.init.normal_(model.ngrams.weight)
    assert export(model, vocab, tmp_path / "model.onnx") < 1e-4


def test_a_warm_start_copies_the_table_between_equal_vocabularies_only(tmp_path):
    first = run_config(tmp_path / "run")
    train(first, quiet=True)
    seen = []
    later = {"train": {"init_from": str(first.run_dir), "steps": 1}}
    watch = lambda step, model, loss: seen.append(copy.deepcopy(model.ngrams.weight.detach()))  # noqa: E731
    train(changed(run_config(tmp_path / "same"), **later), quiet=True, watch=watch)
    other = changed(run_config(tmp_path / "other"), data={"text": MIXED.replace("q", "Q")}, **later)
    train(other, quiet=True, watch=watch)
    assert torch.equal(seen[0], load(first.run_dir).model.ngrams.weight)
    assert seen[0].any() and not seen[1].any()


@pytest.mark.parametrize("options", [{"ngrams": 1}, {"ngrams": 3, "embedding_size": 0}])
def test_values_that_mean_nothing_are_refused(options):
    with pytest.raises(
        CharlmError, match=r"model\.ngrams=\d: must be 0; or 2 or more, with an embedding_size"
    ):
        ModelConfig(**options)
