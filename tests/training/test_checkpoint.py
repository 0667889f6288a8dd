"""Checkpoints: whole or not there, whatever happens while they are written, kept or read."""

import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers import assert_same_state, environment, files_of, newest, records, small

from charlm.config.fields import ModelConfig, OptimConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM
from charlm.model.pretrained import load_weights, weights_of
from charlm.training.checkpoint import (
    DamagedCheckpoint,
    folder_of,
    load_checkpoint,
    load_newest,
    load_optimizer,
    optimizer_tensors,
    steps_of,
    write_checkpoint,
)
from charlm.training.loop import train
from charlm.training.optimizer import make_optimizer

VOCAB = Vocab("aé世🦊")
FILES = (
    "manifest.json",
    "facts.json",
    "vocab.json",
    "model.safetensors",
    "optimizer.safetensors",
    "carry.safetensors",
    "random.safetensors",
)


def save(run_dir, step, *, keep=9, best_step=None, size=3):
    """A small checkpoint whose content tells its step."""
    tensors = {
        group: {"a/b": torch.full((2, size), float(step)), "n": torch.arange(5, dtype=torch.uint8)}
        for group in ("model", "optimizer", "carry", "random")
    }
    facts = {"step": step, "best": best_step and {"step": best_step}}
    return write_checkpoint(run_dir, facts, tensors, VOCAB, keep)


# what is in it


@pytest.fixture(scope="module")
def run_of_three(tmp_path_factory):
    """A finished run with checkpoints at 4, 8 and 12."""
    config = small(tmp_path_factory.mktemp("three") / "run", checkpoint={"every": 4, "keep": 3})
    train(config, quiet=True)
    return config


def test_it_holds_tensors_and_json_and_nothing_that_could_run(run_of_three):
    for step in (4, 8, 12):
        folder = folder_of(run_of_three.run_dir, step)
        names = {p.name for p in folder.iterdir()}
        assert names >= set(FILES)
        for path in folder.iterdir():
            start = path.read_bytes()[:9]
            assert start[:1] == b"{" if path.suffix == ".json" else start[8:9] == b"{", path
        manifest = json.loads((folder / "manifest.json").read_text())
        assert set(manifest["files"]) == names - {"manifest.json"}
        for name, said in manifest["files"].items():
            assert said["bytes"] == (folder / name).stat().st_size


def test_the_log_tells_how_long_training_waited_for_a_checkpoint(run_of_three):
    """In the line of figures after it."""
    told = [r for r in records(run_of_three.run_dir) if "checkpoint_seconds" in r]
    assert [r["step"] for r in told] == [5, 9] and all(r["checkpoint_seconds"] >= 0 for r in told)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    folder = save(tmp_path, 7)
    assert folder == tmp_path / "checkpoints" / "step-00000007"
    facts, tensors, vocab = load_checkpoint(folder)
    assert facts == {"step": 7, "best": None} and vocab == VOCAB
    assert set(tensors) == {"model", "optimizer", "carry", "random"}
    assert torch.equal(tensors["model"]["a/b"], torch.full((2, 3), 7.0))
    assert torch.equal(tensors["random"]["n"], torch.arange(5, dtype=torch.uint8))
    assert tensors["random"]["n"].dtype == torch.uint8


def test_weights_that_are_views_of_one_buffer_survive(tmp_path):
    """As cuDNN lays the weights of a layer out; writers of tensor files keep only the first of them."""
    model = CharLM(ModelConfig(hidden_size=5, embedding_size=3, num_layers=2), len(VOCAB))
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for layer in model.layers:
        parameters = list(layer.parameters())
        buffer = torch.cat([p.detach().flatten() for p in parameters])
        at = 0
        for p in parameters:
            with torch.no_grad():
                p.set_(buffer.untyped_storage(), at, p.shape)
            at += p.numel()
        assert len({p.untyped_storage().data_ptr() for p in parameters}) == 1
    others = {group: {"n": torch.zeros(1)} for group in ("optimizer", "carry", "random")}
    facts = {"step": 1, "best": None}
    write_checkpoint(tmp_path, facts, {"model": weights_of(model)} | others, VOCAB, keep=1)
    model.save_pretrained(tmp_path / "model", VOCAB)
    _, tensors, _ = load_checkpoint(folder_of(tmp_path, 1))
    again = CharLM.from_pretrained(tmp_path / "model")
    for name, p in again.named_parameters():
        assert torch.equal(tensors["model"][name], expected[name]), name
        assert torch.equal(p, expected[name]), name


