"""charlm.config.parse: precedence, types, hints for wrong keys, round trips, help, and the shipped YAMLs."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from charlm.config.fields import Config, DataConfig, TrainConfig
from charlm.config.parse import (
    flatten,
    from_dict,
    load_config,
    parse,
    read_run_config,
    shipped_configs,
    to_yaml,
)
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


# precedence


def test_defaults_then_yaml_then_command_line(tmp_path):
    path = yaml_file(tmp_path, "train: {steps: 7, bptt: 5}\nrun_dir: runs/a\n")
    config = load_config(path, "train.steps=3", "--model.hidden_size=6")
    changed = {key: value for key, value in flatten(config).items() if value != flatten(Config())[key]}
    assert changed == {"train.steps": 3, "train.bptt": 5, "model.hidden_size": 6, "run_dir": "runs/a"}
    assert load_config() == Config()


def test_options_by_keyword_are_the_same_as_on_the_command_line(tmp_path):
    by_keyword = {
        "steps": 3,
        "seed": 9,
        "run_dir": tmp_path,
        "prompt": "1e3",
        "stop": ["a", "\n"],
        "size": None,
    }
    words = [
        "train.steps=3",
        "train.seed=9",
        f"run_dir={tmp_path}",
        "sample.prompt=1e3",
        'sample.stop=["a", "\\n"]',
    ]
    config = load_config("stdlib", **by_keyword, evaluate={"every": 7, "lanes": 2}, **{"log.every": 5})
    assert config == load_config("stdlib", *words, "evaluate.every=7", "evaluate.lanes=2", "log.every=5")
    assert load_config(config) is config
    for options, said in (
        ({"every": 5}, "every=5: one of evaluate.every, sample.every, .*; .* such as evaluate={'every': 5}"),
        ({"stepps": 5}, "unknown option stepps; did you mean train.steps"),
        ({"steps": 0}, "train.steps=0: must be 1 or more"),
    ):
        with pytest.raises(CharlmError, match=said):
            load_config("stdlib", **options)
    with pytest.raises(CharlmError, match="a Config has its options already"):
        load_config(config, steps=5)


def test_the_command_line_wins_wherever_config_stands(tmp_path):
    path = yaml_file(tmp_path, "train: {steps: 7, bptt: 5}")
    assert parse(["--train.steps=3", "--config", str(path)]).train.steps == 3
    assert parse([f"--config={path}", "--train.steps", "3"]).train.steps == 3
    (tmp_path / "later.yaml").write_text("train: {bptt: 6}")
    config = parse(["--config", str(path), "--train.seed=2", f"--config={tmp_path / 'later.yaml'}"])
    assert (config.train.steps, config.train.bptt, config.train.seed) == (7, 6, 2)


def length(config: Config) -> tuple:
    return config.train.steps, config.train.minutes, config.train.epochs


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("minutes: 5", [], (1000, 5, None)),
        ("minutes: 5", ["train.steps=100"], (100, None, None)),
        ("minutes: 5", ["train.steps=1000"], (1000, None, None)),
        ("steps: 70", ["train.minutes=3"], (1000, 3, None)),
        ("steps: 70", ["train.epochs=0.5"], (1000, None, 0.5)),
        ("steps: 70", ['train={"minutes": 3}'], (1000, 3, None)),
        ("epochs: 2", ["train.minutes=3", "model.size=tiny"], (1000, 3, None)),
        ("epochs: 2", ["train.minutes=null"], (1000, None, 2)),
        ("{steps: 1000, minutes: 5}", [], (1000, 5, None)),  # what to_yaml writes
        ("{steps: 70, epochs: null}", ["train.seed=4"], (70, None, None)),
    ],
)
def test_one_of_steps_minutes_and_epochs_counts(tmp_path, text, words, expected):
    body = f"train: {text}" if text.startswith("{") else f"train: {{{text}}}"
    config = load_config(yaml_file(tmp_path, body), *words)
    assert length(config) == expected
    assert load_config(yaml_file(tmp_path, to_yaml(config))) == config


def test_a_later_file_overrides_the_length_of_an_earlier_one(tmp_path):
    words = ["--config", str(yaml_file(tmp_path, "train: {steps: 70, bptt: 5}"))]
    (tmp_path / "later.yaml").write_text("train: {epochs: 2}")
    config = parse([*words, "--config", str(tmp_path / "later.yaml")])
    assert length(config) == (1000, None, 2) and config.train.bptt == 5


def test_two_lengths_in_one_place_are_refused(tmp_path):
    told = "give one of steps, minutes and epochs"
    both = refusal(yaml_file(tmp_path, "train: {steps: 70, minutes: 3}"))
    assert both == f"train.steps=70 and train.minutes=3.0: {told}"
    assert refusal(None, "train.minutes=3", "train.epochs=2").endswith(told)
    with pytest.raises(CharlmError, match=r"train\.steps=9 and train\.epochs=2: give one"):
        Config(train=TrainConfig(steps=9, epochs=2))
    for key in ("minutes", "epochs"):
        for value in ("0", ".inf", "-1"):
            assert "must be above 0 and finite" in refusal(None, f"train.{key}={value}")


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
    more = ["data.source=json"] if key == "data.data_files" else []  # data_files need their format
    read = flatten(load_config(None, words, *more))[key]
    assert read == value and type(read) is type(value)


AS_WRITTEN = [  # by people, and by the agents of sweeps
    ("train.steps", "1e4", 10_000),
    ("train.steps", "30.0", 30),
    ("train.seed", "12345678901234567890", 12345678901234567890),
    ("train.threads", "None", None),
    ("optim.clip", "None", None),
    ("optim.clip", "none", None),
    ("optim.clip", "2", 2.0),
    ("model.size", "None", None),
    ("model.norm", "none", "none"),
    ("model.locked_dropout", "True", True),
    ("sample.prompt", "None", "None"),
    ("sample.prompt", "1e4", "1e4"),
    ("data.text_column", "2.0", "2.0"),
    ("sample.stop", "2.", "2."),
    ("data.normalize", "nfc, lower", ["nfc", "lower"]),
    ("log.trackers", "[wandb,tensorboard]", ["wandb", "tensorboard"]),
]


@pytest.mark.parametrize("key, word, value", AS_WRITTEN)
def test_values_as_people_write_them_are_what_they_mean(tmp_path, key, word, value):
    section, name = key.split(".")
    text = yaml.dump({section: {name: word}}) if word[0] != "[" else f"{section}: {{{name}: {word}}}"
    words = ([f"--{key}={word}"], [f"--{key}", word], ["--config", str(yaml_file(tmp_path, text))])
    for given in words:
        read = flatten(parse(given))[key]
        assert read == value and type(read) is type(value), given


def test_an_option_of_yes_or_no_may_stand_alone():
    config = parse(["--model.locked_dropout", "--train.steps", "1e2", "--model.tie_weights=false"])
    assert config.model.locked_dropout and config.train.steps == 100 and not config.model.tie_weights
    assert parse(["--train.steps", "5", "--model.residual"]).model.residual
    for wrong in ("1.5", "1e400", "1e-4", "nan", "None"):
        assert "train.steps=" in refusal(None, f"train.steps={wrong}")


def test_a_trial_of_a_sweep_has_its_own_run_dir(tmp_path, monkeypatch):
    path = yaml_file(tmp_path, "run_dir: runs/{run_id}")
    for variable, folder in (("a1b2", "runs/a1b2"), ("", "runs/default")):
        monkeypatch.setenv("WANDB_RUN_ID", variable)
        assert load_config(path).run_dir == folder
    assert read_run_config(tmp_path / "none").run_dir == "runs/default"


def test_a_pattern_that_the_shell_expanded_is_explained():
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
    """A run directory's config.yaml reads back equal, whatever its strings look like."""
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


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_config_written_by_an_earlier_version_keeps_every_value(cell):
    path = ROOT / "tests" / "data" / "v0.1.0" / cell / "config.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    configs = (load_config(path), read_run_config(path.parent), from_dict(tree))
    for config in configs:
        read = yaml.safe_load(to_yaml(config))
        for section, values in tree.items():  # fields that were added since have their defaults
            assert read[section] == (read[section] | values if isinstance(values, dict) else values)


