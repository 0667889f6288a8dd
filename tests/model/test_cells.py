"""Cells: one registered from outside through everything that charlm does with a model; the GRU window of CPUs
against nn.GRU."""

import os
import signal
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import MIXED, assert_same_state, changed, losses, small
from torch import Tensor, nn

import charlm
from charlm.config.fields import Config, EvaluateConfig, ModelConfig, TrainConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.evaluation.by_context import by_context
from charlm.evaluation.dynamic import evaluate_dynamic
from charlm.evaluation.evaluate import evaluate
from charlm.model import cells
from charlm.model.cells import CELLS, Cell, GruWindow
from charlm.model.char_lm import CharLM
from charlm.model.layers import bernoulli_mask
from charlm.monitor.doctor import cudnn_kernels
from charlm.report.probe import nearest_symbols
from charlm.sharing.onnx import export
from charlm.training.loop import train
from charlm.training.resume import warm_start
from charlm.training.setup import threads_for

B, T, E, H = 3, 7, 4, 5
IDS = torch.arange(14).view(2, 7) % 6


# a cell from outside


def scan(x: Tensor, h: Tensor, c: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A minimal gated unit (Zhou et al. 2016) with a slow second state: x [B, T, E], h and c [B, H]."""
    size = h.shape[1]
    gates = x @ w.t()
    outs = []
    for t in range(x.shape[1]):
        f = torch.sigmoid(gates[:, t, :size] + h @ u[:size].t())
        n = torch.tanh(gates[:, t, size:] + (f * h) @ u[size:].t())
        h = (1 - f) * h + f * n
        c = 0.9 * c + 0.1 * h
        outs.append(h + c)
    return torch.stack(outs, 1), h, c


class ToyLayer(nn.Module):
    def __init__(self, input_size: int, config: ModelConfig):
        super().__init__()
        size = config.hidden_size
        self.w = nn.Parameter(torch.empty(2 * size, input_size).uniform_(-0.5, 0.5))
        self.u = nn.Parameter(torch.empty(2 * size, size).uniform_(-0.5, 0.5))

    def forward(self, x, state):
        loop = torch.jit.script(scan) if torch.jit.is_tracing() else scan  # for ONNX alone
        out, h, c = loop(x, state[0][0], state[1][0], self.w, self.u)
        return out, (h[None], c[None])


TOY = Cell("minimal gated unit", ToyLayer, states=("h", "slow"), gates=2)
TOY_MODEL = {"cell": "toy", "num_layers": 2, "dropout": 0.1}


@pytest.fixture(autouse=True, scope="module")
def toy():
    CELLS["toy"] = TOY
    CELLS["named toy"] = Cell(TOY.title, ToyLayer, TOY.states, 2, input_weight="w", recurrent_weight="u")
    yield
    del CELLS["toy"], CELLS["named toy"]


def make(cell="toy", symbols=6, **options) -> CharLM:
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_size": 5, "num_layers": 2}
    return CharLM(ModelConfig(**sizes | {"cell": cell} | options), symbols)


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory) -> Config:
    """A run of the toy cell: 30 steps, averaged weights, card, sample, test."""
    options = {"optim": {"learning_rate": 0.05, "average": 0.9}, "train": {"steps": 30}}
    options |= {"sample": {"every": 6}, "checkpoint": {"every": 6}}
    config = small(tmp_path_factory.mktemp("toy") / "run", model=TOY_MODEL, **options)
    assert train(config, quiet=True).status == "done"
    return config


def test_a_run_of_a_cell_from_outside_is_loaded_scored_and_sampled(trained):
    values = [loss for _, loss in losses(trained.run_dir)]
    assert sum(values[-3:]) < 0.9 * sum(values[:3])
    opened = charlm.load(trained.run_dir, "cpu")
    model, vocab, config = opened
    assert config.model.cell == "toy" and isinstance(model.layers[1], ToyLayer)
    text = MIXED[:400]
    ids = vocab.encode(text)
    exact = evaluate(model, vocab, ids, EvaluateConfig(lanes=1, context=0))
    warm = evaluate(model, vocab, ids, EvaluateConfig(lanes=3, context=64))
    assert warm["bpc"] == pytest.approx(exact["bpc"], rel=1e-3)
    assert opened.score(text).bpc == pytest.approx(exact["bpc"], rel=1e-6)
    first, *_ = by_context(model, vocab, ids, EvaluateConfig())
    assert first["carried_nats_per_character"] == pytest.approx(exact["nats_per_character"], rel=1e-6)
    figures = evaluate_dynamic(model, vocab, ids, EvaluateConfig(), 1e-3, 0)
    assert figures["dynamic"]["bpc"] < figures["bpc"]
    sample = opened.generate(prompt="The ", length=9, temperature=0)
    read = vocab.encode("The " + sample).astype("int64")
    likeliest = model(torch.from_numpy(read)[None])[0].argmax(-1)[0]
    assert likeliest[3:-1].tolist() == read[4:].tolist()
    card = Path(trained.run_dir, "model", "README.md").read_text()
    assert "language model: minimal gated unit, 2 layer(s)" in card


def test_a_run_of_a_cell_from_outside_resumes_bit_for_bit(trained, tmp_path):
    def stop(step, model, loss):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    parted = changed(trained)
    parted.run_dir = str(tmp_path / "run")
    assert train(parted, quiet=True, watch=stop).status == "interrupted"
    assert train(parted, quiet=True).status == "done"
    assert_same_state(parted.run_dir, trained.run_dir)


def test_the_carry_of_a_cell_from_outside_is_handed_on():
    model, ids = make().eval(), torch.arange(22).view(2, 11) % 6
    logits, carry = model(ids)
    assert [c.shape for c in carry] == [(2, 2, 5)] * 2
    pieces, handed = [], None
    for piece in ids.split([1, 4, 6], 1):
        out, handed = model(piece, handed)
        pieces.append(out)
    torch.testing.assert_close(torch.cat(pieces, 1), logits)
    stepped = model.zeros(2)
    for t in range(11):
        out, stepped = model.step(ids[:, t], stepped)
    torch.testing.assert_close(out, logits[:, -1])
    torch.testing.assert_close((handed, stepped), (carry, carry))


def test_a_cell_from_outside_becomes_onnx(tmp_path):
    model, vocab = make(symbols=8), Vocab("abcdefgh", unknown="error")
    assert export(model, vocab, tmp_path / "m.onnx") < 1e-5
    inputs = onnxruntime.InferenceSession(tmp_path / "m.onnx").get_inputs()
    assert [i.name for i in inputs] == ["ids", "h", "slow"]


def test_a_cell_from_outside_in_bf16_gives_float32_gradients():
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        model = make()
        model.compute_dtype = dtype
        loss, carry = model(IDS, None, IDS)
        loss.backward()
        assert {t.dtype for t in (*carry, *(p.grad for p in model.parameters()))} == {torch.float32}
        results.append(loss.item())
    assert results[0] != results[1] == pytest.approx(results[0], rel=2e-2)


def test_weight_drop_masks_the_parameter_that_the_cell_names():
    model, plain = make("named toy", weight_drop=0.4), make("named toy")
    torch.manual_seed(3)
    for layer in plain.layers:
        layer.u.data.mul_(bernoulli_mask(layer.u, 0.4))
    torch.manual_seed(3)
    torch.testing.assert_close(model(IDS, None, IDS), plain(IDS, None, IDS))
    with pytest.raises(CharlmError, match=r"model\.weight_drop=0\.4: not for cell toy"):
        make(weight_drop=0.4)


def test_what_else_a_cell_decides(tmp_path):
    config = Config(model=ModelConfig(cell="toy", hidden_size=768), train=TrainConfig(batch_size=2))
    assert threads_for(config, 1) == min(2, torch.get_num_threads())  # gates · units · lanes / 1536
    assert cudnn_kernels(config, 8) == ["none: the cell is not one of cuDNN's"]
    vocab, other = Vocab("abcdefgh", unknown="error"), Vocab("hgfa", unknown="error")
    one_hot = make("named toy", embedding_size=0, symbols=8)
    assert len(nearest_symbols(one_hot, vocab, np.full(8, 9))) == 8
    assert nearest_symbols(make(embedding_size=0, symbols=8), vocab, np.full(8, 9)) == []
    one_hot.save_pretrained(tmp_path, vocab)
    model = make("named toy", embedding_size=0, symbols=4)
    warm_start(model, other, str(tmp_path))
    assert torch.equal(model.layers[0].w, one_hot.layers[0].w[:, [7, 6, 5, 0]])


@pytest.mark.parametrize(
    ("name", "fix"), [("lstn", "did you mean lstm"), ("transformer", "choose one of lstm,")]
)
def test_an_unknown_cell_is_refused_before_anything_is_prepared(tmp_path, name, fix):
    with pytest.raises(CharlmError, match=f"model.cell='{name}': {fix}"):
        train(small(tmp_path / "run", model={"cell": name}), quiet=True)
    assert not (tmp_path / "data").exists()


# torch's cells


@pytest.mark.parametrize("bias", [1.0, 0.0, -2.5])
def test_forget_gates_start_with_the_forget_bias_and_nothing_else_changes(bias):
    model = make("lstm", forget_bias=bias)
    torch.manual_seed(0)
    nn.Embedding(6, E)
    for layer, width in zip(model.layers, (E, H), strict=True):
        plain = nn.LSTM(width, H, batch_first=True)
        total = layer.bias_ih_l0 + layer.bias_hh_l0
        assert torch.equal(total[H : 2 * H], torch.full((H,), bias))
        for part in (slice(0, H), slice(2 * H, None)):
            assert torch.equal(total[part], (plain.bias_ih_l0 + plain.bias_hh_l0)[part])
        assert torch.equal(layer.weight_ih_l0, plain.weight_ih_l0)
        assert torch.equal(layer.weight_hh_l0, plain.weight_hh_l0)


def test_forget_bias_lets_the_cell_state_stay():
    model = make("lstm", num_layers=1, forget_bias=30.0)
    with torch.no_grad():
        model.layers[0].weight_ih_l0.zero_()
        model.layers[0].weight_hh_l0.zero_()
        model.layers[0].bias_ih_l0[:H] = -30  # input gate shut
    start = tuple(torch.randn(1, 2, H) for _ in range(2))
    _, (_, c) = model(IDS, start)
    torch.testing.assert_close(c, start[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("cell", "nonlinearity"), [("rnn", "tanh"), ("rnn", "relu"), ("gru", "tanh"), ("lstm", "tanh")]
)
def test_layers_in_one_call_equal_those_one_by_one(cell, nonlinearity, dtype):
    """As a GPU computes them, where nothing lies between layers."""
    if dtype == torch.bfloat16 and cell == "lstm" and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("torch's LSTM in bf16 is for CPUs with AVX-512")
    model = make(cell, nonlinearity=nonlinearity, num_layers=3)
    assert model.in_one_call
    x, states = torch.randn(B, T, E).to(dtype), tuple(torch.randn_like(c) for c in model.zeros(B))
    results = []
    for calls in ([list(model.layers)], [[layer] for layer in model.layers]):
        model.zero_grad()
        out, carry = x, []
        for layers in calls:
            at = slice(len(carry), len(carry) + len(layers))
            state = tuple(c[at].contiguous() for c in states)
            out, new = model.cell.window(layers, out, state, dtype)
            carry.extend(zip(*(c.unbind() for c in new), strict=True))
        (out.float().square().sum() + sum(c.float().sum() for layer in carry for c in layer)).backward()
        results.append([out, *sum(carry, ()), *(p.grad for p in model.layers.parameters())])
    for ours, theirs in zip(*results, strict=True):
        wide = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(ours, theirs, rtol=wide, atol=wide * theirs.abs().max().item())


@pytest.mark.parametrize(
    "between",
    [{"dropout": 0.1}, {"weight_drop": 0.1}, {"norm": "rms"}, {"residual": True}, {"num_layers": 1}],
)
def test_layers_with_something_between_them_are_not_one_call(between):
    assert make("lstm").in_one_call and not make("lstm", **between).in_one_call and not make().in_one_call


# the window of a GRU on a CPU


def layer_and_input(dtype, seed=0, lanes=B, steps=T):
    torch.manual_seed(seed)
    layer = nn.GRU(E, H, batch_first=True).to(dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(2)
    x = torch.randn(lanes, steps, E, dtype=dtype, requires_grad=True)
    h = torch.randn(1, lanes, H, dtype=dtype, requires_grad=True)
    return layer, x, h


def gru_window(x, h, weights):
    out, last = GruWindow.apply(x, h[0], *weights)
    return out, last[None]


def loss_of(out, last, draw=None):
    """Weighs every output and the carry differently."""
    draw = torch.Generator().manual_seed(9)
    a, b = (torch.randn(v.shape, generator=draw, dtype=v.dtype) for v in (out, last))
    return (out * a).sum() + (last * b).sum()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("lanes", "steps"), [(B, T), (1, T), (B, 1), (2, 70)])
def test_values_and_every_gradient_equal_nn_gru(dtype, atol, lanes, steps):
    layer, x, h = layer_and_input(dtype, lanes=lanes, steps=steps)
    inputs = [x, h, *layer.parameters()]
    expected = layer(x, h)
    expected_grads = torch.autograd.grad(loss_of(*expected), inputs)
    found = gru_window(x, h, layer._flat_weights)
    assert [v.shape for v in found] == [v.shape for v in expected]
    grads = torch.autograd.grad(loss_of(*found), inputs)
    for a, b in zip((*found, *grads), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol * max(1, b.abs().max().item()))


def test_the_gradient_that_comes_in_is_left_as_it_was():
    """It may be another layer's too, and lies time first, as the window does."""
    layer, x, h = layer_and_input(torch.float64)
    out, last = gru_window(x, h, layer._flat_weights)
    g = torch.randn(T, B, H, dtype=torch.float64).transpose(0, 1)
    before = g.clone()
    torch.autograd.grad((out, last), (x, h), (g, torch.randn_like(last)))
    assert torch.equal(g, before)


def test_gradcheck():
    layer, x, h = layer_and_input(torch.float64)

    def window(x, h, *weights):
        other = nn.GRU(E, H, batch_first=True).double()
        for name, weight in zip(dict(layer.named_parameters()), weights, strict=True):
            delattr(other, name)
            setattr(other, name, weight)
        return gru_window(x, h, other._flat_weights)

    assert torch.autograd.gradcheck(window, (x, h, *layer.parameters()))


def test_a_gradient_of_one_of_the_outputs_alone():
    layer, x, h = layer_and_input(torch.float64)
    for i in (0, 1):
        expected = torch.autograd.grad(layer(x, h)[i].square().sum(), [x, h])
        found = torch.autograd.grad(gru_window(x, h, layer._flat_weights)[i].square().sum(), [x, h])
        torch.testing.assert_close(found, expected)


def test_for_backward_it_keeps_five_numbers_per_unit_and_its_input():
    """Per lane and character, beside the weights: the three gates, n, the state; and the first state."""
    layer, x, h = layer_and_input(torch.float32)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.update({t.data_ptr(): t.numel()}) or t, lambda t: t
    ):
        gru_window(x, h, layer._flat_weights)
    for p in layer.parameters():
        kept.pop(p.data_ptr(), None)
    assert sum(kept.values()) == B * T * (5 * H + E) + B * H


