"""What happens when a section is built: model.size fills in its preset, then every value is checked."""

import codecs
import difflib
import math
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePath
from typing import Annotated, Any, get_args, get_type_hints

import yaml

from charlm.checked import mismatch
from charlm.errors import CharlmError

BUILDERS = ("files", "text", "json", "csv", "parquet", "arrow")  # values of data.source that read files
LENGTH = {"steps": 1000, "minutes": None, "epochs": None}  # of train, at most one is given; the defaults
_type_hints = cache(get_type_hints)
# Types of fields, with a test of their values and the advice where it fails:
_BELOW_ONE = "must be at least 0 and below 1"
Natural = Annotated[int, (lambda x: x >= 0, "must be 0 or more")]
Positive = Annotated[int, (lambda x: x >= 1, "must be 1 or more")]
TwoOrMore = Annotated[int, (lambda x: x >= 2, "must be 2 or more")]
NonNegative = Annotated[float, (lambda x: x >= 0, "must be 0 or more")]
AboveZero = Annotated[float, (lambda x: x > 0, "must be above 0")]
Seed = Annotated[int, (lambda x: -(1 << 63) <= x < 1 << 64, "must fit in 64 bits")]
Single = Annotated[float, (lambda x: abs(x) < 3e38, "must be a number of float32")]
Finite = Annotated[float, (lambda x: 0 < x < math.inf, "must be above 0 and finite")]
BelowOne = Annotated[float, (lambda x: 0 <= x < 1, _BELOW_ONE)]
UpToOne = Annotated[float, (lambda x: 0 <= x <= 1, "must be between 0 and 1")]
Stall = Annotated[float, (lambda x: 0.01 <= x <= 1e6, "must be from 0.01 to 1e6; 1e6 is two years")]
Share = Annotated[float, (lambda x: 0 < x <= 1, "must be above 0 and at most 1")]
Decays = Annotated[tuple[float, float], (lambda xs: all(0 <= x < 1 for x in xs), _BELOW_ONE)]
Stops = Annotated[str | list[str], (lambda x: x and "" not in [x, *x], "give a text or several, none empty")]
HeldOut = Annotated[float | str, (lambda x: isinstance(x, str) or 0 <= x < 1, f"a fraction {_BELOW_ONE}")]


def _some_of(*names: str):
    """The type of a list of such names, or of those that fit such a pattern; one string has commas."""
    advice = f"a list of some of {', '.join(names)}"
    return Annotated[
        str | list[str], (lambda xs: all(any(fnmatchcase(x, n) for n in names) for x in xs), advice)
    ]