@pytest.mark.parametrize("tied", [False, True])
def test_an_optimizer_goes_on_exactly(tied):
    """Its state by parameter name: a new model and optimizer take the next step to the same bits."""

    def fresh():
        torch.manual_seed(1)
        model = CharLM(ModelConfig(hidden_size=4, embedding_size=4, tie_weights=tied), 6)
        return model, make_optimizer(model, OptimConfig(weight_decay=0.1))

    def step(model, optimizer, k):
        ids = torch.arange(8).view(2, 4).add(k) % 6
        model(ids, None, ids.roll(1, 1))[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = fresh()
    for k in range(3):
        step(model, optimizer, k)
    other, other_optimizer = fresh()
    load_weights(other, weights_of(model), "here")
    tensors = optimizer_tensors(model, optimizer)
    load_optimizer(other, other_optimizer, tensors)
    step(model, optimizer, 3)
    step(other, other_optimizer, 3)
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
    with pytest.raises(CharlmError, match="parameter nonsense, the model has not"):
        load_optimizer(other, other_optimizer, {"nonsense/exp_avg": torch.zeros(1)})


# damage


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(content[:-5])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["deleted", "empty", "truncated", "one bit flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_means_the_checkpoint_before(tmp_path, name, how):
    save(tmp_path, 1)
    damage(save(tmp_path, 2) / name, how)
    with pytest.warns(UserWarning, match=rf"damaged checkpoint skipped: .*step-00000002.*{name}"):
        facts, tensors, _ = load_newest(tmp_path)
    assert facts["step"] == 1 and tensors["model"]["a/b"][0, 0] == 1.0
    assert steps_of(tmp_path) == [1, 2]  # nothing is deleted


def test_no_flipped_byte_of_the_manifest_goes_unnoticed(tmp_path):
    """Every byte in turn: refused as damaged (never another error), unless it means the same still."""
    folder = save(tmp_path, 3)
    path = folder / "manifest.json"
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            facts, tensors, vocab = load_checkpoint(folder)
        except DamagedCheckpoint:
            continue
        assert facts["step"] == 3 and vocab == VOCAB, f"byte {at}: {content[max(0, at - 20) : at + 20]}"
        assert set(tensors) == {"model", "optimizer", "carry", "random"}


def test_a_manifest_that_leaves_a_file_out_is_damaged(tmp_path):
    folder = save(tmp_path, 3)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in list(manifest["files"]):
        listed = {n: said for n, said in manifest["files"].items() if n != name}
        (folder / "manifest.json").write_text(json.dumps(manifest | {"files": listed}))
        if name in ("facts.json", "vocab.json"):
            with pytest.raises(DamagedCheckpoint, match="step-00000003"):
                load_checkpoint(folder)


def test_a_run_goes_on_from_the_checkpoint_before_to_the_same_bits(run_of_three, tmp_path):
    """The newest is torn: training repeats the steps since the one before, and its lines of metrics."""
    run_dir = tmp_path / "run"
    shutil.copytree(run_of_three.run_dir, run_dir)
    config = small(run_dir, checkpoint={"every": 4, "keep": 3})
    damage(folder_of(run_dir, 12) / "optimizer.safetensors", "truncated")
    with pytest.warns(UserWarning, match=r"step-00000012/optimizer.safetensors: \d+ bytes, should be \d+"):
        summary = train(config, quiet=True)
    assert summary.status == "done" and steps_of(run_dir) == [4, 8, 12]
    assert_same_state(run_dir, run_of_three.run_dir)
    told, expected = records(run_dir), records(run_of_three.run_dir)
    assert [r["step"] for r in told] == [r["step"] for r in expected]
    assert [r.get("loss") for r in told] == [r.get("loss") for r in expected]


def test_when_all_are_damaged_the_user_decides(run_of_three, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(run_of_three.run_dir, run_dir)
    for step, name in ((4, "facts.json"), (8, "model.safetensors"), (12, "manifest.json")):
        damage(folder_of(run_dir, step) / name, "one bit flipped")
    before = files_of(run_dir / "checkpoints") | files_of(run_dir / "model")
    with (
        pytest.warns(UserWarning, match="damaged checkpoint"),
        pytest.raises(CharlmError, match=r"none of its 3 checkpoint\(s\) is undamaged; delete .* to start"),
    ):
        train(small(run_dir, checkpoint={"every": 4, "keep": 3}), quiet=True)
    assert files_of(run_dir / "checkpoints") | files_of(run_dir / "model") == before


@pytest.mark.parametrize(
    "stray", ["step-00000099", "step-abc", "step-00000099.txt", ".step-00000099.partial"]
)
def test_what_is_not_a_checkpoint_does_not_hide_one(tmp_path, recwarn, stray):
    save(tmp_path, 5)
    (tmp_path / "checkpoints" / stray).mkdir()
    assert load_newest(tmp_path)[0]["step"] == 5


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert load_newest(tmp_path) is None and steps_of(tmp_path) == []


# keeping and deleting


@pytest.mark.parametrize(
    ("keep", "best", "kept"),
    [
        (1, None, [50]),
        (2, None, [40, 50]),
        (2, 20, [20, 40, 50]),
        (2, 50, [40, 50]),
        (9, 10, [10, 20, 30, 40, 50]),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, keep, best, kept):
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step, keep=keep, best_step=best)
    assert steps_of(tmp_path) == kept
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {f"step-{s:08d}" for s in kept}


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_one_does_not_take_the_place_of_a_whole_one(tmp_path, keep):
    """Training goes on from step 4, because 8 is torn, and is stopped at 6: that work must be there."""
    save(tmp_path, 4)
    damage(save(tmp_path, 8) / "model.safetensors", "truncated")
    save(tmp_path, 6, keep=keep)
    with pytest.warns(UserWarning, match="step-00000008"):
        facts, _, _ = load_newest(tmp_path)
    assert facts["step"] == 6


def test_what_killed_processes_left_is_ignored_and_cleaned(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-00000001", folder / ".step-00000002.partial")
    shutil.copytree(folder / "step-00000001", folder / ".step-00000000.old")
    assert steps_of(tmp_path) == [1] and load_newest(tmp_path)[0]["step"] == 1
    save(tmp_path, 2)
    assert {p.name for p in folder.iterdir()} == {"step-00000001", "step-00000002"}
    assert load_newest(tmp_path)[0]["step"] == 2


def test_saving_a_step_again_takes_the_place_of_a_damaged_one(tmp_path):
    damage(save(tmp_path, 2) / "facts.json", "truncated")
    save(tmp_path, 2, size=4)
    assert load_newest(tmp_path)[1]["model"]["a/b"].shape == (2, 4)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step-00000002"}


# full disks


@contextmanager
def files_no_larger_than(size: int):
    """Writing beyond it fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_leaves_those_before(tmp_path):
    save(tmp_path, 1)
    before = files_of(tmp_path)
    with files_no_larger_than(500_000), pytest.raises(CharlmError) as told:
        save(tmp_path, 2, size=200_000, keep=1)
    message = str(told.value)
    assert str(folder_of(tmp_path, 2)) in message and "cannot be written (File too large)" in message
    assert f"{folder_of(tmp_path, 1)} is safe" in message
    assert files_of(tmp_path) == before
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"step-00000001"}
    assert load_newest(tmp_path)[0]["step"] == 1
    save(tmp_path, 2, size=200_000, keep=1)  # when there is room again
    assert steps_of(tmp_path) == [2]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own that is soon full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> None:
    """Take every byte that is left."""
    with open(disk / "ballast", "wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            return


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a file system"
)
def test_a_disk_that_fills_up_ends_the_run_with_a_clear_error_and_the_run_goes_on_later(small_disk, tmp_path):
    config = small(
        small_disk / "run", data={"dir": str(tmp_path / "data")}, train={"steps": 12}, checkpoint={"every": 4}
    )

    def watch(step, model, loss):
        if step == 6:
            fill(small_disk)

    with pytest.raises(CharlmError) as told:
        train(config, quiet=True, watch=watch)
    assert "No space left on device" in str(told.value) and str(small_disk) in str(told.value)
    assert not list((small_disk / "run").rglob("*.partial"))
    assert newest(config.run_dir)[0]["step"] == 4
    (small_disk / "ballast").unlink()
    assert train(config, quiet=True).status == "done"
    whole = small(tmp_path / "whole", train={"steps": 12}, checkpoint={"every": 4})
    train(whole, quiet=True)
    assert_same_state(config.run_dir, whole.run_dir)


# kill -9

SAVER = """
import os, random, signal, sys, time
import torch
from charlm.training.checkpoint import load_checkpoint, folder_of, write_checkpoint, steps_of
from charlm.corpus.vocabulary import Vocab
run_dir, kills = sys.argv[1], int(sys.argv[2])
vocab, draw, done = Vocab("ab"), random.Random(4), 0

def save_on_and_on():
    step = (steps_of(run_dir) or [0])[-1]
    while True:
        step += 1
        groups = ("model", "optimizer", "carry", "random")
        tensors = {g: {"w": torch.full((700, 700), float(step))} for g in groups}
        write_checkpoint(run_dir, {"step": step, "best": None}, tensors, vocab, keep=2)

for kill in range(kills):
    pid = os.fork()
    if not pid:
        save_on_and_on()
    while not [s for s in steps_of(run_dir) if s > done]:  # however slow the disk: one is whole
        time.sleep(0.005)
    time.sleep(draw.uniform(0.02, 0.3))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    done = steps_of(run_dir)[-1]
    for step in steps_of(run_dir):
        facts, tensors, _ = load_checkpoint(folder_of(run_dir, step))
        assert facts["step"] == step
        assert all((t["w"] == step).all() for t in tensors.values())
    hidden = [name for name in os.listdir(run_dir + "/checkpoints") if name[0] == "."]
    print(kill, steps_of(run_dir), hidden, flush=True)
"""


def test_killed_while_saving_every_checkpoint_that_shows_is_whole(tmp_path):
    """kill -9 at ten random moments of a process that does nothing but save."""
    (tmp_path / "checkpoints").mkdir()
    words = [sys.executable, "-c", SAVER, str(tmp_path), "10"]
    ran = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=300, env=environment())
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 10
    assert sum(".partial" in line for line in lines) >= 1  # some were hit in the middle
    kept = [json.loads(line.split(" ", 1)[1].split("]")[0] + "]") for line in lines]
    newest_of = [steps[-1] for steps in kept]
    assert newest_of == sorted(set(newest_of))  # every one got further
    assert all(len(steps) <= 2 + i + 1 for i, steps in enumerate(kept))  # a kill spares one from deletion


# vocabulary


def test_a_vocabulary_that_does_not_fit_the_weights_is_refused(run_of_three, tmp_path):
    config = small(tmp_path / "run", checkpoint={"every": 4, "keep": 3})
    shutil.copytree(run_of_three.run_dir, config.run_dir)
    facts, tensors = newest(config.run_dir)
    write_checkpoint(config.run_dir, facts | {"step": 16}, tensors, VOCAB, keep=9)
    before = files_of(tmp_path / "run" / "checkpoints")
    with pytest.raises(CharlmError, match="was trained on another vocabulary than"):
        train(config, quiet=True)
    assert files_of(tmp_path / "run" / "checkpoints") == before


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    model = CharLM(ModelConfig(hidden_size=4), 6)
    with pytest.raises(CharlmError, match=r"there: .* output.bias: the model has \(6,\), the file \(7,\)"):
        load_weights(model, weights_of(CharLM(ModelConfig(hidden_size=4), 7)), "there")
