"""What the compiled loops of kernels.py compute, one character at a time in plain Python.

Slow and obvious: the tests hold the fast code to this. A document here is its text, whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from charlm.corpus.vocabulary import Vocab


def count(documents: Sequence[bytes], bytes_only: bool) -> Counter[int]:
    """How often each code (code point; byte if bytes_only) occurs, without anything between documents.

    Raises UnicodeDecodeError for a document that is not UTF-8, unless bytes_only.
    """
    counts: Counter[int] = Counter()
    for document in documents:
        counts.update(document if bytes_only else map(ord, document.decode("utf-8")))
    return counts


def encode(documents: Sequence[bytes], vocab: Vocab, separator: str = "") -> list[int]:
    """Ids of the documents of one split: with the end-of-document symbol after each where the vocabulary has
    one, else with the separator between two. Characters without a symbol are spelled in the symbols of their
    UTF-8 bytes."""
    of_character = {c: i for i, c in enumerate(vocab.characters)}
    of_byte = {b: len(vocab.characters) + i for i, b in enumerate(vocab.byte_symbols)}
    ids: list[int] = []

    def add(text: bytes) -> None:
        for unit in text if vocab.bytes_only else text.decode("utf-8"):
            if unit in of_character:
                ids.append(of_character[unit])
            else:
                ids.extend(of_byte[b] for b in ([unit] if vocab.bytes_only else unit.encode("utf-8")))

    for number, document in enumerate(documents):
        if number and not vocab.end_of_document:
            add(separator.encode("utf-8"))
        add(document)
        if vocab.end_of_document:
            ids.append(vocab.end)
    return ids
