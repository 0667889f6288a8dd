"""Benchmarks against the machine and against other ways: `python scripts/bench.py COMMAND`.

The commands are prepare, train, evaluate and sample.

The last three are in files of their own. Every figure of prepare is the median of some runs, each a process
of its own (so that its peak memory is its own), all on the same file in one call: compare the ratios, which
hold on a noisy machine, rather than the MB/s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SLICE = 20_000_000  # bytes of text that the slow ways are tried on


# the corpus


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


# the ways: each returns (bytes of text, seconds)


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
    from charlm.build import Build
    from charlm.corpus import folder_of

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
    from charlm.layout import Layout

    layout = Layout.load(build.partial) if build.laid_out else build.lay_out()
    return sum(layout.size(split)["bytes"] for split in layout.splits)


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
    from charlm.arrays import Arrays

    Arrays._sync = lambda self: self.written
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
    from charlm.config import to_yaml

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


def run_way(name: str, path: Path, workers: int, folder: Path) -> dict:
    """Run one way in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        command = [sys.executable, __file__, "--way", name, str(path), str(workers), beside]
        done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"bench: {name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def one_way(name: str, path: str, workers: str, beside: str) -> None:
    """In that process: print what was measured."""
    size, seconds = WAYS[name](Path(path), int(workers), Path(beside))
    status = Path("/proc/self/status").read_text()
    mine = int(
        status.partition("VmHWM:")[2].split()[0]
    )  # getrusage would count the parent's, from before exec
    theirs = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"bytes": size, "seconds": seconds, "peak_mb": max(mine, theirs) * 1024 / 1e6}))


def tell(line: str) -> None:
    """What is being measured, on a terminal."""
    if sys.stderr.isatty():
        print(line.ljust(79), end="\r", file=sys.stderr)


