"""charlm train: train a model, or go on with a run that was stopped."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import asdict

from charlm.commands.words import Words
from charlm.config.parse import parse
from charlm.training.signals import Stop

ABOUT = "Beside the fields of a config: --json prints how it ended, as JSON, instead of how it goes."


def run(argv: list[str]) -> None:
    """charlm train."""
    with ExitStack() as listening:
        # Before torch is imported: a signal in the seconds that takes ends nothing either.
        stop = listening.enter_context(Stop())
        parser = Words("charlm train", add_help=False)
        parser.add_argument("--json", action="store_true")
        args, words = parser.parse_known_args(argv)
        config = parse(words, "charlm train", description=ABOUT)
        from charlm.training.loop import train

        try:
            summary = train(config, stop=stop, quiet=args.json)
        except Exception:
            listening.pop_all()  # go on listening: slurm ends the others of a crash, which are to say why
            raise
    if args.json and os.environ.get("RANK", "0") == "0":
        print(json.dumps(asdict(summary), default=str, ensure_ascii=False))
