"""charlm.config.parse: precedence, types, ranges, names of wrong keys, help, and the shipped YAMLs."""

import ast
import math
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from helpers import ROOT

import charlm.config.fields
from charlm.config.fields import Config
from charlm.config.parse import find_config, flatten, from_dict, load_config, parse, shipped_configs, to_yaml
from charlm.errors import CharlmError

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
KEYS = list(flatten(Config()))


def yaml_file(tmp_path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(*args) -> str:
    with pytest.raises(CharlmError) as caught:
        load_config(*args)
    return str(caught.value)


# where values come from


def test_defaults_then_yaml_then_command_line(tmp_path):
    path = yaml_file(tmp_path, "train: {steps: 7, bptt: 5}\nrun_dir: runs/a\n")
    config = load_config(path, "train.steps=3", "--model.hidden_size=6")
    assert (config.train.steps, config.train.bptt, config.model.hidden_size) == (3, 5, 6)
    assert config.train.batch_size == Config().train.batch_size
    assert config.run_dir == "runs/a"
    changed = {key for key, value in flatten(config).items() if value != flatten(Config())[key]}
    assert changed == {"train.steps", "train.bptt", "model.hidden_size", "run_dir"}


def test_the_command_line_wins_wherever_config_stands(tmp_path):
    path = yaml_file(tmp_path, "train: {steps: 7}")
    assert parse(["--train.steps=3", "--config", str(path)]).train.steps == 7  # later words win
    assert parse([f"--config={path}", "--train.steps", "3"]).train.steps == 3


def test_without_words_the_defaults():
    assert load_config() == Config()


def test_numbers_without_a_dot_are_numbers(tmp_path):
    """YAML 1.1 reads 1e-3 as a string; people mean a number."""
    config = load_config(yaml_file(tmp_path, "optim: {learning_rate: 1e-3, eps: 2E-9}"))
    assert (config.optim.learning_rate, config.optim.eps) == (0.001, 2e-9)
    assert isinstance(config.optim.learning_rate, float)


def test_every_section_and_kind_of_value_from_yaml(tmp_path):
    config = load_config(
        yaml_file(
            tmp_path,
            """
            data: {source: text, data_files: {train: [a, b], validation: c}, validation: validation, test: 0}
            vocab: {characters: helo, unknown: error}
            optim: {betas: [0.5, 0.75], clip: null}
            model: {tie_weights: true, embedding_size: 6, hidden_size: 6}
            train: {max_hours: 0.5}
            """,
        )
    )
    assert config.data.data_files == {"train": ["a", "b"], "validation": "c"}
    assert (config.data.validation, config.data.test) == ("validation", 0)
    assert (config.vocab.characters, config.vocab.unknown) == ("helo", "error")
    assert (config.optim.betas, config.optim.clip, config.train.max_hours) == ((0.5, 0.75), None, 0.5)
    assert config.model.tie_weights is True


@pytest.mark.parametrize(
    "words, key, value",
    [
        ("data.validation=0.25", "data.validation", 0.25),
        ("data.validation=dev", "data.validation", "dev"),
        ("data.name=20231101.en", "data.name", "20231101.en"),
        ("data.revision=0012345", "data.revision", "0012345"),
        ("data.revision=1234567", "data.revision", "1234567"),
        ("vocab.characters=", "vocab.characters", ""),
        ("vocab.characters=012", "vocab.characters", "012"),
        ("vocab.characters=# c", "vocab.characters", "# c"),
        ("sample.prompt=a: b", "sample.prompt", "a: b"),
        ("optim.clip=null", "optim.clip", None),
        ('data.data_files={"a": "b", "c": ["d"]}', "data.data_files", {"a": "b", "c": ["d"]}),
    ],
)
def test_values_on_the_command_line(words, key, value):
    more = ["data.source=json"] if key == "data.data_files" else []  # who names files says what they are
    read = flatten(load_config(None, words, *more))[key]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "words, told",
    [
        (
            ["data.data_files=a.txt"],
            "data.data_files='a.txt': source stdlib reads no files; set data.source to",
        ),
        (["data.source=literal", "data.text=a", "data.data_files=a.txt"], "source literal reads no files"),
        (["data.text=hello"], "data.text='hello': is for data.source=literal"),
    ],
)
def test_text_that_the_source_would_not_read_is_refused(words, told):
    with pytest.raises(CharlmError, match=re.escape(told)):
        load_config(None, *words)


