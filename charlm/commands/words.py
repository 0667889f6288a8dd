"""What the commands have in common: wrong words are told in one line, and words that name a model."""

from __future__ import annotations

import argparse
from typing import NoReturn

from charlm.config.fields import Config
from charlm.config.parse import parse
from charlm.errors import UsageError


class Words(argparse.ArgumentParser):
    """A parser of a command's words that says in one line what is wrong with them."""

    def __init__(self, prog: str, **kwargs):
        super().__init__(prog, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help)")


def run_parser(command: str, description: str) -> Words:
    """The words by which evaluate, sample and their like name a model."""
    parser = Words(f"charlm {command}", description=description)
    parser.add_argument("run", nargs="?", help="run directory, model folder or hub id")
    parser.add_argument("--config", help="the run of this config, instead of naming it")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    return parser


def named(args: argparse.Namespace) -> tuple[str, Config | None]:
    """(where, the config that --config names) of the words of evaluate, sample and their like."""
    if (args.run is None) == (args.config is None):
        raise UsageError("name a run directory, or --config for its config")
    given = parse(["--config", args.config]) if args.config else None
    return given.run_dir if given else args.run, given


def open_named(args: argparse.Namespace):
    """The Trained (model, vocabulary, config) that the words name."""
    where, given = named(args)
    from charlm.training.trained import load

    trained = load(where, args.device)
    return trained._replace(config=given) if given else trained
