"""charlm report: one self-contained HTML page about a run."""

import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np

from charlm import __version__
from charlm.config.fields import Config
from charlm.config.parse import read_run_config
from charlm.corpus.prepared import Corpus, baseline_title
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.evaluation.by_context import by_context
from charlm.evaluation.evaluate import ids_of
from charlm.files import replace, writing
from charlm.model.char_lm import CharLM
from charlm.monitor.run_files import History, read_history
from charlm.report.plots import context_plot, import_matplotlib, training_plots
from charlm.report.probe import cell_data, character_counts, nearest_symbols, passage_data, probe_model
from charlm.sampling.generate import generate
from charlm.terminal import visible
from charlm.training.trained import corpus_of, load

GENERATED = 4000  # symbols that the model generates when there is no text to read
CONTEXT, CONTEXT_WORK = 30_000, 3e10  # symbols for the loss by context; symbols × parameters of a large model
COUNTED = 1_000_000  # symbols of a text whose frequencies are counted
MOST_SAMPLES = 9


@dataclass
class RunContents:
    """Everything a run directory, a model folder or a hub id holds. What it lacks is None or empty, and
    `missing` has a sentence about it."""

    source: str
    history: History = field(default_factory=History)  # empty for a model folder or a hub id
    config: Config | None = None
    model: CharLM | None = None
    vocab: Vocab | None = None
    corpus: Corpus | None = None
    missing: list[str] = field(default_factory=list)


def write_page(source: str, output: str | None, text: bytes | None, device: str | None) -> tuple[Path, list]:
    """Write the page of a run directory, a model folder or a hub id. Returns its path, and sentences
    about what is missing.

    output: None is report.html in the folder, or in the current one for a hub id. text: UTF-8 for the model
    to read instead of held-out text. device: where the model runs; None is a GPU if there is one.
    Raises CharlmError when there is neither a model nor a figure, for text that the vocabulary of the model
    cannot encode, when matplotlib is not installed, and when the page cannot be written.
    """
    import_matplotlib()  # fail before the work
    run = read_run(source, device)
    page = render(run, *choose_text(run, text))
    path = Path(output) if output else (Path(source) if Path(source).is_dir() else Path()) / "report.html"
    with writing(path):
        replace(path, page)
    return path, run.missing


def read_run(source: str, device: str | None) -> RunContents:
    """Open a run directory, a model folder or a hub id. Raises CharlmError without a model and any figure."""
    path, run = Path(source), RunContents(source)
    run_dir = path.parent if path.name == "model" else None
    if path.is_dir() and not (path / "config.json").exists():
        run_dir, run.history = path, read_history(path)
        if not run.history.records:
            run.missing.append("Training curves and samples: metrics.jsonl has no figures yet.")
    else:
        run.missing.append("Training curves, results and samples: this is a model without its run directory.")
    try:
        run.model, run.vocab, run.config = load(source, device, "fp32")
    except CharlmError as error:
        if not run.history.records:
            raise
        run.config = read_run_config(path)
        run.missing.append(f"Everything that needs a model: {error}.")
    try:
        if run_dir is None or not (run_dir / "config.yaml").exists():
            raise CharlmError("without a config.yaml the corpus cannot be found.")
        corpus = corpus_of(run_dir, run.config)
        corpus.verify(*corpus.splits.keys() - {"train"})
        run.corpus = corpus
    except CharlmError as error:
        run.missing.append(f"Corpus and baselines: {error}")
    return run


def choose_text(run: RunContents, text: bytes | None) -> tuple[str, np.ndarray]:
    """(source, ids uint8[n] or uint16[n]) of the text for the model to read. source: 'given', a split,
    'generated'; '': no model. Raises CharlmError for a given text that cannot be encoded or is too short."""
    if run.model is None:
        return "", np.empty(0, np.uint8)
    if text is not None:
        return "given", ids_of(run.vocab, text, "--text")
    if run.corpus is not None and run.corpus.vocab == run.vocab:
        for split in ("validation", "test", "train"):
            if split in run.corpus.splits and len(run.corpus[split]) > 1:
                return split, run.corpus[split]
    elif run.corpus is not None:
        run.missing.append("Text of the corpus: its vocabulary differs from the model's.")
    run.missing.append("Held-out text: the model reads text that it generated; --text FILE gives another.")
    text = generate(run.model, run.vocab, length=GENERATED, prompt="", temperature=0.8)
    return "generated", run.vocab.encode(text)


