"""The ways of preparing a corpus that `bench.py prepare` compares, each run as a process of its own:

    python scripts/bench/ways.py NAME FILE WORKERS FOLDER

A way is given a parquet file, a number of threads and an empty folder, and returns bytes of text and seconds.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from corpus import documents_of, write_parquet

SLICE = 20_000_000  # bytes of text that the slow ways are tried on


def plain_read(path: Path, workers: int, beside: Path) -> tuple[int, float]:
    began, size = time.perf_counter(), 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(8 << 20):
            size += len(block)
    return size, time.perf_counter() - began


def memory_copy(path: Path, workers: int, beside: Path) -> tuple[int, float]:
    block, room = np.ones(64 << 20, np.uint8), np.zeros(64 << 20, np.uint8)
    began = time.perf_counter()
    for _ in range(8):
        np.copyto(room, block)
    return 8 * block.nbytes, time.perf_counter() - began


def parquet_decode(path: Path, workers: int, beside: Path) -> tuple[int, float]:
    """What reading costs before anything is done with the text: the limit of each pass."""
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(path).metadata
    groups = range(metadata.num_row_groups)

    def decode(some: list[int]) -> int:
        file = pq.ParquetFile(path, metadata=metadata)
        batches = file.iter_batches(4096, some, columns=["text"], use_threads=False)
        return sum(batch.column(0).buffers()[2].size for batch in batches)

    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        parts = [list(groups[i : i + 4]) for i in range(0, len(groups), 4)]
        return sum(pool.map(decode, parts)), time.perf_counter() - began


def write_ids(path: Path, workers: int, beside: Path) -> tuple[int, float]:
    """Two bytes for every character of the text, written and synced, and nothing else: what any encoder that
    keeps its ids takes."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    texts = pq.read_table(path, columns=["text"]).column(0)
    size, left = (int(pc.sum(count(texts)).as_py()) for count in (pc.binary_length, pc.utf8_length))
    block = np.ones(2 << 20, np.uint16)
    began = time.perf_counter()
    with open(beside / "ids.bin", "wb", buffering=0) as file:
        while left > 0:
            file.write(block[:left])
            left -= len(block)
        os.fsync(file.fileno())
    return size, time.perf_counter() - began


def our_config(path: Path, workers: int, beside: Path):
    from charlm import load_config

    words = [f"data.data_files={path}", f"data.dir={beside}", f"data.workers={workers}"]
    return load_config(
        None, "data.source=parquet", *words, "vocab.max_size=1024", "vocab.end_of_document=true"
    )


def our_build(path: Path, workers: int, beside: Path):
    """The build of the file, opened; what is compiled is loaded."""
    from charlm import load_config, prepare
    from charlm.corpus.build import Build
    from charlm.corpus.prepared import folder_of

    tiny = [
        "data.source=literal",
        "data.text=abc",
        "data.validation=0",
        "data.test=0",
        f"data.dir={beside}/tiny",
    ]
    prepare(load_config(None, *tiny, "vocab.max_size=1024"))
    config = our_config(path, workers, beside)
    build = Build(config, folder_of(config))
    build.open()
    return build


def our_bytes(build) -> int:
    from charlm.corpus.layout import Layout

    layout = Layout.load(build.partial) if build.laid_out else build.lay_out()
    return sum(size["bytes"] for size in layout.sizes.values())


def our_count(path: Path, workers: int, beside: Path) -> tuple[int, float]:
    build = our_build(path, workers, beside)
    build.count()
    return our_bytes(build), build.seconds["count"]


def our_encode(path: Path, workers: int, beside: Path) -> tuple[int, float]:
    """sha256 of the ids, and the wait until they are on the disk, included."""
    build = our_build(path, workers, beside)
    build.step()
    return our_bytes(build), build.seconds["encode"]


def our_encode_unsynced(path: Path, workers: int, beside: Path) -> tuple[int, float]:
    """The same without waiting for the disk: what the processors take."""
    from charlm.corpus.layout import IdWriter

    IdWriter._sync = lambda self, pieces: None
    return our_encode(path, workers, beside)


