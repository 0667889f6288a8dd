"""The score of a text: evaluate() in lanes, scores() character by character.

Every symbol but the first is predicted once, with the carry handed from window to window. Nats, characters
and bytes are summed, over lanes, windows and ranks, and divided once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from charlm.config.checks import require
from charlm.config.fields import EvaluateConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import Carry, CharLM
from charlm.model.device import float64_device, keep_freed_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

LN2 = math.log(2)
WINDOW = 1024  # symbols of a text per forward call of score and states; has no influence on the figures
AT_ONCE = 1 << 15  # symbols of all texts that are read side by side
UNCOUNTED = -100  # target of a prediction that costs nothing: ignore_index of torch's cross-entropy


def figures_of(nats: float, symbols: float, characters: float, size: float) -> dict[str, float]:
    """nats/char, bits per character (bpc), bits per byte (bpb), perplexity per character, and counts.

    nats: the cost of a text of so many symbols, characters and bytes, summed. The cost of end-of-document
    symbols is included; they count as no character and no byte.
    """
    per_character = nats / max(characters, 1)
    return {
        "nats_per_character": per_character,
        "bpc": per_character / LN2,
        "bpb": nats / max(size, 1) / LN2,
        "perplexity": math.exp(min(per_character, 700.0)),
        "symbols": int(symbols),
        "characters": int(characters),
        "bytes": int(size),
    }


def counts(vocab: Vocab, ids: np.ndarray) -> tuple[int, int, int]:
    """Symbols, characters and bytes of ids, as figures_of divides by them."""
    each = np.bincount(ids, minlength=len(vocab))
    per_symbol = (vocab.characters_per_symbol, vocab.bytes_per_symbol)
    return len(ids), *(int(each @ count.astype(np.int64)) for count in per_symbol)


def targets_of(ids: np.ndarray) -> int:
    """The number of predictions: one for each symbol but the first. Raises CharlmError for none."""
    if len(ids) < 2:
        raise CharlmError(f"a text of {len(ids)} symbol(s) cannot be evaluated: predicting takes 2 or more")
    return len(ids) - 1


def ids_of(vocab: Vocab, text: bytes, name: str) -> np.ndarray:
    """The ids of a text to score. Raises CharlmError, with the name, where there are none."""
    try:
        ids = vocab.encode(text)
        targets_of(ids)
    except UnicodeDecodeError as error:
        raise CharlmError(f"{name}: byte {error.start:,} is not UTF-8 ({error.reason})") from error
    except CharlmError as error:
        raise CharlmError(f"{name}: {error}") from error
    return ids


def windows(
    model: CharLM,
    ids: np.ndarray,
    starts: np.ndarray,
    length: int,
    bptt: int,
    context: int = 0,
    read: Callable | None = None,
) -> Iterator[torch.Tensor]:
    """Read lanes of a text window by window, the carry handed on from one to the next.

    starts: int64[N], where each lane begins. A lane reads `length` symbols and predicts the one behind each;
    what lies behind the end of the text costs 0. Before that it reads the `context` symbols in front of its
    start, but for a lane that starts the text, whose carry is zero.
    read: called in place of the model from the start on, as the model is: (ids, carry, targets, reduction).
    Yields the nats of the predictions, float32[N, T], T up to bptt.
    """
    carry = None
    if context and model.recall is not None:
        carry = model.zeros(len(starts))
        carry[-1][0] = model.recall.memories(ids, np.maximum(starts - context, 0))
    for low in chain(range(-context, 0, bptt), range(0, length, bptt)):
        if low == 0 and carry is not None:
            for state in carry:
                state[:, starts == 0] = 0
        at = starts[:, None] + np.arange(low, min(low + bptt, length if low >= 0 else 0) + 1)
        symbols = ids[np.clip(at, 0, len(ids) - 1)].astype(np.int64)
        symbols[at >= len(ids)] = UNCOUNTED
        window = torch.from_numpy(symbols).to(model.device)
        reader = model if low < 0 or read is None else read
        nats, carry = reader(window[:, :-1].clamp(min=0), carry, window[:, 1:], reduction="none")
        if low >= 0:
            yield nats


def nats_of(
    model: CharLM, ids: np.ndarray, starts: np.ndarray, length: int, bptt: int, read: Callable | None = None
) -> np.ndarray:
    """float32[N, length]: the nats of the predictions of lanes that each start from a carry of zeros; or what
    `read` gives, float32[N, length, …]."""
    lanes = windows(model, ids, starts, length, bptt, read=read)
    return np.concatenate([nats.float().cpu().numpy() for nats in lanes], axis=1)  # sync


# evaluate() cuts the targets into lanes that are read side by side. Before its first counted target a lane
# reads `context` symbols, so that its carry is warm:
#
#     text      a b c d e f g h i j k l m            targets b … m
#     lane 0    a→b b→c c→d d→e e→f f→g              starts the text: its carry is zero
#     lane 1        (d→e e→f f→g) g→h h→i …  l→m     3 symbols of context, not counted


def lanes_of(targets: int, lanes: int, context: int) -> tuple[np.ndarray, int, int]:
    """The starts int64[N] of up to so many lanes, their length, of which the last lane's may lack some
    targets, and the context in front of each; only the last lane may be shorter than that."""
    length = -(-targets // max(1, min(lanes, targets // max(context, 1))))  # rounded up
    starts = np.arange(0, targets, length)
    return starts, length, context if len(starts) > 1 else 0


@torch.inference_mode()
def evaluate(
    model: CharLM, vocab: Vocab, ids: np.ndarray, config: EvaluateConfig, processes: Accelerator | None = None
) -> dict:
    """Score a model on a text; with one lane this is the exact single pass.

    ids: uint8[n] or uint16[n]. processes: several that score together; each reads its share of the lanes, and
    float64[4] are added up over them. Returns figures_of() and the protocol: lanes and context.
    Raises CharlmError for a text of fewer than 2 symbols.
    """
    rank, world = (processes.process_index, processes.num_processes) if processes else (0, 1)
    targets = targets_of(ids)
    starts, length, context = lanes_of(targets, config.lanes, config.context)
    lanes = len(starts)
    starts = starts[lanes * rank // world : lanes * (rank + 1) // world]
    sums = torch.zeros(4, dtype=torch.float64, device=float64_device(model.device))
    if len(starts):
        with model.evaluating(), keep_freed_memory(model.device):
            for nats in windows(model, ids, starts, length, config.bptt, context):
                sums[0] += nats.to(sums.device).double().sum()
        counted = ids[starts[0] + 1 : min(starts[-1] + length, targets) + 1]
        sums[1:] = torch.tensor(counts(vocab, counted), dtype=torch.float64)
    if processes is not None:
        sums = processes.reduce(sums, "sum")
    return figures_of(*sums.tolist()) | {"lanes": lanes, "context": context}


def total_of(texts: list[dict]) -> dict:
    """The figures of several texts, results of evaluate or evaluate_dynamic, together: nats, characters and
    bytes summed, divided once. Returns the same keys; the protocol is that of the text with most lanes."""
    most = max(texts, key=lambda of: of["lanes"])
    sums = [sum(of[name] for of in texts) for name in ("symbols", "characters", "bytes")]

    def together(parts: list[dict]) -> dict[str, float]:
        pairs = zip(parts, texts, strict=True)
        nats = (part["nats_per_character"] * max(of["characters"], 1) for part, of in pairs)
        return figures_of(math.fsum(nats), *sums)

    total = together(texts) | {name: most[name] for name in ("lanes", "context")}
    if "dynamic" in most:
        adapted = together([of["dynamic"] for of in texts])
        total["dynamic"] = {name: adapted.get(name, value) for name, value in most["dynamic"].items()}
    return total


def row(of: dict, heading: bool = False) -> str:
    """The figures of one of several texts in 80 columns; a long name loses its start."""
    columns = {name: of[name] for name in ("bpc", "bpb")}
    columns |= {f"dynamic {name}": of["dynamic"][name] for name in columns} if "dynamic" in of else {}
    width, name = 64 - 12 * len(columns), of["text"]
    name = name if len(name) < width else f"…{name[2 - width :]}"
    head = f"{'text':<{width}}{'characters':>16}{''.join(f'{title:>12}' for title in columns)}\n" * heading
    return f"{head}{name:<{width}}{of['characters']:>16,}{''.join(f'{x:>12.4f}' for x in columns.values())}"


@dataclass(frozen=True)
class Score:
    """The score of a text. The figures are over the characters that were predicted: all of them, or all but
    the first where nothing comes before it."""

    text: str
    bits: np.ndarray
    """float64[len(text)]: the surprisal of every character in bits, -log2 of the probability that the model
    gave it; NaN for a first one not predicted. A character spelled in bytes costs the sum over its bytes."""
    entropy: np.ndarray  # float64[len(text)], in bits: of the prediction of each character, or its first byte
    byte_bits: np.ndarray
    """float64[bytes]: bits, of every byte of the text in UTF-8. A character with a symbol of its own has them
    all at its first byte, and 0 at the others."""
    byte_entropy: np.ndarray  # float64[bytes]: entropy, likewise
    nats_per_character: float
    bpc: float  # bits per character: the mean of bits; of a bytes-only model, evaluate() counts bytes instead
    bpb: float  # bits per byte of UTF-8: the figure that compares across vocabularies
    perplexity: float  # per character
    characters: int  # that were predicted
    bytes: int  # of these characters in UTF-8


class _Stream:
    """The ids of a text, after those of a context or else an end-of-document symbol, up to `start`.
    symbols, characters: int64, the byte at which each of the text begins; size: its bytes."""

    def __init__(self, vocab: Vocab, text: str, context: str = ""):
        before, ids = vocab.encode(context), vocab.encode(text)  # normalized there: once
        self.text = vocab.normalized(text) if vocab.normalize else text
        if not len(before) and vocab.end is not None:
            before = np.array([vocab.end], vocab.dtype)  # as at the start of a document
        self.ids, self.start = np.concatenate([before, ids]), len(before)
        ends = np.cumsum(vocab.bytes_per_symbol[ids].astype(np.int64))
        self.symbols, utf8 = np.append(0, ends[:-1]), np.frombuffer(self.text.encode("utf-8"), np.uint8)
        self.characters, self.size = np.flatnonzero((utf8 & 0xC0) != 0x80), len(utf8)


def side_by_side(model: CharLM, symbols: int, length: int) -> int:
    """How many lanes of this length are read at once: of at most so many symbols, with carries of 134 MB."""
    return max(1, min(symbols // length, (1 << 25) // (1 + sum(m.carried for m in model.evidence.values()))))


def _read_all(model: CharLM, streams: list[_Stream], read: Callable) -> Iterator[np.ndarray]:
    """What `read` (see windows) gives at the symbols of each stream, float32[symbols, …]. As many are read
    side by side as AT_ONCE symbols hold of the longest."""
    lanes = side_by_side(model, AT_ONCE, max((len(stream.ids) for stream in streams), default=1))
    for group in (streams[low : low + lanes] for low in range(0, len(streams), lanes)):
        lengths = [len(stream.ids) for stream in group]
        ids, starts = np.concatenate([stream.ids for stream in group]), np.cumsum([0, *lengths[:-1]])
        with model.evaluating():
            values = nats_of(model, ids, starts, max(lengths), WINDOW, read)
        yield from (lane[:length] for lane, length in zip(values, lengths, strict=True))


@torch.inference_mode()
def scores(model: CharLM, vocab: Vocab, texts: Sequence[str], context: str = "") -> list[Score]:
    """Score texts, side by side, each read once from its start with the carry handed on, without dropout.

    context: text that is read first, from a carry of zeros, and not counted. The first character is scored
    from the carry after it; without a context, from the carry after the end-of-document symbol; and where the
    vocabulary has none, not at all. From the second character on, this is evaluate() in one lane.
    Raises CharlmError for a text without a character to predict, and for a character that a closed vocabulary
    does not have.
    """
    found, streams = [], [_Stream(vocab, text, context) for text in texts]
    for text in (stream.text for stream in streams if len(stream.text) < 2 - bool(stream.start)):
        problem = f"the text is {text!r} alone, with nothing before it" if text else "the text is empty"
        raise CharlmError(f"{problem}: there is nothing to predict; give more text, or a context")

    def read(x: torch.Tensor, carry: Carry, targets: torch.Tensor, reduction: str) -> tuple:
        logits, carry = model(x, carry)
        log_p = logits.float().log_softmax(-1)
        nats = -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        return torch.stack([nats, -(log_p.exp() * log_p).sum(-1)], -1), carry

    for stream, nats in zip(streams, _read_all(model, streams, read), strict=True):
        of_bytes = np.zeros((stream.size, 2))
        of_bytes[stream.symbols] = np.append(np.full((1, 2), np.nan), nats[:-1], 0)[stream.start :] / LN2
        bits, counted = np.add.reduceat(of_bytes[:, 0], stream.characters), slice(not stream.start, None)
        size = len(stream.text[counted].encode("utf-8"))
        figures = figures_of(float(bits[counted].sum()) * LN2, 0, len(bits[counted]), size)
        del figures["symbols"]
        found.append(Score(stream.text, bits, of_bytes[stream.characters, 1], *of_bytes.T, **figures))
    return found


@torch.inference_mode()
def states(
    model: CharLM, vocab: Vocab, texts: Sequence[str], layer: int = -1, at: str = "last"
) -> np.ndarray | list[np.ndarray]:
    """The hidden states of a layer as features of texts, which are read as scores() does, without a context.

    layer: from 0; -1 is the last. Its output is taken, with model.residual its input included.
    Returns float32[texts, H], after the last character of each; with at="all" a list of float32[n, H], after
    every character. Raises CharlmError for another layer or place, one text instead of several, an empty
    text, and a character that a closed vocabulary does not have.
    """
    layers, streams = len(model.layers), [_Stream(vocab, text) for text in texts]
    require(-layers <= layer < layers, "layer", layer, f"the model has {layers}, numbered from 0")
    require(at in ("last", "all"), "at", at, "choose last or all")
    filled = not isinstance(texts, str) and streams and all(stream.text for stream in streams)
    require(filled, "texts", str(texts)[:40], "give a list of texts, none of them empty")
    depth, found = layer % layers + 1, []
    read = _read_all(model, streams, lambda x, carry, *_, **__: model(x, carry, depth=depth))
    for stream, hidden in zip(streams, read, strict=True):
        ends = stream.start - 1 + np.searchsorted(stream.symbols, [*stream.characters[1:], stream.size])
        found.append(hidden[ends if at == "all" else ends[-1]])
    return found if at == "all" else np.stack(found)
