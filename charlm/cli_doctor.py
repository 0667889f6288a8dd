"""charlm doctor: what a training would get on this machine."""

from __future__ import annotations

import sys

from charlm.config import parse
from charlm.words import Words


def run(argv: list[str]) -> None:
    """charlm doctor."""
    parser = Words("charlm doctor", add_help=False)
    parser.add_argument("--hours", type=float)
    args, words = parser.parse_known_args(argv)
    about = "Beside the options of train: --hours H, a time limit that the run should end within."
    config = parse(words, "charlm doctor", description=about)
    from charlm.doctor import Doctor

    if not Doctor(config, args.hours).examine():
        sys.exit(1)
