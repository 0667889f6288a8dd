"""What a run has told: torn lines, requeued jobs, samples, long curves."""

import json
import math

import numpy as np

from charlm.monitor.history import read_history, thinned


def told(run_dir, *lines: str):
    (run_dir / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return read_history(run_dir)


def test_series_samples_and_the_last_step(tmp_path):
    (tmp_path / "status.json").write_text('{"status": "running", "step": 9}')
    history = told(
        tmp_path,
        *('{"step": 2, "loss": 3.0}', '{"step": 2, "sample": "ab"}', '{"step": 4, "loss": NaN}'),
        '{"step": 6, "loss": 1',
    )
    steps, values = history.series("loss")
    assert steps.tolist() == [2, 4] and values[0] == 3.0 and math.isnan(values[1])
    assert history.samples == [(2, "ab")] and history.last_step == 9
    assert [len(part) for part in history.series("none")] == [0, 0]


def test_lines_that_are_no_records_count_as_not_there(tmp_path):
    history = told(tmp_path, "[]", '{"loss": 1}', "\0\0", '{"step": "x"}', '{"step": 1, "loss": 5}', "null")
    assert history.records == [{"step": 1, "loss": 5}]


def test_a_requeued_run_tells_its_steps_once(tmp_path):
    lines = [
        json.dumps({"step": step, "loss": loss}) for step, loss in ((1, 9), (2, 8), (3, 7), (2, 6), (3, 5))
    ]
    steps, values = told(tmp_path, *lines).series("loss")
    assert steps.tolist() == [1, 2, 2, 3] and values.tolist() == [9, 8, 6, 5]


def test_an_empty_folder_has_told_nothing(tmp_path):
    history = read_history(tmp_path)
    assert history.records == [] and history.status == {} and history.last_step == 0


def test_a_long_series_becomes_means_of_neighbours():
    steps, values = thinned(np.arange(1, 1001), np.arange(1000.0), most=10)
    assert steps.tolist() == list(range(100, 1001, 100))
    assert values.tolist() == [100 * k + 49.5 for k in range(10)]
    assert thinned(np.arange(3), np.arange(3.0))[0].tolist() == [0, 1, 2]
