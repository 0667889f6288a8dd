"""charlm evaluate, sample, report, push, export: what is done with a trained model."""

import argparse
import dataclasses
import json
import os
import re
import sys
from pathlib import Path

from charlm.commands.cli import FIGURES, TERMS, Parser
from charlm.errors import CharlmError, UsageError
from charlm.terminal import loading, say, visible

MOST = 8_000_000  # bytes of a text that report reads: far more than a page shows
SCORES = "{nats_per_character:.4f} nats/char, {bpc:.4f} bpc, {bpb:.4f} bpb, perplexity {perplexity:.6g}"


def _run_parser(command: str, more: str = "") -> Parser:
    """A parser with the arguments that name a model, see _run_of, and say where it runs."""
    parser = Parser(command, more)
    parser.add_argument("run", nargs="?", help="run directory, model folder or hub id")
    parser.add_argument("--config", help="use the run of this config, instead of RUN")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    if command != "report":  # which is in fp32
        about = "arithmetic on a GPU (default: evaluate.precision of the config)"
        parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), help=about)
    return parser


def _run_of(args: argparse.Namespace) -> tuple:
    """Run directory, model folder or hub id, and the config if --config names the run."""
    from charlm.config.parse import load_config
    from charlm.monitor.run_files import runs_near

    if (args.run is None) == (args.config is None):
        raise UsageError(f"name a run directory, or --config for its config{runs_near(Path('runs'))}")
    config = load_config(args.config) if args.config else None
    if config and not Path(config.run_dir).is_dir():
        raise CharlmError(f"{config.run_dir}: no run yet; charlm train --config {args.config}")
    return config.run_dir if config else args.run, config


def _load(args: argparse.Namespace):
    """Trained: (model, vocabulary, config)."""
    run, config = _run_of(args)
    with loading():
        from charlm.training.trained import load

    precision = config.evaluate.precision if config and args.precision is None else args.precision
    trained = load(run, args.device, precision)
    return trained._replace(config=config) if config else trained


def _given(args: argparse.Namespace, *names: str, prefix: str = "") -> dict:
    return {name: value for name in names if (value := getattr(args, prefix + name)) is not None}


def evaluate(argv: list[str]) -> None:
    parser = _run_parser("evaluate", f"{TERMS} {FIGURES}.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--split", help="split of the run's corpus (default: test)")
    about = "text files, compressed or not, archives, globs or folders, instead of a split"
    source.add_argument("--text", metavar="PATH", nargs="+", help=about)
    about = "prepare the text that config.yaml of RUN names, which may be any file, in the folder it names"
    parser.add_argument("--trust", action="store_true", help=about)
    parser.add_argument("--lanes", type=int, help="lanes read in parallel; 1 is the exact single pass")
    parser.add_argument("--context", type=int, help="characters that warm up the carry of a lane")
    parser.add_argument("--max_characters", type=int, help="score only this many symbols, from the start")
    more = parser.add_mutually_exclusive_group()
    more.add_argument("--dynamic", action="store_true", help="also let the weights adapt to the text so far")
    more.add_argument("--by_context", action="store_true", help="also the loss by distance from a reset")
    parser.add_argument("--dynamic_lanes", type=int, metavar="N", help="lanes of --dynamic (default: 1)")
    parser.add_argument("--dynamic_window", type=int, metavar="T", help="characters per step (default: 32)")
    parser.add_argument("--dynamic_rate", type=float, metavar="R", help="rate of a step (default: by lanes)")
    decay = "share of the way back to the trained weights per step of --dynamic (default: 1e-3)"
    parser.add_argument("--dynamic_decay", type=float, metavar="D", help=decay)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the figures as JSON")
    form.add_argument("--jsonl", action="store_true", help="print a line of JSON for each text, once scored")
    args = parser.parse_args(argv)
    if args.max_characters is not None and args.max_characters < 2:
        raise UsageError(f"--max_characters {args.max_characters}: must be 2 or more")
    adapting = _given(args, "rate", "decay", "lanes", "window", prefix="dynamic_")
    if adapting and not args.dynamic:
        raise UsageError(f"--dynamic_{next(iter(adapting))} is for --dynamic: add it")
    if args.dynamic and (args.lanes not in (None, 1) or (args.context and "lanes" not in adapting)):
        raise UsageError("--dynamic reads the text in one lane, without a context, or in --dynamic_lanes N")
    if args.run is args.config is None and len(args.text or ()) > 1:
        args.run = args.text.pop()  # --text FILE RUN
    files = _files(args.text) if args.text else []
    if args.by_context and len(files) > 1:
        raise UsageError(f"--by_context is for one text, not for the {len(files):,} of --text")
    model, vocab, config = _load(args)
    from charlm.evaluation import by_context, dynamic, evaluate

    settings = dataclasses.replace(config.evaluate, **_given(args, "lanes", "context"))
    score = dynamic.evaluate_dynamic if args.dynamic else evaluate.evaluate
    texts = []
    given = ((n, evaluate.ids_of(vocab, Path(path).read_bytes(), f"--text {n}")) for n, path in files)
    for name, ids in given if files else [_split(args, vocab, config)]:
        ids = ids[: args.max_characters]
        texts.append({"text": name} | score(model, vocab, ids, settings, **adapting))
        if args.by_context:
            texts[-1]["by_context"] = by_context.by_context(model, vocab, ids, settings)
        if args.jsonl:
            print(json.dumps(texts[-1]), flush=True)
        elif len(files) > 1 and not args.json:
            say(evaluate.row(texts[-1], heading=len(texts) == 1), flush=True)
    if args.jsonl:
        return
    figures, result = texts[0], texts[0]
    if len(files) > 1:
        figures = {"text": "total"} | evaluate.total_of(texts)
        result = {"texts": texts, "total": figures}
        if not args.json:
            say(evaluate.row(figures) + "\n")
    print(json.dumps(result)) if args.json else say(_figures_text(figures["text"], figures))


