"""charlm report: what is known of a run, as one HTML page that needs nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jinja2
import numpy as np

from charlm import __version__, plots, tables
from charlm.config import CharlmError
from charlm.context import by_context
from charlm.files import replace
from charlm.findings import cells, neighbours, passage
from charlm.history import History
from charlm.known import Known, gather, text_of
from charlm.looking import look

HTML = Path(__file__).parent / "html"
NEAR = 50_000  # symbols that the loss by distance is measured on


def write_page(
    where: str, output: str | Path | None, text: bytes | None, device: str | None
) -> tuple[Path, list[str]]:
    """Write the page of a run directory, a model folder or a hub id. Returns its path and what is missing.

    output: None is report.html in the folder, or in the current one for a hub id. text: what the model reads,
    in place of held-out text. device: where the model runs; None is a GPU if there is one.
    Raises CharlmError when there is neither a model nor a figure, for text that the model's vocabulary does
    not have, when matplotlib is not installed, and when the page cannot be written.
    """
    plots.matplotlib()  # missing: say so before the work
    known = gather(where, device)
    source, ids = text_of(known, text)
    page = render(known, source, ids)
    path = Path(output) if output else (Path(where) if Path(where).is_dir() else Path()) / "report.html"
    try:
        replace(path, page)
    except OSError as error:
        raise CharlmError(f"{path}: cannot be written ({error.strerror})") from error
    return path, known.missing


def render(known: Known, source: str, ids: np.ndarray) -> str:
    """The page. ids: the text to read, of which `source` tells; fewer than 2 show none."""
    history, model, vocab = known.history, known.model, known.vocab
    floors = known.corpus.info["floors"] if known.corpus is not None else {}
    told = {"floors": floors, "plots": _plots(history, floors), "results": tables.results(history, floors)}
    told["samples"] = tables.samples(history)
    if model is not None and len(ids) > 1:
        seen = look(model, vocab, ids)
        shown, layers = cells(seen, model.config.hidden_size)
        told |= {"passage": True, "source": source, "layers": layers, "cell_count": f"{shown['of']:,}"}
        told["compared"] = f"{seen.symbols:,}"
        told["passage_bits"] = f"{np.nanmean(seen.bits):.2f}"
        told["data"] = _safe(passage(seen, vocab) | {"cells": shown})
        if len(shown["list"]) < shown["of"]:
            told["left_out"] = (
                f"To keep the page small, the {len(shown['list']):,} cells that follow a fact most closely "
                f"are in it, and not the other {shown['of'] - len(shown['list']):,}."
            )
        rows = by_context(model, vocab, ids[:NEAR], known.config.evaluate)
        if len(rows) > 2:
            told["context"] = plots.context_plot(rows)
            told["context_text"] = f"over {min(len(ids), NEAR):,} symbols of the same text"
        counts = np.bincount(ids[:1_000_000], minlength=len(vocab))
        if known.corpus is not None and known.corpus.vocab == vocab:
            counts += np.bincount(known.corpus["train"][:1_000_000], minlength=len(vocab))
        told["neighbours"] = neighbours(model, vocab, counts)
        embedded = model.config.embedding_size
        told["neighbours_about"] = (
            f"Every symbol is read as {embedded} learnt numbers, its embedding."
            if embedded
            else "Input is one-hot; compared are the weights by which the first layer reads a symbol."
        )
    if known.corpus is not None:
        told["corpus"] = tables.corpus(known.corpus)
    titles = {
        "training": ("Training", told["plots"]),
        "results": ("Results", told["results"]),
        "samples": ("Samples", told["samples"]),
        "surprise": ("Surprise", told.get("passage")),
        "cells": ("Cells", told.get("passage")),
        "context": ("Context", told.get("context")),
        "neighbours": ("Neighbours", told.get("neighbours")),
        "corpus": ("Corpus", told.get("corpus")),
    }
    told |= {
        "sections": [(id, title) for id, (title, there) in titles.items() if there],
        "name": Path(known.where).resolve().name if Path(known.where).is_dir() else known.where,
        "about": tables.about(known),
        "facts": tables.facts(known),
        "missing": known.missing,
        "made": f"Made by charlm {__version__} on {time.strftime('%Y-%m-%d %H:%M')}.",
    }
    files = {f"{kind}": (HTML / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HTML), autoescape=True, undefined=jinja2.ChainableUndefined
    )
    environment.filters["seen"] = lambda mark: "␣" if mark == " " else mark
    return environment.get_template("report.html").render(**told, **files)


def _safe(values: dict) -> str:
    """JSON that may stand in a <script>: no text in it can end that."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _plots(history: History, floors: dict) -> list[tuple[str, str]]:
    names = {"ngram": f"{floors.get('ngram', {}).get('order')}-gram"}
    lines = {names.get(name, name): floor["bpc"] for name, floor in floors.items()}
    found = [
        ("Bits per character", plots.bpc_plot(history, lines)),
        ("Loss, nats per symbol", plots.curve(history, "loss", "loss", "training loss by step")),
        ("Learning rate", plots.curve(history, "learning_rate", "learning rate", "learning rate by step")),
        (
            "Gradient norm, before clipping",
            plots.curve(history, "grad_norm", "norm", "gradient norm by step", spreads=True),
        ),
        (
            "Throughput",
            plots.curve(history, "characters_per_second", "characters/s", "characters per second by step"),
        ),
    ]
    return [(caption, svg) for caption, svg in found if svg]
