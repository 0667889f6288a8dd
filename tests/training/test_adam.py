"""AdamW against torch's own, to the bit: over groups, gaps, gradient scaling, old checkpoints; the start."""

import subprocess
import sys

import pytest
import torch
from helpers import changed, config_file, environment, small
from torch import nn

from charlm.training.checkpoint import load_optimizer, optimizer_tensors
from charlm.training.loop import train
from charlm.training.optimizer import AdamW

OPTIONS = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6}


def model_and_groups() -> tuple[nn.Module, list[dict]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 7))
    decays = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 1]
    return model, [{"params": decays, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]


def ours() -> tuple[nn.Module, AdamW]:
    model, groups = model_and_groups()
    return model, AdamW(groups, OPTIONS)


def torchs() -> tuple[nn.Module, torch.optim.AdamW]:
    model, groups = model_and_groups()
    return model, torch.optim.AdamW(groups, **OPTIONS, fused=True)


def steps(model: nn.Module, optimizer, which: range, skip: int | None = None) -> None:
    for i in which:
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / (i + 1)
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(i))
        model(x).square().sum().backward()
        if i == skip:
            model[0].bias.grad = None
        optimizer.step()
        optimizer.zero_grad()


def assert_same(a: tuple, b: tuple) -> None:
    (model, optimizer), (model2, optimizer2) = a, b
    state, state2 = optimizer_tensors(model, optimizer), optimizer_tensors(model2, optimizer2)
    assert set(state) == set(state2) and len(state) == 3 * 4
    for name, value in state.items():
        assert value.dtype == state2[name].dtype and torch.equal(value, state2[name]), name
    for p, q in zip(model.parameters(), model2.parameters(), strict=True):
        assert torch.equal(p, q)


def test_weights_and_state_equal_torchs_fused_adamw_to_the_bit():
    a, b = ours(), torchs()
    for each in (a, b):
        steps(*each, range(6), skip=3)  # a parameter without a gradient stays as it is
    assert_same(a, b)
    assert optimizer_tensors(*a)["0.bias/step"] == 5 and optimizer_tensors(*a)["0.weight/step"] == 6


@pytest.mark.parametrize(("before", "after"), [(torchs, ours), (ours, torchs)])
def test_a_checkpoint_of_the_one_is_gone_on_with_by_the_other(before, after):
    first, second, whole = before(), after(), torchs()
    steps(*first, range(3))
    steps(*whole, range(6))
    second[0].load_state_dict(first[0].state_dict())
    load_optimizer(*second, optimizer_tensors(*first))
    steps(*second, range(3, 6))
    assert_same(second, whole)


def test_state_dicts_are_exchanged_with_torchs():
    first, second, whole = torchs(), ours(), torchs()
    steps(*first, range(3))
    steps(*whole, range(6))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    steps(*second, range(3, 6))
    assert_same(second, whole)


def test_under_a_gradient_scaler_a_step_that_overflowed_changes_nothing():
    told = []
    for model, optimizer in (ours(), torchs()):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for i, factor in enumerate((1.0, torch.inf, 1.0)):
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(i))
            scaler.scale(model(x).square().sum() * factor).backward()
            before = [p.detach().clone() for p in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            same = [torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
            assert all(same) if factor == torch.inf else not any(same)
        told.append((model, optimizer))
    assert_same(*told)
    assert optimizer_tensors(*told[0])["0.weight/step"] == 2


# the start


def test_a_start_imports_no_compiler_and_nothing_of_what_it_does_not_use(tmp_path):
    """Each of these takes longer to import than the rest of a start does."""
    config = small(tmp_path / "run", optim={"weight_decay": 0.1}, train={"steps": 3})
    train(changed(config, train={"steps": 1}), quiet=True)  # the corpus is prepared, a checkpoint is there
    program = (
        "import sys\nfrom charlm.commands.cli import main\n"
        f"main(['train', '--config', {str(config_file(config))!r}])\n"
        "print('imported:', *[n for n in ('torch._dynamo', 'torch._inductor', 'sympy', 'datasets', "
        "'wandb', 'numba', 'huggingface_hub.hf_api') if n in sys.modules])"
    )
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 120, "env": environment()}
    ran = subprocess.run([sys.executable, "-c", program], **options)
    assert ran.returncode == 0, ran.stderr
    assert "resumed" in ran.stdout and "step 3/3" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "imported:"
