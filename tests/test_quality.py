"""`bench.py quality`: the ways train, are scored on the same targets, and do not disturb each other."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, small

from charlm.config.fields import OptimConfig
from charlm.config.parse import to_yaml
from charlm.corpus.prepared import prepare
from charlm.training.loop import train_step
from charlm.training.optimizer import learning_rate
from charlm.training.run import State
from charlm.training.setup import make_accelerator, set_up

sys.path.insert(0, str(ROOT / "scripts" / "bench"))
import gpt
import quality
import trials

WAYS = [
    "ours: --optim.average 0.9 --seconds 1",
    "too many: --train.batch_size 100000",
    "texts: textbook --model.num_layers 2",
    "too fast: --seconds 0.5 --optim.learning_rate 1e38 --optim.clip null",
    "windows: gpt --layers 2 --width 10 --heads 2 --block 8 --batch 3",
    "too long: --seconds 100000  # skipped",
]


def test_every_way_gets_a_row_and_a_line_and_a_failure_stops_no_other(tmp_path, capsys):
    config = small(tmp_path / "a", evaluate={"lanes": 3, "context": 20})
    out, ways = tmp_path / "a.jsonl", tmp_path / "ways.txt"
    (tmp_path / "a.yaml").write_text(to_yaml(config), encoding="utf-8")
    ways.write_text("# a comment\n\n" + "\n".join(WAYS[:-1]), encoding="utf-8")
    words = ["--ways", ways, "--way", WAYS[-1], "--seconds", 2, "--clock", "cpu", "--threads", 1]
    words += ["--limit", 10_000, "--max_characters", 150, "--out", out, "--config", tmp_path / "a.yaml"]
    quality.main(list(map(str, words)))
    told = capsys.readouterr().out
    names = [line.partition(":")[0] for line in WAYS]
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line[:1] == "|"
    ]
    assert [row[0] for row in table] == ["way", "---", *names]
    assert {len(row) for row in table} == {len(quality.HEADS)}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["way"] for row in rows] == names
    errors = {row["way"]: row["error"] for row in rows if "error" in row}
    assert list(errors) == ["too many", "too fast", "too long"]
    assert "train.batch_size=100000" in errors["too many"] and "diverged" in errors["too fast"]
    assert errors["too long"].startswith("skipped")

    corpus = prepare(config)
    size = corpus.splits["train"]
    V = size["symbols"] / size["characters"], len(corpus.vocab)
    for row, seconds, symbols in zip((rows[0], rows[2], rows[4]), (1, 2, 2), (28, 28, 24), strict=True):
        assert seconds <= row["seconds"] < seconds + 0.5
        assert row["characters"] == pytest.approx(row["steps"] * symbols / V[0], abs=1)
        assert row["characters_per_second"] == pytest.approx(row["characters"] / row["seconds"], rel=0.01)
        for split in ("validation", "test"):
            assert row[split]["symbols"] == 149
            assert row[split]["bpc"] < np.log2(V[1])  # it has learnt something
        assert row["torch"] and row["device"] and row["clock"] == "cpu"
    lstm = 4 * 12 * (6 + 12)
    assert rows[0]["multiplied"] == lstm + 12 * V[1]
    assert rows[2]["multiplied"] == lstm + 4 * 12 * 24 + 12 * V[1]
    assert rows[4]["multiplied"] == 2 * 12 * 10 * 10 + 10 * V[1]  # the tied table is multiplied
    assert rows[0]["parameters"] == rows[0]["multiplied"] + 6 * V[1] + 2 * 4 * 12 + V[1]


@pytest.mark.parametrize(
    ("optim", "recorded"),
    [({"average": 0.9}, False), ({"weight_decay": 0.1, "learning_rate": 0.01}, False), ({}, True)],
)
def test_a_step_of_charlm_is_charlms_own_also_after_the_warm_up(tmp_path, optim, recorded):
    changes = {"optim": {"schedule": "constant"} | optim, "model": {"dropout": 0.2}}
    config = small(tmp_path / "a", **changes, train={"cuda_graph": recorded})
    rate, state = config.optim.learning_rate, State()
    setup = set_up(config, make_accelerator(config), print)
    for _ in range(5):
        train_step(config, setup, state)
    trial = trials.CharlmTrial(config)
    trial.warm_up()
    assert [trial.step(rate).item() for _ in range(5)] == [loss.item() for loss in state.losses]
    ids = setup.corpus["test"]
    expected = trials.evaluate(setup.evaluated, setup.corpus.vocab, ids, config.evaluate)
    assert trial.score(ids) == expected


def test_the_warm_up_leaves_no_trace(tmp_path):
    config = small(tmp_path / "a")
    options = gpt.GPTConfig(2, 10, 2, 7, 3, compile=False)
    for make in (lambda: trials.TextbookTrial(config), lambda: trials.GPTTrial(config, options)):
        fresh, warm = make(), make()
        fresh.begin()
        warm.warm_up()
        losses = [[trial.step(0.01).item() for _ in range(4)] for trial in (fresh, warm)]
        assert losses[0] == losses[1] and len(set(losses[0])) == 4


def test_the_schedule_follows_the_clock(monkeypatch):
    passed, rates = iter(np.arange(0, 3, 0.1)), []
    monkeypatch.setattr(quality.Clock, "elapsed", lambda self: next(passed))
    optim = OptimConfig(learning_rate=0.5, final_ratio=0.1, warmup_steps=7)
    step = lambda rate: (rates.append(rate), torch.tensor(1.0))[1]  # noqa: E731
    trial = SimpleNamespace(optim=optim, step=step, warm_up=lambda: None, read=lambda: None)
    way = SimpleNamespace(name="a", seconds=2.0, warmup=0.25)
    told = quality.train(trial, way, "wall")
    assert told["steps"] == 20 and len(rates) == 20
    optim.warmup_steps = 250_000
    assert rates == pytest.approx([learning_rate(50_000 * n, optim, 1_000_000) for n in range(20)], rel=1e-4)
    assert rates[0] < 1e-5 and max(rates) == rates[5] and 0.05 < rates[-1] < 0.06


def test_what_is_counted_before_the_first_step_is_part_of_the_seconds(tmp_path):
    config = small(tmp_path / "a", model={"ngrams": 3, "ngram_lines": 64})
    trial = trials.CharlmTrial(config)
    assert not trial.model.ngrams.table.any()
    trial.read()
    assert trial.model.ngrams.table.any()


def tiny_gpt(block: int = 6, tie: bool = True) -> gpt.GPT:
    """A GPT whose logits differ, which at its first weights they hardly do."""
    torch.manual_seed(3)
    model = gpt.GPT(gpt.GPTConfig(2, 10, 5, block, 3, tie=tie), 7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.5)
    return model


def test_the_gpt_reads_nothing_of_what_comes_later():
    model, ids = tiny_gpt(), torch.randint(7, (2, 6))
    before = model(ids)
    for at in range(6):
        other = ids.clone()
        other[:, at] = (other[:, at] + 1) % 7
        after = model(other)
        assert torch.equal(before[:, :at], after[:, :at])
        assert ((before[:, at:] - after[:, at:]).abs().amax(-1) > 1e-4).all()


class TwoBytes:
    """A vocabulary of 7 characters of two bytes each."""

    characters_per_symbol, bytes_per_symbol = np.ones(7, int), np.full(7, 2)

    def __len__(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("symbols", "block", "stride"), [(12, 6, 2), (12, 6, 6), (13, 6, 5), (7, 6, 3), (5, 6, 2), (2, 6, 1)]
)
def test_windows_predict_every_target_once_as_brute_force_does(tmp_path, symbols, block, stride):
    model, ids = tiny_gpt(block), np.random.default_rng(1).integers(0, 7, symbols).astype(np.uint8)
    length, nats = min(block, symbols - 1), 0.0
    for target in range(1, symbols):  # the window that ends at the first of its ends at or after the target
        ends = [*range(length, symbols - 1, stride), symbols - 1]
        start = min(end for end in ends if end >= target) - length
        context = torch.from_numpy(ids[start:target].astype(np.int64))
        nats -= F.log_softmax(model(context[None])[0, -1], -1)[int(ids[target])].item()
        assert start == 0 or target - start > block - stride
    told = gpt.score_gpt(model, TwoBytes(), ids, block, stride, trials.low_precision())
    assert told["symbols"] == told["characters"] == symbols - 1 and told["bytes"] == 2 * symbols - 2
    assert told["nats_per_character"] * (symbols - 1) == pytest.approx(nats, rel=1e-5)


def test_the_first_weights_and_the_size_of_the_gpt():
    model = gpt.GPT(gpt.GPTConfig(), 1024)
    assert sum(p.numel() for p in model.parameters()) == 6 * 12 * 384**2 + (1024 + 256) * 384 + 13 * 384
    for name, p in model.named_parameters():
        added = name.endswith(("mix.weight", "down.weight"))
        expected = 1.0 if p.ndim == 1 else 0.02 / 12**0.5 if added else 0.02
        assert p.norm().item() / p.numel() ** 0.5 == pytest.approx(expected, rel=0.02)
    x, y = torch.randint(1024, (2, 2, 9))
    assert model(x, y).item() == pytest.approx(np.log(1024), abs=0.2)


def test_shipped_lists_can_be_run():
    args = SimpleNamespace(seconds=60, warmup=0.03)
    for path in (ROOT / "scripts" / "bench" / "ways").glob("*.txt"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
        name, precision = ("simple", "bf16") if "gpu" in path.name else ("sample", "fp32")
        ways = [quality.parse_way(line, ["--config", f"wikipedia-{name}"], args) for line in lines]
        assert len({way.name for way in ways}) == len(ways) > 1
        assert {way.config.train.precision for way in ways} == {precision}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("no colon", "'no colon': a way is written `name: options`"),
        ("a: gtp --layers 2", "a: gtp is none of charlm, textbook, gpt"),
        (
            "a: --model.hiden_size 3",
            "a: unknown option --model.hiden_size; did you mean model.hidden_size?",
        ),
        ("a: gpt --width 101", "a: width 101 must be a multiple of heads"),
        ("a: gpt --stride 1000", "a: stride 1000 must be from 1 to block"),
        ("a: gpt --depth 2", "--depth"),
    ],
)
def test_a_wrong_way_is_named_before_any_is_trained(line, told):
    with pytest.raises(SystemExit) as ended:
        quality.main(["--way", line, "--data.source", "literal", "--data.text", "abc" * 99])
    assert told in str(ended.value.code)