def render(run: RunContents, text_source: str, ids: np.ndarray) -> str:
    """The page. text_source, ids: as choose_text returns them."""
    history, corpus = run.history, run.corpus
    baselines = corpus.info["floors"] if corpus is not None else {}
    speeds = [speed for _, speed in history.points("characters_per_second")]
    values = {
        "run": run,
        "name": Path(run.source).resolve().name if Path(run.source).is_dir() else run.source,
        "throughput": statistics.median(speeds) if speeds else None,
        "baselines": baselines,
        "plots": training_plots(history, baselines),
        "results": results(history, baselines),
        "samples": spread_samples(history.points("sample")),
        "text_source": text_source,
        "version": __version__,
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }
    if corpus is not None:
        lists = "most_frequent", "first_left_out"
        values["characters"] = {key: character_counts(corpus.vocab, corpus.info[key]) for key in lists}
    if len(ids) > 1:
        try:
            values |= _model_sections(run, ids)
        except CharlmError as error:
            run.missing.append(f"Everything that needs a model: {error}.")
    env = jinja2.Environment(loader=jinja2.PackageLoader("charlm.report", "html"), autoescape=True)
    env.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    env.filters |= {"thousands": "{:,}".format, "visible": visible}
    return env.get_template("report.html").render(values)


def results(history: History, baselines: dict) -> list[tuple[str, str, dict, str]]:
    """Rows of the table of results: (name, text, figures, baseline). The model's rows, then the baselines,
    as corpus.json has them: key → figures."""
    rows, status, evaluations = [], history.status, history.evaluations
    if evaluations:
        best, last = status.get("best") or history.best, evaluations[-1]
        rows.append((f"best, step {best['step']:,}", "validation", best, ""))
        if last["step"] != best["step"]:
            rows.append((f"last, step {last['step']:,}", "validation", last, ""))
    if status.get("test"):
        rows.append(("best weights", "test", status["test"], ""))
    if not rows and (last := history.latest("bpc")):
        figures = last | {"nats_per_character": last["bpc"] * math.log(2)}
        rows.append((f"step {last['step']:,}", "train, during training", figures, ""))
    return rows + [(baseline_title(key, of), "validation", of, key) for key, of in baselines.items()]


def spread_samples(samples: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """At most MOST_SAMPLES of (step, text): the first, the last, and more early than late ones."""
    if len(samples) <= MOST_SAMPLES:
        return samples
    places = np.unique(np.geomspace(1, len(samples), MOST_SAMPLES).round().astype(int) - 1)
    return [samples[i] for i in places]


def _model_sections(run: RunContents, ids: np.ndarray) -> dict:
    """Values of the template for the sections that need a model."""
    model, vocab = run.model, run.vocab
    probe = probe_model(model, vocab, ids)
    cells, layers = cell_data(probe, model.config.hidden_size)
    near = ids[: int(np.clip(CONTEXT_WORK / model.num_parameters, 2_000, CONTEXT))]
    rows = by_context(model, vocab, near, run.config.evaluate)
    counts = np.bincount(ids[:COUNTED], minlength=len(vocab))
    if run.corpus is not None and run.corpus.vocab == vocab:
        counts += np.bincount(run.corpus["train"][:COUNTED], minlength=len(vocab))[: len(vocab)]
    return {
        "probe": probe,
        "mean_bits": float(np.nanmean(probe.bits)),
        "data": passage_data(probe, vocab) | {"cells": cells},
        "cells": cells,
        "layers": layers,
        "context": context_plot(rows) if len(rows) > 2 else None,
        "context_symbols": len(near),
        "neighbours": nearest_symbols(model, vocab, counts),
    }
