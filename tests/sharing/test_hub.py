"""A model to the Hub and back, through a server that speaks as much of it as that takes; and its card."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import small
from hub_server import Hub
from huggingface_hub import constants

import charlm
from charlm.commands.cli import main
from charlm.config.fields import Config, DataConfig
from charlm.errors import CharlmError, UsageError
from charlm.model.pretrained import FILES
from charlm.sharing.hub import ready, upload
from charlm.sharing.model_card import model_card
from charlm.training.loop import train

IDS = torch.arange(12).view(2, 6)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    config = small(tmp_path_factory.mktemp("push") / "mine", vocab={"coverage": 0.9, "unknown": "bytes"})
    train(config, quiet=True)
    return Path(config.run_dir)


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """A run of one's own."""
    return Path(shutil.copytree(run, tmp_path / "mine"))


@pytest.fixture
def hub(monkeypatch):
    with Hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix("https://huggingface.co")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
        monkeypatch.setenv("HF_TOKEN", "right")
        yield hub


def card_of(folder: Path) -> tuple[dict, str]:
    """(front matter, body) of a card."""
    _, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


def log_probabilities(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)[0].log_softmax(-1)


# to the Hub


def test_what_was_pushed_is_what_is_loaded(hub, copy, tmp_path, capsys):
    (copy / "model" / "notes.txt").write_text("not for others")
    main(["push", str(copy), "me/mine", "--private", "--license", "mit"])
    output = capsys.readouterr().out
    assert output.splitlines()[0] == f"sending {copy / 'model'} to me/mine, private:"
    assert output.splitlines()[-1].startswith(f"{hub.url}/me/mine/commit/")
    assert hub.created == [{"name": "mine", "organization": "me", "visibility": "private"}]
    assert set(hub.repos["me/mine"]) == {"README.md", *FILES}
    assert b"license: mit" in hub.repos["me/mine"]["README.md"]
    ours = charlm.load(copy)
    theirs = charlm.CharLM.from_pretrained("me/mine", cache_dir=tmp_path / "cache")
    assert torch.equal(log_probabilities(theirs), log_probabilities(ours.model))
    assert theirs.vocab == ours.vocab


def test_a_second_push_goes_to_the_same_place(hub, copy):
    folder = ready(copy, "me/mine")
    upload(folder, "me/mine")
    folder = ready(copy, "me/mine", license="apache-2.0")
    upload(folder, "me/mine", message="with a licence")
    assert b"license: apache-2.0" in hub.repos["me/mine"]["README.md"]


def test_the_card_names_the_place_of_the_last_push(copy):
    for name in ("me/mine", "me/other"):
        assert f'charlm.load("{name}")' in card_of(ready(copy, name))[1]


def test_a_token_without_the_right_to_write_is_an_error(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(
        CharlmError, match=r"^me/mine: the token has no right to write there \(403: no rights"
    ):
        upload(run / "model", "me/mine")


def test_no_token_and_no_network_are_errors(run, monkeypatch, hub):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CharlmError, match=r"^me/mine: was not sent: "):
        upload(run / "model", "me/mine")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CharlmError, match=r"no token of the Hugging Face Hub: .* HF_TOKEN"):
        upload(run / "model", "me/mine")


# without it


@pytest.mark.parametrize(
    ("words", "offline", "why"), [(["--dry_run"], False, "--dry_run"), ([], True, "HF_HUB_OFFLINE is set")]
)
def test_what_would_be_sent(copy, capsys, monkeypatch, hub, words, offline, why):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    main(["push", str(copy), "me/mine", "--language", "en", "--language", "de", *words])
    output = capsys.readouterr().out
    assert output.startswith(f"would send {copy / 'model'} to me/mine:\n")
    assert all(f"bytes  {name}\n" in output for name in ("README.md", *FILES))
    assert output.splitlines()[-1].startswith(f"nothing was sent ({why})")
    assert hub.repos == {} and card_of(copy / "model")[0]["language"] == ["en", "de"]


def test_the_folder_that_is_pushed_gives_the_same_log_probabilities(copy, tmp_path):
    folder = ready(copy, "me/mine")
    sent = tmp_path / "sent"
    sent.mkdir()
    for name in ("README.md", *FILES):
        shutil.copy(folder / name, sent)
    theirs = charlm.load(sent)
    assert torch.equal(log_probabilities(theirs.model), log_probabilities(charlm.load(copy).model))
    assert torch.equal(
        log_probabilities(charlm.CharLM.from_pretrained(sent)), log_probabilities(theirs.model)
    )
    assert ready(sent, "me/mine") == sent  # a folder without a run can be pushed on


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "name the owner too, as in user/mine"),
        ("me/mi ne", "not a name on the Hub"),
        ("a/b/c", "a/b/c"),
    ],
)
def test_a_bad_name_is_a_usage_error(run, name, message):
    with pytest.raises(UsageError, match=message):
        ready(run, name)


