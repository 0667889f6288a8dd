"""charlm train, prepare, watch, compare, doctor, hello."""

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict

from charlm.commands.cli import FIGURES, TERMS, Parser, parse_with_config
from charlm.errors import CharlmError
from charlm.terminal import is_live, loading, say, visible
from charlm.training.signals import Stop

TEXT = "Files and folders of text may come first: charlm {} my.txt, or folder/, or - (stdin)."
PREPARE = (
    "Several machines that share data.dir prepare a text together: run --shard I/N for every I from 0 to N-1 "
    "(count the characters), --merge N (choose the vocabulary), --shard I/N for every I again (encode), and "
    "--merge N again (join the parts to what one machine would write)."
)


def train(argv: list[str]) -> None:
    parser = Parser("train", f"{TEXT.format('train')} {TERMS} {FIGURES}.", add_help=False)
    parser.add_argument("--json", action="store_true", help="print only the result, as JSON")
    if not argv:
        print("training on Python's source code; charlm train my.txt or --config NAME takes another text")
    with ExitStack() as signals:
        # Before torch is imported: a signal during the seconds that takes is not lost either.
        stop = signals.enter_context(Stop(exits=True))
        args, config = parse_with_config(parser, argv)
        with loading():
            from charlm.training import loop

        try:
            summary = loop.train(config, handler=stop, quiet=args.json)
        except Exception:
            signals.pop_all()  # keep the handlers: slurm ends the other processes, which still report
            raise
    if args.json and os.environ.get("RANK", "0") == "0":
        print(visible(json.dumps(asdict(summary), default=str, ensure_ascii=False)))


def prepare(argv: list[str]) -> None:
    parser = Parser("prepare", f"{TEXT.format('prepare')} {PREPARE}", add_help=False)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--shard", metavar="I/N", help="count or encode part I, from 0, of N")
    mode.add_argument("--merge", metavar="N", help="merge the N parts, when all are counted or encoded")
    mode.add_argument("--verify", action="store_true", help="compare a corpus with its checksums and text")
    mode.add_argument("--json", action="store_true", help="print the report as JSON")
    args, config = parse_with_config(parser, argv)
    with loading():
        from charlm.corpus import prepared

    if args.shard is not None:
        shard, _, shards = args.shard.partition("/")
        if not (shard.isdecimal() and shards.isdecimal() and int(shard) < int(shards)):
            raise CharlmError(f"--shard {args.shard}: give a number from 0 and a total, such as --shard 0/4")
        say(prepared.prepare_shard(config, int(shard), int(shards)))
    elif args.merge is not None:
        if not args.merge.isdecimal() or int(args.merge) < 1:
            raise CharlmError(f"--merge {args.merge}: give the number of shards, such as --merge 4")
        corpus = prepared.merge(config, int(args.merge))
        again = f"every --shard I/{args.merge} again, then --merge {args.merge}"
        say(corpus.report() if corpus else f"the vocabulary is chosen. To encode the text, run {again}")
    elif args.verify:
        say(f"{prepared.verify(config).folder}: as it was made, and as its text is now")
    else:
        corpus = prepared.prepare(config)
        figures = {"folder": str(corpus.folder)} | corpus.info
        print(json.dumps(figures)) if args.json else say(corpus.report())


def watch(argv: list[str]) -> None:
    parser = Parser("watch", "q or Ctrl-C ends it, and the run goes on.")
    parser.add_argument("run", help="run directory")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="one picture, as when stdout is not a terminal")
    mode.add_argument("--json", action="store_true", help="the figures as JSON")
    args = parser.parse_args(argv)
    from charlm.monitor.run_files import History
    from charlm.monitor.watch import show

    run = History(args.run)
    live = is_live() and not args.once and not args.json
    run.refresh(must_exist=not live)
    if args.json:
        print(visible(json.dumps(run.figures(), ensure_ascii=False)))
    else:
        show(run, live)


def compare(argv: list[str]) -> None:
    parser = Parser("compare", "The best on validation comes first.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, such as runs/*")
    parser.add_argument("--figure", metavar="FILE", help="draw the curves: a file .svg, .png or .pdf")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    args = parser.parse_args(argv)
    from charlm.report.compare import rows, table

    found = rows(args.runs, args.figure)
    print(json.dumps(found) if args.json else visible(table(found)))


def doctor(argv: list[str]) -> None:
    parser = Parser("doctor", "Writes no run, and ids to data.scratch only if that is set.", add_help=False)
    parser.add_argument("--hours", type=float, metavar="H", help="time limit that the training must fit in")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    args, config = parse_with_config(parser, argv)
    if args.hours is not None and not args.hours > 0:
        raise CharlmError(f"--hours {args.hours:g}: must be above 0")
    with loading():
        from charlm.monitor.doctor import Doctor

    if not Doctor(config, args.hours, args.json).examine():
        sys.exit(1)  # not ready to train


def hello(argv: list[str]) -> None:
    parser = Parser("hello")
    parser.add_argument("--explain", action="store_true", help="show data, formula, weights, what is likely")
    parser.add_argument("--debug", action="store_true", help="show the shapes, also by character")
    parser.add_argument("--figure", metavar="FILE", help="draw the model before and after training (SVG)")
    args = parser.parse_args(argv)
    if args.figure is not None and not args.figure.endswith(".svg"):
        raise CharlmError(f"--figure {args.figure}: the drawing is an SVG, name it .svg")
    with loading():
        from charlm.hello import hello

    hello.hello(args.explain, args.debug, args.figure)
