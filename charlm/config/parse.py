"""Config from YAML files and the command line: defaults < YAML files < command line."""

import argparse
import difflib
import json
import os
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from charlm.checked import choice_advice, load_yaml, read
from charlm.config.checks import LENGTH, preset, without_retired
from charlm.config.fields import Config
from charlm.errors import CharlmError, UsageError, redact

FIRST = (  # fields that people change first
    *("run_dir", "data.data_files", "data.text_column", "model.size", "model.cell", "train.minutes"),
    *("train.batch_size", "train.precision", "optim.learning_rate", "log.wandb"),
)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values, section by section: {'run_dir': …, 'data.source': …, …}."""
    flat = {}
    for name, value in vars(config).items():
        flat |= flatten(value, f"{prefix}{name}.") if is_dataclass(value) else {prefix + name: value}
    return flat


def _nearest(key: str) -> str:
    keys, name = list(flatten(Config())), key.rsplit(".", 1)[-1].replace("-", "_").lower()
    synonyms = yaml.safe_load(Path(__file__).with_name("synonyms.yaml").read_text(encoding="utf-8"))
    near = [field for field, others in synonyms.items() if name in others.split()]
    same = [k for k in keys if k.rsplit(".", 1)[-1] == name]  # the right name in the wrong section
    names = {k.rsplit(".", 1)[-1]: k for k in keys}
    near = near or difflib.get_close_matches(key, same or [*keys, *names], 1, 0 if same else 0.6)
    if near:
        return f"; did you mean {names.get(near[0], near[0])}?"
    return f"; the sections are {', '.join(vars(Config()))}"


def _check_keys(tree: Any, default: Any, where: str, prefix: str = "") -> None:
    """Refuse what is not a mapping from names of fields to values. Values become what they mean."""
    if not isinstance(tree, dict):
        part = f"section {prefix[:-1]}" if prefix else "a config"
        found = f"the {type(tree).__name__} {reprlib.repr(tree)}"
        raise CharlmError(f"{where}: {part} must be a mapping, not {found}")
    for name, value in tree.items():
        if name not in vars(default):
            raise CharlmError(f"{where}: unknown key {prefix}{name}{_nearest(f'{prefix}{name}')}")
        if is_dataclass(vars(default)[name]) and value is not None:
            _check_keys(value, vars(default)[name], where, f"{name}.")
        else:
            tree[name] = _meant(value, "" if name == "stop" else vars(default)[name])  # which is a text


def _meant(value: Any, default: Any) -> Any:
    """A value as people and agents of sweeps write it: 1e4 and 30.0 for a whole number, None for null."""
    if not isinstance(default, str) and value in ("None", "none"):
        return None
    number = re.fullmatch(r"[+-]?\d[\d_]*(\.\d*)?(e\+?\d\d?)?", str(value), re.I)
    whole = type(default) is int or (default is None and isinstance(value, str))
    return int(float(value)) if whole and number and any(number.groups()) and float(value) % 1 == 0 else value


def _options(argv: Sequence[str]) -> Iterator[str]:
    """The words of a command line, their values as they are meant."""
    defaults, key = flatten(Config()) | {"sample.stop": ""}, ""
    for word in argv:
        head, value = re.fullmatch(r"(--[\w.-]+=?)?(.*)", word, re.S).groups("")
        key = head.strip("-=") or key
        meant = _meant(value, defaults.get(key, ""))
        yield f"{head}{'null' if meant is None else meant}"


def shipped_configs() -> dict[str, Path]:
    """The configs that come with charlm, by name."""
    here = Path(__file__).parent.parent
    folder = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _read_yaml(name: str | Path) -> dict[str, Any]:
    """The fields of a YAML file or a shipped config, their names checked; without empty sections."""
    shipped = shipped_configs()
    path = Path(name) if Path(name).is_file() else shipped.get(str(name))
    if path is not None and path.suffix in (".txt", ".md"):
        raise CharlmError(f"{name} is a text: charlm train {name}; in Python data_files={str(name)!r}")
    if path is None:
        advice = choice_advice(Path(name).stem, list(shipped))
        raise CharlmError(f"--config {name}: no such file, nor a config of charlm; {advice}")
    return _sections(read(path, object, "cannot be read as YAML", load_yaml), str(path))


@cache
def _parser(prog: str, brief: bool = False, **kwargs):
    """The command-line parser of Config, from the dataclasses and their docstrings. brief: help for FIRST."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class Formatter(DefaultHelpFormatter):
        def _get_help_string(self, action: argparse.Action) -> str:
            return re.sub(r"type: %\(type\)s, ", "", super()._get_help_string(action))  # of Python

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    options = {"allow_abbrev": False, "exit_on_error": False, "formatter_class": Formatter}
    parser = ArgumentParser(prog, **options, **kwargs)
    parser.add_argument("--config", action="config", help="YAML file, or the name of a shipped config")
    parser.add_class_arguments(Config, as_group=False)
    for action in parser._actions:
        if isinstance(action.default, bool) and "." in action.dest:
            action.nargs, action.const = "?", True  # the option alone, without a value
        if brief and action.dest.split(".")[0] in vars(Config()) and action.dest not in FIRST:
            action.help = argparse.SUPPRESS
    if brief:
        parser.usage = "%(prog)s [TEXT ...] [--config CONFIG] [--SECTION.FIELD VALUE ...]"
        total = len(flatten(Config()))
        parser.epilog = f"These are {len(FIRST)} of {total} fields: --help all shows the others."
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
        advice = "put a pattern such as 'books/*.txt' in quotes so the shell leaves it, and paths first"
        return UsageError(f"{message}; {advice}, as in charlm train my.txt --train.steps 3000")
    kinds = r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.*?)\])"
    found = re.match(rf'Parser key "([\w.]+)": (?:Does not .*?)?{kinds}.*(?:Got|Given) value: ?(.*)', message)
    if not found:
        return CharlmError(message)
    key, kind, choices, value = found.groups()
    advice = f"expected {kind}" if kind else choice_advice(value, re.findall(r"\w+", choices))
    return CharlmError(f"{key}={value}: {advice}")


