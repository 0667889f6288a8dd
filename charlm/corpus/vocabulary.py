"""Vocab: characters, and UTF-8 bytes for what they leave out, so that any text round-trips.

Symbol ids, in this order:

    0 … C-1          characters, by code point (or in the order given)
    C … C+K-1        byte symbols: the bytes that can occur in the UTF-8 of other characters
    C+K              end of document, when wanted

Text is handled as *codes*: an array with one code point per character (one byte per byte in a bytes-only
vocabulary) and END where a document ends. No step works on one character at a time.
"""

from __future__ import annotations

import codecs
import json
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from charlm.config.fields import VocabConfig
from charlm.errors import CharlmError
from charlm.files import replace

END = 0x110000  # the code that stands for the end of a document: one past the last code point
UNKNOWN = 0xFFFF  # in the lookup table: no symbol of its own
MAX_SIZE = 0xFFFF  # ids are stored in 16 bits, less the mark above
FORMAT = {"format": "charlm vocabulary", "version": 1}

# Bytes that occur in UTF-8 beyond ASCII: continuation 80–BF, lead C2–F4 (The Unicode Standard, table 3-7).
_BEYOND_ASCII = (*range(0x80, 0xC0), *range(0xC2, 0xF5))


def name_of(character: str) -> str:
    """'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE): how errors and reports name a character."""
    name = unicodedata.name(character, "")
    return f"{character!r} (U+{ord(character):04X}{' ' + name if name else ''})"


def codes_of(utf8: np.ndarray) -> np.ndarray:
    """Code points of UTF-8 bytes.

    utf8: uint8[n]. Returns uint8[n] when all is ASCII, else uint32[characters].
    Raises UnicodeDecodeError, with the byte offset, for anything that is not UTF-8.
    """
    if utf8.size == 0 or utf8.max() < 0x80:
        return utf8
    return np.frombuffer(str(utf8.data, "utf-8").encode("utf-32-le"), np.uint32)


