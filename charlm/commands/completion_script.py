"""Completion for bash and zsh: a script that knows commands, options, configs, values, and needs no Python.

What a command knows is read in its own --help, so that nothing is told twice.
"""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, get_args, get_origin, get_type_hints

from charlm.config.fields import Config
from charlm.config.parse import shipped_configs

BASH = """\
# Completion of charlm for bash, made by `charlm completion bash`.
_charlm() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words="" IFS=$'\\n'
  if [ "$word" = "=" ]; then word=""; elif [ "$before" = "=" ]; then before=${{COMP_WORDS[COMP_CWORD-2]}}; fi
  COMPREPLY=()
  if [ "$COMP_CWORD" = 1 ]; then
    words="{commands}"
  else
    case "$before" in
      --config)
        COMPREPLY=($(compgen -W "{configs}" -- "$word")
          $(compgen -f -X '!*.y*ml' -- "$word") $(compgen -d -- "$word"))
        return ;;
{values}
    esac
    if [ -z "$words" ]; then
      case "$word" in -*) ;; *) return ;; esac # files, by readline itself
      case "${{COMP_WORDS[1]}}" in
{options}
      esac
    fi
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -o filenames -F _charlm charlm
"""
ZSH = """\
#compdef charlm
# Completion of charlm for zsh, made by `charlm completion zsh`.
_charlm() {{
  local word=${{words[CURRENT]}} before=${{words[CURRENT-1]}}
  local -a commands options
  commands=({described})
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case $before in
    --config) compadd -- {configs}; _files -g '*.(yaml|yml)'; return ;;
{values}
  esac
  if [[ $word != -* ]]; then
    _files
    return
  fi
  case ${{words[2]}} in
{options}
  esac
  compadd -- $options
}}
if [ "$funcstack[1]" = "_charlm" ]; then _charlm "$@"; else compdef _charlm charlm; fi
"""


@dataclass
class Known:
    """What there is to complete."""

    commands: dict[str, str]  # name → what it does
    options: dict[str, list[str]]  # command → its options
    configs: list[str]
    values: dict[str, list[str]]  # option → what it may be


def known() -> Known:
    """Of this charlm."""
    from charlm.commands.cli import COMMANDS

    names = sorted(COMMANDS)
    modules = {name: import_module(f"charlm.commands.{name}") for name in names}
    about = {name: module.__doc__.splitlines()[0].partition(": ")[2] for name, module in modules.items()}
    options = {name: _options(module.run) for name, module in modules.items()}
    return Known(about, options, list(shipped_configs()), _values())


def _options(run) -> list[str]:
    """The options in a command's help."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            run(["--help"])
    except SystemExit:
        pass
    sections = {f"--{name}" for name, kind in get_type_hints(Config).items() if kind is not str}
    return sorted({*re.findall(r"(?<![\w-])--[a-z][\w.]*\w", said.getvalue()), "--debug"} - sections)


def _values() -> dict[str, list[str]]:
    """The fields of a config that are a choice."""
    values = {}
    for section, kind in get_type_hints(Config).items():
        if kind is not str:
            for name, hint in get_type_hints(kind).items():
                if hint is bool:
                    values[f"--{section}.{name}"] = ["true", "false"]
                elif get_origin(hint) is Literal:
                    values[f"--{section}.{name}"] = list(get_args(hint))
    return values


def bash(what: Known) -> str:
    """The script for bash."""
    return BASH.format(
        commands=_lines([*what.commands, "--help", "--version"]),
        configs=_lines(what.configs),
        values="\n".join(f'      {o}) words="{_lines(v)}" ;;' for o, v in what.values.items()),
        options="\n".join(f'        {c}) words="{_lines(o)}" ;;' for c, o in what.options.items()),
    )


def zsh(what: Known) -> str:
    """The script for zsh."""
    described = " ".join(_quoted(f"{name}:{about}") for name, about in what.commands.items())
    return ZSH.format(
        described=described,
        configs=" ".join(what.configs),
        values="\n".join(f"    {o}) compadd -- {' '.join(v)}; return ;;" for o, v in what.values.items()),
        options="\n".join(f"    {c}) options=({' '.join(o)}) ;;" for c, o in what.options.items()),
    )


def _lines(words: list[str]) -> str:
    return "\n".join(words)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
