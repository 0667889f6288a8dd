"""charlm prepare | train | evaluate | …: each command imports what it needs, when it runs."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from charlm import __version__
from charlm.errors import CharlmError, CharlmWarning, UsageError

COMMANDS = {  # command X is run(argv) of charlm/commands/X.py
    "hello": 'the classroom\'s toy: an RNN learns "hello" in ten steps',
    "prepare": "text → vocabulary and ids on disk",
    "train": "train a model, or go on with a run that was stopped",
    "watch": "a run on the terminal: curve, figures, latest sample, time left",
    "doctor": "what a training would get on this machine, before it waits in a queue",
    "evaluate": "bits per character and per byte on held-out text",
    "sample": "draw text from a model",
    "push": "put a model on the Hugging Face Hub",
    "export": "write a model as ONNX, for serving without torch",
    "report": "one HTML page: curves, samples, surprises, cells",
    "completion": "a script by which bash or zsh completes charlm's words",
}

_LINES = "\n".join(f"  {name:<11} {about}" for name, about in COMMANDS.items())
USAGE = f"""\
usage: charlm COMMAND [options]

Character-level LSTM, GRU and RNN language models, from hello to Wikipedia.

commands:
{_LINES}

  charlm COMMAND --help     its options
  charlm --version
  --debug                   of any command: where an error comes from

start with:  charlm train --config stdlib
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command, and leave with a code: 0 done, 1 what the user can mend, 2 words that mean nothing,
    70 an error that nobody foresaw, 130 Ctrl-C.

    --debug among the words, or CHARLM_DEBUG=1, shows where an error comes from.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("CHARLM_DEBUG", "0") not in ("", "0")
    if words[:1] != ["hello"]:  # whose --debug shows shapes as well
        words = [word for word in words if word != "--debug"]
    if words[:1] == ["--version"]:
        print(f"charlm {__version__}")
        return
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? instead of failing
    warnings.formatwarning = _formatted(warnings.formatwarning)
    code, said, cause = 0, "", None
    try:
        if words[0] not in COMMANDS:
            raise UsageError(f"no command {words[0]!r} (commands: {', '.join(COMMANDS)})")
        import_module(f"charlm.commands.{words[0]}").run(words[1:])
    except KeyboardInterrupt:
        code, said = 130, "charlm: stopped by Ctrl-C"
    except BrokenPipeError:  # `charlm sample … | head`
        sys.stderr.close()
    except Exception as error:
        cause = error
        code, said = _explained(error)
        if debug:
            traceback.print_exception(error)
    if code == 130 or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _leave_at_once(code, said)
    if code == 1:
        raise SystemExit(said) from cause  # which prints it
    if code:
        print(said, file=sys.stderr)
        raise SystemExit(code) from cause


def _explained(error: Exception) -> tuple[int, str]:
    """(exit code, the line that says what is wrong)."""
    if isinstance(error, CharlmError):
        return (2 if isinstance(error, UsageError) else 1), f"charlm: error: {error}"
    lines = str(error).strip().splitlines() or ["without a message"]
    return 70, (
        f"charlm: unexpected {type(error).__name__}: {lines[0][:300]}; "
        f"with --debug, or CHARLM_DEBUG=1, the same command shows where it comes from"
    )


def _leave_at_once(code: int, said: str) -> NoReturn:
    """End without taking Python down in order: one process of several, or any after Ctrl-C.

    The threads of torch's process group outlive it (DistributedDataParallel keeps it). One that still lets go
    of a tensor while Python goes down under it aborts the process: on a busy machine one run in 25 ended so.
    And Python, going down, would wait for threads, and wandb for the network.
    """
    with suppress(OSError, ValueError):
        if said:
            print(said, file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code)


def _formatted(other):
    """charlm's own warnings as one line, without the place in its source."""

    def text(message, category, *args, **kwargs) -> str:
        if issubclass(category, CharlmWarning):
            return f"charlm: warning: {message}\n"
        return other(message, category, *args, **kwargs)

    return text


if __name__ == "__main__":
    main()
