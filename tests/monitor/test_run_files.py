"""The files of a run: torn lines, requeued and resumed jobs, damaged files, the time left."""

import json
import math
import time

import numpy as np
import pytest

from charlm.errors import CharlmError
from charlm.monitor.run_files import History, read_history
from charlm.monitor.watch import picture
from charlm.report.plots import series


def write(run_dir, *records: dict | str, status: dict | None = None) -> History:
    """A run directory with these records (each gets a time) or lines, and its history, refreshed."""
    lines = [r if isinstance(r, str) else json.dumps({"time": 1.0} | r) for r in records]
    (run_dir / "metrics.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    (run_dir / "config.yaml").write_text("train: {steps: 40}\n")
    if status is not None:
        (run_dir / "status.json").write_text(json.dumps(status))
    history = History(run_dir)
    history.refresh()
    return history


def test_series_samples_and_the_last_step(tmp_path):
    history = write(
        tmp_path,
        *({"step": 2, "loss": 3.0}, {"step": 2, "sample": "ab"}, {"step": 4, "loss": math.nan}),
        status={"status": "running", "step": 9},
    )
    steps, values = series(history, "loss")
    assert steps.dtype == np.int64 and steps.tolist() == [2, 4]
    assert values[0] == 3.0 and math.isnan(values[1])
    assert history.points("sample") == [(2, "ab")] and history.last_step == 9 and history.steps == 40
    assert [len(part) for part in series(history, "none")] == [0, 0]


def test_lines_that_are_no_records_are_skipped(tmp_path):
    record = {"step": 1, "loss": 5, "time": 1.0}
    history = write(tmp_path, "[]", '{"loss": 1}', "\0\0", '{"step": "x"}', record, "null", "not JSON")
    assert history.records == [record]


@pytest.mark.parametrize("value", [None, "abc", [1], {}])
def test_figures_of_another_type_are_skipped(tmp_path, value):
    good = {"step": 2, "bpc": 2.5, "validation/bpc": 3.0, "sample": "hi"}
    bad = {"step": 4, "bpc": value, "validation/bpc": value, "sample": 7}
    history = write(tmp_path, good, bad, status={"status": "done", "step": 4, "steps": 4})
    assert history.points("bpc") == [(2, 2.5)] and history.points("sample") == [(2, "hi")]
    assert history.best["step"] == 2 and history.figures()["validation"]["bpc"] == 3.0


def test_a_requeued_run_has_its_steps_once(tmp_path):
    pairs = ((1, 9), (2, 8), (3, 7), (2, 6), (3, 5))
    history = write(tmp_path, *({"step": step, "loss": loss} for step, loss in pairs))
    steps, values = series(history, "loss")
    assert steps.tolist() == [1, 2, 2, 3] and values.tolist() == [9, 8, 6, 5]


def test_a_torn_line_is_read_when_its_rest_has_been_written(tmp_path):
    history, line = write(tmp_path, {"step": 1, "bpc": 2.0}), json.dumps({"step": 7, "bpc": 1.5, "time": 1.0})
    for part in (line[:9], line[9:], "\n"):
        assert history.points("bpc") == [(1, 2.0)]
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(part)
        history.refresh()
    assert history.points("bpc") == [(1, 2.0), (7, 1.5)]


def test_a_resumed_run_replaces_the_records_and_the_config(tmp_path):
    history = write(tmp_path, *({"step": step, "bpc": 2.0} for step in range(9)))
    (tmp_path / "new").write_bytes(b"".join((tmp_path / "metrics.jsonl").read_bytes().splitlines(True)[:5]))
    (tmp_path / "new").rename(tmp_path / "metrics.jsonl")
    (tmp_path / "config.yaml").write_text("train: {steps: 99}\n")
    history.refresh()
    assert len(history.points("bpc")) == 5 and history.steps == 99


def test_minutes_have_no_number_of_steps_until_it_is_measured(tmp_path):
    records = [{"step": step, "loss": 1.0, "time": 100.0 + step} for step in range(1, 5)]
    running = {"status": "running", "step": 0, "steps": None}
    history = write(tmp_path, *records, status=running)
    assert history.steps == 40  # an older run: from its config
    (tmp_path / "config.yaml").write_text("train: {steps: 1000, minutes: 3.0, epochs: null}\n")
    history.refresh()
    assert history.steps == 0 and history.seconds_left() is None and history.figures()["steps"] is None
    assert "step 4  " in picture(history, 100, 20)[0] + "  "
    (tmp_path / "status.json").write_text(json.dumps(running | {"steps": 24}))
    history.refresh()
    assert history.steps == 24 and history.seconds_left() == pytest.approx(20)
    assert "step 4 of 24  17%" in picture(history, 100, 20)[0]


def test_the_time_left_does_not_count_a_pause_between_two_jobs(tmp_path):
    now = time.time()
    times = [now - 60 + 3 * step - (3600 if step < 10 else 0) for step in range(20)]
    records = [{"step": step, "loss": 1.0, "time": times[step]} for step in range(20)]
    history = write(tmp_path, *records, status={"status": "running", "step": 0})
    assert history.seconds_left() == pytest.approx(3 * 21, abs=1e-3)
    assert history.seconds_silent() == 0
    one = write(tmp_path, {"step": 5, "time": time.time(), "loss": 2.0}, status={"status": "running"})
    assert one.seconds_silent() == 0  # no time between records yet
    assert write(tmp_path, *records, status={"status": "done", "step": 40}).seconds_left() == 0
    assert write(tmp_path, *records[:1], status={"status": "running", "step": 0}).seconds_left() is None


def test_a_run_is_silent_when_it_wrote_nothing_for_far_longer_than_before(tmp_path):
    running = {"status": "running"}
    records = [{"step": s, "loss": 1.0, "time": time.time() - 1000 + 50 * s} for s in range(3)]
    assert write(tmp_path, *records, status=running).seconds_silent() == pytest.approx(900, abs=9)
    records.append({"step": 3, "loss": 1.0, "time": time.time() - 200})
    assert write(tmp_path, *records, status=running).seconds_silent() == 0
    assert write(tmp_path, *records[:3], status={"status": "done"}).seconds_silent() == 0


def test_an_empty_folder_is_an_empty_history(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        history = read_history(folder)
        assert (history.records, history.status, history.last_step) == ([], {}, 0)
        assert (
            history.state == "waiting" and history.best is None and not any(history.figures()["train"] or {})
        )


@pytest.mark.parametrize("content", ["[]", "{", "3"])
def test_a_damaged_status_is_an_error_for_watch_and_missing_for_a_report(tmp_path, content):
    write(tmp_path, {"step": 1, "loss": 5})
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(CharlmError, match=r"status\.json: cannot be read: "):
        History(tmp_path).refresh()
    history = read_history(tmp_path)
    assert history.status == {} and history.last_step == 1


@pytest.mark.parametrize("content", ["[]", "{", "train: 3", "model: {}", ""])
def test_a_config_of_something_else_is_an_error(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(CharlmError, match=r"config\.yaml: cannot be read: "):
        History(tmp_path).refresh()


def test_a_long_series_becomes_means_of_neighbours():
    history = History()
    history.records = [{"step": step, "loss": step - 1.0} for step in range(1, 1001)]
    steps, values = series(history, "loss", most=10)
    assert steps.tolist() == list(range(100, 1001, 100))
    assert values.tolist() == [100 * k + 49.5 for k in range(10)]
    history.records = history.records[:3]
    assert series(history, "loss", most=10)[0].tolist() == [1, 2, 3]