def prepare_bench(args: argparse.Namespace) -> None:
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(dir=args.dir, prefix="charlm-bench-") as folder:
        if args.file is None:
            path = Path(folder) / "synthetic.parquet"
            write_parquet(path, synthetic_documents(int(args.mb * 1e6)))
        elif args.file.suffix == ".parquet":
            path = args.file
        else:
            path = Path(folder) / "text.parquet"
            text = args.file.read_text(encoding="utf-8")
            write_parquet(path, (text[i : i + 3000] for i in range(0, len(text), 3000)))
        groups = pq.ParquetFile(path).metadata.num_row_groups
        counts = sorted({1, args.workers})
        plan = [(name, n) for name, way in WAYS.items() for n in (counts if way not in ALONE else [1])]
        if args.only:
            plan = [(name, n) for name, n in plan if args.only in name]
        runs: dict[tuple[str, int], list[dict]] = {way: [] for way in plan}
        for i in range(args.runs):  # in turn, so that a change of the machine's speed meets all alike
            for name, workers in plan:
                tell(f"run {i + 1}/{args.runs}: {name}, {workers}")
                runs[name, workers].append(run_way(name, path, workers, Path(folder)))
        tell("")
    rows = []
    for (name, workers), some in runs.items():
        speed = statistics.median(r["bytes"] / 1e6 / r["seconds"] for r in some)
        rows.append(
            {
                "way": name,
                "workers": workers,
                "mb_per_second": speed,
                "peak_mb": max(r["peak_mb"] for r in some),
                "bytes": some[0]["bytes"],
                "runs": some,
            }
        )
    result = {"file": str(args.file or f"synthetic, {args.mb:g} MB"), "row_groups": groups, "rows": rows}
    result |= {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    if args.json:
        args.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    print_table(result)


def print_table(result: dict) -> None:
    rows = {(row["way"], row["workers"]): row for row in result["rows"]}
    print(
        f"{result['file']}: {result['row_groups']} row groups; {result['cores']} cores, {result['machine']}"
    )
    print(f"{'':<40} {'workers':>7} {'MB/s':>7} {'of decode':>9} {'peak MB':>8}")
    for (way, workers), row in rows.items():
        limit = rows.get(("parquet decode alone", workers))
        share = f"{row['mb_per_second'] / limit['mb_per_second']:.2f}" if limit else ""
        print(f"{way:<40} {workers:>7} {row['mb_per_second']:>7.1f} {share:>9} {row['peak_mb']:>8.0f}")
    ours = [row for (way, _), row in rows.items() if way == "charlm, both passes"]
    for way in ("whole text, Python list (nanoGPT's way)", "datasets.map, Python dict"):
        theirs = [row for (name, _), row in rows.items() if name == way]
        if ours and theirs:
            ratio = ours[-1]["mb_per_second"] / theirs[-1]["mb_per_second"]
            print(f"both passes, {ours[-1]['workers']} workers, against {way}: {ratio:.1f} times as fast")
    if len(ours) > 1:
        print(
            f"both passes, {ours[-1]['workers']} workers against 1: "
            f"{ours[-1]['mb_per_second'] / ours[0]['mb_per_second']:.2f}"
        )


def add_model_commands(commands: argparse._SubParsersAction) -> None:
    """`sample`, `train` and `evaluate`, with what they measure by default."""
    sample = commands.add_parser("sample", help="drawing text, against the textbook loop and the machine")
    sample.add_argument("--hidden", type=int, nargs="+", default=[128, 512], help="hidden sizes (128 512)")
    sample.add_argument("--layers", type=int, nargs="+", default=[1], help="numbers of layers (1)")
    sample.add_argument("--streams", type=int, nargs="+", default=[1, 32], help="samples at once (1 32)")
    sample.add_argument("--length", type=int, default=1000, help="characters of each, in a round (1000)")
    sample.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    train = commands.add_parser("train", help="training, against the textbook loop and the machine")
    train.add_argument("--hidden", type=int, nargs="+", default=[256, 512], help="hidden sizes (256 512)")
    train.add_argument("--lanes", type=int, nargs="+", default=[16, 64], help="lanes of each size (16 64)")
    train.add_argument("--layers", type=int, default=1, help="layers (1)")
    train.add_argument("--bptt", type=int, default=64, help="characters per window (64)")
    train.add_argument("--steps", type=int, help="steps in a round (about half a second's)")
    train.add_argument("--cuda_graph", action="store_true", help="with train.cuda_graph")
    evaluate = commands.add_parser("evaluate", help="scoring, against the textbook loop and the machine")
    evaluate.add_argument("--hidden", type=int, nargs="+", default=[256, 512], help="hidden sizes (256 512)")
    evaluate.add_argument("--lanes", type=int, nargs="+", default=[32, 32], help="lanes of each (32 32)")
    evaluate.add_argument("--layers", type=int, default=1, help="layers (1)")
    evaluate.add_argument("--bptt", type=int, default=128, help="window of the textbook loop (128)")
    evaluate.add_argument("--length", type=int, default=6400, help="characters of each lane (6400)")
    for command in (train, evaluate):
        command.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (all)")
    for command in (sample, train, evaluate):
        command.add_argument("--cells", nargs="+", choices=["lstm", "gru", "rnn"], default=["lstm", "gru"])
        command.add_argument("--rounds", type=int, default=7, help="rounds, of which the median counts (7)")
        command.add_argument("--json", type=Path, help="write all figures to this file")


def model_bench(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """sample, train or evaluate. Imports torch, which the ways of preparing do without."""
    import bench_evaluate
    import bench_sample
    import bench_train
    import torch

    if args.command != "sample" and len(args.hidden) != len(args.lanes):
        parser.error(f"--hidden {args.hidden}, --lanes {args.lanes}: give as many lanes as hidden sizes")
    torch.set_num_threads(args.threads)
    benches = {
        "sample": bench_sample.sample_bench,
        "train": bench_train.train_bench,
        "evaluate": bench_evaluate.evaluate_bench,
    }
    benches[args.command](args)


def main() -> None:
    if sys.argv[1:2] == ["--way"]:
        one_way(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="counting, encoding, and the ways people do it today")
    prepare.add_argument(
        "file", nargs="?", type=Path, help="a .parquet or text file; else a synthetic corpus"
    )
    prepare.add_argument("--mb", type=float, default=100, help="size of the synthetic corpus in MB (100)")
    prepare.add_argument("--workers", type=int, default=os.cpu_count(), help="threads (all cores)")
    prepare.add_argument("--runs", type=int, default=3, help="runs of each way (3)")
    prepare.add_argument("--only", help="only the ways whose name has this in it")
    prepare.add_argument(
        "--dir", type=Path, help="where the files are made meanwhile (the system's temporary folder)"
    )
    prepare.add_argument("--json", type=Path, help="write all figures to this file")
    add_model_commands(commands)
    args = parser.parse_args()
    if args.command != "prepare":
        model_bench(parser, args)
        return
    if args.file is not None and not args.file.is_file():
        parser.error(f"{args.file}: no such file")
    prepare_bench(args)


if __name__ == "__main__":
    main()
