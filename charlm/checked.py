"""What a stranger may have written: JSON and YAML of runs and models, values against their types, links.

A type is a hint of typing, whose Annotated may hold pairs (test of a value, advice where it fails); a value;
a tuple of types, one of which must fit; or a dict from keys to types, where a key that ends in ? may be
missing, and keys that are not named may hold anything.
"""

import difflib
import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Sequence
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from charlm.errors import CharlmError

LARGEST = 16 << 20  # bytes of a JSON or YAML file
MOST_VALUES = 100_000  # of a YAML file, each counted as often as aliases repeat it
Count = Annotated[int, (lambda x: 0 <= x < 1 << 53, "must be 0 or more, and below 2^53")]
FIGURES = dict.fromkeys(("nats_per_character", "bpc", "bpb", "perplexity"), float)  # of an evaluation
FIGURES |= dict.fromkeys(("characters", "bytes", "lanes", "context"), Count)
SOME_FIGURES = {f"{name}?": kind for name, kind in FIGURES.items()} | {"bpc": float}


def choice_advice(value: str, choices: Sequence[str]) -> str:
    """How to fix a value that is none of the choices."""
    near = difflib.get_close_matches(value, choices, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(choices)}"


def mismatch(value: Any, kind: Any) -> str:
    """Why a value is not of a type, in words; '' if it is. Whole numbers are floats, and tuples are lists."""
    origin, parts, inner, fits = get_origin(kind) or type(kind), get_args(kind), {}, False
    if origin is Annotated:
        failed = (advice for allows, advice in kind.__metadata__ if not allows(value))
        return mismatch(value, parts[0]) or next(failed, "")
    if origin in (Union, UnionType) or isinstance(kind, tuple):
        found = [mismatch(value, part) for part in parts or kind]
        return "" if "" in found else found[0]
    if value is None and kind not in (None, type(None), object):
        return "must not be null"
    if origin is Literal:
        return "" if value in parts else choice_advice(str(value), parts)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        inner = dict(enumerate(parts * len(value) if origin is list else parts))
        fits = len(inner) == len(value)
    elif origin is dict and isinstance(value, dict):
        inner = dict.fromkeys(value, parts[1]) if parts else {k.rstrip("?"): part for k, part in kind.items()}
        fits = all(isinstance(key, str) for key in value)
        if missing := [key for key in ((), kind)[not parts] if key[-1] != "?" and key not in value]:
            return f"{missing[0]} is missing"
        inner = {key: part for key, part in inner.items() if key in value}
    elif kind in (int, float):  # beyond 1e300 sums may overflow
        fits = isinstance(value, Integral if kind is int else Real) and not 1e300 < abs(value) < math.inf
        fits = fits and not isinstance(value, bool)
    elif kind is str:
        if isinstance(value, str) and not value.isascii() and re.search("[\ud800-\udfff]", value):
            return f"{value!r} holds half a character (a lone surrogate)"
        fits = isinstance(value, str)
    else:
        fits = isinstance(value, kind) if isinstance(kind, type) else type(value) is origin and value == kind
    if not fits:
        expected = getattr(kind, "__name__", kind) if isinstance(kind, type | str | int) else origin.__name__
        return f"{reprlib.repr(value)} is not {expected}"
    found = ((key, mismatch(value[key], part)) for key, part in inner.items())
    return next((f"{key}: {problem}" for key, problem in found if problem), "")


def refuse_links(folder: str | Path, *names: str) -> None:
    """Raise CharlmError for a symbolic link among these entries of a folder (without names: all), or below
    one: what is written, deleted or sent through it may be anybody's. wandb has links of its own."""
    for path in (Path(folder, name) for name in names or os.listdir(folder)):
        below = path.rglob("*") if path.name != "wandb" else ()
        if link := next((found for found in (path, *below) if found.is_symlink()), None):
            advice = "put a copy in its place; only the folder as a whole may be one"
            raise CharlmError(f"{link}: is a symbolic link, which charlm does not write through; {advice}")


def size_of(path: str | Path) -> int:
    """The bytes of a file. Raises OSError, and ValueError for a folder, or an endless device or pipe."""
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is not a file")
    return found.st_size


def parse(content: bytes, kind: Any = dict, loads=json.loads) -> Any:
    """What JSON holds, or another format that `loads` reads. Raises ValueError if that is not of the type."""
    try:
        tree = loads(content.decode("utf-8"))
    except (RecursionError, LookupError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    if found := mismatch(tree, kind):
        raise ValueError(found)
    return tree


def read(
    path: str | Path, kind: Any = dict, problem: str = "cannot be read", loads=json.loads, make=None
) -> Any:
    """What a JSON file holds, or with loads=load_yaml a YAML file, or what `make` makes of that. Raises
    CharlmError with the file, the problem and the reason, also for a TypeError or ValueError of make."""
    try:
        if (size := size_of(path)) > LARGEST:
            raise ValueError(f"{size:,} bytes are more than the {LARGEST:,} allowed")
        tree = parse(Path(path).read_bytes(), kind, loads)
        return tree if make is None else make(tree)
    except (OSError, ValueError, TypeError) as error:
        raise CharlmError(f"{path}: {problem}: {getattr(error, 'strerror', None) or error}") from error


class _Loader(yaml.SafeLoader):
    """Plain values, of which aliases cannot make too many."""

    values = 0  # so far; that of an alias has the size of what it repeats, and within itself no size yet

    def compose_node(self, parent, index):
        before, alias = self.values, self.check_event(yaml.AliasEvent)
        repeated = self.anchors.get(self.peek_event().anchor)
        self.values += getattr(repeated, "size", MOST_VALUES) if alias else 1
        if self.values > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values, or one that holds itself")
        node = super().compose_node(parent, index)
        node.size = self.values - before
        return node


load_yaml = partial(yaml.load, Loader=_Loader)  # text → plain values; ValueError for more than MOST_VALUES
