"""The learning rate at a step, what decays, and the optimizer against plain torch."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import small
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from charlm.config.fields import ModelConfig, OptimConfig
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM
from charlm.training.loop import train_step
from charlm.training.optimizer import learning_rate, make_optimizer
from charlm.training.run import State
from charlm.training.setup import make_accelerator, set_up

schedules = st.sampled_from(["cosine", "linear", "constant"])


def rates(steps: int, **options) -> list[float]:
    optim = OptimConfig(**options)
    return [learning_rate(step, optim, steps) for step in range(steps)]


def tiny(**options) -> CharLM:
    torch.manual_seed(0)
    return CharLM(
        ModelConfig(**({"cell": "lstm", "embedding_size": 3, "hidden_size": 4, "num_layers": 2} | options)), 5
    )


# learning rate


def test_warm_up_rises_linearly_to_the_highest_rate():
    told = rates(20, learning_rate=0.8, warmup_steps=4, schedule="constant")
    assert told[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8], rel=1e-15)
    assert told[4:] == [0.8] * 16


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_first_step_after_warm_up_is_highest_and_last_step_is_the_final_ratio(schedule, warmup):
    told = rates(13, learning_rate=0.5, warmup_steps=warmup, schedule=schedule, final_ratio=0.1)
    assert told[warmup] == 0.5 == max(told)
    assert told[-1] == pytest.approx(0.05, rel=1e-12)


def test_cosine_by_hand():
    told = rates(9, learning_rate=2.0, schedule="cosine", final_ratio=0.2)
    by_hand = [0.4 + 1.6 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]
    assert told == pytest.approx(by_hand, rel=1e-12)


def test_linear_by_hand():
    told = rates(7, learning_rate=3.0, warmup_steps=2, schedule="linear", final_ratio=0.0)
    assert told == pytest.approx([1.5, 3.0, 3.0, 2.25, 1.5, 0.75, 0.0], rel=1e-12)


def test_constant_stays_whatever_the_final_ratio():
    assert rates(6, learning_rate=0.3, schedule="constant", final_ratio=0.0) == [0.3] * 6


@given(
    schedules,
    st.integers(1, 60),
    st.integers(0, 90),
    st.floats(0, 1),
    st.floats(1e-6, 10),
    st.integers(0, 99),
)
def test_rate_is_never_negative_nor_above_the_highest(schedule, steps, warmup, ratio, highest, step):
    optim = OptimConfig(
        learning_rate=highest, warmup_steps=warmup, schedule=schedule, final_ratio=ratio, weight_decay=0
    )
    rate = learning_rate(step, optim, steps)
    assert 0 <= rate <= highest * (1 + 1e-12)
    assert rate > 0 or ratio < 1e-12


@given(schedules, st.integers(2, 60), st.integers(0, 30), st.floats(0, 1))
def test_rate_only_rises_in_the_warm_up_and_only_falls_after(schedule, steps, warmup, ratio):
    told = rates(steps, warmup_steps=warmup, schedule=schedule, final_ratio=ratio)
    rising, falling = told[:warmup], told[warmup:]
    assert all(a < b for a, b in pairwise(rising))
    assert all(a >= b - 1e-15 for a, b in pairwise(falling))


def test_a_run_shorter_than_its_warm_up_never_reaches_the_highest_rate():
    assert rates(3, learning_rate=1.0, warmup_steps=10) == pytest.approx([0.1, 0.2, 0.3], rel=1e-15)


def test_a_run_of_one_step_takes_the_highest_rate():
    assert rates(1, learning_rate=0.7) == [0.7]


def test_steps_past_the_end_stay_at_the_final_rate():
    optim = OptimConfig(learning_rate=1.0, final_ratio=0.25)
    assert learning_rate(500, optim, 10) == pytest.approx(0.25, rel=1e-12)


def test_while_the_last_step_is_not_known_the_rate_does_not_fall():
    optim = OptimConfig(learning_rate=0.4, warmup_steps=4)
    told = [learning_rate(step, optim, None) for step in range(6)]
    assert told == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rel=1e-15)


def test_a_step_sets_the_rate_of_all_groups(tmp_path):
    optim = {"weight_decay": 0.3, "learning_rate": 0.5, "warmup_steps": 5}
    config = small(tmp_path / "run", optim=optim)
    setup = set_up(config, make_accelerator(config), print)
    train_step(config, setup, State())
    assert [group["lr"] for group in setup.optimizer.param_groups] == [0.1, 0.1]


# what decays


def decays_of(model: nn.Module) -> dict[str, float]:
    groups = make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(of) == sum(len(group["params"]) for group in groups), "a parameter is in two groups"
    return {name: of[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_matrices_decay_and_biases_and_the_embedding_do_not(cell):
    assert decays_of(tiny(cell=cell)) == {
        "input.weight": 0.0,
        **{
            f"layers.{i}.{name}_l0": decay
            for i in range(2)
            for name, decay in {"weight_ih": 0.3, "weight_hh": 0.3, "bias_ih": 0.0, "bias_hh": 0.0}.items()
        },
        "output.weight": 0.3,
        "output.bias": 0.0,
    }


def test_one_hot_input_matrix_decays():
    told = decays_of(tiny(embedding_size=0))
    assert told["layers.0.weight_ih_l0"] == 0.3
    assert "input.weight" not in told


def test_tied_weights_are_there_once_and_do_not_decay():
    model = tiny(embedding_size=4, tie_weights=True)
    told = decays_of(model)
    assert told["input.weight"] == 0.0
    assert "output.weight" not in told
    groups = make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters())) == 10


def test_a_decay_step_shrinks_only_the_matrices():
    model = tiny()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    make_optimizer(model, OptimConfig(learning_rate=0.5, weight_decay=0.2)).step()
    for name, p in model.named_parameters():
        shrinks = p.ndim > 1 and name != "input.weight"
        assert torch.allclose(p, before[name] * (0.9 if shrinks else 1), rtol=1e-6, atol=0), name


# the optimizer


def train_a_little(model: CharLM, optimizer: torch.optim.Optimizer, steps: int = 5) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        ids = torch.randint(5, (2, 7), generator=draw)
        model(ids[:, :-1], None, ids[:, 1:])[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(("name", "decay"), [("adamw", 0.4), ("adamw", 0.0), ("adam", 0.0)])
def test_the_optimizer_equals_a_plain_reference(name, decay):
    options = {"learning_rate": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}
    model = tiny()
    fused = train_a_little(
        model, make_optimizer(model, OptimConfig(name=name, weight_decay=decay, **options))
    )
    model = tiny()
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and n != "input.weight"]
    rest = [p for n, p in model.named_parameters() if p.ndim == 1 or n == "input.weight"]
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name]
    plain = kind(
        [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.8, 0.95),
        eps=1e-6,
        fused=False,
        foreach=False,
    )
    for a, b, start in zip(fused, train_a_little(model, plain), tiny().parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
        assert not torch.allclose(a, start, rtol=0, atol=1e-3)


def test_adamw_without_decay_equals_adam():
    after = []
    for name in ("adamw", "adam"):
        model = tiny()
        after.append(train_a_little(model, make_optimizer(model, OptimConfig(name=name, learning_rate=0.01))))
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def test_the_optimizer_takes_betas_eps_and_rate_from_the_config():
    optimizer = make_optimizer(tiny(), OptimConfig(learning_rate=0.03, betas=(0.7, 0.9), eps=1e-5))
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.03, (0.7, 0.9), 1e-5)


def test_adam_refuses_decay():
    with pytest.raises(CharlmError, match=r"optim\.weight_decay=0\.1"):
        OptimConfig(name="adam", weight_decay=0.1)
