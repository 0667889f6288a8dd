"""The drawing of the hello RNN, as lectures have it, with the numbers of a model: an SVG that stands alone.

The layout is that of Karpathy, "The Unreasonable Effectiveness of Recurrent Neural Networks" (2015): a column
per character, from the bottom the one-hot input, the hidden layer, the output. The output of the character
that comes next should be high (green), the others low (red).
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from charlm.corpus.vocabulary import Vocab
from charlm.model.char_lm import CharLM

WIDE, HIGH, APART = 64, 22, 148  # a cell; from column to column
LEFT, PANEL, HEAD = 128, 470, 36  # of the first column; height of a panel; of the title of the whole
STYLE = """\
text { font-family: ui-sans-serif, system-ui, sans-serif; font-size: 13px; fill: #1d2129; }
.paper { fill: #ffffff; }
.title { font-size: 16px; font-weight: 600; }
.layer, .weight, .chance { fill: #5b6472; }
.weight { font-style: italic; }
.character { font-family: ui-monospace, monospace; font-size: 18px; font-weight: 600; }
.number { font-family: ui-monospace, monospace; text-anchor: middle; }
.middle { text-anchor: middle; }
.box { fill: none; stroke: #8a93a1; rx: 5px; }
.inputs { fill: #fdecec; } .hidden { fill: #e9f5ea; } .outputs { fill: #e8effb; }
.arrow { stroke: #5b6472; stroke-width: 1.4; fill: none; marker-end: url(#head); }
.head { fill: #5b6472; }
.right { fill: #11752f; font-weight: 700; }
.wrong { fill: #b3261e; }
.target { fill: none; stroke: #11752f; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e8ec; }
  .paper { fill: #15181d; }
  .layer, .weight, .chance { fill: #a2abb8; }
  .inputs { fill: #3a2022; } .hidden { fill: #1d3122; } .outputs { fill: #1d2a40; }
  .arrow { stroke: #a2abb8; }
  .head { fill: #a2abb8; }
  .right { fill: #62d587; }
  .wrong { fill: #ff9a92; }
  .target { stroke: #62d587; }
}"""


@dataclass
class Panel:
    """The numbers of a model at one moment, a row per character of the text."""

    title: str
    inputs: list[list[float]]  # [T][V], one-hot
    hidden: list[list[float]]  # [T][H]
    outputs: list[list[float]]  # [T][V], logits
    chances: list[float]  # [T], the probability of the character that comes next


@torch.no_grad()
def panel(title: str, model: CharLM, x: Tensor, y: Tensor) -> Panel:
    """What a one-layer model with one-hot input computes on x, after which y comes: int64 [1, T] each."""
    one_hot = model.input(x)
    hidden, _ = model.layers[0](one_hot)
    logits = model(x)[0][0]
    chances = logits.softmax(-1).gather(-1, y[0][:, None])[:, 0]
    return Panel(title, one_hot[0].tolist(), hidden[0].tolist(), logits.tolist(), chances.tolist())


def draw(panels: list[Panel], text: list[str], targets: list[str], vocab: Vocab) -> str:
    """The SVG: the panels below each other."""
    width, height = LEFT + APART * (len(text) - 1) + WIDE + 24, PANEL * len(panels) + HEAD
    about = f"A recurrent network reads {''.join(text)} and is to say {''.join(targets)}."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img">',
        f"<title>{escape(about)}</title>",
        f"<style>\n{STYLE}\n</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto" markerUnits="userSpaceOnUse">',
        '<path class="head" d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        f'<rect class="paper" width="{width}" height="{height}"/>',
    ]
    for i, one in enumerate(panels):
        parts.append(f'<g transform="translate(0 {PANEL * i})">')
        parts += _panel(one, text, targets, vocab)
        parts.append("</g>")
    how = f"columns of numbers in the order {' '.join(vocab.characters)}; the next character's is framed"
    parts.append(_text(width // 2, height - 14, how, "layer middle"))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>'


def _weight(x: float, y: float, name: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="weight">W<tspan dy="4" font-size="10">{name}</tspan></text>'


def _arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<path class="arrow" d="M{x0:g} {y0:g} L{x1:g} {y1:g}"/>'


def _column(x: float, top: float, numbers: list[float], kind: str, classes: list[str]) -> list[str]:
    """Numbers in a box, the first at the top."""
    box = f'<rect class="box {kind}" x="{x:g}" y="{top}" width="{WIDE}" height="{HIGH * len(numbers)}"/>'
    form = "{:.0f}" if kind == "inputs" else "{:.2f}"
    return [
        box,
        *(
            _text(x + WIDE / 2, top + HIGH * i + 16, form.format(number).replace("-", "−"), f"number {name}")
            for i, (number, name) in enumerate(zip(numbers, classes, strict=True))
        ),
    ]


def _panel(one: Panel, text: list[str], targets: list[str], vocab: Vocab) -> list[str]:
    symbols, units = len(one.outputs[0]), len(one.hidden[0])
    out = 88  # tops of the three layers
    hidden = out + HIGH * symbols + 54
    inputs = hidden + HIGH * units + 54
    below = inputs + HIGH * symbols
    parts = [_text(16, 28, one.title, "title"), _text(16, 60, "target", "layer")]
    for name, top, count in (("output", out, symbols), ("hidden", hidden, units), ("input", inputs, symbols)):
        parts.append(_text(16, top + HIGH * count / 2 + 4, f"{name} layer", "layer"))
    parts.append(_text(16, below + 24, "input", "layer"))
    for t, (character, target) in enumerate(zip(text, targets, strict=True)):
        x = LEFT + APART * t
        middle = x + WIDE / 2
        right = vocab.characters.index(target)
        kinds = ["right" if i == right else "wrong" for i in range(symbols)]
        parts += _column(x, inputs, one.inputs[t], "inputs", ["plain"] * symbols)
        parts += _column(x, hidden, one.hidden[t], "hidden", ["plain"] * units)
        parts += _column(x, out, one.outputs[t], "outputs", kinds)
        frame = f'x="{x}" y="{out + HIGH * right}" width="{WIDE}" height="{HIGH}"'
        parts.append(f'<rect class="target" {frame}/>')
        parts += [
            _arrow(middle, inputs - 2, middle, hidden + HIGH * units + 3),
            _weight(middle + 8, inputs - 24, "xh"),
        ]
        parts += [
            _arrow(middle, hidden - 2, middle, out + HIGH * symbols + 3),
            _weight(middle + 8, hidden - 24, "hy"),
        ]
        if t:
            side = hidden + HIGH * units / 2
            parts += [_arrow(x - APART + WIDE + 2, side, x - 3, side), _weight(x - 54, side - 8, "hh")]
        parts.append(_text(middle, below + 26, character, "character middle"))
        parts.append(_text(middle, 60, target, "character middle right"))
        parts.append(_text(middle, 78, f"p = {one.chances[t]:.2f}", "chance middle"))
    return parts
