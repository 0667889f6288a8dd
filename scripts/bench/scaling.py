"""Training on one and on two processes of this CPU, and what is to be expected of GPUs.

Every process has one thread and as many lanes as the others, so that two do twice the work. A step is timed
with and without averaging the gradients: what it takes longer with it is communication. The table for GPUs is
computed from a few figures and assumptions, which it names.
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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gpus
import torch
from rounds import positive, size_of, sync, tell

WARM_UP = 3
ALONE = 0  # processes: one, without a launcher


def worker(path: str) -> None:
    """In each process: print ms per step, [with communication, without] for every round, of rank 0."""
    from charlm.config.parse import load_config
    from charlm.training.loop import train_step
    from charlm.training.run import State
    from charlm.training.setup import make_accelerator, set_up

    about = json.loads(Path(path).read_text())
    config = load_config(about["config"])
    accelerator, state, rounds = make_accelerator(config), State(), []
    setup = set_up(config, accelerator, lambda line: None)

    def steps(count: int) -> float:
        accelerator.wait_for_everyone()
        sync()
        began = time.perf_counter()
        for _ in range(count):
            train_step(config, setup, state)
        sync()
        return (time.perf_counter() - began) * 1000 / count

    steps(WARM_UP)
    exchange = setup.step._exchange
    for _ in range(about["rounds"]):
        whole = steps(about["steps"])
        setup.step._exchange = lambda gradients: None
        rounds.append([whole, steps(about["steps"])])
        setup.step._exchange = exchange
    if accelerator.is_main_process:
        print(json.dumps({"rounds": rounds, "processes": accelerator.num_processes}))
    accelerator.end_training()


def config_file(cell: str, hidden: int, lanes: int, bptt: int, layers: int, folder: Path, **train) -> Path:
    """YAML for so many lanes in all."""
    from charlm.config.parse import from_dict, to_yaml

    text = folder / "text.txt"
    if not text.exists():
        length = 4_000_000 if torch.cuda.is_available() else 400_000
        text.write_bytes(bytes(32 + i * i * 7 % 95 for i in range(length)))
    data = {"source": "text", "data_files": str(text), "dir": str(folder), "split_by": "character"}
    config = from_dict(
        {
            "run_dir": str(folder / "run"),
            "data": data | {"validation": 0, "test": 0},
            "vocab": {"unknown": "error"},
            "model": {"cell": cell, "embedding_size": 64, "hidden_size": hidden, "num_layers": layers},
            "train": {"batch_size": lanes, "bptt": bptt, **train},
        }
    )
    path = folder / f"{cell}-{hidden}-{lanes}.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


def launch(
    processes: int, path: Path, args: argparse.Namespace, folder: Path, **variables
) -> list[list[float]]:
    """The rounds of a worker on so many processes."""
    about = folder / "about.json"
    about.write_text(json.dumps({"config": str(path), "rounds": args.rounds, "steps": args.steps}))
    words = [sys.executable, __file__, str(about)]
    if processes != ALONE:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        words[1:1] = torchrun
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | variables)
    if done.returncode:
        sys.exit(f"bench: {processes} processes failed:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["processes"] == max(processes, 1)  # some launchers silently start one
    return result["rounds"]


def measured(cell: str, hidden: int, lanes: int, bptt: int, layers: int, args, folder: Path) -> dict:
    """A row: one process and several in turn, so many times; on a GPU one alone and one under a launcher."""
    gpu = torch.cuda.is_available()
    counts = [ALONE, 1] if gpu else [1, *args.processes]
    train = {"precision": "bf16"} if gpu else {"threads": 1}
    rounds: dict[int, list] = {n: [] for n in counts}
    name = f"{cell} {f'{layers} × ' if layers > 1 else ''}{hidden}, {lanes} × {bptt}"
    for number in range(args.runs):
        for processes in counts:
            tell(f"{name}: {processes or 'no launcher, 1'} process(es), run {number + 1}/{args.runs}")
            in_all = lanes * max(processes, 1)
            path = config_file(cell, hidden, in_all, bptt, layers, folder, **train)
            variables = {} if gpu else {"OMP_NUM_THREADS": "1"}
            rounds[processes] += launch(processes, path, args, folder, **variables)
    tell("")
    whole = {n: statistics.median(r[0] for r in some) for n, some in rounds.items()}
    silent = {n: statistics.median(r[1] for r in some) for n, some in rounds.items()}
    speeds = {n: max(n, 1) * lanes * bptt / whole[n] * 1000 for n in rounds}
    return {
        "name": name,
        "step_ms": whole,
        "without_communication_ms": silent,
        "communication": {n: max(0.0, 1 - silent[n] / whole[n]) for n in counts},  # share of a step
        "characters_per_second": speeds,
        "times_first": {n: speeds[n] / speeds[counts[0]] for n in counts},
        "rounds": rounds,
    }


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that keep a core busy each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()


def beside(cell: str, hidden: int, lanes: int, bptt: int, layers: int, args, folder: Path) -> list[dict]:
    """A row for a quiet machine and one beside other work: one thread and charlm's choice, in turn."""
    name, rows = f"{cell} {hidden}, {lanes} × {bptt}", []
    for threads in (1, None):
        (folder / str(threads)).mkdir(exist_ok=True)
    paths = {
        threads: config_file(cell, hidden, lanes, bptt, layers, folder / str(threads), threads=threads)
        for threads in (1, None)
    }
    for others in (0, args.beside):
        speeds: dict = {threads: [] for threads in paths}
        with busy(others):
            for number in range(args.runs):
                for threads, path in paths.items():
                    tell(f"{name}, {others} busy: threads {threads or 'as chosen'}, {number + 1}/{args.runs}")
                    steps = [whole for whole, _ in launch(ALONE, path, args, folder)]
                    speeds[threads] += [lanes * bptt / step * 1000 for step in steps]
        tell("")
        one, chosen = (statistics.median(some) for some in speeds.values())
        rounds = [c / o for o, c in zip(speeds[1], speeds[None], strict=True)]
        figures = {"one_thread": one, "chosen": chosen, "times": statistics.median(rounds)}
        rows.append({"name": f"{name}, beside {others} busy", **figures, "ratios": rounds})
    return rows


