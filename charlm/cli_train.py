"""charlm train: train a model, or go on with a run that was stopped."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

from charlm.config import parse
from charlm.stop import Stop
from charlm.words import Words

ABOUT = "Beside the fields of a config: --json prints how it ended, as JSON, instead of how it goes."


def run(argv: list[str]) -> None:
    """charlm train."""
    with Stop() as stop:  # before torch is imported: a signal in the seconds that takes ends nothing either
        parser = Words("charlm train", add_help=False)
        parser.add_argument("--json", action="store_true")
        args, words = parser.parse_known_args(argv)
        config = parse(words, "charlm train", description=ABOUT)
        from charlm.train import train

        summary = train(config, stop=stop, quiet=args.json)
    if args.json and os.environ.get("RANK", "0") == "0":
        print(json.dumps(asdict(summary), default=str, ensure_ascii=False))
