"""train.init_from: another model's weights as a start, its symbols matched by what they spell."""

import shutil

import pytest
import torch
from helpers import MIXED, changed, charlm, config_file, environment, forked, losses, newest, small, status

from charlm.config.fields import ModelConfig
from charlm.corpus.prepared import prepare
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM
from charlm.training.loop import train
from charlm.training.trained import warm_start


def saved(folder, vocab, seed=1, **config) -> CharLM:
    """A model of random weights in a folder."""
    torch.manual_seed(seed)
    model = CharLM(ModelConfig(**({"hidden_size": 5, "embedding_size": 3} | config)), len(vocab))
    model.save_pretrained(folder, vocab)
    return model


def fresh(vocab, seed=2, **config) -> CharLM:
    torch.manual_seed(seed)
    return CharLM(ModelConfig(**({"hidden_size": 5, "embedding_size": 3} | config)), len(vocab))


OLD, NEW = Vocab("aбe世", (), unknown="error", end_of_document=True), Vocab("abбe🦊", (), unknown="error")


@pytest.mark.parametrize("config", [{}, {"embedding_size": 5, "tie_weights": True}, {"embedding_size": 0}])
def test_rows_go_by_character_and_new_ones_stay_fresh(tmp_path, config):
    old = saved(tmp_path / "old", OLD, **config)
    before, model = fresh(NEW, **config), fresh(NEW, **config)
    told = warm_start(model, NEW, str(tmp_path / "old"))
    for i, character in enumerate(NEW.characters):
        known = OLD.characters.index(character) if character in OLD.characters else None
        for name in ("input", "output"):
            if name == "input" and not model.config.embedding_size:
                rows = [m.layers[0].weight_ih_l0.T for m in (model, old, before)]
            else:
                rows = [getattr(m, name).weight for m in (model, old, before)]
            expected = rows[2][i] if known is None else rows[1][known]
            assert torch.equal(rows[0][i], expected), (character, name)
        expected = before.output.bias[i] if known is None else old.output.bias[known]
        assert model.output.bias[i] == expected
    for name in ("weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        assert torch.equal(getattr(model.layers[0], name), getattr(old.layers[0], name))
    assert "3 of 5 symbols have its rows" in told
    assert "2 new, with fresh rows ('b' (U+0062 LATIN SMALL LETTER B), '🦊' (U+1F98A FOX FACE))" in told
    lost = "2 of its own dropped ('世' (U+4E16 CJK UNIFIED IDEOGRAPH-4E16), the end of a document)"
    assert lost in told


def test_bytes_that_spell_a_character_are_that_character(tmp_path):
    """From bytes alone to characters with byte fallback: ASCII and the bytes beyond it are common."""
    of_bytes, of_characters = Vocab("", unknown="bytes"), Vocab("abé")
    old = saved(tmp_path / "old", of_bytes)
    model = fresh(of_characters)
    told = warm_start(model, of_characters, str(tmp_path / "old"))
    assert torch.equal(model.input.weight[0], old.input.weight[ord("a")])
    byte = of_characters.spelling.index(b"\xc3")
    assert torch.equal(model.input.weight[byte], old.input.weight[0xC3])
    assert "1 new, with fresh rows ('é' (U+00E9 LATIN SMALL LETTER E WITH ACUTE))" in told


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"hidden_size": 6}, "model.hidden_size is 6, there 5"),
        (
            {"cell": "gru", "num_layers": 2},
            "model.cell is 'gru', there 'lstm', model.num_layers is 2, there 1",
        ),
        ({"embedding_size": 0}, "model.embedding_size is 0, there 3"),
    ],
)
def test_a_model_of_another_size_is_refused_by_name(tmp_path, config, told):
    saved(tmp_path / "old", OLD)
    with pytest.raises(CharlmError, match="does not fit") as error:
        warm_start(fresh(NEW, **config), NEW, str(tmp_path / "old"))
    assert told in str(error.value) and str(tmp_path / "old") in str(error.value)


