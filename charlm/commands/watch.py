"""charlm watch: a run on the terminal, while it runs or afterwards."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

from charlm.commands.words import Words
from charlm.errors import CharlmError
from charlm.monitor.run_files import ENDED, History, runs_in
from charlm.monitor.watch import picture
from charlm.terminal import has_braille, has_color, is_live, screen, wrapped

SECONDS = 1.0  # between two pictures


def run(argv: list[str]) -> None:
    """charlm watch."""
    parser = Words("charlm watch", description="A run's curve, figures and latest sample; Ctrl-C leaves it.")
    parser.add_argument("run", help="run directory")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="one picture, as when stdout is not a terminal")
    how.add_argument("--json", action="store_true", help="the figures as JSON")
    args = parser.parse_args(argv)
    progress = History(args.run)
    progress.refresh()
    live = is_live() and not args.once and not args.json
    if not live and not progress.dir.exists():
        raise CharlmError(f"{progress.dir}: no such run directory{_others(progress.dir)}")
    if args.json:
        print(json.dumps(progress.figures(), ensure_ascii=False))
        return
    if live and progress.state not in ENDED:
        _follow(progress)
    else:
        print("\n".join(_lines(progress)))


def _follow(progress: History) -> None:
    """Draw picture over picture until the run ends; the last one stays."""
    asked = signal.signal(signal.SIGTERM, _leave)
    try:
        with screen() as show:
            while progress.state not in ENDED:
                size = shutil.get_terminal_size()
                lines = _lines(progress, size.lines)
                if progress.state == "waiting":
                    text = f"waiting for it to begin; Ctrl-C leaves{_others(progress.dir)}"
                    lines += wrapped(text, size.columns)
                show(lines)
                time.sleep(SECONDS)
                progress.refresh()
    finally:
        signal.signal(signal.SIGTERM, asked)
        print("\n".join(_lines(progress)))


def _leave(number: int, frame) -> None:
    raise SystemExit(128 + number)


def _lines(progress: History, rows: int = 40) -> list[str]:
    columns = shutil.get_terminal_size().columns
    return picture(progress, columns, rows, braille=has_braille(), color=has_color())


def _others(folder: Path) -> str:
    """The runs beside one that is not there."""
    return "" if folder.exists() else runs_in(folder.parent)
