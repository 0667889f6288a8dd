"""What the tests of whole runs share: small configs, real commands, and readers of what a run leaves."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import select
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from forks import Fork

from charlm.config.fields import Config
from charlm.config.parse import from_dict, to_yaml
from charlm.training.checkpoint import folder_of, load_checkpoint, steps_of

torch.set_num_threads(1)  # models this small are slower on two threads, and far slower on a busy machine

ROOT = Path(__file__).parent.parent
# Four scripts, accents and emoji; no line is like another, so that no split is like another.
WORDS = re.split(" ", "The quick brown fox. Быстрая лиса! 敏捷的狐狸。 Η γρήγορη αλεπού; 🦊🌍 naïve café.")
MIXED = "".join(" ".join(random.Random(line).sample(WORDS, len(WORDS))) + "\n" for line in range(40))


SMALL = {
    "data": {
        "source": "literal",
        "text": MIXED,
        "split_by": "character",
        "validation": 0.1,
        "test": 0.1,
    },
    "vocab": {"unknown": "error"},
    "model": {"embedding_size": 6, "hidden_size": 12},
    "optim": {"learning_rate": 0.02, "schedule": "constant"},
    "train": {"steps": 12, "batch_size": 4, "bptt": 7, "seed": 5},
    "evaluate": {"every": 0},
    "sample": {"every": 0, "prompt": "The ", "length": 20},
    "checkpoint": {"every": 0},
    "log": {"every": 1, "wandb": "disabled"},
}


def small(run_dir: str | Path, **changes: dict) -> Config:
    """A config that trains in a fraction of a second. changes: section → its keys that differ from SMALL.

    The prepared corpora are beside the run directory, so that runs of one folder share them.
    """
    tree = {name: SMALL.get(name, {}) | changes.get(name, {}) for name in {*SMALL, *changes}}
    tree["data"] = {"dir": str(Path(run_dir).parent / "data")} | tree["data"]
    if tree["data"]["source"] != "literal":
        del tree["data"]["text"]
    return from_dict(tree | {"run_dir": str(run_dir)})


def changed(config: Config, **changes: dict) -> Config:
    """The same config but for these sections' keys."""
    tree = {name: dict(vars(section)) for name, section in vars(config).items() if name != "run_dir"}
    for name, keys in changes.items():
        tree[name] |= keys
    return from_dict(tree | {"run_dir": config.run_dir})


# commands


def command(*words: str | Path) -> list[str]:
    """The words that start charlm as a process of its own."""
    return [sys.executable, "-m", "charlm", *map(str, words)]


def charlm(*words: str | Path, **options) -> subprocess.CompletedProcess:
    """Run a command to its end; stdout and stderr are text."""
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 600, "env": environment()} | options
    return subprocess.run(command(*words), **options)


def config_file(config: Config) -> Path:
    """The config as YAML, beside its run directory."""
    path = Path(config.run_dir).with_suffix(".yaml")
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


def forked(*words: str | Path, **variables: str) -> subprocess.CompletedProcess:
    """The same as charlm(), sooner: no interpreter starts for it."""
    process = Fork([*map(str, words)], environment(**variables), apart=True)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(config: Config, **variables: str) -> Fork:
    """`charlm train` of a config, in the background; stdout and stderr together."""
    return Fork(["train", "--config", str(config_file(config))], environment(**variables))


def start_anew(config: Config, **variables: str) -> subprocess.Popen:
    """The same in an interpreter of its own, as users do it."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    words = command("train", "--config", config_file(config))
    return subprocess.Popen(words, env=environment(**variables), **options)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *words, columns=80, cwd=None, **variables):
        self.main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        env = environment(TERM="xterm", COLUMNS=str(columns), LINES="24", **variables)
        ends = {"stdin": side, "stdout": side, "stderr": side}
        self.process = subprocess.Popen(command(*words), env=env, cwd=cwd, **ends)
        os.close(side)
        self.seen = ""

    def read(self) -> bool:
        if select.select([self.main], [], [], 0.2)[0]:
            try:
                piece = os.read(self.main, 1 << 16)
            except OSError:  # the other side is closed
                return False
            self.seen += piece.decode("utf-8", "replace")
        return True

    def until(self, text: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert self.read() and time.monotonic() < end, self.seen

    def ended(self) -> int:
        while self.read():
            pass
        os.close(self.main)
        return self.process.wait(60)


def launched(launcher: list[str], *words, **options) -> str:
    """What scripts/train.py prints under a launcher."""
    line = [sys.executable, "-m", *launcher, *map(str, words)]
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 600, "env": environment()} | options
    ran = subprocess.run(line, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def ranks_of(
    config: Config,
    processes: int = 2,
    last: str = "",
    name: str = "train",
    before: tuple[str, str] = ("", ""),
) -> list[Fork]:
    """`charlm train` (or another command) as so many ranks of one run; no launcher ends the others.

    last: more words for the last one. before: code that the first and the others run before.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    words = [name, "--config", str(config_file(config))]
    more = [[]] * (processes - 1) + [last.split()]
    known["WORLD_SIZE"] = str(processes)
    envs = [environment(RANK=str(rank), LOCAL_RANK=str(rank), **known) for rank in range(processes)]
    code = [before[rank > 0] for rank in range(processes)]
    return [Fork(words + m, env, before=b) for m, env, b in zip(more, envs, code, strict=True)]


