"""The scripts of slurm/ on a real slurm: two nodes on this machine, sbatch, real signals, real requeues."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import (
    MIXED,
    ROOT,
    assert_same_state,
    changed,
    config_file,
    logged,
    losses,
    small,
    status,
    train_on,
    wandb_run,
)
from slurm_cluster import Cluster, missing

from charlm.corpus.prepared import prepare
from charlm.training.checkpoint import steps_of
from charlm.training.loop import train

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

ONE = ("--nodes=1", "--gpus-per-node=1", "--ntasks-per-node=1", "--cpus-per-task=1")
TWO = ("--nodes=2", *ONE[1:])
EARLY = "a signal came before a process could hold it back"
# Long enough to be interrupted; a step takes about a millisecond.
LONG = {"model": {"hidden_size": 48}, "train": {"steps": 10_000_000, "bptt": 24}, "log": {"every": 100}}


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class Desk:
    """A folder to submit from, with the repository's slurm/ in it."""

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster, self.folder = cluster, folder
        (folder / "slurm").symlink_to(ROOT / "slurm")
        self.env = {n: v for n, v in cluster.env.items() if n != "WANDB_MODE"}
        self.env["PATH"] = f"{Path(sys.executable).parent}:{self.env['PATH']}"  # where charlm is
        self.env["ACCELERATE_USE_CPU"] = "true"  # the GPUs of this cluster are empty files

    def sbatch(self, *words) -> str:
        """Submit; returns the job's id."""
        return self.cluster("sbatch", "--parsable", *words, cwd=self.folder, env=self.env).strip()

    def ended(self, job: str, state: str = "COMPLETED", **options) -> str:
        """Wait for the end of a job in that state; returns its log."""
        facts = self.cluster.wait(job, **options)
        assert facts["JobState"] == state, f"{facts}\n{self.log(job)}"
        return self.log(job)

    def log(self, job: str) -> str:
        """What the job printed, over all of its starts."""
        return "".join(path.read_text() for path in self.folder.glob(f"*-{job}.out"))

    def until(self, job: str, condition, seconds: float = 900) -> None:
        """Wait for something while a job is not over."""

        def seen() -> bool:
            state = self.cluster.state(job)
            assert state in ("PENDING", "RUNNING", "SIGNALING", "COMPLETING"), f"{state}\n{self.log(job)}"
            return condition()

        self.cluster.until(seen, seconds)

    def restarts(self, job: str) -> str:
        return self.cluster.facts(job)["Restarts"]


@pytest.fixture
def desk(cluster, tmp_path):
    return Desk(cluster, tmp_path)


def test_hello_says_that_the_cluster_is_set_up_right(desk):
    """The smoke test: two nodes, interrupted, put back into the queue, resumed."""
    job = desk.sbatch("slurm/hello.sh")
    log = desk.ended(job)
    assert desk.restarts(job) == "1"
    assert log.rstrip().endswith("charlm: this cluster is set up right")
    assert log.count("2 process(es) on cpu") == 2
    assert "0: n1 torch" in log and "1: n2 torch" in log
    assert f"resumed runs/charlm-hello-{job} at step 1" in log
    assert [step for step, _ in losses(desk.folder / f"runs/charlm-hello-{job}")] == list(range(1, 11))


def test_two_nodes_train_as_one_process_does(desk, tmp_path):
    config = small(tmp_path / "run")
    job = desk.sbatch(*TWO, "slurm/train.sh", "--config", config_file(config))
    log = desk.ended(job)
    assert "2 process(es) on cpu" in log and "n[1-2]" in log and desk.restarts(job) == "0"
    whole = small(tmp_path / "whole")
    train(whole, quiet=True)
    assert status(config.run_dir)["status"] == "done"
    expected = losses(whole.run_dir)
    assert [step for step, _ in losses(config.run_dir)] == [step for step, _ in expected]
    assert [v for _, v in losses(config.run_dir)] == pytest.approx([v for _, v in expected], abs=1e-5)