def test_from_dict_refuses_unknown_keys_and_fills_in_defaults():
    assert from_dict({}) == Config()
    assert from_dict({"train": {"steps": 3}}).train.bptt == Config().train.bptt
    with pytest.raises(CharlmError, match=r"train\.stepz; did you mean train\.steps\?"):
        from_dict({"train": {"stepz": 3}})


@pytest.mark.parametrize("stop", ["2.", "1e3", "None", ["3", "null"]])
def test_a_text_to_stop_at_stays_a_text(stop):
    config = load_config(None, "train.steps=3")
    config.sample.stop = stop
    assert from_dict(yaml.safe_load(to_yaml(config))) == config


def test_paths_of_python_are_their_names():
    config = load_config(None, data_files=[Path("a.txt"), Path("b.txt")], run_dir=Path("runs/a"))
    assert config.data.data_files == ["a.txt", "b.txt"]
    assert Config(run_dir=Path("runs/a")).run_dir == config.run_dir == "runs/a"


@pytest.mark.parametrize("source", ["x" * 5000, "~nobody-of-this-name/a"])
def test_a_source_that_is_no_path_of_this_machine_is_read_nevertheless(source):
    assert Config(data=DataConfig(source)).data.source == source


def test_a_damaged_config_of_a_run_is_refused_with_its_path(tmp_path):
    assert read_run_config(tmp_path) == Config()  # there is none
    path = tmp_path / "config.yaml"
    for text in ("train: {steps: many}", "train: {stepz: 3}", "train: [", "- a"):
        path.write_text(text)
        with pytest.raises(CharlmError, match=re.escape(str(path))):
            read_run_config(tmp_path)


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
    ("stepz", "train.steps"),
    # other programs' names
    ("optim.lr", "optim.learning_rate"),
    ("lr", "optim.learning_rate"),
    ("train.eval_every", "evaluate.every"),
    ("batch_size", "train.batch_size"),
    ("hidden_size", "model.hidden_size"),
    ("train.num-epochs", "train.epochs"),
    ("seed", "train.seed"),
    ("train.seq_len", "train.bptt"),
    ("optimizer.weight_decay", "optim.weight_decay"),
    ("model.n_layers", "model.num_layers"),
    ("train.early_stopping", "train.patience"),
    ("log.report_to", "log.trackers"),
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


