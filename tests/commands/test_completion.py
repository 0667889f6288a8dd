"""Completion, requested as bash and zsh request it."""

import contextlib
import io
import os
import pty
import shlex
import shutil
import subprocess

import pytest
from helpers import environment

from charlm.commands.cli import COMMANDS, main
from charlm.config.fields import Config
from charlm.config.parse import flatten, shipped_configs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the scripts, as the command prints them: bash, and _charlm for zsh's fpath."""
    folder = tmp_path_factory.mktemp("completion")
    for shell, name in (("bash", "bash"), ("zsh", "_charlm")):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            main(["completion", shell])
        (folder / name).write_text(printed.getvalue(), encoding="utf-8")
    (folder / ".zshrc").write_text(ZSHRC.format(folder=folder))
    return folder


BASH = """\
source {script}
COMP_WORDS=({words}) COMP_CWORD={last}
_charlm
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSHRC = """\
PROMPT='ready' LISTMAX=100000
fpath=({folder} $fpath)
autoload -Uz compinit && compinit -u -d {folder}/dump
compadd() {{ # also writes its matches to a file; with -O, -A or -D it adds none
  local -a _matches
  if [[ ${{@[1,(i)(-|--)]}} != *-(O|A|D)\\ * ]]; then
    builtin compadd -A _matches "$@"
    print -rl -- $_matches >> "$OFFERED"
  fi
  builtin compadd "$@"
}}
comppostfuncs=(exit)
"""


def in_bash(folder, line: str, cwd) -> list[str]:
    """The words that bash offers at the end of a line."""
    words = line.split(" ")
    text = BASH.format(
        script=folder / "bash", words=" ".join(shlex.quote(w) for w in words), last=len(words) - 1
    )
    ran = subprocess.run(["bash", "--norc", "-c", text], capture_output=True, encoding="utf-8", cwd=cwd)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    return [word for word in ran.stdout.split("\n") if word]


def in_zsh(folder, line: str, cwd) -> list[str]:
    """The words that an interactive zsh offers at the end of a line."""
    if shutil.which("zsh") is None:
        pytest.skip("no zsh here")
    offered = folder / "offered"
    offered.write_text("")
    ours, theirs = pty.openpty()
    env = environment(ZDOTDIR=str(folder), OFFERED=str(offered), TERM="xterm")
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = subprocess.Popen(["zsh", "-d", "-i"], env=env, cwd=cwd, start_new_session=True, **ends)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # zsh has ended
        while b"ready" not in shown:
            shown += os.read(ours, 1 << 16)
        os.write(ours, f"{line}\t".encode())
        while os.read(ours, 1 << 16):
            pass
    os.close(ours)
    assert process.wait(120) == 0
    return [word for word in offered.read_text().split("\n") if word]


@pytest.fixture
def cwd(tmp_path):
    (tmp_path / "my own.yaml").write_text("")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "runs").mkdir()
    return tmp_path


@pytest.fixture(params=[in_bash, in_zsh], ids=["bash", "zsh"])
def tab(request, folder, cwd):
    return lambda line: request.param(folder, line, cwd)


def test_commands(tab):
    assert set(tab("charlm ")) == set(COMMANDS)
    assert tab("charlm tr") == ["train"]
    assert set(tab("charlm --")) == {"--help", "--version"}


def test_every_field_and_option_of_a_command(tab):
    fields = {f"--{name}" for name in flatten(Config())}
    assert {*fields, "--config", "--help", "--debug"} <= set(tab("charlm train --"))
    assert {*fields, "--shard", "--merge", "--verify"} <= set(tab("charlm prepare --"))
    assert tab("charlm evaluate runs/x --la") == ["--lanes"]
    assert "--model" not in tab("charlm train --mod")


def test_names_of_configs_and_their_files(tab):
    offered = tab("charlm train --config ")
    assert {*shipped_configs(), "my own.yaml"} <= {word.replace("\\", "") for word in offered}
    assert "notes.txt" not in offered
    assert tab("charlm train --config text") == ["text8"]


def test_the_values_of_a_choice(tab):
    assert sorted(tab("charlm train --model.norm ")) == ["layer", "none", "rms"]
    assert tab("charlm train --vocab.end_of_document t") == ["true"]


def test_bash_completes_after_an_equals_sign_and_leaves_files_to_the_shell(folder, cwd):
    def tab(line):
        return in_bash(folder, line, cwd)

    assert tab("charlm train --model.norm =") == ["none", "layer", "rms"]
    assert tab("charlm train --model.norm = l") == ["layer"]
    assert tab("charlm evaluate ") == []  # then bash itself offers files
    assert tab("charlm train --config hello --train.steps = 5 --model.ce") == ["--model.cell"]


def test_zsh_offers_files_where_no_option_begins(folder, cwd):
    assert {"notes.txt", "runs"} <= set(in_zsh(folder, "charlm evaluate ", cwd))
    assert "notes.txt" in in_zsh(folder, "charlm evaluate runs --text ", cwd)


def test_an_unknown_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["completion", "fish"])
    assert ended.value.code == 2 and "bash" in capsys.readouterr().err