def train_on(processes: int, config: Config, last: str = "", code: int = 0, name: str = "train") -> str:
    """Train (or another command) on several processes; returns what they print, errors too.

    last: more words for the last one.
    """
    ranks = ranks_of(config, processes, last, name)
    said = "".join(rank.communicate()[0] for rank in ranks)
    assert any(rank.returncode for rank in ranks) == code, said
    assert code or f"{processes} process(es) on cpu" in said
    return said


def torchrun(processes: int, config) -> str:
    """The same as users do it."""
    words = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    told = launched(words, ROOT / "scripts" / "train.py", "--config", config_file(config))
    assert f"{processes} process(es) on cpu" in told  # some launchers silently start one
    return told


def wait_until(condition: Callable[[], bool], process: subprocess.Popen | Fork, seconds: float = 600) -> None:
    """Look again and again; fail when the process ends first or time is over."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} first: {process.communicate()[0]}"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


# what a run leaves


def records(run_dir: str | Path) -> list[dict]:
    """The lines of metrics.jsonl. Every one must be whole."""
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_bytes().split(b"\n")[:-1]]


def losses(run_dir: str | Path) -> list[tuple[int, float]]:
    """(step, loss) of the training records."""
    return [(r["step"], r["loss"]) for r in records(run_dir) if "loss" in r]


def logged(run_dir: str | Path) -> int:
    """The last step in metrics.jsonl of a run that may be under way; -1 for none."""
    path = Path(run_dir) / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else -1


def status(run_dir: str | Path) -> dict:
    return json.loads((Path(run_dir) / "status.json").read_text())


def newest(run_dir: str | Path) -> tuple[dict, dict[str, dict[str, torch.Tensor]]]:
    """(facts, tensors) of the newest checkpoint."""
    facts, tensors, _ = load_checkpoint(folder_of(run_dir, steps_of(run_dir)[-1]))
    return facts, tensors


def assert_same_state(run_dir: str | Path, other: str | Path) -> None:
    """The newest checkpoints of two runs are equal in every bit that training depends on."""
    (facts, tensors), (facts2, tensors2) = newest(run_dir), newest(other)
    for key in ("step", "position", "best", "evaluated", "text_sha256"):
        assert facts[key] == facts2[key], key
    assert {g: set(names) for g, names in tensors.items()} == {g: set(n) for g, n in tensors2.items()}
    for group, named in tensors.items():
        for name, tensor in named.items():
            assert torch.equal(tensor, tensors2[group][name]), f"{group}: {name}"


def files_of(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder with its content, but for lock files."""
    paths = [p for p in Path(folder).rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != ".lock"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


# a wandb transaction log: 7 bytes of header, then LevelDB's log format in blocks of 32 KiB


def _chunks(log: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of the physical records; type 1 is whole, 2 3 4 are first, middle and last parts."""
    at = 7
    while len(log) - at >= 7:
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", log, at)
        if at + 7 + length > len(log):  # it is being written
            return
        yield kind, log[at + 7 : at + 7 + length]
        at += 7 + length


def wandb_run(run_dir: str | Path) -> dict:
    """What an offline run recorded: {"history": […], "summary": {…}, "config": {…}, "exit": code, "run": of
    wandb's own kind}."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = Path(run_dir).rglob("run-*.wandb")
    log = path.read_bytes()
    assert log.startswith(b":W&B") or not log
    told = {"history": [], "summary": {}, "config": {}, "exit": None, "run": None}

    def values(items) -> dict:
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    parts = b""
    for kind, content in _chunks(log):
        parts = content if kind in (1, 2) else parts + content
        if kind in (2, 3):
            continue
        record = Record.FromString(parts)
        if record.HasField("history"):
            told["history"].append(values(record.history.item))
        elif record.HasField("summary"):
            told["summary"] |= values(record.summary.update)
        elif record.HasField("run"):
            told["config"] |= values(record.run.config.update)
            told["run"] = record.run
        elif record.HasField("config"):
            told["config"] |= values(record.config.update)
        elif record.HasField("exit"):
            told["exit"] = record.exit.exit_code
    return told


def wandb_ended(run_dir: str | Path, seconds: float = 300) -> dict:
    """wandb_run() with the end of the run: wandb's service may write it a moment after finish()."""
    last = time.monotonic() + seconds
    while (told := wandb_run(run_dir))["exit"] is None:
        assert time.monotonic() < last, "waited too long"
        time.sleep(0.05)
    return told


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment with changes; None takes a variable out.

    WANDB_SERVICE is of wandb runs in this process, which others must not share.
    """
    fixed = {
        "WANDB_SERVICE": None,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }  # sums round the same way
    return {k: v for k, v in {**os.environ, **fixed, **changes}.items() if v is not None}


def carries_of_pieces(model, ids: torch.Tensor, pieces: list[int], expected: torch.Tensor) -> tuple:
    """The carries after ids [B, T] read in pieces, and symbol by symbol; both predict what is expected."""
    parts, after = [], None
    for piece in ids.split(pieces, 1):
        out, after = model(piece, after)
        parts.append(out)
    steps, stepped = [], model.zeros(len(ids))
    for symbols in ids.t():
        out, stepped = model.step(symbols, stepped)
        steps.append(out)
    for got in (torch.cat(parts, 1), torch.stack(steps, 1)):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    return after, stepped
