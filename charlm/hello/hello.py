"""The classroom example, through the same code as Wikipedia: an RNN of 3 units learns "hello" in ten steps.

Seed 123, vocabulary h e l o, input "hell", target "ello", one-hot input, nn.RNN then nn.Linear, Adam with
learning rate 0.1. The printed loss is the sum over the window of four characters, as in the lecture notebook.
"""

import tempfile
from pathlib import Path

import jinja2
import torch
from torch import Tensor

from charlm.config.parse import load_config
from charlm.corpus.prepared import prepare
from charlm.corpus.vocabulary import Vocab
from charlm.files import writing
from charlm.model.char_lm import CharLM
from charlm.training.lanes import Lanes, Position
from charlm.training.loop import train


def hello(explain: bool = False, debug: bool = False, figure: str | None = None) -> list[tuple[str, float]]:
    """Run configs/hello.yaml and print a line per step; returns (predicted string, summed loss) of each.

    Leaves no file except the figure. explain: print vocabulary, labels, one-hot matrix, formula, weights and
    optimizer first, and what is likely next at the end. debug: print the shape after each stage, of the
    window and one character at a time. figure: path for an SVG of the model before and after training.
    Raises CharlmError when the figure cannot be written.
    """
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        folders = f"run_dir={folder}/run", f"data.dir={folder}/data"
        config = load_config("hello", *folders, "log.wandb=disabled")
        corpus = prepare(config)
        x, y = Lanes(corpus["train"], config.train.batch_size, config.train.bptt).window(Position())
        text, targets = ([corpus.vocab.characters[i] for i in ids[0].tolist()] for ids in (x, y))
        panels = []

        def watch(step: int, model: CharLM, loss: float) -> None:
            if step == 0:
                panels.append(compute_panel("before training", model, x, y))
            if step == 0 and explain:
                given = {"text": text, "targets": targets, "vocabulary": corpus.vocab.characters}
                given |= {"x": x[0].tolist(), "y": y[0].tolist(), "panel": panels[0]}
                print(_render("explain.txt", **given, model=model, config=config), end="")
            if step == 0 and debug:
                _show_shapes(model, text, targets, x, y)
            with torch.no_grad():
                predicted = corpus.vocab.decode(model(x)[0].argmax(-1)[0].tolist())
            lines.append((predicted, loss * x.numel()))
            print(f"predicted string: {predicted}, epoch: {step + 1}, loss: {lines[-1][1]:.3f}")

        summary = train(config, quiet=True, watch=watch)
        trained = CharLM.from_pretrained(summary.run_dir / "model")
        panels.append(compute_panel(f"after {summary.step} steps", trained, x, y))
        for i, chance in enumerate(panels[1]["chances"] if explain else ()):
            print(f"given {''.join(text[: i + 1])!r}, {targets[i]!r} is likely next: p = {chance:.3f}")
        if figure is not None:
            with writing(f"--figure {figure}"):
                Path(figure).write_text(draw(panels, text, targets, corpus.vocab), encoding="utf-8")
            print(f"the figure is in {figure}")
    return lines


@torch.no_grad()
def _show_shapes(model: CharLM, text: list[str], targets: list[str], x: Tensor, y: Tensor) -> None:
    """Print the shape after each stage: of the window, then of one character after the other, as a loop over
    them computes it, with the sum of their losses."""

    def shape(*tensors: Tensor) -> str:
        return ", ".join(str(list(t.shape)) for t in tensors)

    (out, h), one_hot = model.layers[0](model.input(x)), model.input(x)
    print(f"ids       {shape(x)}  (lanes, window)\none-hot   {shape(one_hot)}\nrecurrent {shape(out, h)}")
    print(f"logits    {shape(model.output(out))}\ncarry     {shape(h)}  (layers, lanes, hidden)")
    carry, total = None, 0.0
    for i, (character, target) in enumerate(zip(text, targets, strict=True)):
        logits, carry = model(x[:, i : i + 1], carry)
        loss = torch.nn.functional.cross_entropy(logits[:, 0], y[:, i]).item()
        total += loss
        shapes = f"one-hot {shape(one_hot[:, i])}, hidden {shape(*carry)}, logits {shape(logits[:, 0])}"
        print(f"{character} → {target}   {shapes}, loss {loss:.3f}, so far {total:.3f}")


@torch.no_grad()
def compute_panel(title: str, model: CharLM, x: Tensor, y: Tensor) -> dict:
    """A panel of the drawing: what a one-layer model with one-hot input computes from x, with targets y.

    x, y: int64 [1, T]. Returns title, inputs [T][V], hidden [T][H], outputs (logits) [T][V], and chances [T],
    the probabilities of the next characters.
    """
    one_hot = model.input(x)
    hidden, logits = model.layers[0](one_hot)[0], model(x)[0][0]
    chances = logits.softmax(-1).gather(-1, y[0][:, None])[:, 0]
    rows = {"inputs": one_hot[0], "hidden": hidden[0], "outputs": logits, "chances": chances}
    return {"title": title} | {name: values.tolist() for name, values in rows.items()}


def draw(panels: list[dict], text: list[str], targets: list[str], vocab: Vocab) -> str:
    """A drawing of the network as one self-contained SVG, one panel below the other.

    text, targets: the characters of x and y. Layout: Karpathy, "The Unreasonable Effectiveness of Recurrent
    Neural Networks" (2015), a column per character, from the bottom the one-hot input, the hidden layer, the
    output. The output for the next character should be high (green), the others low (red).
    """
    return _render("drawing.svg", panels=panels, text=text, targets=targets, vocabulary=vocab.characters)


def _render(name: str, **values) -> str:
    source = Path(__file__).with_name(f"{name}.jinja").read_text(encoding="utf-8")
    return jinja2.Template(source, autoescape=name.endswith("svg"), keep_trailing_newline=True).render(values)
