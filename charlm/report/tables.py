"""The words and numbers of a report: what the run is, its results, samples and corpus, ready to be shown."""

from __future__ import annotations

import math

import numpy as np

from charlm.corpus.prepared import Corpus, baseline_title
from charlm.corpus.vocabulary import name_of
from charlm.monitor.history import History
from charlm.report.known import Known
from charlm.report.marks import mark_of
from charlm.terminal import visible

MOST_SAMPLES = 9


def about(known: Known) -> str:
    """One sentence on what it is and how far it is."""
    status, config = known.history.status, known.config
    words = []
    if known.model is not None:
        model = known.model.config
        layers = "1 layer" if model.num_layers == 1 else f"{model.num_layers} layers"
        cell = known.model.cell.title
        words.append(f"A character-level {cell} with {layers} of {model.hidden_size:,} cells")
    if known.run_dir is not None and status.get("status"):
        steps = f"step {known.history.last_step:,}"
        if status["status"] != "done" and config is not None:
            steps += f" of {config.train.steps:,}"
        told = {"running": "still training", "done": "trained to the end"}
        words.append(f"{told.get(status['status'], status['status'])}, {steps}")
    return f"{'; '.join(words)}." if words else ""


def facts(known: Known) -> list[tuple[str, str]]:
    """(what, value) of the model and its training."""
    found = []
    if known.model is not None:
        model = known.model.config
        found.append(("parameters", f"{sum(p.numel() for p in known.model.parameters()):,}"))
        found.append(("symbols", f"{known.model.vocab_size:,}"))
        found.append(
            ("input", f"embedding of {model.embedding_size:,}" if model.embedding_size else "one-hot")
        )
    if known.run_dir is not None and known.config is not None and known.history.records:
        train, optim = known.config.train, known.config.optim
        found.append(("batch", f"{train.batch_size:,} lanes × {train.bptt:,} symbols"))
        found.append(("optimizer", f"{optim.name}, learning rate {optim.learning_rate:g}"))
        _, speeds = known.history.series("characters_per_second")
        if len(speeds):
            found.append(("median throughput", f"{np.median(speeds):,.0f} characters/s"))
    return found


def results(history: History, floors: dict) -> list[dict]:
    """Rows of the table of results: the model's figures, then the floors."""
    rows = []
    best, test = history.status.get("best"), history.status.get("test")
    told = [r for r in history.records if isinstance(r.get("validation/bpc"), int | float)]
    if told:
        last = told[-1]
        least = min(
            told, key=lambda r: r["validation/bpc"] if math.isfinite(r["validation/bpc"]) else math.inf
        )
        best = best or _stripped(least)
        rows.append(_row(f"best, step {best.get('step', least['step']):,}", "validation", best))
        if last["step"] != best.get("step"):
            rows.append(_row(f"last, step {last['step']:,}", "validation", _stripped(last)))
    if test:
        rows.append(_row("the best weights", "test", test))
    if not rows:
        trained = [r for r in history.records if isinstance(r.get("bpc"), int | float)]
        if trained:
            figures = trained[-1] | {"nats_per_character": trained[-1]["bpc"] * math.log(2)}
            rows.append(_row(f"step {trained[-1]['step']:,}", "train, while learning", figures))
    for name, floor in floors.items():
        size = {
            "ngram": f"counts of {floor.get('train_symbols', 0):,} symbols",
            "xz": f"{floor.get('held_out_bytes', 0):,} bytes compressed",
            "unigram": "symbol frequencies of train",
        }
        rows.append(_row(baseline_title(name, floor), "validation", floor, size.get(name, ""), floor=True))
    return rows


def _stripped(record: dict) -> dict:
    """The validation figures of a record, by their plain names."""
    found = {k.removeprefix("validation/"): v for k, v in record.items() if k.startswith("validation/")}
    return found | {"step": record["step"]}


def _row(what: str, text: str, figures: dict, protocol: str = "", floor: bool = False) -> dict:
    if figures.get("lanes"):
        lanes, context = figures["lanes"], figures.get("context", 0)
        protocol = (
            f"{lanes:,} lanes, {context:,} symbols of context" if lanes > 1 else "one pass, state carried"
        )

    def number(name: str) -> str:
        value = figures.get(name)
        return f"{value:.4f}" if isinstance(value, int | float) else ""

    count = figures.get("characters")
    return {
        "what": what,
        "text": text,
        "bpc": number("bpc"),
        "bpb": number("bpb"),
        "nats": number("nats_per_character"),
        "characters": f"{count:,}" if count else "",
        "protocol": protocol,
        "floor": floor,
    }


def samples(history: History) -> list[tuple[str, str]]:
    """(step, text): of many samples the first, the last, and some between, the early ones closer together."""
    told = history.samples
    if len(told) > MOST_SAMPLES:
        places = np.unique(np.geomspace(1, len(told), MOST_SAMPLES).round().astype(int) - 1)
        told = [told[i] for i in places]
    return [(f"step {step:,}", visible(text)) for step, text in told]


def corpus(corpus: Corpus) -> dict:
    """What corpus.json tells: facts, rows of the splits, lists of characters with their shares."""
    info, vocab = corpus.info, corpus.vocab
    source = info["source"]
    told = [("source", " ".join(str(source[k]) for k in ("source", "name") if source.get(k)))]
    told += [(name, f"{info[name]:,}") for name in ("documents", "characters", "bytes")]
    told.append(("vocabulary", f"{len(vocab):,} symbols"))
    if not vocab.bytes_only:
        told.append(("characters with a symbol", f"{100 * info['coverage']:.6g} %"))
    if info["left_out_characters"]:
        told.append(("characters spelled in bytes", f"{info['left_out_characters']:,}"))
    counted = ("documents", "characters", "bytes", "symbols")
    splits = [
        (name, *(f"{size[k]:,}" if k in size else "cut" for k in counted))
        for name, size in corpus.splits.items()
    ]
    lists = []
    for title, key in (
        ("most frequent", "most_frequent"),
        ("first left out, spelled in bytes", "first_left_out"),
    ):
        most = max((count for _, count in info[key]), default=1)
        rows = []
        for code, count in info[key]:
            character = chr(code)
            if vocab.bytes_only and code >= 0x80:
                mark, name = f"{code:02X}", f"byte 0x{code:02X}"
            else:
                mark, name = mark_of(character), name_of(character)
            rows.append((mark, name, f"{count:,}", round(100 * count / most, 1)))
        lists.append((title, rows))
    return {"facts": told, "splits": splits, "lists": lists}
