"""A model folder: config.json, model.safetensors and vocab.json, written and read."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from charlm.checked import FIGURES, Count, read, size_of
from charlm.config.checks import Positive, without_retired
from charlm.config.fields import ModelConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.files import replace, writing
from charlm.model.cells import cell_of

if TYPE_CHECKING:
    from charlm.model.char_lm import CharLM

FORMAT = {"format": "charlm model", "version": 1}
FILES = ("config.json", "model.safetensors", "vocab.json")
ABOUT = FORMAT | {  # config.json
    **{"vocab_size": Positive, "model": dict[str, object], "weights_sha256": str},
    **{"step?": (Count, None), "validation?": (FIGURES, None)},
}


def save_model(model: CharLM, folder: str | Path, vocab: Vocab, **about) -> None:
    """Write config.json, model.safetensors and vocab.json. about: plain values (figures, for example) that
    config.json holds in addition. Raises CharlmError when the folder cannot be written."""
    folder = Path(folder)
    weights = save(weights_of(model), {"format": "pt"})
    content = FORMAT | {"vocab_size": model.vocab_size, "model": vars(model.config)} | about
    content["weights_sha256"] = sha256(weights).hexdigest()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        vocab.save(folder / "vocab.json")
        replace(folder / "config.json", json.dumps(content, indent=2) + "\n")
        replace(folder / "model.safetensors", weights)


def load_model(cls: type[CharLM], name: str | Path, device: str | torch.device = "cpu", **hub) -> CharLM:
    """Load a folder that save_pretrained wrote (a run's model/), or a model id on the Hugging Face Hub.

    Its vocabulary is model.vocab. The model is in evaluation mode. hub: options of snapshot_download.
    Raises CharlmError for files that are missing, damaged or do not fit each other, and for weights that
    are not finite. Sizes in config.json are compared with the weights before memory is taken for them.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download  # here, because it takes long to import

        try:
            folder = Path(snapshot_download(str(name), allow_patterns=list(FILES), **hub))
        except Exception as error:
            message = " ".join(str(error).split())  # in one line
            raise CharlmError(f"{name}: neither a folder nor a model on the Hub ({message})") from error
    about, path = read(folder / "config.json", ABOUT), folder / "model.safetensors"
    config = read(folder / "config.json", make=_config)
    try:
        size_of(path)  # refuses a pipe, which would be waited for
        weights = load_file(path)
    except Exception as error:
        raise CharlmError(f"{path}: cannot be read: {error}; train or download it again") from error
    model = model_of(cls, config, about["vocab_size"], weights, path)
    if sha256_of(path) != about["weights_sha256"]:
        problem = "its sha256 is not the one in config.json"
        raise CharlmError(f"{path}: cannot be read: {problem}; train or download it again")
    vocab = model.vocab = Vocab.load(folder)
    if len(vocab) != model.vocab_size:
        raise CharlmError(f"{folder}: vocab.json has {len(vocab)} symbols, the model {model.vocab_size}")
    return model.to(device).eval()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once, by name, as contiguous copies on the CPU.

    Copies, because cuDNN stores the weights of a layer as views of one buffer, of which a file of tensors
    would hold the first only; once, because tied weights have two names.
    """
    return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in model.named_parameters()}


def _config(about: dict) -> ModelConfig:
    config = ModelConfig(**{"recall": 0} | without_retired(about["model"]))
    cell_of(config)  # there is such a cell
    return config


def model_of(
    cls: type[CharLM], config: ModelConfig, vocab_size: int, weights: dict[str, Tensor], where: str | Path
) -> CharLM:
    """A model with these weights. Raises CharlmError as load_weights does, and takes no memory for sizes that
    the weights do not have. Draws random numbers of torch."""
    held, sizes = sum(w.numel() for w in weights.values()), vars(config)
    named = ("hidden_size", "embedding_size", "ngrams", *["ngram_lines"] * bool(config.ngrams))
    if config.num_layers > len(weights) or any(sizes[name] > held for name in named):
        raise CharlmError(f"{where}: the weights do not fit the model: {held:,} numbers for {config}")
    # Without normal_, which on the meta device imports torch's compiler, for seconds.
    with torch.device("meta"), patch.object(nn.init, "normal_"):
        _compare(cls(config, vocab_size), weights, where)
    model = cls(config, vocab_size)
    load_weights(model, weights, where)
    return model


def _compare(model: nn.Module, weights: dict[str, Tensor], where: str | Path) -> None:
    own = {name: tuple(p.shape) for name, p in model.named_parameters()}
    theirs = {name: tuple(w.shape) for name, w in weights.items()}
    if own != theirs:
        names = [n for n in sorted(own.keys() | theirs.keys()) if own.get(n) != theirs.get(n)]
        differ = "; ".join(f"{n}: the model has {own.get(n)}, the file {theirs.get(n)}" for n in names[:4])
        raise CharlmError(f"{where}: the weights do not fit the model: {differ}")


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str | Path) -> None:
    """Copy weights into the parameters of the same names. Raises CharlmError, naming the differences, when
    names or shapes differ, and for weights that are not finite."""
    _compare(model, weights, where)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
            if not p.isfinite().all():
                problem = f"{name} is not finite (NaN or infinite)"
                raise CharlmError(f"{where}: {problem}: the training diverged, or the file is damaged")


def read_best(run_dir: Path, vocab: Vocab) -> dict | None:
    """Step and validation figures of the weights in model/; None where a file is missing or damaged."""
    folder = run_dir / "model"
    try:
        about = read(folder / "config.json", ABOUT | {"step": Count, "validation": (FIGURES, None)})
        whole = sha256_of(folder / "model.safetensors") == about["weights_sha256"]
        whole = whole and Vocab.load(folder) == vocab
        return {"step": about["step"], "validation": about["validation"]} if whole else None
    except (FileNotFoundError, ValueError) as error:  # or a CharlmError
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None  # of the disk: it does not show a damage
        return None


def sha256_of(path: Path) -> str:
    """Raises OSError, and ValueError for an empty file."""
    size_of(path)
    return sha256(np.memmap(path, mode="r")).hexdigest()
