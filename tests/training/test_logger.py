"""What a run tells: metrics.jsonl, Weights & Biases, lines for people."""

import json
import math
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from forks import Fork
from helpers import (
    ROOT,
    assert_same_state,
    changed,
    charlm,
    command,
    config_file,
    environment,
    forked,
    logged,
    losses,
    newest,
    records,
    small,
    start,
    start_anew,
    status,
    wait_until,
    wandb_ended,
    wandb_run,
)
from wandb_server import WandbServer

from charlm.config.fields import LogConfig
from charlm.config.parse import flatten, load_config, read_run_config
from charlm.errors import CharlmError
from charlm.training.checkpoint import steps_of
from charlm.training.logger import wandb_mode
from charlm.training.loop import train

# which mode


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """No account and no wish: as on a fresh machine."""
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return monkeypatch


@pytest.fixture
def server():
    """The port of something on this machine that accepts connections."""
    with socket.create_server(("localhost", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def nothing_there():
    """A port of this machine that refuses connections."""
    with socket.create_server(("localhost", 0)) as listening:
        port = listening.getsockname()[1]
    return port


@pytest.mark.parametrize("choice", ["online", "offline", "disabled"])
def test_what_the_config_names_is_taken(nobody, choice):
    nobody.setenv("WANDB_MODE", "offline" if choice == "disabled" else "disabled")
    assert wandb_mode(LogConfig(wandb=choice)) == (choice, "log.wandb")


def test_a_disabled_wandb_stays_so_with_an_account(nobody, server):
    nobody.setenv("WANDB_API_KEY", "0" * 40)
    nobody.setenv("WANDB_BASE_URL", f"http://localhost:{server}")
    for value, mode in (("true", "disabled"), ("1", "disabled"), ("false", "online"), ("", "online")):
        nobody.setenv("WANDB_DISABLED", value)
        assert wandb_mode(LogConfig())[0] == mode


@pytest.mark.parametrize(
    ("value", "mode"),
    [("offline", "offline"), ("disabled", "disabled"), ("online", "online"), ("dryrun", "offline")],
)
def test_auto_follows_the_environment(nobody, value, mode):
    nobody.setenv("WANDB_MODE", value)
    assert wandb_mode(LogConfig()) == (mode, "WANDB_MODE")


def test_auto_without_an_account_is_disabled(nobody, server):
    nobody.setenv("WANDB_BASE_URL", f"http://localhost:{server}")
    mode, why = wandb_mode(LogConfig())
    assert mode == "disabled" and "no account" in why


def test_auto_with_an_account_that_cannot_be_reached_is_offline_at_once(nobody, nothing_there):
    nobody.setenv("WANDB_API_KEY", "0" * 40)
    nobody.setenv("WANDB_BASE_URL", f"http://localhost:{nothing_there}")
    started = time.monotonic()
    mode, why = wandb_mode(LogConfig())
    assert mode == "offline" and "localhost cannot be reached" in why and "wandb sync" in why
    assert time.monotonic() - started < 30  # wandb itself would try for minutes


def test_auto_with_an_account_that_answers_is_online(nobody, server):
    nobody.setenv("WANDB_API_KEY", "0" * 40)
    nobody.setenv("WANDB_BASE_URL", f"http://localhost:{server}")
    assert wandb_mode(LogConfig())[0] == "online"


def test_an_account_in_netrc_counts(nobody, server, nothing_there, tmp_path):
    (tmp_path / "netrc").write_text("machine localhost login user password " + "0" * 40)
    nobody.setenv("WANDB_BASE_URL", f"http://localhost:{server}")
    assert wandb_mode(LogConfig())[0] == "online"
    nobody.setenv("WANDB_BASE_URL", f"http://localhost:{nothing_there}")
    assert wandb_mode(LogConfig())[0] == "offline"
    nobody.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server}")  # another host than the account's
    assert wandb_mode(LogConfig())[0] == "disabled"


def test_a_run_says_what_it_chose_and_why(tmp_path, capsys):
    config = small(tmp_path / "run", train={"steps": 1}, log={"wandb": "auto"})
    train(config)  # conftest sets WANDB_MODE=disabled
    assert "wandb: disabled (WANDB_MODE)" in capsys.readouterr().out
    assert not (tmp_path / "run" / "wandb").exists()


# a real run of wandb, read back from its log


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A finished run with log.wandb=offline, and what wandb wrote."""
    run_dir = tmp_path_factory.mktemp("recorded") / "a-run"
    config = small(
        run_dir,
        train={"steps": 9},
        evaluate={"every": 3},
        sample={"every": 4},
        log={"wandb": "offline", "project": "tests"},
    )
    return config, train(config, quiet=True), wandb_ended(run_dir)


def test_wandb_has_the_figures_of_every_step(recorded):
    config, _, told = recorded
    points = [p for p in told["history"] if "loss" in p]
    assert [p["step"] for p in points] == list(range(1, 10))
    wanted = ("loss", "bpc", "bpb", "learning_rate", "grad_norm", "characters_per_second", "memory_gb")
    for point, line in zip(points, (r for r in records(config.run_dir) if "loss" in r), strict=True):
        for name in wanted:
            assert point[name] == line[name] and math.isfinite(point[name]), name


def test_wandb_has_one_axis_that_never_goes_back(recorded):
    _, _, told = recorded
    assert all(a["_step"] < b["_step"] and a["step"] <= b["step"] for a, b in pairwise(told["history"]))
    assert all("step" in p for p in told["history"])


def test_wandb_has_validation_and_samples_as_text(recorded):
    _, summary, told = recorded
    scores = {p["step"]: p["validation/bpc"] for p in told["history"] if "validation/bpc" in p}
    assert sorted(scores) == [3, 6, 9] and scores[summary.best["step"]] == summary.best["bpc"]
    texts = [(p["step"], p["sample"]) for p in told["history"] if "sample" in p]
    assert [step for step, _ in texts] == [4, 8]
    assert all(isinstance(text, str) and text.startswith("The ") for _, text in texts)
    assert told["summary"]["sample"] == summary.sample


def test_wandb_has_the_config_flat_and_the_best_and_test_figures(recorded):
    config, summary, told = recorded
    for name, value in flatten(config).items():
        expected = list(value) if isinstance(value, tuple) else value
        assert told["config"][name] == expected, name
    for name, value in summary.best.items():
        assert told["summary"][f"best/{name}"] == value
    for name, value in summary.test.items():
        assert told["summary"][f"test/{name}"] == value
    assert told["exit"] == 0


def test_wandb_writes_inside_the_run_directory_only(recorded):
    config, _, _ = recorded
    assert len(list(Path(config.run_dir, "wandb").glob("offline-run-*"))) == 1
    assert not Path(os.environ["WANDB_DIR"], "wandb").exists() and not Path("wandb").exists()


def test_what_the_environment_names_is_what_wandb_is_told(tmp_path):
    named = {"PROJECT": "theirs", "NAME": "a name", "RUN_ID": "abc123", "RUN_GROUP": "a group", "TAGS": "a,b"}
    named = {f"WANDB_{name}": value for name, value in named.items()}
    config = small(tmp_path / "run", train={"steps": 2}, log={"wandb": "offline"})
    assert start(config, **named).wait() == 0
    told = wandb_ended(config.run_dir)["run"]
    assert (told.project, told.display_name, told.run_group, told.tags) == (
        "theirs",
        "a name",
        "a group",
        ["a", "b"],
    )
    config = changed(config, train={"steps": 3}, log={"project": "ours"})
    assert start(config, WANDB_PROJECT="theirs").wait() == 0  # the id is that of the checkpoint
    told = wandb_ended(config.run_dir)["run"]
    assert (told.run_id, told.project, told.display_name) == ("abc123", "ours", "run")


# one wandb run over all restarts


BUSY = {
    "model": {"hidden_size": 48},
    "train": {"steps": 1_000_000, "bptt": 24},  # whatever is done to it, it is under way still
    "evaluate": {"every": 40},
    "sample": {"every": 60},
    "checkpoint": {"every": 50},
    "log": {"every": 1, "wandb": "auto"},
}


def killed_twice(config, **variables) -> int:
    """Start the run, kill it with -9 when it has gone on by some 60 steps, twice; then let it finish.

    Returns at which step.
    """
    for _ in range(2):
        at = logged(config.run_dir) + 60
        process = start(config, **variables)
        wait_until(lambda at=at: logged(config.run_dir) >= at, process)
        process.kill()
        process.communicate()
    last = logged(config.run_dir) + 60
    said, _ = (process := start(changed(config, train={"steps": last}), **variables)).communicate(timeout=600)
    assert process.returncode == 0, said
    return last


def assert_one_curve(config, points: list[dict]) -> None:
    """Every record of metrics.jsonl is at wandb once, in order, and tells the same."""
    lines = records(config.run_dir)
    assert [p["_step"] for p in points] == list(range(len(lines)))
    for point, line in zip(points, lines, strict=True):
        assert point["_timestamp"] == line.pop("time")
        assert {name: point[name] for name in line} == line


def sync(config, server: WandbServer) -> None:
    """The one command that syncs an offline run."""
    words = [sys.executable, "-m", "wandb", "sync", f"{config.run_dir}/wandb/latest-run"]
    env = environment(**server.environment)
    synced = subprocess.run(words, env=env, capture_output=True, encoding="utf-8", timeout=600)
    assert synced.returncode == 0, synced.stdout + synced.stderr


def test_offline_a_run_that_was_killed_is_one_curve(tmp_path):
    config = small(tmp_path / "run", **BUSY)
    last = killed_twice(config, WANDB_MODE="offline")
    assert [step for step, _ in losses(config.run_dir)] == list(range(1, last + 1))
    told = wandb_ended(config.run_dir)  # of the one offline run that is left
    assert_one_curve(config, told["history"])
    facts = newest(config.run_dir)[0]
    assert [p.name.endswith(facts["run_id"]) for p in (tmp_path / "run" / "wandb").glob("offline-run-*")] == [
        True
    ]
    assert {f"best/{k}": v for k, v in facts["best"].items()}.items() <= told["summary"].items()
    assert told["exit"] == 0


@pytest.mark.slow
def test_an_offline_run_that_is_synced_again_after_another_restart_is_one_curve(tmp_path):
    """Synced while it waits in the queue, and again when it is done: what is there is not doubled."""
    config = small(tmp_path / "run", train={"steps": 9}, evaluate={"every": 3}, log={"wandb": "offline"})
    with WandbServer() as server:
        for steps in (4, 7, 9):
            train(changed(config, train={"steps": steps}), quiet=True)
            if steps != 7:
                wandb_ended(config.run_dir)
                sync(config, server)
                (points,) = server.rows.values()
                assert_one_curve(config, points)
    (summary,) = server.summaries.values()
    best = status(config.run_dir)["best"]
    assert {f"best/{k}": v for k, v in best.items()}.items() <= summary.items()


def test_an_offline_run_that_ends_killed_holds_the_whole_curve_in_its_newest_part(tmp_path):
    """`wandb sync …/latest-run` is the one command that syncs afterwards, whatever happened."""
    config = small(tmp_path / "run", **BUSY)
    process = start_anew(config, WANDB_MODE="offline")
    wait_until(lambda: logged(config.run_dir) >= 60 and steps_of(config.run_dir) != [], process)
    process.kill()
    process.communicate()
    before = steps_of(config.run_dir)[-1]
    told = start(changed(config, train={"max_hours": 1e-9}), WANDB_MODE="offline").communicate()[0]
    assert f"stopped at step {before + 1} " in told
    latest = (tmp_path / "run" / "wandb" / "latest-run").resolve()
    steps = [p["step"] for p in wandb_run(latest)["history"] if "loss" in p]
    assert steps == list(range(1, before + 2))


def test_online_a_run_that_was_killed_is_one_curve(tmp_path):
    config = small(tmp_path / "run", **BUSY)
    with WandbServer() as server:
        last = killed_twice(config, **server.environment, WANDB_FINISH_TIMEOUT="600")
    assert list(server.rows) == [newest(config.run_dir)[0]["run_id"]]
    (points,) = server.rows.values()
    assert [step for step, _ in losses(config.run_dir)] == list(range(1, last + 1))
    # what is told twice, before and after a kill, is the same but for the clock
    lines = records(config.run_dir)
    assert [p["_step"] for p in points] == list(range(len(lines)))
    for point, line in zip(points, lines, strict=True):
        for name in ("step", "loss", "validation/bpc", "sample"):
            assert point.get(name) == line.get(name)


def test_a_wandb_that_breaks_down_harms_nothing(tmp_path):
    """Its process is killed in the middle of the run."""
    config = small(tmp_path / "run", **BUSY)
    process = start(config, WANDB_MODE="offline")
    wait_until(lambda: logged(config.run_dir) >= 60, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (core,) = [pid for pid in children if "wandb" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(core), signal.SIGKILL)
    at = logged(config.run_dir) + 60
    wait_until(lambda: logged(config.run_dir) >= at, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "stopped at step" in said and "wandb: failed, no longer used" in said
    step = newest(config.run_dir)[0]["step"]
    assert [step for step, _ in losses(config.run_dir)] == list(range(1, step + 1))


def test_a_server_that_goes_away_in_mid_run_harms_nothing(tmp_path):
    """The run ends as if nothing had happened, soon, and says how to send the rest."""
    config = small(tmp_path / "run", **BUSY)
    server = WandbServer()
    process = start(config, **server.environment, WANDB_FINISH_TIMEOUT="4")
    wait_until(lambda: logged(config.run_dir) >= 60, process)
    server.close()
    at = logged(config.run_dir) + 60
    wait_until(lambda: logged(config.run_dir) >= at, process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "stopped at step" in said and "Traceback" not in said
    assert re.search(
        r"wandb: the server did not take the rest in 4 s; later: wandb sync \S+/wandb/run-\S+", said
    )
    assert status(config.run_dir)["status"] == "interrupted"
    steps = newest(config.run_dir)[0]["step"] + 1
    whole = small(tmp_path / "whole", **BUSY)
    for one in (config, whole):
        train(changed(one, train={"steps": steps}, log={"wandb": "disabled"}), quiet=True)
    assert_same_state(config.run_dir, whole.run_dir)


@pytest.mark.slow
def test_every_trial_of_an_agent_trains_in_a_run_dir_of_its_own(tmp_path):
    """The agent is wandb's own. It writes whole numbers as floats, and None as Python does."""
    config = small(tmp_path / "{run_id}", log={"wandb": "auto"})
    same = {"train.steps": 4.0, "optim.clip": None, "model.locked_dropout": True}
    trials = tuple({"optim.learning_rate": rate} | same for rate in (0.01, 0.02))
    words = command("train", "--config", config_file(config))
    with WandbServer(tuple(words), trials) as server:
        agent = [sys.executable, "-m", "wandb", "agent", "--count", "2", "someone/theirs/s"]
        env = environment(**server.environment, PYTHONPATH=str(ROOT), WANDB_DIR=str(tmp_path))
        ran = subprocess.run(agent, env=env, capture_output=True, encoding="utf-8", timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for number, of in enumerate(trials):
        run_dir = tmp_path / f"trial{number}"
        read = flatten(read_run_config(run_dir))
        assert status(run_dir)["status"] == "done" and {key: read[key] for key in of} == of
        assert [row["loss"] for row in server.rows[f"trial{number}"] if "loss" in row] == [
            loss for _, loss in losses(run_dir)
        ]


# other trackers


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name of a scalar → (step, value) in the event files of TensorBoard, as its own reader has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0})
    read.Reload()
    tags = read.Tags()
    samples = {tag: [event.step for event in read.Tensors(tag)] for tag in tags["tensors"]}
    return samples | {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in tags["scalars"]}