Normalize = _some_of("nfc", "nfkc", "lower", "crlf", "strip_bom", "text8")
Trackers = _some_of(
    *("wandb", "tensorboard", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab")
)
Changes = _some_of("optim.*", "model.*drop*", "model.*_reg", "train.precision", "train.gradients")
may_change = Changes.__metadata__[0][0]  # whether all of a list of fields may stand in train.allow_change


def _encodes(name: str) -> bool:
    """Whether Python has an encoding of text of that name."""
    try:
        return codecs.lookup(name)._is_text_encoding
    except LookupError:
        return False


Encoding = Annotated[str, (_encodes, "is no encoding of Python; such as utf-8, latin-1, cp1252 or utf-16")]


def require(ok: Any, key: str, value: Any, advice: str) -> None:
    """Raise CharlmError with the key, its value and how to fix it, unless ok."""
    if not ok:
        raise CharlmError(f"{key}={value!r}: {advice}")


def preset(size: str | None) -> dict[str, dict[str, Any]]:
    """Section → field → value that a model.size stands for; empty for null and for unknown sizes."""
    sizes = {path.stem: path for path in Path(__file__).with_name("sizes").glob("*.yaml")}
    return yaml.safe_load(sizes[size].read_text(encoding="utf-8")) if str(size) in sizes else {}


def without_retired(model: dict) -> dict:
    """Stored values of ModelConfig without those of hashed n-grams, which charlm had for a day. Raises
    CharlmError where they were used."""
    retired = model.keys() & {"ngram_rows", "ngram_size"}
    if retired and model.get("ngrams"):
        advice = "model.ngrams counts n-grams now: remove it, and train again"
        raise CharlmError(f"model.{min(retired)}: hashed embeddings of n-grams are gone; {advice}")
    return {name: value for name, value in model.items() if name not in retired}


@dataclass
class Section:
    """Base of the sections of a config, which checks their values."""

    __slots__ = ("given",)  # names of the fields passed to the constructor; neither a field nor in vars()

    def __new__(cls, *args, **values):
        self = super().__new__(cls)
        self.given = {*list(cls.__dataclass_fields__)[: len(args)], *values}
        return self

    def not_given(self, values: dict[str, Any]) -> dict[str, Any]:
        """Those of the values whose field was neither passed to the constructor nor assigned since."""
        default = vars(type(self))
        return {k: v for k, v in values.items() if k not in self.given and getattr(self, k) == default[k]}

    def require(self, ok: Any, name: str, advice: str) -> None:
        """Raise CharlmError with the key of a field, its value and how to fix it, unless ok."""
        section = type(self).__name__.removesuffix("Config").lower()
        require(ok, f"{section}.{name}", getattr(self, name), advice)

    def __post_init__(self):
        for name, hint in _type_hints(type(self), include_extras=True).items():
            words = getattr(self, name)
            if isinstance(words, str) and {hint, *get_args(hint)} & {Normalize, Trackers, Changes}:
                setattr(self, name, [word.strip() for word in words.split(",") if word.strip()])
            advice = mismatch(getattr(self, name), hint)
            self.require(not advice, name, advice)


def local_text(data) -> dict[str, Any]:
    """The source and data_files of a DataConfig whose source is a file or folder, or not given with files. A
    folder whose README.md lists configurations for `datasets` stays what it is."""
    source, files = data.source, data.data_files
    path = Path(os.path.expanduser(source or "-"))
    if files and source == "stdlib":
        return {"source": "files"}
    known = source in (*BUILDERS, "stdlib", "literal") or files or data.name or not os.path.exists(path)
    readme = path / "README.md"
    if known or (readme.is_file() and "\nconfigs:" in readme.read_text("utf-8", "replace")):
        return {}
    return {"source": "files", "data_files": source}


def check_together(config) -> None:
    """Refuse values of a Config that do not fit together, with the presets filled in."""
    data, vocab, train = config.data, config.vocab, config.train
    named = isinstance(config.run_dir, str | PurePath) and config.run_dir
    require(named, "run_dir", config.run_dir, "name a folder")
    held_out = sum(x for x in (data.validation, data.test) if not isinstance(x, str))
    require(held_out < 1, "data.validation + data.test", held_out, "nothing is left to train on")
    data.require(not data.text or data.source == "literal", "text", "is for data.source=literal")
    advice = "must be one ASCII character, not a quote or line break, such as \\t or ;"
    allowed = len(data.field_delimiter) < 2 and data.field_delimiter.isascii()
    data.require(allowed and data.field_delimiter not in {*'"\r\n'}, "field_delimiter", advice)
    advice = "data.header=false: give the number of a column, from 1"
    data.require(data.header or all(map(str.isdecimal, data.columns)), "text_column", advice)
    data.require(data.text_column, "text_column", "name a column, or a list of columns")
    data.require(data.source, "source", "name a hub id, a folder, a format, stdlib or literal")
    if data.source in BUILDERS:
        data.require(data.data_files, "data_files", f"source {data.source} needs files")
    elif data.source in ("literal", "stdlib"):
        advice = f"source {data.source} reads no files; set data.source to one of {', '.join(BUILDERS)}"
        data.require(not data.data_files, "data_files", advice)
        data.require(data.text or data.source == "stdlib", "text", "source literal needs a text")
    else:
        near = difflib.get_close_matches(data.source, [*BUILDERS, "stdlib", "literal"], 1, 0.75)
        data.require(not near, "source", f"is neither a builder nor a hub id; did you mean {''.join(near)}?")
    twice = "".join(sorted({c for c in vocab.characters if vocab.characters.count(c) > 1}))
    require(not twice, "vocab.characters", twice, "list every character only once")
    if vocab.bytes_only:
        vocab.require(not vocab.characters, "characters", "vocab.bytes_only has none")
        vocab.require(vocab.unknown == "bytes", "unknown", "vocab.bytes_only has every byte")
    given = [f"train.{n}={getattr(train, n)}" for n, none in LENGTH.items() if getattr(train, n) != none]
    if len(given) > 1:
        raise CharlmError(f"{' and '.join(given)}: give one of steps, minutes and epochs")
    divides = train.batch_size % train.accumulate == 0
    train.require(divides, "accumulate", f"must divide train.batch_size={train.batch_size}")
    validates = train.patience is None or (config.evaluate.every and data.validation)
    train.require(validates, "patience", "needs evaluate.every and data.validation above 0")
