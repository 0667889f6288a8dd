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
from pathlib import Path

import gpus
import torch
from rounds import positive, size_of, tell

WARM_UP = 3


def worker(path: str) -> None:
    """In each process: print ms per step, [with communication, without] for every round, of rank 0."""
    from charlm.config.parse import load_config
    from charlm.training.loop import train_step
    from charlm.training.run import State
    from charlm.training.setup import make_accelerator, set_up

    told = json.loads(Path(path).read_text())
    config = load_config(told["config"])
    accelerator, state, rounds = make_accelerator(config), State(), []
    setup = set_up(config, accelerator, lambda line: None)

    def steps(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            train_step(config, setup, state)
        return (time.perf_counter() - began) * 1000 / count

    steps(WARM_UP)
    for _ in range(told["rounds"]):
        accelerator.wait_for_everyone()
        whole = steps(told["steps"])
        accelerator.wait_for_everyone()
        with accelerator.no_sync(setup.step.wrapped):
            rounds.append([whole, steps(told["steps"])])
    if accelerator.is_main_process:
        print(json.dumps({"rounds": rounds, "processes": accelerator.num_processes}))
    accelerator.end_training()


def config_file(cell: str, hidden: int, lanes: int, bptt: int, folder: Path) -> Path:
    """YAML for so many lanes in all."""
    from charlm.config.parse import from_dict, to_yaml

    text = folder / "text.txt"
    if not text.exists():
        text.write_bytes(bytes(32 + i * i * 7 % 95 for i in range(400_000)))
    data = {"source": "text", "data_files": str(text), "dir": str(folder), "split_by": "character"}
    config = from_dict(
        {
            "run_dir": str(folder / "run"),
            "data": data | {"validation": 0, "test": 0},
            "vocab": {"unknown": "error"},
            "model": {"cell": cell, "embedding_size": 64, "hidden_size": hidden},
            "train": {"batch_size": lanes, "bptt": bptt, "threads": 1},
        }
    )
    path = folder / f"{cell}-{hidden}-{lanes}.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


def launch(processes: int, path: Path, args: argparse.Namespace, folder: Path) -> list[list[float]]:
    """The rounds of a worker on so many processes."""
    about = folder / "about.json"
    about.write_text(json.dumps({"config": str(path), "rounds": args.rounds, "steps": args.steps}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, str(processes), __file__, str(about)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        sys.exit(f"bench: {processes} processes failed:\n{done.stderr}")
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["processes"] == processes  # some launchers silently start one
    return told["rounds"]


def measured(cell: str, hidden: int, lanes: int, bptt: int, args, folder: Path) -> dict:
    """A row: one process and two in turn, so many times."""
    rounds: dict[int, list] = {1: [], 2: []}
    name = f"{cell} {hidden}, {lanes} × {bptt}"
    for number in range(args.runs):
        for processes in rounds:
            tell(f"{name}: {processes} process(es), run {number + 1}/{args.runs}")
            path = config_file(cell, hidden, lanes * processes, bptt, folder)
            rounds[processes] += launch(processes, path, args, folder)
    tell("")
    whole = {n: statistics.median(r[0] for r in some) for n, some in rounds.items()}
    alone = {n: statistics.median(r[1] for r in some) for n, some in rounds.items()}
    speeds = {n: n * lanes * bptt / whole[n] * 1000 for n in rounds}
    return {
        "name": name,
        "step_ms": whole,
        "without_communication_ms": alone,
        "communication": max(0.0, 1 - alone[2] / whole[2]),  # share of a step of two processes
        "characters_per_second": speeds,
        "times_one": speeds[2] / speeds[1],
        "rounds": rounds,
    }


def main(words: list[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="bench.py scaling", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--cells", nargs="+", choices=["lstm", "gru", "rnn"], default=["lstm"], help="(lstm)")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=lambda text: size_of(text, 3),
        default=[(256, 16, 64), (512, 64, 64)],
        metavar="HIDDENxLANESxWINDOW",
        help="lanes: of each process (256x16x64 512x64x64)",
    )
    parser.add_argument("--steps", type=positive, default=5, help="in a round (5)")
    parser.add_argument("--rounds", type=positive, default=2, help="in a process (2)")
    parser.add_argument("--runs", type=positive, default=3, help="of each number of processes (3)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="charlm-bench-") as folder:
        rows = [measured(cell, *size, args, Path(folder)) for cell in args.cells for size in args.sizes]
    computed = gpus.rows()
    if args.json:
        told = {"command": "scaling", "rows": rows, "computed": computed, "assumed": gpus.ASSUMED}
        told |= {"torch": torch.__version__, "device": "CPU", "machine": platform.machine()}
        args.json.write_text(json.dumps(told, indent=2), encoding="utf-8")
    print(f"torch {torch.__version__}, one thread per process, {os.cpu_count()} cores, CPU, gloo; medians")
    heads = ("1, ms/step", "2, ms/step", "communication", "1, chars/s", "2, chars/s", "× 1 process")
    print(f"{'':<16}" + "".join(f"{head:>14}" for head in heads))
    for row in rows:
        steps = "".join(f"{row['step_ms'][n]:>14,.1f}" for n in (1, 2))
        speeds = "".join(f"{row['characters_per_second'][n]:>14,.0f}" for n in (1, 2))
        print(f"{row['name']:<16}{steps}{row['communication']:>14.0%}{speeds}{row['times_one']:>14.2f}")
    print()
    gpus.print_table(computed)


if __name__ == "__main__":
    worker(sys.argv[1])
