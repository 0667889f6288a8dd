"""A drawing of the hello RNN with the numbers of a model, as one self-contained SVG.

The layout is that of Karpathy, "The Unreasonable Effectiveness of Recurrent Neural Networks" (2015): a column
per character, from the bottom the one-hot input, the hidden layer, the output. The output for the next
character should be high (green), the others low (red).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2
import torch
from torch import Tensor

from charlm.corpus.vocabulary import Vocab
from charlm.model.char_lm import CharLM


@dataclass
class Panel:
    """The activations of a model at one moment of training, a row per character of the text."""

    title: str
    inputs: list[list[float]]  # [T][V], one-hot
    hidden: list[list[float]]  # [T][H]
    outputs: list[list[float]]  # [T][V], logits
    chances: list[float]  # [T], the probability of the next character


@torch.no_grad()
def compute_panel(title: str, model: CharLM, x: Tensor, y: Tensor) -> Panel:
    """The activations of a one-layer model with one-hot input on x with targets y: int64 [1, T] each."""
    one_hot = model.input(x)
    hidden, _ = model.layers[0](one_hot)
    logits = model(x)[0][0]
    chances = logits.softmax(-1).gather(-1, y[0][:, None])[:, 0]
    return Panel(title, one_hot[0].tolist(), hidden[0].tolist(), logits.tolist(), chances.tolist())


def draw(panels: list[Panel], text: list[str], targets: list[str], vocab: Vocab) -> str:
    """The SVG: one panel below the other. text, targets: the characters of x and y."""
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=folder, autoescape=True, keep_trailing_newline=True).get_template(
        "drawing.svg.jinja"
    )
    return template.render(panels=panels, text=text, targets=targets, vocabulary=vocab.characters)
