"""The best weights in model/: mended where they are torn, and never the end of a run that is done."""

import json
import os
import shutil
import signal

import pytest
from helpers import assert_same_state, changed, files_of, newest, small, status

from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmWarning
from charlm.model.pretrained import read_best
from charlm.training import resume
from charlm.training.checkpoint import folder_of
from charlm.training.loop import train

OPTIONS = {"evaluate": {"every": 4}, "checkpoint": {"every": 4, "keep": 9}}
FILES = ("config.json", "model.safetensors", "vocab.json")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run of 12 steps; the last evaluation was the best."""
    config = small(tmp_path_factory.mktemp("best") / "run", **OPTIONS)
    assert train(config, quiet=True).best["step"] == 12
    return config


@pytest.fixture
def copy(done, tmp_path):
    shutil.copytree(done.run_dir, tmp_path / "run")
    return small(tmp_path / "run", data={"dir": done.data.dir}, **OPTIONS)


def damage(path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + (b"" if how == "torn" else b"\x01" + content[middle + 1 :]))


@pytest.mark.parametrize("how", ["missing", "torn", "changed"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_whole_is_written_again_from_the_checkpoint(done, copy, capsys, name, how):
    folder = f"{copy.run_dir}/model"
    damage(folder_of(copy.run_dir, 12).parents[1] / "model" / name, how)
    assert train(copy).status == "done"
    assert f"{folder}: written again from the checkpoint of step 12" in capsys.readouterr().out
    assert files_of(folder) == files_of(f"{done.run_dir}/model")
    assert status(copy.run_dir) == status(done.run_dir)


def test_a_file_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path):
    """As when a disk on the network fails: nothing takes the place of the best weights."""
    assert read_best(tmp_path / "nowhere", Vocab("a")) is None
    with pytest.raises(OSError, match="name too long"):
        read_best(tmp_path / ("x" * 300), Vocab("a"))


def stop_at(step):
    def watch(now, model, loss):
        if now == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


@pytest.mark.parametrize("checkpoint", ["there", "missing too"])
def test_a_folder_that_vanishes_under_a_run_does_not_end_it(done, tmp_path, monkeypatch, checkpoint):
    """At the very end its weights are needed: those of a checkpoint are taken, or the last ones."""
    config = small(tmp_path / "run", data={"dir": done.data.dir}, **OPTIONS)

    def save(run, setup, wait=False):
        resume.save_checkpoint(run, setup, wait=wait)
        if wait:
            shutil.rmtree(tmp_path / "run" / "model")
            if checkpoint != "there":
                shutil.rmtree(folder_of(config.run_dir, 12))

    monkeypatch.setattr("charlm.training.loop.save_checkpoint", save)
    if checkpoint == "there":
        train(config, quiet=True)
    else:
        with pytest.warns(CharlmWarning, match="the best weights, of step 12, are damaged or missing"):
            train(config, quiet=True)
    assert status(config.run_dir) == status(done.run_dir)
    assert files_of(tmp_path / "run" / "model") == files_of(f"{done.run_dir}/model")


@pytest.mark.parametrize("when", ["at the start", "at the end"])
def test_weights_that_no_checkpoint_has_are_told_lost_and_chosen_anew(done, tmp_path, when):
    """The best one is of step 5, which has no checkpoint."""
    options = {"data": {"dir": done.data.dir}, "evaluate": {"every": 5}}
    config = small(tmp_path / "run", **options)
    train(config, quiet=True, watch=stop_at(7))
    assert newest(config.run_dir)[0]["best"]["step"] == 5
    last = 12 if when == "at the start" else 7
    shutil.rmtree(tmp_path / "run" / "model")
    with pytest.warns(CharlmWarning, match="the best weights, of step 5, are damaged or missing"):
        summary = train(changed(config, train={"steps": last}), quiet=True)
    assert (summary.status, summary.best["step"]) == ("done", last)
    whole = small(tmp_path / "whole", **options | {"train": {"steps": last}})
    train(whole, quiet=True)
    model = files_of(tmp_path / "run" / "model")
    assert model["model.safetensors"] == files_of(tmp_path / "whole" / "model")["model.safetensors"]


def test_weights_later_than_the_checkpoint_give_way_to_those_it_knows(done, tmp_path):
    """Killed between an evaluation and the checkpoint: nothing later than the checkpoint counts.

    With dropout: what is done about it draws none of the run's random numbers.
    """
    options = {"evaluate": {"every": 2}, "checkpoint": {"every": 4}, "model": {"dropout": 0.3}}
    options["data"] = {"dir": done.data.dir}
    config = small(tmp_path / "run", **options)

    class Killed(Exception):
        pass

    def watch(step, model, loss):
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        train(config, quiet=True, watch=watch)
    assert json.loads((tmp_path / "run/model/config.json").read_text())["step"] == 6
    assert train(changed(config, train={"steps": 4}), quiet=True).best["step"] == 4
    assert json.loads((tmp_path / "run/model/config.json").read_text())["step"] == 4
    (tmp_path / "run" / "model" / "config.json").unlink()
    train(config, quiet=True)
    whole = small(tmp_path / "whole", **options)
    train(whole, quiet=True)
    assert_same_state(config.run_dir, whole.run_dir)
    model, expected = (files_of(tmp_path / name / "model") for name in ("run", "whole"))
    assert all(model[name] == expected[name] for name in FILES)  # the model card names the run