def test_a_pattern_that_the_shell_has_spread_is_explained():
    with pytest.raises(
        CharlmError, match=r"unrecognized arguments.*put a pattern such as 'books/.*' in quotes"
    ):
        parse(["--data.source", "text", "--data.data_files", "a.txt", "b.txt", "c.txt"])


# round trips


def test_to_yaml_reads_back_equal(tmp_path):
    tree = {
        "run_dir": "runs/über",
        "data": {"source": "json", "data_files": {"train": ["a", "b"], "dev": "c"}, "validation": "dev"},
        "vocab": {"characters": "helo\r\n\t é😀\0", "end_of_document": True},
        "optim": {"learning_rate": 1e-5, "betas": [0.5, 0.75], "clip": None},
        "train": {"max_hours": 0.5},
        "sample": {"prompt": "a: b # c\n", "top_k": 5, "top_p": 0.9},
    }  # fmt: skip
    config = from_dict(tree)
    assert load_config(yaml_file(tmp_path, to_yaml(config))) == config
    assert load_config(yaml_file(tmp_path, to_yaml(Config()))) == Config()


@pytest.mark.parametrize(
    "text",
    ["123", "true", "\r\n", " x ", "é\0", "[1]", "{a: 1}", "null", "~", "1e3", "# c", "&a", "\x85", "\u2028"],
)
def test_any_string_survives_to_yaml(tmp_path, text):
    """A run directory's config.yaml says what the run was, whatever the strings look like."""
    config = from_dict(
        {
            "data": {"source": "literal", "text": text, "name": text, "separator": text},
            "sample": {"prompt": text},
        }
    )
    assert load_config(yaml_file(tmp_path, to_yaml(config))) == config


def test_print_config_parses_back(tmp_path, capsys):
    words = ["--model.hidden_size=6", "--optim.learning_rate=1e-5", "--vocab.characters=helo"]
    with pytest.raises(SystemExit) as leave:
        parse([*words, "--print_config"])
    assert leave.value.code in (0, None)
    printed = capsys.readouterr().out
    assert load_config(yaml_file(tmp_path, printed)) == parse(words)


def test_from_dict_refuses_unknown_keys_and_fills_in_defaults():
    assert from_dict({}) == Config()
    assert from_dict({"train": {"steps": 3}}).train.bptt == Config().train.bptt
    with pytest.raises(CharlmError, match=r"train\.stepz; did you mean train\.steps\?"):
        from_dict({"train": {"stepz": 3}})


# wrong keys

MISSPELLED = [
    ("train.stepz", "train.steps"),
    ("train.batchsize", "train.batch_size"),
    ("model.hiden_size", "model.hidden_size"),
    ("trian.steps", "train.steps"),
    ("optim.learning-rate", "optim.learning_rate"),
    ("train.learning_rate", "optim.learning_rate"),
    ("learning_rate", "optim.learning_rate"),
    ("optim.batch_size", "train.batch_size"),
    ("rundir", "run_dir"),
]


@pytest.mark.parametrize("wrong, right", MISSPELLED)
def test_unknown_option_names_the_nearest(wrong, right):
    message = refusal(None, f"{wrong}=3")
    assert f"--{wrong};" in message and f"did you mean {right}?" in message


@pytest.mark.parametrize("wrong, right", MISSPELLED)
def test_unknown_key_in_yaml_names_the_nearest(tmp_path, wrong, right):
    section, _, name = wrong.rpartition(".")
    path = yaml_file(tmp_path, f"{section}: {{{name}: 3}}" if section else f"{name}: 3")
    message = refusal(path)
    assert str(path) in message and "unknown key" in message
    if not section or section in {key.split(".")[0] for key in KEYS}:
        assert f"unknown key {wrong};" in message and f"did you mean {right}?" in message


