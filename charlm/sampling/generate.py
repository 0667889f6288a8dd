"""Sampling: the prompt warms the carry, then one symbol after another is drawn. N samples, V vocabulary."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from charlm.config.fields import SampleConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import Carry, CharLM
from charlm.model.device import Recorded

BLOCK = 256  # uniform numbers drawn at a time
WORTH_RECORDING = 10  # symbols: a recording runs the step four times first


def generate_ids(
    model: CharLM, vocab: Vocab, config: SampleConfig, num_samples: int = 1
) -> Iterator[list[int]]:
    """Draw config.length symbols for every sample, one of each at a time.

    Yields num_samples ids per step, after the prompt. The same seed gives the same ids, whatever else uses
    torch's random numbers; a sample does not depend on how many others are drawn with it.
    Raises CharlmError for a prompt with a character that a closed vocabulary does not have.
    """
    from charlm.sampling.cpu_step import Stepper, steppable  # here: numba, which training need not wait for

    if num_samples < 1:
        raise CharlmError(f"num_samples={num_samples}: must be 1 or more")
    sampler = Sampler(config, num_samples, model.vocab_size)
    with model.evaluating():
        logits, carry = _read(model, vocab, config.prompt)
        carry = tuple(c.expand(-1, num_samples, -1).contiguous() for c in carry)  # all read the same prompt
        record = model.device.type == "cuda" and config.length > WORTH_RECORDING
        stepper = Stepper(model, carry) if steppable(model) else ModelStepper(model, carry, record)
        logits = np.repeat(logits, num_samples, axis=0)
        for i in range(config.length):
            ids = sampler.draw(stepper.step(sampler.ids) if i else logits)
            yield ids.tolist()


@torch.inference_mode()  # here, not around the generator: entering it takes longer than a small step
def _read(model: CharLM, vocab: Vocab, prompt: str) -> tuple[np.ndarray, Carry]:
    """Logits float32[1, V] of what follows the prompt, and the carry after it."""
    ids = torch.from_numpy(vocab.encode(prompt).astype("int64")).to(model.device)
    if not len(ids) and vocab.end is not None:
        ids = torch.tensor([vocab.end], device=model.device)  # as at the start of a document
    logits, carry = torch.zeros(1, model.vocab_size), model.zeros(1)  # without a prompt: every symbol alike
    for window in ids.split(1024) if len(ids) else ():
        out, carry = model(window[None], carry)
        logits = out[:, -1]
    return logits.float().cpu().numpy(), carry


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
    """One sample as text, without the prompt. options: fields of SampleConfig. end: see stream_text."""
    return "".join(piece for (piece,) in stream_text(model, vocab, SampleConfig(**options), end=end))


class ModelStepper:
    """Stepper's interface on any device, by CharLM.step, in the model's compute_dtype. record: a GPU replays
    the step as one launch."""

    @torch.inference_mode()
    def __init__(self, model: CharLM, carry: Carry, record: bool = False):
        if model.compute_dtype != torch.float32:  # once, and not in every step
            model = copy.deepcopy(model).to(model.compute_dtype)
        states = len(model.cell.states)  # what else a carry holds keeps its dtype
        carry = *(c.to(model.compute_dtype) for c in carry[:states]), *carry[states:]
        self.model, self.carry = model, tuple(c.clone() for c in carry)
        ids = torch.zeros(carry[0].shape[1], dtype=torch.int64, device=carry[0].device)
        self._run = Recorded(self._advance, ids, record=record)
        torch._foreach_copy_(self.carry, carry)  # a recording has run steps

    def _advance(self, ids: Tensor) -> Tensor:
        logits, carry = self.model.step(ids, self.carry)
        torch._foreach_copy_(self.carry, carry)
        return logits

    @torch.inference_mode()
    def step(self, ids: np.ndarray) -> np.ndarray:
        """Read one symbol per sample, int64[N]; returns logits float32[N, V]."""
        return self._run(torch.from_numpy(ids)).float().cpu().numpy()  # sync


class Sampler:
    """Draws a symbol per sample: temperature, then top-k, then top-p, then a uniform random number.

    Every sample has random numbers of its own seed: config.seed, and one up for each. They are torch's on the
    CPU, so that a seed draws the same on every device.
    """

    def __init__(self, config: SampleConfig, num_samples: int, vocab_size: int):
        from charlm.sampling.cpu_step import draw_symbols

        generators = [torch.Generator().manual_seed(config.seed + i) for i in range(num_samples)]
        blocks = (
            np.stack([torch.rand(BLOCK, generator=g, dtype=torch.float64) for g in generators], axis=1)
            for _ in itertools.count()
        )
        self._draw, self._uniform = draw_symbols, itertools.chain.from_iterable(blocks)  # float64[N] each
        top_k = vocab_size if config.top_k is None else min(config.top_k, vocab_size)
        top_p = 1.0 if config.top_p is None else config.top_p
        self._options = (float(config.temperature), top_k, float(top_p))
        self._sorts, self._unsorted = top_k < vocab_size or top_p < 1, np.empty((0, vocab_size), np.int64)
        self._sums, self.ids = np.empty(vocab_size), np.zeros(num_samples, np.int64)

    def draw(self, logits: np.ndarray) -> np.ndarray:
        """logits float32[N, V] → int64[N], overwritten by the next draw. Raises CharlmError if not finite."""
        # Stable: of equally likely symbols the first counts as likelier.
        order = np.argsort(-logits, axis=1, kind="stable") if self._sorts else self._unsorted
        if not self._draw(logits, order, *self._options, next(self._uniform), self._sums, self.ids):
            raise CharlmError("the model's logits are not finite: take weights from before it diverged")
        return self.ids
