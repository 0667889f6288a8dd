"""What breaks on a cluster, done to real processes: killed ranks, bad disks, clocks that jump."""

import contextlib
import glob
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import (
    assert_same_state,
    changed,
    config_file,
    environment,
    files_of,
    forked,
    logged,
    losses,
    newest,
    ranks_of,
    records,
    small,
    start,
    start_anew,
    status,
    train_on,
    wait_until,
)

from charlm.training.checkpoint import steps_of
from charlm.training.loop import train

BUSY = {"model": {"hidden_size": 48}, "train": {"steps": 400, "bptt": 24}, "checkpoint": {"every": 50}}


# a rank is killed


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_when_a_process_is_killed_the_others_end_and_say_so(tmp_path, victim):
    config = small(tmp_path / "run", **BUSY | {"train": {"steps": 100_000, "bptt": 24}})
    processes = ranks_of(config)
    wait_until(lambda: logged(config.run_dir) >= 120 and steps_of(config.run_dir) != [], processes[0])
    processes[victim].kill()
    said, _ = processes[1 - victim].communicate(timeout=600)  # without a hang
    assert processes[1 - victim].returncode == 1
    assert f"charlm: error: process {1 - victim} has lost another process of this run" in said
    assert "the same command resumes from it" in said and "Traceback" not in said
    step = steps_of(config.run_dir)[-1]
    assert f"the last checkpoint is of step {step}" in said
    processes[victim].communicate()
    if victim == 1:  # the main process is there to tell
        assert status(config.run_dir)["status"] == "failed"
        return
    steps = step + 30
    train_on(2, changed(config, train={"steps": steps}))
    whole = small(tmp_path / "whole", **BUSY)
    train_on(2, changed(whole, train={"steps": steps}))
    assert_same_state(config.run_dir, whole.run_dir)
    assert losses(config.run_dir) == losses(whole.run_dir)


def test_a_second_run_of_several_processes_in_one_directory_is_refused(tmp_path):
    config = small(tmp_path / "run", **BUSY | {"train": {"steps": 100_000, "bptt": 24}})
    first = start(config)
    wait_until(lambda: logged(config.run_dir) >= 10, first)
    processes = ranks_of(config)
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert f"charlm: error: {config.run_dir}: another process is training there" in said[0]
    assert "Traceback" not in said[0] + said[1]
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert "stopped at step" in first.communicate(timeout=600)[0] and first.returncode == 0


# signals


def test_a_signal_that_was_held_back_while_the_process_started_is_heeded(tmp_path):
    """As slurm/train.sh starts it: one that comes before Python does is not lost."""
    config = small(tmp_path / "run")
    words = [sys.executable, "-m", "charlm", "train", "--config", str(config_file(config))]
    held = ["env", "--block-signal=USR1,TERM"]
    if subprocess.run([*held, "true"], capture_output=True).returncode:
        pytest.skip("env is older than coreutils 8.31")
    first = [*held, "bash", "-c", 'kill -USR1 $$; exec "$@"', "held"]
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 300, "env": environment()}
    ran = subprocess.run([*first, *words], **options)
    assert ran.returncode == 0, ran.stderr
    assert "stopped at step 1 (SIGUSR1)" in ran.stdout and steps_of(config.run_dir) == [1]


def catches(process: subprocess.Popen, number: int) -> bool:
    """Has the process a handler for a signal by now?"""
    told = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", told)[1], 16) >> (number - 1) & 1)


def test_a_signal_in_the_seconds_before_the_first_step_is_heeded(tmp_path):
    """Before torch is imported, even: the run makes its first step, and leaves a checkpoint."""
    number = signal.SIGTERM
    config = small(tmp_path / "run")
    process = start_anew(config)
    wait_until(lambda: catches(process, number), process)
    assert "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(number)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "stopped at step 1 (SIGTERM)" in said and steps_of(config.run_dir) == [1]


@pytest.mark.parametrize("asked", [0, 1])
def test_when_one_process_is_asked_to_stop_all_stop_at_the_same_step(tmp_path, asked):
    config = small(tmp_path / "run", **BUSY | {"train": {"steps": 100_000, "bptt": 24}})
    processes = ranks_of(config)
    wait_until(lambda: logged(config.run_dir) >= 30, processes[0])
    processes[asked].send_signal(signal.SIGUSR1)
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    reason = "SIGUSR1" if asked == 0 else "another process was asked to stop"
    step = steps_of(config.run_dir)[-1]
    told = {"status": "interrupted", "step": step, "steps": config.train.steps, "reason": reason}
    assert status(config.run_dir) == told
    assert said[1] == ""


