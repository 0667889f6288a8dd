"""Dropout, norms, penalties against their papers; casts of weights; the loss in slices against torch's."""

import pytest
import torch
import torch.nn.functional as F
from helpers import losses, small
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from charlm.config.fields import ModelConfig
from charlm.errors import CharlmError
from charlm.model import layers
from charlm.model.char_lm import CharLM
from charlm.model.layers import Cast, LockedDropout, bernoulli_mask, cross_entropy
from charlm.model.pretrained import weights_of
from charlm.training.loop import train

B, T, H, V = 5, 7, 400, 6  # lanes, window, units, symbols
IDS = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


def tiny(**options) -> CharLM:
    torch.manual_seed(0)
    sizes = {"cell": "gru", "embedding_size": 4, "hidden_size": 6, "num_layers": 2}
    return CharLM(ModelConfig(**sizes | options), V)


def test_locked_dropout_drops_the_same_units_at_all_times_others_in_every_lane_and_window():
    torch.manual_seed(0)
    drop = LockedDropout(0.3)
    x = torch.rand(B, T, H) + 1
    out = drop(x)
    kept = out != 0
    assert torch.equal(kept, kept[:, :1].expand(B, T, H))
    torch.testing.assert_close(out[kept], (x / 0.7)[kept])
    assert 0.6 < kept.float().mean() < 0.8
    lanes = kept[:, 0]
    assert len({tuple(lane.tolist()) for lane in lanes}) == B
    assert not torch.equal((drop(x) != 0)[:, 0], lanes)
    assert torch.equal(drop.eval()(x), x)


def test_locked_dropout_is_at_the_input_between_the_layers_and_at_the_output():
    torch.manual_seed(0)
    sizes = {"embedding_size": 50, "hidden_size": 60, "num_layers": 3}
    model = CharLM(ModelConfig(dropout=0.5, input_dropout=0.2, locked_dropout=True, **sizes), V)
    seen = []

    def watch(module, args, out):
        seen.append((module.p, (out == 0).all(1).float().mean().item(), (out == 0).float().mean().item()))

    for module in (model.input_dropout, model.between, model.output_dropout):
        module.register_forward_hook(watch)
    ids = torch.randint(V, (B, T))
    model(ids, None, ids)
    assert [p for p, _, _ in seen] == [0.2, 0.5, 0.5, 0.5]
    for p, always, share in seen:
        assert always == share and abs(share - p) < 0.15


# weight drop


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_weight_drop_takes_recurrent_weights_out_for_a_window_and_leaves_the_rest(cell, dtype):
    dropped, plain = tiny(cell=cell, weight_drop=0.4), tiny(cell=cell)
    dropped.compute_dtype = plain.compute_dtype = dtype
    torch.manual_seed(3)
    masks = [bernoulli_mask(layer.weight_hh_l0, 0.4) for layer in plain.layers]
    for mask, layer in zip(masks, plain.layers, strict=True):
        assert set(mask.unique().tolist()) == {0, torch.tensor(1 / 0.6).item()}
        layer.weight_hh_l0.data = layer.weight_hh_l0.data.to(dtype).mul_(mask).float()
    before = weights_of(dropped)
    torch.manual_seed(3)
    (loss, carry), (expected, expected_carry) = dropped(IDS, None, IDS), plain(IDS, None, IDS)
    near = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(loss, expected, **near)
    torch.testing.assert_close(carry, expected_carry, **near)
    loss.backward()
    expected.backward()
    gradients = {n: p.grad for n, p in plain.named_parameters()}
    for i, mask in enumerate(masks):
        gradients[f"layers.{i}.weight_hh_l0"] *= mask
    for name, p in dropped.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], **near)
        assert torch.equal(p, before[name])
    again, _ = dropped(IDS, None, IDS)
    assert again != loss, "the next window has another mask"


def test_weight_drop_ends_with_training():
    dropped, plain = tiny(weight_drop=0.4).eval(), tiny().eval()
    assert torch.equal(dropped(IDS)[0], plain(IDS)[0])


# activation and temporal activation regularisation