class Vocab:
    """A set of symbols and the two ways between text and ids.

    characters: each once, in id order. byte_symbols: the byte values that have a symbol.
    """

    def __init__(
        self,
        characters: Iterable[str],
        byte_symbols: Iterable[int] | None = None,
        *,
        unknown: str = "bytes",
        end_of_document: bool = False,
    ):
        """byte_symbols: None derives them: every byte that the UTF-8 of another character can hold."""
        self.characters = tuple(characters)
        self.unknown = unknown
        self.end_of_document = end_of_document
        if byte_symbols is None:
            byte_symbols = _byte_symbols(self.characters) if unknown == "bytes" else ()
        self.byte_symbols = tuple(byte_symbols)
        if len(set(self.characters)) < len(self.characters) or len(self) == 0:
            raise CharlmError("a vocabulary needs at least one symbol, and every character only once")
        if any(len(c) != 1 for c in self.characters) or not set(self.byte_symbols) <= set(range(256)):
            raise CharlmError("a vocabulary holds single characters and byte values below 256")
        if len(self) > MAX_SIZE:
            raise CharlmError(
                f"the vocabulary has {len(self):,} symbols and ids hold {MAX_SIZE:,}: "
                f"set vocab.max_size (characters beyond it are spelled in UTF-8 bytes) or vocab.coverage"
            )

    def __len__(self) -> int:
        return len(self.characters) + len(self.byte_symbols) + self.end_of_document

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocab) and self.to_dict() == other.to_dict()

    __hash__ = None

    def __repr__(self) -> str:
        end = ", end of document" if self.end_of_document else ""
        return f"Vocab({len(self.characters)} characters, {len(self.byte_symbols)} byte symbols{end})"

    @property
    def bytes_only(self) -> bool:
        """No characters: every byte is a symbol, whatever the bytes mean."""
        return not self.characters

    @property
    def dtype(self) -> np.dtype:
        """uint8 when the ids fit, else uint16."""
        return np.dtype(np.uint8 if len(self) <= 256 else np.uint16)

    @property
    def end(self) -> int | None:
        """Id of the end-of-document symbol."""
        return len(self) - 1 if self.end_of_document else None

    @classmethod
    def from_counts(cls, counts: np.ndarray, config: VocabConfig) -> Vocab:
        """Choose the characters. counts: int64[n], how often each code point occurs.

        With every limit off these are all characters that occur. Ties are broken by code point.
        Raises CharlmError when config.max_size is too small to spell any text at all.
        """
        if config.characters or config.bytes_only:
            return cls(config.characters, unknown=config.unknown, end_of_document=config.end_of_document)
        codes = np.flatnonzero(counts[:END])
        codes = codes[np.argsort(-counts[codes], kind="stable")]  # by count, then by code point
        if config.coverage < 1:
            reached = np.cumsum(counts[codes]) >= config.coverage * counts[codes].sum()
            codes = codes[: int(np.argmax(reached)) + 1]
        if config.max_size is not None:
            # Every ASCII character taken in spares its byte symbol; any other adds one symbol.
            k = np.arange(len(codes) + 1)
            size = k + config.end_of_document
            if config.unknown == "bytes":
                size += 128 + len(_BEYOND_ASCII) - np.concatenate([[0], np.cumsum(codes < 0x80)])
            keep = int(np.searchsorted(size, config.max_size, side="right")) - 1
            if keep < 1:
                raise CharlmError(
                    f"vocab.max_size={config.max_size}: spelling any text in bytes takes {size[0]} symbols; "
                    f"choose more, or vocab.bytes_only for bytes alone"
                )
            codes = codes[:keep]
        characters = map(chr, np.sort(codes).tolist())
        return cls(characters, unknown=config.unknown, end_of_document=config.end_of_document)

    # text → ids

    @cached_property
    def _of_code(self) -> np.ndarray:
        """uint16[END + 1]: the id of every code; UNKNOWN for none."""
        table = np.full(END + 1, UNKNOWN, np.uint16)
        if self.bytes_only:
            table[list(self.byte_symbols)] = np.arange(len(self.byte_symbols))
        else:
            table[[ord(c) for c in self.characters]] = np.arange(len(self.characters))
        if self.end_of_document:
            table[END] = self.end
        return table

    @cached_property
    def _of_byte(self) -> np.ndarray:
        """uint16[256]: the id of every byte symbol; UNKNOWN for none."""
        table = np.full(256, UNKNOWN, np.uint16)
        table[list(self.byte_symbols)] = len(self.characters) + np.arange(len(self.byte_symbols))
        return table

    def codes(self, utf8: np.ndarray) -> np.ndarray:
        """What this vocabulary works on: the bytes themselves if bytes-only, else code points (codes_of)."""
        return utf8 if self.bytes_only else codes_of(utf8)

    def encode_codes(self, codes: np.ndarray) -> np.ndarray:
        """Ids of codes. codes: uint8[n] or uint32[n]. Returns dtype[m], m ≥ n.

        Raises CharlmError for a character outside a closed vocabulary, with its place in codes.
        """
        ids = self._of_code[codes]
        unknown = ids == UNKNOWN
        if unknown.any():
            ids = self._spell(codes, ids, unknown)
        return ids.astype(self.dtype)

    def _spell(self, codes: np.ndarray, ids: np.ndarray, unknown: np.ndarray) -> np.ndarray:
        """Replace the unknown codes by the symbols of their UTF-8 bytes, in whole-array passes."""
        at = np.flatnonzero(unknown)
        lost = codes[at].astype(np.uint32)
        if self.unknown == "error" or lost[0] == END:
            what = name_of(chr(lost[0])) if lost[0] != END else "the end of a document"
            raise CharlmError(
                f"{what} at position {at[0]:,} is not in the closed vocabulary of {len(self)} symbols; "
                f"vocab.unknown=bytes would spell it in bytes"
            )
        utf8, length = _utf8_of(lost)
        width = np.ones(len(codes), np.int64)
        width[at] = length
        start = np.cumsum(width) - width
        out = np.empty(int(start[-1] + width[-1]), np.uint16)
        out[start] = ids
        for k in range(4):
            has = length > k
            out[start[at[has]] + k] = self._of_byte[utf8[has, k]]
        return out

    def holds(self, codes: np.ndarray) -> np.ndarray:
        """bool[n]: which codes have a symbol of their own."""
        return self._of_code[codes] != UNKNOWN

    def knows(self, codes: np.ndarray) -> bool:
        """Can all these codes be encoded?"""
        return self.unknown == "bytes" or bool(self.holds(codes).all())

    def histogram(self, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """int64[V]: how often each symbol occurs in text that holds these codes (uint32[n]) so often
        (int64[n])."""
        out = np.zeros(len(self), np.int64)
        ids = self._of_code[codes]
        known = ids != UNKNOWN
        np.add.at(out, ids[known], counts[known])
        utf8, length = _utf8_of(codes[~known])
        for k in range(4):
            has = length > k
            np.add.at(out, self._of_byte[utf8[has, k]], counts[~known][has])
        return out

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """What the compiled encoder looks symbols up in: ids uint16[END + 1] of codes, where UNKNOWN is
        none and ASCII is always some, and spelling uint16[256] of bytes."""
        ids = self._of_code.copy()
        lost = np.flatnonzero(ids[:0x80] == UNKNOWN)
        ids[lost] = self._of_byte[lost]
        return ids, self._of_byte

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of a text. bytes are for a bytes-only vocabulary, or UTF-8.

        Raises CharlmError for a character outside a closed vocabulary and for lone surrogates.
        """
        if isinstance(text, str):
            try:
                text = text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise CharlmError(
                    f"position {error.start} holds a lone surrogate ({error.object[error.start]!a}), "
                    f"which is not a character: the text was not read as UTF-8"
                ) from None
        return self.encode_codes(self.codes(np.frombuffer(text, np.uint8)))

    # ids → text

    @cached_property
    def spelling(self) -> list[bytes]:
        """The UTF-8 bytes of every symbol; empty for the end of a document."""
        characters = [c.encode("utf-8") for c in self.characters]
        return characters + [bytes([b]) for b in self.byte_symbols] + [b""] * self.end_of_document

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes that ids spell: exact for any corpus."""
        return b"".join(map(self.spelling.__getitem__, map(int, ids)))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text that ids spell; bytes that are not UTF-8 become U+FFFD."""
        if self.end is not None and self.end in (ids := list(map(int, ids))):
            text = self.stream()  # a document's end also ends a character's bytes
            return "".join(map(text, [*ids, None]))
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream(self, end: str = ""):
        """A function from one id to the text it completes ('' while a character's bytes are still coming).

        Called with None it returns what is left. end: shown for the end-of-document symbol.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def text_of(symbol: int | None) -> str:
            if symbol is None:
                return decoder.decode(b"", final=True)
            if symbol == self.end:
                return decoder.decode(b"", final=True) + end
            return decoder.decode(self.spelling[symbol])

        return text_of

    # what figures are counted in

    @cached_property
    def characters_per_symbol(self) -> np.ndarray:
        """uint8[V]: 1 for a character and for the lead byte of one, 0 for continuation bytes and for the
        end of a document. In a bytes-only vocabulary a byte is a character."""
        of_bytes = [1 if self.bytes_only else int(not 0x80 <= b < 0xC0) for b in self.byte_symbols]
        return np.array([1] * len(self.characters) + of_bytes + [0] * self.end_of_document, np.uint8)

    @cached_property
    def bytes_per_symbol(self) -> np.ndarray:
        """uint8[V]: UTF-8 length; 0 for the end of a document."""
        return np.array([len(s) for s in self.spelling], np.uint8)

    # files

    def to_dict(self) -> dict:
        """Plain values for vocab.json."""
        return {
            **FORMAT,
            "size": len(self),
            "unknown": self.unknown,
            "end_of_document": self.end_of_document,
            "byte_symbols": list(self.byte_symbols),
            "characters": list(self.characters),
        }

    @classmethod
    def from_dict(cls, tree: dict) -> Vocab:
        """The inverse of to_dict. Raises CharlmError for another format or version."""
        if not isinstance(tree, dict) or {k: tree.get(k) for k in FORMAT} != FORMAT:
            raise CharlmError(f"not a {FORMAT['format']} of version {FORMAT['version']}")
        vocab = cls(
            tree["characters"],
            tree["byte_symbols"],
            unknown=tree["unknown"],
            end_of_document=tree["end_of_document"],
        )
        if len(vocab) != tree["size"]:
            raise CharlmError(f"the vocabulary says size {tree['size']} and lists {len(vocab)} symbols")
        return vocab

    def save(self, path: str | Path) -> None:
        """Write vocab.json."""
        replace(path, json.dumps(self.to_dict(), ensure_ascii=False))

    @classmethod
    def load(cls, path: str | Path) -> Vocab:
        """Read a vocab.json, or the one in a folder. Raises CharlmError when it is missing or broken."""
        path = Path(path) / "vocab.json" if Path(path).is_dir() else Path(path)
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CharlmError(f"{path}: cannot be read as a vocabulary: {error}") from error


def _utf8_of(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The UTF-8 of code points uint32[n]: bytes uint8[n, 4], of which the first length int64[n] count."""
    length = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    utf8 = np.empty((len(codes), 4), np.uint8)
    lead = np.array([0, 0, 0xC0, 0xE0, 0xF0], np.uint32)[length]
    utf8[:, 0] = lead | (codes >> (6 * (length - 1)).astype(np.uint32))
    for k in range(1, 4):
        shift = (6 * np.maximum(length - 1 - k, 0)).astype(np.uint32)
        utf8[:, k] = 0x80 | ((codes >> shift) & 0x3F)
    return utf8, length


def _byte_symbols(characters: Sequence[str]) -> tuple[int, ...]:
    """The bytes that the UTF-8 of text holds outside these characters; all 256 when there are none."""
    if not characters:
        return tuple(range(256))
    known = set(characters)
    return (*(b for b in range(0x80) if chr(b) not in known), *_BEYOND_ASCII)
