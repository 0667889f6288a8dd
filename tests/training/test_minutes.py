"""train.minutes and train.epochs: the number of steps that they become, once and for all."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from helpers import (
    assert_same_state,
    changed,
    losses,
    newest,
    records,
    small,
    start,
    status,
    train_on,
    wait_until,
)

from charlm.corpus.prepared import prepare
from charlm.errors import CharlmError
from charlm.training.checkpoint import folder_of, load_checkpoint, steps_of
from charlm.training.lanes import Lanes
from charlm.training.loop import MEASURED, train

COSINE = {"schedule": "cosine", "warmup_steps": 3, "final_ratio": 0.1}


def timed(run_dir, minutes: float = 0.03, **changes):
    """A run of so many minutes; steps take about 2 ms. train.steps is at its default, as if not given."""
    options = {
        "optim": {"learning_rate": 0.02} | COSINE,
        "train": {"batch_size": 4, "bptt": 7, "seed": 5, "steps": 1000, "minutes": minutes},
        "model": {"dropout": 0.3},
        "checkpoint": {"every": 50, "keep": 1000},
        "evaluate": {"every": 70},
    }
    return small(run_dir, **{n: options.get(n, {}) | changes.get(n, {}) for n in {*options, *changes}})


def measurement(run_dir) -> dict:
    """The one record of the number of steps."""
    (record,) = [r for r in records(run_dir) if "steps" in r]
    return record


def stop_at(step):
    """For watch: a real SIGTERM in that step."""

    def watch(now, model, loss):
        if now == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with train.minutes from its start to its end, and what it printed."""
    config = timed(tmp_path_factory.mktemp("whole") / "run", sample={"every": 60})
    process = start(config)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return config, said


def test_the_steps_are_measured_logged_and_stored(whole):
    config, said = whole
    found = measurement(config.run_dir)
    steps, at = found["steps"], found["step"]
    assert re.findall(r"train\.minutes=0\.03: [\d,.]+ ms per step, so ([\d,]+) steps; ", said) == [
        f"{steps:,}"
    ]
    assert 2 <= at <= min(steps, MEASURED)
    assert steps == at or (steps - at) * found["seconds_per_step"] < 0.03 * 60
    facts, _ = newest(config.run_dir)
    assert (facts["step"], facts["steps"]) == (steps, steps)
    told = status(config.run_dir)
    assert (told["status"], told["step"], told["steps"]) == ("done", steps, steps)
    assert f"| weights of step | {told['best']['step']} of {steps} |" in card(config)
    assert "\n  minutes: 0.03\n" in card(config) and "\n  steps: 1000" not in card(config)
    assert "minutes: 0.03" in (Path(config.run_dir) / "config.yaml").read_text()


def card(config) -> str:
    return (Path(config.run_dir) / "model" / "README.md").read_text(encoding="utf-8")


def test_a_checkpoint_is_written_when_the_number_is_known(whole):
    config, _ = whole
    found = measurement(config.run_dir)
    facts, *_ = load_checkpoint(folder_of(config.run_dir, found["step"]))
    assert facts["steps"] == found["steps"]


def test_the_learning_rate_stays_at_its_peak_until_then_and_falls_to_the_last_step(whole):
    config, _ = whole
    found = measurement(config.run_dir)
    rates = {r["step"]: r["learning_rate"] for r in records(config.run_dir) if "loss" in r}
    assert rates[1] == pytest.approx(0.02 / 3)
    assert {rates[step] for step in range(3, found["step"] + 1)} == {0.02}
    if found["steps"] > found["step"]:
        assert rates[found["steps"]] == pytest.approx(0.002)


def test_lines_show_the_number_and_the_time_left_once_they_are_known(whole):
    config, said = whole
    found = measurement(config.run_dir)
    lines = dict(re.findall(r"^step (\d+)((?:/\d+)?  loss .*)$", said, re.MULTILINE))
    assert "/" not in lines["1"].split()[0] and not lines["1"].endswith("left")
    assert lines[str(found["steps"])].startswith(f"/{found['steps']}  loss")
    assert lines[str(found["steps"])].endswith("00:00 left")


