"""charlm watch: what a terminal shows of a run, at any width, while it runs, waits, fails or is over."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wcwidth
from helpers import Terminal, charlm, environment, small

from charlm.commands.cli import main
from charlm.monitor.run_files import History
from charlm.monitor.watch import picture, plot
from charlm.training.loop import train

STEPS = 40


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with evaluations and samples on the way."""
    config = small(
        tmp_path_factory.mktemp("watch") / "run",
        train={"steps": STEPS},
        evaluate={"every": 10, "lanes": 3, "context": 20},
        sample={"every": 20},
    )
    train(config, quiet=True)
    return Path(config.run_dir)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(finished, tmp_path / "copy")


def write_status(run, status, **more):
    (run / "status.json").write_text(json.dumps({"status": status, "step": 0} | more) + "\n")


def shown(run, columns=80, rows=40, **options) -> list[str]:
    history = History(run)
    history.refresh()
    return picture(history, columns, rows, **options)


def text(run, **options) -> str:
    return "\n".join(shown(run, **options))


# the picture


def test_a_finished_run_shows_its_status_curve_figures_and_sample(finished):
    output = text(finished)
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    last = [r for r in records if "loss" in r][-1]
    validation = [(r["validation/bpc"], r["step"]) for r in records if "validation/bpc" in r]
    test = json.loads((finished / "status.json").read_text())["test"]
    assert f"done  step {STEPS} of {STEPS}  100%" in output
    assert f"loss {last['loss']:.3f}  bpc {last['bpc']:.3f}" in output
    assert f"validation {validation[-1][0]:.3f} at {validation[-1][1]}" in output
    assert "best {:.3f} at {}".format(*min(validation)) in output
    assert f"test {test['bpc']:.3f}" in output
    assert f"sample at step {STEPS}:\nThe " in output
    assert re.search("[\u2801-\u28ff]", output) and output.count("o: validation") == 1
    assert "left" not in output


@pytest.mark.parametrize("columns", [200, 80, 40, 20, 8])
@pytest.mark.parametrize("rows", [60, 24, 10, 3])
def test_it_fits_any_terminal(finished, columns, rows):
    lines = shown(finished, columns, rows)
    assert len(lines) <= rows
    assert max(wcwidth.width(line) for line in lines) <= columns
    if rows >= 24 and columns >= 40:
        assert any("validation" in line for line in lines) and any("sample" in line for line in lines)


def test_without_braille_it_is_ascii(finished):
    output = text(finished, braille=False)
    assert output.split("sample at")[0].isascii() and "." in output


def test_colors_change_no_character(finished):
    colored = text(finished, color=True)
    assert "\x1b[" in colored and "\x1b" not in text(finished)
    assert re.sub(r"\x1b\[\d+m", "", colored) == text(finished)


def test_a_sample_cannot_take_over_the_terminal(copy):
    with open(copy / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": STEPS, "sample": "\x1b]0;title\x07 狐狐狐\r", "time": 1.0}) + "\n")
    output = text(copy, columns=30)
    assert "\x1b" not in output and r"\x1b]0;title\x07" in output and "狐狐狐" in output


def test_a_running_run_shows_the_time_left(copy):
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if "loss" in r][:20]
    for i, record in enumerate(records):  # 3 s per step, one of them with an hour in the queue
        record["time"] = time.time() - 60 + 3 * i - (3600 if i < 10 else 0)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    write_status(copy, "running")
    assert f"step 20 of {STEPS}  50%  01:00 left" in text(copy)


def test_a_run_that_is_silent_for_long_may_have_been_killed(copy):
    write_status(copy, "running")
    assert "no figures for" not in text(copy)
    lines = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(re.sub(r'"time": [\d.]+', f'"time": {time.time() - 7300}', lines))
    assert "no figures for 2:01:40" in text(copy)


def test_why_a_run_stopped_is_shown(copy):
    write_status(copy, "failed", error="the loss is not finite at step 7; \x1b[2J try less")
    assert r"the loss is not finite at step 7; \x1b[2J try less" in text(copy)
    write_status(copy, "interrupted", reason="SIGUSR1")
    assert "SIGUSR1; the same command resumes the run" in text(copy)


def test_a_run_without_figures_yet(copy):
    (copy / "metrics.jsonl").write_bytes(b"")
    write_status(copy, "running")
    assert text(copy, columns=200).endswith(f"running  step 0 of {STEPS}  0%\nno figures yet")


# the plot


def test_a_falling_line_falls():
    rows = plot([(x, 10 - x) for x in range(11)], [], 40, 5)
    inside = [row.split("┤")[1] for row in rows[:-1]]
    starts = [len(row) - len(row.lstrip("\u2800 ")) for row in inside]
    assert starts == sorted(starts) and starts[0] < 6 and starts[-1] > 20
    assert rows[-1].split() == ["0", "10"]


