"""Training runs from end to end: what they compute, what they leave, and every way they stop."""

import itertools
import json
import math
import os
import signal
import subprocess
import time

import nbclient
import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    MIXED,
    ROOT,
    assert_same_state,
    changed,
    command,
    config_file,
    environment,
    files_of,
    forked,
    logged,
    losses,
    newest,
    records,
    small,
    start,
    status,
    wait_until,
)
from torch import nn

from charlm.commands.cli import main
from charlm.config.fields import Config
from charlm.config.parse import load_config, read_run_config
from charlm.corpus.prepared import prepare
from charlm.errors import CharlmError
from charlm.evaluation.evaluate import evaluate
from charlm.model.char_lm import CharLM
from charlm.sampling.generate import generate
from charlm.training.checkpoint import folder_of, load_checkpoint, steps_of
from charlm.training.lanes import Lanes
from charlm.training.loop import train
from charlm.training.run import Diverged

# what a finished run leaves


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 90 steps over Latin, Cyrillic, CJK, Greek and emoji; rare characters are spelled in bytes."""
    config = small(
        tmp_path_factory.mktemp("finished") / "run",
        vocab={"unknown": "bytes", "coverage": 0.93, "end_of_document": True},
        model={"embedding_size": 10, "hidden_size": 16, "num_layers": 2, "dropout": 0.1},
        train={"steps": 90, "batch_size": 6, "bptt": 8},
        optim={"warmup_steps": 5, "schedule": "cosine"},
        evaluate={"every": 30},
        sample={"every": 45},
        checkpoint={"every": 30},
        log={"every": 10},
    )
    return config, train(config, quiet=True)


def test_the_loss_falls_on_mixed_scripts(finished):
    config, _ = finished
    told = losses(config.run_dir)
    assert [step for step, _ in told] == list(range(10, 91, 10))
    uniform = math.log(len(prepare(config).vocab))
    assert 0.85 * uniform < told[0][1] < 1.05 * uniform  # it starts knowing nothing
    assert told[-1][1] < 0.75 * told[0][1]


def test_a_text_that_samples_stop_at_is_an_option_as_others_are(tmp_path):
    summary = train("hello", run_dir=tmp_path / "run", steps=2, stop="l", quiet=True)
    assert read_run_config(summary.run_dir).sample.stop == "l" and "l" not in summary.sample


def test_a_carry_starts_from_zeros_after_carry_windows(tmp_path):
    """With 1 every window begins so: the second step differs from that of a carry that is handed on."""
    seen = {}
    for windows in (None, 64, 1):
        made = small(tmp_path / str(windows), train={"steps": 3, "batch_size": 1, "carry_windows": windows})
        seen[windows] = []
        train(made, quiet=True, watch=lambda step, model, loss, to=seen[windows]: to.append(loss))
    assert seen[None] == seen[64] and seen[1][0] == seen[64][0]
    assert seen[1][1] != seen[64][1]


def test_config_yaml_reads_back_as_the_same_config(finished):
    config, _ = finished
    again = load_config(f"{config.run_dir}/config.yaml")
    assert isinstance(again, Config) and again == config


def test_metrics_have_every_figure_at_rising_steps(finished):
    config, _ = finished
    wanted = {"loss", "bpc", "bpb", "learning_rate", "grad_norm", "characters_per_second", "memory_gb"}
    size = prepare(config).splits["train"]
    told = [r for r in records(config.run_dir) if "loss" in r]
    assert all(a["step"] < b["step"] for a, b in itertools.pairwise(told))
    for r in told:
        assert wanted <= r.keys()
        assert all(math.isfinite(r[k]) and r[k] > 0 for k in wanted)
        nats = r["loss"] * size["symbols"]  # of the whole text, at this loss
        assert r["bpc"] == pytest.approx(nats / size["characters"] / math.log(2), rel=1e-12)
        assert r["bpb"] == pytest.approx(nats / size["bytes"] / math.log(2), rel=1e-12)
    assert told[-1]["learning_rate"] == pytest.approx(0.02 * 0.02)  # final_ratio of the highest
    assert [r["step"] for r in records(config.run_dir) if "validation/bpc" in r] == [30, 60, 90]


def test_the_speed_told_is_the_speed_of_training(tmp_path):
    """The time of evaluation, samples and checkpoints is not counted, that of the steps is."""
    config = small(
        tmp_path / "run",
        train={"steps": 4},
        evaluate={"every": 2},
        sample={"every": 2, "length": 100_000},
        checkpoint={"every": 2},
        log={"every": 2},
    )
    began = []

    def watch(step, model, loss):
        began.append(time.perf_counter())
        time.sleep(0.05)

    train(config, quiet=True, watch=watch)
    size = prepare(config).splits["train"]
    per_step = 4 * 7 * size["characters"] / size["symbols"]
    _, told = losses_field(config.run_dir, "characters_per_second")
    rest = began[2] - began[1]  # between steps 2 and 3 lies all the rest, which takes long
    assert 3 * per_step / rest < told <= per_step / 0.05


def test_the_exported_model_is_the_best_one_and_says_its_figures(finished):
    config, summary = finished
    model = CharLM.from_pretrained(f"{config.run_dir}/model")
    assert model.vocab == prepare(config).vocab
    about = json.loads((summary.run_dir / "model" / "config.json").read_text())
    assert about["step"] == summary.best["step"] and about["validation"] == summary.best
    scores = [r for r in records(config.run_dir) if "validation/bpc" in r]
    best = min(scores, key=lambda r: r["validation/nats_per_character"])
    assert summary.best["step"] == best["step"] and summary.best["bpc"] == best["validation/bpc"]
    _, tensors, _ = load_checkpoint(folder_of(config.run_dir, summary.best["step"]))
    for name, p in model.named_parameters():
        assert torch.equal(p, tensors["model"][name]), name


def test_status_samples_and_checkpoints_are_there(finished):
    config, summary = finished
    assert status(config.run_dir) == {
        "status": "done",
        "step": 90,
        "steps": 90,
        "best": summary.best,
        "test": summary.test,
    }
    told = {p.name for p in (summary.run_dir / "samples").iterdir()}
    assert told == {"step-00000045.txt", "step-00000090.txt", "best.txt"}
    text = (summary.run_dir / "samples" / "best.txt").read_text(encoding="utf-8")
    assert text == summary.sample and text.startswith("The ")
    assert steps_of(config.run_dir) == [60, 90]
    assert not list(summary.run_dir.rglob("*.partial"))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_gives_the_figures_that_training_told(finished, capsys, split):
    config, summary = finished
    main(["evaluate", config.run_dir, "--split", split, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told.pop("text") == split
    figures = dict(summary.test if split == "test" else summary.best)
    figures.pop("step", None)
    assert told == figures
    assert told["characters"] > 200 and told["lanes"] >= 1 and "context" in told


def test_what_is_told_at_the_end_is_of_the_best_weights_not_the_last(tmp_path):
    """The rate is far too high: validation is best early on, and worse from there."""
    config = small(
        tmp_path / "run",
        optim={"learning_rate": 3.0, "warmup_steps": 40},
        train={"steps": 30},
        evaluate={"every": 3},
        checkpoint={"every": 3, "keep": 2},
        sample={"every": 30},
    )
    summary = train(config, quiet=True)
    assert summary.best["step"] < 24
    assert steps_of(config.run_dir) == [summary.best["step"], 27, 30]  # the best one is kept as well
    best = CharLM.from_pretrained(summary.run_dir / "model")
    corpus = prepare(config)
    assert evaluate(best, best.vocab, corpus["test"], config.evaluate) == summary.test
    options = {k: v for k, v in vars(config.sample).items() if k != "every"}
    assert config.sample.prompt + generate(best, best.vocab, end="\n", **options) == summary.sample


# what the loop computes


def test_the_same_config_gives_the_same_bits_and_another_seed_does_not(tmp_path):
    options = {"model": {"dropout": 0.3}, "checkpoint": {"every": 5}}
    for name in ("a", "b"):
        train(small(tmp_path / name, **options), quiet=True)
    train(small(tmp_path / "c", **options, train={"seed": 6}), quiet=True)
    assert_same_state(tmp_path / "a", tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert not set(losses(tmp_path / "a")) & set(losses(tmp_path / "c"))


def test_logging_evaluating_sampling_and_saving_leave_the_training_alone(tmp_path):
    plain = small(tmp_path / "plain", model={"dropout": 0.3}, log={"every": 12})
    busy = small(
        tmp_path / "busy",
        model={"dropout": 0.3},
        evaluate={"every": 1},
        sample={"every": 1},
        checkpoint={"every": 1},
    )
    train(plain, quiet=True)
    train(busy, quiet=True)
    for name, tensor in newest(tmp_path / "plain")[1]["model"].items():
        assert torch.equal(tensor, newest(tmp_path / "busy")[1]["model"][name]), name


class Textbook(nn.Module):
    """Two layers of nn.LSTM, as any tutorial writes it."""

    def __init__(self, vocab_size: int, E: int, H: int):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(vocab_size, E), nn.LSTM(E, H, 2, batch_first=True)
        self.output = nn.Linear(H, vocab_size)

    def take(self, model: CharLM) -> None:
        """The start that charlm drew."""
        with torch.no_grad():
            self.embedding.weight.copy_(model.input.weight)
            self.output.load_state_dict(model.output.state_dict())
            for name, p in self.lstm.named_parameters():
                p.copy_(getattr(model.layers[int(name[-1])], name[:-1] + "0"))

    def train_on(self, windows, carry_on: bool) -> list[float]:
        """Losses of one AdamW step per (x, y, starts an epoch), gradients clipped to 0.5."""
        matrices = [p for p in self.parameters() if p.ndim > 1 and p is not self.embedding.weight]
        others = [p for p in self.parameters() if p.ndim < 2] + [self.embedding.weight]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.99))
        told, state = [], None
        for x, y, first in windows:
            if first or not carry_on:
                state = None
            out, state = self.lstm(self.embedding(x), state)
            state = tuple(s.detach() for s in state)
            loss = F.cross_entropy(self.output(out).flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 0.5)
            optimizer.step()
            told.append(loss.item())
        return told


def test_training_is_the_textbook_loop_with_the_state_carried_on(tmp_path):
    """Over the end of an epoch, where the state starts at zero again and another offset is read."""
    config = small(
        tmp_path / "run",
        data={"text": MIXED[:250], "validation": 0, "test": 0},
        model={"num_layers": 2},
        optim={"weight_decay": 0.1, "clip": 0.5},
        train={"steps": 11, "batch_size": 3, "bptt": 13},
    )
    corpus = prepare(config)
    ids = torch.from_numpy(corpus["train"].astype(np.int64))
    per_epoch = (len(ids) - 1) // (3 * 13)
    assert 3 <= per_epoch <= 7  # so that 11 steps cross the border of an epoch
    offsets = [Lanes(corpus["train"], 3, 13, seed=5).offset(epoch) for epoch in range(4)]
    windows = []
    for step in range(11):
        epoch, window = divmod(step, per_epoch)
        starts = [offsets[epoch] + (lane * per_epoch + window) * 13 for lane in range(3)]
        x, y = (torch.stack([ids[s + k : s + k + 13] for s in starts]) for k in (0, 1))
        windows.append((x, y, window == 0))

    reference, forgetful = Textbook(len(corpus.vocab), 6, 12), Textbook(len(corpus.vocab), 6, 12)
    told, last = [], []

    def watch(step, model, loss):
        if step == 0:
            reference.take(model)
            forgetful.take(model)
            last.append(model)
        told.append(loss)

    train(config, quiet=True, watch=watch)
    expected = reference.train_on(windows, carry_on=True)
    assert told == pytest.approx(expected, abs=1e-6)
    assert [loss for _, loss in losses(config.run_dir)] == told
    without = forgetful.train_on(windows, carry_on=False)
    assert max(abs(a - b) for a, b in zip(without, expected, strict=True)) > 1e-3  # so the state matters
    trained = Textbook(len(corpus.vocab), 6, 12)
    trained.take(last[0])
    for (name, p), q in zip(trained.named_parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5), name


def test_accumulating_over_slices_of_the_lanes_changes_nothing(tmp_path):
    whole, halves = (
        small(tmp_path / name, train={"batch_size": 6, "accumulate": slices})
        for name, slices in (("whole", 1), ("halves", 2))
    )
    train(whole, quiet=True)
    train(halves, quiet=True)
    assert [v for _, v in losses(halves.run_dir)] == pytest.approx(
        [v for _, v in losses(whole.run_dir)], abs=1e-6
    )
    (_, a), (_, b) = newest(whole.run_dir), newest(halves.run_dir)
    for group in ("model", "carry"):
        for name, tensor in a[group].items():
            assert torch.allclose(tensor, b[group][name], atol=1e-6), name


def test_clipping_bounds_the_gradient_and_null_leaves_it(tmp_path):
    """Adam's moments after one step: 0.1 × the gradient that the optimizer got."""
    norms = {}
    for name, clip in (("free", None), ("clipped", 0.1)):
        config = small(tmp_path / name, train={"steps": 1}, optim={"clip": clip, "betas": [0.9, 0.99]})
        train(config, quiet=True)
        moments = [t for k, t in newest(config.run_dir)[1]["optimizer"].items() if k.endswith("/exp_avg")]
        norms[name] = torch.cat([m.flatten() for m in moments]).norm().item() * 10
        norms[name + " told"] = losses_field(config.run_dir, "grad_norm")[0]
    assert norms["free"] > 0.15
    assert norms["clipped"] == pytest.approx(0.1, rel=1e-4)
    assert norms["free told"] == norms["clipped told"] == pytest.approx(norms["free"], rel=1e-4)


