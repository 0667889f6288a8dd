"""charlm train: train a model, or go on with a run that was stopped."""

from __future__ import annotations

from charlm.config import parse
from charlm.stop import Stop


def run(argv: list[str]) -> None:
    """charlm train."""
    with Stop() as stop:  # before torch is imported: a signal in the seconds that takes ends nothing either
        config = parse(argv, "charlm train")
        from charlm.train import train

        train(config, stop=stop)