def test_what_a_run_begins_with_does_not_press_the_rest_flat():
    rows = plot([(0, 1e6), (1, 5.0), *[(x, 2.0) for x in range(2, 100)]], [], 40, 5)
    assert rows[0].startswith("2 ") or rows[0].startswith("5 ")


@pytest.mark.parametrize(
    "points", [[], [(1, float("nan"))], [(1, 2.0)], [(1, 2.0), (2, 2.0)], [(1, 0.0)] * 3]
)
def test_few_or_odd_points_are_no_error(points):
    there = any(y == y for _, y in points)
    assert bool(plot(points, points, 30, 4)) == there
    assert bool(plot(points, [], 1, 1)) == there


# the command


def test_it_answers_at_once(finished):
    """It imports nothing that takes long."""
    words = [sys.executable, "-X", "importtime", "-m", "charlm", "watch", str(finished), "--json"]
    ran = subprocess.run(words, capture_output=True, encoding="utf-8")
    assert ran.returncode == 0, ran.stderr
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in ran.stderr.splitlines()[1:]}
    assert "charlm" in imported
    assert not imported & {"torch", "datasets", "wandb", "accelerate", "numpy", "pyarrow", "jsonargparse"}
    figures = json.loads(ran.stdout)
    assert (figures["status"], figures["step"], figures["steps"]) == ("done", STEPS, STEPS)
    assert figures["seconds_left"] == 0 and figures["best"]["step"] % 10 == 0
    assert figures["train"]["step"] == STEPS and figures["test"]["bpc"] > 0


def test_in_a_pipe_it_prints_one_picture_without_escapes(finished, copy, capsys):
    write_status(copy, "running")
    for words in ([finished], [finished, "--once"], [copy]):
        main(["watch", *map(str, words)])
        output = capsys.readouterr().out
        assert f"step {STEPS} of {STEPS}" in output and "\x1b" not in output


@pytest.mark.parametrize("name", ["gone", "file", "empty", "other", "runs"])
def test_what_is_not_a_run_is_an_error(finished, tmp_path, capsys, name):
    path = tmp_path / name
    if name == "file":
        path.write_text("")
    elif name == "other":
        path.mkdir()
        (path / "notes.txt").write_text("")
    elif name == "runs":
        shutil.copytree(finished, path / "mine")
    elif name == "empty":
        path.mkdir()
        main(["watch", str(path)])
        assert capsys.readouterr().out == f"{path} has not begun yet\n".replace("\n", "") + "\n"
        return
    messages = {
        "gone": "no such run directory",
        "file": "is a file",
        "other": "is not a run directory",
        "runs": f"is not a run directory; runs in {path}: mine",
    }
    with pytest.raises(SystemExit) as left:
        main(["watch", str(path)])
    assert left.value.code.startswith(f"charlm: error: {path}: ") and messages[name] in left.value.code


def test_it_waits_follows_and_ends_with_the_run(finished, tmp_path):
    """From before the run's directory is there to its end, with a torn last line on the way."""
    run = tmp_path / "later"
    terminal = Terminal("watch", "later", cwd=tmp_path)
    terminal.until("later does not exist yet")
    terminal.until("waiting for it to begin")
    run.mkdir()
    terminal.until("has not begun yet")
    lines = (finished / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    shutil.copy(finished / "config.yaml", run)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:10])
    write_status(run, "running")
    terminal.until(f"step 3 of {STEPS}")
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(lines[3][10:])
    terminal.until(f"step 4 of {STEPS}")
    shutil.copy(finished / "metrics.jsonl", run)
    shutil.copy(finished / "status.json", run)
    assert terminal.ended() == 0
    drawn, _, last = terminal.seen.rpartition("\x1b[?25h\x1b[?1049l")  # the screen of before is back
    assert drawn.startswith("\x1b[?1049h\x1b[?25l") and "\x1b[36m" in drawn
    assert "done" in last and "sample at step" in last


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_terminal_as_it_was(copy, number, code):
    write_status(copy, "running")
    terminal = Terminal("watch", copy, columns=40, NO_COLOR="1")
    terminal.until("sample at")
    terminal.process.send_signal(number)
    assert terminal.ended() == code
    drawn, _, last = terminal.seen.rpartition("\x1b[?25h\x1b[?1049l")
    assert "running" in last and "Traceback" not in last
    assert "\x1b[36m" not in drawn
    assert ("stopped by Ctrl-C" in last) == (number == signal.SIGINT)


def test_it_leaves_on_q(copy):
    write_status(copy, "running")
    terminal = Terminal("watch", copy)
    terminal.until("sample at")
    os.write(terminal.main, b"xq")
    assert terminal.ended() == 0 and "Traceback" not in terminal.seen
    assert "running" in terminal.seen.rpartition("\x1b[?25h\x1b[?1049l")[2]


def test_a_terminal_that_cannot_move_the_cursor_gets_one_picture(copy):
    write_status(copy, "running")
    ran = charlm("watch", copy, env=environment(TERM="dumb"))
    assert ran.returncode == 0 and "\x1b" not in ran.stdout and "sample at" in ran.stdout
