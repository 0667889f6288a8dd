"""Drawing text against the textbook loop and against a step's matrix products alone."""

from __future__ import annotations

import torch
from rounds import (
    LIMIT,
    TEXTBOOK,
    WHOLE,
    E,
    Rounds,
    Textbook,
    V,
    device,
    finish,
    matrices_of,
    parser_of,
    positive,
    timed,
)
from torch import Tensor


def textbook_sample(model: Textbook, streams: int, length: int) -> None:
    """The loop of the tutorials: a forward over one character, a softmax, a draw."""
    with torch.inference_mode():
        ids, carry, drawn = torch.zeros(streams, 1, dtype=torch.long, device=device()), None, []
        for _ in range(length):
            logits, carry = model(ids, carry)
            ids = torch.multinomial(logits[:, -1].softmax(-1), 1)
            drawn.append(ids.flatten().tolist())


def products(matrices: list[Tensor], streams: int, length: int) -> None:
    """The matrix products of so many steps and nothing else, into memory that is there already."""
    x = [torch.ones(m.shape[1], streams, device=device()) for m in matrices]
    y = [torch.empty(m.shape[0], streams, device=device()) for m in matrices]
    if streams == 1:
        x, y = [v[:, 0] for v in x], [v[:, 0] for v in y]
    product = torch.mv if streams == 1 else torch.mm
    with torch.inference_mode():
        for _ in range(length):
            for m, into, out in zip(matrices, x, y, strict=True):
                product(m, into, out=out)


def sample_row(cell: str, layers: int, hidden: int, streams: int, length: int, rounds: int) -> dict:
    from charlm import CharLM, Vocab
    from charlm.config.fields import ModelConfig, SampleConfig
    from charlm.sampling.generate import generate_ids

    vocab = Vocab("".join(map(chr, range(32, 127))) + "\n", unknown="error")
    textbook = Textbook(cell, hidden, layers).to(device()).eval()
    ours = CharLM(ModelConfig(cell=cell, embedding_size=E, hidden_size=hidden, num_layers=layers), V)
    ours.to(device())
    # A step need not multiply by the first layer's input weights: with them a character picks a constant row.
    needed = [m for m in matrices_of(textbook) if m.shape[1] != E]
    config = SampleConfig(prompt="\n", length=length, temperature=1.0)

    def read_all() -> None:
        for _ in generate_ids(ours, vocab, config, streams):
            pass

    units = streams * length
    ways = {
        TEXTBOOK: lambda: timed(lambda: textbook_sample(textbook, streams, length), units),
        WHOLE: lambda: timed(read_all, units),
        LIMIT: lambda: timed(lambda: products(needed, streams, length), units),
    }
    name = f"{cell} {layers} × {hidden}, {streams} at once"
    row = {"name": name, "cell": cell, "layers": layers, "hidden": hidden, "streams": streams}
    flops = 2 * sum(m.numel() for m in needed)
    return row | Rounds(name, ways, rounds).all().figures(flops)


def main(words: list[str]) -> None:
    """Run the command."""
    parser = parser_of("sample", __doc__, ["128x1", "512x1", "128x32", "512x32"], "HIDDENxSTREAMS", 7)
    parser.add_argument("--length", type=positive, default=1000, help="characters of each sample (1000)")
    parser.set_defaults(threads=1)  # a second one only waits
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    rows = [
        sample_row(cell, layers, *size, args.length, args.rounds)
        for cell in args.cells
        for layers in args.layers
        for size in args.sizes
    ]
    finish("sample", "products of a step", rows, args)