@pytest.mark.parametrize("key", [k for k in KEYS if "." in k])
def test_the_right_name_in_a_wrong_section_names_the_right_one(key):
    """train.tie_weights is model.tie_weights, not the field of train that looks most like it."""
    name = key.rsplit(".", 1)[1]
    wrong = []
    for section in ["", *{k.split(".")[0] + "." for k in KEYS if "." in k}]:
        if section + name not in KEYS:
            message = refusal(None, f"{section}{name}=3")
            named = re.search(r"did you mean (\S+)\?", message)
            if not named or named[1].rsplit(".", 1)[-1] != name:
                wrong.append(message)
    assert not wrong


def test_a_key_like_none_lists_the_sections():
    message = refusal(None, "qqqqqqqq=1")
    assert all(f.name in message for f in fields(Config))


def test_a_key_that_is_not_a_string_is_refused(tmp_path):
    assert "unknown key 3" in refusal(yaml_file(tmp_path, "3: 4"))


# wrong values


@pytest.mark.parametrize(
    "yaml, key, value",
    [
        ("train: {steps: many}", "train.steps", "many"),
        ("train: {steps: 1.5}", "train.steps", "1.5"),
        ("train: {steps: true}", "train.steps", "True"),
        ("train: {steps: null}", "train.steps", "None"),
        ("train: {steps: [3]}", "train.steps", "3"),
        ("optim: {learning_rate: fast}", "optim.learning_rate", "fast"),
        ("optim: {betas: [0.5]}", "optim.betas", "0.5"),
        ("model: {cell: lstn}", "model.cell", "lstn"),
        ("model: {tie_weights: maybe}", "model.tie_weights", "maybe"),
        ("data: {validation: true}", "data.validation", "True"),
        ("data: {validation: null}", "data.validation", "None"),
        ("train: 5", "train", "5"),
        ("train: [5]", "train", "5"),
    ],
)
def test_wrong_type_in_yaml_names_key_and_value(tmp_path, yaml, key, value):
    message = refusal(yaml_file(tmp_path, yaml))
    assert key in message and value in message


@pytest.mark.parametrize("key, value", [("train.steps", "many"), ("model.cell", "lstn")])
def test_wrong_type_on_the_command_line_names_key_and_value(key, value):
    message = refusal(None, f"{key}={value}")
    assert key in message and value in message


def test_a_wrong_choice_lists_the_right_ones():
    message = refusal(None, "model.cell=lstn")
    assert all(cell in message for cell in ("lstm", "gru", "rnn"))


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
    ("checkpoint.every", -1),
    ("checkpoint.keep", 0),
    ("log.every", 0),
]


@pytest.mark.parametrize("key, value", BAD_VALUES)
def test_a_value_out_of_range_is_refused_by_key_and_value(key, value):
    section, _, name = key.rpartition(".")
    with pytest.raises(CharlmError) as caught:
        from_dict({section: {name: value}} if section else {name: value})
    assert str(caught.value).startswith(f"{key}={value!r}: ")
    assert len(str(caught.value)) > len(f"{key}={value!r}: ")  # and what to do


@pytest.mark.parametrize(
    "key, value",
    [
        ("data.validation", 0.0),
        ("model.embedding_size", 0),
        ("model.dropout", 0.0),
        ("vocab.coverage", 1.0),
        ("vocab.max_size", 1),
        ("optim.betas", (0.0, 0.0)),
        ("optim.final_ratio", 0.0),
        ("optim.final_ratio", 1.0),
        ("optim.clip", None),
        ("train.steps", 1),
        ("train.bptt", 1),
        ("train.batch_size", 1),
        ("evaluate.every", 0),
        ("evaluate.max_characters", 2),
        ("sample.temperature", 0.0),
        ("sample.top_p", 1.0),
        ("checkpoint.every", 0),
        ("checkpoint.keep", 1),
    ],
)
def test_the_borders_of_the_ranges_are_allowed(key, value):
    section, name = key.split(".")
    assert flatten(from_dict({section: {name: value}}))[key] == value


