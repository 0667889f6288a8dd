"""Completion, asked as bash and zsh ask for it."""

import shlex
import shutil
import subprocess

import pytest

from charlm.commands.cli import COMMANDS, main
from charlm.config.fields import Config
from charlm.config.parse import flatten, shipped_configs


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """{shell: file}, as the command prints them."""
    import contextlib
    import io

    folder, files = tmp_path_factory.mktemp("completion"), {}
    for shell in ("bash", "zsh"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            main(["completion", shell])
        files[shell] = folder / shell
        files[shell].write_text(said.getvalue(), encoding="utf-8")
    return files


BASH = """\
source {script}
COMP_WORDS=({words}) COMP_CWORD={last}
_charlm
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# What zsh's own functions would show, printed.
ZSH = """\
compdef() {{ :; }}
compadd() {{ shift; printf '%s\\n' "$@"; }}
_files() {{ print -l files "$@"; }}
_describe() {{ print -l "${{(@P)2}}"; }}
source {script}
words=({words}) CURRENT={last}
_charlm
"""


def offered(shell: str, script, line: str, cwd) -> list[str]:
    """What Tab offers at the end of a line."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    words = [*line.split(" ")]
    last = len(words) - (shell == "bash")  # bash counts from 0
    text = {"bash": BASH, "zsh": ZSH}[shell].format(
        script=script, words=" ".join(shlex.quote(w) for w in words), last=last
    )
    start = [shell, "-f", "-c"] if shell == "zsh" else [shell, "--norc", "-c"]
    ran = subprocess.run([*start, text], capture_output=True, encoding="utf-8", cwd=cwd, timeout=120)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    found = ran.stdout.split("\n")[:-1]
    return [w for w in found if w.startswith(words[-1])] if shell == "zsh" else [w for w in found if w]


@pytest.fixture(params=["bash", "zsh"])
def tab(request, scripts, tmp_path):
    (tmp_path / "my own.yaml").write_text("")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "runs").mkdir()
    return lambda line: offered(request.param, scripts[request.param], line, tmp_path)


def test_commands(tab):
    told = [word.partition(":")[0] for word in tab("charlm ")]
    assert set(told) - {"--help", "--version"} == set(COMMANDS)
    assert [word.partition(":")[0] for word in tab("charlm tr")] == ["train"]


def test_every_field_and_option_of_a_command(tab):
    fields = {f"--{name}" for name in flatten(Config())}
    assert {*fields, "--config", "--help", "--debug"} <= set(tab("charlm train --"))
    assert {*fields, "--shard", "--merge", "--verify"} <= set(tab("charlm prepare --"))
    assert tab("charlm evaluate runs/x --la") == ["--lanes"]
    assert "--model" not in tab("charlm train --mod")


def test_names_of_configs_and_their_files(tab):
    told = tab("charlm train --config ")
    assert set(shipped_configs()) <= set(told)
    assert tab("charlm train --config text") == ["text8"]


def test_the_values_of_a_choice(tab):
    assert tab("charlm train --model.norm ") == ["none", "layer", "rms"]
    assert tab("charlm train --vocab.end_of_document t") == ["true"]


def test_bash_completes_after_an_equals_sign_and_leaves_files_to_the_shell(scripts, tmp_path):
    def tab(line):
        return offered("bash", scripts["bash"], line, tmp_path)

    (tmp_path / "my own.yaml").write_text("")
    (tmp_path / "notes.txt").write_text("")
    assert tab("charlm train --model.norm =") == ["none", "layer", "rms"]
    assert tab("charlm train --model.norm = l") == ["layer"]
    assert tab("charlm evaluate ") == []  # then bash itself offers files
    assert [w for w in tab("charlm train --config ") if "." in w] == ["my own.yaml"]


def test_zsh_offers_files_where_no_option_begins(scripts, tmp_path):
    assert "files" in offered("zsh", scripts["zsh"], "charlm evaluate ", tmp_path)


def test_a_shell_that_is_not_known_is_told(capsys):
    with pytest.raises(SystemExit) as left:
        main(["completion", "fish"])
    assert left.value.code == 2 and "bash" in capsys.readouterr().err
