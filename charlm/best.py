"""The best weights of a run, in its model/: written, checked, and made whole again from a checkpoint."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import torch

from charlm.checkpoint import DamagedCheckpoint, folder_of, load_checkpoint
from charlm.config import CharlmError, ModelConfig
from charlm.model import CharLM, load_weights
from charlm.vocab import Vocab


def write(run_dir: Path, model: CharLM, vocab: Vocab, step: int, figures: dict | None) -> None:
    """Write model/. figures: of its validation. Raises CharlmError when the disk does not take it."""
    folder = run_dir / "model"
    try:
        model.save_pretrained(folder, vocab, step=step, validation=figures)
    except OSError as error:
        raise CharlmError(f"{folder}: cannot be written ({error.strerror})") from error


def held(run_dir: Path, vocab: Vocab) -> dict | None:
    """Step and figures of the weights in model/, by its config.json; None where a file is missing or torn."""
    folder = run_dir / "model"
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        whole = digest == about["weights_sha256"] and Vocab.load(folder) == vocab
        return {"step": about["step"], "validation": about["validation"]} if whole else None
    except (OSError, ValueError, KeyError, TypeError, CharlmError):
        return None


def mend(run_dir: Path, figures: dict) -> bool:
    """Write model/ from the checkpoint of the step in the figures; False where that is gone or damaged."""
    try:
        facts, tensors, vocab = load_checkpoint(folder_of(run_dir, figures["step"]))
    except DamagedCheckpoint:
        return False
    with torch.random.fork_rng(devices=[]):  # the run's random state has been restored by now
        model = CharLM(ModelConfig(**facts["config"]["model"]), len(vocab))
    load_weights(model, tensors.get("average", tensors["model"]), f"the checkpoint of step {facts['step']}")
    write(run_dir, model, vocab, facts["step"], figures)
    return True
