"""A plain GPT in torch with its recipe: what `bench.py quality` compares recurrent models with.

Pre-norm blocks of causal attention and a feed-forward part, learned positions, no biases. It is trained on
windows drawn at random, and scored by windows that overlap.

Shapes: B windows, T symbols of a window, V vocabulary, C width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm.evaluation.evaluate import counts, figures_of, targets_of

SCORED = 64  # windows per forward call of sliding_nats; has no influence on the figures


@dataclass
class GPTConfig:
    """The GPT and its training. The defaults are for a GPU."""

    layers: int = 6
    """Number of blocks."""
    width: int = 384
    """Width of the residual stream."""
    heads: int = 6
    """Heads of attention per block; must divide the width."""
    block: int = 256
    """Symbols of a window: the longest context."""
    batch: int = 256
    """Windows per step."""
    tie: bool = True
    """Use the embedding matrix for the logits as well."""
    learning_rate: float = 1e-3
    """Highest learning rate of AdamW; falls to final_ratio of it along a cosine."""
    final_ratio: float = 0.1
    """Last learning rate as a share of the highest."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the two moment estimates."""
    weight_decay: float = 0.1
    """Decoupled weight decay of everything but the gains of the norms."""
    clip: float = 1.0
    """Maximum norm of the gradient."""
    compile: bool = True
    """Compile the model."""
    stride: int | None = None
    """Predictions that a window of the evaluation adds to those before it; null: half a block."""


# What is another on a CPU: small enough to get somewhere there.
ON_CPU = {"layers": 4, "width": 128, "heads": 4, "block": 64, "batch": 12, "compile": False}


def gpt_config(words: list[str], on_gpu: bool) -> GPTConfig:
    """From command-line words such as ['--layers', '8']. Raises argparse.ArgumentError, ValueError."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser("gpt", allow_abbrev=False, exit_on_error=False)
    parser.add_class_arguments(GPTConfig)
    parser.set_defaults({} if on_gpu else ON_CPU)
    config = GPTConfig(**vars(parser.parse_args(words)))
    if config.width % config.heads:
        raise ValueError(f"width {config.width} must be a multiple of heads {config.heads}")
    if config.stride is not None and not 1 <= config.stride <= config.block:
        raise ValueError(f"stride {config.stride} must be from 1 to block {config.block}")
    return config


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm and added to its input: [B, T, C] → [B, T, C]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)  # [B, heads, T, C/heads]
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    """ids int64[B, T], T up to the block → logits [B, T, V]; with targets, int64[B, T], nats in float32."""

    def __init__(self, config: GPTConfig, vocab_size: int):
        super().__init__()
        self.input = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Embedding(config.block, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.output = nn.Linear(config.width, vocab_size, bias=False)
        if config.tie:
            self.output.weight = self.input.weight
        # As in GPT-2: 0.02, and less where a block adds to the stream, which is not to grow with the depth.
        added = 0.02 / math.sqrt(2 * config.layers)
        for name, p in self.named_parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=added if name.endswith(("mix.weight", "down.weight")) else 0.02)

    def forward(self, ids: Tensor, targets: Tensor | None = None, reduction: str = "mean") -> Tensor:
        x = self.input(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.output(self.norm(x))
        if targets is None:
            return logits
        nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction=reduction)
        return nats.view(targets.shape) if reduction == "none" else nats


def gpt_optimizer(model: GPT, config: GPTConfig) -> torch.optim.AdamW:
    """AdamW with decay for the matrices, embeddings included."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def windows_at(ids: np.ndarray, starts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """x and y, int64[N, length] each, of the windows that begin at these places."""
    both = torch.from_numpy(ids[starts[:, None] + np.arange(length + 1)].astype(np.int64))
    return both[:, :-1], both[:, 1:]


# Windows of 6 symbols, stride 2, on a text of 12 symbols with 11 targets. ^ are the predictions that count:
#
#     text       a b c d e f g h i j k l
#     window 0   a→b … f→g                 ^ ^ ^ ^ ^ ^
#     window 1       c→d … h→i                     ^ ^      the symbols before serve as context
#     window 2           e→f … j→k                     ^ ^
#     window 3             f→g … k→l                     ^  the last window ends with the text


def sliding(targets: int, block: int, stride: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Windows that predict every target once: (where they start int64[N], how many of their last predictions
    count int64[N], their length). A window but the first has block - stride symbols of context, or more."""
    length = min(block, targets)
    ends = np.append(np.arange(length, targets, stride), targets)
    return ends - length, np.diff(ends, prepend=0), length


@torch.inference_mode()
def score_gpt(model: GPT, vocab, ids: np.ndarray, block: int, stride: int, autocast) -> dict:
    """The figures of evaluate() for the GPT, over the same targets: every symbol but the first."""
    starts, counted, length = sliding(targets_of(ids), block, stride)
    device, places = model.output.weight.device, torch.arange(length)
    nats = torch.zeros((), dtype=torch.float64, device=device)
    for at in range(0, len(starts), SCORED):
        some = slice(at, at + SCORED)
        x, y = windows_at(ids, starts[some], length)
        counts_here = places >= length - torch.from_numpy(counted[some])[:, None]  # bool[N, T]
        with autocast:
            told = model(x.to(device), y.to(device), "none")
        nats += told.double().masked_fill(~counts_here.to(device), 0).sum()
    return figures_of(nats.item(), *counts(vocab, ids[1:])) | {"block": block, "stride": stride}
