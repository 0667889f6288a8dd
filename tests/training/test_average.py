"""optim.average: the averaged weights, against the recurrence by hand, and where they are used."""

import os
import signal

import pytest
import torch
from helpers import MIXED, assert_same_state, newest, small
from safetensors.torch import load_file

from charlm.corpus.prepared import prepare
from charlm.evaluation.evaluate import evaluate
from charlm.model.char_lm import CharLM
from charlm.model.pretrained import weights_of
from charlm.training.checkpoint import folder_of, load_checkpoint
from charlm.training.loop import train
from charlm.training.trained import load

OPTIONS = {
    "data": {"text": MIXED[:900]},
    "model": {"cell": "gru", "num_layers": 2, "dropout": 0.2},
    "optim": {"average": 0.5, "learning_rate": 0.02},
    "evaluate": {"every": 4, "lanes": 1},
    "sample": {"every": 5},
    "checkpoint": {"every": 4, "keep": 9},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, weights before every step and after the last one) of a run of 12 steps."""
    config = small(tmp_path_factory.mktemp("average") / "run", **OPTIONS)
    seen = []
    train(config, quiet=True, watch=lambda step, model, loss: seen.append(weights_of(model)))
    return config, [*seen, newest(config.run_dir)[1]["model"]]


def averaged(weights: list[dict], decay: float) -> dict:
    """The average after the last of them, in double precision."""
    told = {name: w.double() for name, w in weights[0].items()}
    for n, after in enumerate(weights[1:], 1):
        d = min(decay, (1 + n) / (10 + n))
        told = {name: d * told[name] + (1 - d) * w.double() for name, w in after.items()}
    return told


def test_it_is_the_moving_average_of_the_weights_with_a_decay_that_rises(run):
    config, weights = run
    assert len(weights) == 13
    for step in (4, 8, 12):
        _, tensors, _ = load_checkpoint(folder_of(config.run_dir, step))
        for name, expected in averaged(weights[: step + 1], 0.5).items():
            torch.testing.assert_close(tensors["average"][name].double(), expected, rtol=0, atol=1e-6)
            assert not torch.equal(tensors["average"][name], tensors["model"][name])


def test_evaluation_and_the_exported_model_are_of_the_averaged_weights(run):
    config, _ = run
    facts, tensors = newest(config.run_dir)
    _, best, _ = load_checkpoint(folder_of(config.run_dir, facts["best"]["step"]))
    exported = load_file(f"{config.run_dir}/model/model.safetensors")
    assert all(torch.equal(exported[name], w) for name, w in best["average"].items())
    corpus = prepare(config)
    model = CharLM.from_pretrained(f"{config.run_dir}/model")
    figures = evaluate(model, corpus.vocab, corpus["validation"], config.evaluate)
    assert facts["best"]["nats_per_character"] == pytest.approx(figures["nats_per_character"], rel=1e-6)
    plain = small(config.run_dir, **OPTIONS | {"optim": {"learning_rate": 0.02}})
    plain.run_dir += "-plain"
    train(plain, quiet=True)
    assert all(torch.equal(newest(plain.run_dir)[1]["model"][n], w) for n, w in tensors["model"].items())
    assert "average" not in newest(plain.run_dir)[1]


def test_a_run_that_was_stopped_goes_on_to_the_same_average_and_is_opened_by_it(run, tmp_path):
    config, _ = run
    parted = small(tmp_path / "parted", **OPTIONS | {"evaluate": {"every": 0}})

    def stop(step, model, loss):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(parted, quiet=True, watch=stop).status == "interrupted"
    model, _, _ = load(parted.run_dir, "cpu")  # no model/ yet
    average = newest(parted.run_dir)[1]["average"]
    assert all(torch.equal(average[name], w) for name, w in weights_of(model).items())
    parted.evaluate.every = 4
    assert train(parted, quiet=True).status == "done"
    whole = newest(config.run_dir)[1]["average"]
    assert all(torch.equal(whole[name], w) for name, w in newest(parted.run_dir)[1]["average"].items())
    again = small(tmp_path / "again", **OPTIONS)
    assert train(again, quiet=True, watch=stop).status == "interrupted"
    train(again, quiet=True)
    assert_same_state(again.run_dir, config.run_dir)


def test_a_warm_start_is_where_the_average_begins(run, tmp_path):
    config, _ = run
    options = OPTIONS | {"train": {"steps": 1, "init_from": f"{config.run_dir}/model"}}
    warm = small(tmp_path / "warm", **options)
    seen = []
    train(warm, quiet=True, watch=lambda step, model, loss: seen.append(weights_of(model)))
    tensors = newest(warm.run_dir)[1]
    for name, expected in averaged([*seen, tensors["model"]], 0.5).items():
        torch.testing.assert_close(tensors["average"][name].double(), expected, rtol=0, atol=1e-6)