def test_the_right_name_in_a_wrong_section_names_the_right_one():
    """train.tie_weights is model.tie_weights, not the field of train that looks most like it."""
    sections = {key.split(".")[0] for key in KEYS if "." in key}
    for name in {key.rsplit(".", 1)[1] for key in KEYS if "." in key}:
        hint = rf"{name}; did you mean \w+\.{name}\?"
        for section in (s for s in sections if f"{s}.{name}" not in KEYS):
            with pytest.raises(CharlmError, match=rf"unknown key {section}\.{hint}"):
                from_dict({section: {name: 3}})
        with pytest.raises(CharlmError, match=f"unknown key {hint}"):
            from_dict({name: 3})


def test_the_synonyms_are_of_fields_and_of_one_each():
    synonyms = yaml.safe_load((ROOT / "charlm" / "config" / "synonyms.yaml").read_text(encoding="utf-8"))
    words = [word for others in synonyms.values() for word in others.split()]
    assert set(synonyms) <= set(KEYS) and len(words) == len(set(words))
    fields_of = {key.rsplit(".", 1)[-1] for key in KEYS}
    assert set(words) & fields_of <= {"seed"}  # of three fields, train.seed is meant


def test_a_key_like_none_lists_the_sections():
    message = refusal(None, "qqqqqqqq=1")
    assert all(f.name in message for f in fields(Config))


def test_a_key_that_is_not_a_string_is_refused(tmp_path):
    assert "unknown key 3" in refusal(yaml_file(tmp_path, "3: 4"))


# wrong values