def parse(argv: Sequence[str], prog: str = "charlm", **kwargs) -> Config:
    """Config from command-line words such as ['--config', 'stdlib', '--train.steps=10']. kwargs: brief=True
    for a short --help, others for ArgumentParser. Raises CharlmError for unknown keys (naming the nearest
    right one), wrong types and bad values; exits after --help and --print_config."""
    parser = _parser(prog, **kwargs)
    try:
        built = parser.instantiate(parser.parse_args(_layers([*_options(argv)])))
    except argparse.ArgumentError as error:
        raise _refusal(str(error)) from None
    config = Config(**{f.name: built[f.name] for f in fields(Config)})
    config.run_dir = config.run_dir.replace("{run_id}", os.environ.get("WANDB_RUN_ID") or "default")
    return config


def load_config(config: Config | str | Path | None = None, *overrides: str, **options) -> Config:
    """Config from a YAML file or a shipped config and overrides such as 'train.steps=10'; raises as parse.
    options: the same by keyword: sections (train={"steps": 10}), or fields that one section or train has
    (steps=10, hidden_size=64, seed=1). A Config that is given without any is returned."""
    if isinstance(config, Config):
        if overrides or options:
            raise UsageError("a Config has its options already: give them to load_config, with its name")
        return config
    words = [] if config is None else [f"--config={config}"]
    for name, value in options.items():
        keys = [k for k in flatten(Config()) | vars(Config()) if name in (k, k.rsplit(".", 1)[-1])]
        chosen = [key for key in keys if key in (name, f"train.{name}")] or keys
        if not keys:
            raise UsageError(f"unknown option {name}{_nearest(name)}")
        if len(chosen) > 1:
            advice = f"give its section, such as {keys[0].split('.')[0]}={{{name!r}: {value!r}}}"
            raise UsageError(f"{name}={value!r}: one of {', '.join(keys)}; {advice}")
        as_json = isinstance(value, list | tuple | dict | bool | None)
        overrides += (f"{chosen[0]}={json.dumps(value, default=str) if as_json else value}",)
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


def _sections(tree: Any, where: str) -> dict[str, Any]:
    """The values of a config, their names checked; without empty sections, and fields of older versions."""
    if isinstance(tree, dict) and isinstance(tree.get("model"), dict):
        tree = tree | {"model": without_retired(tree["model"])}
    _check_keys({} if tree is None else tree, Config(), where)
    return {name: value for name, value in (tree or {}).items() if value is not None}


def from_dict(tree: dict[str, Any] | None) -> Config:
    """Config from nested plain values, as stored in a run directory; unknown keys are refused."""
    tree = _sections(tree, "config")
    tree |= {"model": {"recall": 0} | tree["model"]} if "model" in tree else {}  # sizes had none before
    kinds = {f.name: f.default_factory for f in fields(Config) if f.name != "run_dir"}
    return Config(**tree | {name: kinds[name](**tree[name]) for name in kinds if name in tree})


def read_run_config(run_dir: Path) -> Config:
    """The config.yaml of a run directory; the default config where there is none."""
    path = run_dir / "config.yaml"
    return read(path, (dict, None), loads=load_yaml, make=from_dict) if path.exists() else Config()
