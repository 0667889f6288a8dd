"""charlm COMMAND …: the table of commands, exit codes, what the parsers share, and shell completion."""

import argparse
import json
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from itertools import groupby, takewhile
from pathlib import Path
from typing import NoReturn

from charlm import __version__
from charlm.errors import CharlmError, CharlmWarning, UsageError
from charlm.terminal import say, shown, stopped, visible

_python_format = warnings.formatwarning  # which main replaces
COMMANDS = {  # command → module of this folder that has a function of that name, group, what it does
    "hello": ("train", "learn", 'the classroom example: an RNN learns "hello" in ten steps'),
    "prepare": ("train", "prepare", "text → vocabulary and ids on disk"),
    "doctor": ("train", "prepare", "check a config on this machine: devices, speed, memory, disk, time"),
    "train": ("train", "train", "train a model, or resume a run that was stopped"),
    "watch": ("train", "train", "a run on the terminal: curve, figures, latest sample, time left"),
    "compare": ("train", "train", "runs side by side: configs, figures, curves"),
    "evaluate": ("model", "use", "bits per character and per byte on held-out text"),
    "sample": ("model", "use", "draw text from a model"),
    "push": ("model", "share", "put a model on the Hugging Face Hub"),
    "export": ("model", "share", "write a model as ONNX, for serving without torch"),
    "report": ("model", "look inside", "one HTML page of a run: curves, samples, cells, surprises"),
    "completion": ("cli", "set up", "a script that completes commands, options and values on Tab"),
}
SYNONYMS = {"fit": "train", "resume": "train", "generate": "sample", "test": "evaluate", "plot": "report"}
_TABLE = "\n".join(
    f"{group}:\n" + "\n".join(f"  {name:<11} {COMMANDS[name][2]}" for name in names)
    for group, names in groupby(COMMANDS, lambda name: COMMANDS[name][1])
)
USAGE = f"""\
usage: charlm COMMAND [options]

Character-level LSTM, GRU and RNN language models, from hello to Wikipedia.

{_TABLE}

  charlm COMMAND --help     the options of a command (--help all: every field)
  charlm --version
  --debug                   with any command: show the traceback of an error

start with:  charlm train --config stdlib
your text:   charlm train my.txt
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. Exit codes: 0 done, 1 an error that the user can fix, 2 a usage error, 70 an unexpected
    error, 130 Ctrl-C.

    --debug anywhere on the command line, or CHARLM_DEBUG=1, prints the traceback of an error;
    CHARLM_DEBUG=unexpected only that of an unexpected one.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("CHARLM_DEBUG", "0") not in ("", "0")
    if words[:1] != ["hello"]:  # its own --debug shows shapes as well
        words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "--version"):
        print(f"charlm {__version__}\n" if words[:1] == ["--version"] else USAGE, end="")
        return
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? instead of failing
    warnings.formatwarning = _format_warning
    code, message, interrupts = 0, "", []

    def interrupt(number, frame):
        interrupts.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with suppress(ValueError):  # in another thread than the main one, which Python allows no handlers
            signal.signal(signal.SIGINT, interrupt)
    try:
        _function(words[0])(words[1:])
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `charlm sample … | head`
        sys.stderr.close()
    except Exception as error:
        if interrupts:  # while numpy or torch is imported, Ctrl-C can end as any exception
            _exit(130, "")
        own = isinstance(error, CharlmError)
        if debug and not (own and os.environ.get("CHARLM_DEBUG") == "unexpected"):
            say("".join(traceback.format_exception(error)), file=sys.stderr, end="")
        if own:
            code, message = 2 if isinstance(error, UsageError) else 1, f"charlm: error: {error}"
        else:
            first = (str(error).strip().splitlines() or ["without a message"])[0][:300]
            hint = "" if debug else "; run it again with --debug, or CHARLM_DEBUG=1, to see the traceback"
            code, message = 70, f"charlm: unexpected {type(error).__name__}: {first}{hint}"
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    _exit(code, message and shown(message.replace("\n", " "), sys.stderr))


def _function(command: str):
    if command not in COMMANDS:
        near = get_close_matches(SYNONYMS.get(command, command), COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"no command {command!r}{hint} (commands: {', '.join(COMMANDS)})")
    return getattr(import_module(f"charlm.commands.{COMMANDS[command][0]}"), command)


def _exit(code: int, message: str) -> None:
    """Print a message on stderr and exit; code 0 returns. One process of several, and any after Ctrl-C, skips
    Python's own shutdown: it waits for threads, wandb in it for the network, and a thread of torch's process
    group that frees a tensor meanwhile aborts the process."""
    if code == 130 or os.environ.get("WORLD_SIZE", "1") != "1":
        with suppress(OSError, ValueError):
            if code:
                print(stopped() if code == 130 else message, file=sys.stderr, flush=True)
            sys.stdout.flush()
        os._exit(code)
    if code == 1:
        raise SystemExit(message)  # Python prints it and exits with 1
    if code:
        print(message, file=sys.stderr)
        raise SystemExit(code)


def _format_warning(message, category, *args, **kwargs) -> str:
    """charlm's own warnings as one line, without their place in its source."""
    if issubclass(category, CharlmWarning):
        return shown(f"charlm: warning: {message}".replace("\n", " "), sys.stderr) + "\n"
    return _python_format(visible(str(message)), category, *args, **kwargs)


