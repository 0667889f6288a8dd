"""The model card: README.md next to the weights, from model_card.md, without paths of this machine."""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from charlm import __version__
from charlm.config.fields import BUILDERS, Config
from charlm.config.parse import public
from charlm.corpus.prepared import baseline_title
from charlm.corpus.sources import fingerprinted, is_path
from charlm.corpus.vocabulary import Vocab
from charlm.errors import each
from charlm.model.char_lm import CharLM
from charlm.terminal import visible


def model_card(
    model: CharLM,
    vocab: Vocab,
    config: Config | None = None,
    text: dict | None = None,
    figures: dict[str, dict | None] | None = None,
    step: int | None = None,
    steps: int | None = None,
    changes: Sequence[str] = (),
) -> str:
    """The card of a model as Markdown; what is None is "not stated" in it. config, steps: of the run. text:
    corpus.json. figures: split → the result of evaluate(). step: of the weights. changes: of the config."""
    import jinja2  # here: training imports this file and writes its first card much later

    config = config and public(config)
    if config and os.path.isdir(config.data.source):  # read by `datasets`
        config.data.source, config.data.data_files = "files", Path(config.data.source).name
    shown = _shown(config) if config else {}
    options = {"trim_blocks": True, "keep_trailing_newline": True, "undefined": jinja2.StrictUndefined}
    options["finalize"] = lambda value: _plain(str(value)) if type(value) in (str, list) else value
    listing = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    template = jinja2.Template(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"), **options)
    return template.render(
        title=Path(config.run_dir).name if config else "Character-level model",
        model=model,
        temperature=f"{config.sample.temperature if config else 0.8:g}",
        vocab=vocab,
        config=config,
        local_sources=("stdlib", "literal", *BUILDERS),
        shown=shown,
        listing=jinja2.utils.markupsafe.Markup(visible(listing).replace("```", "'''")),
        text=text,
        figures={split: scores for split, scores in (figures or {}).items() if scores},
        baselines={baseline_title(k, v): v for k, v in ((text or {}).get("floors") or {}).items()},
        step=step,
        steps=steps,
        changes=changes,
        versions=f"charlm {__version__} with PyTorch {torch.__version__}",
    )


def _plain(text: str) -> str:
    """A name as text of one line: it can be no heading, markup or image."""
    return re.sub(r"([\[\]`<])", r"\\\1", re.sub(r"\s*[\r\n]\s*", " ", visible(text)))


def _shown(config: Config) -> dict:
    """The sections of a config that change the result, without paths of this machine."""
    shown = {"data": fingerprinted(config.data) | {"text": config.data.text[:200]}}
    shown |= {n: asdict(getattr(config, n)) for n in ("vocab", "model", "optim", "train", "evaluate")}
    paths = [name for name in ("validation", "test") if is_path(shown["data"][name], config.data)]
    paths += ["data_files"] * (config.data.source in BUILDERS)
    shown["data"] |= {name: each(shown["data"][name], _name) for name in paths}
    if config.train.minutes or config.train.epochs:
        del shown["train"]["steps"]  # its default, which has no effect
    start = Path(config.train.init_from)
    if start.exists() or start.is_absolute() or len(start.parts) != 2:  # not an id on the Hub
        shown["train"]["init_from"] = start.name
    return shown


def _name(file: str) -> str:
    """A path of data.data_files without its folders."""
    return "::".join(part if "://" in part else Path(part).name for part in file.split("::"))
