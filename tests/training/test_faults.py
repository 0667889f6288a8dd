"""What breaks on a cluster, done to real processes: killed ranks, bad disks, clocks that jump."""

import contextlib
import errno
import glob
import itertools
import os
import pty
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import shim
from filelock import FileLock
from forks import Fork, Server
from helpers import (
    MIXED,
    SMALL,
    assert_same_state,
    changed,
    command,
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

from charlm.corpus.prepared import prepare
from charlm.errors import CharlmError
from charlm.training.checkpoint import steps_of
from charlm.training.loop import train

# 12 k characters, most of them for the test
SLOW = {"source": "literal", "text": MIXED * 4, "split_by": "character", "validation": 0.02, "test": 0.8}
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
    prepare(config)
    words = [sys.executable, "-m", "charlm", "train", "--config", str(config_file(config))]
    held = ["env", "--block-signal=USR1,TERM"]
    if subprocess.run([*held, "true"], capture_output=True).returncode:
        pytest.skip("env is older than coreutils 8.31")
    first = [*held, "bash", "-c", 'kill -USR1 $$; exec "$@"', "held"]
    options = {"capture_output": True, "encoding": "utf-8", "timeout": 300, "env": environment()}
    ran = subprocess.run([*first, *words], **options)
    assert ran.returncode == 0, ran.stderr
    assert "stopped at step 1 (SIGUSR1)" in ran.stdout and steps_of(config.run_dir) == [1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_a_signal_while_the_text_is_prepared_ends_at_once(tmp_path, number, code):
    """Here a pipe, which the preparation reads until its writer ends."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = ["train", str(pipe), "--run_dir", str(tmp_path / "run"), "--data.dir", str(tmp_path / "data")]
    heard = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # though these tests run under nohup
    )
    process = Fork([*words, "--log.wandb", "disabled"], environment(), apart=True, before=heard)
    with open(pipe, "wb", buffering=0) as writer:
        writer.write(b"text " * 1000)
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, err) == (code, "charlm: stopped by Ctrl-C\n" * (code > 0)), out
    assert time.monotonic() - began < 5
    name = signal.Signals(number).name
    assert code or (status(tmp_path / "run")["reason"] == name and f"stopped at step 0 ({name})" in out)


def test_a_signal_before_a_preparation_is_heeded_there(tmp_path):
    config = small(tmp_path / "run")
    process = start_anew(config)
    wait_until(lambda: catches(process, signal.SIGTERM), process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "stopped at step 0 (SIGTERM)" in said
    assert list((tmp_path / "data").glob("*")) == []
    assert train(config, quiet=True).status == "done"


def test_ctrl_c_during_the_start_always_ends_within_a_second(tmp_path):
    words = command("train", "--config", config_file(small(tmp_path / "run", train={"steps": 100_000})))
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    for seconds in (0.5, 1.0, 1.7):
        process = subprocess.Popen(words, env=environment(), **options)
        wait_until(lambda process=process: catches(process, signal.SIGTERM), process)
        time.sleep(seconds)
        if (tmp_path / "run" / "status.json").exists():  # it trains by now
            process.kill()
            process.communicate()
            continue
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)
        assert (process.returncode, said[1]) == (130, "charlm: stopped by Ctrl-C\n")
        assert time.monotonic() - began < 3  # on a busy machine


@pytest.mark.slow
def test_a_signal_in_the_final_test_leaves_it_to_the_next_start(tmp_path):
    options = {"evaluate": {"every": 0, "lanes": 1, "bptt": 1}, "data": dict(SLOW)}
    config, whole = small(tmp_path / "run", **options), small(tmp_path / "whole", **options)
    process = start(config)
    wait_until(lambda: steps_of(config.run_dir) == [12], process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == 0 and "stopped at step 12 (SIGTERM)" in said, said
    told = {"status": "interrupted", "step": 12, "steps": 12, "reason": "SIGTERM"}
    assert status(config.run_dir) == told
    for one in (config, whole):
        assert train(one, quiet=True).status == "done"
    assert status(config.run_dir) == status(whole.run_dir)
    assert_same_state(config.run_dir, whole.run_dir)


def test_a_closed_terminal_is_like_sigterm_and_under_nohup_it_is_nothing(tmp_path):
    config = small(tmp_path / "run", **BUSY | {"train": {"steps": 100_000, "bptt": 24}})
    pid, terminal = pty.fork()
    if pid == 0:  # the leader of a session with this terminal
        os.execve(sys.executable, command("train", "--config", config_file(config)), environment())
    end = time.monotonic() + 120
    while logged(config.run_dir) < 30:
        os.set_blocking(terminal, False)
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)
        assert time.monotonic() < end
        time.sleep(0.02)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    told = status(config.run_dir)
    assert (told["status"], told["reason"]) == ("interrupted", "SIGHUP")
    assert steps_of(config.run_dir)[-1] == told["step"]
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = Fork(["train", "--config", str(config_file(config))], environment(), before=ignored)
    wait_until(lambda: logged(config.run_dir) >= told["step"] + 10, process)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert status(config.run_dir)["reason"] == "SIGTERM"


def catches(process: subprocess.Popen, number: int) -> bool:
    """Has the process a handler for a signal by now?"""
    told = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(re.search(r"SigCgt:\s*(\w+)", told)[1], 16) >> (number - 1) & 1)


def test_a_signal_in_the_seconds_before_the_first_step_is_heeded(tmp_path):
    """Before torch is imported, even: the run makes its first step, and leaves a checkpoint."""
    number = signal.SIGTERM
    config = small(tmp_path / "run")
    prepare(config)
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


# damage


def flipped(config, split="train", value=None):
    """Change an id in the middle of a split: by one bit, or to a value."""
    (path,) = Path(config.data.dir).glob(f"*/{split}.npy")
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1 if value is None else value]))
    return path


@pytest.mark.parametrize(
    ("split", "value", "verify", "told"),
    [
        ("train", None, "start", "train.npy: sha256"),
        ("validation", None, "start", "validation.npy: sha256"),
        ("train", 250, "start", "train.npy: sha256"),
        ("train", None, "never", ""),
        ("train", 250, "never", "an id is outside the vocabulary; `charlm prepare --verify`"),
        ("validation", 250, "never", "an id is outside the vocabulary; `charlm prepare --verify`"),
    ],
)
def test_ids_that_were_damaged_are_found(tmp_path, split, value, verify, told):
    config = small(tmp_path / "run", data=SMALL["data"] | {"verify": verify})
    prepare(config)
    flipped(config, split, value)
    config = changed(config, train={"steps": 100})
    if not told:
        assert train(config, quiet=True).status == "done"
        return
    with pytest.raises(CharlmError) as error:
        train(config, quiet=True)
    assert told in str(error.value) and "Traceback" not in str(error.value)
    assert steps_of(config.run_dir) == [] or verify == "never"
    assert status(config.run_dir)["status"] == "failed"
    assert told in status(config.run_dir)["error"]


def test_ids_that_begin_with_anything_are_damaged_without_numpys_advice(tmp_path):
    config = small(tmp_path / "run")
    path = prepare(config).folder / "train.npy"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(CharlmError, match=r"train\.npy: damaged .*; delete .* to prepare again$") as error:
        prepare(config)
    assert "unsafe" not in str(error.value) and "allow_pickle" not in str(error.value)


def test_what_stands_in_the_way_of_a_file_is_named(tmp_path):
    config = small(tmp_path / "run")

    def watch(step, model, loss):
        if step == 5:
            (tmp_path / "run" / "metrics.jsonl").unlink()
            (tmp_path / "run" / "metrics.jsonl").mkdir()

    with pytest.raises(CharlmError, match=r"/run/metrics\.jsonl \(Is a directory\); there is no"):
        train(config, quiet=True, watch=watch)


def test_a_text_that_is_cut_off_while_it_is_read_is_named(tmp_path):
    config = small(tmp_path / "run", data={"verify": "never", **SLOW}, log={"every": 1})
    prepare(config)
    (path,) = tmp_path.glob("data/*/train.npy")
    cut = f"""
import os
from charlm.training import loop
step = loop.train_step
def cutting(config, setup, state, watch):
    if state.step == 3:
        os.truncate({str(path)!r}, 100)
    return step(config, setup, state, watch)
loop.train_step = cutting
"""
    process = Fork(["train", "--config", str(config_file(config))], environment(), before=cut)
    said, _ = process.communicate()
    assert process.returncode == 1 and f"charlm: error: {path}: was cut off while training read it" in said
    assert status(config.run_dir)["status"] == "failed"


def test_a_run_whose_checkpoints_were_deleted_is_refused(tmp_path):
    config = small(tmp_path / "run", checkpoint={"every": 4})

    def stop(step, model, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, quiet=True, watch=stop)
    assert logged(config.run_dir) == 3 and steps_of(config.run_dir) == []
    train(config, quiet=True)  # it had no checkpoint yet: it starts again
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for left in ("model and metrics.jsonl", "metrics.jsonl", "model"):
        before = files_of(config.run_dir)
        with pytest.raises(CharlmError) as error:
            train(config, quiet=True)
        assert f"holds {left} of a run, but no checkpoint" in str(error.value)
        assert f"another run_dir, with train.init_from={tmp_path / 'run' / 'model'}" in str(error.value)
        assert files_of(config.run_dir) == before
        if left == "model and metrics.jsonl":
            shutil.move(tmp_path / "run" / "model", tmp_path / "model")
        elif left == "metrics.jsonl":
            shutil.move(tmp_path / "model", tmp_path / "run" / "model")
            (tmp_path / "run" / "metrics.jsonl").unlink()
    other = changed(config, train={"init_from": str(tmp_path / "run" / "model")})
    other.run_dir = str(tmp_path / "other")
    assert train(other, quiet=True).status == "done"


def test_a_checkpoint_that_fails_once_is_told_at_once_and_tried_again(tmp_path, capsys):
    config = small(tmp_path / "run", train={"steps": 40}, checkpoint={"every": 5, "keep": 9})
    place = tmp_path / "run" / "checkpoints"

    def watch(step, model, loss):
        if step == 4:
            place.write_text("a file where the folder should be")
        if step == 5:
            time.sleep(0.3)
            assert "it is tried again in 1 s" in capsys.readouterr().out
            place.unlink()

    assert train(config, watch=watch).status == "done"
    assert steps_of(config.run_dir) == list(range(5, 45, 5))


@pytest.mark.parametrize("name", ["", "metrics.jsonl"])
def test_what_is_removed_from_a_run_that_goes_on_is_written_again(tmp_path, capsys, name):
    config = small(tmp_path / "run", checkpoint={"every": 6}, sample={"every": 7})

    def watch(step, model, loss):
        if step == 8:
            path = tmp_path / "run" / name
            path.unlink() if name else shutil.rmtree(path)

    assert train(config, watch=watch).status == "done"
    assert f"warning: {tmp_path / 'run' / 'metrics.jsonl'} was removed" in capsys.readouterr().out
    whole = small(tmp_path / "whole", checkpoint={"every": 6}, sample={"every": 7})
    train(whole, quiet=True)
    assert losses(config.run_dir) == losses(whole.run_dir)
    assert_same_state(config.run_dir, whole.run_dir)
    assert set(files_of(config.run_dir)) >= {"config.yaml", "corpus.json", "model/model.safetensors"}


def test_a_run_that_was_deleted_and_begun_again_belongs_to_the_new_process(tmp_path, capsys):
    config, others = small(tmp_path / "run"), []

    def watch(step, model, loss):
        if step == 5:
            shutil.rmtree(tmp_path / "run")
            others.append(start(changed(config, train={"steps": 10**6}, log={"every": 10**4})))
            wait_until((tmp_path / "run" / "metrics.jsonl").exists, others[0])

    with pytest.raises(CharlmError, match=r"run: another process is training there; .*\(process \d+ on "):
        train(config, watch=watch)
    assert others[0].poll() is None and status(config.run_dir)["status"] == "running"
    others[0].send_signal(signal.SIGTERM)
    said, _ = others[0].communicate()
    assert others[0].returncode == 0 and "was removed" not in said + capsys.readouterr().out


@pytest.mark.parametrize(
    ("optim", "steps", "told"),
    [
        ({"learning_rate": 1e30}, 12, "e+30 nats on validation at step 12"),
        ({"learning_rate": 30.0, "clip": None}, 400, "3.95 for a uniform guess"),
    ],
)
def test_a_loss_that_has_diverged_ends_the_run_though_it_is_finite(tmp_path, optim, steps, told):
    config = small(tmp_path / "run", optim=optim | {"schedule": "constant"}, train={"steps": steps})
    ran = forked("train", "--config", config_file(config))
    error = ran.stderr.splitlines()[-1]
    assert ran.returncode == 1 and error.startswith("charlm: error: the loss has diverged: "), ran.stderr
    assert told in error and "Try a lower optim.learning_rate" in error
    assert ("or begin with the best weights" in error) == (tmp_path / "run" / "model").exists()
    assert status(config.run_dir)["status"] == "failed"


# file systems


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """faults(call, errno, at, folder) → variables under which that call fails in a process of Fork."""
    variables = environment(LD_PRELOAD=shim.built(tmp_path))
    monkeypatch.setattr(Fork, "running", Server(variables))

    def choose(call: str, error: int, at: int = 0, folder: Path = tmp_path, **more) -> dict[str, str]:
        chosen = {"FAULT_CALL": call, "FAULT_ERRNO": str(error), "FAULT_AT": str(at)}
        return variables | chosen | {"FAULT_DIR": str(folder)} | more

    yield choose
    Fork.running.process.communicate()


@pytest.mark.parametrize("error", [errno.ENOSYS, pytest.param(errno.ENOLCK, marks=pytest.mark.slow)])
def test_without_locks_a_run_is_taken_over_from_a_process_of_this_host_that_is_gone(tmp_path, faults, error):
    options = BUSY | {"train": {"steps": 100_000, "bptt": 24}}
    config, variables = small(tmp_path / "run", **options), faults("flock", error)
    words = ["train", "--config", str(config_file(config))]
    first = Fork(words, variables)
    wait_until(lambda: steps_of(config.run_dir) != [], first)
    lock = tmp_path / "run" / ".lock.owner"
    for host in (socket.gethostname(), "elsewhere"):
        lock.write_text(lock.read_text().replace(socket.gethostname(), host))
        second = Fork(words, variables, apart=True)
        _, told = second.communicate()
        assert second.returncode == 1
        place = f"{config.run_dir}: another process is training there; name another run_dir"
        assert told.startswith(f"charlm: error: {place} (process {first.pid} on {host}, since 2"), told
        assert told.endswith(f"; if that no longer runs, delete {lock})\n")
        first.kill()
    lock.write_text(lock.read_text().replace("elsewhere", socket.gethostname()))
    third = Fork([*words, "--train.steps", str(steps_of(config.run_dir)[-1] + 9)], variables)
    assert third.communicate() and third.returncode == 0 and not lock.exists()


@pytest.mark.slow
def test_a_wait_for_a_lock_is_not_silent(tmp_path):
    text, data = tmp_path / "text.txt", tmp_path / "data"
    text.write_text(MIXED)
    words = ["prepare", str(text), "--data.dir", str(data)]
    assert forked(*words).returncode == 0
    (folder,) = data.glob("text-*")
    shutil.rmtree(folder)
    lock = data / f".{folder.name}.lock"
    with FileLock(lock):
        process = Fork(words, environment())
        notice = f"waiting for the lock {lock}: it does not name its owner; if that no longer runs, delete"
        wait_until(lambda: notice in Path(process.stdout.name).read_text(), process, 20)
    assert process.wait() == 0 and folder.exists()


def test_a_file_system_that_cannot_sync_folders_is_used_all_the_same(tmp_path, faults):
    config = small(tmp_path / "run", checkpoint={"every": 4})
    process = Fork(["train", "--config", str(config_file(config))], faults("fsync folder", errno.EINVAL))
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert steps_of(config.run_dir) == [8, 12]


@pytest.mark.parametrize("call", ["mmap", pytest.param("open", marks=pytest.mark.slow)])
def test_a_file_that_cannot_be_read_now_is_not_called_damaged(tmp_path, faults, call):
    config = small(tmp_path / "run", checkpoint={"every": 4})
    train(config, quiet=True)
    before = files_of(tmp_path)
    folder = tmp_path / ("data" if call == "mmap" else "run/checkpoints")
    variables = faults(call, errno.ENOMEM if call == "mmap" else errno.EIO, folder=folder)
    process = Fork(["train", "--config", str(config_file(config))], variables, apart=True)
    _, told = process.communicate()
    assert process.returncode == 1 and told.startswith("charlm: error: "), told
    assert ("train.npy: cannot be read" if call == "mmap" else "manifest.json") in told
    reason = "Cannot allocate memory" if call == "mmap" else "Input/output error"
    assert reason in told and "damaged" not in told and "delete" not in told
    assert files_of(tmp_path).items() >= {k: v for k, v in before.items() if "status" not in k}.items()


@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_files_have_the_rights_that_the_umask_leaves(tmp_path, umask):
    options = {"data": {"dir": str(tmp_path / "all" / "data")}, "sample": {"every": 6}}
    config = small(tmp_path / "all" / "run", checkpoint={"every": 4}, **options)
    (tmp_path / "all").mkdir(mode=0o700)
    words = ["train", "--config", str(config_file(config))]
    process = Fork(words, environment(), before=f"import os; os.umask({umask})")
    assert process.wait() == 0
    paths = [p for p in (tmp_path / "all").rglob("*") if p.name != "run.yaml"]
    rights = {p.relative_to(tmp_path): stat.S_IMODE(p.stat().st_mode) for p in paths}
    assert len(rights) > 20
    assert {k: oct(v) for k, v in rights.items() if v | 0o111 != 0o777 & ~umask | 0o111} == {}


@pytest.mark.slow
def test_after_an_error_at_any_call_the_next_start_ends_in_the_same_bits(tmp_path, faults):
    """As SQLite is tested: every call in turn fails once, in preparing, training, saving and finishing."""
    options = {
        "train": {"steps": 4},
        "checkpoint": {"every": 2},
        "evaluate": {"every": 2},
        "sample": {"every": 3},
    }
    whole, tried = small(tmp_path / "whole" / "run", **options), {}
    train(whole, quiet=True)
    errors = {"flock": errno.EIO, "fsync": errno.EIO, "write": errno.ENOSPC, "rename": errno.EIO}
    for call, error in (errors | {"mmap": errno.ENOMEM}).items():
        for at in itertools.count(1):
            folder, log = tmp_path / f"{call}-{at}", tmp_path / "calls"
            config = small(folder / "run", **options)
            folder.mkdir()
            words = ["train", "--config", str(config_file(config))]
            log.write_bytes(b"")
            process = Fork(words, faults(call, error, at, folder, FAULT_COUNT=str(log)), apart=True)
            _, told = process.communicate()
            last = told.splitlines()[-1:] or [""]
            assert process.returncode in (0, 1) and "Traceback" not in told, (call, at, told)
            assert process.returncode == 0 or last[0].startswith("charlm: error: "), (call, at, told)
            again = Fork(words, environment(), apart=True)
            assert again.wait() == 0, (call, at, told, again.stderr.read())
            assert_same_state(config.run_dir, whole.run_dir)
            assert losses(config.run_dir) == losses(whole.run_dir), (call, at)
            for name in ("model/model.safetensors", "samples/best.txt"):
                same = [(Path(one.run_dir) / name).read_bytes() for one in (config, whole)]
                assert same[0] == same[1], (call, at, name)
            shutil.rmtree(folder)
            if log.stat().st_size < at:  # that was one more than there are
                tried[call] = at - 1
                break
    print(tried)


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
