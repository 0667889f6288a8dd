"""What a script sees of a command: its exit code, and that an error is one line unless more is asked for."""

import pytest
from helpers import charlm, config_file, small

from charlm import cli_sample
from charlm.cli import COMMANDS, main


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
    assert ("Traceback" in said and "config.py" in said) == shown


def test_a_stopped_training_ends_with_0_as_one_that_is_done(tmp_path):
    """slurm/train.sh reads in status.json which of the two it was."""
    config = small(tmp_path / "run", train={"max_hours": 1e-9})
    for words in ([], ["--train.max_hours", "null"]):
        assert main(["train", "--config", str(config_file(config)), *words]) is None
