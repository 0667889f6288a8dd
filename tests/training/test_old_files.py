"""Files that charlm 0.1.0 wrote before its modules moved into folders still load and resume.

tests/data/v0.1.0 holds, for an LSTM with averaged weights and byte symbols and for a GRU on one-hot input,
the YAML, the prepared corpus, the run directory with its checkpoint of step 6 of 12, and the weights of step
12 as that version reached them without a stop.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, losses, newest, small
from safetensors.torch import load_file

import charlm
from charlm.config.parse import from_dict, load_config, to_yaml
from charlm.corpus.prepared import Corpus, folder_of
from charlm.errors import CharlmError
from charlm.training.checkpoint import load_checkpoint
from charlm.training.loop import train

OLD = ROOT / "tests" / "data" / "v0.1.0"


@pytest.fixture(params=["lstm", "gru"])
def name(request) -> str:
    return request.param


@pytest.fixture
def config(tmp_path, name):
    """The config of an old run, in a copy of its files."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    return load_config(
        tmp_path / f"{name}.yaml", f"run_dir={tmp_path / name}", f"data.dir={tmp_path / 'data'}"
    )


def test_a_prepared_corpus_is_found_and_whole(config):
    corpus = Corpus(folder_of(config))
    corpus.verify()
    assert "floors" in corpus.info and "bpc" in corpus.report()


def test_a_config_reads_as_it_was(name):
    import yaml

    tree = yaml.safe_load((OLD / name / "config.yaml").read_text(encoding="utf-8"))
    read = yaml.safe_load(to_yaml(from_dict(tree)))
    for section, values in tree.items():  # fields that were added since have their defaults
        assert read[section] == (read[section] | values if isinstance(values, dict) else values)


def test_a_checkpoint_resumes_to_the_weights_that_the_old_version_reached(config, tmp_path, name):
    """To the bit on the machine that wrote them (checked when the modules moved); elsewhere sums may round in
    another order."""
    before = losses(config.run_dir)
    summary = train(config, quiet=True)
    assert (summary.status, summary.step) == ("done", 12)
    _, tensors = newest(config.run_dir)
    expected = load_file(tmp_path / f"{name}.final.safetensors")
    assert tensors["model"].keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(tensors["model"][key], weight, rtol=1e-5, atol=1e-6)
    assert losses(config.run_dir) == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in before]
    assert summary.best["bpc"] == pytest.approx(
        json.loads((OLD / name / "status.json").read_text())["best"]["bpc"]
    )


def test_every_file_of_a_checkpoint_is_read(name):
    facts, tensors, vocab = load_checkpoint(OLD / name / "checkpoints" / "step-00000006")
    assert facts["step"] == 6 and len(vocab) == tensors["model"]["output.bias"].numel()
    assert {"model", "optimizer", "carry", "random", "losses"} <= tensors.keys()


def test_a_model_folder_loads():
    trained = charlm.load(OLD / "lstm" / "model", "cpu")
    weights = load_file(OLD / "lstm" / "model" / "model.safetensors")
    for key, weight in trained.model.named_parameters():
        assert torch.equal(weight, weights[key])
    assert len(trained.generate(length=5, prompt="th")) > 0


def test_what_was_written_when_n_grams_were_hashed_loads_unless_it_has_them(tmp_path):
    config = small(tmp_path / "run", train={"steps": 6})
    train(config, quiet=True)
    about, stored = Path(config.run_dir, "model", "config.json"), Path(config.run_dir, "config.yaml")
    for ngrams in (0, 5):
        fields = {"ngrams": ngrams, "ngram_rows": 65536, "ngram_size": 64}
        content = json.loads(about.read_text())
        content["model"] = {k: v for k, v in content["model"].items() if "ngram" not in k} | fields
        about.write_text(json.dumps(content))
        tree = yaml.safe_load(stored.read_text())
        tree["model"] = content["model"]
        stored.write_text(yaml.safe_dump(tree))
        if not ngrams:
            assert charlm.load(config.run_dir).config.model == config.model
            assert train(load_config(stored, "train.steps=8"), quiet=True).step == 8
    for opened in (lambda: charlm.load(config.run_dir), lambda: load_config(stored)):
        with pytest.raises(CharlmError, match="ngram_rows: hashed embeddings of n-grams are gone; "):
            opened()