def _files(paths: list[str]) -> list[tuple[str, str]]:
    """(name, path) of each file that --text stands for, without empty ones; a path may be that of a copy."""
    from charlm.corpus.sources import format_of, named_files
    from charlm.files import local_files

    try:
        named = {os.path.realpath(file.path): file.path for file, _ in named_files(paths, "text", "--text")}
        files = local_files([*named.values()])
    except OSError as error:
        raise CharlmError(f"--text {error.filename}: {error.strerror}") from error
    if rows := [file.name for file in files if format_of(file.name) not in ("", "text")]:
        advice = "it would be scored with its marks; write its column to a .txt, or name it as data.test"
        raise CharlmError(f"--text {rows[0]}: holds rows, and {advice}")
    if not (filled := [(file.name, file.path) for file in files if os.path.getsize(file.path)]):
        raise CharlmError(f"--text {' '.join(paths)}: the file is empty")
    return [(paths[0], filled[0][1])] if len(paths) == len(files) == 1 else filled


def _split(args: argparse.Namespace, vocab, config):
    """(name, ids) of the split to score."""
    from charlm.training.trained import corpus_of

    run = Path(config.run_dir if args.config else args.run)
    run = run.parent if run.name == "model" and (run / "config.json").exists() else run
    if not (args.config or (run / "config.yaml").exists()):
        raise CharlmError(f"{args.run}: a model without its run has no corpus; give --text FILE")
    corpus = corpus_of(run, config, args.trust or args.config is not None)
    if corpus.vocab != vocab:
        fits = f"vocabulary ({len(corpus.vocab)} symbols) does not fit the model ({len(vocab)} symbols)"
        advice = "name the config that the model was trained with, or --text FILE"
        raise CharlmError(f"{corpus.folder}: its {fits}; {advice}")
    split = args.split or "test"
    corpus.verify(split)
    return split, corpus[split]


def _figures_text(name: str, figures: dict) -> str:
    lanes = "1 lane" if figures["lanes"] == 1 else f"{figures['lanes']} lanes"
    protocol = f"({lanes}, {figures['context']} characters of warm-up context)"
    counts = f"over {figures['characters']:,} characters, {figures['bytes']:,} bytes {protocol}"
    lines = [f"{name}: {SCORES.format(**figures)}", counts, f"({FIGURES})"]
    if "dynamic" in figures:
        of = figures["dynamic"]
        step = f"a step at rate {of['rate']:g} after every {of['window']} characters"
        step += f" of each of {lanes}" if of["lanes"] > 1 else ""
        lines += [f"dynamic: {SCORES.format(**of)}", f"{step}, decay {of['decay']:g} to the trained weights"]
        if of["lanes"] > 1:
            lines.append("(the weights of a lane have also seen what the other lanes have read)")
    if "by_context" in figures:
        from charlm.evaluation.by_context import table

        lines += ["", table(figures["by_context"])]
    return "\n".join(lines)


