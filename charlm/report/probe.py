"""What a model predicts, and what its cells do, while it reads a text.

Shapes: N stretches of text read side by side, T symbols each; V vocabulary; F facts (text_facts.NAMES);
C = L·H cells, layer by layer. The value of a cell is c in an LSTM, h in a GRU or RNN.
"""

import base64
import unicodedata
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from charlm.corpus.vocabulary import Vocab, name_of
from charlm.errors import CharlmError
from charlm.evaluation.evaluate import targets_of
from charlm.model.char_lm import CharLM
from charlm.report.text_facts import LAST, MEMORY, NAMES, Correlations, fact_values

PASSAGE, STRETCHES = 2000, 12  # symbols in a stretch, and the number of stretches
WARM_UP = 50  # symbols at the start of a stretch without correlations: the carry is still close to zero
GUESSES = 5
MOST_VALUES = 1_500_000  # cell values in a page, one byte each: 2 MB in base64
WEAKEST = 0.25  # correlations below this are not shown
RARE = 20_000  # symbols rarer than one in this many are not compared: they were hardly trained
NEIGHBOURS, COMPARED = 5, 100  # neighbours shown for a symbol, and symbols that are candidates
WITH_NEIGHBOURS = 36  # symbols that neighbours are shown for
SIGNS = {"\n": "↵", "\t": "→", "\x7f": "␡", "\xa0": "⍽"}


@dataclass
class Probe:
    """Predictions and cell values in one passage, and correlations of cells with facts in all stretches.

    Two correlations, because the best of thousands of pairs scores too well on the text it was chosen on.
    """

    ids: np.ndarray  # int64[T], the passage
    bits: np.ndarray  # float64[T], surprisal of each symbol; NaN for the first, which is not predicted
    guesses: np.ndarray  # int64[T, 5], the most probable symbols before each was read
    chances: np.ndarray  # float64[T, 5], their probabilities
    cells: np.ndarray  # float16[T, C], after each symbol is read
    choosing: np.ndarray  # float64[F, C], correlations on the first half of every stretch
    scoring: np.ndarray  # float64[F, C], on the second half
    symbols: int  # number of symbols behind the correlations


def probe_model(model: CharLM, vocab: Vocab, ids: np.ndarray) -> Probe:
    """Read stretches of a text; the passage is the one in which the facts vary most.

    ids: uint8[n] or uint16[n], n ≥ 2; the cost does not grow with n beyond PASSAGE * STRETCHES.
    Raises CharlmError for fewer than 2 symbols, and for a model whose logits are not finite.
    """
    characters = plain_characters(vocab)
    texts = stretches(ids, np.array([c in "\n\0" for c in characters]))
    facts = np.stack([fact_values("".join(characters[i] for i in text[:-1])) for text in texts])  # [N, T, F]
    overall = facts.std((0, 1))
    variation = np.minimum(facts.std(1) / np.where(overall > 0, overall, 1), 1).sum(1)  # [N]
    order = np.argsort(-variation, kind="stable")
    with model.evaluating():
        return _read(model, texts[order], facts[order])


