"""charlm evaluate: bits per character and per byte on held-out text."""

from __future__ import annotations

import json
from pathlib import Path

from charlm.config import CharlmError
from charlm.words import open_named, run_parser


def run(argv: list[str]) -> None:
    """charlm evaluate."""
    parser = run_parser("evaluate", "One stateful pass over held-out text.")
    parser.add_argument("--split", help="split of the run's corpus (default: test)")
    parser.add_argument("--text", metavar="FILE", help="a text file instead of a split")
    parser.add_argument("--lanes", type=int, help="parts read side by side; 1 is the exact single pass")
    parser.add_argument("--context", type=int, help="characters that warm up the carry of a lane")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(argv)
    if args.split is not None and args.text is not None:
        raise CharlmError("name --split or --text, not both")
    model, vocab, config = open_named(args)
    import dataclasses

    import numpy as np

    from charlm.evaluate import evaluate
    from charlm.prepared import prepare

    if args.text is not None:
        what, ids = args.text, _encode_file(Path(args.text), vocab)
    else:
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
        ids = np.asarray(corpus[what])
    changed = {k: getattr(args, k) for k in ("lanes", "context") if getattr(args, k) is not None}
    figures = evaluate(model, vocab, ids, dataclasses.replace(config.evaluate, **changed))
    if args.json:
        print(json.dumps({"text": what} | figures))
        return
    print(
        f"{what}: {figures['nats_per_character']:.4f} nats/char, {figures['bpc']:.4f} bpc, "
        f"{figures['bpb']:.4f} bpb, perplexity {figures['perplexity']:.6g}\n"
        f"over {figures['characters']:,} characters, {figures['bytes']:,} bytes "
        f"({figures['lanes']} lanes, {figures['context']} characters of warm-up context)"
    )


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
