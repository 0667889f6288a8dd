"""The classroom hello reproduces the twenty values of the notebook, through the normal training code."""

import contextlib
import io
import json
import math
import re

import pytest

from charlm.commands.cli import main
from charlm.config.parse import load_config
from charlm.hello.hello import hello
from charlm.training.loop import train

# DESIGN: the figures of the lecture notebook (seed 123, "hell" → "ello", Adam 0.1, summed loss)
PREDICTED = ["oeoe", "olol", "llll", "llll", "llll", "llll", "llll", "ello", "ello", "ello"]
LOSSES = ["6.082", "5.008", "4.393", "4.155", "3.991", "3.697", "3.280", "2.864", "2.459", "2.020"]
LINES = [
    f"predicted string: {string}, epoch: {epoch}, loss: {loss}"
    for epoch, (string, loss) in enumerate(zip(PREDICTED, LOSSES, strict=True), 1)
]


def test_the_command_prints_exactly_the_ten_lines_and_leaves_nothing_behind(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    main(["hello"])
    out, err = capfd.readouterr()
    assert out == "".join(line + "\n" for line in LINES)
    assert "\r" not in err and "rror" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_function_returns_what_it_prints(capsys):
    steps = hello()
    assert [string for string, _ in steps] == PREDICTED
    assert [f"{loss:.3f}" for _, loss in steps] == LOSSES
    assert capsys.readouterr().out.splitlines() == LINES


@pytest.fixture(scope="module")
def shown():
    """The lines that --explain --debug print."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(["hello", "--explain", "--debug"])
    return out.getvalue().splitlines()


def test_explain_and_debug_change_none_of_the_ten_lines(shown):
    assert shown[-14:-4] == LINES


def test_explain_shows_index_table_one_hot_rows_weights_and_model(shown):
    text = "\n".join(shown)
    assert "0 ↔ h, 1 ↔ e, 2 ↔ l, 3 ↔ o" in text
    assert "[0, 1, 2, 2]" in text
    rows = [line.split(maxsplit=1) for line in shown if line.endswith("]") and line[2:3] in "helo"]
    assert [row for row in rows if len(row[0]) == 1] == [
        ["h", "[1, 0, 0, 0]"],
        ["e", "[0, 1, 0, 0]"],
        ["l", "[0, 0, 1, 0]"],
        ["l", "[0, 0, 1, 0]"],
    ]
    assert "labels 'ello' as indices: [1, 2, 2, 3]" in shown
    assert "  h_t = tanh(x_t W_xh + h_(t-1) W_hh + b_h)" in shown
    assert "optimizer: Adam, learning rate 0.1, betas 0.9 and 0.999; 10 steps" in shown
    for weight in ("W_xh 4×3", "W_hh 3×3, b_h 3", "W_hy 3×4, b_y 4"):
        assert weight in text
    assert "RNN(4, 3, batch_first=True)" in text and "Linear(in_features=3, out_features=4" in text


def test_explain_ends_with_what_is_likely_next_and_how_likely(shown):
    found = [
        re.fullmatch(r"given '(\w+)', '(\w)' is likely next: p = (0\.\d{3})", line) for line in shown[-4:]
    ]
    assert [(line[1], line[2]) for line in found] == [("h", "e"), ("he", "l"), ("hel", "l"), ("hell", "o")]
    assert all(float(line[3]) > 1 / 4 for line in found)  # more than by chance
    last = -sum(math.log(float(line[3])) for line in found)
    assert last < float(LOSSES[-1]), "of the weights after the last step"


def test_debug_goes_one_character_at_a_time(shown):
    steps = [line for line in shown if "so far" in line]
    assert [line[:5] for line in steps] == ["h → e", "e → l", "l → l", "l → o"]
    assert all("one-hot [1, 4], hidden [1, 1, 3], logits [1, 4]" in line for line in steps)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in steps]
    assert sum(losses) == pytest.approx(float(LOSSES[0]), abs=0.002)
    assert steps[-1].endswith(f"so far {LOSSES[0]}")


def test_debug_shows_the_shape_after_each_stage(shown):
    shapes = {line.split()[0]: line for line in shown if line[:9].strip() in STAGES}
    assert set(shapes) == set(STAGES)
    for stage, shape in STAGES.items():
        assert shape in shapes[stage], stage


STAGES = {
    "ids": "[1, 4]",
    "one-hot": "[1, 4, 4]",
    "recurrent": "[1, 4, 3], [1, 1, 3]",
    "logits": "[1, 4, 4]",
    "carry": "[1, 1, 3]",
}


def test_train_with_the_hello_config_logs_the_same_ten_losses(tmp_path):
    config = load_config("hello", f"run_dir={tmp_path / 'run'}", f"data.dir={tmp_path / 'data'}")
    summary = train(config, quiet=True)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == list(range(1, 11))
    assert [f"{4 * r['loss']:.3f}" for r in records] == LOSSES
    assert summary.status == "done" and summary.step == 10