def main(words: list[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="bench.py scaling", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--cells", nargs="+", choices=["lstm", "gru", "rnn"], default=["lstm"], help="(lstm)")
    small, large = [(256, 16, 64), (512, 64, 64)], [(512, 64, 128), (1024, 256, 128), (2048, 256, 128)]
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=lambda text: size_of(text, 3),
        default=large if torch.cuda.is_available() else small,
        metavar="HIDDENxLANESxWINDOW",
        help="lanes: of each process (256x16x64 512x64x64; on a GPU 512x64x128 1024x256x128 2048x256x128)",
    )
    parser.add_argument("--layers", type=positive, default=1, help="of the network (1)")
    parser.add_argument("--processes", nargs="+", type=positive, default=[2], help="beside one, on a CPU (2)")
    parser.add_argument("--beside", type=positive, help="measure beside so many busy processes instead")
    parser.add_argument("--steps", type=positive, default=5, help="in a round (5)")
    parser.add_argument("--rounds", type=positive, default=2, help="in a process (2)")
    parser.add_argument("--runs", type=positive, default=3, help="of each number of processes (3)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as folder:
        work = [(cell, *size, args.layers, args, Path(folder)) for cell in args.cells for size in args.sizes]
        rows = (
            [row for some in work for row in beside(*some)] if args.beside else [measured(*w) for w in work]
        )
    device = "GPU" if torch.cuda.is_available() else f"{os.cpu_count()} cores, CPU"
    content = {"command": "scaling", "rows": rows, "torch": torch.__version__, "device": device}
    content |= {"machine": platform.machine(), "computed": gpus.rows(), "assumed": gpus.ASSUMED}
    if args.json:
        args.json.write_text(json.dumps(content, indent=2), encoding="utf-8")
    print(f"torch {torch.__version__}, {device}; medians; characters/s of all processes")
    if args.beside:
        print(f"{'':<34}{'1 thread':>14}{'as chosen':>14}{'× 1 thread':>14}")
        for row in rows:
            print(f"{row['name']:<34}{row['one_thread']:>14,.0f}{row['chosen']:>14,.0f}{row['times']:>14.2f}")
        return
    print(f"{'':<20}{'processes':>12}{'ms/step':>12}{'communication':>15}{'chars/s':>14}{'× first':>9}")
    for row in rows:
        for n, milliseconds in row["step_ms"].items():
            figures = f"{milliseconds:>12,.1f}{row['communication'][n]:>15.0%}"
            speed = f"{row['characters_per_second'][n]:>14,.0f}{row['times_first'][n]:>9.2f}"
            print(f"{row['name']:<20}{n or 'alone':>12}{figures}{speed}")
    print()
    gpus.print_table(content["computed"])


if __name__ == "__main__":
    worker(sys.argv[1])
