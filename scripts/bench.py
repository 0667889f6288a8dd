"""Benchmarks against the machine and against other ways: `python scripts/bench.py COMMAND`.

  prepare    counting, encoding, and the ways people do it today
  train      the textbook loop, charlm's step, the whole train(), and the peak of matrix products
  evaluate   scoring a text, beside the textbook loop and the matrix products
  sample     drawing text, beside the textbook loop and the matrix products
  quality    equal seconds of training for a list of ways, each scored on the same test text
  scaling    one process and several, beside other work; what is to be expected of GPUs (computed)

`COMMAND --help` shows its options. Compare the ratios, each of one run, rather than the speeds.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import charlm  # noqa: F401 (before torch, whose waiting threads it lets sleep)

COMMANDS = ("prepare", "train", "evaluate", "sample", "quality", "scaling")


def main(words: list[str]) -> None:
    """Run a command; it imports what it needs."""
    if words[:1] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return
    if not words or words[0] not in COMMANDS:
        sys.exit(f"bench.py {' '.join(words[:1])}: name one of the commands {', '.join(COMMANDS)}")
    sys.path.insert(0, str(Path(__file__).parent / "bench"))
    import_module(words[0]).main(words[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
