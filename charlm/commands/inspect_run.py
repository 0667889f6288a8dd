"""charlm watch, report: a run seen from its files."""

from __future__ import annotations

import json
import re

from charlm.commands.cli import Parser, read_text, run_of, run_parser
from charlm.errors import CharlmError
from charlm.monitor.run_files import History, runs_near
from charlm.monitor.watch import show
from charlm.terminal import is_live

MOST = 8_000_000  # bytes of a text that are read: far more than a page shows


def watch(argv: list[str]) -> None:
    """Show a run on the terminal, while it trains or afterwards."""
    parser = Parser("watch", "Ctrl-C ends it.")
    parser.add_argument("run", help="run directory")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="one picture, as when stdout is not a terminal")
    mode.add_argument("--json", action="store_true", help="the figures as JSON")
    args = parser.parse_args(argv)
    run = History(args.run)
    run.refresh()
    live = is_live() and not args.once and not args.json
    if not live and not run.dir.exists():
        raise CharlmError(f"{run.dir}: no such run directory{runs_near(run.dir)}")
    if args.json:
        print(json.dumps(run.figures(), ensure_ascii=False))
    else:
        show(run, live)


def report(argv: list[str]) -> None:
    """Write the HTML page of a run."""
    parser = run_parser("report")
    parser.add_argument("--output", metavar="FILE", help="where to write it (default: RUN/report.html)")
    parser.add_argument("--text", metavar="FILE", help="text for the model to read, instead of held-out text")
    args = parser.parse_args(argv)
    text = None if args.text is None else read_text(args.text, MOST)
    if text is not None and len(text) == MOST:  # it may end within a character
        text = re.sub(rb"[\xc0-\xff][\x80-\xbf]{,3}\Z", b"", text)
    run, _ = run_of(args)
    from charlm.report.page import write_page

    path, missing = write_page(run, args.output, text, args.device)
    for line in missing:
        print(f"not on the page: {line}")
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")
