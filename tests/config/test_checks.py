"""charlm.config.checks: the values that fields may have, and what model.size fills in."""

import dataclasses
import math
import pickle
import re
from typing import get_args, get_type_hints

import pytest
import torch
from helpers import ROOT

from charlm.config.checks import preset
from charlm.config.fields import Config, ModelConfig, OptimConfig, TrainConfig
from charlm.config.parse import flatten, from_dict, load_config, parse, to_yaml
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM

SIZES = get_args(get_args(get_type_hints(ModelConfig)["size"])[0])
BASE = {f"{s}.{name}": value for s, fields in preset("base").items() for name, value in fields.items()}

LITERAL = {"source": "literal", "text": "a"}

# values

BAD_VALUES = [
    ("run_dir", ""),
    *[(f"data.{s}", v) for s in ("validation", "test") for v in (-0.1, 1.0, 1.5, math.nan)],
    *[("data." + n, v) for n in ("max_documents", "max_characters") for v in (0, -1)],
    ("data.source", ""),
    ("vocab.max_size", 0),
    *[("vocab.coverage", v) for v in (0.0, -0.5, 1.1, math.nan)],
    *[("model." + n, 0) for n in ("hidden_size", "num_layers")],
    ("model.embedding_size", -1),
    *[("model." + n, v) for n in ("dropout", "input_dropout", "output_dropout") for v in (-0.1, 1.0, 2.0)],
    *[("optim." + n, v) for n in ("learning_rate", "eps", "clip") for v in (0.0, -1.0, math.nan)],
    ("optim.learning_rate", math.inf),
    ("optim.weight_decay", -0.1),
    ("optim.warmup_steps", -1),
    *[("optim.final_ratio", v) for v in (-0.1, 1.1)],
    *[("optim.betas", v) for v in ((0.9, 1.0), (-0.1, 0.9), (1.5, 0.9))],
    *[("train." + n, v) for n in ("steps", "batch_size", "bptt", "accumulate") for v in (0, -1)],
    *[("train.max_hours", v) for v in (0.0, -1.0)],
    ("evaluate.every", -1),
    *[("evaluate." + n, 0) for n in ("lanes", "bptt")],
    ("evaluate.context", -1),
    ("evaluate.max_characters", 1),
    ("sample.every", -1),
    ("sample.length", 0),
    ("sample.temperature", -0.1),
    ("sample.top_k", 0),
    *[("sample.top_p", v) for v in (0.0, 1.1)],
    *[(f"{section}.seed", v) for section in ("train", "sample") for v in (1 << 64, -(1 << 63) - 1)],
    ("model.forget_bias", 1e39),
    ("checkpoint.every", -1),
    ("checkpoint.keep", 0),
    ("log.every", 0),
]


@pytest.mark.parametrize("key, value", BAD_VALUES)
def test_a_value_out_of_range_is_refused_with_key_value_and_advice(key, value):
    section, _, name = key.rpartition(".")
    with pytest.raises(CharlmError) as caught:
        from_dict({section: {name: value}} if section else {name: value})
    assert re.fullmatch(re.escape(f"{key}={value!r}: ") + ".+", str(caught.value))


def test_the_limits_of_the_ranges_are_allowed():
    tree = {
        "data": {"validation": 0.0},
        "vocab": {"coverage": 1.0, "max_size": 1},
        "model": {"embedding_size": 0, "dropout": 0.0},
        "optim": {"betas": (0.0, 0.0), "final_ratio": 0.0, "clip": None},
        "train": {"steps": 1, "bptt": 1, "batch_size": 1},
        "evaluate": {"every": 0, "max_characters": 2},
        "sample": {"temperature": 0.0, "top_p": 1.0},
        "checkpoint": {"every": 0, "keep": 1},
    }
    config = dataclasses.asdict(from_dict(tree))
    assert {s: {name: config[s][name] for name in fields} for s, fields in tree.items()} == tree
    assert from_dict({"optim": {"final_ratio": 1.0}}).optim.final_ratio == 1.0