def our_passes(path: Path, workers: int, beside: Path) -> tuple[int, float]:
    """From an opened file to whole arrays on the disk: what the other ways do."""
    build = our_build(path, workers, beside)
    began = time.perf_counter()
    build.step()
    return our_bytes(build), time.perf_counter() - began


def our_command(path: Path, workers: int, beside: Path) -> tuple[int, float]:
    """`charlm prepare` as a process: imports, floors and all."""
    from charlm import prepare
    from charlm.config.parse import to_yaml

    config = our_config(path, workers, beside)
    (beside / "bench.yaml").write_text(to_yaml(config), encoding="utf-8")
    began = time.perf_counter()
    command = [sys.executable, "-m", "charlm", "prepare", "--config", str(beside / "bench.yaml")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return prepare(config).info["bytes"], time.perf_counter() - began


def counter(path: Path, workers: int, beside: Path) -> tuple[int, float]:
    """collections.Counter over the characters: a count alone."""
    texts = documents_of(path, SLICE)
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return sum(len(t.encode("utf-8")) for t in texts), time.perf_counter() - began


def whole_text(path: Path, workers: int, beside: Path) -> tuple[int, float]:
    """As nanoGPT prepares its characters: the whole text as one string, a set, a dict, a list of ints."""
    began = time.perf_counter()
    text = "".join(documents_of(path, SLICE))
    of_character = {c: i for i, c in enumerate(sorted(set(text)))}
    cut = int(len(text) * 0.9)
    for name, part in (("train", text[:cut]), ("val", text[cut:])):
        np.array([of_character[c] for c in part], np.uint16).tofile(beside / f"{name}.bin")
    return len(text.encode("utf-8")), time.perf_counter() - began


def datasets_map(path: Path, workers: int, beside: Path) -> tuple[int, float]:
    """`datasets.map` with a Python dict per character, then the rows into one array."""
    import datasets

    datasets.disable_progress_bars()
    small = beside / "slice.parquet"
    texts = documents_of(path, SLICE)
    write_parquet(small, iter(texts))
    began = time.perf_counter()
    rows = datasets.load_dataset(
        "parquet", data_files=str(small), split="train", cache_dir=str(beside / "cache")
    )
    alphabet = sorted(set().union(*(set(text) for text in rows["text"])))
    of_character = {c: i for i, c in enumerate(alphabet)}

    def encode(row: dict) -> dict:
        return {"ids": [of_character[c] for c in row["text"]], "length": len(row["text"])}

    encoded = rows.map(encode, remove_columns=["text"], num_proc=workers)
    out = np.memmap(beside / "train.bin", np.uint16, "w+", shape=(sum(encoded["length"]),))
    at = 0
    for batch in encoded.with_format("numpy").iter(1000):
        ids = np.concatenate(list(batch["ids"]))
        out[at : at + len(ids)] = ids
        at += len(ids)
    out.flush()
    return sum(len(t.encode("utf-8")) for t in texts), time.perf_counter() - began


WAYS: dict[str, Callable[[Path, int, Path], tuple[int, float]]] = {
    "plain read of the file": plain_read,
    "memory copy": memory_copy,
    "parquet decode alone": parquet_decode,
    "writing 16-bit ids alone": write_ids,
    "charlm, counting pass": our_count,
    "charlm, encoding pass": our_encode,
    "the same, not waiting for the disk": our_encode_unsynced,
    "charlm, both passes": our_passes,
    "charlm prepare, the command": our_command,
    "collections.Counter, count alone": counter,
    "whole text, Python list (nanoGPT's way)": whole_text,
    "datasets.map, Python dict": datasets_map,
}
ALONE = {
    plain_read,
    memory_copy,
    write_ids,
    counter,
    whole_text,
}  # by one thread, whatever the number of workers


def one_way(name: str, path: str, workers: str, beside: str) -> None:
    """In that process: print what was measured."""
    size, seconds = WAYS[name](Path(path), int(workers), Path(beside))
    status = Path("/proc/self/status").read_text()
    mine = int(
        status.partition("VmHWM:")[2].split()[0]
    )  # getrusage would count the parent's, from before exec
    theirs = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"bytes": size, "seconds": seconds, "peak_mb": max(mine, theirs) * 1024 / 1e6}))


if __name__ == "__main__":
    one_way(*sys.argv[1:])
