"""Config from YAML files and the command line: defaults < YAML < command line.

Imports neither torch nor datasets, so that `--help` answers at once.
"""

from __future__ import annotations

import difflib
import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from charlm.config.fields import Config, ModelConfig
from charlm.config.sizes import expanded, spelled_out
from charlm.errors import CharlmError, UsageError


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values, section by section: {'run_dir': …, 'data.source': …, …}."""
    out = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            out |= flatten(value, f"{prefix}{f.name}.")
        else:
            out[prefix + f.name] = value
    return out


def _nearest(key: str) -> str:
    known = list(flatten(Config()))
    name = key.rsplit(".", 1)[-1]
    near = [k for k in known if k.rsplit(".", 1)[-1] == name]  # the right name in the wrong section
    near = difflib.get_close_matches(key, near or known, 1, 0 if near else 0.6)
    if not near:  # the name alone is misspelled
        last = {k.rsplit(".", 1)[-1]: k for k in known}
        near = [last[n] for n in difflib.get_close_matches(name, last, 1, 0.6)]
    return f"; did you mean {near[0]}?" if near else f"; the sections are {', '.join(asdict(Config()))}"


def _check_tree(tree: Any, known: Any, where: str, prefix: str = "") -> None:
    """Refuse keys of a parsed YAML tree that no field answers to, and null where it means nothing."""
    if not isinstance(tree, dict):
        what = f"section {prefix[:-1]}" if prefix else "a config"
        kind = type(tree).__name__
        raise CharlmError(f"{where}: {what} is a mapping of names to values, not the {kind} {tree!r}")
    names = {f.name: f for f in fields(known)}
    for key, value in tree.items():
        full = f"{prefix}{key}"
        if key not in names:
            raise CharlmError(f"{where}: unknown key {full}{_nearest(full)}")
        if is_dataclass(getattr(known, key)):
            _check_tree({} if value is None else value, getattr(known, key), where, f"{full}.")
        elif value is None and "None" not in names[key].type:
            raise CharlmError(f"{where}: {full}=None: expected a value of type {names[key].type}")


def shipped_configs() -> dict[str, Path]:
    """The configs that come with charlm, by name."""
    here = Path(__file__).parent.parent
    folder = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """A YAML file, or the name of a shipped one ('stdlib').

    Raises CharlmError when there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    near = difflib.get_close_matches(path.stem, shipped, 1, 0.6)
    hint = f"did you mean {near[0]}?" if near else f"shipped with charlm: {', '.join(shipped)}"
    raise CharlmError(f"--config {name}: no such file; {hint}")


def _read_yaml(path: Path) -> dict:
    """The sections of a YAML file, its keys checked."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CharlmError(f"{path}: cannot be read as YAML: {error}") from error
    tree = {} if tree is None else tree
    _check_tree(tree, Config(), str(path))
    return {section: value for section, value in tree.items() if value is not None}


def make_parser(prog: str, **kwargs):
    """The command-line parser of Config, from the dataclasses and their docstrings."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, **kwargs)
    parser.add_argument("--config", action="config", help="YAML file, or the name of a shipped config")
    parser.add_class_arguments(Config, as_group=False)
    return parser


def parse(argv: Sequence[str], prog: str = "charlm", **kwargs) -> Config:
    """Config from command-line words such as ['--config', 'stdlib', '--train.steps=10'].

    Raises CharlmError for unknown keys (naming the nearest right one), wrong types and bad values;
    exits, as usual, after --help and --print_config.
    """
    words: list[str] = []
    sized = any(word.partition("=")[0] == "--model.size" for word in argv)
    for word in argv:
        if words and words[-1] == "--config":
            word = words.pop() + "=" + word
        if word.startswith("--config="):
            tree = _read_yaml(find_config(word.split("=", 1)[1]))
            tree = tree if sized else expanded(tree)
            ModelConfig(size=(tree.get("model") or {}).get("size"))  # refuses one that is none
            word = "--config=" + yaml.dump(
                tree, Dumper=_QuotingDumper, default_flow_style=True, width=1 << 30
            )
        words.append(word)
        name = word[2:].split("=", 1)[0].removesuffix("+")
        if word.startswith("--") and name not in ("config", "help", "print_config", *asdict(Config())):
            known = flatten(Config())
            if name not in known and not any(name.startswith(k + ".") for k in known):
                raise UsageError(f"unknown option --{name}{_nearest(name)}")
    words = spelled_out(words)
    for word in words:
        if word.startswith("--model.size=") and word != "--model.size=null":
            ModelConfig(size=word.partition("=")[2])
    if re.search(r"--model[= ]\s*{.*\bsize\b", " ".join(words)):
        raise UsageError("give the size as a word of its own, such as --model.size base")
    parser = make_parser(prog, **kwargs)
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            parsed = parser.parse_args(words)
    except SystemExit as leave:
        if leave.code:
            message = said.getvalue().partition("error: ")[2].strip() or said.getvalue().strip()
            message = " ".join(message.split())
            if message.startswith("unrecognized arguments"):
                raise UsageError(
                    f"{message}; put a pattern such as 'books/*.txt' in quotes, so that the shell leaves it"
                ) from None
            kind = r"(?:<class '(\w+)'>|typing\.Literal\[(.*)\])"
            plain = re.match(rf'Parser key "([\w.]+)": Expected an? {kind}\. Got value: (.*)', message)
            if plain is None:
                raise CharlmError(message) from None
            key, kind, choices, value = plain.groups()
            mend = f"expected {kind}" if kind else "choose one of " + choices.replace("'", "")
            raise CharlmError(f"{key}={value}: {mend}") from None
        sys.stderr.write(said.getvalue())
        raise
    built = parser.instantiate(parsed)
    return Config(**{f.name: built[f.name] for f in fields(Config)})


def load_config(config: str | Path | None = None, *overrides: str) -> Config:
    """Config from a YAML file (or a shipped name) and overrides such as 'train.steps=10'.

    Raises CharlmError as `parse` does.
    """
    words = [] if config is None else ["--config", str(config)]
    return parse([*words, *(f"--{o.removeprefix('--')}" for o in overrides)])


def to_yaml(config: Config) -> str:
    """The whole config as YAML that load_config reads back to an equal Config."""
    tree = asdict(config)
    tree["optim"]["betas"] = list(tree["optim"]["betas"])
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Quotes text whose line breaks would not survive reading."""

    def quote(self, text: str) -> yaml.Node:
        style = '"' if set(text) & set("\r\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


class _QuotingDumper(yaml.SafeDumper):
    """Quotes all text: nothing in it is taken for a number or null."""

    def quote(self, text: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"')


for _dumper in (_Dumper, _QuotingDumper):
    _dumper.add_representer(str, _dumper.quote)


def from_dict(tree: dict[str, Any]) -> Config:
    """Config from nested plain values, as stored in a run directory; unknown keys are refused."""
    _check_tree(tree, Config(), "config")
    tree = expanded(tree)
    sections = {f.name: type(getattr(Config(), f.name)) for f in fields(Config) if f.name != "run_dir"}
    parts = {name: sections[name](**tree[name]) for name in sections if name in tree}
    parts |= {"run_dir": tree["run_dir"]} if "run_dir" in tree else {}
    config = Config(**parts)
    config.optim.betas = tuple(config.optim.betas)
    return config


def config_of(run_dir: Path) -> Config:
    """The config.yaml of a run directory; the default config where there is none."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return Config()
    try:
        return from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise CharlmError(f"{path}: cannot be read: {error}") from error