def test_what_is_not_a_model_is_not_sent(copy, tmp_path):
    with pytest.raises(CharlmError, match="nowhere: no such run directory or model folder"):
        ready(tmp_path / "nowhere", "me/mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CharlmError, match="holds no model yet"):
        ready(tmp_path / "empty", "me/mine")
    (copy / "model" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CharlmError, match=r"model\.safetensors: cannot be read"):
        ready(copy, "me/mine")


# the card


def test_training_writes_the_card_with_all_figures(run):
    head, body = card_of(run / "model")
    assert head == {
        "library_name": "charlm",
        "pipeline_tag": "text-generation",
        "tags": ["character-level", "language-model", "recurrent", "lstm"],
    }
    status = json.loads((run / "status.json").read_text())
    for split, figures in (("validation", status["best"]), ("test", status["test"])):
        row = (
            f"| {split} | {figures['nats_per_character']:.4f} | {figures['bpc']:.4f} | {figures['bpb']:.4f} |"
        )
        assert row in body
        assert f"| {figures['characters']:,} | {figures['bytes']:,} | a single pass |" in body
    assert "validation, baseline: unigram |" in body and "-gram, Witten-Bell |" in body
    assert f"{len(charlm.load(run).vocab)} symbols: 45 characters" in body
    assert "| weights of step | 12 of 12 |" in body
    assert "license" not in head and "License of the text, intended use" in body
    shown = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert shown["model"]["hidden_size"] == 12 and "dir" not in shown["data"]


def test_a_push_fills_in_license_and_language_and_leaves_the_rest(copy):
    path = copy / "model" / "README.md"
    text = path.read_text(encoding="utf-8").replace("hardware, time and energy", "energy")
    path.write_text(text + "\nTrained for fun.\n", encoding="utf-8")
    ready(copy, "me/mine", "mit", ["en"])
    ready(copy, "me/mine")
    head, body = card_of(copy / "model")
    assert (head["license"], head["language"]) == ("mit", "en")
    assert (
        body.rstrip()
        == text.split("---\n", 2)[2].replace("user/name", "me/mine").rstrip() + "\n\nTrained for fun."
    )


def test_a_run_without_a_card_gets_one_from_its_files(copy):
    (copy / "model" / "README.md").unlink()
    ready(copy, "me/mine")
    body = card_of(copy / "model")[1]
    assert "| validation | " in body and "baseline" not in body and "12 of 12" in body
    for name in ("README.md", "../config.yaml"):
        (copy / "model" / name).unlink()
    ready(copy, "me/mine")
    body = card_of(copy / "model")[1]
    assert "## Text\n\nNot stated.\n" in body and "## Training\n\nNot stated.\n" in body


def test_the_folders_of_the_machine_stay_private(tmp_path):
    secret = "/home/private/secret"
    data = DataConfig(
        source="text", data_files=[f"{secret}/a.txt", f"zip://b.txt::{secret}/b.zip"], dir=secret
    )
    config = Config(run_dir=f"{secret}/novel", data=data)
    config.train.init_from = secret
    trained = charlm.CharLM(config.model, 4)
    text = model_card(trained, charlm.Vocab("abcd", unknown="error"), config)
    assert (
        "/home" not in text
        and "secret/" not in text
        and "a.txt" in text
        and "zip://b.txt::b.zip" in text
        and "# novel" in text
    )
    hub = Config(data=DataConfig(source="me/texts", data_files="en/*.parquet"))
    text = model_card(trained, charlm.Vocab("abcd", unknown="error"), hub)
    assert "datasets:\n- me/texts" in text and "en/*.parquet" in text
    folder = tmp_path / "private" / "texts"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: x\n---\n")  # read by `datasets`
    text = model_card(trained, charlm.Vocab("abcd", unknown="error"), Config(data=DataConfig(str(folder))))
    assert "private" not in text and "data_files: texts" in text and "datasets:\n" not in text
    given = {"validation": "dev.jsonl (json)", "test": "split test"}
    facts = {"documents": 3, "skipped": 1, "splits": {}, "origins": given}
    text = model_card(trained, charlm.Vocab("abcd", unknown="error"), hub, facts)
    assert "| validation from | dev.jsonl (json) |\n| test from | split test |" in text
    assert "| left out | 1 row(s) that could not be read |" in text and "held out" not in text