def test_killed_after_the_number_was_fixed_it_goes_on_to_the_same_bits(whole, tmp_path, capsys):
    """The run directory as a kill leaves it: nothing after the checkpoint that holds the number."""
    config, _ = whole
    found = measurement(config.run_dir)
    shutil.copytree(config.run_dir, tmp_path / "killed")
    for step in steps_of(config.run_dir):
        if step > found["step"]:
            shutil.rmtree(folder_of(tmp_path / "killed", step))
    again = changed(config)
    again.run_dir = str(tmp_path / "killed")
    summary = train(again)
    said = capsys.readouterr().out
    assert f"resumed {again.run_dir} at step {found['step']}" in said and "ms per step" not in said
    assert summary.step == found["steps"] and measurement(again.run_dir) == found
    assert_same_state(config.run_dir, again.run_dir)
    assert losses(config.run_dir) == losses(again.run_dir)


def test_kill_9_and_the_same_command(tmp_path):
    config = timed(tmp_path / "run", minutes=0.15)
    process = start(config)
    fixed = lambda: any("steps" in r for r in records(config.run_dir))  # noqa: E731
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and fixed(), process)
    steps = measurement(config.run_dir)["steps"]
    wait_until(lambda: newest_steps(config) == steps, process)
    process.kill()
    process.communicate()
    assert train(config, quiet=True).step == steps
    assert measurement(config.run_dir)["steps"] == newest_steps(config) == steps


def newest_steps(config) -> int | None:
    return newest(config.run_dir)[0]["steps"] if steps_of(config.run_dir) else None


def test_stopped_before_it_is_measured_when_it_goes_on(tmp_path):
    config = timed(tmp_path / "run")
    assert train(config, quiet=True, watch=stop_at(1)).status == "interrupted"
    assert newest_steps(config) is None and status(config.run_dir)["steps"] is None
    summary = train(config, quiet=True)
    assert summary.status == "done"
    assert summary.step == measurement(config.run_dir)["steps"] == newest_steps(config) > 1


def test_other_minutes_change_the_number_in_proportion(whole, tmp_path, capsys):
    config, _ = whole
    steps = measurement(config.run_dir)["steps"]
    shutil.copytree(config.run_dir, tmp_path / "run")
    config = changed(config, train={"minutes": 0.045})
    config.run_dir = str(tmp_path / "run")
    summary = train(config)
    assert (summary.status, summary.step) == ("done", round(steps * 0.045 / 0.03))
    assert "ms per step" not in capsys.readouterr().out
    assert status(config.run_dir)["steps"] == newest_steps(config) == summary.step
    fewer = train(changed(config, train={"minutes": 0.01}), quiet=True)
    assert (fewer.status, fewer.step) == ("done", summary.step)


def test_minutes_become_steps_and_steps_minutes(tmp_path):
    config = timed(tmp_path / "run")
    train(config, quiet=True, watch=stop_at(2))
    by_steps = changed(config, train={"minutes": None, "steps": 9})
    assert train(by_steps, quiet=True).step == 9 and newest_steps(config) == 9
    more = train(config, quiet=True)
    assert more.status == "done" and more.step == newest_steps(config) > 9


def test_a_slow_machine_fixes_it_before_so_many_steps(tmp_path):
    config = timed(tmp_path / "run", minutes=1e-6)
    summary = train(config, quiet=True)
    assert summary.status == "done" and measurement(config.run_dir)["step"] == summary.step == 2


def test_all_processes_take_the_number_of_the_main_one(tmp_path):
    """The second one would find a hundred times as many steps."""
    config = timed(tmp_path / "run", minutes=0.05)
    said = train_on(2, config, last="--train.minutes 5")
    found = measurement(config.run_dir)
    assert f"done: {found['steps']} steps" in said and said.count("ms per step") == 1
    assert status(config.run_dir)["step"] == newest_steps(config) == found["steps"]


@pytest.mark.parametrize("epochs", [2, 0.5, 0.001])
def test_epochs_are_steps(tmp_path, epochs, capsys):
    config = small(tmp_path / "run", train={"steps": 1000, "epochs": epochs, "batch_size": 4, "bptt": 7})
    per_epoch = Lanes(prepare(config)["train"], 4, 7).windows
    steps = max(round(epochs * per_epoch), 1)
    assert train(config).step == steps and status(config.run_dir)["steps"] == steps
    assert f"train.epochs={epochs}: {steps} steps, {per_epoch} per epoch" in capsys.readouterr().out
    facts, _ = newest(config.run_dir)
    if epochs == 2:
        assert facts["position"] == [2, 0]
        assert train(changed(config, train={"epochs": 2.5}), quiet=True).step == round(2.5 * per_epoch)


def test_what_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(CharlmError, match=r"train\.minutes=0: must be above 0"):
        timed(tmp_path / "run", minutes=0)
