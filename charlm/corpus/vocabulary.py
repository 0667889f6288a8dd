"""Vocab: characters, and UTF-8 bytes for all other characters, so that any text round-trips.

Symbol ids, in this order:

    0 … C-1          characters, by code point (or in the order given)
    C … C+K-1        byte symbols: the bytes that can occur in the UTF-8 of other characters
    C+K              end of document, if vocab.end_of_document

Text is processed as arrays of *codes*: the code point of each character (in a bytes-only vocabulary, each
byte), and END where a document ends.
"""

from __future__ import annotations

import codecs
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from charlm.checked import Count, mismatch, read
from charlm.config.checks import Normalize
from charlm.config.fields import VocabConfig
from charlm.errors import CharlmError
from charlm.files import replace

END = 0x110000  # the code of the end of a document: one past the last code point
UNKNOWN = 0xFFFF  # in lookup tables: no symbol
MAX_SIZE = 0xFFFF  # ids are stored in 16 bits, and one value is UNKNOWN
FORMAT = {"format": "charlm vocabulary", "version": 1}
FIELDS = ("unknown", "end_of_document", "byte_symbols", "characters")  # of Vocab, in vocab.json
OPTIONAL = ("normalize", "unseen", "first")  # there only where they hold something
SHAPE = FORMAT | {"size": Count, "unknown": Literal["bytes", "error"], "end_of_document": bool}
SHAPE |= {"byte_symbols": list[int], "characters": list[str], "normalize?": (Normalize, None)}
SHAPE |= dict.fromkeys(("unseen?", "first?"), list[Count])

# The bytes of UTF-8 beyond ASCII: continuation 80–BF, lead C2–F4 (The Unicode Standard, table 3-7).
_BEYOND_ASCII = (*range(0x80, 0xC0), *range(0xC2, 0xF5))


def name_of(character: str) -> str:
    """'é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE): a character in errors and reports."""
    name = unicodedata.name(character, "")
    return f"{character!r} (U+{ord(character):04X}{' ' + name if name else ''})"


def codes_of(utf8: np.ndarray) -> np.ndarray:
    """Code points of UTF-8 (uint8[n]): utf8 itself if all of it is ASCII, else uint32[characters]. Raises
    UnicodeDecodeError, with the byte offset, if it is not UTF-8."""
    if utf8.size == 0 or utf8.max() < 0x80:
        return utf8
    return np.frombuffer(str(utf8.data, "utf-8").encode("utf-32-le"), np.uint32)