@pytest.mark.parametrize(
    "text, key, value",
    [
        ("train: {steps: many}", "train.steps", "many"),
        ("train: {steps: 1.5}", "train.steps", "1.5"),
        ("train: {steps: true}", "train.steps", "True"),
        ("train: {steps: null}", "train.steps", "None"),
        ("train: {steps: [3]}", "train.steps", "3"),
        ("optim: {learning_rate: fast}", "optim.learning_rate", "fast"),
        ("optim: {betas: [0.5]}", "optim.betas", "0.5"),
        ("model: {tie_weights: maybe}", "model.tie_weights", "maybe"),
        ("data: {validation: true}", "data.validation", "True"),
        ("data: {validation: null}", "data.validation", "None"),
        ("train: 5", "train", "5"),
        ("train: [5]", "train", "5"),
    ],
)
def test_wrong_type_in_yaml_names_key_and_value(tmp_path, text, key, value):
    message = refusal(yaml_file(tmp_path, text))
    assert key in message and value in message


@pytest.mark.parametrize(
    "word, message",
    [
        ("train.steps=many", "train.steps=many: expected int"),
        ("train.max_hours=long", "train.max_hours=long: expected float"),
        ("model.norm=batch", "model.norm=batch: choose one of none, layer, rms"),
        ("model.norm=layr", "model.norm=layr: did you mean layer?"),
        ("train.bptt=0", "train.bptt=0: must be 1 or more"),
    ],
)
def test_a_wrong_value_reads_the_same_from_yaml_and_command_line(tmp_path, word, message):
    key, _, value = word.partition("=")
    section, name = key.split(".")
    assert refusal(None, word) == message
    assert refusal(yaml_file(tmp_path, f"{section}: {{{name}: {value}}}")) == message


# files


def test_a_missing_config_names_the_shipped_ones(tmp_path):
    message = refusal(tmp_path / "nothing-like-it-at-all.yaml")
    assert "nothing-like-it-at-all.yaml: no such file" in message
    assert all(path.stem in message for path in CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_config_parses_and_is_found_by_name_and_by_a_misspelled_name(path):
    assert shipped_configs()[path.stem].samefile(path)
    assert load_config(path.stem) == load_config(path)
    assert Path(load_config(path).run_dir).name == path.stem
    slip = path.stem + "x"
    if slip not in shipped_configs():
        assert f"did you mean {path.stem}?" in refusal(slip)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("- a\n- b\n", ["mapping", "list"]),
        ("just words\n", ["mapping", "str"]),
        ("5", ["mapping", "int"]),
        ("train: {steps: 3\n", ["cannot be read as YAML"]),
        ("a: b: c", ["cannot be read as YAML"]),
        ("\tx: 1", ["cannot be read as YAML"]),
    ],
)
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path, text, parts):
    path = yaml_file(tmp_path, text)
    message = refusal(path)
    assert str(path) in message and all(part in message for part in parts)
    path.write_bytes(b"run_dir: \xff\xfe")
    assert f"{path}: cannot be read as YAML" in refusal(path)


@pytest.mark.parametrize("text", ["", "# nothing\n", "train:\n", "train: {}\n"])
def test_an_empty_file_or_section_leaves_the_defaults(tmp_path, text):
    """A section whose every line is commented out is a section at its defaults."""
    assert load_config(yaml_file(tmp_path, text)) == Config()


# help


def test_help_shows_every_field_with_its_docstring(capsys):
    with pytest.raises(SystemExit) as leave:
        parse(["--help"])
    assert leave.value.code in (0, None)
    shown = capsys.readouterr().out
    for key in KEYS:
        (text,) = re.findall(rf"^  --{key} \S+(?:, --{key}\+ \S+)?\s+(.*)", shown, re.M)
        assert not text.startswith("(type:"), f"{key} has no docstring"
    assert "warm up the carry of a lane before the first one that counts" in " ".join(shown.split())


# laziness

HEAVY = ("torch", "datasets", "wandb", "accelerate", "pyarrow", "numba")


def test_parsing_a_config_imports_nothing_heavy():
    code = (
        "import sys; from charlm.config.parse import load_config; load_config(None, 'train.steps=3');"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
