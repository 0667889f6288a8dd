"""The step that a GPU records, run from its fixed tensors on a CPU: the same training, to the bit."""

import pytest
from helpers import assert_same_state, changed, forked, losses, small

from charlm.errors import CharlmError
from charlm.training.checkpoint import steps_of
from charlm.training.lanes import Position
from charlm.training.loop import train
from charlm.training.setup import make_accelerator, set_up, threads_for

OPTIONS = {
    "model": {"cell": "lstm", "num_layers": 2, "dropout": 0.2, "weight_drop": 0.1, "temporal_reg": 1.0}
    | {"locked_dropout": True, "norm": "layer", "residual": True},
    "train": {"steps": 40, "batch_size": 4, "bptt": 24},
    "checkpoint": {"every": 15, "keep": 9},
}


@pytest.mark.parametrize("slices", [1, 2])
def test_training_is_the_same_to_the_bit(tmp_path, slices):
    """Over the end of an epoch, where the carry begins anew, and with dropout, which draws random numbers."""
    plain = changed(small(tmp_path / "plain", **OPTIONS), train={"accumulate": slices})
    recorded = small(tmp_path / "recorded", **OPTIONS)
    recorded = changed(recorded, train={"accumulate": slices, "cuda_graph": True})
    train(plain, quiet=True)
    train(recorded, quiet=True)
    assert_same_state(plain.run_dir, recorded.run_dir)
    assert losses(plain.run_dir) == losses(recorded.run_dir)
    assert len({loss for _, loss in losses(plain.run_dir)}) > 1


def test_a_run_may_go_on_with_it_or_without(tmp_path):
    plain = small(tmp_path / "plain", **OPTIONS)
    train(plain, quiet=True)
    other = small(tmp_path / "other", **OPTIONS)
    train(changed(other, train={"steps": 40, "max_hours": None, "cuda_graph": True}), quiet=True)
    assert_same_state(plain.run_dir, other.run_dir)
    first = small(tmp_path / "first", **OPTIONS | {"optim": {"schedule": "constant"}})
    whole = small(tmp_path / "whole", **OPTIONS | {"optim": {"schedule": "constant"}})
    train(whole, quiet=True)
    train(changed(first, train={"steps": 15, "cuda_graph": True}), quiet=True)
    train(first, quiet=True)
    assert steps_of(first.run_dir)[-1] == 40
    assert_same_state(first.run_dir, whole.run_dir)


def test_fixed_tensors_hold_nothing_back(tmp_path):
    """Loss and norm of a call outlive the next one; the carry is the next one's."""
    config = changed(small(tmp_path / "run", **OPTIONS), train={"cuda_graph": True})
    setup = set_up(config, make_accelerator(config), print)
    x, y = setup.lanes.window(Position())
    loss, norm, carry = setup.step(x, y, None)
    before = loss.item(), norm.item()
    assert all(p.grad is not None for p in setup.model.parameters())
    setup.step.update()
    again, _, _ = setup.step(y, x, carry)
    assert (loss.item(), norm.item()) == before and again.item() != before[0]


# threads


def threads(cell: str, hidden: int, lanes: int, world: int = 1, **more) -> int:
    model = {"cell": cell, "hidden_size": hidden}
    return threads_for(small("unused", model=model, train={"batch_size": lanes} | more), world)


def test_small_steps_take_one_thread_and_large_ones_all(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    assert threads("rnn", 3, 1) == threads("lstm", 64, 8) == 1
    assert threads("lstm", 128, 8) == threads("gru", 128, 8) == 2
    assert threads("lstm", 512, 64) == 8
    assert threads("lstm", 128, 64, world=8) == threads("lstm", 128, 64, accumulate=8) == 2
    assert threads("lstm", 512, 64, threads=3) == 3


def test_the_threads_are_as_before_when_training_is_over(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    train(changed(small(tmp_path / "run"), train={"threads": 2, "steps": 2}), quiet=True)
    assert told == [2, 5]
    ran = forked("train", "--config", "hello", "--train.threads", "0")
    assert ran.returncode == 1 and "train.threads=0: must be 1 or more" in ran.stderr


def test_memory_that_ends_before_there_is_a_step_is_told_too(tmp_path, monkeypatch):
    def full(*args, **options):
        raise RuntimeError("CUDA out of memory. Tried to allocate 5 GiB.")

    monkeypatch.setattr("charlm.training.setup.Lanes", full)
    with pytest.raises(CharlmError, match=r"Tried to allocate 5 GiB.*train\.accumulate"):
        train(small(tmp_path / "run"), quiet=True)
