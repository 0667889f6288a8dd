"""What a run, a model or a config that was downloaded cannot do: write elsewhere, take the memory or the
terminal of a machine, end a command with anything but one line."""

import copy
import hashlib
import json
import math
import os
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import changed, config_file, small

from charlm.checked import LARGEST, load_yaml, mismatch, parse
from charlm.commands.cli import _format_warning, main
from charlm.corpus.prepared import folder_of
from charlm.errors import CharlmError, CharlmWarning, redact
from charlm.model.char_lm import CharLM
from charlm.sharing.model_card import model_card
from charlm.terminal import visible
from charlm.training import checkpoint
from charlm.training.loop import train

EVERY = {"every": 3}
OPTIONS = {"train": {"steps": 6}, "evaluate": EVERY, "sample": EVERY, "checkpoint": EVERY}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A finished run."""
    config = small(tmp_path_factory.mktemp("given") / "run", **OPTIONS)
    train(config, quiet=True)
    return config


@pytest.fixture
def config(given, tmp_path):
    """A copy of it."""
    shutil.copytree(given.run_dir, tmp_path / "run")
    return small(tmp_path / "run", data={"dir": given.data.dir}, **OPTIONS)


@pytest.fixture
def ended(capsys):
    """Run a command; returns its exit code and all that it prints, an error in one line."""

    def ended(*words) -> tuple[int, str]:
        code, error = 0, ""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                main([str(word) for word in words])
            except SystemExit as end:
                code, error = (1, end.code) if isinstance(end.code, str) else (end.code, "")
        printed = capsys.readouterr()
        error += printed.err
        assert not code or error.count("\n") < 2, error
        return code, printed.out + error

    return ended


def commands(config) -> dict[str, tuple]:
    run = config.run_dir
    return {
        "watch": ("watch", run, "--once"),
        "json": ("watch", run, "--json"),
        "sample": ("sample", run, "--length", "3"),
        "evaluate": ("evaluate", run, "--max_characters", "9"),
        "push": ("push", run, "a/b", "--dry_run"),
        "train": ("train", "--config", config_file(config), "--json"),
    }


# links


@pytest.mark.parametrize("name", [".lock", "checkpoints", "model", "samples", "wandb", "model/vocab.json"])
def test_nothing_is_written_or_deleted_through_a_link(config, ended, tmp_path, name):
    path, other = Path(config.run_dir, name), tmp_path / "other"
    if path.exists():
        path.rename(other)
    else:
        other.write_text("precious")
    path.symlink_to(other)
    content = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "data" not in p.parts}
    code, printed = ended(*commands(changed(config, train={"steps": 9}))["train"])
    assert code == 1 and f"{path}: is a symbolic link" in printed
    assert all(p.read_bytes() == before for p, before in content.items())
    if name.startswith("model"):
        code, printed = ended("push", config.run_dir, "a/b", "--dry_run")
        assert code == 1 and f"{path}: is a symbolic link" in printed


def test_temporary_names_cannot_be_foreseen(config, ended, tmp_path):
    """A link with the temporary name of a file is not followed; what a killed process left is removed."""
    secret, run = tmp_path / "secret", Path(config.run_dir)
    secret.write_text("precious")
    names = ["report.html", "status.json", "config.yaml", "metrics.jsonl"]
    links = [run / name for name in ("samples/best.txt", "status.json")]
    links += [(run / name).with_name(f".{Path(name).name}.partial") for name in names]
    for link in links:
        link.unlink(missing_ok=True)
        link.symlink_to(secret)
    assert ended("report", run)[0] == 0
    left_over = run / ".status.json.0123.partial"
    left_over.write_text("half")
    (run / "samples" / "best.txt").unlink()
    assert ended(*commands(changed(config, train={"steps": 9}))["train"])[0] == 0
    assert secret.read_text() == "precious" and not left_over.exists()


# sizes and weights


@pytest.mark.parametrize("sizes", [{"hidden_size": 20_000}, {"num_layers": 1_000_000}, {"ngrams": 10**9}])
def test_sizes_are_compared_with_the_weights_before_memory_is_taken(config, ended, sizes):
    path = Path(config.run_dir, "model", "config.json")
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"model": about["model"] | sizes}))
    folder = checkpoint.folder_of(config.run_dir, 6)
    for name in ("model", "no model"):
        started = time.process_time()
        code, printed = ended("sample", config.run_dir)
        assert code == 1 and "the weights do not fit the model" in printed
        assert time.process_time() - started < 5
        if name == "model":
            shutil.rmtree(path.parent)
            facts = json.loads((folder / "facts.json").read_text())
            facts["config"]["model"] |= sizes
            listed(folder, "facts.json", json.dumps(facts).encode())


def listed(folder: Path, name: str, content: bytes) -> None:
    """Write a file of a checkpoint and what its manifest says of it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / name).write_bytes(content)


