"""What training left, opened: a run directory, its model/ folder, a model on the Hub; or a start from it."""

import difflib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import torch

from charlm.checked import read
from charlm.config.fields import Config
from charlm.config.parse import public, read_run_config, to_yaml
from charlm.corpus.prepared import Corpus, prepare
from charlm.corpus.sources import fingerprinted, is_path
from charlm.corpus.vocabulary import Vocab, name_of
from charlm.errors import CharlmError, CharlmWarning, each, redact
from charlm.evaluation.evaluate import Score, scores, states
from charlm.files import absolute
from charlm.files import replace as replace_file
from charlm.model.char_lm import CharLM
from charlm.model.device import has_gpu, set_precision
from charlm.sampling.generate import stream_text
from charlm.training.checkpoint import evaluated_model, load_newest

PLACES = ("data_files", "dir", "validation", "test")  # fields of data that corpus.json of a run holds
RECORD = {"paths": dict} | dict.fromkeys(("folder", "from_run", "sha256"), str)


class Trained(NamedTuple):
    """A trained model: `model, vocab, config = load(run)`, or `load(run).generate(prompt="The ")`."""

    model: CharLM
    vocab: Vocab
    config: Config

    def __repr__(self) -> str:  # one line, where a notebook shows it
        sizes = self.model.config
        layers = f"{sizes.num_layers} layer(s) of {sizes.hidden_size} units"
        return f"Trained({sizes.cell}, {layers}, {len(self.vocab)} symbols)"

    @overload
    def generate(self, *, num_samples: None = None, **options: object) -> str: ...

    @overload
    def generate(self, *, num_samples: int, **options: object) -> list[str]: ...

    def generate(self, *, num_samples=None, **options):
        """Draw a text; with num_samples a list of so many, drawn side by side, with seeds one apart.

        options: prompt, length, temperature, top_k, top_p, seed, stop of SampleConfig; those not given come
        from config.sample. An end-of-document symbol becomes a newline.
        Raises CharlmError for an option out of range, and for a prompt with a character that a closed
        vocabulary does not have.
        """
        count = 1 if num_samples is None else num_samples
        pieces = stream_text(self.model, self.vocab, replace(self.config.sample, **options), count)
        drawn = ["".join(sample) for sample in zip(*pieces, strict=True)]
        return drawn[0] if num_samples is None else drawn

    def stream(self, **options: object) -> Iterator[str]:
        """The text of generate(**options) in pieces of whole characters, each as soon as it is drawn. Raises
        CharlmError as generate does; for the prompt, when the first piece is requested."""
        pieces = stream_text(self.model, self.vocab, replace(self.config.sample, **options))
        return (piece for (piece,) in pieces if piece)

    def score(self, text: str, context: str = "") -> Score:
        """Surprisal and entropy of every character and byte of a text, and its figures: see Score."""
        return scores(self.model, self.vocab, [text], context)[0]

    def scores(self, texts: Sequence[str], context: str = "") -> list[Score]:
        """The same of several texts, which are read side by side."""
        return scores(self.model, self.vocab, texts, context)

    def states(self, texts: Sequence[str], layer: int = -1, at: str = "last") -> np.ndarray | list:
        """Hidden states of a layer as features: float32[texts, H], or of every character; see states."""
        return states(self.model, self.vocab, texts, layer, at)


