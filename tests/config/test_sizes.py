"""model.size: what one word sets, what overrides it, and the README's table of it."""

import contextlib
import io
import re

import pytest
import torch
from helpers import ROOT

from charlm.config.fields import Config
from charlm.config.parse import flatten, from_dict, load_config, parse, to_yaml
from charlm.config.sizes import SIZES
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM

BASE = {f"{s}.{name}": value for s, fields in SIZES["base"].items() for name, value in fields.items()}


def differing(config: Config, other: Config) -> dict:
    """Fields of the first that are others in the second."""
    there = flatten(other)
    return {key: value for key, value in flatten(config).items() if value != there[key]}


def written(tmp_path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("size", SIZES)
def test_one_word_sets_the_same_fields_at_every_size(size):
    config = load_config(None, f"model.size={size}")
    fields = {f"{s}.{name}": value for s, named in SIZES[size].items() for name, value in named.items()}
    assert fields.keys() == BASE.keys()
    assert {key: flatten(config)[key] for key in fields} == fields
    assert differing(config, Config()).keys() <= {*fields, "model.size"}
    assert load_config(None, f"model.size={size}", "model.size=base") == load_config(None, "model.size=base")


def test_words_of_the_command_line_override_it_wherever_they_stand():
    words = ["--model.size", "base"], ["--model.hidden_size=300"], ["--train.batch_size", "7"]
    told = {"model.hidden_size": 300, "train.batch_size": 7}
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        config = parse([word for i in order for word in words[i]])
        assert differing(config, load_config(None, "model.size=base")) == told


def test_on_the_command_line_it_goes_over_the_fields_of_a_yaml(tmp_path):
    path = written(tmp_path, "model: {hidden_size: 9, cell: gru}\noptim: {learning_rate: 0.5, clip: 2}\n")
    for words in (["--config", path, "--model.size=base"], ["--model.size", "base", f"--config={path}"]):
        config = parse(words)
        assert {key: flatten(config)[key] for key in BASE} == BASE
        assert (config.model.cell, config.optim.clip) == ("gru", 2)  # a size has no say in these
    sized = written(tmp_path, "model: {size: tiny, hidden_size: 9}")
    assert parse(["--config", sized, "--model.size", "base"]).model.hidden_size == BASE["model.hidden_size"]
    assert parse(["--config", sized, "--model.size=null"]).model.embedding_size == 64  # as without one


def test_in_a_yaml_it_yields_to_the_yaml_and_the_command_line(tmp_path):
    path = written(tmp_path, "model: {hidden_size: 9, size: base}\ntrain: {bptt: 5}\n")
    config = load_config(path, "model.num_layers=1")
    told = {"model.hidden_size": 9, "train.bptt": 5, "model.num_layers": 1}
    assert differing(config, load_config(None, "model.size=base")) == told
    assert from_dict({"model": {"size": "base", "hidden_size": 9}, "train": {"bptt": 5}}) == load_config(path)
    again = written(tmp_path, to_yaml(config))  # as in a run directory
    assert load_config(again) == config


def test_print_config_shows_what_it_became():
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        parse(["--model.size", "large", "--model.num_layers", "2", "--print_config"])
    for line in ("size: large", "hidden_size: 2048", "num_layers: 2", "learning_rate: 0.002", "bptt: 256"):
        assert f"  {line}\n" in shown.getvalue()


@pytest.mark.parametrize("words", [["--model.size=bsae"], ["--model.size", "bsae"]])
def test_a_size_that_is_none_is_refused_naming_the_sizes(words):
    with pytest.raises(CharlmError, match=r"model\.size.*(base|tiny)"):
        parse(words)
    with pytest.raises(CharlmError, match=r"model\.size='bsae': did you mean base\?"):
        from_dict({"model": {"size": "bsae"}})


def test_the_readme_has_the_sizes_as_they_are():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    rows = {name: told for name, told in rows if name in SIZES}
    assert list(rows) == list(SIZES)
    for size, told in rows.items():
        config = load_config(None, f"model.size={size}")
        with torch.device("meta"):
            millions = sum(p.numel() for p in CharLM(config.model, 200).parameters()) / 1e6
        model, train = config.model, config.train
        assert f"{millions:.3g} M" in told
        assert f"{model.num_layers} × {model.hidden_size:,}" in told
        assert f"{train.batch_size:,} × {train.bptt}" in told
        assert f"| {config.optim.learning_rate:g} | {model.dropout:g} |" in told


def test_a_size_inside_a_section_given_as_one_word_is_refused_and_not_ignored():
    for words in (["--model", '{"size": "base"}'], ["--model={size: base}"]):
        with pytest.raises(CharlmError, match=r"give the size as a word of its own"):
            parse(words)
    assert parse(["--model", '{"hidden_size": 9}']).model.hidden_size == 9


def test_a_choice_that_is_none_is_refused_with_the_choices():
    with pytest.raises(CharlmError, match=r"^model\.norm=batch: choose one of none, layer, rms$"):
        parse(["--model.norm", "batch"])
