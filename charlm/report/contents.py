"""What the page shows besides plots and probes: the table of results, samples, character counts, and how a
symbol is displayed so that each is visible and none is mistaken for another."""

from __future__ import annotations

import math
import unicodedata

import numpy as np

from charlm.corpus.prepared import Corpus, baseline_title
from charlm.corpus.vocabulary import Vocab, name_of
from charlm.monitor.run_files import History

MOST_SAMPLES = 9
_SIGNS = {"\n": "↵", "\t": "→", "\x7f": "␡", "\xa0": "⍽"}


def results(history: History, baselines: dict) -> list[tuple[str, str, dict, str]]:
    """Rows of the table of results: (name, text, figures, baseline). The model's rows, then the baselines.

    baselines: key of corpus.json → figures.
    """
    rows, status, evaluations = [], history.status, history.evaluations
    if evaluations:
        lowest = min(evaluations, key=lambda r: r["bpc"] if math.isfinite(r["bpc"]) else math.inf)
        best, last = status.get("best") or lowest, evaluations[-1]
        rows.append((f"best, step {best['step']:,}", "validation", best, ""))
        if last["step"] != best["step"]:
            rows.append((f"last, step {last['step']:,}", "validation", last, ""))
    if status.get("test"):
        rows.append(("best weights", "test", status["test"], ""))
    if not rows and (last := history.latest("bpc")):
        figures = last | {"nats_per_character": last["bpc"] * math.log(2)}
        rows.append((f"step {last['step']:,}", "train, during training", figures, ""))
    return rows + [(baseline_title(key, of), "validation", of, key) for key, of in baselines.items()]


def spread_samples(samples: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """At most MOST_SAMPLES of (step, text): the first, the last, and more early than late ones."""
    if len(samples) <= MOST_SAMPLES:
        return samples
    places = np.unique(np.geomspace(1, len(samples), MOST_SAMPLES).round().astype(int) - 1)
    return [samples[i] for i in places]


def character_counts(corpus: Corpus, key: str) -> list[tuple[str, str, int, float]]:
    """(display, name, count, percent of the largest count) for a list of characters in corpus.json."""
    rows = []
    for code, count in corpus.info[key]:
        character = character_display(chr(code)), name_of(chr(code))
        display, name = _byte_display(code) if corpus.vocab.bytes_only else character
        rows.append((display, name, count, 100 * count / max(n for _, n in corpus.info[key])))
    return rows


def character_display(character: str) -> str:
    """The character itself if it is visible, else a sign for it or its code point."""
    code, category = ord(character), unicodedata.category(character)
    if character in _SIGNS:
        return _SIGNS[character]
    if code < 0x20:
        return chr(0x2400 + code)
    if category.startswith("M"):
        return "◌" + character  # a combining mark needs a base
    if category[0] in "CZ" and character != " ":  # control and the like, separators
        return f"U+{code:04X}"
    return character


def _byte_display(byte: int) -> tuple[str, str]:
    if byte < 0x80:
        return character_display(chr(byte)), f"byte 0x{byte:02X}, {name_of(chr(byte))}"
    return f"{byte:02X}", f"byte 0x{byte:02X}"


def symbol_displays(vocab: Vocab) -> list[tuple[str, str]]:
    """(display, name) of every symbol: 'a' and "'a' (U+0061 LATIN SMALL LETTER A)", 'E2' and 'byte 0xE2'."""
    characters = [(character_display(c), name_of(c)) for c in vocab.characters]
    end = [("■", "end of document")] * vocab.end_of_document
    return characters + [_byte_display(b) for b in vocab.byte_symbols] + end


def plain_characters(vocab: Vocab) -> list[str]:
    """One character per symbol, for facts about text: a byte of a multi-byte character counts as a letter,
    the end of a document as NUL."""
    byte_symbols = [chr(b) if b < 0x80 else "é" for b in vocab.byte_symbols]
    return [*vocab.characters, *byte_symbols, *["\0"] * vocab.end_of_document]


def completed_characters(vocab: Vocab, ids: np.ndarray) -> dict[int, str]:
    """Index in ids of each byte symbol that completes a multi-byte character → display of that character."""
    completed, decode = {}, vocab.stream()
    for place, symbol in enumerate(ids.tolist()):
        text = decode(symbol)
        if symbol >= len(vocab.characters) and not text.isascii() and "\ufffd" not in text:
            completed[place] = character_display(text)
    return completed
