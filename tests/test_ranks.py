"""Two real processes: the same training as one does, and each goes on where the other stopped."""

import subprocess
import sys

import pytest
import torch
from helpers import ROOT, changed, config_file, environment, losses, records, small, status

from charlm.checkpoint import folder_of, load_checkpoint, steps_of
from charlm.train import train


def launched(launcher: list[str], *words, **options) -> str:
    """What scripts/train.py prints under a launcher."""
    line = [sys.executable, "-m", *launcher, *map(str, words)]
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 150, "env": environment()} | options
    ran = subprocess.run(line, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def train_on_two(config) -> str:
    """Train on two processes; returns what they print."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    told = launched(torchrun, ROOT / "scripts" / "train.py", "--config", config_file(config))
    assert "2 process(es) on cpu" in told  # some launchers silently start one
    return told


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same 16 steps by one process; by two and, after 10, by one; by one and, after 10, by two."""
    root = tmp_path_factory.mktemp("ranks")
    options = {
        "model": {"num_layers": 2},
        "train": {"steps": 16, "batch_size": 6},
        "evaluate": {"every": 8, "lanes": 5, "context": 8},
        "checkpoint": {"every": 10, "keep": 9},
    }
    whole, two_one, one_two = (small(root / name, **options) for name in ("whole", "two_one", "one_two"))
    train(whole, quiet=True)
    told = train_on_two(changed(two_one, train={"steps": 10}))
    train(two_one, quiet=True)
    train(changed(one_two, train={"steps": 10}), quiet=True)
    told_later = train_on_two(one_two)
    return whole, two_one, one_two, told, told_later


def checkpoint_at(config, step):
    facts, tensors, _ = load_checkpoint(folder_of(config.run_dir, step))
    return facts, tensors


def assert_close(tensors, others) -> None:
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.shape == others[name].shape
        assert torch.allclose(tensor, others[name], atol=1e-5), name


def test_two_processes_train_as_one_does(runs):
    whole, two_one, _, told, _ = runs
    by_one, by_two = losses(whole.run_dir)[:10], losses(two_one.run_dir)[:10]
    assert [step for step, _ in by_two] == list(range(1, 11))
    assert [v for _, v in by_two] == pytest.approx([v for _, v in by_one], abs=1e-5)
    (facts, tensors), (facts1, tensors1) = checkpoint_at(two_one, 10), checkpoint_at(whole, 10)
    assert (facts["ranks"], facts1["ranks"]) == (2, 1)
    assert facts["position"] == facts1["position"]
    assert_close(tensors["model"], tensors1["model"])
    assert_close(tensors["optimizer"], tensors1["optimizer"])
    assert told.count("wandb: disabled") == 1  # only the main process speaks
    assert told.count("step 8: validation") == told.count("done: 10 steps") == 1


def test_the_checkpoint_of_two_processes_holds_the_carry_of_all_lanes_in_order(runs):
    whole, two_one, _, _, _ = runs
    (_, tensors), (_, tensors1) = checkpoint_at(two_one, 10), checkpoint_at(whole, 10)
    assert [tensors["carry"][name].shape for name in "01"] == [(2, 6, 12)] * 2  # layers, lanes, hidden
    assert_close(tensors["carry"], tensors1["carry"])
    h = tensors1["carry"]["0"]
    assert (h[:, :3] - h[:, 3:]).abs().max() > 0.01  # ranks in another order would show


@pytest.mark.parametrize("which", ["two, then one", "one, then two"])
def test_another_number_of_processes_goes_on_with_the_same_training(runs, which):
    whole, two_one, one_two, _, told_later = runs
    config = two_one if which == "two, then one" else one_two
    assert status(config.run_dir)["status"] == "done" and steps_of(config.run_dir) == [10, 16]
    assert [step for step, _ in losses(config.run_dir)] == list(range(1, 17))
    expected = [v for _, v in losses(whole.run_dir)]
    assert [v for _, v in losses(config.run_dir)] == pytest.approx(expected, abs=1e-5)
    for group in ("model", "carry"):
        assert_close(checkpoint_at(config, 16)[1][group], checkpoint_at(whole, 16)[1][group])
    assert f"resumed {one_two.run_dir} at step 10" in told_later


def test_evaluation_over_two_processes_counts_every_character_once(runs):
    whole, two_one, one_two, _, _ = runs

    def scores(config):
        return {r["step"]: r for r in records(config.run_dir) if "validation/bpc" in r}

    expected = scores(whole)
    for config, step in ((two_one, 8), (one_two, 16)):
        told = scores(config)[step]
        for name in ("characters", "bytes", "symbols", "lanes", "context"):
            assert told[f"validation/{name}"] == expected[step][f"validation/{name}"]
        assert told["validation/bpc"] == pytest.approx(expected[step]["validation/bpc"], abs=1e-5)
    assert status(one_two.run_dir)["test"]["bpc"] == pytest.approx(
        status(whole.run_dir)["test"]["bpc"], abs=1e-5
    )


def test_lanes_that_two_processes_cannot_share_are_refused(tmp_path):
    config = small(tmp_path / "run", train={"batch_size": 3})
    with pytest.raises(
        AssertionError, match=r"train.batch_size=3: 2 processes cannot share the lanes evenly"
    ):
        train_on_two(config)
    assert not steps_of(config.run_dir)


def test_accelerate_launch_from_the_folder_of_the_script(tmp_path):
    """Paths are relative to where the user is, and --config to there too."""
    launcher = ["accelerate.commands.launch", "--cpu"]
    words = ["train.py", "--config", "../configs/hello.yaml"]
    told = launched(
        launcher, *words, "--run_dir", tmp_path / "run", "--data.dir", tmp_path / "data", cwd=ROOT / "scripts"
    )
    assert "done: 10 steps" in told
    assert f"{4 * losses(tmp_path / 'run')[0][1]:.3f}" == "6.082"
    assert {p.name for p in (ROOT / "scripts").iterdir() if p.suffix != ".pyc"} <= {
        *(f"{name}.py" for name in ("train", "prepare", "evaluate", "sample", "hello")),
        "__pycache__",
    }
