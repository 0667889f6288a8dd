"""The soak: killed with -9 again and again, at random moments, a run ends in the bits of one that was not."""

import os
import random
import signal
import time
from functools import partial

import pytest
from forks import Fork
from helpers import (
    MIXED,
    assert_same_state,
    changed,
    config_file,
    environment,
    files_of,
    losses,
    newest,
    ranks_of,
    small,
    start_anew,
    status,
    wait_until,
)
from sharing.hub_server import Hub

from charlm.training.checkpoint import steps_of
from charlm.training.loop import train

KILLS = int(os.environ.get("CHARLM_SOAK_KILLS", 50))
OPTIONS = {
    "model": {"num_layers": 2, "dropout": 0.3, "hidden_size": 24},
    "train": {"steps": 1_000_000, "batch_size": 6, "bptt": 16},
    "evaluate": {"every": 500},
    "sample": {"every": 700},
    "checkpoint": {"every": 100, "keep": 2},
    "log": {"every": 50},
}


def last_of(run_dir) -> int:
    return steps_of(run_dir)[-1] if steps_of(run_dir) else 0


@pytest.mark.slow
def test_killed_fifty_times_a_run_ends_in_the_bits_of_one_that_was_not(tmp_path):
    """One kill in four falls into the start of the process, the others into the steps, the evaluations, the
    samples and the saves."""
    config = small(tmp_path / "killed", **OPTIONS)
    draw, where, progress = random.Random(11), {"starting": 0, "saving": 0, "other": 0}, []
    for kill in range(KILLS):
        before, began = last_of(config.run_dir), time.monotonic()
        process = start_anew(config)
        if kill % 4 == 0:
            time.sleep(draw.uniform(0, 6))
        else:
            wait_until(lambda least=before: last_of(config.run_dir) > least, process)
            time.sleep(draw.uniform(0, 1.5))
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.stdout.read()
        process.stdout.close()
        saving = list((tmp_path / "killed" / "checkpoints").glob(".step-*.partial"))
        after = last_of(config.run_dir)
        where["starting" if after == before else "saving" if saving else "other"] += 1
        progress.append(after)
        took = time.monotonic() - began
        print(f"kill {kill + 1}: after {took:.1f} s, at step {after} or later, saving: {bool(saving)}")
    print(where)
    assert progress == sorted(progress) and progress[-1] > progress[0]

    steps = progress[-1] + 150
    train(changed(config, train={"steps": steps}), quiet=True)
    whole = small(tmp_path / "whole", **OPTIONS)
    train(changed(whole, train={"steps": steps}), quiet=True)
    assert newest(config.run_dir)[0]["step"] == steps
    assert_same_state(config.run_dir, whole.run_dir)
    assert losses(config.run_dir) == losses(whole.run_dir)
    assert status(config.run_dir) == status(whole.run_dir)
    for part in ("model", "samples"):
        killed, undisturbed = (files_of(tmp_path / name / part) for name in ("killed", "whole"))
        for files in (killed, undisturbed):
            files.pop("README.md", None)  # the model card names the run
        assert undisturbed.items() <= killed.items()  # a sample of a step to come may be there already


# at named places, in every command

PLACES = ("fsync", "replace", "rename", "unlink", "mkdir")  # of the module os
DIE = """
import itertools, os, signal
counter = itertools.count(1)
def dying(real):
    def call(*args, **options):
        number = next(counter)  # of several threads, too, each has its own
        if number == {at} and {early}:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(*args, **options)
        finally:  # also where it raised: the folder was there already, say
            if number == {at}:
                os.kill(os.getpid(), signal.SIGKILL)
    return call
for name in {places}:
    setattr(os, name, dying(getattr(os, name)))
"""
FULL = (
    "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))"  # as a full disk, with EFBIG
)
ONLINE = """
from huggingface_hub import constants
constants.HF_HUB_OFFLINE, constants.ENDPOINT = False, "{url}"
"""
NAMED = int(os.environ.get("CHARLM_SOAK_NAMED", 100))