def sample(argv: list[str]) -> None:
    parser = _run_parser("sample", "Options that are not given come from the config of the run.")
    parser.add_argument("--prompt", help="text that the sample continues")
    parser.add_argument("--length", type=int, help="symbols to draw")
    parser.add_argument("--temperature", type=float, help="divides the logits; 0 always takes the likeliest")
    parser.add_argument("--top_k", type=int, help="draw from the k likeliest symbols only")
    parser.add_argument("--top_p", type=float, help="draw from the likeliest symbols that reach this sum")
    parser.add_argument("--seed", type=int, help="seed of the draw")
    about = "end before this text (a blank line: $'\\n\\n'); given again, before the first of several"
    parser.add_argument("--stop", metavar="TEXT", action="append", help=about)
    parser.add_argument("--num_samples", type=int, default=1, help="samples to draw; their seeds count up")
    parser.add_argument("--json", action="store_true", help="print every sample as a line of JSON")
    args = parser.parse_args(argv)
    trained = _load(args)
    import torch

    given = _given(args, "prompt", "length", "temperature", "top_k", "top_p", "seed", "stop")
    options = dataclasses.replace(trained.config.sample, **given)
    if trained.model.device.type == "cpu" and args.num_samples < 16:
        torch.set_num_threads(1)  # a step is too small to share
    shown = visible if sys.stdout.isatty() else str
    if args.num_samples == 1 and not args.json:
        pieces = trained.stream(**given)
        print(shown(options.prompt + next(pieces, "")), end="", flush=True)  # errors come before the prompt
        for piece in pieces:
            print(shown(piece), end="", flush=True)
        print()
        return
    for i, text in enumerate(trained.generate(num_samples=args.num_samples, **given)):
        seed = options.seed + i
        if args.json:
            result = {"prompt": options.prompt, "text": text, "seed": seed}
            print(visible(json.dumps(result, ensure_ascii=False)))
        else:
            print(f"--- sample {i + 1}, seed {seed} ---\n{shown(options.prompt + text)}")


def report(argv: list[str]) -> None:
    parser = _run_parser("report")
    parser.add_argument("--output", metavar="FILE", help="where to write it (default: RUN/report.html)")
    parser.add_argument("--text", metavar="FILE", help="text for the model to read, instead of held-out text")
    args = parser.parse_args(argv)
    text = None
    if args.text is not None:
        with open(_files([args.text])[0][1], "rb") as file:
            text = file.read(MOST)
    if text is not None and len(text) == MOST:  # it may end within a character
        text = re.sub(rb"[\xc0-\xff][\x80-\xbf]{,3}\Z", b"", text)
    run, _ = _run_of(args)
    with loading():
        from charlm.report.page import write_page

    path, missing = write_page(run, args.output, text, args.device)
    for line in missing:
        say(f"not on the page: {line}")
    say(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")


def push(argv: list[str]) -> None:
    parser = Parser("push", "The model card is sent too. Offline the command lists what it would send.")
    parser.add_argument("run", help="run directory or model folder")
    parser.add_argument("name", help="repository on the Hub: user/name or organization/name")
    parser.add_argument("--license", help="of the weights, as named by the Hub: mit, apache-2.0, …")
    parser.add_argument("--language", action="append", default=[], help="of the text: en, …; may be repeated")
    parser.add_argument("--private", action="store_true", help="if the repository is new, make it private")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--dry_run", action="store_true", help="write the card, send nothing")
    args = parser.parse_args(argv)
    from huggingface_hub import constants

    from charlm.model.pretrained import FILES
    from charlm.sharing.hub import CARD, ready, upload

    folder = ready(args.run, args.name, args.license, args.language)
    dry = "--dry_run" if args.dry_run else "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    private = ", private" if args.private else ""
    say(f"{'would send' if dry else 'sending'} {folder} to {args.name}{private}:")
    for file in (CARD, *FILES):
        say(f"  {(folder / file).stat().st_size:>13,} bytes  {file}")
    if dry:
        say(f"nothing was sent ({dry}); the card to read before sending: {folder / CARD}")
    else:
        say(upload(folder, args.name, args.private, args.message), flush=True)


def export(argv: list[str]) -> None:
    parser = Parser("export", "From (ids, carry) to (log-probabilities, carry). Needs onnx and onnxruntime.")
    parser.add_argument("run", help="run directory, model folder or hub id")
    parser.add_argument("file", type=Path, help="file to write, such as model.onnx")
    args = parser.parse_args(argv)
    if not args.file.parent.is_dir():
        raise CharlmError(f"{args.file}: there is no folder {args.file.parent}")
    with loading():
        from charlm.sharing import onnx
        from charlm.training.trained import load

    model, vocab, _ = load(args.run, "cpu", "fp32")
    difference = onnx.export(model, vocab, args.file)
    agrees = f"onnxruntime agrees with the model within {difference:.1g}"
    say(f"{args.file}: {args.file.stat().st_size:,} bytes, {len(vocab)} symbols; {agrees}")
