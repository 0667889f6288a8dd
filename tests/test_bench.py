"""scripts/bench.py: it runs, and its figures are what they say. Nothing here looks at a clock."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, environment

BENCH = ROOT / "scripts" / "bench.py"


def bench(*words) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH), *map(str, words)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, env=environment())


@pytest.fixture
def here(monkeypatch):
    """main() of scripts/bench.py in this process, without modules whose names other scripts have."""
    for name in ("train", "evaluate", "sample", "prepare"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(BENCH.parent / "bench"), str(BENCH.parent), *sys.path])
    import rounds
    from bench import main

    monkeypatch.setattr(rounds, "PRODUCT", 64)
    yield main
    for name in ("train", "evaluate", "sample", "prepare"):
        sys.modules.pop(name, None)


@pytest.fixture
def rows_of(here, tmp_path, capsys):
    return lambda *words: read_rows(here, tmp_path / "told.json", capsys, *map(str, words))


def read_rows(main, path, capsys, *words) -> tuple[list[dict], str]:
    """The rows of its JSON, and what it prints; all of it fits in 100 columns."""
    main([*words, "--threads", "1", "--json", str(path)])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    told = json.loads(path.read_text())
    assert told["command"] == words[0] and told["torch"] and told["device"]
    for row in told["rows"]:
        assert all(min(speeds) > 0 for speeds in row["rounds"].values())
        assert set(row["characters_per_second"]) == set(row["rounds"])
        pairs = zip(row["rounds"]["charlm"], row["rounds"]["textbook"], strict=True)
        a, b = sorted(c / t for c, t in pairs)  # two rounds
        assert row["of_textbook"] == pytest.approx((a + b) / 2)
        assert row["of_textbook_quartiles"] == pytest.approx([0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b])
        assert row["gflops"] == pytest.approx(
            row["characters_per_second"]["charlm"] * row["flops_per_character"] / 1e9
        )
        assert set(row["memory_mb"]) >= {"textbook", "limit"}
        assert row["name"] in out
    assert told["device"] in out and f"torch {told['torch']}" in out
    return told["rows"], out


def test_sample_gives_a_row_for_every_size_and_a_table(rows_of):
    words = ["--cells", "lstm", "gru", "--sizes", "8x1", "8x3", "--layers", 2, "--length", 5, "--rounds", 2]
    rows, told = rows_of("sample", *words)
    assert [(r["cell"], r["layers"], r["hidden"], r["streams"]) for r in rows] == [
        (cell, 2, 8, streams) for cell in ("lstm", "gru") for streams in (1, 3)
    ]
    assert all(set(r["rounds"]) == {"textbook", "charlm", "limit"} for r in rows)
    assert "gru 2 × 8, 3 at once" in told and "× textbook" in told


def test_train_gives_a_row_for_every_size_and_a_table(rows_of):
    words = ["--cells", "rnn", "gru", "--sizes", "8x3x4", "--steps", 3, "--rounds", 2]
    rows, told = rows_of("train", *words)
    assert [(r["cell"], r["hidden"], r["lanes"], r["bptt"]) for r in rows] == [
        ("rnn", 8, 3, 4),
        ("gru", 8, 3, 4),
    ]
    for row, gates in zip(rows, (1, 3), strict=True):
        assert set(row["rounds"]) == {"textbook", "step", "charlm", "limit"}
        assert row["flops_per_character"] == 6 * (gates * 8 * (64 + 8) + 8 * 96)
        phases = ["input", "forward", "backward", "clip", "optimizer", "logging", "rest"]
        assert list(row["phases_ms"]) == phases
        whole = 3 * 4 / row["characters_per_second"]["charlm"] * 1000
        assert sum(row["phases_ms"].values()) == pytest.approx(whole)
        assert row["scored_per_second"] > 0 and row["threads_of_charlm"] == 1
    assert "rnn 1 × 8, 3 × 4" in told and "logging" in told


def test_evaluate_gives_a_row_for_every_size_and_a_table(rows_of):
    words = ["--cells", "lstm", "--layers", 1, 2, "--sizes", "8x3", "--length", 40, "--rounds", 2]
    rows, told = rows_of("evaluate", *words)
    assert [(r["layers"], r["hidden"], r["lanes"], r["length"]) for r in rows] == [
        (1, 8, 3, 40),
        (2, 8, 3, 40),
    ]
    assert [r["flops_per_character"] for r in rows] == [
        2 * (4 * 8 * (64 + 8) + 8 * 96),
        2 * (4 * 8 * (64 + 8 + 8 + 8) + 8 * 96),
    ]
    assert "lstm 2 × 8, 3 lanes" in told


def test_prepare_gives_a_row_for_every_way(tmp_path):
    words = ["--mb", 0.2, "--workers", 1, "--runs", 1, "--only", "whole text"]
    done = bench("prepare", *words, "--json", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert row["bytes"] >= 200_000 and row["mb_per_second"] > 0 and row["peak_mb"] > 10
    assert "whole text, Python list" in done.stdout


@pytest.mark.slow  # four starts of torchrun
def test_scaling_measures_one_process_and_two(tmp_path):
    words = ["--sizes", "8x3x4", "--steps", 2, "--rounds", 2, "--runs", 2]
    done = bench("scaling", *words, "--json", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 104 and "computed, not measured" in done.stdout
    told = json.loads((tmp_path / "a.json").read_text())
    (row,) = told["rows"]
    assert {n: len(rounds) for n, rounds in row["rounds"].items()} == {"1": 4, "2": 4}
    for n, speed in row["characters_per_second"].items():
        assert speed == pytest.approx(int(n) * 3 * 4 / row["step_ms"][n] * 1000)
        assert row["times_first"][n] == speed / row["characters_per_second"]["1"]


@pytest.mark.slow  # four starts, beside a busy process
def test_scaling_measures_beside_busy_processes(tmp_path):
    words = ["--sizes", "8x3x4", "--steps", 2, "--rounds", 2, "--runs", 1, "--beside", 1]
    done = bench("scaling", *words, "--json", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    quiet, beside = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert quiet["name"] == "lstm 8, 3 × 4, beside 0 busy" and beside["name"].endswith("beside 1 busy")
    assert len(quiet["ratios"]) == len(beside["ratios"]) == 2 and min(beside["ratios"]) > 0


def test_what_is_expected_of_gpus_is_computed_from_what_it_says(here, capsys):
    import gpus as expected

    rows = expected.rows()
    assert [(r["config"], r["gpus"], r["lanes_per_gpu"]) for r in rows] == [
        (name, gpus, lanes)
        for name, batch in (("wikipedia-simple", 256), ("wikipedia-en", 1024))
        for some in ((batch, batch // 8, batch // 64), (512, 512, 512))
        for gpus, lanes in zip((1, 8, 64), some, strict=True)
    ]
    one = rows[6]  # wikipedia-en: LSTM 3 × 2048 on an embedding of 256, 2048 symbols
    multiplied = 4 * 2048 * (256 + 5 * 2048) + 2048 * 2048
    assert one["parameters"] == multiplied + 2048 * 256 + 3 * 2 * 4 * 2048 + 2048
    assert one["gradient_bytes"] == 4 * one["parameters"] and one["all_reduce_s"] == 0
    assert one["products_s"] == pytest.approx(6 * multiplied * 1024 * 256 / (expected.USED * expected.PEAK))
    assert one["hours"] == pytest.approx(200_000 * one["products_s"] / 3600)
    for r in rows:
        seconds = max(r["products_s"], r["recurrence_s"]) + r["all_reduce_s"]
        bptt = 128 if r["config"] == "wikipedia-simple" else 256
        assert r["characters_per_second"] == pytest.approx(r["gpus"] * r["lanes_per_gpu"] * bptt / seconds)
        assert r["computed"] and 0.9 < r["times_one"] <= r["gpus"]  # too few lanes each gain nothing
    expected.print_table(rows)
    told = capsys.readouterr().out
    assert told.startswith("computed, not measured") and max(map(len, told.splitlines())) <= 104


# each in this process: its start takes longer than its refusal
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "bench.py trian: name one of the commands prepare, train, evaluate, sample, quality"),
        (["train", "--sizes", "8x16"], "8x16: 3 numbers with x between them"),
        (["sample", "--sizes", "0x1"], "0: must be 1 or more"),
        (["prepare", "--only", "nothing"], "--only 'nothing': in the name of no way"),
    ],
)
def test_wrong_words_are_named(words, told, here, capsys):
    with pytest.raises(SystemExit) as ended:
        here(words)
    assert ended.value.code != 0
    assert told in capsys.readouterr().err + str(ended.value.code)
