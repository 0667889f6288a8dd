"""Sampling: the prompt warms the carry, then one symbol after another is drawn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from charlm.config.fields import SampleConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import Carry, CharLM
from charlm.model.device import record_cuda_graph

WORTH_RECORDING = 10  # symbols: a recording runs the step four times, and has to pay


def generate_ids(
    model: CharLM, vocab: Vocab, config: SampleConfig, num_samples: int = 1
) -> Iterator[list[int]]:
    """Draw config.length symbols for every sample, one of each at a time.

    Yields num_samples ids per step, after the prompt. The same seed gives the same ids, whatever else uses
    torch's random numbers; a sample does not depend on how many are drawn beside it.
    Raises CharlmError for a prompt with a character that a closed vocabulary does not have.
    """
    from charlm.sampling.choose import (
        Drawing,  # here, because they import numba, for which training need not wait
    )
    from charlm.sampling.cpu_step import Stepper, steppable

    if num_samples < 1:
        raise CharlmError(f"num_samples={num_samples}: must be 1 or more")
    draw = Drawing(config, num_samples, model.vocab_size)
    training = model.training
    model.eval()
    try:
        logits, carry = _read(model, vocab, config.prompt)
        logits = logits.expand(num_samples, -1)  # all samples read the same prompt
        carry = tuple(c.expand(-1, num_samples, -1).contiguous() for c in carry)
        kind = Stepper if steppable(model) else _PlainStep
        if model.device.type == "cuda" and config.length > WORTH_RECORDING:
            kind = _RecordedStep
        stepper = kind(model, carry)
        ids = draw(_on_cpu(logits))
        yield ids.tolist()
        for _ in range(config.length - 1):
            ids = draw(stepper.step(ids))
            yield ids.tolist()
    finally:
        model.train(training)


@torch.inference_mode()  # here, not around the generator: entering it takes longer than a small step
def _read(model: CharLM, vocab: Vocab, prompt: str) -> tuple[Tensor, Carry]:
    """Logits [1, V] of what follows the prompt, and the carry after it."""
    ids = torch.from_numpy(vocab.encode(prompt).astype("int64")).to(model.device)
    if not len(ids) and vocab.end is not None:
        ids = torch.tensor([vocab.end], device=model.device)  # what comes before a document
    logits, carry = torch.zeros(1, model.vocab_size), model.zeros(1)  # before any text: every symbol alike
    for window in ids.split(1024) if len(ids) else ():
        out, carry = model(window[None], carry)
        logits = out[:, -1]
    return logits, carry


def stream_text(
    model: CharLM, vocab: Vocab, config: SampleConfig, num_samples: int = 1, end: str = "\n"
) -> Iterator[list[str]]:
    """The text of generate_ids as it comes: per step, for every sample, the characters that it completed.

    A piece is '' while the bytes of a character are still coming. The last yield is what is left at the end.
    end: what an end-of-document symbol becomes. Broken UTF-8 becomes U+FFFD. The prompt is not included.
    """
    decoders = [vocab.stream(end) for _ in range(num_samples)]
    for ids in generate_ids(model, vocab, config, num_samples):
        yield [decode(symbol) for decode, symbol in zip(decoders, ids, strict=True)]
    yield [decode(None) for decode in decoders]


def generate(model: CharLM, vocab: Vocab, end: str = "", **options) -> str:
    """One sample as text, the prompt not included. options: the fields of SampleConfig; end: see stream_text."""
    return "".join(piece for (piece,) in stream_text(model, vocab, SampleConfig(**options), end=end))


class _PlainStep:
    """What Stepper does, through the model itself on its own device."""

    def __init__(self, model: CharLM, carry: Carry):
        self.model, self.carry = model, carry

    @torch.inference_mode()
    def step(self, ids: np.ndarray) -> np.ndarray:
        logits, self.carry = self.model.step(torch.from_numpy(ids).to(self.model.device), self.carry)
        return _on_cpu(logits)  # sync


class _RecordedStep:
    """What _PlainStep does, on a GPU, which is given all kernels of a step at once."""

    @torch.inference_mode()
    def __init__(self, model: CharLM, carry: Carry):
        self.model, self.carry = model, tuple(c.clone() for c in carry)
        self.ids = torch.zeros(carry[0].shape[1], dtype=torch.int64, device=model.device)
        self.graph = record_cuda_graph(self._run, model.device)
        for state, value in zip(self.carry, carry, strict=True):
            state.copy_(value)

    def _run(self) -> None:
        self.logits, after = self.model.step(self.ids, self.carry)
        for state, value in zip(self.carry, after, strict=True):
            state.copy_(value)

    @torch.inference_mode()
    def step(self, ids: np.ndarray) -> np.ndarray:
        self.ids.copy_(torch.from_numpy(ids))
        self.graph.replay()
        return _on_cpu(self.logits)  # sync


def _on_cpu(logits: Tensor) -> np.ndarray:
    return logits.float().contiguous().cpu().numpy()
