"""scripts/bench.py: it runs, and its figures are what they say. Nothing here looks at a clock."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, environment

BENCH = ROOT / "scripts" / "bench.py"


def bench(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH), *map(str, words)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, env=environment())


def test_sample_gives_a_row_for_every_size_and_a_table(tmp_path):
    words = ["--cells", "lstm", "gru", "--hidden", 8, "--layers", 2, "--streams", 1, 3, "--length", 5]
    done = bench("sample", *words, "--rounds", 2, "--json", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "a.json").read_text())
    assert [(r["cell"], r["layers"], r["hidden"], r["streams"]) for r in told["rows"]] == [
        (cell, 2, 8, streams) for cell in ("lstm", "gru") for streams in (1, 3)
    ]
    for row in told["rows"]:
        speeds = row["rounds"]
        assert set(speeds) == {"textbook", "charlm", "limit"}
        assert all(len(v) == 2 and min(v) > 0 for v in speeds.values())
        ratios = sorted(c / t for c, t in zip(speeds["charlm"], speeds["textbook"], strict=True))
        assert row["of_textbook"] == pytest.approx(sum(ratios) / 2)
    assert "gru 2 × 8, 3 stream(s)" in done.stdout and "× textbook" in done.stdout


def test_train_gives_a_row_for_every_size_and_a_table(tmp_path):
    words = ["--cells", "rnn", "gru", "--hidden", 8, "--lanes", 3, "--bptt", 4, "--steps", 3]
    done = bench("train", *words, "--rounds", 1, "--json", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "a.json").read_text())
    assert [(r["cell"], r["hidden"], r["lanes"], r["bptt"]) for r in told["rows"]] == [
        ("rnn", 8, 3, 4),
        ("gru", 8, 3, 4),
    ]
    for row, gates in zip(told["rows"], (1, 3), strict=True):
        assert set(row["rounds"]) == {"textbook", "step", "charlm", "limit"}
        assert row["flops_per_character"] == 6 * (gates * 8 * (64 + 8) + 8 * 96)
    assert "rnn 1 × 8, 3 × 4" in done.stdout


def test_sizes_and_lanes_must_be_as_many():
    done = bench("train", "--hidden", 8, 16, "--lanes", 3)
    assert done.returncode == 2
    assert "as many lanes as hidden sizes" in done.stderr