def load(run: str | Path, device: str | torch.device | None = None, precision: str | None = None) -> Trained:
    """Open a run directory, a model/ folder, or a model on the Hub, 'user/name'.

    Of a run directory these are the best weights so far (model/), or those of the newest checkpoint when no
    evaluation has chosen any. The config is the default one for a model without a run around it. The model is
    in evaluation mode.
    device: such as 'cpu' or 'cuda:1'; None takes a GPU if there is one.
    precision: of a GPU, 'fp32', 'tf32' or 'bf16'; None is evaluate.precision of the config. How a GPU
    multiplies float32 holds for the whole process (torch's own choice for recurrent layers is tf32). A CPU
    always computes in fp32, with a warning if another is set.
    Raises CharlmError when there is no model, no such device or no such precision.
    """
    device = device or ("cuda" if has_gpu() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CharlmError(f"device {device}: {str(error).splitlines()[0]}") from error
    with torch.random.fork_rng([]):  # a new model draws its weights
        model, vocab, config = _opened(run)
    if precision is not None:
        config = replace(config, evaluate=replace(config.evaluate, precision=precision))
    say = partial(warnings.warn, category=CharlmWarning, stacklevel=3)
    model = model.to(device).eval()
    set_precision(model, config.evaluate.precision, "evaluate.precision", say)
    return Trained(model, vocab, config)


def _opened(run: str | Path) -> Trained:
    path, name = Path(run), str(run)
    if path.is_dir() and not (path / "config.json").exists():
        if not (path / "model" / "config.json").exists():
            if (loaded := load_newest(path)) is None:
                raise CharlmError(f"{run}: holds neither a model/ nor a checkpoint; train it first")
            return Trained(evaluated_model(*loaded), loaded[-1], read_run_config(path))
        path = run = path / "model"
    # "runs/nmae" next to a folder runs is a typing error, not a model of a user named runs.
    local = path.is_absolute() or name.startswith(".") or name.count("/") != 1 or path.parent.is_dir()
    if not path.is_dir() and local:
        names = {p.name: p for p in (*path.parent.glob("*"), *Path("runs").glob("*")) if p.is_dir()}
        near = difflib.get_close_matches(path.name, names, 1)
        hint = f"; did you mean {names[near[0]]}?" if near else ""
        raise CharlmError(f"{run}: no such run directory, model folder or hub id{hint}")
    model = CharLM.from_pretrained(run)
    return Trained(model, model.vocab, read_run_config(path.parent) if path.name == "model" else Config())


def record(config: Config, corpus: Corpus) -> None:
    """Write config.yaml of a run, and corpus.json: where its corpus is, and absolute paths of its text."""
    replace_file(Path(config.run_dir) / "config.yaml", to_yaml(public(config)))
    data, folder = config.data, os.path.abspath(corpus.folder)
    names = ["data_files", "dir", *(n for n in ("validation", "test") if is_path(getattr(data, n), data))]
    content = {
        "folder": folder,
        "from_run": os.path.relpath(folder, config.run_dir),
        "sha256": corpus.splits["train"]["sha256"],
        "paths": {name: redact(each(getattr(data, name), absolute)) for name in names},
    }
    replace_file(Path(config.run_dir) / "corpus.json", json.dumps(content, indent=2, ensure_ascii=False))


def _record(run_dir: str | Path, config: Config) -> dict:
    """corpus.json of a run that reads the same text; {} if there is none."""
    path, own = Path(run_dir) / "corpus.json", public(read_run_config(Path(run_dir)))
    same = fingerprinted(own.data) == fingerprinted(public(config).data) and own.vocab == config.vocab
    return read(path, RECORD) if same and path.exists() else {}


def recorded_corpus(run_dir: str | Path, config: Config) -> Corpus | None:
    """The corpus that a run of this config was trained on, also where its text is gone or the run was copied
    with its data.dir; None where it is not found."""
    if record := _record(run_dir, config):
        places = Path(config.data.dir, Path(record["folder"]).name), Path(run_dir, record["from_run"])
        for folder in (*places, Path(record["folder"])):
            if folder.is_dir() and (found := Corpus(folder)).splits["train"]["sha256"] == record["sha256"]:
                return found
    return None


def corpus_of(run_dir: str | Path, config: Config, trust: bool = False) -> Corpus:
    """The recorded corpus of a run, or with trust the one that its config names in the folder where it was
    started. Raises CharlmError without: the config of a stranger may name any file and folder."""
    if found := recorded_corpus(run_dir, config):
        return found
    if not trust:
        ways = f"To prepare the text that its config.yaml names, if you trust that: charlm evaluate {run_dir}"
        raise CharlmError(f"{run_dir}: its corpus is not on this disk. {ways} --trust; or give --text FILE")
    places = _record(run_dir, config).get("paths", {})
    paths = {k: v for k, v in places.items() if k in PLACES and "***" not in str(v)}
    return prepare(replace(config, data=replace(config.data, **paths)))


# Fields of the model on which the shapes and the meaning of its weights depend.
_SHAPE = ("cell", "nonlinearity", "embedding_size", "ngrams", "recall", "hidden_size", "num_layers")
_SHAPE += ("norm", "residual", "tie_weights")


def warm_start(model: CharLM, vocab: Vocab, where: str) -> str:
    """Copy the weights of a trained model into a fresh one; returns what was done, for people.

    where: a run directory, a model folder or a hub id. Rows of embedding and output (or columns of the first
    layer, when the input is one-hot) go to the symbol that spells the same bytes: a character, or the byte
    symbol of a bytes-only vocabulary. Symbols that the other model lacks keep their fresh rows.
    The counts of n-grams stay those of the new model's text.
    Raises CharlmError when sizes differ, naming them, or no symbol is common.
    """
    option = f"train.init_from={where}"
    try:
        source, source_vocab, _ = load(where, "cpu", "fp32")
    except CharlmError as error:
        raise CharlmError(f"{option}: cannot start from it: {error}") from error
    own, theirs = vars(model.config), vars(source.config)
    unlike = [k for k in _SHAPE if own[k] != theirs[k] and not (k == "recall" and own[k] and theirs[k])]
    differ = [f"model.{k} is {own[k]!r}, there {theirs[k]!r}" for k in unlike]
    if differ:
        raise CharlmError(f"{option}: does not fit: {', '.join(differ)}; use those values")
    place = {spelled: index for index, spelled in enumerate(source_vocab.spelling)}
    pairs = [(i, place[s]) for i, s in enumerate(vocab.spelling) if s in place]
    if not any(vocab.spelling[i] for i, _ in pairs):
        raise CharlmError(f"{option}: its vocabulary ({source_vocab}) has no character of ours ({vocab})")
    rows, source_rows = (torch.tensor(index) for index in zip(*pairs, strict=True))
    weights = dict(source.named_parameters())
    with torch.no_grad():
        for name, p in model.named_parameters():
            values = weights[name].to(p.device)
            if name in ("input.weight", "output.weight", "output.bias"):
                p[rows] = values[source_rows]
            elif name == f"layers.0.{model.cell.input_weight}" and not model.config.embedding_size:
                p[:, rows] = values[:, source_rows]
            elif p.is_floating_point():
                p.copy_(values)
    new = sorted(set(range(len(vocab))) - set(rows.tolist()))
    dropped = sorted(set(range(len(source_vocab))) - set(source_rows.tolist()))
    return (
        f"warm start from {where}: {len(pairs)} of {len(vocab)} symbols have its rows; "
        f"{len(new)} new, with fresh rows{_names(vocab, new)}; "
        f"{len(dropped)} of its own dropped{_names(source_vocab, dropped)}"
    )


def _names(vocab: Vocab, ids: list[int]) -> str:
    """The names of the first few symbols, in brackets."""
    names = [*map(name_of, vocab.characters), *(f"byte {b:02x}" for b in vocab.byte_symbols)]
    names.append("the end of a document")
    shown = [names[i] for i in ids[:10]] + ["…"] * (len(ids) > 10)
    return f" ({', '.join(shown)})" if shown else ""
