"""charlm compare: runs side by side."""

import json
import shutil

import pytest
from helpers import forked, records, small, status

from charlm.commands.cli import main
from charlm.errors import CharlmError
from charlm.report.compare import rows, table
from charlm.training.loop import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs: the second is the best, the third has not evaluated yet."""
    folder = tmp_path_factory.mktemp("runs")
    same = {"train": {"steps": 20}, "evaluate": {"every": 10}}
    for name, rate in (("slow", 0.001), ("fast", 0.03)):
        train(small(folder / name, optim={"learning_rate": rate}, **same), quiet=True)
    train(
        small(folder / "begun", train={"steps": 9, "max_hours": 1e-9}, model={"hidden_size": 5}), quiet=True
    )
    return folder


def test_rows_have_what_differs_and_the_figures_and_the_best_is_first(runs):
    found = rows([str(runs / name) for name in ("slow", "begun", "fast")])
    assert [row["run"] for row in found] == [str(runs / name) for name in ("fast", "slow", "begun")]
    differ = {
        "optim.learning_rate": 0.03,
        "train.steps": 20,
        "train.max_hours": None,
        "model.hidden_size": 12,
    }
    assert found[0].items() >= (differ | {"status": "done", "step": 20, "evaluate.every": 10}).items()
    assert not found[0].keys() & {"run_dir", "train.batch_size", "log.wandb"}
    last = [r for r in records(runs / "fast") if "loss" in r][-1]
    of = status(runs / "fast")
    figures = {"train bpc": last["bpc"], "best bpc": of["best"]["bpc"], "test bpc": of["test"]["bpc"]}
    figures["test bpb"] = of["test"]["bpb"]
    assert found[0].items() >= figures.items()
    assert found[2]["best bpc"] is None and found[2]["status"] == "interrupted"


def test_the_table_has_a_line_per_run_or_a_column_where_that_is_too_wide(runs, monkeypatch):
    found = rows([str(runs / "slow"), str(runs / "fast")])
    for columns, lines in ((400, 3), (60, 8)):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = table(found)
        assert len(text.splitlines()) == lines
        words = {"run", "optim.learning_rate", "0.03", "0.001", "done", f"{found[0]['best bpc']:.5g}"}
        assert (
            words <= set(text.split())
            and "changed at" not in text
            and text.index("fast") < text.index("slow")
        )


def test_a_long_value_is_shortened_to_one_line():
    lines = table([{"run": name, "data.text": f"{name}\n \x85word " * 99} for name in "ab"]).splitlines()
    assert len(lines) == 3 and all(len(line) < 90 for line in lines)


def test_the_command_prints_and_draws(runs, tmp_path):
    figure = tmp_path / "curves.svg"
    ran = forked("compare", runs / "slow", runs / "fast", "--figure", figure, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == rows([str(runs / "slow"), str(runs / "fast")])
    svg = figure.read_text()
    assert svg.startswith("<?xml") and "validation bpc" in svg


def test_what_cannot_be_compared_is_named(runs, tmp_path, capsys):
    with pytest.raises(CharlmError, match=r"none: no such run directory; runs in .*: begun, fast, slow"):
        rows([str(runs / "slow"), str(runs / "none")])
    with pytest.raises(CharlmError, match=r"curves.qqq: cannot be written \(.*qqq"):
        rows([str(runs / "slow")], str(tmp_path / "curves.qqq"))
    shutil.copytree(runs / "slow", tmp_path / "run")
    (tmp_path / "run" / "status.json").write_text("{")
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "run")])