@pytest.mark.parametrize(("ar", "tar"), [(2.0, 0.0), (0.0, 1.0), (2.0, 1.0)])
def test_ar_and_tar_are_in_the_gradient_and_not_in_the_loss(ar, tar):
    options = {"dropout": 0.3, "locked_dropout": True}
    model, plain = tiny(activation_reg=ar, temporal_reg=tar, **options), tiny(**options)
    seen = []
    plain.output_dropout.register_forward_hook(lambda module, args, out: seen.extend((args[0], out)))
    torch.manual_seed(3)
    loss, _ = model(IDS, None, IDS)
    torch.manual_seed(3)
    expected, _ = plain(IDS, None, IDS)
    assert torch.equal(loss, expected)
    h, dropped = seen  # [B, T, H]
    change = h[:, 1:] - h[:, :-1]
    (expected + ar * dropped.pow(2).mean() + tar * change.pow(2).mean()).backward()
    loss.backward()
    for (name, p), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)
    model(IDS[:, :1], None, IDS[:, :1])[0].backward()  # a window of one has no change
    assert all(p.grad.isfinite().all() for p in model.parameters())


# between the layers


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_gradients_through_layers_that_are_added_to_what_they_read(cell):
    model = tiny(cell=cell, residual=True, embedding_size=6, num_layers=3)
    result = []
    for by_hand in (False, True):
        model.zero_grad()
        if by_hand:
            x = model.input(IDS)
            for layer in model.layers:
                x = layer(x)[0] + x
            loss = F.cross_entropy(model.output(x).flatten(0, 1), IDS.flip(0).flatten())
        else:
            loss, _ = model(IDS, None, IDS.flip(0))
        loss.backward()
        result.append([loss.detach(), *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*result, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_norm_and_residual_against_the_formulas(norm, residual):
    model = tiny(norm=norm, residual=residual, embedding_size=6, num_layers=3).eval()
    for name, p in model.named_parameters():
        if name.startswith("norms"):
            p.data.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))

    def normed(x, i):
        if norm == "none":
            return x
        centred = x - x.mean(-1, keepdim=True) if norm == "layer" else x
        out = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * model.norms[i].weight
        return out + model.norms[i].bias if norm == "layer" else out

    x = model.input(IDS)
    for i, layer in enumerate(model.layers):
        out, _ = layer(normed(x, i - 1) if i else x)
        x = x + out if residual and x.shape[-1] == 6 else out
    torch.testing.assert_close(model(IDS)[0], model.output(x), rtol=1e-5, atol=1e-5)
    assert hasattr(model, "norms") == (norm != "none")


def test_a_first_layer_of_another_width_has_nothing_added():
    plain, residual = tiny(num_layers=1).eval(), tiny(num_layers=1, residual=True).eval()
    assert torch.equal(plain(IDS)[0], residual(IDS)[0])


def test_all_of_it_trains_in_slices_on_bf16_and_warm_starts(tmp_path):
    options = {"norm": "rms", "residual": True, "weight_drop": 0.1, "activation_reg": 1.0}
    model = {"cell": "gru", "num_layers": 2, "dropout": 0.2, "locked_dropout": True} | options
    run = small(tmp_path / "run", model=model, train={"steps": 30, "accumulate": 2})
    train(run, quiet=True)
    result = [loss for _, loss in losses(run.run_dir)]
    assert sum(result[-5:]) < 0.9 * sum(result[:5])
    train(small(tmp_path / "warm", model=model, train={"steps": 1, "init_from": run.run_dir}), quiet=True)
    other = small(tmp_path / "other", train={"init_from": run.run_dir}, model=model | {"norm": "none"})
    with pytest.raises(CharlmError, match=r"model\.norm is 'none', there 'rms'"):
        train(other, quiet=True)
    low = tiny(**model)
    low.compute_dtype = torch.bfloat16
    low(IDS, None, IDS)[0].backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in low.parameters())


# weights in a lower precision


def flattened(layer: nn.RNNBase) -> nn.RNNBase:
    """As cuDNN keeps a layer on a GPU: every weight a view of one buffer."""
    sizes = [w.numel() for w in layer._flat_weights]
    buffer = torch.cat([w.detach().flatten() for w in layer._flat_weights])
    for w, part in zip(layer._flat_weights, buffer.split(sizes), strict=True):
        w.data = part.view_as(w)
    return layer


def test_of_one_buffer_they_become_views_of_one_laid_out_alike():
    layer = flattened(nn.LSTM(3, 5))
    low = Cast.apply(torch.bfloat16, None, *layer._flat_weights)
    assert len({w.untyped_storage().data_ptr() for w in low}) == 1
    for w, ours in zip(layer._flat_weights, low, strict=True):
        assert ours.dtype == torch.bfloat16 and torch.equal(ours, w.to(torch.bfloat16))
        assert (ours.storage_offset(), ours.stride()) == (w.storage_offset(), w.stride())


