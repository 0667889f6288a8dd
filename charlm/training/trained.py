"""Open what training left: a run directory, its model/ folder, or a model on the Hub."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict, overload

import torch

from charlm.config.fields import Config, ModelConfig, SampleConfig
from charlm.config.parse import config_of
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.evaluation.evaluate import Score, score
from charlm.model.char_lm import CharLM
from charlm.model.device import set_float32_precision
from charlm.model.pretrained import load_weights
from charlm.sampling.generate import stream_text
from charlm.training.checkpoint import load_newest

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
        pieces = stream_text(self.model, self.vocab, self._sampling(options), count)
        drawn = ["".join(sample) for sample in zip(*pieces, strict=True)]
        return drawn[0] if num_samples is None else drawn

    def stream(self, **options: Unpack[Sampling]) -> Iterator[str]:
        """What generate(**options) returns, in pieces of whole characters, each as soon as it is drawn.

        Raises CharlmError as generate does, for a prompt when the first piece is asked for.
        """
        pieces = stream_text(self.model, self.vocab, self._sampling(options))
        return (piece for (piece,) in pieces if piece)

    def _sampling(self, options: Sampling) -> SampleConfig:
        return dataclasses.replace(self.config.sample, **options)

    def score(self, text: str, context: str = "") -> Score:
        """The surprisal of every character of a text, and the figures: see charlm.evaluation.evaluate."""
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
        set_float32_precision("ieee")
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
