"""gru_window against nn.GRU: values, every gradient, the carry, a training curve; gradcheck."""

import pytest
import torch
from torch import nn

from charlm.config.fields import ModelConfig
from charlm.model import char_lm as model_module
from charlm.model.char_lm import CharLM
from charlm.model.layers import gru_window

B, T, E, H = 3, 7, 4, 5


def layer_and_input(dtype, seed=0, lanes=B, steps=T):
    torch.manual_seed(seed)
    layer = nn.GRU(E, H, batch_first=True).to(dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(2)
    x = torch.randn(lanes, steps, E, dtype=dtype, requires_grad=True)
    h = torch.randn(1, lanes, H, dtype=dtype, requires_grad=True)
    return layer, x, h


def loss_of(out, last, draw=None):
    """Weighs every output and the carry differently."""
    draw = torch.Generator().manual_seed(9)
    a, b = (torch.randn(v.shape, generator=draw, dtype=v.dtype) for v in (out, last))
    return (out * a).sum() + (last * b).sum()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("lanes", "steps"), [(B, T), (1, T), (B, 1), (2, 70)])
def test_values_and_every_gradient_equal_nn_gru(dtype, atol, lanes, steps):
    layer, x, h = layer_and_input(dtype, lanes=lanes, steps=steps)
    wanted = [x, h, *layer.parameters()]
    expected = layer(x, h)
    expected_grads = torch.autograd.grad(loss_of(*expected), wanted)
    found = gru_window(layer, x, h)
    assert [v.shape for v in found] == [v.shape for v in expected]
    grads = torch.autograd.grad(loss_of(*found), wanted)
    for a, b in zip((*found, *grads), (*expected, *expected_grads), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol * max(1, b.abs().max().item()))


def test_the_gradient_that_comes_in_is_left_as_it_was():
    """It may be another layer's too, and lies time first, as the window does."""
    layer, x, h = layer_and_input(torch.float64)
    out, last = gru_window(layer, x, h)
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
        return gru_window(other, x, h)

    assert torch.autograd.gradcheck(window, (x, h, *layer.parameters()))


def test_a_gradient_of_one_of_the_outputs_alone():
    layer, x, h = layer_and_input(torch.float64)
    for i in (0, 1):
        expected = torch.autograd.grad(layer(x, h)[i].square().sum(), [x, h])
        found = torch.autograd.grad(gru_window(layer, x, h)[i].square().sum(), [x, h])
        torch.testing.assert_close(found, expected)


def test_for_backward_it_keeps_five_numbers_per_unit_and_its_input():
    """Per lane and character, beside the weights: the three gates, n, the state; and the first state."""
    layer, x, h = layer_and_input(torch.float32)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.update({t.data_ptr(): t.numel()}) or t, lambda t: t
    ):
        gru_window(layer, x, h)
    for p in layer.parameters():
        kept.pop(p.data_ptr(), None)
    assert sum(kept.values()) == B * T * (5 * H + E) + B * H


def test_an_input_without_a_gradient():
    layer, x, h = layer_and_input(torch.float32)
    loss_of(*gru_window(layer, x.detach(), h.detach())).backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert x.grad is None and h.grad is None


def test_inputs_and_outputs_are_left_alone_by_backward():
    layer, x, h = layer_and_input(torch.float32)
    out, last = gru_window(layer, x, h)
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
    monkeypatch.setattr(model_module, "gru_window", lambda layer, x, h, _: calls.append(1) or layer(x, h))
    torchs = curve()
    assert len(calls) == 20 * layers, "on a CPU a GRU goes through gru_window"
    assert ours == pytest.approx(torchs, abs=1e-5)
    assert ours[-1] < ours[0] / 2


def test_the_state_dict_is_that_of_nn_gru():
    model = CharLM(ModelConfig(cell="gru", embedding_size=4, hidden_size=8), 6)
    assert set(model.layers[0].state_dict()) == set(nn.GRU(4, 8).state_dict())


def test_a_window_on_another_device_goes_through_torchs_own_layer():
    model = CharLM(ModelConfig(cell="gru", embedding_size=4, hidden_size=8), 6).to("meta")
    logits, _ = model(torch.zeros(2, 3, dtype=torch.long, device="meta"))
    assert "_Window" not in str(logits.grad_fn.next_functions) and logits.shape == (2, 3, 6)