class Killer:
    """Kills commands at a call drawn at random, of places above, before or after it; counts what it did."""

    def __init__(self):
        self.draw, self.kills, self.full = random.Random(5), {}, 0

    def dies(self, calls: int) -> str:
        draw = self.draw
        return DIE.format(at=draw.randint(1, calls), early=draw.random() < 0.5, places=PLACES)

    def until_done(self, start, stage: str, kills: int, calls: int, next_is: str = "") -> None:
        """start(code that is run before) → processes, again and again: the first one killed so many times,
        with a full disk now and then; then to the end. next_is: what the command says when it was killed
        after the last thing that it does, and asks for the next."""
        while self.kills.get(stage, 0) < kills:
            full = self.draw.random() < 0.1
            ranks = start(FULL if full else self.dies(calls))
            said = [rank.communicate()[0] for rank in ranks]
            codes = [rank.returncode for rank in ranks]
            assert "Traceback" not in "".join(said), said
            if codes[0] == -signal.SIGKILL:
                self.kills[stage] = self.kills.get(stage, 0) + 1
            elif full:
                self.full += 1
            else:  # done: calls were fewer
                assert codes[0] == 0 or (next_is and next_is in said[0]), said
                return
        for rank in start(""):
            said = rank.communicate()[0]
            assert rank.returncode == 0 or (next_is and next_is in said), said


def start_ranks(config, processes, before):
    return ranks_of(config, processes, before=(before, ""))


def command_of(*words):
    return lambda before: [Fork([*map(str, words)], environment(), before=before)]


@pytest.mark.slow
def test_killed_at_named_places_every_command_ends_as_one_that_was_not(tmp_path):
    killer, text = Killer(), tmp_path / "text.txt"
    text.write_text(MIXED * 2000, encoding="utf-8")  # 8 MB: more than one piece

    def arrays(data):
        return {
            p.name: p.read_bytes() for p in data.glob("*/*") if p.suffix == ".npy" or p.name == "vocab.json"
        }

    prepare = ["prepare", str(text), "--data.workers", "2", "--data.dir"]
    killer.until_done(command_of(*prepare, tmp_path / "whole"), "", 0, 1)
    for number in range(8):
        start = command_of(*prepare, tmp_path / f"data-{number}")
        killer.until_done(start, f"prepare {number}", NAMED // 20, 12)
        assert arrays(tmp_path / f"data-{number}") == arrays(tmp_path / "whole")
    for stage in ("count", "encode"):
        for mode in (["--shard", "0/2"], ["--shard", "1/2"], ["--merge", "2"]):
            start = command_of(*prepare, tmp_path / "shards", *mode)
            next_is = "are not encoded yet" if (stage, mode[0]) == ("count", "--merge") else ""
            killer.until_done(start, f"{stage} {' '.join(mode)}", NAMED // 33, 8, next_is)
    assert arrays(tmp_path / "shards") == arrays(tmp_path / "whole")

    options = OPTIONS | {"train": {"steps": 800, "batch_size": 6, "bptt": 16}, "log": {"every": 5}}
    options |= {name: {"every": 20} for name in ("evaluate", "sample", "checkpoint")}
    for processes, kills in ((1, NAMED * 6 // 10), (3, NAMED * 2 // 10)):
        config, whole = (
            small(tmp_path / f"{name}-{processes}", **options) for name in ("killed", "undisturbed")
        )
        for one, times in ((whole, 0), (config, kills)):
            start = command_of("train", "--config", config_file(one))
            if processes > 1:
                start = partial(start_ranks, one, processes)
            killer.until_done(start, f"train on {processes}", times, 50)
        assert_same_state(config.run_dir, whole.run_dir)
        assert losses(config.run_dir) == losses(whole.run_dir)
        assert status(config.run_dir) == status(whole.run_dir)

    run = config.run_dir
    with Hub() as hub:
        outputs = [
            ["report", run],
            ["export", run, str(tmp_path / "model.onnx")],
            ["push", run, "someone/model"],
        ]
        for words in outputs:
            before = files_of(run)
            killer.kills[words[0]] = 0
            for _ in range(NAMED // 20):
                process = Fork(words, environment(HF_TOKEN="right"), before=ONLINE.format(url=hub.url))
                process.poll(killer.draw.uniform(0, 0.3))
                killer.kills[words[0]] += process.kill()
            left = files_of(run)
            for files in (before, left):  # report.html and the card are written again, whole
                files.pop("model/README.md")
                files.pop("report.html", None)
            assert left == before
            if words[0] != "push":
                ran = Fork(words, environment())
                assert ran.wait() == 0, ran.stdout.read()
    print(killer.kills, f"in all {sum(killer.kills.values())} kills, {killer.full} full disks")
    assert sum(killer.kills.values()) >= NAMED