TWICE = """
import sys, time
from charlm.training import checkpoint
from charlm.config.parse import load_config
from charlm.training.loop import train

write = checkpoint.write_synced

def slowly(path, content):  # a disk that does not answer
    if "step-00000010" in str(path):
        time.sleep(600)
    write(path, content)

def watch(step, model, loss):
    if step == int(sys.argv[2]):
        print("there", flush=True)
        if step == 7:
            time.sleep(600)

checkpoint.write_synced = slowly
train(load_config(sys.argv[1]), quiet=True, watch=watch)
"""


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(7, id="in a step", marks=pytest.mark.slow),
        pytest.param(11, id="while a checkpoint waits for the disk"),
    ],
)
def test_a_second_ctrl_c_leaves_at_once_and_harms_nothing(tmp_path, step):
    config = small(tmp_path / "run", checkpoint={"every": 5})
    words = [sys.executable, "-c", TWICE, str(config_file(config)), str(step)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    process = subprocess.Popen(words, env=environment(), **options)
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)  # the first one lets the step finish, and its checkpoint be written
    for _ in range(9):  # two that a busy machine delivers late are one
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
            break
    _, error = process.communicate(timeout=600)
    assert process.returncode == -signal.SIGINT and error.rstrip().endswith("KeyboardInterrupt")
    told = status(config.run_dir)
    at = {"step": 7 if step == 7 else 12, "steps": 12}
    assert told == {"status": "interrupted", **at, "reason": "Ctrl-C, at once"}
    assert newest(config.run_dir)[0]["step"] == 5
    assert train(config, quiet=True).status == "done"
    train(small(tmp_path / "whole", checkpoint={"every": 5}), quiet=True)
    assert_same_state(config.run_dir, tmp_path / "whole")


# disks


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_ends_all_processes_and_the_last_checkpoint_is_whole(disk, tmp_path):
    options = BUSY | {"data": {"dir": str(tmp_path / "data")}, "log": {"every": 1000}}
    options["train"] = {"steps": 100_000, "bptt": 24}
    config = small(disk / "run", **options)
    processes = ranks_of(config)
    wait_until(lambda: steps_of(config.run_dir) != [], processes[0])
    with open(disk / "ballast", "wb", buffering=0) as ballast:
        try:
            while ballast.write(b"\0" * 4096):
                pass
        except OSError:
            pass
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said
    assert "No space left on device" in said[0] and "Traceback" not in said[0] + said[1]
    step = newest(config.run_dir)[0]["step"]
    assert f"step {step}" in said[0]
    (disk / "ballast").unlink()
    whole = small(tmp_path / "whole", **options)
    for one in (config, whole):
        train_on(2, changed(one, train={"steps": step + 60}))
    assert_same_state(config.run_dir, whole.run_dir)


def test_a_run_directory_on_a_disk_that_becomes_read_only_is_named(disk, tmp_path):
    config = small(disk / "run", data={"dir": str(tmp_path / "data")}, train={"steps": 6})
    train(config, quiet=True)
    before = files_of(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    ran = forked("train", "--config", config_file(small(tmp_path / "else")), "--run_dir", config.run_dir)
    assert ran.returncode == 1
    error = ran.stderr.splitlines()[-1]
    assert error.startswith(
        f"charlm: error: run_dir='{config.run_dir}': cannot be written (Read-only file system)"
    )
    assert files_of(disk) == before


# clocks


def libfaketime() -> str | None:
    found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    return found[0] if found else None


@pytest.mark.skipif(libfaketime() is None, reason="libfaketime is not installed")
def test_a_clock_that_jumps_changes_nothing(tmp_path):
    """Ten years back, then forward, in the middle of a run with a budget of hours."""
    options = BUSY | {"train": {"steps": 100_000, "bptt": 24, "max_hours": 1.0}}
    config = small(tmp_path / "run", **options)
    clock = tmp_path / "clock"
    clock.write_text("+0")
    variables = {"LD_PRELOAD": libfaketime(), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    variables |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    process = start_anew(config, **variables)
    for shift in ("-10y", "+10y", None):
        at = logged(config.run_dir) + 20
        wait_until(lambda at=at: logged(config.run_dir) >= at, process)
        if shift:
            clock.write_text(shift)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    times = [r["time"] for r in records(config.run_dir)]
    assert max(times) - min(times) > 5e8  # it did jump
    assert all(0 <= r.get("characters_per_second", 0) < 1e7 for r in records(config.run_dir))
    steps = newest(config.run_dir)[0]["step"] + 20
    whole = small(tmp_path / "whole", **options)
    for one in (config, whole):
        train(changed(one, train={"steps": steps}), quiet=True)
    assert_same_state(config.run_dir, whole.run_dir)
    assert losses(config.run_dir) == losses(whole.run_dir)
