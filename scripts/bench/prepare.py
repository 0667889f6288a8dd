"""Preparing a corpus against the machine and against the ways it is usually done.

Every figure is the median of some runs, each a process of its own (so that its peak memory is its own), all
on the same file in one call: compare the ratios, which hold on a noisy machine, rather than the MB/s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from corpus import synthetic_documents, write_parquet
from ways import ALONE, WAYS

PROGRAM = Path(__file__).with_name("ways.py")


def run_way(name: str, path: Path, workers: int, folder: Path) -> dict:
    """Run one way in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        command = [sys.executable, str(PROGRAM), name, str(path), str(workers), beside]
        done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"bench: {name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


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


def main(words: list[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="bench.py prepare", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="a .parquet or text file; else a synthetic corpus")
    parser.add_argument("--mb", type=float, default=100, help="size of the synthetic corpus in MB (100)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads (all cores)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each way (3)")
    parser.add_argument("--only", help="only the ways whose name has this in it")
    parser.add_argument(
        "--dir", type=Path, help="where the files are made meanwhile (the system's temporary folder)"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args(words)
    if args.file is not None and not args.file.is_file():
        parser.error(f"{args.file}: no such file")
    ways = [name for name in WAYS if (args.only or "") in name]
    if not ways:
        parser.error(f"--only {args.only!r}: in the name of no way ({', '.join(WAYS)})")
    prepare_bench(args)
