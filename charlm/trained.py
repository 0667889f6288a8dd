"""Open what training left: a run directory, its model/ folder, or a model on the Hub."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict, overload

import torch
import yaml

from charlm.casting import arithmetic
from charlm.checkpoint import load_newest
from charlm.config import CharlmError, Config, ModelConfig, SampleConfig, from_dict
from charlm.generate import generate_ids
from charlm.model import CharLM, load_weights
from charlm.scoring import Score, score
from charlm.vocab import Vocab

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Sampling(TypedDict, total=False):
    """How to draw. What is left out comes from the config of the run, as in `charlm sample`."""

    prompt: str
    """Text that the sample goes on from; it is not part of what is returned."""
    length: int
    """Symbols to draw."""
    temperature: float
    """Divides the logits; 0 takes the likeliest symbol always."""
    top_k: int | None
    """Draw from the k likeliest symbols only."""
    top_p: float | None
    """Draw from the fewest symbols whose probabilities reach this sum."""
    seed: int
    """The same seed draws the same text."""


class Trained(NamedTuple):
    """What load() gives: `model, vocab, config = load(run)`, or as one thing that speaks."""

    model: CharLM
    vocab: Vocab
    config: Config

    def __repr__(self) -> str:  # one line, where a notebook shows it
        sizes = self.model.config
        layers = f"{sizes.num_layers} layer(s) of {sizes.hidden_size} units"
        return f"Trained({sizes.cell}, {layers}, {len(self.vocab)} symbols)"

    @overload
    def generate(self, *, num_samples: None = None, **options: Unpack[Sampling]) -> str: ...

    @overload
    def generate(self, *, num_samples: int, **options: Unpack[Sampling]) -> list[str]: ...

    def generate(self, *, num_samples=None, **options):
        """Draw a text; with num_samples a list of so many, drawn side by side, with seeds one apart.

        options, as in Sampling: prompt, length, temperature, top_k, top_p, seed; those not given come from
        config.sample. An end-of-document symbol becomes a newline, bytes that are not UTF-8 become U+FFFD.
        Raises CharlmError for a value that makes no sense, and for a prompt with a character that a closed
        vocabulary does not have.
        """
        count = 1 if num_samples is None else num_samples
        texts = [self.vocab.stream(end="\n") for _ in range(count)]
        parts: list[list[str]] = [[] for _ in texts]
        for ids in generate_ids(self.model, self.vocab, self._sampling(options), count):
            for text, part, symbol in zip(texts, parts, ids, strict=True):
                part.append(text(symbol))
        drawn = ["".join([*part, text(None)]) for text, part in zip(texts, parts, strict=True)]
        return drawn[0] if num_samples is None else drawn

    def stream(self, **options: Unpack[Sampling]) -> Iterator[str]:
        """What generate(**options) returns, in pieces of whole characters, each as soon as it is drawn.

        Raises CharlmError as generate does, for a prompt when the first piece is asked for.
        """
        return self._pieces(self._sampling(options))

    def _pieces(self, config: SampleConfig) -> Iterator[str]:
        text = self.vocab.stream(end="\n")
        for (symbol,) in generate_ids(self.model, self.vocab, config):
            if piece := text(symbol):
                yield piece
        if piece := text(None):
            yield piece

    def _sampling(self, options: Sampling) -> SampleConfig:
        return dataclasses.replace(self.config.sample, **options)

    def score(self, text: str, context: str = "") -> Score:
        """How surprised the model is by every character of a text, and the figures: see charlm.scoring."""
        return score(self.model, self.vocab, text, context)


def load(run: str | Path, device: str | torch.device | None = None) -> Trained:
    """Open a run directory (its best weights so far), a model/ folder, or a model on the Hub, 'user/name'.

    device: such as 'cpu' or 'cuda:1'; None takes a GPU if there is one, which multiplies in true float32 from
    here on (torch's own choice for recurrent layers is tf32). The model is in evaluation mode.
    Raises CharlmError when there is no model, or no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CharlmError(f"device {device}: {str(error).splitlines()[0]}") from error
    return Trained(*open_trained(str(run), device))


def open_trained(where: str, device: str | torch.device) -> tuple[CharLM, Vocab, Config]:
    """(model, vocabulary, config of the run) of a run directory, a model folder or a hub id.

    Of a run directory these are the best weights so far (model/), or those of the newest checkpoint when no
    evaluation has chosen any. The config is the default one for a model without a run around it.
    Raises CharlmError when there is no model.
    """
    if torch.device(device).type == "cuda":
        arithmetic("ieee")
    path = Path(where)
    if path.is_dir() and not (path / "config.json").exists():
        config = config_of(path)
        if (path / "model" / "config.json").exists():
            model = CharLM.from_pretrained(path / "model", device)
            return model, model.vocab, config
        loaded = load_newest(path)
        if loaded is None:
            raise CharlmError(f"{where}: holds neither a model/ nor a checkpoint; train it first")
        facts, tensors, vocab = loaded
        model = CharLM(ModelConfig(**facts["config"]["model"]), len(vocab))
        weights = tensors.get("average", tensors["model"])
        load_weights(model, weights, f"the checkpoint of step {facts['step']}")
        return model.to(device).eval(), vocab, config
    # "runs/nmae" where there is a folder runs is a slip, not a model of the user runs.
    slip = path.is_absolute() or where.startswith(".") or where.count("/") != 1 or path.parent.is_dir()
    if not path.is_dir() and slip:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, 1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise CharlmError(f"{where}: no such run directory, model folder or hub id{hint}")
    model = CharLM.from_pretrained(where, device)
    return model, model.vocab, config_of(path.parent) if path.name == "model" else Config()


def config_of(run_dir: Path) -> Config:
    """The config.yaml of a run directory; the default config where there is none."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return Config()
    try:
        return from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise CharlmError(f"{path}: cannot be read: {error}") from error