def trackio_rows(folder: Path, project: str) -> list[dict]:
    """The points of the newest run in trackio's database of a project."""
    with sqlite3.connect(folder / f"{project}.db") as database:
        rows = database.execute("select run_id, step, metrics from metrics order by id").fetchall()
    return [{"step": step} | json.loads(metrics) for run, step, metrics in rows if run == rows[-1][0]]


def test_several_trackers_have_one_curve_each_of_a_run_that_was_killed(tmp_path):
    trackers = {"trackers": ["wandb", "tensorboard", "trackio"], "wandb": "offline", "project": "tests"}
    config = small(tmp_path / "run", **BUSY | {"log": {"every": 1} | trackers})
    process = start(config, TRACKIO_DIR=str(tmp_path / "trackio"))
    wait_until(lambda: logged(config.run_dir) >= 60, process)
    process.kill()
    last = logged(config.run_dir) + 60
    words = ["train", "--config", config_file(changed(config, train={"steps": last})), "--json"]
    ran = forked(*words, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert ran.returncode == 0, ran.stderr
    test = json.loads(ran.stdout)["test"]  # nothing else is printed
    lines = records(config.run_dir)
    read = events(tmp_path / "run" / "tensorboard")
    for name in ("loss", "learning_rate", "validation/bpc"):
        assert read[name] == [(r["step"], pytest.approx(r[name])) for r in lines if name in r], name
    assert read["sample/text_summary"] == [r["step"] for r in lines if "sample" in r] + [last]
    assert read["test/bpc"] == [(last, pytest.approx(test["bpc"]))]
    rows = trackio_rows(tmp_path / "trackio", "tests")
    for name in ("loss", "validation/bpc", "sample"):
        told = [(r["step"], r[name]) for r in rows if name in r]
        assert told[: -1 if name == "sample" else None] == [(r["step"], r[name]) for r in lines if name in r]
    assert_one_curve(config, wandb_ended(config.run_dir)["history"])


def test_a_tracker_that_breaks_down_harms_nothing(tmp_path):
    """The disk refuses what TensorBoard writes, from the hundredth time on."""
    config = small(tmp_path / "run", **BUSY | {"log": {"every": 1, "trackers": "tensorboard"}})
    code = (
        "import itertools, tensorboard.summary.writer.event_file_writer as w\n"
        "write, times = w._AsyncWriter.write, itertools.count()\n"
        "w._AsyncWriter.write = lambda *words: write(*words) if next(times) < 100 else 1 / 0"
    )
    words = ["train", "--config", str(config_file(changed(config, train={"steps": 50})))]
    ran = Fork(words, environment(), before=code)
    said, _ = ran.communicate()
    assert ran.returncode == 0 and "tensorboard: failed, no longer used (ZeroDivisionError" in said
    assert [step for step, _ in losses(config.run_dir)] == list(range(1, 51))


def test_trackers_that_cannot_be_are_refused_before_the_text_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking._available_trackers", ["wandb"])
    config = small(tmp_path / "run", log={"trackers": ["tensorboard"]})
    with pytest.raises(
        CharlmError, match=r"^log\.trackers=tensorboard: it is not installed: pip install tensorboard$"
    ):
        train(config)
    assert not (tmp_path / "data").exists()


def test_without_wandb_among_the_trackers_there_is_none(tmp_path, capsys):
    config = small(tmp_path / "run", train={"steps": 1}, log={"trackers": [], "wandb": "offline"})
    train(config)
    assert "wandb: disabled (log.trackers)" in capsys.readouterr().out
    assert not (tmp_path / "run" / "wandb").exists()
    with pytest.raises(CharlmError, match=r"log\.trackers=\['comet'\]: a list of some of wandb, .*comet_ml"):
        load_config(None, "log.trackers=comet")


# lines for people


def test_output_that_is_not_a_terminal_is_plain_lines(tmp_path):
    config = small(
        tmp_path / "run", train={"steps": 20}, evaluate={"every": 10}, sample={"every": 10}, log={"every": 5}
    )
    ran = charlm("train", "--config", config_file(config))
    assert ran.returncode == 0, ran.stderr
    assert "\r" not in ran.stdout + ran.stderr and "\x1b" not in ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    steps = [line for line in lines if line.startswith("step ") and "chars/s" in line]
    assert [line.split()[1] for line in steps] == ["5/20", "10/20", "15/20", "20/20"]
    assert all("loss " in line and "bpc " in line and line.endswith(" left") for line in steps)
    assert [line.split(":")[0] for line in lines if "validation" in line and "step" in line] == [
        "step 10",
        "step 20",
    ]
    assert "--- sample, step 10 ---" in lines and "--- sample, best ---" in lines
    assert lines[-4].startswith("validation: ") and lines[-3].startswith("test: ")
    assert lines[-2].startswith("counting reaches ") and lines[-2].endswith("or try --model.ngrams 6")
    assert lines[-1] == f"done: 20 steps; the best weights are in {config.run_dir}/model"
    assert any("4 lanes × 7 characters per step" in line for line in lines)
    assert ran.stderr == ""  # nothing of the libraries' own


def test_quiet_prints_nothing(tmp_path, capfd):
    train(small(tmp_path / "run", sample={"every": 5}, evaluate={"every": 5}), quiet=True)
    assert capfd.readouterr() == ("", "")


# metrics.jsonl of a run that was killed


@pytest.fixture
def half(tmp_path):
    """A config of 8 steps, trained to step 4, and its metrics.jsonl."""
    config = small(tmp_path / "run", train={"steps": 8})
    train(changed(config, train={"steps": 4}), quiet=True)
    return config, tmp_path / "run" / "metrics.jsonl"


def test_lines_later_than_the_checkpoint_are_dropped(half):
    config, path = half
    before = path.read_text()
    later = "".join(json.dumps({"step": step, "loss": 99.0}) + "\n" for step in (5, 6, 7))
    path.write_text(before + later)
    train(config, quiet=True)
    assert [step for step, _ in losses(config.run_dir)] == list(range(1, 9))
    assert 99.0 not in [loss for _, loss in losses(config.run_dir)]
    assert path.read_text().startswith(before)


@pytest.mark.parametrize(
    "torn",
    [
        b'{"step": 4, "lo',
        b'{"step": 4, "loss": 1.5}',  # whole, but for its newline: the next line would stick to it
        b'{"step": 4, "sample": "\xd0\xb1\xd1',  # in the middle of a character
        b"\0" * 50,  # what a crash of the machine may leave
        b"12",
    ],
)
def test_a_torn_last_line_is_dropped(half, torn):
    config, path = half
    before = path.read_bytes()
    path.write_bytes(before + torn)
    train(config, quiet=True)
    assert path.read_bytes().startswith(before + b'{"step": 5, ')
    assert [step for step, _ in losses(config.run_dir)] == list(range(1, 9))


@pytest.mark.parametrize("end", ["\x85", "\u2028", "\u2029", "\x0b", "\x1c"])
def test_a_sample_may_hold_every_kind_of_line_end(tmp_path, end):
    """They are characters as any other; only \\n ends a line of metrics.jsonl."""
    text = f"ab{end}" * 300
    config = small(
        tmp_path / "run",
        data={"text": text, "validation": 0, "test": 0},
        train={"steps": 4},
        sample={"every": 2, "prompt": f"a{end}b"},
    )
    train(config, quiet=True)
    before = records(config.run_dir)
    assert [r["sample"][:3] for r in before if "sample" in r] == [f"a{end}b"] * 2
    train(changed(config, train={"steps": 5}), quiet=True)
    assert records(config.run_dir)[: len(before)] == before