@pytest.mark.parametrize(
    "tree, parts",
    [
        ({"data": {"validation": 0.6, "test": 0.5}}, ["data.validation + data.test=1.1"]),
        ({"data": {"validation": 0.5, "test": 0.5}}, ["data.validation + data.test=1.0", "train"]),
        *[({"data": {"source": s}}, ["data.data_files=None", s]) for s in ("text", "json", "csv", "parquet")],
        ({"data": {"source": "text", "data_files": []}}, ["data.data_files=[]", "text"]),
        ({"data": {"source": "literal"}}, ["data.text=''", "literal"]),
        ({"data": {"source": "literal", "text": ""}}, ["data.text=''", "literal"]),
        ({"data": {"source": "txet", "data_files": "a"}}, ["data.source='txet'", "did you mean text?"]),
        ({"data": {"source": "parket", "data_files": "a"}}, ["data.source='parket'", "parquet?"]),
        ({"data": {"source": "stdlb"}}, ["data.source='stdlb'", "stdlib?"]),
        (
            {"data": {"source": "files"}},
            ["data.data_files=None", "source files needs files"],
        ),
        ({"data": LITERAL | {"data_files": "a"}}, ["data.data_files='a'", "source literal reads no files"]),
        ({"data": {"text": "hello"}}, ["data.text='hello': is for data.source=literal"]),
        ({"vocab": {"characters": "hello"}}, ["vocab.characters='l'", "only once"]),
        ({"vocab": {"bytes_only": True, "unknown": "error"}}, ["vocab.unknown='error'", "bytes"]),
        ({"vocab": {"bytes_only": True, "characters": "ab"}}, ["vocab.characters='ab'", "bytes_only"]),
        (
            {"model": {"tie_weights": True, "embedding_size": 5, "hidden_size": 6}},
            ["model.tie_weights=True", "model.embedding_size", "model.hidden_size", "5", "6"],
        ),
        ({"optim": {"name": "adam", "weight_decay": 0.1}}, ["optim.weight_decay=0.1", "adamw"]),
        ({"train": {"batch_size": 5, "accumulate": 2}}, ["train.accumulate=2", "train.batch_size=5"]),
    ],
)
def test_values_that_do_not_fit_together_are_refused(tree, parts):
    with pytest.raises(CharlmError) as caught:
        from_dict(tree)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_sections_built_in_python_are_checked():
    with pytest.raises(CharlmError, match=r"model\.norm='layr': did you mean layer\?"):
        ModelConfig(norm="layr")
    with pytest.raises(CharlmError, match=r"model\.norm=None: must not be null"):
        ModelConfig(norm=None)
    with pytest.raises(CharlmError, match=r"train\.steps=0: must be 1 or more"):
        TrainConfig(steps=0)


# model.size


def differing(config: Config, other: Config) -> dict:
    """The fields of the first config whose values are different in the second."""
    values = flatten(other)
    return {key: value for key, value in flatten(config).items() if value != values[key]}