@pytest.mark.parametrize(
    "tree, told",
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
def test_values_that_do_not_go_together_are_refused(tree, told):
    with pytest.raises(CharlmError) as caught:
        from_dict(tree)
    assert all(words in str(caught.value) for words in told), str(caught.value)


def test_a_range_error_reads_the_same_from_yaml_and_command_line(tmp_path):
    said = "train.bptt=0: must be 1 or more"
    assert said in refusal(None, "train.bptt=0")
    assert said in refusal(yaml_file(tmp_path, "train: {bptt: 0}"))


# files


def test_a_missing_config_names_the_shipped_ones(tmp_path):
    message = refusal(tmp_path / "nothing-like-it-at-all.yaml")
    assert "nothing-like-it-at-all.yaml: no such file" in message
    assert all(path.stem in message for path in CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_config_is_found_by_name_and_by_a_slip_of_it(path):
    assert find_config(path.stem).samefile(path)
    assert shipped_configs()[path.stem].samefile(path)
    slip = path.stem + "x"
    if slip not in shipped_configs():
        assert f"did you mean {path.stem}?" in refusal(slip)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_config_parses_and_its_run_dir_bears_its_name(path):
    assert Path(load_config(path).run_dir).name == path.stem


@pytest.mark.parametrize(
    "text, told",
    [
        ("- a\n- b\n", ["mapping", "list"]),
        ("just words\n", ["mapping", "str"]),
        ("5", ["mapping", "int"]),
        ("train: {steps: 3\n", ["cannot be read as YAML"]),
        ("a: b: c", ["cannot be read as YAML"]),
        ("\tx: 1", ["cannot be read as YAML"]),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, told):
    path = yaml_file(tmp_path, text)
    message = refusal(path)
    assert str(path) in message and all(words in message for words in told)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"run_dir: \xff\xfe")
    assert f"{path}: cannot be read as YAML" in refusal(path)


@pytest.mark.parametrize("text", ["", "# nothing\n", "train:\n", "train: {}\n"])
def test_an_empty_file_or_section_leaves_the_defaults(tmp_path, text):
    """A section whose every line is commented out is a section at its defaults."""
    assert load_config(yaml_file(tmp_path, text)) == Config()


# help


def documented() -> dict[str, dict[str, str]]:
    """Class → field → docstring, from the source text."""
    out = {}
    for node in ast.parse(Path(charlm.config.fields.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            out[node.name] = {
                a.target.id: b.value.value
                for a, b in zip(node.body, node.body[1:], strict=False)
                if isinstance(a, ast.AnnAssign)
                and isinstance(b, ast.Expr)
                and isinstance(b.value, ast.Constant)
            }
    return out


def test_every_field_has_a_docstring_and_help_shows_it(capsys):
    with pytest.raises(SystemExit) as leave:
        parse(["--help"])
    assert leave.value.code in (0, None)
    shown = capsys.readouterr().out.replace(" ", "").replace("\n", "")
    docs = documented()
    for key in KEYS:
        section, _, name = key.rpartition(".")
        owner = type(getattr(Config(), section)).__name__ if section else "Config"
        assert docs[owner].get(name, "").strip(), f"{key} has no docstring"
        assert f"--{key}" in shown
        assert re.sub(r"\s", "", docs[owner][name]) in shown, f"--help does not say what {key} is"


# laziness

HEAVY = ("torch", "datasets", "wandb", "accelerate", "pyarrow")


@pytest.mark.parametrize(
    "module", ["charlm", "charlm.config.parse", "charlm.corpus.sources", "charlm.commands.cli"]
)
def test_importing_it_imports_nothing_heavy(module):
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_parsing_a_config_imports_nothing_heavy():
    code = (
        "import sys; from charlm.config.parse import load_config; load_config(None, 'train.steps=3');"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
