"""Several real processes: the same training as one does, and each number goes on where another stopped."""

import shutil

import pytest
import torch
from helpers import (
    ROOT,
    assert_same_state,
    changed,
    launched,
    losses,
    newest,
    records,
    small,
    status,
    torchrun,
    train_on,
)

from charlm.training.checkpoint import folder_of, load_checkpoint, steps_of
from charlm.training.loop import train
from charlm.training.step import gradient_exchange

CHANGES = {"two, then one": (2, 1), "one, then two": (1, 2), "four, then two": (4, 2)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same 16 steps by one process, and by others that change in number after 10.

    Returns the config of the whole run, and for each change (config, what was printed first, and then).
    Six lanes: four processes have one or two each.
    """
    root = tmp_path_factory.mktemp("ranks")
    options = {
        "model": {"num_layers": 2},
        "optim": {"average": 0.7},
        "train": {"steps": 16, "batch_size": 6},
        "evaluate": {"every": 8, "lanes": 5, "context": 8},
        "checkpoint": {"every": 10, "keep": 9},
    }
    whole = small(root / "whole", **options)
    train(whole, quiet=True)
    ran = {}
    for change, (first, then) in CHANGES.items():
        config = small(root / change.replace(", ", "_").replace(" ", "_"), **options)
        ran[change] = (config, train_on(first, changed(config, train={"steps": 10})), train_on(then, config))
    return whole, ran


def checkpoint_at(config, step):
    facts, tensors, _ = load_checkpoint(folder_of(config.run_dir, step))
    return facts, tensors


def assert_close(tensors, others) -> None:
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.shape == others[name].shape
        assert torch.allclose(tensor, others[name], atol=1e-5), name


@pytest.mark.parametrize("change", ["two, then one", "four, then two"])
def test_several_processes_train_as_one_does(runs, change):
    whole, ran = runs
    config, told, _ = ran[change]
    by_one, by_many = losses(whole.run_dir)[:10], losses(config.run_dir)[:10]
    assert [step for step, _ in by_many] == list(range(1, 11))
    assert [v for _, v in by_many] == pytest.approx([v for _, v in by_one], abs=1e-5)
    (facts, tensors), (facts1, tensors1) = checkpoint_at(config, 10), checkpoint_at(whole, 10)
    assert (facts["ranks"], facts1["ranks"]) == (CHANGES[change][0], 1)
    assert facts["position"] == facts1["position"]
    assert_close(tensors["model"], tensors1["model"])
    assert_close(tensors["average"], tensors1["average"])
    assert_close(tensors["optimizer"], tensors1["optimizer"])
    assert told.count("wandb: disabled") == 1  # only the main process speaks
    assert told.count("step 8: validation") == told.count("done: 10 steps") == 1


@pytest.mark.parametrize("change", ["two, then one", "four, then two"])
def test_the_checkpoint_of_several_holds_the_carry_of_all_lanes_in_order(runs, change):
    whole, ran = runs
    (_, tensors), (_, tensors1) = checkpoint_at(ran[change][0], 10), checkpoint_at(whole, 10)
    assert [tensors["carry"][name].shape for name in "01"] == [(2, 6, 12)] * 2  # layers, lanes, hidden
    assert_close(tensors["carry"], tensors1["carry"])
    h = tensors1["carry"]["0"]
    for lane in range(6):  # another order would show
        others = [other for other in range(6) if other != lane]
        assert (h[:, others] - h[:, lane : lane + 1]).abs().amax((0, 2)).min() > 0.01


@pytest.mark.parametrize("change", CHANGES)
def test_another_number_of_processes_goes_on_with_the_same_training(runs, change):
    whole, ran = runs
    config, _, told = ran[change]
    assert status(config.run_dir)["status"] == "done" and steps_of(config.run_dir) == [10, 16]
    assert [step for step, _ in losses(config.run_dir)] == list(range(1, 17))
    expected = [v for _, v in losses(whole.run_dir)]
    assert [v for _, v in losses(config.run_dir)] == pytest.approx(expected, abs=1e-5)
    for group in ("model", "carry"):
        assert_close(checkpoint_at(config, 16)[1][group], checkpoint_at(whole, 16)[1][group])
    assert f"resumed {config.run_dir} at step 10" in told


def test_lanes_beyond_what_a_process_held_before_are_worked_off_in_slices(runs):
    """Half the processes, twice the lanes on each: no more of them at once than fitted before."""
    _, ran = runs
    assert "6 lanes per process, where 3 were computed at once before" in ran["two, then one"][2]
    assert "3 lanes per process, where 2 were computed at once before" in ran["four, then two"][2]
    assert "slices" not in ran["one, then two"][2]
    assert checkpoint_at(ran["two, then one"][0], 16)[0]["lanes_at_once"] == 3


def test_the_user_decides_on_the_slices(tmp_path):
    config = small(tmp_path / "run", train={"steps": 2, "batch_size": 6})
    train_on(2, config)
    train(changed(config, train={"steps": 4, "accumulate": 3}), quiet=True)
    assert newest(config.run_dir)[0]["lanes_at_once"] == 2


def test_on_the_same_number_of_processes_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    """With dropout, whose random states differ by process; three, for a sum of two has no order."""
    options = {"model": {"num_layers": 2, "dropout": 0.3}, "train": {"steps": 12, "batch_size": 4}}
    stopped, whole = small(tmp_path / "stopped", **options), small(tmp_path / "whole", **options)
    told = train_on(3, changed(stopped, train={"max_hours": 1e-9}))
    assert "stopped at step 1 (train.max_hours is over)" in told
    assert "resumed" in train_on(3, stopped)
    train_on(3, whole)
    assert_same_state(stopped.run_dir, whole.run_dir)
    assert losses(stopped.run_dir) == losses(whole.run_dir)


@pytest.mark.parametrize("change", CHANGES)
def test_evaluation_over_several_processes_counts_every_character_once(runs, change):
    whole, ran = runs

    def scores(config):
        return {r["step"]: r for r in records(config.run_dir) if "validation/bpc" in r}

    expected, told = scores(whole), scores(ran[change][0])
    for step in (8, 16):
        for name in ("characters", "bytes", "symbols", "lanes", "context"):
            assert told[step][f"validation/{name}"] == expected[step][f"validation/{name}"]
        assert told[step]["validation/bpc"] == pytest.approx(expected[step]["validation/bpc"], abs=1e-5)
    tests = [status(config.run_dir)["test"]["bpc"] for config in (whole, ran[change][0])]
    assert tests[0] == pytest.approx(tests[1], abs=1e-5)


def test_more_processes_than_lanes_are_refused(tmp_path):
    config = small(tmp_path / "run", train={"batch_size": 1})
    assert "train.batch_size=1: too few lanes for 2 processes" in train_on(2, config, code=1)
    assert not steps_of(config.run_dir)


BF16_GRADIENTS = "train.gradients=bf16 is for GPUs: these CPUs average gradients in fp32"


@pytest.fixture(scope="module")
def two_views(tmp_path_factory):
    """A run of two processes with checkpoints at 4, 8 and 12, and its whole continuation to 16."""
    root = tmp_path_factory.mktemp("views")
    config = small(root / "run", checkpoint={"every": 4, "keep": 9})
    assert BF16_GRADIENTS not in train_on(2, config)
    shutil.copytree(config.run_dir, root / "whole")
    whole = small(root / "whole", train={"steps": 16}, checkpoint={"every": 4, "keep": 9})
    train_on(2, whole)
    return config, whole


def test_gradients_in_bf16_are_for_gpus(two_views, tmp_path):
    options = {"train": {"gradients": "bf16"}, "checkpoint": {"every": 4, "keep": 9}}
    plain, bf16 = two_views[0], small(tmp_path / "bf16", **options)
    assert BF16_GRADIENTS in train_on(2, bf16)
    assert_same_state(plain.run_dir, bf16.run_dir)
    hooks = [gradient_exchange(gradients).comm_hook.value for gradients in ("fp32", "bf16")]
    assert hooks == ["no", "bf16"]


def test_all_go_on_from_one_checkpoint_though_one_sees_the_newest_torn(two_views, tmp_path):
    """The processes see different folders, as nodes may whose disk is not what it should be."""
    first, whole = two_views
    config = small(tmp_path / "run", train={"steps": 16}, checkpoint={"every": 4, "keep": 9})
    for folder in ("run", "view"):
        shutil.copytree(first.run_dir, tmp_path / folder)
    (tmp_path / "view/checkpoints/step-00000012/carry.safetensors").write_bytes(b"torn")
    told = train_on(2, config, last=f"--run_dir {tmp_path / 'view'}")
    assert told.count("damaged checkpoint skipped") == 1
    assert "view/checkpoints/step-00000012/carry.safetensors: 4 bytes, should be" in told
    assert "(as process 1 on " in told and f"resumed {config.run_dir} at step 8" in told
    assert_same_state(config.run_dir, whole.run_dir)


def test_a_process_that_sees_no_checkpoint_lets_none_start_anew(two_views, tmp_path):
    first, _ = two_views
    config = small(tmp_path / "run", train={"steps": 16})
    shutil.copytree(first.run_dir, config.run_dir)
    told = train_on(2, config, last=f"--run_dir {tmp_path / 'elsewhere'}", code=1)
    assert (
        "none of its 3 checkpoint(s) is undamaged" in told
        and "all processes must see the same folder" in told
    )
    assert newest(config.run_dir)[0]["step"] == 12


def test_the_launcher_of_torch(tmp_path):
    config = small(tmp_path / "run", train={"steps": 2})
    assert "done: 2 steps" in torchrun(2, config)


def test_accelerate_launch_from_the_folder_of_the_script(tmp_path):
    """Paths are relative to where the user is, and --config to there too."""
    launcher = ["accelerate.commands.launch", "--cpu"]
    words = ["train.py", "--config", "../configs/hello.yaml"]
    before = {path.name for path in (ROOT / "scripts").iterdir()}
    told = launched(
        launcher, *words, "--run_dir", tmp_path / "run", "--data.dir", tmp_path / "data", cwd=ROOT / "scripts"
    )
    assert "done: 10 steps" in told
    assert f"{4 * losses(tmp_path / 'run')[0][1]:.3f}" == "6.082"
    assert {path.name for path in (ROOT / "scripts").iterdir()} - before <= {"__pycache__"}