def test_an_input_without_a_gradient():
    layer, x, h = layer_and_input(torch.float32)
    loss_of(*gru_window(x.detach(), h.detach(), layer._flat_weights)).backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert x.grad is None and h.grad is None


def test_inputs_and_outputs_are_left_alone_by_backward():
    layer, x, h = layer_and_input(torch.float32)
    out, last = gru_window(x, h, layer._flat_weights)
    kept = [v.detach().clone() for v in (x, h, out, last)]
    loss = loss_of(out, last)
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(layer.parameters(), first, strict=True))
    assert all(torch.equal(v, k) for v, k in zip((x, h, out, last), kept, strict=True))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_training_curve_with_the_carry_handed_on_equals_nn_grus(monkeypatch, layers):
    ids = (torch.arange(20 * T + 1) + torch.tensor([[0], [2], [5]])) % 6  # something to learn

    def curve() -> list[float]:
        torch.manual_seed(0)
        config = ModelConfig(cell="gru", embedding_size=4, hidden_size=8, num_layers=layers)
        model, carry, losses = CharLM(config, 6), None, []
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        for t in range(0, 20 * T, T):
            loss, carry = model(ids[:, t : t + T], carry, ids[:, t + 1 : t + T + 1])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    ours = curve()
    calls = []

    class OfTorch:
        @staticmethod
        def apply(x, h, *weights):
            calls.append(1)
            out, last = torch._VF.gru(x, h[None], weights, True, 1, 0.0, True, False, True)
            return out, last[0]

    monkeypatch.setattr(cells, "GruWindow", OfTorch)
    torchs = curve()
    assert len(calls) == 20 * layers, "on a CPU a GRU goes through GruWindow"
    assert ours == pytest.approx(torchs, abs=1e-5)
    assert ours[-1] < ours[0] / 2


def test_the_state_dict_is_that_of_nn_gru():
    model = CharLM(ModelConfig(cell="gru", embedding_size=4, hidden_size=8), 6)
    assert set(model.layers[0].state_dict()) == set(nn.GRU(4, 8).state_dict())


def test_a_window_on_another_device_goes_through_torchs_own_layer(monkeypatch):
    monkeypatch.delattr(cells, "GruWindow")
    model = CharLM(ModelConfig(cell="gru", embedding_size=4, hidden_size=8), 6).to("meta")
    logits, _ = model(torch.zeros(2, 3, dtype=torch.long, device="meta"))
    assert logits.shape == (2, 3, 6)
