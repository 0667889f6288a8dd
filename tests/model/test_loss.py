"""The loss in slices, held to torch's own over all logits at once."""

import pytest
import torch
import torch.nn.functional as F

import charlm.model.loss
from charlm.model.loss import cross_entropy


@pytest.fixture
def sliced(monkeypatch):
    """Slices of three rows of seven symbols, the last one shorter."""
    monkeypatch.setattr(charlm.model.loss, "MOST", 3 * 7 + 2)


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
    told = []
    for way in (cross_entropy, plain):
        x, weight, bias, targets = inputs(torch.float32)
        loss = way(x, weight, bias, targets, reduction)
        (loss * torch.linspace(1, 2, loss.numel()).view(loss.shape)).sum().backward()
        told.append([loss.detach(), x.grad, weight.grad, bias.grad])
    for ours, theirs in zip(*told, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_in_bfloat16_the_gradients_are_those_of_all_at_once_within_its_precision(sliced):
    told = []
    for way in (cross_entropy, plain):
        x, weight, bias, targets = inputs(torch.bfloat16)
        loss = way(x, weight, bias, targets, "mean")
        loss.backward()
        assert loss.dtype == torch.float32 and x.grad.dtype == torch.bfloat16
        assert weight.grad.dtype == bias.grad.dtype == torch.float32
        told.append([loss.detach(), x.grad, weight.grad, bias.grad])
    for ours, theirs in zip(*told, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)


def test_a_gradient_that_is_not_asked_for_is_not_taken(sliced):
    x, weight, bias, targets = inputs(torch.float32)
    with torch.no_grad():
        assert not cross_entropy(x, weight, bias, targets, "sum").requires_grad


def test_no_more_logits_than_allowed_exist_at_once(sliced, monkeypatch):
    """What softmax and matmul are given, read off every tensor that is made."""
    from torch.utils._python_dispatch import TorchDispatchMode

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
