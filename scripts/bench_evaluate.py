"""`bench.py evaluate`: one stateful pass over a text against the textbook loop and the matrix products."""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from bench_rounds import (
    LIMIT,
    TEXTBOOK,
    WHOLE,
    Textbook,
    V,
    figures,
    finish,
    in_turn,
    matmul_peak,
    matrices_of,
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


def evaluate_row(cell: str, hidden: int, lanes: int, args: argparse.Namespace) -> dict:
    from charlm import CharLM, Vocab
    from charlm.config import EvaluateConfig, ModelConfig
    from charlm.evaluate import evaluate

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vocab = Vocab("".join(map(chr, range(32, 127))) + "\n", unknown="error")
    textbook = Textbook(cell, 64, hidden, args.layers).to(device).eval()
    ours = CharLM(ModelConfig(cell=cell, embedding_size=64, hidden_size=hidden, num_layers=args.layers), V)
    ours.to(device).eval()
    ids = np.random.default_rng(0).integers(0, V, lanes * args.length + 1).astype(np.uint8)
    rows = torch.from_numpy(ids[:-1].astype(np.int64)).view(lanes, -1).to(device)
    config = EvaluateConfig(lanes=lanes)
    flops = 2 * sum(m.numel() for m in matrices_of(textbook))
    units = len(ids) - 1
    ways = {
        TEXTBOOK: lambda: timed(lambda: textbook_evaluate(textbook, rows, args.bptt), units),
        WHOLE: lambda: timed(lambda: evaluate(ours, vocab, ids, config), units),
        LIMIT: lambda: matmul_peak(device) / flops,
    }
    name = f"{cell} {args.layers} × {hidden}, {lanes} lanes"
    row = {"name": name, "cell": cell, "layers": args.layers, "hidden": hidden, "lanes": lanes}
    return row | {"length": args.length} | figures(in_turn(ways, args.rounds, name))


def evaluate_bench(args: argparse.Namespace) -> None:
    rows = [
        evaluate_row(cell, hidden, lanes, args)
        for cell in args.cells
        for hidden, lanes in zip(args.hidden, args.lanes, strict=True)
    ]
    finish("evaluate", "the peak of matrix products over 2 FLOP per weight", rows, args)