def losses_field(run_dir, field):
    return [r[field] for r in records(run_dir) if field in r]


# every way to stop


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    config = small(tmp_path / "run", checkpoint={"every": 4}, train={"steps": 30}, log={"every": 3})

    def poison(step, model, loss):
        if step == 9:
            with torch.no_grad():
                model.output.weight.fill_(math.nan)  # what a diverged update leaves

    with pytest.raises(Diverged) as told:
        train(config, quiet=True, watch=poison)
    message = str(told.value)
    assert "not finite at step 11" in message and "the last checkpoint is of step 8" in message
    assert "optim.learning_rate" in message and "0.02" in message
    assert status(config.run_dir)["status"] == "failed" and "step 11" in status(config.run_dir)["error"]
    assert steps_of(config.run_dir) == [4, 8]
    facts, tensors = newest(config.run_dir)
    assert facts["step"] == 8
    assert all(t.isfinite().all() for t in tensors["model"].values())
    assert train(config, quiet=True).status == "done"  # the same command goes on from there


def test_no_checkpoint_and_no_model_is_kept_of_weights_that_are_not_finite(tmp_path):
    """The loss of a step is computed before its update: an update may ruin the weights of a good step."""
    config = small(
        tmp_path / "run",
        optim={"learning_rate": 1e39, "clip": None},
        checkpoint={"every": 1, "keep": 9},
        evaluate={"every": 1},
    )
    with pytest.raises(CharlmError, match="not finite"):
        train(config, quiet=True)
    for step in steps_of(config.run_dir):
        _, tensors, _ = load_checkpoint(folder_of(config.run_dir, step))
        assert all(t.isfinite().all() for t in tensors["model"].values()), f"step {step} is not good"
    assert not (tmp_path / "run" / "model").exists()


