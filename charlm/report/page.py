"""charlm report: what is known of a run, as one HTML page that needs nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jinja2
import numpy as np

from charlm import __version__
from charlm.errors import CharlmError
from charlm.evaluation.by_context import by_context
from charlm.files import replace
from charlm.monitor.run_files import History
from charlm.report import plots, tables
from charlm.report.findings import cells, neighbours, passage
from charlm.report.known import Known, gather, text_of
from charlm.report.looking import look

HTML = Path(__file__).parent / "html"
NEAR, NEAR_WORK = 30_000, 3e10  # symbols that the loss by distance is measured on; fewer of a large model
COUNTED = 1_000_000  # symbols of a text whose frequencies are counted
# id, what must be there, and the title of every section
SECTIONS = [
    ("training", "plots", "Training"),
    ("results", "results", "Results"),
    ("samples", "samples", "Samples"),
    ("surprise", "passage", "Surprise"),
    ("cells", "passage", "Cells"),
    ("context", "context", "Context"),
    ("neighbours", "neighbours", "Neighbours"),
    ("corpus", "corpus", "Corpus"),
]


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
    floors = known.corpus.info["floors"] if known.corpus is not None else {}
    told = {
        "source": source,
        "floors": floors,
        "plots": _plots(known.history, floors),
        "results": tables.results(known.history, floors),
        "samples": tables.samples(known.history),
        "corpus": tables.corpus(known.corpus) if known.corpus is not None else None,
    }
    if known.model is not None and len(ids) > 1:
        try:
            told |= _inside(known, ids)
        except CharlmError as error:
            known.missing.append(f"All that takes a model: {error}.")
    told |= {
        "sections": [(id, title) for id, key, title in SECTIONS if told.get(key)],
        "name": Path(known.where).resolve().name if Path(known.where).is_dir() else known.where,
        "about": tables.about(known),
        "facts": tables.facts(known),
        "missing": known.missing,
        "made": f"Made by charlm {__version__} on {time.strftime('%Y-%m-%d %H:%M')}.",
    }
    files = {kind: (HTML / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HTML), autoescape=True)
    environment.filters["seen"] = lambda mark: "␣" if mark == " " else mark
    return environment.get_template("report.html").render(**told, **files)


def _inside(known: Known, ids: np.ndarray) -> dict:
    """What the model does with a text, for the template."""
    model, vocab = known.model, known.vocab
    seen = look(model, vocab, ids)
    shown, layers = cells(seen, model.config.hidden_size)
    told = {
        "passage": f"{np.nanmean(seen.bits):.2f} bits per symbol",
        "data": _safe(passage(seen, vocab) | {"cells": shown}),
        "layers": layers,
        "cell_count": f"{shown['of']:,}",
        "compared": f"{seen.symbols:,}",
        "embedded": model.config.embedding_size,
    }
    if len(shown["list"]) < shown["of"]:
        told["left_out"] = (
            f"To keep the page small, the {len(shown['list']):,} cells that follow a fact most closely "
            f"are in it, and not the other {shown['of'] - len(shown['list']):,}."
        )
    near = ids[: int(np.clip(NEAR_WORK / sum(p.numel() for p in model.parameters()), 2_000, NEAR))]
    rows = by_context(model, vocab, near, known.config.evaluate)
    if len(rows) > 2:
        told |= {"context": plots.context_plot(rows), "near": f"{len(near):,}"}
    counts = np.bincount(ids[:COUNTED], minlength=len(vocab))
    if known.corpus is not None and known.corpus.vocab == vocab:
        counts += np.bincount(known.corpus["train"][:COUNTED], minlength=len(vocab))
    return told | {"neighbours": neighbours(model, vocab, counts)}


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
