"""What a page shows of a model: a passage with its figures, the cells worth a look, neighbours."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np

from charlm.corpus.vocabulary import Vocab
from charlm.model.char_lm import CharLM
from charlm.report.looking import Look
from charlm.report.marks import completed, marks
from charlm.report.text_facts import LAST, MEMORY, NAMES

RARE = 20_000  # a symbol that is rarer than one in so many is not compared
MOST_VALUES = 1_500_000  # of cells in a page, one byte each: 2 MB of it at most
WEAKEST = 0.25  # a correlation below this is not told of
NEIGHBOURS, NEIGHBOURED, COMPARED = 5, 36, 100  # how many, of how many symbols, among how many


@dataclass
class Match:
    """A cell of a layer that agrees with a detector best: score is their correlation."""

    detector: str
    about: str
    layer: int
    unit: int
    score: float
    place: int  # in the page's list of cells


def passage(look: Look, vocab: Vocab) -> dict:
    """The passage for the page's script: symbols [mark, name, kind, whether it ends a line], and by place
    their number, bits, guesses and chances; `completed`: what the bytes up to a place spell."""
    used = np.unique(np.concatenate([look.ids, look.guesses.ravel()]))
    number = {symbol: i for i, symbol in enumerate(used.tolist())}
    told = marks(vocab)
    ends = {i for i, spelt in enumerate(vocab.spelling) if spelt == b"\n"} | {vocab.end}
    return {
        "symbols": [[*told[i], _kind(told[i][0], vocab.spelling[i]), int(i in ends)] for i in number],
        "ids": [number[i] for i in look.ids.tolist()],
        "bits": [None if np.isnan(b) else round(b, 2) for b in look.bits.tolist()],
        "guesses": [[number[i] for i in row] for row in look.guesses.tolist()],
        "chances": [[round(p, 4) for p in row] for row in look.chances.tolist()],
        "completed": {str(place): c for place, c in completed(vocab, look.ids).items()},
    }


def _kind(mark: str, spelt: bytes) -> str:
    """'' for a character that is its own mark, byte for a number, sign for what stands for another."""
    if spelt.decode("utf-8", "replace") in (mark, mark[1:]):
        return ""
    return "byte" if len(mark) > 1 else "sign"


def cells(look: Look, size: int) -> tuple[dict, list[list[Match]]]:
    """(the cells for the page's script, the matches of every layer, best first).

    size: H, cells per layer. A cell's value is told in 255 steps between its 2nd and its 98th percentile in
    the passage. Of a model with more cells than a page should hold, those that agree least are left out.
    """
    length, total = look.cells.shape
    detector = np.abs(look.to_choose).argmax(0)  # [C]
    score = look.to_score[detector, np.arange(total)]
    score = np.where(score * look.to_choose[detector, np.arange(total)] > 0, score, 0.0)
    by_score = np.argsort(-np.abs(score), kind="stable")
    best = [_best(look, layer, size) for layer in range(total // size)]
    shown = [cell for found in best for _, cell, _ in found]
    shown = list(dict.fromkeys([*shown, *by_score.tolist()]))[: max(MOST_VALUES // length, len(shown))]
    shown.sort(key=lambda cell: -abs(score[cell]))
    place = {cell: i for i, cell in enumerate(shown)}
    values = look.cells[:, shown].astype(np.float32).T  # [shown, T]
    low, high = np.percentile(values, [2, 98], axis=1)
    steps = (values - low[:, None]) / np.where(high > low, high - low, 1)[:, None]
    steps = np.where((high > low)[:, None], steps, 0.5)
    coded = np.round(np.clip(steps, 0, 1) * 254).astype(np.uint8)
    told = [
        [int(c // size), int(c % size), round(float(a), 3), round(float(b), 3)]
        + ([NAMES[detector[c]], round(float(score[c]), 2)] if abs(score[c]) >= WEAKEST else ["", 0])
        for c, a, b in zip(shown, low, high, strict=True)
    ]
    matches = [
        [
            Match(NAMES[d], (MEMORY | LAST)[NAMES[d]], layer, cell % size, s, place[cell])
            for d, cell, s in found
        ]
        for layer, found in enumerate(best)
    ]
    return {"values": base64.b64encode(coded.tobytes()).decode(), "list": told, "of": total}, matches


def _best(look: Look, layer: int, size: int) -> list[tuple[int, int, float]]:
    """(detector, cell, score) of a layer: for each detector the cell that agrees best on one half of the
    text, with its correlation on the other; what takes remembering first, then by score."""
    found = []
    for d in range(len(NAMES)):
        choose = look.to_choose[d, layer * size : (layer + 1) * size]
        cell = layer * size + int(np.abs(choose).argmax())
        score = float(look.to_score[d, cell])
        if abs(score) >= WEAKEST and score * look.to_choose[d, cell] > 0:
            found.append((d, cell, score))
    return sorted(found, key=lambda match: (match[0] >= len(MEMORY), -abs(match[2])))


def neighbours(model: CharLM, vocab: Vocab, counts: np.ndarray) -> list[tuple[str, list[tuple[str, float]]]]:
    """(mark, [(mark, cosine), …]) of the most frequent symbols: those that the model reads most alike.

    counts: int64[V]. Compared are the rows of the embedding, or, for one-hot input, the weights that the
    first layer reads a symbol with. Only the frequent ones are compared: the others were hardly trained.
    """
    if model.config.embedding_size:
        weight = model.input.weight
    elif model.cell.input_weight:
        weight = getattr(model.layers[0], model.cell.input_weight).t()  # [E, G·H]
    else:
        return []
    weight = weight.detach().float().cpu().numpy()
    known = np.flatnonzero(counts >= max(1, counts.sum() / RARE))
    known = known[np.argsort(-counts[known], kind="stable")][:COMPARED]
    rows = weight[known]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    told, found = marks(vocab), []
    for i, symbol in enumerate(known[:NEIGHBOURED].tolist()):
        alike = rows @ rows[i]
        alike[i] = -np.inf
        near = np.argsort(-alike, kind="stable")[: min(NEIGHBOURS, len(known) - 1)]
        found.append((told[symbol][0], [(told[known[k]][0], float(alike[k])) for k in near]))
    return found
