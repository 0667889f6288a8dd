"""Config from YAML files and the command line: defaults < YAML files < command line."""

import argparse
import difflib
import re
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from charlm.checked import choice_advice, load_yaml, read
from charlm.config.checks import LENGTH, preset, without_retired
from charlm.config.fields import Config
from charlm.errors import CharlmError, UsageError, redact


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values, section by section: {'run_dir': …, 'data.source': …, …}."""
    flat = {}
    for name, value in vars(config).items():
        flat |= flatten(value, f"{prefix}{name}.") if is_dataclass(value) else {prefix + name: value}
    return flat


def _nearest(key: str) -> str:
    keys, name = list(flatten(Config())), key.rsplit(".", 1)[-1]
    same = [k for k in keys if k.rsplit(".", 1)[-1] == name]  # the right name in the wrong section
    near = difflib.get_close_matches(key, same or keys, 1, 0 if same else 0.6)
    if not near:
        names = {k.rsplit(".", 1)[-1]: k for k in keys}
        near = [names[n] for n in difflib.get_close_matches(name, names, 1, 0.6)]
    return f"; did you mean {near[0]}?" if near else f"; the sections are {', '.join(vars(Config()))}"


def _check_keys(tree: Any, default: Any, where: str, prefix: str = "") -> None:
    """Refuse what is not a mapping from names of fields to values."""
    if not isinstance(tree, dict):
        part = f"section {prefix[:-1]}" if prefix else "a config"
        found = f"the {type(tree).__name__} {reprlib.repr(tree)}"
        raise CharlmError(f"{where}: {part} must be a mapping, not {found}")
    for name, value in tree.items():
        if name not in vars(default):
            raise CharlmError(f"{where}: unknown key {prefix}{name}{_nearest(f'{prefix}{name}')}")
        if is_dataclass(vars(default)[name]) and value is not None:
            _check_keys(value, vars(default)[name], where, f"{name}.")


def shipped_configs() -> dict[str, Path]:
    """The configs that come with charlm, by name."""
    here = Path(__file__).parent.parent
    folder = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _read_yaml(name: str | Path) -> dict[str, Any]:
    """The fields of a YAML file or a shipped config, their names checked; without empty sections."""
    shipped = shipped_configs()
    path = Path(name) if Path(name).is_file() else shipped.get(str(name))
    if path is None:
        near = difflib.get_close_matches(Path(name).stem, shipped, 1, 0.6)
        hint = f"did you mean {near[0]}?" if near else f"shipped with charlm: {', '.join(shipped)}"
        raise CharlmError(f"--config {name}: no such file; {hint}")
    tree = _current(read(path, object, "cannot be read as YAML", load_yaml))
    _check_keys({} if tree is None else tree, Config(), str(path))
    return {section: value for section, value in (tree or {}).items() if value is not None}


@cache
def _parser(prog: str, **kwargs):
    """The command-line parser of Config, from the dataclasses and their docstrings."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog, allow_abbrev=False, exit_on_error=False, **kwargs)
    parser.add_argument("--config", action="config", help="YAML file, or the name of a shipped config")
    parser.add_class_arguments(Config, as_group=False)
    return parser


def _layers(argv: Sequence[str]) -> list[str]:
    """The words of a command line, lowest first: YAML files, the preset of --model.size, other options."""
    layering = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    layering.add_argument("--config", action="append", default=[])
    layering.add_argument("--model.size", dest="size")
    args, options = layering.parse_known_args(argv)
    if re.search(r"--model[= ]\s*{.*\bsize\b", " ".join(options)):
        raise UsageError("give the size as a word of its own, such as --model.size base")
    layers = []
    for tree in map(_read_yaml, args.config):
        if any((tree.get("train") or {}).get(name) is not None for name in LENGTH):
            tree["train"] = LENGTH | tree["train"]  # overrides the others of earlier files
        size = tree.get("model", {}).get("size") if args.size is None else None
        layers += [preset(size), tree]
    layers.append(preset(args.size))
    if re.search(rf"--train(\.|[= ]\s*{{.*\b)({'|'.join(LENGTH)})\b(?!\W+null)", " ".join(options)):
        layers.append({"train": LENGTH})
    words = [f"--config={yaml.dump(tree, Dumper=_Dumper)}" for tree in layers]
    return [*words, *options] if args.size is None else [*words, f"--model.size={args.size}", *options]