def written(tmp_path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_sets_the_same_fields_in_python_yaml_and_on_the_command_line(tmp_path, size):
    fields = {f"{s}.{name}": value for s, named in preset(size).items() for name, value in named.items()}
    assert fields.keys() == BASE.keys()
    config = load_config(None, f"model.size={size}")
    assert {key: flatten(config)[key] for key in fields} == fields
    assert differing(config, Config()).keys() <= fields.keys()
    assert Config(model=ModelConfig(size=size)) == config
    assert from_dict({"model": {"size": size, "recall": config.model.recall}}) == config
    assert load_config(written(tmp_path, f"model: {{size: {size}}}")) == config


def test_a_stored_config_of_before_sizes_had_recall_has_none():
    assert ModelConfig(size="small").recall == 8192
    assert from_dict({"model": {"size": "small"}}).model.recall == 0


def test_every_size_has_its_yaml():
    files = (ROOT / "charlm" / "config" / "sizes").glob("*.yaml")
    assert {path.stem for path in files} == set(SIZES)


def test_explicit_values_win_in_python_even_when_they_equal_the_default():
    assert ModelConfig(size="large").hidden_size == 2048
    assert ModelConfig(size="large", hidden_size=256).hidden_size == 256
    assert ModelConfig("large", "gru", "tanh", 64).embedding_size == 64
    assigned = TrainConfig()
    assigned.bptt = 5
    optim = OptimConfig(learning_rate=OptimConfig().learning_rate, clip=2.0)
    config = Config(model=ModelConfig(size="base", hidden_size=9), optim=optim, train=assigned)
    expected = {"model.hidden_size": 9, "optim.learning_rate": 2e-3, "optim.clip": 2.0, "train.bptt": 5}
    assert differing(config, Config(model=ModelConfig(size="base"))) == expected
    assert (optim.average, assigned.batch_size) == (0.0, 64)  # the arguments are not changed


def test_a_resolved_config_keeps_its_values():
    config = Config(model=ModelConfig(size="large"))
    config.model.hidden_size, config.train.batch_size = 256, 64
    tree = dataclasses.asdict(config)
    assert from_dict(tree) == config and ModelConfig(**tree["model"]) == config.model
    assert pickle.loads(pickle.dumps(config)) == config
    again = dataclasses.replace(config, run_dir="runs/other")
    assert differing(again, config) == {"run_dir": "runs/other"}


def test_values_are_checked_with_the_preset_filled_in():
    assert from_dict({"model": {"size": "large"}, "train": {"accumulate": 256}}).train.batch_size == 256
    with pytest.raises(CharlmError, match=r"train\.accumulate=64: must divide train\.batch_size=16"):
        Config(model=ModelConfig(size="small"), train=TrainConfig(accumulate=64))
    with pytest.raises(CharlmError, match=r"optim\.weight_decay=0\.1: is for adamw"):
        Config(model=ModelConfig(size="small"), optim=OptimConfig("adam"))


def test_other_words_of_the_command_line_override_a_size_wherever_they_stand():
    words = ["--model.size", "base"], ["--model.hidden_size=300"], ["--train.batch_size", "7"]
    expected = {"model.hidden_size": 300, "train.batch_size": 7}
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        config = parse([word for i in order for word in words[i]])
        assert differing(config, load_config(None, "model.size=base")) == expected
    assert load_config(None, "model.size=xl", "model.size=base") == load_config(None, "model.size=base")


def test_a_size_on_the_command_line_overrides_the_yaml_files(tmp_path):
    path = written(tmp_path, "model: {hidden_size: 9, cell: gru}\noptim: {learning_rate: 0.5, clip: 2}\n")
    for words in (["--config", path, "--model.size=base"], ["--model.size", "base", f"--config={path}"]):
        config = parse(words)
        assert {key: flatten(config)[key] for key in BASE} == BASE
        assert (config.model.cell, config.optim.clip) == ("gru", 2)  # not part of a preset
    sized = written(tmp_path, "model: {size: tiny, hidden_size: 9}")
    assert parse(["--config", sized, "--model.size", "base"]).model.hidden_size == BASE["model.hidden_size"]
    without = parse(["--config", sized, "--model.size=null"])
    assert differing(without, Config()) == {"model.hidden_size": 9}


def test_a_size_in_a_yaml_is_beneath_the_other_fields_of_that_file(tmp_path):
    path = written(tmp_path, "model: {hidden_size: 9, size: base}\ntrain: {bptt: 5}\n")
    config = load_config(path, "model.num_layers=1")
    expected = {"model.hidden_size": 9, "train.bptt": 5, "model.num_layers": 1}
    assert differing(config, load_config(None, "model.size=base")) == expected
    assert from_dict({"model": {"size": "base", "hidden_size": 9}, "train": {"bptt": 5}}) == load_config(path)
    (tmp_path / "before.yaml").write_text("model: {num_layers: 7}\noptim: {clip: 2}\n")
    both = parse([f"--config={tmp_path / 'before.yaml'}", "--config", path])
    assert differing(both, load_config(path)) == {"optim.clip": 2}  # it is above the files before
    again = written(tmp_path, to_yaml(config))  # as in a run directory
    assert load_config(again) == config


def test_print_config_shows_what_a_size_stands_for(capsys):
    with pytest.raises(SystemExit):
        parse(["--model.size", "large", "--model.num_layers", "2", "--print_config"])
    printed = capsys.readouterr().out
    for line in ("size: large", "hidden_size: 2048", "num_layers: 2", "learning_rate: 0.002", "bptt: 256"):
        assert f"  {line}\n" in printed


def test_an_unknown_size_is_refused_with_the_nearest(tmp_path):
    for words in (["--model.size=bsae"], ["--config", written(tmp_path, "model: {size: bsae}")]):
        with pytest.raises(CharlmError, match=r"^model\.size=bsae: did you mean base\?"):
            parse(words)
    with pytest.raises(CharlmError, match=r"model\.size='bsae': did you mean base\?"):
        from_dict({"model": {"size": "bsae"}})
    with pytest.raises(CharlmError, match=r"model\.size=.*tiny, small, base, large, xl"):
        parse(["--model.size="])


def test_a_size_inside_a_section_given_as_one_word_is_refused_and_not_ignored():
    for words in (["--model", '{"size": "base"}'], ["--model={size: base}"]):
        with pytest.raises(CharlmError, match=r"give the size as a word of its own"):
            parse(words)
    assert parse(["--model", '{"hidden_size": 9}']).model.hidden_size == 9


def test_the_readme_has_the_sizes_as_they_are():
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.M)
    rows = {name: cells for name, cells in rows if name in SIZES}
    assert list(rows) == list(SIZES)
    for size, cells in rows.items():
        config = Config(model=ModelConfig(size=size))
        with torch.device("meta"):
            millions = sum(p.numel() for p in CharLM(config.model, 200).parameters()) / 1e6
        model, train = config.model, config.train
        assert f"{millions:.3g} M" in cells
        assert f"{model.num_layers} × {model.hidden_size:,}" in cells
        assert f"{train.batch_size:,} × {train.bptt}" in cells
        assert f"| {config.optim.learning_rate:g} | {model.dropout:g} |" in cells
