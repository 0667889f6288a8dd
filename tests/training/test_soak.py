"""The soak: killed with -9 again and again, at random moments, a run ends in the bits of one that was not."""

import os
import random
import signal
import time

import pytest
from helpers import (
    assert_same_state,
    changed,
    files_of,
    losses,
    newest,
    small,
    start_anew,
    status,
    wait_until,
)

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
