"""Every fast path trains as the plain one does: short curves, the carry handed on, within a stated tolerance.

The GRU's own backward has its curve in test_cells.py, the recorded step, equal to the bit, in test_step.py.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import charlm.model.layers
from charlm.config.fields import ModelConfig, OptimConfig
from charlm.model.char_lm import CharLM
from charlm.training.optimizer import make_optimizer

V, T, E, H, STEPS = 7, 5, 6, 12, 40
TEXT = (torch.arange(STEPS * T + 1) * torch.tensor([[1], [3], [1]]) + torch.tensor([[0], [2], [5]])) % V
OPTIM = OptimConfig(learning_rate=0.02, weight_decay=0.1)


def windows():
    for low in range(0, STEPS * T, T):
        yield TEXT[:, low : low + T], TEXT[:, low + 1 : low + T + 1]


def fresh(cell: str, layers: int = 1) -> CharLM:
    torch.manual_seed(0)
    return CharLM(ModelConfig(cell=cell, embedding_size=E, hidden_size=H, num_layers=layers), V)


def curve(model: CharLM) -> list[float]:
    """Losses of charlm's step."""
    optimizer, carry, told = make_optimizer(model, OPTIM), None, []
    for x, y in windows():
        loss, carry = model(x, carry, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        told.append(loss.item())
    assert told[-1] < told[0] / 2, "nothing was learned: two flat curves are always alike"
    return told


def textbook_curve(like: CharLM, layers: int) -> list[float]:
    """Losses of the usual loop from the same weights: one module of all layers, all logits, plain AdamW."""
    net = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[like.config.cell](E, H, layers, batch_first=True)
    lookup, output = nn.Embedding(V, E), nn.Linear(H, V)
    lookup.load_state_dict(like.input.state_dict())
    output.load_state_dict(like.output.state_dict())
    with torch.no_grad():
        for i, layer in enumerate(like.layers):
            for name, weight in layer.named_parameters():
                getattr(net, name.replace("l0", f"l{i}")).copy_(weight)
    everything = [p for m in (lookup, net, output) for p in m.parameters()]
    matrices = [p for p in everything if p.ndim == 2 and p is not lookup.weight]
    others = [p for p in everything if all(p is not m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.02, betas=OPTIM.betas, eps=OPTIM.eps, foreach=False)
    carry, told = None, []
    for x, y in windows():
        out, carry = net(lookup(x), carry)
        carry = tuple(c.detach() for c in carry) if isinstance(carry, tuple) else carry.detach()
        loss = F.cross_entropy(output(out).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(everything, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        told.append(loss.item())
    return told


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 2])
def test_charlm_trains_as_the_textbook_loop_does(cell, layers):
    """One-layer modules, the loss inside the model, an optimizer of our own: within 1e-4 nats all along."""
    assert curve(fresh(cell, layers)) == pytest.approx(textbook_curve(fresh(cell, layers), layers), abs=1e-4)


def test_the_loss_in_slices_trains_as_the_loss_at_once_does(monkeypatch):
    at_once = curve(fresh("lstm"))
    monkeypatch.setattr(charlm.model.layers, "MAX_LOGITS", 4 * V)  # four of fifteen rows
    assert curve(fresh("lstm")) == pytest.approx(at_once, abs=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_16_bits_train_as_fp32_does_within_their_precision(cell, dtype):
    """Copies in 16 bits of float32 weights: at no step more than 0.1 nats from float32, on average 0.02."""
    model = fresh(cell)
    model.compute_dtype = dtype
    with torch.backends.mkldnn.flags(enabled=False):  # which has no bf16 for an LSTM on many CPUs
        exact, rough = curve(fresh(cell)), curve(model)
    differ = [abs(a - b) for a, b in zip(exact, rough, strict=True)]
    assert 0 < max(differ) < 0.1 and sum(differ) / STEPS < 0.02