def test_usr1_saves_requeues_and_resumes_until_done(desk, tmp_path):
    """Twice: the parts of the metrics, and of the wandb run, join into the series of an uninterrupted run."""
    options = LONG | {"log": {"every": 100, "wandb": "auto"}, "evaluate": {"every": 1000, "lanes": 4}}
    config = small(tmp_path / "run", **options)
    job = desk.sbatch(*TWO, "slurm/train.sh", "--config", config_file(config))
    stopped = []
    for restarts in ("1", "2"):
        desk.until(job, lambda: logged(config.run_dir) >= (stopped or [0])[-1] + 300)
        if restarts == "2":  # from here on it is short: how long a run is may change
            steps = logged(config.run_dir) // 1000 * 1000 + 4000
            config_file(changed(config, train={"steps": steps}))
        desk.cluster("scancel", "--signal=USR1", job)
        desk.until(job, lambda n=restarts: desk.restarts(job) == n)
        stopped.append(steps_of(config.run_dir)[-1])
    log = desk.ended(job)
    assert desk.restarts(job) == "2"
    assert log.count("stopped at step") == log.count("back into the queue") == 2
    assert [f"resumed {config.run_dir} at step {step}" in log for step in stopped] == [True, True]
    assert log.count("wandb: offline (WANDB_MODE)") == 3
    whole = small(tmp_path / "whole", **options | {"log": {"every": 100}})
    train_on(2, changed(whole, train={"steps": steps}))
    assert [step for step, _ in losses(config.run_dir)] == list(range(100, steps + 1, 100))
    assert losses(config.run_dir) == losses(whole.run_dir)
    assert_same_state(config.run_dir, whole.run_dir)
    told = [(p["step"], p["loss"]) for p in wandb_run(config.run_dir)["history"] if "loss" in p]
    assert told == losses(config.run_dir)


def test_signals_from_the_first_moment_on_and_again_and_again_requeue_the_job(desk, tmp_path):
    """While the processes start, while they save, while they end, while the job goes back into the queue."""
    config = small(tmp_path / "run", **LONG)
    prepare(config)  # else a signal ends the preparation, at step 0
    job = desk.sbatch(*TWO, "slurm/train.sh", "--config", config_file(config))
    env, steps = desk.cluster.env, ("squeue", "-h", "-s", "-j", job, "-o", "%i")
    desk.until(job, lambda: f"{job}.0" in desk.cluster(*steps).split())
    desk.until(job, lambda: logged(config.run_dir) >= 100)  # before the first step a signal leaves at step 0

    def signalled_until_requeued() -> bool:
        subprocess.run(["scancel", "--signal=USR1", job], env=env, capture_output=True)
        return int(desk.restarts(job)) >= 1 and bool(steps_of(config.run_dir))

    desk.until(job, signalled_until_requeued)
    step = steps_of(config.run_dir)[-1]
    config_file(changed(config, train={"steps": step + 50}))
    log = desk.ended(job)
    restarts = int(desk.restarts(job))  # one signal more may reach the job that has started again
    early = log.count(EARLY)  # or one that nothing could hold back yet
    assert log.count("back into the queue") == log.count("stopped at step") + early == restarts
    assert log.count(f"resumed {config.run_dir} at step") <= restarts and "done: " in log


def test_a_signal_before_it_can_be_held_back_requeues_the_job(desk, tmp_path):
    """The milliseconds until env holds it back are a second here, at the first start of the first process."""
    slow, mark = tmp_path / "bin" / "env", tmp_path / "mark"
    slow.parent.mkdir()
    wait = f'[ "$SLURM_PROCID" = 0 ] && [ $# -gt 2 ] && mkdir {mark} 2>/dev/null && sleep 5'
    slow.write_text(f'#!/bin/bash\n{wait}\nexec /usr/bin/env "$@"\n', encoding="utf-8")
    slow.chmod(0o755)
    desk.env["PATH"] = f"{slow.parent}:{desk.env['PATH']}"
    config = small(tmp_path / "run", train={"steps": 20})
    job = desk.sbatch(*TWO, "slurm/train.sh", "--config", config_file(config))
    desk.until(job, mark.exists)
    desk.cluster("scancel", "--signal=USR1", job)
    log = desk.ended(job)
    assert log.count(EARLY) == 1 and desk.restarts(job) == "1" and "done: 20 steps" in log


def test_as_many_processes_as_gpus_and_lines_of_ones_own(desk, tmp_path):
    """--ntasks-per-node need not be given; slurm/cluster.local.sh is sourced."""
    (tmp_path / "slurm").unlink()
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    (tmp_path / "slurm" / "cluster.local.sh").write_text("echo lines of my own $NOT_SET\n")
    config = small(tmp_path / "run")
    words = ("--nodes=1", "--gpus-per-node=2", "--ntasks-per-node=1", "--cpus-per-task=3")
    log = desk.ended(desk.sbatch(*words, "slurm/train.sh", "--config", config_file(config)))
    assert "2 process(es) on cpu, 1 thread(s) each" in log and "lines of my own" in log


