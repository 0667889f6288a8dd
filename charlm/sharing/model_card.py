"""The model card: README.md beside the weights, as the Hugging Face Hub reads it.

It says what is known, and of the rest that it is not stated. Paths of the machine are left out.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from charlm import __version__
from charlm.config.fields import BUILDERS, WITHOUT_EFFECT, Config, DataConfig
from charlm.corpus.prepared import baseline_title
from charlm.corpus.vocabulary import Vocab
from charlm.model.char_lm import CharLM

NAME = "user/name"  # stands for the name on the Hub until there is one
UNKNOWN = "not stated"


def model_card(
    model: CharLM,
    vocab: Vocab,
    config: Config | None = None,
    text: dict | None = None,
    figures: dict[str, dict | None] | None = None,
    step: int | None = None,
) -> str:
    """The card of a model as Markdown.

    config: of its run. text: what corpus.json says. figures: split → what evaluate() returns. step: of the
    weights. What is None is not stated.
    """
    figures = {split: told for split, told in (figures or {}).items() if told}
    size = f"{model.config.num_layers} layer(s) of {model.config.hidden_size:,} units"
    source = config.data.source if config else ""
    head = {
        "library_name": "charlm",
        "pipeline_tag": "text-generation",
        "tags": ["character-level", "language-model", "recurrent", model.config.cell],
    }
    if source not in ("", "stdlib", "literal", *BUILDERS):
        head["datasets"] = [source]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {Path(config.run_dir).name if config else 'Character-level model'}",
        f"A character-level language model: {model.cell.title}, {size}, "
        f"{sum(p.numel() for p in model.parameters()):,} parameters, trained with charlm.",
        _usage(config),
        "## Figures\n\n" + _figures(figures, text),
        "## Text\n\n" + (_text(config, text) if config else f"{UNKNOWN.capitalize()}."),
        "## Vocabulary\n\n" + _symbols(vocab),
        "## Training\n\n" + _training(config, text, step),
        f"## What is not known\n\nThe licence of the weights and the language of the text are the fields "
        f"`license` and `language` at the head of this card; where they are missing, they are {UNKNOWN}. "
        f"Licence of the text, intended use, limits and biases, hardware, time and energy: {UNKNOWN}.",
        f"Card written by charlm {__version__} with PyTorch {torch.__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _usage(config: Config | None) -> str:
    options = f"length=300, temperature={config.sample.temperature if config else 0.8:g}"
    return (
        f'## How to load\n\n```python\nimport charlm\n\ntrained = charlm.load("{NAME}")\n'
        f"print(trained.generate({options}))\n"
        'print(trained.score("some text").bpb)\n```\n\n'
        "`model.safetensors` and JSON: nothing in it is executed when it is loaded."
    )


def _figures(figures: dict[str, dict], text: dict | None) -> str:
    rows = []
    for split, f in figures.items():
        how = f"{f['lanes']} lanes, {f['context']} symbols of context" if f["lanes"] > 1 else "a single pass"
        numbers = f"{f['nats_per_character']:.4f} | {f['bpc']:.4f} | {f['bpb']:.4f} | {f['perplexity']:.4g}"
        rows.append(f"| {split} | {numbers} | {f['characters']:,} | {f['bytes']:,} | {how} |")
    for name, floor in ((text or {}).get("floors") or {}).items():
        what = baseline_title(name, floor)
        rows.append(f"| validation, floor: {what} | | {floor['bpc']:.4f} | {floor['bpb']:.4f} | | | | |")
    if not rows:
        return f"{UNKNOWN.capitalize()}."
    names = ("split", "nats/char", "bpc", "bpb", "perplexity", "characters", "bytes", "protocol")
    best = "The weights are those that scored best on validation. " if "validation" in figures else ""
    return "\n".join([f"| {' | '.join(names)} |", "|---" * len(names) + "|", *rows]) + (
        f"\n\nBits per character (bpc) and per byte of UTF-8 (bpb, which compares across vocabularies), "
        f"perplexity per character. {best}A pass carries the state; lanes are parts of the text read side "
        f"by side, each warmed up with the context before its first counted symbol."
    )


def _symbols(vocab: Vocab) -> str:
    kinds = [f"{len(vocab.characters):,} characters", f"{len(vocab.byte_symbols)} byte symbols"]
    kinds += ["the end of a document"] if vocab.end_of_document else []
    others = (
        "Other characters are spelled in UTF-8 bytes: any text can be encoded."
        if vocab.unknown == "bytes"
        else "It is closed: a text with another character cannot be encoded."
    )
    return f"{len(vocab):,} symbols: {', '.join(kinds)}. {others}"


def _text(config: Config, text: dict | None) -> str:
    data = config.data
    where = {"stdlib": "the source code of Python's standard library", "literal": "a text in the config"}
    told = [
        ("source", where.get(data.source, data.source)),
        ("configuration", data.name),
        ("revision", data.revision),
        ("files", _files(data)),
    ]
    rows = [(name, value) for name, value in told if value]
    if text:
        rows.append(("documents", f"{text['documents']:,}"))
    for split, size in (text or {}).get("splits", {}).items():
        rows.append((split, f"{size['characters']:,} characters, {size['bytes']:,} bytes"))
    held = f"validation {data.validation}, test {data.test}, by {data.split_by}, seed {data.seed}"
    return _table([*rows, ("held out", held)])


def _training(config: Config | None, text: dict | None, step: int | None) -> str:
    if config is None:
        return f"{UNKNOWN.capitalize()}."
    train = config.train
    rows = [
        ("weights of step", f"{step or UNKNOWN} of {train.steps}"),
        ("a step", f"{train.batch_size:,} lanes × {train.bptt:,} symbols, the state carried on"),
    ]
    if step and text:
        read = step * train.batch_size * train.bptt
        epochs = read / max(text["splits"]["train"]["symbols"], 1)
        rows.append(("symbols read until then", f"{read:,} ({epochs:.2f} times the training text)"))
    tree = asdict(config)
    shown = {name: tree[name] for name in ("data", "vocab", "model", "optim", "train", "evaluate")}
    for key in WITHOUT_EFFECT:
        if key.startswith("data."):
            del shown["data"][key.removeprefix("data.")]
    shown["data"] |= {"data_files": _files(config.data), "text": config.data.text[:200]}
    start = Path(train.init_from)
    if start.exists() or start.is_absolute() or len(start.parts) != 2:  # no hub id
        shown["train"]["init_from"] = start.name
    shown["optim"]["betas"] = list(shown["optim"]["betas"])
    listed = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    return f"{_table(rows)}\n\n```yaml\n{listed}```"


def _files(data: DataConfig):
    """data.data_files; of paths on this machine only the names: their folders are nobody's business."""
    return _names(data.data_files) if data.source in BUILDERS else data.data_files


def _names(files):
    if isinstance(files, dict):
        return {split: _names(some) for split, some in files.items()}
    if isinstance(files, list):
        return [_names(some) for some in files]
    return "::".join(part if "://" in part else Path(part).name for part in files.split("::"))


def _table(rows: list[tuple[str, object]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
