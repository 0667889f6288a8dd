"""Going on where a run stopped: bit for bit what it would have been, or refused with the reason."""

import os
import re
import shutil
import signal

import pytest
import torch
from helpers import (
    MIXED,
    assert_same_state,
    changed,
    config_file,
    files_of,
    forked,
    logged,
    losses,
    newest,
    records,
    small,
    start,
    status,
    wait_until,
)

from charlm.corpus.prepared import prepare
from charlm.errors import CharlmError
from charlm.training.checkpoint import steps_of
from charlm.training.lanes import Lanes
from charlm.training.loop import train

DROPOUT = {
    "num_layers": 2,
    "dropout": 0.3,
    "weight_drop": 0.1,
    "locked_dropout": True,
}  # so that the state of the random numbers matters


def ask_to_stop_at(step):
    """For watch: a real SIGTERM during the step that comes after so many."""

    def watch(now, model, loss):
        if now == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


# killed


def test_killed_again_and_again_a_run_ends_in_the_bits_of_one_that_was_not(tmp_path):
    """kill -9 between two checkpoints, while one is written, and soon after one."""
    options = {
        "model": DROPOUT | {"hidden_size": 24},
        "train": {"steps": 1_000_000, "batch_size": 6, "bptt": 16},  # under way whenever it is killed
        "evaluate": {"every": 40},
        "sample": {"every": 70},
        "checkpoint": {"every": 20, "keep": 2},
    }
    config = small(tmp_path / "killed", **options)
    folder = tmp_path / "killed" / "checkpoints"

    def last() -> int:
        return steps_of(config.run_dir)[-1] if folder.exists() and steps_of(config.run_dir) else 0

    def between(before):
        return logged(config.run_dir) >= before + 51

    def writing(before):
        return any(int(p.name[6:14]) > before + 20 for p in folder.glob(".step-*.partial"))

    def saved(before):
        return last() >= before + 40

    killed_at = []
    for moment in (between, writing, saved):
        before, process = last(), start(config)
        wait_until(lambda moment=moment, before=before: moment(before), process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        killed_at.append((last(), logged(config.run_dir)))
    assert any(saved < step for saved, step in killed_at)  # steps were lost, and are done again

    steps = last() + 30
    config = changed(config, train={"steps": steps})
    process = start(config)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert f"resumed {config.run_dir} at step {killed_at[-1][0]}" in said and f"done: {steps} steps" in said
    assert not list(folder.glob(".step-*"))

    whole = changed(small(tmp_path / "whole", **options), train={"steps": steps})
    train(whole, quiet=True)
    assert_same_state(tmp_path / "killed", tmp_path / "whole")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
    assert status(tmp_path / "killed") == status(tmp_path / "whole")
    models = [files_of(tmp_path / name / "model") for name in ("killed", "whole")]
    for files in models:
        assert files.pop("README.md")  # the model card names the run
    assert models[0] == models[1]
    drawn = files_of(tmp_path / "whole" / "samples")  # one that was killed may have drawn later ones
    assert drawn.items() <= files_of(tmp_path / "killed" / "samples").items()


def figures(run_dir) -> list[dict]:
    """What was measured, without what depends on the clock and the machine."""
    clocks = ("time", "characters_per_second", "memory_gb", "checkpoint_seconds")
    return [{k: v for k, v in r.items() if k not in clocks} for r in records(run_dir)]


# stopped


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("where", ["inside an epoch", "at its border", "one step after it"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, cell, where):
    options = {
        "data": {"text": MIXED[:400], "validation": 0, "test": 0},
        "model": DROPOUT | {"cell": cell},
        "train": {"steps": 24},
    }
    config = small(tmp_path / "stopped", **options)
    per_epoch = Lanes(prepare(config)["train"], 4, 7).windows
    assert 8 <= per_epoch <= 14
    step = {"inside an epoch": 5, "at its border": per_epoch, "one step after it": per_epoch + 1}[where]
    summary = train(config, quiet=True, watch=ask_to_stop_at(step))
    assert (summary.status, summary.step) == ("interrupted", step)
    facts, _ = newest(config.run_dir)
    assert facts["position"] == [step // per_epoch, step % per_epoch]
    assert train(config, quiet=True).status == "done"
    train(small(tmp_path / "whole", **options), quiet=True)
    assert_same_state(tmp_path / "stopped", tmp_path / "whole")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_stopping_at_every_step_is_the_same_training(tmp_path):
    config = small(tmp_path / "stopped", model=DROPOUT, train={"steps": 5}, evaluate={"every": 2})
    for step in range(1, 5):
        assert train(config, quiet=True, watch=ask_to_stop_at(step)).step == step
    train(config, quiet=True)
    whole = small(tmp_path / "whole", model=DROPOUT, train={"steps": 5}, evaluate={"every": 2})
    train(whole, quiet=True)
    assert_same_state(tmp_path / "stopped", tmp_path / "whole")
    assert figures(tmp_path / "stopped") == figures(tmp_path / "whole")


def test_the_loss_that_is_logged_does_not_depend_on_where_the_run_was_stopped(tmp_path):
    """A line of figures is the mean of the steps since the last one, also when a stop falls in between."""
    options = {"train": {"steps": 10}, "log": {"every": 5}}
    config = small(tmp_path / "stopped", **options)
    train(config, quiet=True, watch=ask_to_stop_at(3))
    train(config, quiet=True)
    train(small(tmp_path / "whole", **options), quiet=True)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


# not the same run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of 12 steps, stopped after 6."""
    config = small(tmp_path_factory.mktemp("stopped") / "run")
    train(config, quiet=True, watch=ask_to_stop_at(6))
    return config


@pytest.mark.parametrize(
    ("section", "keys", "told"),
    [
        ("model", {"hidden_size": 20}, "model.hidden_size is 20, was 12"),
        ("model", {"cell": "gru"}, "model.cell is 'gru', was 'lstm'"),
        ("model", {"dropout": 0.5}, "model.dropout is 0.5, was 0.0"),
        ("optim", {"learning_rate": 0.01}, "optim.learning_rate is 0.01, was 0.02"),
        ("optim", {"clip": None}, "optim.clip is None, was 1.0"),
        ("optim", {"average": 0.9}, "optim.average is 0.9, was 0.0"),
        ("vocab", {"end_of_document": True}, "vocab.end_of_document is True, was False"),
        ("data", {"validation": 0.2}, "data.validation is 0.2, was 0.1"),
        ("train", {"seed": 6}, "train.seed is 6, was 5"),
        ("train", {"batch_size": 2}, "train.batch_size is 2, was 4"),
        ("train", {"bptt": 9}, "train.bptt is 9, was 7"),
    ],
)
def test_another_config_is_refused_naming_what_differs(stopped, section, keys, told):
    before = files_of(stopped.run_dir)
    with pytest.raises(CharlmError) as error:
        train(changed(stopped, **{section: keys}), quiet=True)
    assert told in str(error.value) and stopped.run_dir in str(error.value)
    start = f"name another run_dir; there, --train.init_from {stopped.run_dir} starts" in str(error.value)
    assert start == (section != "model" or "dropout" in keys)  # weights of another shape do not fit
    allow = f"allow it (--train.allow_change {section}.{next(iter(keys))})"
    assert (allow in str(error.value)) == (section == "optim" or "dropout" in keys)
    after = files_of(stopped.run_dir)
    assert {n: b for n, b in after.items() if n != "status.json"} == {
        n: b for n, b in before.items() if n != "status.json"
    }


def test_a_refusal_leaves_the_status_of_the_run_as_it_was(tmp_path):
    config = small(tmp_path / "run")
    train(config, quiet=True)
    before = status(config.run_dir)
    assert before["status"] == "done" and before["test"]
    with pytest.raises(CharlmError, match="another config"):
        train(changed(config, model={"hidden_size": 20}), quiet=True)
    assert status(config.run_dir) == before


def test_all_that_differs_is_named_at_once_by_the_command(stopped):
    other = changed(stopped, model={"hidden_size": 20}, optim={"learning_rate": 0.5}, train={"steps": 99})
    path = config_file(other)
    ran = forked("train", "--config", path, "--data.seed=9", "--run_dir", stopped.run_dir)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    (error,) = [line for line in ran.stderr.splitlines() if line.startswith("charlm: error:")]
    for told in (
        "model.hidden_size is 20, was 12",
        "optim.learning_rate is 0.5, was 0.02",
        "data.seed is 9, was 0",
    ):
        assert told in error
    assert "train.steps" not in error


ALLOWED = [
    ("optim", {"learning_rate": 0.01}, "optim.learning_rate 0.02 → 0.01"),
    ("optim", {"average": 0.9, "name": "adam"}, "optim.name adamw → adam, optim.average 0.0 → 0.9"),
    ("model", {"dropout": 0.5}, "model.dropout 0.0 → 0.5"),
    ("train", {"precision": "bf16"}, "train.precision fp32 → bf16"),
]


@pytest.mark.parametrize(("section", "keys", "told"), ALLOWED)
def test_a_change_on_purpose_is_allowed_and_recorded_once(tmp_path, stopped, section, keys, told):
    """Also by a process that is killed before its next checkpoint."""
    shutil.copytree(stopped.run_dir, tmp_path / "run")
    config = changed(stopped, **{section: keys})
    config.train.allow_change, config.run_dir = [f"{section}.{key}" for key in keys], str(tmp_path / "run")
    with pytest.raises(ZeroDivisionError):
        train(config, quiet=True, watch=lambda step, *_: 1 / (8 - step))
    train(config, quiet=True)
    assert [(r["step"], r["changed"]) for r in records(config.run_dir) if "changed" in r] == [(6, told)]
    rates = [0.02] * 6 + [keys.get("learning_rate", 0.02)] * 6
    assert [r["learning_rate"] for r in records(config.run_dir) if "loss" in r] == rates
    config.train.allow_change, config.train.steps = [], 13  # the new values are those of the run
    assert train(config, quiet=True).step == 13
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert f"| changed on the way | at step 6: {told} |" in card
    before = changed(config, **{section: {key: getattr(getattr(stopped, section), key) for key in keys}})
    before.train.allow_change = [f"{section}.{key}" for key in keys]
    assert train(changed(before, train={"steps": 14}), quiet=True).step == 14


def test_what_no_checkpoint_fits_cannot_be_allowed(tmp_path):
    for key in ("model.hidden_size", "train.seed", "data.source", "qqq"):
        message = rf"train\.allow_change=\['{key}'\]: a list of some of optim"
        with pytest.raises(CharlmError, match=message):
            small(tmp_path / "run", train={"allow_change": key})


def test_a_run_that_is_extended_says_what_becomes_of_the_rate_and_how_to_keep_it(tmp_path, capsys):
    config = small(tmp_path / "run", optim={"schedule": "cosine"}, train={"steps": 5})
    train(config)
    first = capsys.readouterr().out
    train(changed(config, train={"steps": 10}))
    told = capsys.readouterr().out
    assert "schedule" not in first
    assert (
        "the cosine schedule ends at step 10 now, not 5: the learning rate rises from 0.0004 to 0.0" in told
    )
    words = re.search("To keep it low: (.*)", told)[1].split()
    again = small(tmp_path / "again", optim={"schedule": "cosine"}, train={"steps": 5})
    train(again)
    capsys.readouterr()
    path = config_file(changed(again, train={"steps": 10}))
    assert forked("train", "--config", path, *words).returncode == 0
    rates = [r["learning_rate"] for r in records(again.run_dir) if "loss" in r]
    assert rates[4:] == pytest.approx([0.0004] * 6)


def test_another_size_is_named_and_no_way_leads_into_the_next_refusal(tmp_path):
    config = small(tmp_path / "run", model={"size": "tiny", "hidden_size": 6}, train={"steps": 2})
    train(config, quiet=True)
    with pytest.raises(CharlmError, match=r"model\.size is None, was 'tiny'") as error:
        train(changed(config, model={"size": None, "hidden_size": 8}), quiet=True)
    assert str(error.value).endswith("Take those values back, or name another run_dir")


def test_a_text_that_changed_under_the_same_name_is_refused(tmp_path):
    """The config says the same; the file holds the same characters in another order, then others."""
    path = tmp_path / "text.txt"
    path.write_text(MIXED, encoding="utf-8")
    config = small(tmp_path / "run", data={"source": "text", "data_files": str(path)})
    train(config, quiet=True, watch=ask_to_stop_at(6))
    path.write_text(MIXED[::-1], encoding="utf-8")
    with pytest.raises(CharlmError, match="was trained on another text"):
        train(config, quiet=True)
    with pytest.raises(CharlmError, match=f"; there, --train.init_from {config.run_dir} starts from its"):
        train(config, quiet=True)
    path.write_text(MIXED.replace("q", "ы"), encoding="utf-8")
    with pytest.raises(CharlmError, match="was trained on another vocabulary than"):
        train(config, quiet=True)
    path.write_text(MIXED, encoding="utf-8")
    assert train(config, quiet=True).status == "done"


def test_what_does_not_change_the_training_may_change(tmp_path):
    config = small(tmp_path / "run")
    train(config, quiet=True, watch=ask_to_stop_at(6))
    other = changed(
        config,
        train={"steps": 14, "accumulate": 2, "max_hours": 1.0},
        log={"every": 2, "project": "else"},
        checkpoint={"every": 3, "keep": 1},
        evaluate={"every": 5, "lanes": 1},
        sample={"every": 7, "prompt": "Η "},
        data={"dir": str(tmp_path / "elsewhere")},
    )
    summary = train(other, quiet=True)
    assert (summary.status, summary.step) == ("done", 14)
    assert steps_of(config.run_dir)[-1] == 14
    assert [step for step, _ in losses(config.run_dir)] == [1, 2, 3, 4, 5, 6, 8, 10, 12, 14]


def test_a_run_directory_that_was_moved_goes_on(tmp_path):
    config = small(tmp_path / "here")
    train(config, quiet=True, watch=ask_to_stop_at(6))
    (tmp_path / "here").rename(tmp_path / "there")
    config.run_dir = str(tmp_path / "there")
    assert train(config, quiet=True).step == 12
    train(small(tmp_path / "whole"), quiet=True)
    assert_same_state(tmp_path / "there", tmp_path / "whole")


# finished


@pytest.fixture
def done(tmp_path):
    config = small(tmp_path / "run", evaluate={"every": 4}, sample={"every": 6})
    return config, train(config, quiet=True)


def test_running_a_finished_run_again_says_done_and_changes_nothing(done, capsys):
    config, summary = done
    before, told = files_of(config.run_dir), status(config.run_dir)
    again = train(config)
    said = capsys.readouterr().out
    last = f"resumed {config.run_dir} at step 12, the last; more train.steps or minutes train on"
    assert last in said and "done: 12 steps" in said
    assert again == summary and status(config.run_dir) == told
    after = files_of(config.run_dir)
    for name in before:
        if name.startswith(("checkpoints/", "model/", "samples/")) or name == "config.yaml":
            assert after[name] == before[name], name
    assert after.keys() == before.keys()


def test_running_a_finished_run_again_adds_no_figures(done):
    config, _ = done
    before = records(config.run_dir)
    train(config, quiet=True)
    assert records(config.run_dir) == before


def test_more_steps_than_before_go_on_from_the_end(done, tmp_path):
    config, _ = done
    summary = train(changed(config, train={"steps": 20}), quiet=True)
    assert (summary.status, summary.step) == ("done", 20)
    whole = small(tmp_path / "whole", evaluate={"every": 4}, sample={"every": 6}, train={"steps": 20})
    assert train(whole, quiet=True).test == summary.test
    assert_same_state(config.run_dir, whole.run_dir)
    assert losses(config.run_dir) == losses(whole.run_dir)


def test_fewer_steps_than_were_done_change_no_weights(done):
    config, _ = done
    before = newest(config.run_dir)[1]["model"]
    summary = train(changed(config, train={"steps": 5}), quiet=True)
    assert (summary.status, summary.step) == ("done", 12)
    after = newest(config.run_dir)[1]["model"]
    assert all(torch.equal(before[name], after[name]) for name in before)