def test_the_command_says_what_to_try_when_the_loss_is_not_finite(tmp_path):
    config = small(tmp_path / "run", optim={"learning_rate": 1e38, "clip": None})
    with pytest.raises(SystemExit) as left:
        main(["train", "--config", str(config_file(config))])
    said = left.value.code
    assert said.startswith("charlm: error: the loss is not finite at step 2; there is no checkpoint yet.")
    assert "Try a lower optim.learning_rate (now 1e+38)" in said
    assert status(config.run_dir)["status"] == "failed"


def test_patience_ends_a_run_where_validation_no_longer_improves(tmp_path):
    options = {"optim": {"learning_rate": 0.7}, "train": {"steps": 60}, "evaluate": {"every": 2}}
    train(small(tmp_path / "whole", **options), quiet=True)
    scores = [(r["step"], r["validation/bpc"]) for r in records(tmp_path / "whole") if "validation/bpc" in r]
    best = [min(scores[: i + 1], key=lambda score: score[1])[0] for i in range(len(scores))]
    expected = next(step for (step, _), at in zip(scores, best, strict=True) if step - at >= 6)
    assert expected < 50  # it does get worse
    options["train"] |= {"patience": 3, "max_hours": 1e-9}  # a step of each process
    config = small(tmp_path / "run", **options)
    while (summary := train(config, quiet=True)).status == "interrupted":
        pass
    assert summary.step == expected == train(config, quiet=True).step  # again, it is over
    assert summary.best["step"] == expected - 6 and losses(config.run_dir)[-1][0] == expected
    config.train.patience = None
    config.train.max_hours = None
    assert train(config, quiet=True).step == 60
    for section, wrong in (("evaluate", {"every": 0}), ("data", {"validation": 0})):
        with pytest.raises(
            CharlmError, match=r"train\.patience=3: needs evaluate\.every and data\.validation"
        ):
            small(tmp_path / "run", **{"train": {"patience": 3}, "evaluate": {"every": 1}} | {section: wrong})


