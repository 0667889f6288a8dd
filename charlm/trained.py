"""Open what training left: a run directory, its model/ folder, or a model on the Hub."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from charlm.checkpoint import load_newest
from charlm.config import CharlmError, Config, ModelConfig, from_dict
from charlm.model import CharLM, load_weights
from charlm.vocab import Vocab


def open_trained(where: str, device: str | torch.device) -> tuple[CharLM, Vocab, Config]:
    """(model, vocabulary, config of the run) of a run directory, a model folder or a hub id.

    Of a run directory these are the best weights so far (model/), or those of the newest checkpoint when no
    evaluation has chosen any. The config is the default one for a model without a run around it.
    Raises CharlmError when there is no model.
    """
    path = Path(where)
    if path.is_dir() and not (path / "config.json").exists():
        config = _config_of(path)
        if (path / "model" / "config.json").exists():
            model = CharLM.from_pretrained(path / "model", device)
            return model, model.vocab, config
        loaded = load_newest(path)
        if loaded is None:
            raise CharlmError(f"{where}: holds neither a model/ nor a checkpoint; train it first")
        facts, tensors, vocab = loaded
        model = CharLM(ModelConfig(**facts["config"]["model"]), len(vocab))
        load_weights(model, tensors["model"], f"the checkpoint of step {facts['step']}")
        return model.to(device).eval(), vocab, config
    if not path.is_dir() and (path.is_absolute() or where.startswith(".") or where.count("/") != 1):
        raise CharlmError(f"{where}: no such run directory, model folder or hub id")
    model = CharLM.from_pretrained(where, device)
    return model, model.vocab, _config_of(path.parent) if path.name == "model" else Config()


def _config_of(run_dir: Path) -> Config:
    path = run_dir / "config.yaml"
    if not path.exists():
        return Config()
    try:
        return from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise CharlmError(f"{path}: cannot be read: {error}") from error