def _refusal(message: str) -> CharlmError:
    """An error of the parser in charlm's words."""
    message = " ".join(message.split())
    if option := re.match(r"unrecognized arguments: --([\w.-]+)", message):
        return UsageError(f"unknown option --{option[1]}{_nearest(option[1])}")
    if message.startswith("unrecognized arguments"):
        advice = (
            "put a pattern such as 'books/*.txt' in quotes so the shell leaves it, and paths first, as in"
        )
        return UsageError(f"{message}; {advice} charlm train my.txt --train.steps 3000")
    kinds = r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.*?)\])"
    found = re.match(rf'Parser key "([\w.]+)": (?:Does not .*?)?{kinds}.*(?:Got|Given) value: ?(.*)', message)
    if not found:
        return CharlmError(message)
    key, kind, choices, value = found.groups()
    advice = f"expected {kind}" if kind else choice_advice(value, re.findall(r"\w+", choices))
    return CharlmError(f"{key}={value}: {advice}")


def parse(argv: Sequence[str], prog: str = "charlm", **kwargs) -> Config:
    """Config from command-line words such as ['--config', 'stdlib', '--train.steps=10'].

    kwargs: for ArgumentParser. Raises CharlmError for unknown keys (naming the nearest right one), wrong
    types and bad values; exits, as usual, after --help and --print_config.
    """
    parser = _parser(prog, **kwargs)
    try:
        built = parser.instantiate(parser.parse_args(_layers(argv)))
    except argparse.ArgumentError as error:
        raise _refusal(str(error)) from None
    return Config(**{f.name: built[f.name] for f in fields(Config)})


def load_config(config: str | Path | None = None, *overrides: str) -> Config:
    """Config from a YAML file or a shipped config and overrides such as 'train.steps=10'; raises as parse."""
    words = [] if config is None else [f"--config={config}"]
    return parse([*words, *(f"--{o.removeprefix('--')}" for o in overrides)])


class _Dumper(yaml.SafeDumper):
    """Quotes text with line breaks that would not survive, and 1e3, which jsonargparse reads as a number."""

    def quote(self, text: str) -> yaml.Node:
        quoted = re.search("[\r\x85\u2028\u2029]", text) or re.fullmatch(r"[-+]?[\d._]+[eE][-+]?\d+", text)
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


_Dumper.add_representer(str, _Dumper.quote)


def to_yaml(config: Config) -> str:
    """The whole config as YAML that load_config reads back to an equal Config."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def public(config: Config) -> Config:
    """The same without passwords and signatures in the URLs of its text, for files that others may read."""
    names = ("source", "data_files", "validation", "test")
    return replace(config, data=replace(config.data, **{n: redact(getattr(config.data, n)) for n in names}))


def _current(tree: Any) -> Any:
    """The values of a config without the fields that older versions had."""
    if isinstance(tree, dict) and isinstance(tree.get("model"), dict):
        return tree | {"model": without_retired(tree["model"])}
    return tree


def from_dict(tree: dict[str, Any]) -> Config:
    """Config from nested plain values, as stored in a run directory; unknown keys are refused."""
    tree = _current({} if tree is None else tree)
    _check_keys(tree, Config(), "config")
    tree = {name: value for name, value in tree.items() if value is not None}
    kinds = {f.name: f.default_factory for f in fields(Config) if f.name != "run_dir"}
    return Config(**tree | {name: kinds[name](**tree[name]) for name in kinds if name in tree})


def read_run_config(run_dir: Path) -> Config:
    """The config.yaml of a run directory; the default config where there is none."""
    path = run_dir / "config.yaml"
    return read(path, (dict, None), loads=load_yaml, make=from_dict) if path.exists() else Config()
