"""Each regulariser against what its paper says."""

import torch

from charlm.config import ModelConfig
from charlm.model import CharLM
from charlm.regular import LockedDropout

B, T, H, V = 5, 7, 400, 6  # lanes, window, units, symbols


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