def test_a_budget_of_hours_stops_with_a_checkpoint(tmp_path):
    config = small(tmp_path / "run")
    summary = train(changed(config, train={"max_hours": 1e-9}), quiet=True)
    assert (summary.status, summary.step) == ("interrupted", 1)
    assert status(config.run_dir) == {
        "status": "interrupted",
        "step": 1,
        "steps": 12,
        "reason": "train.max_hours is over",
    }
    assert steps_of(config.run_dir) == [1]
    train(config, quiet=True)
    train(small(tmp_path / "whole"), quiet=True)
    assert_same_state(tmp_path / "run", tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


SLOW = {"model": {"hidden_size": 48}, "train": {"steps": 4000, "bptt": 24}, "checkpoint": {"every": 1000}}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint(tmp_path, name):
    """A real process: it ends with 0, and says that the same command goes on."""
    config = small(tmp_path / "run", **SLOW)
    process = start(config)
    wait_until(lambda: logged(config.run_dir) >= 5, process)
    process.send_signal(getattr(signal, name))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    step = status(config.run_dir)["step"]
    reason = "Ctrl-C" if name == "SIGINT" else name
    told = {"status": "interrupted", "step": step, "steps": 4000, "reason": reason}
    assert status(config.run_dir) == told
    assert 5 <= step < 4000 and steps_of(config.run_dir)[-1] == step == logged(config.run_dir)
    assert f"stopped at step {step} ({reason})" in said and "the same command resumes" in said
    assert "Traceback" not in said
    summary = train(changed(config, train={"steps": step + 3}), quiet=True)  # steps may change
    assert (summary.status, summary.step) == ("done", step + 3)
    assert [s for s, _ in losses(config.run_dir)] == list(range(1, step + 4))


def test_the_handlers_of_signals_are_given_back(tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    train(small(tmp_path / "run"), quiet=True)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


# what is refused


def test_a_second_process_is_refused_and_disturbs_nothing(tmp_path):
    config = small(tmp_path / "run", checkpoint={"every": 2, "keep": 1})
    ran = []

    def meanwhile(step, model, loss):
        if step == 4:
            while [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] != ["step-00000004"]:
                time.sleep(0.01)  # it is written beside the training
            before = files_of(config.run_dir)
            ran.append(forked("train", "--config", config_file(config)))
            assert files_of(config.run_dir) == before

    assert train(config, quiet=True, watch=meanwhile).status == "done"
    assert ran[0].returncode == 1
    assert ran[0].stderr.startswith(f"charlm: error: {config.run_dir}: another process is training there")
    train(small(tmp_path / "alone", checkpoint={"every": 2}), quiet=True)
    assert_same_state(tmp_path / "run", tmp_path / "alone")


@pytest.mark.parametrize("where", ["run", "run/deeper"])
def test_a_run_dir_that_cannot_be_written_is_named(tmp_path, where):
    (tmp_path / "run").write_text("a file is in the way")
    config = small(tmp_path / where, data={"dir": str(tmp_path / "data")})
    with pytest.raises(CharlmError, match=f"run_dir='{config.run_dir}': cannot be written"):
        train(config, quiet=True)
    assert (tmp_path / "run").read_text() == "a file is in the way"


def test_a_text_shorter_than_one_window_of_every_lane_is_refused(tmp_path):
    config = small(tmp_path / "run", train={"batch_size": 100, "bptt": 100})
    with pytest.raises(CharlmError, match=r"train.batch_size=100 lanes × train.bptt=100 need 10,001"):
        train(config, quiet=True)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    train(small(tmp_path / "run"), quiet=True)  # the run directory is still free


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU does")
def test_other_precisions_on_a_cpu_warn_and_compute_in_fp32(tmp_path, capsys):
    train(small(tmp_path / "fp32", train={"steps": 3}))
    assert "is for NVIDIA GPUs" not in capsys.readouterr().out
    for precision in ("tf32", "bf16", "fp16"):
        train(small(tmp_path / precision, train={"precision": precision, "steps": 3}))
        told = f"train.precision={precision} is for NVIDIA GPUs: this CPU computes in fp32"
        assert told in capsys.readouterr().out
        assert_same_state(tmp_path / precision, tmp_path / "fp32")


def test_a_reader_of_stdout_that_goes_away_does_not_make_a_broken_run_look_well(tmp_path):
    """`charlm train | head -1`: whatever becomes of the run, the exit code must not say that it is done."""
    config = small(tmp_path / "run")
    words = command("train", "--config", config_file(config))
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment())
    process.stdout.close()
    process.wait(600)
    ended = status(config.run_dir)["status"]
    assert (process.returncode == 0) == (ended in ("done", "interrupted")), ended


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The disk is slow: steps are made meanwhile, and what is written is the state of its own step."""
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (time.sleep(0.02), flush(handle)))
    config = small(tmp_path / "run", train={"steps": 400}, checkpoint={"every": 20, "keep": 99})
    folder, meanwhile = tmp_path / "run" / "checkpoints", []

    def watch(step, model, loss):
        meanwhile.extend((step, p.name) for p in folder.glob(".step-*.partial"))

    train(config, quiet=True, watch=watch)
    assert any(step > int(name[6:14]) + 2 for step, name in meanwhile)
    monkeypatch.undo()
    assert steps_of(config.run_dir) == list(range(20, 401, 20))
    at_40 = small(tmp_path / "forty", train={"steps": 40})
    train(at_40, quiet=True)
    _, tensors, _ = load_checkpoint(folder_of(config.run_dir, 40))
    _, expected = newest(at_40.run_dir)
    for group in ("model", "optimizer", "carry"):
        for name, tensor in expected[group].items():
            assert torch.equal(tensor, tensors[group][name]), name


# in a notebook

CELLS = (
    """
import os, random, signal, threading, time
import numpy, torch, charlm
from accelerate import Accelerator
Accelerator(cpu=True, mixed_precision="bf16")  # of something else that was trained before
states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
small = {"evaluate": {"every": 0}, "sample": {"every": 0, "length": 20}, "batch_size": 4, "bptt": 7,
         "hidden_size": 12, "wandb": "disabled", "source": "literal", "text": TEXT, "split_by": "character"}
summary = charlm.train("stdlib", steps=9, run_dir="runs/first", **small)
summary.status, summary.step, summary.test["bpc"] > 0
""",
    """
def interrupt():  # as the notebook's stop button does
    while not os.path.exists("runs/second/metrics.jsonl") or not os.path.getsize("runs/second/metrics.jsonl"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
summary = charlm.train("stdlib", epochs=100_000, precision="fp16", run_dir="runs/second", **small)
trained = charlm.load("runs/second")
score = trained.score("The quick")
(torch.equal(torch.get_rng_state(), states[0]), random.getstate() == states[1],
 numpy.random.get_state()[1].tolist() == states[2], summary.status, len(trained.generate(length=30)) > 0)
""",
    """
charlm.train("stdlib", steps=summary.step + 3, precision="fp16", run_dir="runs/second", **small).status
""",
    """
charlm.train("stdlib", stepps=3)
""",
)


def test_a_notebook_trains_is_interrupted_and_goes_on(tmp_path):
    """In a Jupyter kernel, with a bar of the notebook's own."""
    cells = [nbformat.v4.new_code_cell(cell.replace("TEXT", repr(MIXED))) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    cells[-1].metadata.tags = ["raises-exception"]
    client.execute(env=environment(PYTHONPATH=str(ROOT), IPYTHONDIR=str(tmp_path / "ipython")))
    error = cells.pop().outputs[0]
    assert error.traceback == ["charlm: error: unknown option stepps; did you mean train.steps?"]
    ends = [cell.outputs[-1].data["text/plain"] for cell in cells]
    assert ends == ["('done', 9, True)", "(True, True, True, 'interrupted', True)", "'done'"]
    assert status(tmp_path / "runs" / "second")["status"] == "done"
    printed = "".join(o.text for o in cells[1].outputs if o.output_type == "stream" and o.name == "stdout")
    assert "stopped at step" in printed and "the same command resumes from it" in printed
    for cell in cells:
        assert any("application/vnd.jupyter.widget-view+json" in o.get("data", ()) for o in cell.outputs)
        assert not [o.text for o in cell.outputs if o.get("name") == "stderr"]