def test_a_job_with_gpus_that_torch_does_not_see_fails_at_once(desk, tmp_path):
    """It would train on CPUs, a hundred times slower."""
    del desk.env["ACCELERATE_USE_CPU"]
    desk.env["CUDA_VISIBLE_DEVICES"] = ""
    config = small(tmp_path / "run")
    log = desk.ended(desk.sbatch(*ONE, "slurm/train.sh", "--config", config_file(config)), "FAILED")
    assert "SLURM_GPUS_ON_NODE=1, but torch" in log and "sees no GPU; install a build" in log
    assert not steps_of(config.run_dir)


def test_the_time_limit_is_survived(desk, tmp_path):
    """The warning comes within half a minute of the new limit: slurm looks every 30 s."""
    config = small(tmp_path / "run", **LONG)
    words = (*ONE, "--time=60", "--signal=USR1@270", "slurm/train.sh", "--config", config_file(config))
    job = desk.sbatch(*words)
    desk.until(job, lambda: logged(config.run_dir) >= 100)
    desk.cluster("scontrol", "update", f"JobId={job}", "TimeLimit=5")
    desk.until(job, lambda: int(desk.restarts(job)) >= 1)
    desk.cluster("scontrol", "update", f"JobId={job}", "TimeLimit=600")  # one warning is enough
    log = desk.log(job)
    assert "stopped at step" in log and "(SIGUSR1)" in log and "back into the queue" in log
    step = steps_of(config.run_dir)[-1]
    config_file(changed(config, train={"steps": step + 100}))
    assert f"resumed {config.run_dir} at step {step}" in desk.ended(job)
    assert [s for s, _ in losses(config.run_dir)][-1] >= step


def test_preemption_is_survived(desk, tmp_path):
    config = small(tmp_path / "run", **LONG)
    job = desk.sbatch(*TWO, "slurm/train.sh", "--config", config_file(config))
    desk.until(job, lambda: logged(config.run_dir) >= 100)
    urgent = desk.sbatch("--partition=urgent", "--nodes=2", "--exclusive", "--wrap", "sleep 3")
    desk.ended(urgent)
    desk.until(job, lambda: desk.restarts(job) == "1")
    step = steps_of(config.run_dir)[-1]
    assert "stopped at step" in desk.log(job)
    config_file(changed(config, train={"steps": step + 100}))
    assert f"resumed {config.run_dir} at step {step}" in desk.ended(job)


def test_scancel_saves_and_does_not_requeue(desk, tmp_path):
    config = small(tmp_path / "run", **LONG)
    job = desk.sbatch(*TWO, "slurm/train.sh", "--config", config_file(config))
    desk.until(job, lambda: logged(config.run_dir) >= 100)
    desk.cluster("scancel", job)
    log = desk.ended(job, "CANCELLED")
    assert "back into the queue" not in log and desk.restarts(job) == "0"
    assert status(config.run_dir)["status"] == "interrupted"
    assert status(config.run_dir)["step"] == steps_of(config.run_dir)[-1] >= 100
    assert "stopped at step" in log  # the log of the last seconds is there


def test_a_crash_is_not_requeued(desk, tmp_path):
    """A process is killed: the other ends at once, with a message, and the job has failed."""
    config = small(tmp_path / "run", **LONG | {"checkpoint": {"every": 200}})
    job = desk.sbatch(*TWO, "slurm/train.sh", "--config", config_file(config))
    desk.until(job, lambda: logged(config.run_dir) >= 300)
    words = ["pgrep", "-f", f"charlm train --config {config_file(config)}$"]
    pids = subprocess.run(words, capture_output=True, encoding="utf-8").stdout.split()
    ranks = {}
    for pid in pids:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks |= {word: pid for word in environment if word.startswith(b"RANK=")}
    subprocess.run(["kill", "-9", ranks[b"RANK=1"]], check=True)
    log = desk.ended(job, "FAILED")
    assert "back into the queue" not in log and desk.restarts(job) == "0"
    assert re.search(r"process 0 has lost another process of this run.*the last checkpoint is of step", log)
    assert status(config.run_dir)["status"] == "failed"


def test_a_mistyped_option_fails_at_once_and_says_so(desk):
    job = desk.sbatch(*ONE, "slurm/train.sh", "--config", "hello", "--train.step", "5")
    assert "unknown option --train.step; did you mean train.steps?" in desk.ended(job, "FAILED")


def test_a_run_that_gets_no_further_is_not_requeued_for_ever(desk, tmp_path):
    config = small(tmp_path / "run", train={"max_hours": 1e-9})
    train(config, quiet=True)
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "run" / "lost")
    on_a_cpu = (*ONE, "--gpus-per-node=0")
    log = desk.ended(desk.sbatch(*on_a_cpu, "slurm/train.sh", "--config", config_file(config)), "FAILED")
    assert "it got no further than step 1" in log


