"""Sampling: the prompt warms the carry, then one symbol after another is drawn."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from charlm.config import CharlmError, SampleConfig
from charlm.model import CharLM
from charlm.vocab import Vocab


@torch.inference_mode()
def generate_ids(
    model: CharLM, vocab: Vocab, config: SampleConfig, num_samples: int = 1
) -> Iterator[list[int]]:
    """Draw config.length symbols for every sample, one of each at a time.

    Yields num_samples ids per step, after the prompt. The same seed gives the same ids, whatever else uses
    torch's random numbers; a sample does not depend on how many are drawn beside it.
    Raises CharlmError for a prompt with a character that a closed vocabulary does not have.
    """
    if num_samples < 1:
        raise CharlmError(f"num_samples={num_samples}: must be 1 or more")
    draws = [torch.Generator().manual_seed(config.seed + i) for i in range(num_samples)]
    training = model.training
    model.eval()
    try:
        carry = model.zeros(num_samples)
        prompt = torch.from_numpy(vocab.encode(config.prompt).astype("int64")).to(model.device)
        if not len(prompt) and vocab.end is not None:
            prompt = torch.tensor([vocab.end], device=model.device)  # what comes before a document
        logits = torch.zeros(num_samples, model.vocab_size)  # before any text: every symbol alike
        for window in prompt.split(1024) if len(prompt) else ():
            out, carry = model(window.expand(num_samples, -1), carry)
            logits = out[:, -1]
        for _ in range(config.length):
            ids = _draw(logits.float().cpu(), config, draws)
            yield ids.tolist()
            logits, carry = model.step(ids.to(model.device), carry)
    finally:
        model.train(training)


def generate(model: CharLM, vocab: Vocab, end: str = "", **options) -> str:
    """One sample as text, the prompt not included. options: the fields of SampleConfig.

    end: what an end-of-document symbol becomes. Broken UTF-8 becomes U+FFFD.
    """
    config = SampleConfig(**options)
    text = vocab.stream(end)
    parts = [text(symbol) for (symbol,) in generate_ids(model, vocab, config)]
    return "".join([*parts, text(None)])


def visible(text: str) -> str:
    """Control characters, but newline and tab, as escapes: a terminal would obey them."""
    return text.translate({i: f"\\x{i:02x}" for i in (*range(9), *range(11, 32), *range(127, 160))})


def _draw(logits: Tensor, config: SampleConfig, draws: list[torch.Generator]) -> Tensor:
    """One id per row of logits [N, V]: temperature, then top-k, then top-p, then a draw."""
    if config.temperature == 0:
        return logits.argmax(-1)
    # In float64 and with the likeliest at 0, a temperature near 0 overflows nothing.
    logits = ((logits - logits.amax(-1, keepdim=True)).double() / config.temperature).float()
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        best = logits.topk(config.top_k)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, best.indices, best.values)
    shares = logits.softmax(-1)
    if config.top_p is not None and config.top_p < 1:
        ordered, index = torch.sort(shares, dim=-1, descending=True, stable=True)
        outside = ordered.cumsum(-1) - ordered >= config.top_p  # what comes before already reaches it
        shares = shares.scatter(-1, index, ordered.masked_fill(outside, 0))
    rows = [torch.multinomial(row, 1, generator=g) for row, g in zip(shares, draws, strict=True)]
    return torch.cat(rows)
