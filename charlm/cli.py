"""charlm prepare | train | evaluate | …: each command imports what it needs, when it runs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from charlm import __version__
from charlm.config import CharlmError, CharlmWarning

COMMANDS = {  # command X is run(argv) of charlm/cli_X.py
    "hello": 'the classroom\'s toy: an RNN learns "hello" in ten steps',
    "prepare": "text → vocabulary and ids on disk",
    "train": "train a model, or go on with a run that was stopped",
    "doctor": "what a training would get on this machine, before it waits in a queue",
    "evaluate": "bits per character and per byte on held-out text",
    "sample": "draw text from a model",
}

_LINES = "\n".join(f"  {name:<10} {about}" for name, about in COMMANDS.items())
USAGE = f"""\
usage: charlm COMMAND [options]

Character-level LSTM, GRU and RNN language models, from hello to Wikipedia.

commands:
{_LINES}

  charlm COMMAND --help     its options
  charlm --version

start with:  charlm train --config stdlib
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. Exits with 1 for what the user can mend, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--version"]:
        print(f"charlm {__version__}")
        return
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if words[0] not in COMMANDS:
        sys.exit(f"charlm: error: no command {words[0]!r} (commands: {', '.join(COMMANDS)})")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? instead of failing
    warnings.formatwarning = _formatted(warnings.formatwarning)
    code: int | str = 0
    try:
        import_module(f"charlm.cli_{words[0]}").run(words[1:])
    except CharlmError as error:
        code = f"charlm: error: {error}"
    except KeyboardInterrupt:
        print("charlm: stopped by Ctrl-C", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `charlm sample … | head`
        sys.stderr.close()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _leave_at_once(code)
    if code:
        sys.exit(code)


def _leave_at_once(code: int | str) -> NoReturn:
    """End one process of several, without taking Python down in order.

    The threads of torch's process group outlive it (DistributedDataParallel keeps it). One that still lets go
    of a tensor while Python goes down under it aborts the process: on a busy machine one run in 25 ended so.
    """
    with suppress(OSError, ValueError):
        if isinstance(code, str):
            print(code, file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)


def _formatted(other):
    """charlm's own warnings as one line, without the place in its source."""

    def text(message, category, *args, **kwargs) -> str:
        if issubclass(category, CharlmWarning):
            return f"charlm: warning: {message}\n"
        return other(message, category, *args, **kwargs)

    return text


if __name__ == "__main__":
    main()
