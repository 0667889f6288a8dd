"""What there is of a run to tell of, and what there is not: any of it may be missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from charlm.config.fields import Config
from charlm.config.parse import read_run_config
from charlm.corpus.prepared import Corpus, folder_of
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM
from charlm.monitor.history import History, read_history
from charlm.sampling.generate import generate
from charlm.training.checkpoint import steps_of
from charlm.training.trained import load

DRAWN = 4000  # symbols that the model writes itself where there is no text for it to read


@dataclass
class Known:
    """What there is of a run; what there is not, in words, in `missing`."""

    where: str
    run_dir: Path | None = None
    history: History = field(default_factory=History)
    config: Config | None = None
    model: CharLM | None = None
    vocab: Vocab | None = None
    corpus: Corpus | None = None
    missing: list[str] = field(default_factory=list)


def gather(where: str, device: str | None) -> Known:
    """Open what there is. Raises CharlmError when that is nothing."""
    path, known = Path(where), Known(where)
    if path.is_dir() and not (path / "config.json").exists():
        known.run_dir, known.history = path, read_history(path)
        if not known.history.records:
            known.missing.append("Training curves and samples: metrics.jsonl holds no figures yet.")
    else:
        known.missing.append(
            "Training curves, samples, figures: this is a model alone; they are in the directory of its run."
        )
    weights = known.run_dir is None or (path / "model" / "config.json").exists() or steps_of(path)
    if weights or not known.history.records:  # with nothing at all, load says what is wrong
        known.model, known.vocab, known.config = load(where, device)
    else:
        known.config = read_run_config(path)
        known.missing.append(
            "All that takes a model: the run has no weights yet, neither model/ nor a checkpoint."
        )
    beside = known.run_dir or (path.parent if path.name == "model" else None)
    if beside is None or not (beside / "config.yaml").exists():
        known.missing.append("The corpus and the floors: no config.yaml tells which corpus it was.")
        return known
    try:
        folder = folder_of(known.config)
        known.corpus = Corpus(folder) if folder.is_dir() else None
        if known.corpus is None:
            known.missing.append(
                f"The corpus and the floors: {folder} is not here. "
                f"`charlm prepare` with the run's config makes it, in the folder the run was started from."
            )
    except CharlmError as error:
        known.missing.append(f"The corpus and the floors: {error}")
    return known


def text_of(known: Known, text: bytes | None) -> tuple[str, np.ndarray]:
    """(what it is, ids) of the text that the model is to read; no ids without a model."""
    vocab, corpus = known.vocab, known.corpus
    if known.model is None:
        return "", np.empty(0, np.uint8)
    if text is not None:
        return "A passage of the text given.", _encoded(text, vocab)
    if corpus is not None and corpus.vocab == vocab:
        for split, about in (("validation", "held-out"), ("test", "held-out"), ("train", "not held-out")):
            if split in corpus.splits and len(corpus[split]) > 1:
                return f"A passage of the {split} split, {about} text.", corpus[split]
    if corpus is not None:
        known.missing.append("Text of the corpus: its vocabulary is not the model's.")
    known.missing.append("Held-out text: the model reads what it wrote itself; --text FILE gives it another.")
    drawn = generate(known.model, vocab, length=DRAWN, prompt="", temperature=0.8)
    return "A passage that the model wrote itself, at temperature 0.8.", vocab.encode(drawn)


def _encoded(text: bytes, vocab: Vocab) -> np.ndarray:
    try:
        ids = vocab.encode(text)
    except UnicodeDecodeError as error:
        raise CharlmError(f"the text given: byte {error.start:,} is not UTF-8 ({error.reason})") from error
    except CharlmError as error:
        raise CharlmError(f"the text given: {error}") from error
    if len(ids) < 2:
        raise CharlmError(f"the text given: {len(ids)} symbol(s) are too few to look at; give 2 or more")
    return ids
