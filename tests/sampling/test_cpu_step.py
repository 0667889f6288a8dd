"""Stepper against CharLM.forward over the whole text, and which models go through it."""

import numpy as np
import pytest
import torch

from charlm.config.fields import ModelConfig, SampleConfig
from charlm.corpus.vocabulary import Vocab
from charlm.model.char_lm import CharLM
from charlm.sampling import cpu_step as stepping
from charlm.sampling import generate
from charlm.sampling.cpu_step import Stepper

V, H, PROMPT, T = 13, 21, 50, 600  # vocabulary, hidden, symbols of the prompt, symbols in all
CELLS = [("rnn", "tanh"), ("rnn", "relu"), ("gru", "tanh"), ("lstm", "tanh")]


def make(cell="lstm", nonlinearity="tanh", layers=2, embedding=7, hidden=H, **options) -> CharLM:
    torch.manual_seed(0)
    sizes = {"num_layers": layers, "embedding_size": embedding, "hidden_size": hidden}
    model = CharLM(ModelConfig(cell=cell, nonlinearity=nonlinearity, **sizes, **options), V).eval()
    recurrent = 1 if nonlinearity == "relu" else 1.5  # with more, relu doubles every rounding at every step
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(4 if "output" in name else recurrent)  # gates that open, shares far from uniform
    return model


@torch.inference_mode()
def check(model: CharLM, lanes: int) -> None:
    ids = torch.randint(V, (lanes, T), generator=torch.Generator().manual_seed(1))
    expected = model(ids)[0].log_softmax(-1)  # [N, T, V]
    _, carry = model(ids[:, :PROMPT])
    kept = [c.clone() for c in carry]
    stepper = Stepper(model, carry)
    found = [torch.tensor(stepper.step(ids[:, t].numpy().copy())) for t in range(PROMPT, T)]
    found = torch.stack(found, 1).log_softmax(-1)
    assert expected.std() > 0.3
    torch.testing.assert_close(found, expected[:, PROMPT:], rtol=0, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(carry, kept, strict=True)), "the carry is copied"


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("embedding", [0, 7], ids=["one-hot", "embedding"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("cell", "nonlinearity"), CELLS)
def test_log_probabilities_equal_forwards_after_a_prompt(cell, nonlinearity, layers, embedding, lanes):
    check(make(cell, nonlinearity, layers, embedding), lanes)


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_tied_weights(cell, lanes):
    check(make(cell, embedding=H, tie_weights=True), lanes)


@pytest.mark.parametrize("hidden", [1, 7, 8, 64])
def test_hidden_sizes_that_do_and_do_not_fill_the_blocks_of_the_products(hidden):
    for lanes in (1, 3):
        check(make("gru", hidden=hidden), lanes)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_gates_far_beyond_the_range_of_exp(cell):
    model = make(cell, layers=1)
    with torch.no_grad():
        model.layers[0].bias_ih_l0.copy_(torch.linspace(-300, 300, len(model.layers[0].bias_ih_l0)))
    check(model, 1)


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_weights_are_those_of_the_moment_it_is_made(lanes):
    model = make()
    steppers = [Stepper(model, model.zeros(lanes)) for _ in range(2)]
    ids = np.full(lanes, 4)
    before = steppers[0].step(ids).copy()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert np.array_equal(steppers[1].step(ids), before)


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_weight_that_is_not_a_number_is_not_hidden(lanes):
    model = make("gru", layers=1)
    with torch.no_grad():
        model.layers[0].weight_hh_l0[:] = torch.nan
    assert np.isnan(Stepper(model, model.zeros(lanes)).step(np.full(lanes, 4))).all()


# which way a model goes


class Elsewhere(CharLM):
    """Reports another device, as a model on a GPU does; there are only CPUs to test on."""

    @property
    def device(self) -> torch.device:
        return torch.device("meta")

    def step(self, ids, carry):
        self.steps = getattr(self, "steps", 0) + 1
        return super().step(ids.to("cpu"), carry)


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.7}])
def test_a_model_on_another_device_steps_by_itself_and_draws_the_same(monkeypatch, num_samples, options):
    vocab, model = Vocab("abcdefghijklm", unknown="error"), make()
    config = SampleConfig(prompt="abc", length=300, seed=3, **options)
    here = list(generate.generate_ids(model, vocab, config, num_samples))
    monkeypatch.setattr(stepping, "Stepper", generate.ModelStepper)  # the same loop, the model's own step
    assert list(generate.generate_ids(model, vocab, config, num_samples)) == here


@pytest.mark.parametrize("options", [{"norm": "layer"}, {"norm": "rms", "residual": True}])
def test_a_model_with_something_between_its_layers_steps_by_itself_as_forward_does(options):
    vocab, model = Vocab("abcdefghijklm", unknown="error"), make("gru", embedding=H, **options)
    assert not stepping.steppable(model) and stepping.steppable(make())
    config = SampleConfig(prompt="abc", length=40, temperature=0)
    drawn = [symbol for (symbol,) in generate.generate_ids(model, vocab, config)]
    read = [*vocab.encode("abc"), *drawn]
    likeliest = model(torch.tensor([read], dtype=torch.int64))[0].argmax(-1)[0].tolist()
    assert likeliest[2:-1] == drawn


def test_only_a_model_on_a_cpu_goes_through_stepper(monkeypatch):
    vocab, model = Vocab("abcdefghijklm", unknown="error"), make()
    config = SampleConfig(prompt="abc", length=5)

    def refuse(*_):
        raise AssertionError("Stepper is for the CPU")

    monkeypatch.setattr(stepping, "Stepper", refuse)
    with pytest.raises(AssertionError):
        list(generate.generate_ids(model, vocab, config, 1))
    model.__class__ = Elsewhere
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_: self)  # nothing can be moved to such a device
    monkeypatch.setattr(CharLM, "zeros", lambda self, n: tuple(torch.zeros(2, n, H) for _ in range(2)))
    assert len(list(generate.generate_ids(model, vocab, config, 1))) == 5
    assert model.steps == 4