def test_a_time_limit_that_leaves_no_time_to_train_is_not_met_again_and_again(desk, tmp_path):
    config = small(tmp_path / "run", train={"max_hours": 1e-9})
    words = (*ONE, "--gpus-per-node=0", "--time=3", "--signal=USR1@60", "slurm/train.sh")
    log = desk.ended(desk.sbatch(*words, "--config", config_file(config)), "FAILED")
    assert "not put back into the queue: 1 steps in this start" in log and "Give a longer --time" in log


def test_a_sweep_trains_every_line_in_a_run_directory_of_its_own(desk, tmp_path):
    config = small(tmp_path / "run")
    lines = ["--model.cell gru", "# a comment", "", "--train.steps 5 --sample.prompt 'The quick'"]
    (tmp_path / "sweep.txt").write_text("\n".join(lines) + "\n")
    words = ("--array=0-2", *ONE, "slurm/sweep.sh", "sweep.txt", "--config", config_file(config))
    job = desk.sbatch(*words)
    logs = {}
    for index, state in enumerate(("COMPLETED", "COMPLETED", "FAILED")):
        desk.cluster.wait(f"{job}_{index}")
        logs[index] = (tmp_path / f"charlm-sweep-{job}_{index}.out").read_text()
        assert desk.cluster.state(f"{job}_{index}") == state, logs[index]
    assert "sweep.txt has only 2 lines of options" in logs[2]
    first, second = (tmp_path / f"runs/charlm-sweep-{job}_{index}" for index in (0, 1))
    assert (status(first)["step"], status(second)["step"]) == (12, 5)
    assert "cell: gru" in (first / "config.yaml").read_text()
    assert "prompt: The quick" in (second / "config.yaml").read_text()


def test_a_chain_prepares_then_trains_then_evaluates(desk, tmp_path):
    """Evaluation waits until training is done, over its restarts: a start makes one step, the last none."""
    config = small(tmp_path / "run", train={"steps": 2, "max_hours": 1e-9})
    env = desk.env | {"TRAIN_OPTIONS": " ".join(TWO), "EVALUATE_OPTIONS": "--cpus-per-task=1"}
    words = ("bash", "slurm/chain.sh", "--config", config_file(config))
    told = desk.cluster(*words, cwd=desk.folder, env=env)
    jobs = dict(re.findall(r"(\w+): job (\d+)", told))
    assert list(jobs) == ["prepare", "train", "evaluate"]
    assert f"{config.data.dir}/literal-" in desk.ended(jobs["prepare"])
    assert "done: 2 steps" in desk.ended(jobs["train"])
    assert desk.restarts(jobs["train"]) == "2"
    figures = status(config.run_dir)["test"]
    assert f"test: {figures['nats_per_character']:.4f} nats/char" in desk.ended(jobs["evaluate"])


def test_a_chain_that_breaks_leaves_nothing_waiting(desk, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("")
    config = small(tmp_path / "run", data={"source": "text", "data_files": str(path)})
    env = desk.env | {"TRAIN_OPTIONS": " ".join(ONE)}
    words = ("bash", "slurm/chain.sh", "--config", config_file(config))
    told = desk.cluster(*words, cwd=desk.folder, env=env)
    jobs = dict(re.findall(r"(\w+): job (\d+)", told))
    assert "the text is empty" in desk.ended(jobs["prepare"], "FAILED")
    desk.ended(jobs["train"], "CANCELLED")
    desk.ended(jobs["evaluate"], "CANCELLED")


def test_an_array_prepares_what_one_process_does(desk, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(MIXED * 50, encoding="utf-8")
    options = {"source": "text", "data_files": str(path), "document": "line", "split_by": "document"}
    config = small(tmp_path / "run", data=options)
    env = desk.env | {"PREPARE_OPTIONS": "--cpus-per-task=1"}
    words = ("bash", "slurm/prepare-array.sh", "3", "--config", config_file(config))
    told = desk.cluster(*words, cwd=desk.folder, env=env)
    jobs = dict(re.findall(r"(\w+): job (\d+)", told))
    assert list(jobs) == ["count", "vocabulary", "encode", "join"]
    assert f"{config.data.dir}/text-" in desk.ended(jobs["join"])
    alone = small(tmp_path / "run", data=options | {"dir": str(tmp_path / "alone")})
    words = (sys.executable, "-m", "charlm", "prepare", "--config", config_file(alone))
    subprocess.run(words, check=True, capture_output=True)
    (one,), (many,) = ([*(tmp_path / name).glob("text-*")] for name in ("alone", "data"))
    for file in ("vocab.json", "train.npy", "validation.npy", "test.npy"):
        assert (one / file).read_bytes() == (many / file).read_bytes()