def test_a_vocabulary_without_a_common_symbol_is_refused(tmp_path):
    saved(tmp_path / "old", Vocab("xyz", (), unknown="error", end_of_document=True))
    other = Vocab("ab", (), unknown="error", end_of_document=True)
    with pytest.raises(CharlmError, match=r"its vocabulary \(Vocab\(3 characters.*has no character of ours"):
        warm_start(fresh(other), other, str(tmp_path / "old"))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A trained run on half of the scripts."""
    config = small(
        tmp_path_factory.mktemp("first") / "first",
        data={"text": "".join(c for c in MIXED if ord(c) < 0x3000)},
        train={"steps": 120, "seed": 1},
    )
    train(config, quiet=True)
    return config


@pytest.mark.parametrize("where", ["run", "model"])
def test_a_run_starts_better_from_another_ones_weights(first, tmp_path, where):
    config = small(tmp_path / "run", train={"steps": 4})
    cold = train(changed(small(tmp_path / "cold"), train={"steps": 4}), quiet=True)
    source = first.run_dir if where == "run" else f"{first.run_dir}/model"
    ran = forked("train", "--config", config_file(config), "--train.init_from", source)
    assert ran.returncode == 0, ran.stderr
    assert f"warm start from {source}: " in ran.stdout and "敏" in ran.stdout
    assert status(config.run_dir)["test"]["bpc"] < cold.test["bpc"] - 0.3
    assert losses(config.run_dir)[0][1] < losses(tmp_path / "cold")[0][1] - 0.3


def test_a_model_of_the_hub_that_was_fetched_before_starts_a_run_without_network(first, tmp_path):
    """By its id, from the cache that a login node filled: HF_HUB_OFFLINE=1, as compute nodes have it."""
    cache = tmp_path / "cache" / "models--someone--a-model"
    shutil.copytree(f"{first.run_dir}/model", cache / "snapshots" / "0123abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0123abc")
    config = small(tmp_path / "run", train={"steps": 2, "init_from": "someone/a-model"})
    env = environment(HF_HUB_CACHE=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
    ran = charlm("train", "--config", config_file(config), env=env)
    assert ran.returncode == 0, ran.stderr
    assert "warm start from someone/a-model: " in ran.stdout
    beside = small(tmp_path / "beside", train={"steps": 2, "init_from": f"{first.run_dir}/model"})
    train(beside, quiet=True)
    assert losses(config.run_dir) == losses(beside.run_dir)
    other = small(tmp_path / "other", train={"init_from": "someone/else"})
    ran = forked("train", "--config", config_file(other))
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    told = "train.init_from=someone/else: cannot start from it: someone/else: neither a folder nor a model"
    assert told in ran.stderr


def test_the_weights_are_taken_once_at_the_start(first, tmp_path):
    """A run that goes on does not take them again, nor needs them any more."""
    source = tmp_path / "source"
    shutil.copytree(first.run_dir, source)
    config = small(tmp_path / "run", train={"steps": 6, "init_from": str(source)})
    whole = small(tmp_path / "whole", train={"steps": 12, "init_from": str(source)})
    train(config, quiet=True)
    train(whole, quiet=True)
    shutil.rmtree(source)
    train(changed(config, train={"steps": 12}), quiet=True)
    assert losses(config.run_dir) == losses(whole.run_dir)
    for name, tensor in newest(config.run_dir)[1]["model"].items():
        assert torch.equal(tensor, newest(whole.run_dir)[1]["model"][name])


def test_no_model_there_is_an_error_that_names_it(tmp_path):
    config = small(tmp_path / "run", train={"init_from": str(tmp_path / "nowhere")})
    with pytest.raises(CharlmError, match="nowhere: no such run directory, model folder or hub id"):
        train(config, quiet=True)
    prepare(config)
