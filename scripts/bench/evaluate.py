"""One stateful pass over a text against the textbook loop and the peak of matrix products."""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
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
    matmul_peak,
    matrices_of,
    parser_of,
    positive,
    timed,
)


def textbook_evaluate(model: Textbook, ids: torch.Tensor, bptt: int) -> float:
    """Nats per symbol of ids, int64[lanes, length]: windows, logits, a mean of means."""
    carry, told = None, []
    with torch.inference_mode():
        for at in range(0, ids.shape[1] - 1, bptt):
            x, y = ids[:, at : at + bptt], ids[:, at + 1 : at + bptt + 1]
            logits, carry = model(x[:, : y.shape[1]], carry)
            told.append(F.cross_entropy(logits.flatten(0, 1), y.flatten()).item())
    return sum(told) / len(told)


def evaluate_row(cell: str, layers: int, hidden: int, lanes: int, args: argparse.Namespace) -> dict:
    from charlm import CharLM, Vocab
    from charlm.config.fields import EvaluateConfig, ModelConfig
    from charlm.evaluation.evaluate import evaluate

    vocab = Vocab("".join(map(chr, range(32, 127))) + "\n", unknown="error")
    textbook = Textbook(cell, hidden, layers).to(device()).eval()
    ours = CharLM(ModelConfig(cell=cell, embedding_size=E, hidden_size=hidden, num_layers=layers), V)
    ours.to(device()).eval()
    ids = np.random.default_rng(0).integers(0, V, lanes * args.length + 1).astype(np.uint8)
    rows = torch.from_numpy(ids[:-1].astype(np.int64)).view(lanes, -1).to(device())
    config = EvaluateConfig(lanes=lanes)
    flops = 2 * sum(m.numel() for m in matrices_of(textbook))
    units = len(ids) - 1
    ways = {
        TEXTBOOK: lambda: timed(lambda: textbook_evaluate(textbook, rows, config.bptt), units),
        WHOLE: lambda: timed(lambda: evaluate(ours, vocab, ids, config), units),
        LIMIT: lambda: matmul_peak() / flops,
    }
    name = f"{cell} {layers} × {hidden}, {lanes} lanes"
    row = {"name": name, "cell": cell, "layers": layers, "hidden": hidden, "lanes": lanes}
    return row | {"length": args.length} | Rounds(name, ways, args.rounds).all().figures(flops)


def main(words: list[str]) -> None:
    """Run the command."""
    parser = parser_of("evaluate", __doc__, ["256x32", "512x32"], "HIDDENxLANES", 7)
    parser.add_argument("--length", type=positive, default=3200, help="characters of each lane (3200)")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    rows = [
        evaluate_row(cell, layers, *size, args)
        for cell in args.cells
        for layers in args.layers
        for size in args.sizes
    ]
    finish("evaluate", "peak / 2 FLOP per weight", rows, args)
