"""Weights in a lower precision: what is cast, where it lies, and that gradients come back."""

import torch
from torch import nn

from charlm.model.layers import cast


def flattened(layer: nn.RNNBase) -> nn.RNNBase:
    """As cuDNN keeps a layer on a GPU: every weight a view of one buffer."""
    sizes = [w.numel() for w in layer._flat_weights]
    buffer = torch.cat([w.detach().flatten() for w in layer._flat_weights])
    for w, part in zip(layer._flat_weights, buffer.split(sizes), strict=True):
        w.data = part.view_as(w)
    return layer


def test_of_one_buffer_they_become_views_of_one_laid_out_alike():
    layer = flattened(nn.LSTM(3, 5))
    low = cast(layer._flat_weights, torch.bfloat16)
    assert len({w.untyped_storage().data_ptr() for w in low}) == 1
    for w, ours in zip(layer._flat_weights, low, strict=True):
        assert ours.dtype == torch.bfloat16 and torch.equal(ours, w.to(torch.bfloat16))
        assert (ours.storage_offset(), ours.stride()) == (w.storage_offset(), w.stride())


def test_gradients_come_back_in_the_dtype_of_the_weights():
    for layer in (nn.GRU(3, 5), flattened(nn.GRU(3, 5))):
        low = cast(layer._flat_weights, torch.bfloat16)
        sum((i + 2) * w.sum() for i, w in enumerate(low)).backward()
        for i, w in enumerate(layer._flat_weights):
            assert torch.equal(w.grad, torch.full_like(w, i + 2))


def test_a_mask_takes_recurrent_weights_out_of_a_copy_and_of_the_gradient():
    for layer in (nn.LSTM(3, 5), flattened(nn.LSTM(3, 5))):
        before = [w.detach().clone() for w in layer._flat_weights]
        mask = torch.rand(20, 5).round()
        copies = cast(layer._flat_weights, torch.float32, mask)
        sum(w.sum() for w in copies).backward()
        for i, (w, old, copy) in enumerate(zip(layer._flat_weights, before, copies, strict=True)):
            factor = mask if i == 1 else torch.ones_like(w)
            assert torch.equal(w, old) and torch.equal(copy, w * factor) and torch.equal(w.grad, factor)


def test_a_weight_that_ends_before_the_buffer_does_is_cast_whole():
    buffer = torch.arange(40.0)
    weights = [buffer[7:19].view(4, 3), buffer[25:30]]
    for w, ours in zip(weights, cast(weights, torch.float64), strict=True):
        assert torch.equal(ours, w.double())