TERMS = (
    "Lane: one contiguous stream of the text, a row of the batch. Carry: the recurrent state that a lane "
    "hands from one window to the next. Bptt (truncated backpropagation through time): length of a window."
)
FIGURES = "nats/char: mean loss; bpc: the same in bits; bpb: bits per UTF-8 byte; perplexity: e^(nats/char)"


class Parser(argparse.ArgumentParser):
    """The arguments of a command: none is abbreviated, and errors are UsageErrors."""

    def __init__(self, command: str, more: str = "", **kwargs):
        about = COMMANDS[command][2]
        about = f"{about[0].upper()}{about[1:]}. {more}"
        super().__init__(f"charlm {command}", description=about, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help)")


def parse_with_config(parser: Parser, argv: list[str]) -> tuple:
    """(a command's own options, those of the parser; the Config of the others). Words before the first
    option are data.data_files. Without a --config, run_dir takes their name, and one text is cut in three."""
    from charlm.config.parse import parse

    paths = list(takewhile(lambda word: word == "-" or word[:1] != "-", argv))
    args, rest = parser.parse_known_args(argv[len(paths) :])
    if paths:
        rest = [*_options_for(paths, " ".join(rest)), *rest]
    helps = bool({"-h", "--help"} & set(rest))
    options = {"description": parser.description, "parents": (parser,) * helps}  # not in --print_config
    return args, parse(rest, parser.prog, brief=helps and "all" not in rest, **options)


def _options_for(paths: list[str], options: str) -> list[str]:
    """The options that these files and folders stand for. Raises UsageError for the name of a config."""
    from charlm.config.parse import shipped_configs
    from charlm.corpus.sources import format_of

    if paths[0] in shipped_configs() or paths[0].endswith((".yaml", ".yml")):
        raise UsageError(f"{paths[0]} is a config, not a text: --config {paths[0]}")
    words = [f"--data.data_files={json.dumps(paths)}"]
    if "--config" in options:
        return words
    name = re.sub(r"\W+", "-", Path(os.path.abspath(paths[0])).stem).strip("-")
    one = len(paths) == 1 and not os.path.isdir(paths[0]) and format_of(paths[0]) in ("", "text")
    one = one and "*" not in paths[0] and not re.search(r"--data\.(document|delimiter|source)\b", options)
    return [*words, f"--run_dir=runs/{name or 'default'}", *["--data.split_by=character"] * one]


# Shell completion, by shtab.

INSTALL = """\

Run once, and again after an update of charlm; new shells then complete on Tab:
  bash  charlm completion bash > ~/.local/share/bash-completion/completions/charlm
        (without the package bash-completion: source that file in ~/.bashrc)
  zsh   charlm completion zsh > FOLDER/_charlm, for a FOLDER in $fpath, before compinit
"""
CONFIGS = {  # what completes --config
    "bash": '_charlm_config_file() { compgen -d -W "NAMES" -- "$1"; compgen -f -X "!*.y*ml" -- "$1"; }',
    "zsh": "_charlm_config_file() { compadd -- NAMES; _files -g '*.(yaml|yml)' }",
}
# readline splits "--a=b" into "--a", "=" and "b"; shtab expects "--a" and "b". Files where nothing else fits.
EQUALS_SIGN = """
_charlm() {
  local word before=()
  for word in "${COMP_WORDS[@]:0:COMP_CWORD}"; do [ "$word" = "=" ] || before+=("$word"); done
  COMP_WORDS=("${before[@]}" "${COMP_WORDS[COMP_CWORD]#=}") COMP_CWORD=${#before[@]}
  _shtab_charlm
}
complete -o default -o bashdefault -F _charlm charlm"""


def completion(argv: list[str]) -> None:
    """Print a completion script; it needs no Python when it completes."""
    parser = Parser("completion", INSTALL, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shell", choices=tuple(CONFIGS))
    shell = parser.parse_args(argv).shell
    import shtab

    from charlm.config.parse import shipped_configs

    function = CONFIGS[shell].replace("NAMES", " ".join(shipped_configs()))
    print(shtab.complete(_all_parsers(), shell, preamble=function) + EQUALS_SIGN * (shell == "bash"))


def _all_parsers() -> argparse.ArgumentParser:
    """A parser with all commands, collected by their --help, and how shtab is to complete their values."""
    from unittest.mock import patch

    root, found = argparse.ArgumentParser("charlm"), []
    root.add_argument("--version", action="version", help="show the version")
    commands = root.add_subparsers()
    with patch.object(argparse.ArgumentParser, "print_help", lambda parser: found.append(parser)):
        for name in COMMANDS:
            with suppress(SystemExit):
                _function(name)(["--help", "all"])
    for (name, (*_, about)), parent in zip(COMMANDS.items(), found, strict=True):
        parser = commands.add_parser(name, help=about, parents=[parent], add_help=False)
        if name != "hello":
            parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        for action in parser._actions:
            if action.metavar == "CONFIG":  # --data, --model, …: a whole section
                action.help = argparse.SUPPRESS
            elif "--config" in action.option_strings:
                action.complete = dict.fromkeys(CONFIGS, "_charlm_config_file")
            elif str(action.metavar).startswith("{"):  # jsonargparse's choices
                action.choices = action.metavar.strip("{}").split(",")
            elif action.nargs != 0 and not action.choices:
                action.complete = {"zsh": "_files"}  # the default of bash
    return root
