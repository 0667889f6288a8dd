"""The classroom example, through the same code as Wikipedia: an RNN of 3 units learns "hello" in ten steps.

Seed 123, vocabulary h e l o, input "hell", target "ello", one-hot input, nn.RNN then nn.Linear, Adam with
learning rate 0.1. The printed loss is the sum over the window of four characters, as in the lecture notebook.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jinja2
import torch
from torch import Tensor

from charlm.config.fields import Config
from charlm.config.parse import load_config
from charlm.corpus.prepared import prepare
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM
from charlm.training.lanes import Lanes, Position
from charlm.training.loop import train


def hello(explain: bool = False, debug: bool = False, figure: str | None = None) -> list[tuple[str, float]]:
    """Run configs/hello.yaml and print a line per step; returns (predicted string, summed loss) of each.

    Leaves no file except the figure. explain: print vocabulary, one-hot matrix, weights and model first.
    debug: print the shape after each stage. figure: path for an SVG of the model before and after training.
    Raises CharlmError when the figure cannot be written.
    """
    lines, panels = [], []
    with tempfile.TemporaryDirectory() as folder:
        folders = f"run_dir={folder}/run", f"data.dir={folder}/data"
        config = load_config("hello", *folders, "log.wandb=disabled")
        corpus = prepare(config)
        x, y = Lanes(corpus["train"], config.train.batch_size, config.train.bptt).window(Position())

        def watch(step: int, model: CharLM, loss: float) -> None:
            if step == 0 and explain:
                _explain(model, corpus.vocab, x)
            if step == 0:
                panels.append(compute_panel("before training", model, x, y))
            with torch.no_grad():
                predicted = corpus.vocab.decode(model(x)[0].argmax(-1)[0].tolist())
            lines.append((predicted, loss * x.numel()))
            print(f"predicted string: {predicted}, epoch: {step + 1}, loss: {lines[-1][1]:.3f}")

        if debug:
            _show_shapes(config, corpus.vocab, x)
        summary = train(config, quiet=True, watch=watch)
        if figure is not None:
            trained = CharLM.from_pretrained(summary.run_dir / "model")
            panels.append(compute_panel(f"after {summary.step} steps", trained, x, y))
            texts = [[corpus.vocab.characters[i] for i in ids[0].tolist()] for ids in (x, y)]
            try:
                Path(figure).write_text(draw(panels, *texts, corpus.vocab), encoding="utf-8")
            except OSError as error:
                raise CharlmError(f"--figure {figure}: cannot be written ({error.strerror})") from error
            print(f"the figure is in {figure}")
    return lines


def _explain(model: CharLM, vocab: Vocab, x: Tensor) -> None:
    print("index ↔ character:", ", ".join(f"{i} ↔ {c}" for i, c in enumerate(vocab.characters)))
    print(f"input {vocab.decode(x[0].tolist())!r} as indices: {x[0].tolist()}")
    print("as one-hot rows:")
    for i, row in zip(x[0].tolist(), model.input(x)[0].int().tolist(), strict=True):
        print(f"  {vocab.characters[i]}  {row}")
    layer = model.layers[0]
    print("weights, as the lecture writes them (torch stores the transpose):")
    weights = {"xh": layer.weight_ih_l0, "hh": layer.weight_hh_l0, "hy": model.output.weight}
    for name, weight in weights.items():
        print(f"  W_{name} {weight.shape[1]}×{weight.shape[0]}")
    print(model)


def _show_shapes(config: Config, vocab: Vocab, x: Tensor) -> None:
    """Pass one window through a new model and print the shape after each stage."""
    with torch.random.fork_rng(devices=[]):  # the training afterwards draws the same weights
        model = CharLM(config.model, len(vocab))

    def shape(out) -> str:
        tensors = out if isinstance(out, tuple) else (out,)
        return ", ".join(str(list(t.shape)) if torch.is_tensor(t) else shape(t) for t in tensors)

    print(f"ids       {list(x.shape)}  (lanes, window)")
    stages = (("one-hot", model.input_dropout), ("recurrent", model.layers[0]), ("logits", model.output))
    for name, module in stages:
        module.register_forward_hook(lambda _, __, out, name=name: print(f"{name:<9} {shape(out)}"))
    with torch.no_grad():
        _, carry = model(x)
    print(f"carry     {shape(carry)}  (layers, lanes, hidden)")


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
    source = Path(__file__).with_name("drawing.svg.jinja").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, keep_trailing_newline=True)
    return template.render(panels=panels, text=text, targets=targets, vocabulary=vocab.characters)
