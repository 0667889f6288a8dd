"""charlm evaluate: bits per character and per byte on held-out text."""

from __future__ import annotations

import json
from pathlib import Path

from charlm.commands.words import open_named, run_parser
from charlm.errors import CharlmError, UsageError


def run(argv: list[str]) -> None:
    """charlm evaluate."""
    parser = run_parser("evaluate", "One stateful pass over held-out text.")
    parser.add_argument("--split", help="split of the run's corpus (default: test)")
    parser.add_argument("--text", metavar="FILE", help="a text file instead of a split")
    parser.add_argument("--lanes", type=int, help="parts read side by side; 1 is the exact single pass")
    parser.add_argument("--context", type=int, help="characters that warm up the carry of a lane")
    parser.add_argument("--max_characters", type=int, help="score the start of the text: this many symbols")
    more = parser.add_mutually_exclusive_group()
    more.add_argument(
        "--dynamic", action="store_true", help="beside it, let the weights adapt to the text read so far"
    )
    more.add_argument(
        "--by_context", action="store_true", help="and how the loss falls with the distance from a reset"
    )
    parser.add_argument("--dynamic_rate", type=float, metavar="R", help="step of --dynamic (default: 5e-4)")
    parser.add_argument(
        "--dynamic_decay", type=float, metavar="D", help="its way back to the trained weights (default: 1e-3)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(argv)
    _refuse(args)
    model, vocab, config = open_named(args)
    from dataclasses import replace

    changed = {k: getattr(args, k) for k in ("lanes", "context") if getattr(args, k) is not None}
    settings = replace(config.evaluate, **changed)
    what, ids = _text(args, vocab, config)
    ids = ids[: args.max_characters]
    if args.dynamic:
        from charlm.evaluation.dynamic import DECAY, RATE, evaluate_dynamic

        rate = RATE if args.dynamic_rate is None else args.dynamic_rate
        decay = DECAY if args.dynamic_decay is None else args.dynamic_decay
        figures = evaluate_dynamic(model, vocab, ids, settings, rate, decay)
    else:
        from charlm.evaluation.evaluate import evaluate

        figures = evaluate(model, vocab, ids, settings)
    if args.by_context:
        from charlm.evaluation.by_context import by_context

        figures["by_context"] = by_context(model, vocab, ids, settings)
    print(json.dumps({"text": what} | figures) if args.json else _told(what, figures))


def _refuse(args) -> None:
    """Raise UsageError for words that contradict each other."""
    if args.split is not None and args.text is not None:
        raise UsageError("name --split or --text, not both")
    if args.max_characters is not None and args.max_characters < 2:
        raise UsageError(f"--max_characters {args.max_characters}: must be 2 or more")
    if not args.dynamic and (args.dynamic_rate, args.dynamic_decay) != (None, None):
        raise UsageError("--dynamic_rate and --dynamic_decay are for --dynamic: add it")
    if args.dynamic and (args.lanes not in (None, 1) or args.context):
        raise UsageError("--dynamic reads the text in one lane: leave --lanes and --context out")


def _text(args, vocab, config):
    """What is scored: its name, and its ids."""
    import numpy as np

    from charlm.corpus.prepared import prepare

    if args.text is not None:
        return args.text, _encode_file(Path(args.text), vocab)
    corpus = prepare(config)
    if corpus.vocab != vocab:
        raise CharlmError(
            f"{corpus.folder}: its vocabulary ({len(corpus.vocab)} symbols) does not fit the model "
            f"({len(vocab)} symbols); "
            f"name the config the model was trained with, or score a file with --text"
        )
    what = args.split or "test"
    if what not in corpus.splits:
        has = ", ".join(corpus.splits)
        raise CharlmError(
            f"the run's text has no split {what!r} (it has {has}): name another, or --text FILE"
        )
    return what, np.asarray(corpus[what])


def _told(what: str, figures: dict) -> str:
    """The figures for people."""

    def line(name: str, of: dict) -> str:
        return (
            f"{name}: {of['nats_per_character']:.4f} nats/char, {of['bpc']:.4f} bpc, "
            f"{of['bpb']:.4f} bpb, perplexity {of['perplexity']:.6g}"
        )

    lanes = "1 lane" if figures["lanes"] == 1 else f"{figures['lanes']} lanes"
    lines = [
        line(what, figures),
        f"over {figures['characters']:,} characters, {figures['bytes']:,} bytes "
        f"({lanes}, {figures['context']} characters of warm-up context)",
    ]
    if "dynamic" in figures:
        of = figures["dynamic"]
        lines += [
            line("dynamic", of),
            f"a step at rate {of['rate']:g} after every {of['window']} characters, "
            f"decay {of['decay']:g} to the trained weights",
        ]
    if "by_context" in figures:
        from charlm.evaluation.by_context import table

        lines += ["", table(figures["by_context"])]
    return "\n".join(lines)


def _encode_file(path: Path, vocab):
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CharlmError(f"--text {path}: {error.strerror}") from error
    if not content:
        raise CharlmError(f"--text {path}: the file is empty")
    try:
        return vocab.encode(content)
    except UnicodeDecodeError as error:
        raise CharlmError(f"--text {path}: byte {error.start:,} is not UTF-8 ({error.reason})") from error
    except CharlmError as error:
        raise CharlmError(f"--text {path}: {error}") from error