@dataclass(repr=False)
class Vocab:
    """A set of symbols; encodes text to ids and decodes ids to text.

    characters: in id order. byte_symbols: the byte values that have a symbol; None for every byte that the
    UTF-8 of another character can contain. normalize: of data, for text to encode. unseen, first: ids that
    the training text lacks, and those that begin it and its first lines; for sampling, so not compared.
    Raises CharlmError for no symbols, for more than MAX_SIZE, and for characters that repeat.
    """

    characters: Iterable[str]
    byte_symbols: Iterable[int] | None = None
    _: KW_ONLY
    unknown: str = "bytes"
    end_of_document: bool = False
    normalize: Sequence[str] | None = None
    unseen: Sequence[int] = field(default=(), compare=False)
    first: Sequence[int] = field(default=(), compare=False)

    def __post_init__(self):
        self.characters = tuple(self.characters)
        distinct = set(self.characters)
        if self.byte_symbols is None and self.unknown == "error":
            self.byte_symbols = ()
        elif self.byte_symbols is None:
            free = (byte for byte in range(0x80) if chr(byte) not in distinct)
            self.byte_symbols = (*free, *_BEYOND_ASCII) if distinct else range(256)
        self.byte_symbols = tuple(self.byte_symbols)
        if len(distinct) < len(self.characters) or len(self) == 0:
            raise CharlmError("a vocabulary needs at least one symbol, and every character only once")
        if any(len(c) != 1 for c in self.characters) or not set(self.byte_symbols) <= set(range(256)):
            raise CharlmError("a vocabulary holds single characters and byte values below 256")
        if len(self) > MAX_SIZE:
            advice = "set vocab.max_size (characters beyond it are spelled in UTF-8 bytes) or vocab.coverage"
            raise CharlmError(f"the vocabulary has {len(self):,} symbols and ids hold {MAX_SIZE:,}: {advice}")

    def __len__(self) -> int:
        return len(self.characters) + len(self.byte_symbols) + self.end_of_document

    def __repr__(self) -> str:
        end = ", end of document" if self.end_of_document else ""
        return f"Vocab({len(self.characters)} characters, {len(self.byte_symbols)} byte symbols{end})"

    @property
    def bytes_only(self) -> bool:
        """True without characters: every byte is a symbol, and text need not be UTF-8."""
        return not self.characters

    @property
    def dtype(self) -> np.dtype:
        """Of ids: uint8 if they fit, else uint16."""
        return np.dtype(np.uint8 if len(self) <= 256 else np.uint16)

    @property
    def end(self) -> int | None:
        """Id of the end-of-document symbol; None without one."""
        return len(self) - 1 if self.end_of_document else None

    @classmethod
    def from_counts(cls, counts: np.ndarray, config: VocabConfig) -> Vocab:
        """Choose characters by frequency, ties by code point; without max_size and coverage all that occur.
        counts: int64[n], how often each code point occurs. Raises CharlmError if config.max_size is too small
        for the byte symbols and one character."""
        if config.characters or config.bytes_only:
            return cls(config.characters, unknown=config.unknown, end_of_document=config.end_of_document)
        codes = np.flatnonzero(counts[:END])
        codes = codes[np.argsort(-counts[codes], kind="stable")]  # by count, then by code point
        if config.coverage < 1:
            reached = np.cumsum(counts[codes]) >= config.coverage * counts[codes].sum()
            codes = codes[: int(np.argmax(reached)) + 1]
        if config.max_size is not None:
            # An ASCII character replaces its byte symbol; any other character adds one symbol.
            size = np.arange(len(codes) + 1) + config.end_of_document
            if config.unknown == "bytes":
                size += 128 + len(_BEYOND_ASCII) - np.concatenate([[0], np.cumsum(codes < 0x80)])
            keep = int(np.searchsorted(size, config.max_size, side="right")) - 1
            needed = f"spelling any text in bytes takes {size[0]} symbols"
            advice = f"{needed}; set more, or vocab.bytes_only=true for bytes alone"
            config.require(keep > 0, "max_size", advice)
            codes = codes[:keep]
        characters = map(chr, np.sort(codes).tolist())
        return cls(characters, unknown=config.unknown, end_of_document=config.end_of_document)

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids of codes, uint16[END + 1], and of bytes, uint16[256]; UNKNOWN where there is none."""
        of_byte = np.full(256, UNKNOWN, np.uint16)
        of_byte[list(self.byte_symbols)] = len(self.characters) + np.arange(len(self.byte_symbols))
        of_code = np.full(END + 1, UNKNOWN, np.uint16)
        single = 256 if self.bytes_only else 0x80  # codes that are one byte
        of_code[:single] = of_byte[:single]
        of_code[list(map(ord, self.characters))] = np.arange(len(self.characters))
        if self.end_of_document:
            of_code[END] = self.end
        return of_code, of_byte

    def encode_codes(self, codes: np.ndarray) -> np.ndarray:
        """Ids of codes. codes: uint8[n] or uint32[n]. Returns dtype[m], m ≥ n. Raises CharlmError for a
        character outside a closed vocabulary, with its position in codes."""
        if not self.can_encode(codes):
            at = int(np.argmax(self.tables[0][codes] == UNKNOWN))
            outside = f"{name_of(chr(codes[at]))} at position {at:,}"
            problem = f"{outside} is not in the closed vocabulary of {len(self)} symbols"
            raise CharlmError(f"{problem}; vocab.unknown=bytes would spell it in bytes")
        symbols = self._symbols(codes)
        return symbols[symbols != UNKNOWN].astype(self.dtype)

    def _symbols(self, codes: np.ndarray) -> np.ndarray:
        """uint16[n, 1 or 4]: the symbol of each code, or those of its UTF-8 bytes; UNKNOWN in the rest."""
        symbols = self.tables[0][codes][:, None]
        missing = np.flatnonzero(symbols == UNKNOWN)
        if missing.size:
            codes = codes[missing].astype("<u4")
            utf8 = np.frombuffer(codes.tobytes().decode("utf-32-le").encode("utf-8"), np.uint8)
            length = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
            symbols = np.pad(symbols, ((0, 0), (0, 3)), constant_values=UNKNOWN)
            rows, columns = np.nonzero(np.arange(4) < length[:, None])
            symbols[missing[rows], columns] = self.tables[1][utf8]
        return symbols

    def holds(self, codes: np.ndarray) -> np.ndarray:
        """bool[n]: which codes, END excepted, have a symbol of their own."""
        return self.tables[0][codes] < (len(self.characters) or 256)

    def can_encode(self, codes: np.ndarray) -> bool:
        """True if every code has a symbol or can be spelled in bytes."""
        return self.unknown == "bytes" or UNKNOWN not in self.tables[0][codes]

    def histogram(self, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """int64[V]: how often each symbol occurs, if codes (uint32[n]) occur counts (int64[n]) times."""
        histogram, symbols = np.zeros(len(self), np.int64), self._symbols(codes)
        used = symbols != UNKNOWN
        np.add.at(histogram, symbols[used], counts.repeat(used.sum(1)))
        return histogram

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of a text, dtype[n]. bytes must be UTF-8 unless the vocabulary is bytes-only. Raises
        CharlmError for a character outside a closed vocabulary and for lone surrogates."""
        try:
            text = self.normalized(text) if self.normalize else text
            text = text.encode("utf-8") if isinstance(text, str) else text
        except UnicodeEncodeError as error:
            surrogate = f"a lone surrogate ({error.object[error.start]!a}), which is not a character"
            problem = f"position {error.start} holds {surrogate}"
            raise CharlmError(f"{problem}: the text was not read as UTF-8") from None
        utf8 = np.frombuffer(text, np.uint8)
        return self.encode_codes(utf8 if self.bytes_only else codes_of(utf8))

    def normalized(self, text: str | bytes) -> str:
        """A text as the training text was normalized. Raises UnicodeError for what is not UTF-8."""
        import pyarrow as pa

        from charlm.corpus.texts import normalized  # here: few vocabularies need it

        text = str(text, "utf-8") if isinstance(text, bytes) else text
        return normalized(pa.array([text], pa.large_string()), self.normalize or ())[0].as_py()

    @cached_property
    def spelling(self) -> list[bytes]:
        """The UTF-8 bytes of every symbol; empty for the end of a document."""
        characters = [c.encode("utf-8") for c in self.characters]
        return characters + [bytes([b]) for b in self.byte_symbols] + [b""] * self.end_of_document

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes that ids spell, also where they are not UTF-8."""
        return b"".join(np.array(self.spelling, object)[np.asarray(ids, np.int64)])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text that ids spell; bytes that are not UTF-8 become U+FFFD."""
        if self.end is None:  # five times as fast
            return self.decode_bytes(ids).decode("utf-8", "replace")
        return "".join(map(self.stream(), [*map(int, ids), None]))

    def stream(self, end: str = ""):
        """A function from an id to the text that it completes: '' until all bytes of a character are there,
        the rest for None. end: the text of the end-of-document symbol."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def text_of(symbol: int | None) -> str:
            if symbol is None:
                return decoder.decode(b"", final=True)
            last = bool(symbol == self.end)
            return decoder.decode(self.spelling[symbol], final=last) + end * last

        return text_of

    @cached_property
    def characters_per_symbol(self) -> np.ndarray:
        """uint8[V]: 1 for characters, lead bytes and all bytes of a bytes-only vocabulary, else 0."""
        of_bytes = [1 if self.bytes_only else int(not 0x80 <= b < 0xC0) for b in self.byte_symbols]
        return np.array([1] * len(self.characters) + of_bytes + [0] * self.end_of_document, np.uint8)

    @cached_property
    def bytes_per_symbol(self) -> np.ndarray:
        """uint8[V]: UTF-8 length; 0 for the end of a document."""
        return np.array([*map(len, self.spelling)], np.uint8)

    def to_dict(self) -> dict:
        """The content of vocab.json."""
        optional = {name: value for name in OPTIONAL if (value := getattr(self, name))}
        return FORMAT | {"size": len(self)} | {name: getattr(self, name) for name in FIELDS} | optional

    @classmethod
    def from_dict(cls, tree: dict) -> Vocab:
        """The inverse of to_dict. Raises CharlmError for another format or version."""
        if found := mismatch(tree, SHAPE):
            raise CharlmError(f"not a {FORMAT['format']} of version {FORMAT['version']}: {found}")
        vocab = cls(**{name: tree[name] for name in (*FIELDS, *OPTIONAL) if name in tree})
        if len(vocab) != tree["size"] or max((*vocab.unseen, *vocab.first), default=0) >= len(vocab):
            problem = f"lists {len(vocab)} symbols, or ids beyond them"
            raise CharlmError(f"the vocabulary has size {tree['size']} but {problem}")
        return vocab

    def save(self, path: str | Path) -> None:
        """Write vocab.json."""
        replace(path, json.dumps(self.to_dict(), ensure_ascii=False))

    @classmethod
    def load(cls, path: str | Path) -> Vocab:
        """Read a vocab.json, or the one in a folder. Raises CharlmError if it is missing or damaged."""
        path = Path(path) / "vocab.json" if Path(path).is_dir() else Path(path)
        return read(path, problem="cannot be read as a vocabulary", make=cls.from_dict)
