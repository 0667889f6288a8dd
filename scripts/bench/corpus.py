"""The made-up corpus of `bench.py prepare`, and how its file is written and read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np


def synthetic_documents(size: int) -> Iterator[str]:
    """Documents of about 3 kB in made-up words of nine scripts, most of them Latin, Zipf-distributed: so
    many bytes. The same ones every time. After 64 MB the documents come again in another order, under new
    numbers."""
    draw = np.random.default_rng(0)
    scripts = [(0x61, 26, 50), (0x430, 32, 10), (0x3B1, 25, 5), (0x5D0, 27, 5), (0x627, 36, 5)]
    scripts += [
        (0x905, 53, 5),
        (0x3042, 82, 5),
        (0x4E00, 3000, 10),
        (0x1F600, 64, 5),
    ]  # first, number, weight
    words = []
    for first, number, weight in scripts:
        lengths = draw.integers(1, 10 if number < 100 else 3, 20 * weight)
        words.append(["".join(map(chr, first + draw.integers(0, number, n))) for n in lengths])
    weights = np.array([weight for _, _, weight in scripts], float)
    block, filled = [], 0
    while filled < min(size, 64_000_000):
        script = words[int(draw.choice(len(scripts), p=weights / weights.sum()))]
        chosen = np.minimum(draw.zipf(1.2, 500), len(script)) - 1
        block.append(" ".join([script[i] for i in chosen]) + ".\n")
        filled += len(block[-1].encode("utf-8"))
    number = done = 0
    while True:
        for i in draw.permutation(len(block)):
            text = f"{number}\n{block[i]}"
            yield text
            number, done = number + 1, done + len(text.encode("utf-8"))
            if done >= size:
                return


def write_parquet(path: Path, documents: Iterator[str]) -> None:
    """Row groups of 1,000 documents, as Wikipedia's have on the Hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        group = []
        for text in documents:
            group.append(text)
            if len(group) == 1000:
                writer.write_table(pa.table({"text": group}))
                group = []
        if group:
            writer.write_table(pa.table({"text": group}))


def documents_of(path: Path, most: int) -> list[str]:
    """The first documents of a parquet file, so many bytes of them."""
    import pyarrow.parquet as pq

    texts, size = [], 0
    for batch in pq.ParquetFile(path).iter_batches(1000, columns=["text"]):
        for text in batch.column(0).to_pylist():
            texts.append(text or "")
            size += len(texts[-1].encode("utf-8"))
            if size >= most:
                return texts
    return texts