def stretches(ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """int64[N, T + 1]: stretches spread evenly over a text, each starting at the end of a line or document if
    one is near. ids: of any length from 2. ends: bool[V], the symbols that end lines and documents.
    """
    length = min(PASSAGE, targets_of(ids))
    count = max(1, min(STRETCHES, (len(ids) - 1) // length))
    texts = []
    for k in range(count):
        start = k * (len(ids) - length - 1) // max(count - 1, 1)
        near = np.flatnonzero(ends[ids[start : min(start + 400, len(ids) - length)]]) if k else ()
        start += int(near[0]) if len(near) else 0
        texts.append(ids[start : start + length + 1].astype(np.int64))
    return np.stack(texts)


@torch.inference_mode()
def _read(model: CharLM, texts: np.ndarray, facts: np.ndarray) -> Probe:
    """The passage is texts[0]."""
    count, length = texts.shape[0], texts.shape[1] - 1
    carry = model.zeros(count)
    size = carry[0].shape[0] * carry[0].shape[2]
    top = min(GUESSES, model.vocab_size)
    bits, values = np.full(length, np.nan), np.empty((length, size), np.float16)
    guesses, chances = np.zeros((length, top), np.int64), np.zeros((length, top))
    choosing, scoring = Correlations(size), Correlations(size)
    warm_up = min(WARM_UP, length // 4)
    for t in range(length):
        logits, carry = model.step(torch.from_numpy(texts[:, t]).to(model.device), carry)
        if t + 1 < length:
            logs = torch.log_softmax(logits[0].double(), -1).cpu()  # sync
            if not logs.isfinite().all():
                raise CharlmError("the model's logits are not finite: use weights from before it diverged")
            bits[t + 1] = -logs[texts[0, t + 1]] / np.log(2)
            likeliest, guesses[t + 1] = logs.topk(top)
            chances[t + 1] = likeliest.exp()
        state = carry[len(model.cell.states) - 1].transpose(0, 1)  # [N, L, H]
        cells = state.reshape(count, size).float().cpu().numpy()  # [N, C], sync
        values[t] = cells[0]
        if t >= warm_up:
            (choosing if 2 * t < length + warm_up else scoring).add(facts[:, t], cells)
    correlations = choosing.values(), scoring.values()
    return Probe(texts[0, :-1], bits, guesses, chances, values, *correlations, count * (length - warm_up))


def passage_data(probe: Probe, vocab: Vocab) -> dict:
    """The passage for the script of the page: symbols [display, name, kind, ends a line]; for every place the
    index of its symbol, bits, guesses and chances; `completed`: the multi-byte character that ends there."""
    used = np.unique(np.concatenate([probe.ids, probe.guesses.ravel()])).tolist()
    index = {symbol: i for i, symbol in enumerate(used)}
    displays = symbol_displays(vocab)
    ends = {i for i, utf8 in enumerate(vocab.spelling) if utf8 == b"\n"} | {vocab.end}
    return {
        "symbols": [[*displays[i], _kind(displays[i][0], vocab.spelling[i]), int(i in ends)] for i in used],
        "ids": [index[i] for i in probe.ids.tolist()],
        "bits": [None if np.isnan(b) else round(b, 2) for b in probe.bits.tolist()],
        "guesses": [[index[i] for i in row] for row in probe.guesses.tolist()],
        "chances": [[round(p, 4) for p in row] for row in probe.chances.tolist()],
        "completed": {str(place): c for place, c in completed_characters(vocab, probe.ids).items()},
    }


def _kind(display: str, utf8: bytes) -> str:
    """'' for a character that is its own display, 'byte' for a number, 'sign' for a sign."""
    if utf8.decode("utf-8", "replace") in (display, display[1:]):
        return ""
    return "byte" if len(display) > 1 else "sign"


def cell_data(probe: Probe, hidden_size: int) -> tuple[dict, list[list[dict]]]:
    """(cells for the script of the page, for every layer the cells that follow a fact, best first).

    A match is the cell whose correlation with a fact is largest in `choosing`, with its correlation in
    `scoring`. Values are scaled to 255 steps between the 2nd and 98th percentile of the cell in the passage.
    Of a model with more cells than a page should hold, those with the weakest correlations are left out.
    """
    length, total = probe.cells.shape
    strength = np.abs(probe.choosing)
    scores = np.where(probe.scoring * probe.choosing > 0, probe.scoring, 0.0)  # [F, C]
    matches = []  # per layer: fact, cell
    for first in range(0, total, hidden_size):
        best = first + strength[:, first : first + hidden_size].argmax(1)
        pairs = [(f, c) for f, c in enumerate(best.tolist()) if abs(scores[f, c]) >= WEAKEST]
        matches.append(sorted(pairs, key=lambda pair: (pair[0] >= len(MEMORY), -abs(scores[pair]))))
    fact = strength.argmax(0)  # [C]
    score = scores[fact, np.arange(total)]
    matched = {cell for pairs in matches for _, cell in pairs}
    strongest = np.argsort(-np.abs(score), kind="stable").tolist()
    others = [cell for cell in strongest if cell not in matched]
    shown = {*matched, *others[: max(MOST_VALUES // length - len(matched), 0)]}
    shown = [cell for cell in strongest if cell in shown]
    values = probe.cells[:, shown].astype(np.float32).T  # [shown, T]
    low, high = np.percentile(values, [2, 98], axis=1)
    width = (high - low)[:, None]
    scaled = np.where(width > 0, (values - low[:, None]) / np.where(width > 0, width, 1), 0.5)
    coded = np.round(np.clip(scaled, 0, 1) * 254).astype(np.uint8)
    rows = [
        [c // hidden_size, c % hidden_size, round(float(a), 3), round(float(b), 3)]
        + ([NAMES[fact[c]], round(float(score[c]), 2)] if abs(score[c]) >= WEAKEST else ["", 0])
        for c, a, b in zip(shown, low, high, strict=True)
    ]

    def match(f: int, cell: int) -> dict:
        about = {"fact": NAMES[f], "description": (MEMORY | LAST)[NAMES[f]], "score": float(scores[f, cell])}
        return about | {"unit": cell % hidden_size, "index": shown.index(cell)}

    layers = [[match(*pair) for pair in pairs] for pairs in matches]
    return {"values": base64.b64encode(coded.tobytes()).decode(), "list": rows, "total": total}, layers


def nearest_symbols(model: CharLM, vocab: Vocab, counts: np.ndarray) -> list[tuple[str, list]]:
    """(display, [(display, cosine), …]) of the most frequent symbols: those with the most similar vectors.

    counts: int64[V]. The vector of a symbol is its embedding or, for one-hot input, its weights into layer 1.
    """
    if model.config.embedding_size:
        weight = model.input.weight  # [V, E]
    elif model.cell.input_weight:
        weight = getattr(model.layers[0], model.cell.input_weight).t()  # [V, G·H]
    else:
        return []
    frequent = np.argsort(-counts, kind="stable")[:COMPARED]
    frequent = frequent[counts[frequent] >= max(1, counts.sum() / RARE)]
    vectors = functional.normalize(weight.detach().float().cpu()[frequent])
    cosines = (vectors @ vectors.t()).fill_diagonal_(-torch.inf).numpy()
    nearest = np.argsort(-cosines, kind="stable")[:, : min(NEIGHBOURS, len(cosines) - 1)]
    every = symbol_displays(vocab)
    displays = [every[symbol][0] for symbol in frequent]
    return [
        (display, [(displays[k], float(cosines[i, k])) for k in nearest[i]])
        for i, display in enumerate(displays[:WITH_NEIGHBOURS])
    ]


def character_display(character: str) -> str:
    """The character itself if it is visible, else a sign for it or its code point."""
    code, category = ord(character), unicodedata.category(character)
    if character in SIGNS:
        return SIGNS[character]
    if code < 0x20:
        return chr(0x2400 + code)
    if category.startswith("M"):
        return "◌" + character  # a combining mark needs a base
    if category[0] in "CZ" and character != " ":  # control and the like, separators
        return f"U+{code:04X}"
    return character


def _display(code: int, byte: bool = False) -> tuple[str, str]:
    """(display, name) of a code point or a byte."""
    if byte and code >= 0x80:
        return f"{code:02X}", f"byte 0x{code:02X}"
    return character_display(chr(code)), f"byte 0x{code:02X}, " * byte + name_of(chr(code))


def symbol_displays(vocab: Vocab) -> list[tuple[str, str]]:
    """(display, name) of every symbol: 'a' and "'a' (U+0061 LATIN SMALL LETTER A)", 'E2' and 'byte 0xE2'."""
    symbols = [_display(ord(c)) for c in vocab.characters] + [_display(b, True) for b in vocab.byte_symbols]
    return symbols + [("■", "end of document")] * vocab.end_of_document


def character_counts(vocab: Vocab, counts: list[tuple[int, int]]) -> list[tuple[str, str, int, float]]:
    """(display, name, count, percent of the largest count) of (code, count) as corpus.json lists them."""
    most = max((count for _, count in counts), default=0)
    return [(*_display(code, vocab.bytes_only), count, 100 * count / most) for code, count in counts]


def plain_characters(vocab: Vocab) -> list[str]:
    """One character per symbol, for facts: a letter for a byte beyond ASCII, NUL for a document end."""
    byte_symbols = [chr(b) if b < 0x80 else "é" for b in vocab.byte_symbols]
    return [*vocab.characters, *byte_symbols, *["\0"] * vocab.end_of_document]


def completed_characters(vocab: Vocab, ids: np.ndarray) -> dict[int, str]:
    """Index in ids of each byte symbol that completes a multi-byte character → display of that character."""
    completed, decode = {}, vocab.stream()
    for place, symbol in enumerate(ids.tolist()):
        utf8 = decode(symbol).encode("utf-8")
        from_bytes = symbol >= len(vocab.characters) and len(utf8) > 1
        if from_bytes and vocab.decode_bytes(ids[max(place + 1 - len(utf8), 0) : place + 1]) == utf8:
            completed[place] = character_display(utf8.decode("utf-8"))
    return completed
