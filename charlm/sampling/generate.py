"""Sampling: the prompt warms the carry, then one symbol after another is drawn. N samples, V vocabulary."""

import copy
import itertools
from collections.abc import Iterator, Sequence

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
    sampler = Sampler(config, num_samples, states_after(vocab))
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
    logits, carry = model.output.bias[None], model.zeros(1)  # without a prompt: by how frequent symbols are
    if not len(ids) and vocab.first:  # or as the training text begins
        logits = torch.bincount(torch.tensor(vocab.first), minlength=len(vocab)).log()[None].clamp(min=-1e9)
    for window in ids.split(1024) if len(ids) else ():
        out, carry = model(window[None], carry)
        logits = out[:, -1]
    return logits.float().cpu().numpy(), carry


def states_after(vocab: Vocab) -> np.ndarray:
    """int8[8, V]: which state of a UTF-8 decoder a symbol leads to from each; -1 where it may not be drawn,
    because it breaks a character off or because the training text lacks it.

    State 0 is between characters; in 1 to 3 so many bytes are to come; in 4 to 7, after E0, ED, F0 and F4,
    two or three, the next in a narrower range (The Unicode Standard, table 3-7).
    """
    of_byte, after = np.full((8, 256), -1, np.int8), np.full((8, len(vocab)), -1, np.int8)
    ranges = [(0, 0x00, 0x80, 0), (0, 0xC2, 0xE0, 1), (0, 0xE0, 0xF0, 2), (0, 0xF0, 0xF5, 3)]
    ranges += [(0, 0xE0, 0xE1, 4), (0, 0xED, 0xEE, 5), (0, 0xF0, 0xF1, 6), (0, 0xF4, 0xF5, 7)]
    ranges += [(1, 0x80, 0xC0, 0), (2, 0x80, 0xC0, 1), (3, 0x80, 0xC0, 2)]
    ranges += [(4, 0xA0, 0xC0, 1), (5, 0x80, 0xA0, 1), (6, 0x90, 0xC0, 2), (7, 0x80, 0x90, 2)]
    for state, low, high, then in ranges:
        of_byte[state, low:high] = then
    first, end = len(vocab.characters), len(vocab.characters) + len(vocab.byte_symbols)
    after[0] = 0  # characters, and the end of a document
    after[:, first:end] = of_byte[:, list(vocab.byte_symbols)]
    after[:, list(vocab.unseen)] = -1
    for _ in range(3):  # nor into a state that no symbol leads on from
        after[(after > 0) & (after < 0).all(1)[after]] = -1
    return after if (after[0] >= 0).any() else np.zeros_like(after)  # bytes that are no text at all


def stream_text(
    model: CharLM, vocab: Vocab, config: SampleConfig, num_samples: int = 1, end: str = "\n"
) -> Iterator[list[str]]:
    """The text of generate_ids as it comes: per step, for every sample, the characters that it completed.

    A piece is '' while the bytes of a character are still coming, while its characters may begin a text of
    config.stop, and after that text. A character whose bytes have not all come at the end is left out.
    end: what an end-of-document symbol becomes. The prompt is not included.
    """
    decoders = [vocab.stream(end) for _ in range(num_samples)]
    stops = [config.stop] if isinstance(config.stop, str) else config.stop
    held: list[str | None] = [""] * num_samples  # of each sample: what may begin a stop string; None: ended
    for ids in generate_ids(model, vocab, config, num_samples):
        pieces = [decode(symbol) for decode, symbol in zip(decoders, ids, strict=True)]
        for i in range(num_samples) if stops else ():
            pieces[i], held[i] = ("", None) if held[i] is None else _before(stops, held[i] + pieces[i])
        yield pieces
        if all(text is None for text in held):
            return
    yield [text or "" for text in held]


def _before(stops: Sequence[str], text: str) -> tuple[str, str | None]:
    """A text up to a stop string, and None; without one, what comes before it in any case, and the rest."""
    if found := [text.find(stop) for stop in stops if stop in text]:
        return text[: min(found)], None
    begins = (k for k in range(len(text)) if any(stop.startswith(text[k:]) for stop in stops))
    cut = next(begins, len(text))
    return text[:cut], text[cut:]


def generate(model: CharLM, vocab: Vocab, end: str = "", **options) -> str:
    """One sample as text, without the prompt. options: fields of SampleConfig. end: see stream_text."""
    return "".join(piece for (piece,) in stream_text(model, vocab, SampleConfig(**options), end=end))


class ModelStepper:
    """Stepper's interface on any device, by CharLM.step, in the model's compute_dtype. record: a GPU replays
    the step as one launch. model.recall remembers the prompt, not what is drawn: it would go in circles."""

    @torch.inference_mode()
    def __init__(self, model: CharLM, carry: Carry, record: bool = False):
        if model.compute_dtype != torch.float32:  # once, and not in every step
            model = copy.deepcopy(model).to(model.compute_dtype)
        states = len(model.cell.states)  # what else a carry holds keeps its dtype
        carry = *(c.to(model.compute_dtype) for c in carry[:states]), *carry[states:]
        self.model, self.carry = model, tuple(c.clone() for c in carry)
        self.remembered = model.recall.parts[0] if model.recall is not None else 0
        ids = torch.zeros(carry[0].shape[1], dtype=torch.int64, device=carry[0].device)
        self._run = Recorded(self._advance, ids, record=record)
        torch._foreach_copy_(self.carry, carry)  # a recording has run steps

    def _advance(self, ids: Tensor) -> Tensor:
        logits, carry = self.model.step(ids, self.carry)
        torch._foreach_copy_(*([*c[:-1], c[-1][..., self.remembered :]] for c in (self.carry, carry)))
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

    def __init__(self, config: SampleConfig, num_samples: int, following: np.ndarray):
        """following: int8[S, V], see states_after."""
        from charlm.sampling.cpu_step import draw_symbols

        generators = [torch.Generator().manual_seed(config.seed + i) for i in range(num_samples)]
        blocks = (
            np.stack([torch.rand(BLOCK, generator=g, dtype=torch.float64) for g in generators], axis=1)
            for _ in itertools.count()
        )
        self._draw, self._uniform = draw_symbols, itertools.chain.from_iterable(blocks)  # float64[N] each
        vocab_size = following.shape[1]
        top_k, top_p = min(config.top_k or vocab_size, vocab_size), config.top_p or 1.0
        self._options = (float(config.temperature), top_k, float(top_p))
        self._sorts = top_k < vocab_size or top_p < 1
        self._unsorted = np.tile(range(vocab_size), (num_samples, 1))
        self.ids, states = np.zeros(num_samples, np.int64), np.zeros(num_samples, np.int64)
        self._updated = np.empty(vocab_size), following, states, self.ids

    def draw(self, logits: np.ndarray) -> np.ndarray:
        """logits float32[N, V] → int64[N], overwritten by the next draw. Raises CharlmError if not finite."""
        # Stable: of equally likely symbols the first counts as likelier.
        order = np.argsort(-logits, axis=1, kind="stable") if self._sorts else self._unsorted
        if not self._draw(logits, order, *self._options, next(self._uniform), *self._updated):
            raise CharlmError("the model's logits are not finite: take weights from before it diverged")
        return self.ids
