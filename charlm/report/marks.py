"""How a symbol looks on a page: every one visible, none mistaken for another."""

from __future__ import annotations

import unicodedata

import numpy as np

from charlm.corpus.vocabulary import Vocab, name_of

_WHITE = {"\n": "↵", "\t": "→", "\r": "␍", "\xa0": "⍽"}


def mark_of(character: str) -> str:
    """What stands for a character: itself where it shows, else a sign or its code point."""
    if character in _WHITE:
        return _WHITE[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    kind = unicodedata.category(character)
    if kind.startswith("M"):
        return "◌" + character  # combining marks need something to stand on
    if kind in ("Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn") and character != " ":
        return f"U+{code:04X}"
    return character


def marks(vocab: Vocab) -> list[tuple[str, str]]:
    """(mark, name) of every symbol: 'a' and "'a' (U+0061 LATIN SMALL LETTER A)", 'E2' and 'byte 0xE2'."""
    told = [(mark_of(c), name_of(c)) for c in vocab.characters]
    for byte in vocab.byte_symbols:
        if byte < 0x80:
            told.append((mark_of(chr(byte)), f"byte 0x{byte:02X}, {name_of(chr(byte))}"))
        else:
            told.append((f"{byte:02X}", f"byte 0x{byte:02X}"))
    return told + [("■", "end of document")] * vocab.end_of_document


def plain(vocab: Vocab) -> list[str]:
    """One character per symbol, for rules that look at text: a byte of a longer character counts as a
    letter, the end of a document as NUL."""
    of_bytes = [chr(b) if b < 0x80 else "é" for b in vocab.byte_symbols]
    return [*vocab.characters, *of_bytes, *["\0"] * vocab.end_of_document]


def completed(vocab: Vocab, ids: np.ndarray) -> dict[int, str]:
    """Places in ids where byte symbols complete a character, with the character."""
    done, begun = {}, b""
    first = len(vocab.characters)
    for place, symbol in enumerate(ids.tolist()):
        spelt = vocab.spelling[symbol] if first <= symbol < first + len(vocab.byte_symbols) else b""
        if not spelt or spelt[0] < 0x80:
            begun = b""
            continue
        begun = begun + spelt if spelt[0] < 0xC0 else spelt
        try:
            done[place] = mark_of(begun.decode("utf-8"))
        except UnicodeDecodeError:
            continue
        begun = b""
    return done
