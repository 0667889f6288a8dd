"""What a script sees of a command: its exit code, and that an error is one line unless more is asked for."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from helpers import charlm, config_file, small

from charlm.commands import sample as cli_sample
from charlm.commands.cli import COMMANDS, main
from charlm.errors import CharlmError
from charlm.training.loop import train


@pytest.fixture
def leaves(capsys):
    """Run a command in this process; returns (exit code, what it says on stderr)."""

    def leaves(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main(words)
        code = left.value.code
        said = capsys.readouterr().err
        return (1, said + code + "\n") if isinstance(code, str) else (code, said)

    return leaves


@pytest.fixture
def broken(monkeypatch):
    """sample fails as nobody foresaw."""

    def run(argv):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(cli_sample, "run", run)


@pytest.mark.parametrize("name", COMMANDS)
def test_words_that_a_command_does_not_know_end_with_2_in_one_line(leaves, name):
    code, said = leaves(name, "--no_such_option", "3")
    assert code == 2
    assert said.startswith("charlm: error: ") and said.count("\n") == 1


def test_a_value_that_the_user_can_mend_ends_with_1_in_one_line(tmp_path):
    """A real process, in which Python prints it."""
    ran = charlm("train", "--train.steps", "0", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "charlm: error: train.steps=0: must be 1 or more\n"


def test_an_error_that_nobody_foresaw_ends_with_70_and_says_how_to_see_more(leaves, broken):
    code, said = leaves("sample", "runs/any")
    assert code == 70
    assert said == (
        "charlm: unexpected ZeroDivisionError: division; "
        "with --debug, or CHARLM_DEBUG=1, the same command shows where it comes from\n"
    )


@pytest.mark.parametrize("words", [("--debug", "sample"), ("sample", "--debug")])
def test_debug_shows_where_an_unforeseen_error_comes_from(leaves, broken, words):
    code, said = leaves(*words)
    assert code == 70
    assert said.startswith("Traceback") and __file__ in said
    assert said.splitlines()[-1].startswith("charlm: unexpected ZeroDivisionError")


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_the_environment_asks_for_the_same_with_any_error(leaves, monkeypatch, value, shown):
    monkeypatch.setenv("CHARLM_DEBUG", value)
    code, said = leaves("train", "--train.steps", "0")
    assert code == 1 and said.splitlines()[-1] == "charlm: error: train.steps=0: must be 1 or more"
    assert ("Traceback" in said and "checks.py" in said) == shown


def test_a_stopped_training_ends_with_0_as_one_that_is_done(tmp_path):
    """slurm/train.sh reads in status.json which of the two it was."""
    config = small(tmp_path / "run", train={"max_hours": 1e-9})
    for words in ([], ["--train.max_hours", "null"]):
        assert main(["train", "--config", str(config_file(config)), *words]) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_little_memory_is_told_with_the_mend(tmp_path, error):
    def watch(step, model, loss):
        raise error

    told = "Raise train.accumulate: the same training in slices; .* there is no checkpoint yet"
    with pytest.raises(CharlmError, match=told) as caught:
        train(small(tmp_path / "run"), quiet=True, watch=watch)
    assert str(caught.value).startswith(str(error))


# for scripts


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(the config, what `charlm train --json` says) of a run."""
    config, said = small(tmp_path_factory.mktemp("json") / "run"), io.StringIO()
    with contextlib.redirect_stdout(said):
        main(["train", "--config", str(config_file(config)), "--json"])
    return config, said.getvalue()


def test_train_says_how_it_ended_and_nothing_else(finished):
    config, said = finished
    told = json.loads(said)
    assert (told["status"], told["step"], told["run_dir"]) == ("done", 12, config.run_dir)
    assert told["test"] == json.loads((Path(config.run_dir) / "status.json").read_text())["test"]


def test_prepare_says_what_the_corpus_is(finished, capsys):
    main(["prepare", "--config", str(config_file(finished[0])), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (Path(told["folder"]) / "train.npy").is_file()
    assert told["splits"]["train"]["characters"] > told["splits"]["test"]["characters"] > 0


def test_doctor_says_every_finding(finished, capsys):
    words = ["doctor", "--config", str(config_file(finished[0])), "--json"]
    main(words)
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] and told["processes"] == 1
    assert {"device", "speed", "disk"} <= {finding["name"] for finding in told["findings"]}
    with pytest.raises(SystemExit) as left:
        main([*words, "--train.batch_size", "100000"])
    told = json.loads(capsys.readouterr().out)
    assert left.value.code == 1 and not told["ready"]
    assert [finding for finding in told["findings"] if not finding["ok"]]


def test_sample_says_every_sample_on_a_line(finished, capsys):
    words = ("sample", finished[0].run_dir, "--prompt", "The ", "--length", "5", "--seed", "3")
    main([*words, "--num_samples", "2"])
    plain = capsys.readouterr().out
    main([*words, "--num_samples", "2", "--json"])
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [t["seed"] for t in told] == [3, 4] and [t["prompt"] for t in told] == ["The ", "The "]
    assert all(t["prompt"] + t["text"] in plain for t in told)
