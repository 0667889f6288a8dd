"""charlm prepare: text → vocabulary and ids on disk."""

from __future__ import annotations

import argparse
import json

from charlm.commands.words import Words
from charlm.config.parse import parse
from charlm.errors import CharlmError

PREPARE = """\
on several machines that share data.dir, in this order:
  --shard I/N  count part I (from 0) of N; all parts, at the same time or not
  --merge N    when all are counted: choose the vocabulary
  --shard I/N  the same again, now encoding
  --merge N    when all are encoded: join them to what one machine would make
on a prepared corpus:
  --verify     hold it against its checksums, and the text it was made of
for a script:
  --json       the report as JSON
"""


def run(argv: list[str]) -> None:
    """charlm prepare."""
    parser = Words("charlm prepare", add_help=False)
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--shard")
    one_of.add_argument("--merge")
    one_of.add_argument("--verify", action="store_true")
    one_of.add_argument("--json", action="store_true")
    args, rest = parser.parse_known_args(argv)
    config = parse(
        rest, "charlm prepare", epilog=PREPARE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    from charlm.corpus.prepared import merge, prepare, prepare_shard, verify

    if args.shard is not None:
        print(prepare_shard(config, *_shard(args.shard)))
    elif args.merge is not None:
        if not args.merge.isdecimal() or int(args.merge) < 1:
            raise CharlmError(f"--merge {args.merge}: give the number of shards, such as --merge 4")
        corpus = merge(config, int(args.merge))
        again = f"every --shard I/{args.merge} again, then --merge {args.merge}"
        print(corpus.report() if corpus else f"the vocabulary is chosen. To encode the text, run {again}")
    elif args.verify:
        print(f"{verify(config).folder}: as it was made, and as its text is now")
    elif args.json:
        corpus = prepare(config)
        print(json.dumps({"folder": str(corpus.folder)} | corpus.info))
    else:
        print(prepare(config).report())


def _shard(text: str) -> tuple[int, int]:
    shard, slash, shards = text.partition("/")
    if not (slash and shard.isdecimal() and shards.isdecimal() and int(shard) < int(shards)):
        raise CharlmError(f"--shard {text}: give a number from 0 and how many there are, such as --shard 0/4")
    return int(shard), int(shards)