def test_changed_weights_are_refused_by_every_command(config, ended, tmp_path):
    path = Path(config.run_dir, "model", "model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    onnx = ("export", config.run_dir, tmp_path / "m.onnx")
    for words in (*(commands(config)[name] for name in ("sample", "evaluate", "push")), onnx):
        code, printed = ended(*words)
        assert code == 1 and f"{path}: cannot be read: its sha256 is not the one in config.json" in printed
    warm = changed(small(tmp_path / "warm"), train={"steps": 2, "init_from": config.run_dir})
    code, printed = ended(*commands(warm)["train"])
    assert code == 1 and f"train.init_from={config.run_dir}: cannot start from it: {path}" in printed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(config, ended, value):
    model = CharLM.from_pretrained(f"{config.run_dir}/model")
    torch.nn.init.constant_(model.output.bias, value)
    model.save_pretrained(f"{config.run_dir}/model", model.vocab)
    code, printed = ended("sample", config.run_dir)
    assert code == 1 and "model.safetensors: output.bias is not finite" in printed


# bounds


def test_what_has_no_end_is_not_read(config, ended, tmp_path):
    for name in ("evaluate", "report"):
        code, printed = ended(name, config.run_dir, "--text", "/dev/zero")
        assert code == 1 and "/dev/zero: is a device, which may have no end" in printed
    run = Path(config.run_dir)
    (run / "status.json").unlink()
    (run / "status.json").symlink_to("/dev/zero")
    assert ended("watch", run, "--once")[1].count("status.json: cannot be read: is not a file") == 1
    if hasattr(os, "mkfifo"):
        (run / "model" / "README.md").unlink()
        os.mkfifo(run / "model" / "README.md")
        assert "README.md: cannot be sent" in ended("push", run, "a/b", "--dry_run")[1]
    shutil.rmtree(run / "model")
    folder = checkpoint.folder_of(run, 6)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, path in (("../../../secret", None), ("carry.safetensors", "/dev/zero")):
        if path:
            (folder / name).unlink()
            (folder / name).symlink_to(path)
        files = {"files": manifest["files"] | {name: {"bytes": 8, "sha256": "0"}}}
        (folder / "manifest.json").write_text(json.dumps(manifest | files))
        with pytest.raises(checkpoint.DamagedCheckpoint, match=r"is not a (name in this folder|file)"):
            checkpoint.load_checkpoint(folder)


def test_a_line_without_end_is_skipped(config, ended):
    path = Path(config.run_dir, "metrics.jsonl")
    before = ended("watch", config.run_dir, "--json")
    path.write_bytes(b'{"step": 1, "x": "' + b"y" * (LARGEST + 9) + b'"}\n' + path.read_bytes())
    assert ended("watch", config.run_dir, "--json") == before


def test_aliases_of_yaml_cannot_make_too_many_values():
    assert parse(b"a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n", loads=load_yaml) == {key: {"b": 1} for key in "acd"}
    rows = [f"{k}: &{k} [{', '.join([f'*{chr(ord(k) - 1)}'] * 9)}]\n" for k in "bcdefgh"]
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(rows)
    merged = "a: &a {x: 1}\n" + bomb[bomb.index("b:") :].replace("[", "{<<: [").replace("]", "]}")
    for text in (bomb, merged, "a: &a [*a]"):
        with pytest.raises(ValueError, match="more than 100,000 values"):
            parse(text.encode(), object, load_yaml)


# the terminal, and files that others read


def test_foreign_text_cannot_take_over_the_terminal(config, ended, tmp_path):
    evil = "\x1b]0;x\x07\x9b31m\u202egpj\u2066"
    run = Path(shutil.copytree(config.run_dir, tmp_path / f"run{evil}"))
    own = small(run, data={"dir": config.data.dir}, **OPTIONS)
    status = {"status": "failed", "step": 3, "error": f"{evil}\n{evil}", "reason": evil}
    (run / "status.json").write_text(json.dumps(status))
    printed = [ended(*words)[1] for words in commands(own).values()]
    printed += [
        ended("evaluate", run, "--json")[1],
        ended("report", run)[1],
        ended("watch", tmp_path / evil)[1],
    ]
    (run / "config.yaml").write_text(yaml.safe_dump({"log": {"project": evil}}))
    printed.append(ended("compare", run, tmp_path / "run")[1])
    (run / "config.yaml").write_text(json.dumps({"train": {evil: 1}}))
    printed += [ended("sample", run)[1], ended("train", "--config", run / "config.yaml")[1]]
    for text in printed:
        assert text and not {*evil} - {*"]0;x31mgpj"} & {*text}, text
    assert _format_warning(f"a\n{evil}", CharlmWarning).count("\n") == 1
    figures = json.dumps({"error": evil}, ensure_ascii=False)
    assert json.loads(visible(figures)) == {"error": evil}


def test_names_are_no_headings_in_a_card(given, tmp_path):
    named = changed(given, data={"delimiter": "\n```\n# A heading\n"})
    named.run_dir = str(tmp_path / "x\n# A heading <img src=x>")
    model = CharLM.from_pretrained(f"{given.run_dir}/model")
    card = model_card(model, model.vocab, named)
    assert [line for line in card.splitlines() if line.startswith("# ")] == ["# x # A heading \\<img src=x>"]
    assert card.count("```") == 4


def test_secrets_of_urls_are_in_no_file(given, tmp_path, monkeypatch):
    url = "https://user:SECRET@host/a.zip?X-Amz-Signature=SECRET"
    assert redact({"a": [f"zip://x.txt::{url}"]}) == {"a": ["zip://x.txt::https://***@host/a.zip?***"]}
    assert redact("https://a%40b:p@SECRET@host/x@1") == "https://***@host/x@1"
    assert "SECRET" not in str(CharlmError(f"{url}: is gone")) and redact("hf://d/u@1/f") == "hf://d/u@1/f"
    config = small(tmp_path / "run", data={"source": "text", "data_files": [url]}, **OPTIONS)
    shutil.copytree(folder_of(given), tmp_path / "corpus")
    monkeypatch.setattr("charlm.training.setup.prepare", lambda _: given_corpus)
    from charlm.corpus.prepared import Corpus

    given_corpus = Corpus(tmp_path / "corpus")
    train(config, quiet=True)
    train(changed(config, train={"steps": 7}), quiet=True)  # the same URL is no other config
    for path in Path(config.run_dir).rglob("*"):
        assert not path.is_file() or b"SECRET" not in path.read_bytes(), path
    assert "https://***@host/a.zip?***" in Path(config.run_dir, "config.yaml").read_text()


# garbage

WHOLE = [b"", b"[]", b"null", b"\0\0", b"\xff\xfe", b"{", b"[" * 100_000, b"{}", b"&a [*a]"]
VALUES = [None, -1, "x", [], {"a": 1}, True, 10**400, 1e400, "\ud800", [[1]], 10**15, "../../x"]
FILES = {  # → commands that read it
    "status.json": ("watch", "json", "push"),
    "metrics.jsonl": ("watch", "json"),
    "config.yaml": ("sample", "watch"),
    "corpus.json": ("evaluate",),
    "model/config.json": ("sample", "push"),
    "model/vocab.json": ("sample",),
    "checkpoints/step-00000006/manifest.json": ("sample",),
    "checkpoints/step-00000006/facts.json": ("sample",),
}


def spoilt(tree, names=()):
    """The tree with each of its values in turn replaced or missing."""
    for name in tree:
        for value in (*VALUES, ...):
            other = copy.copy(tree)
            other[name] = value
            if value is ...:
                del other[name]
            yield other
        if isinstance(tree[name], dict):
            yield from (tree | {name: part} for part in spoilt(tree[name]))


@pytest.mark.parametrize("share", [40, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_garbage_is_one_line_and_no_unexpected_error(config, ended, name, share):
    """share: try one in so many."""
    path = Path(config.run_dir, name)
    text, yml = path.read_text(encoding="utf-8"), path.suffix == ".yaml"
    contents = [*WHOLE]
    if name == "metrics.jsonl":
        records = list(map(json.loads, text.splitlines()))
        for i, record in enumerate(records[-5:], len(records) - 5):
            lines = [[*records[:i], other, *records[i + 1 :]] for other in spoilt(record)]
            contents += ["".join(json.dumps(r) + "\n" for r in rows).encode() for rows in lines]
    else:
        trees = [*spoilt((yaml.safe_load if yml else json.loads)(text))]
        trees = trees[::7] if yml else trees  # reading YAML is slow
        contents += [json.dumps(tree).encode() for tree in trees]
    if "checkpoints" in name:
        shutil.rmtree(f"{config.run_dir}/model")
    for content in contents[len(name) % share :: share]:
        if path.name == "facts.json":
            listed(path.parent, path.name, content)
        else:
            path.write_bytes(content)
        for command in FILES[name]:
            code, printed = ended(*commands(config)[command])
            assert code in (0, 1), (content[:300], printed)


HEADS = ["[1, 2]", "x", "a: !!python/tuple [1]", "? [a]\n: b", "\x1b: [", "1: 2", "ignore_metadata_errors: 3"]


@pytest.mark.parametrize("head", [*HEADS, "[" * 5000, b"\xff"])
def test_a_card_of_garbage_is_not_sent(config, ended, head):
    card = Path(config.run_dir, "model", "README.md")
    card.write_bytes(head if isinstance(head, bytes) else f"---\n{head}\n---\n# It\n".encode())
    code, printed = ended("push", config.run_dir, "a/b", "--dry_run")
    assert code == 1 and f"{card}: cannot be sent (mend it, or delete it for a new one)" in printed


@pytest.mark.parametrize("known", [False, True])
def test_ids_outside_the_vocabulary_are_refused(config, ended, tmp_path, known):
    """known: corpus.json has their sha256."""
    corpus = Path(shutil.copytree(folder_of(config), tmp_path / "corpus"))
    ids = np.load(corpus / "validation.npy")
    ids[-1] = np.iinfo(ids.dtype).max
    np.save(corpus / "validation.npy", ids)
    if known:
        info = json.loads((corpus / "corpus.json").read_text())
        info["splits"]["validation"]["sha256"] = hashlib.sha256(ids).hexdigest()
        (corpus / "corpus.json").write_text(json.dumps(info))
    path = Path(config.run_dir, "corpus.json")
    path.write_text(
        json.dumps(json.loads(path.read_text()) | dict.fromkeys(("folder", "from_run"), str(corpus)))
    )
    code, printed = ended("evaluate", config.run_dir, "--split", "validation")
    assert (
        code == 1 and f"{corpus}/validation.npy: sha256" in printed and f"largest id {ids[-1]} of" in printed
    )
    code, printed = ended("report", config.run_dir)
    assert code == 0 and f"not on the page: Corpus and baselines: {corpus}/validation.npy" in printed
    if hasattr(os, "mkfifo"):
        (corpus / "validation.npy").unlink()
        os.mkfifo(corpus / "validation.npy")
        assert "validation.npy: damaged (is not a file)" in ended("evaluate", config.run_dir)[1]


def test_a_checkpoint_of_garbage_is_not_resumed(config, ended):
    folder = checkpoint.folder_of(config.run_dir, 6)
    shutil.rmtree(checkpoint.folder_of(config.run_dir, 3))
    facts = (folder / "facts.json").read_bytes()
    words = commands(changed(config, train={"steps": 9}))["train"]
    for key, value in {
        "position": [1],
        "scaler": 3,
        "ranks": 0,
        "best": {},
        "run_id": 1,
        "config": [],
    }.items():
        listed(folder, "facts.json", json.dumps(json.loads(facts) | {key: value}).encode())
        code, printed = ended(*words)
        assert code == 1 and str(config.run_dir) in printed, (key, printed)
    listed(folder, "facts.json", facts)
    for name in ("optimizer", "carry", "losses", "random"):
        content = (folder / f"{name}.safetensors").read_bytes()
        listed(folder, f"{name}.safetensors", (folder / "model.safetensors").read_bytes())
        assert ended(*words)[0] == 1, name
        listed(folder, f"{name}.safetensors", b"garbage")
        assert ended(*words)[0] == 1, name
        listed(folder, f"{name}.safetensors", content)
    assert ended(*words)[0] == 0


def test_types():
    for value, kind, fits in (
        (1, int, True),
        (True, int, False),
        (1, float, True),
        (10**400, float, False),
        (math.nan, float, True),
        ("a", {"b?": str}, False),
        ({}, {"b?": str}, True),
        ({"b": 1}, {"b?": str}, False),
        ({"a": {"b": 1}}, dict[str, dict[str, int]], True),
        ([1, 2], tuple[int, int], True),
        ([1], tuple[int, int], False),
        (None, (int, None), True),
        (True, 1, False),
        ("\ud800", str, False),
    ):
        assert (mismatch(value, kind) == "") == fits, (value, kind)