def test_gradients_come_back_in_the_dtype_of_the_weights():
    for layer in (nn.GRU(3, 5), flattened(nn.GRU(3, 5))):
        low = Cast.apply(torch.bfloat16, None, *layer._flat_weights)
        sum((i + 2) * w.sum() for i, w in enumerate(low)).backward()
        for i, w in enumerate(layer._flat_weights):
            assert torch.equal(w.grad, torch.full_like(w, i + 2))


def test_a_mask_takes_recurrent_weights_out_of_a_copy_and_of_the_gradient():
    for layer in (nn.LSTM(3, 5), flattened(nn.LSTM(3, 5))):
        before = [w.detach().clone() for w in layer._flat_weights]
        mask = torch.rand(20, 5).round()
        copies = Cast.apply(torch.float32, mask, *layer._flat_weights)
        sum(w.sum() for w in copies).backward()
        for i, (w, old, copy) in enumerate(zip(layer._flat_weights, before, copies, strict=True)):
            factor = mask if i == 1 else torch.ones_like(w)
            assert torch.equal(w, old) and torch.equal(copy, w * factor) and torch.equal(w.grad, factor)


def test_a_weight_that_ends_before_the_buffer_does_is_cast_whole():
    buffer = torch.arange(40.0)
    weights = [buffer[7:19].view(4, 3), buffer[25:30]]
    for w, ours in zip(weights, Cast.apply(torch.float64, None, *weights), strict=True):
        assert torch.equal(ours, w.double())


# the loss in slices


@pytest.fixture
def sliced(monkeypatch):
    """Slices of three rows of seven symbols, the last one shorter."""
    monkeypatch.setattr(layers, "MAX_LOGITS", 3 * 7 + 2)


def inputs(dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(11, 2, dtype=dtype, requires_grad=True)
    weight = torch.randn(7, 2, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    bias = torch.randn(7, dtype=weight.dtype)
    return x, weight.requires_grad_(), bias.requires_grad_(), torch.randint(0, 7, (11,))


def plain(x, weight, bias, targets, reduction):
    return F.cross_entropy(
        F.linear(x, weight.to(x.dtype), bias.to(x.dtype)).float(), targets, reduction=reduction
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_in_slices_value_and_gradients_are_those_of_all_at_once(sliced, reduction):
    result = []
    for way in (cross_entropy, plain):
        x, weight, bias, targets = inputs(torch.float32)
        loss = way(x, weight, bias, targets, reduction)
        (loss * torch.linspace(1, 2, loss.numel()).view(loss.shape)).sum().backward()
        result.append([loss.detach(), x.grad, weight.grad, bias.grad])
    for ours, theirs in zip(*result, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_in_bfloat16_the_gradients_are_those_of_all_at_once_within_its_precision(sliced):
    result = []
    for way in (cross_entropy, plain):
        x, weight, bias, targets = inputs(torch.bfloat16)
        loss = way(x, weight, bias, targets, "mean")
        loss.backward()
        assert loss.dtype == torch.float32 and x.grad.dtype == torch.bfloat16
        assert weight.grad.dtype == bias.grad.dtype == torch.float32
        result.append([loss.detach(), x.grad, weight.grad, bias.grad])
    for ours, theirs in zip(*result, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)


def test_a_gradient_that_is_not_asked_for_is_not_taken(sliced):
    x, weight, bias, targets = inputs(torch.float32)
    with torch.no_grad():
        assert not cross_entropy(x, weight, bias, targets, "sum").requires_grad


def test_no_more_logits_than_allowed_exist_at_once(sliced, monkeypatch):
    """What softmax and matmul are given, read off every tensor that is made."""

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape[-1:] == (7,) and out.ndim == 2:
                self.most = max(self.most, len(out))
            return out

    x, weight, bias, targets = inputs(torch.float32)
    with Largest() as seen:
        cross_entropy(x, weight, bias, targets, "mean").backward()
    assert seen.most == 3


def test_for_backward_it_keeps_the_size_of_its_input_and_no_logits(sliced):
    x, weight, bias, targets = inputs(torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        cross_entropy(x, weight, bias, targets, "sum")
    assert sorted(kept) == sorted([x.shape, weight.shape, bias.shape])  # their gradients
