"""What the page shows besides plots and probes: the table of results, samples, character counts, and how a
symbol is displayed so that each is visible and none is mistaken for another."""

from __future__ import annotations

import math
import unicodedata

import numpy as np

from charlm.corpus.prepared import Corpus, baseline_title
from charlm.corpus.vocabulary import Vocab, name_of

MOST_SAMPLES = 9
_WHITE_SPACE = {"\n": "↵", "\t": "→", "\r": "␍", "\xa0": "⍽"}


def results(records: list[dict], status: dict, baselines: dict) -> list[dict]:
    """Rows of the table of results: name, text, figures, baseline. The model's rows, then the baselines.

    records: lines of metrics.jsonl. status: of status.json. baselines: key of corpus.json → figures.
    """
    rows = []

    def add(name: str, text: str, figures: dict, baseline: str = "") -> None:
        rows.append({"name": name, "text": text, "figures": figures, "baseline": baseline})

    evaluations = [_validation(r) for r in records if isinstance(r.get("validation/bpc"), int | float)]
    training = [r for r in records if isinstance(r.get("bpc"), int | float)]
    if evaluations:
        lowest = min(evaluations, key=lambda r: r["bpc"] if math.isfinite(r["bpc"]) else math.inf)
        best, last = {"step": lowest["step"]} | (status.get("best") or lowest), evaluations[-1]
        add(f"best, step {best['step']:,}", "validation", best)
        if last["step"] != best["step"]:
            add(f"last, step {last['step']:,}", "validation", last)
    if status.get("test"):
        add("best weights", "test", status["test"])
    if not rows and training:
        last = training[-1] | {"nats_per_character": training[-1]["bpc"] * math.log(2)}
        add(f"step {last['step']:,}", "train, during training", last)
    for key, figures in baselines.items():
        add(baseline_title(key, figures), "validation", figures, key)
    return rows


def _validation(record: dict) -> dict:
    """The validation figures of a record, without their prefix, and the step."""
    figures = {k.removeprefix("validation/"): v for k, v in record.items() if k.startswith("validation/")}
    return figures | {"step": record["step"]}


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
        if corpus.vocab.bytes_only:
            display, name = _byte_display(code)
        else:
            display, name = character_display(chr(code)), name_of(chr(code))
        rows.append((display, name, count, 100 * count / max(n for _, n in corpus.info[key])))
    return rows


def character_display(character: str) -> str:
    """The character itself if it is visible, else a sign for it or its code point."""
    if character in _WHITE_SPACE:
        return _WHITE_SPACE[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    category = unicodedata.category(character)
    if category.startswith("M"):
        return "◌" + character  # a combining mark needs a base
    if category in ("Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn") and character != " ":
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
    completed, pending = {}, b""
    first = len(vocab.characters)
    for place, symbol in enumerate(ids.tolist()):
        byte = vocab.spelling[symbol] if first <= symbol < first + len(vocab.byte_symbols) else b""
        if not byte or byte[0] < 0x80:
            pending = b""
            continue
        pending = pending + byte if byte[0] < 0xC0 else byte
        try:
            completed[place] = character_display(pending.decode("utf-8"))
        except UnicodeDecodeError:
            continue
        pending = b""
    return completed
