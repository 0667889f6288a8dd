"""charlm prepare | train | evaluate | …: each command imports what it needs, when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from charlm import __version__
from charlm.config import CharlmError, CharlmWarning, parse
from charlm.stop import Stop

USAGE = """\
usage: charlm COMMAND [options]

Character-level LSTM, GRU and RNN language models, from hello to Wikipedia.

commands:
  hello      the classroom's toy: an RNN learns "hello" in ten steps
  prepare    text → vocabulary and ids on disk
  train      train a model, or go on with a run that was stopped
  doctor     what a training would get on this machine, before it waits in a queue
  evaluate   bits per character and per byte on held-out text
  sample     draw text from a model

  charlm COMMAND --help     its options
  charlm --version

start with:  charlm train --config stdlib
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. Exits with 1 for what the user can mend, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--version"]:
        print(f"charlm {__version__}")
        return
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    command = COMMANDS.get(words[0])
    if command is None:
        sys.exit(f"charlm: error: no command {words[0]!r} (commands: {', '.join(COMMANDS)})")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? instead of failing
    warnings.formatwarning = _formatted(warnings.formatwarning)
    code: int | str = 0
    try:
        command(words[1:])
    except CharlmError as error:
        code = f"charlm: error: {error}"
    except KeyboardInterrupt:
        print("charlm: stopped by Ctrl-C", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `charlm sample … | head`
        sys.stderr.close()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        _leave_at_once(code)
    if code:
        sys.exit(code)


def _leave_at_once(code: int | str) -> NoReturn:
    """End one process of several, without taking Python down in order.

    The threads of torch's process group outlive it (DistributedDataParallel keeps it). One that still lets go
    of a tensor while Python goes down under it aborts the process: on a busy machine one run in 25 ended so.
    """
    with suppress(OSError, ValueError):
        if isinstance(code, str):
            print(code, file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)


def _formatted(other):
    """charlm's own warnings as one line, without the place in its source."""

    def text(message, category, *args, **kwargs) -> str:
        if issubclass(category, CharlmWarning):
            return f"charlm: warning: {message}\n"
        return other(message, category, *args, **kwargs)

    return text


PREPARE = """\
on several machines that share data.dir, in this order:
  --shard I/N  count part I (from 0) of N; all parts, at the same time or not
  --merge N    when all are counted: choose the vocabulary
  --shard I/N  the same again, now encoding
  --merge N    when all are encoded: join them to what one machine would make
on a prepared corpus:
  --verify     hold it against its checksums, and the text it was made of
"""


class _Words(argparse.ArgumentParser):
    """Says in one line what is wrong with words."""

    def error(self, message: str) -> None:
        raise CharlmError(f"{self.prog} takes one of --shard I/N, --merge N, --verify: {message}")


def _prepare(argv: list[str]) -> None:
    parser = _Words("charlm prepare", add_help=False, allow_abbrev=False)
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--shard")
    one_of.add_argument("--merge")
    one_of.add_argument("--verify", action="store_true")
    args, rest = parser.parse_known_args(argv)
    config = parse(
        rest, "charlm prepare", epilog=PREPARE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    from charlm.prepared import merge, prepare, prepare_shard, verify

    if args.shard is not None:
        print(prepare_shard(config, *_shard(args.shard)))
    elif args.merge is not None:
        if not args.merge.isdecimal() or int(args.merge) < 1:
            raise CharlmError(f"--merge {args.merge}: give the number of shards, such as --merge 4")
        corpus = merge(config, int(args.merge))
        again = f"every --shard I/{args.merge} again, then --merge {args.merge}"
        print(corpus.report() if corpus else f"the vocabulary is chosen. To encode the text, run {again}")
    elif args.verify:
        print(f"{verify(config).folder}: as it was made, and as its text is now")
    else:
        print(prepare(config).report())


def _shard(text: str) -> tuple[int, int]:
    shard, slash, shards = text.partition("/")
    if not (slash and shard.isdecimal() and shards.isdecimal() and int(shard) < int(shards)):
        raise CharlmError(f"--shard {text}: give a number from 0 and how many there are, such as --shard 0/4")
    return int(shard), int(shards)


def _train(argv: list[str]) -> None:
    with Stop() as stop:  # before torch is imported: a signal in the seconds that takes ends nothing either
        config = parse(argv, "charlm train")
        from charlm.train import train

        train(config, stop=stop)


def _doctor(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("charlm doctor", add_help=False, allow_abbrev=False)
    parser.add_argument("--hours", type=float)
    args, words = parser.parse_known_args(argv)
    about = "Beside the options of train: --hours H, a time limit that the run should end within."
    config = parse(words, "charlm doctor", description=about)
    from charlm.doctor import Doctor

    if not Doctor(config, args.hours).examine():
        sys.exit(1)


def _run_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"charlm {command}", description=description)
    parser.add_argument("run", nargs="?", help="run directory, model folder or hub id")
    parser.add_argument("--config", help="the run of this config, instead of naming it")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")
    return parser


def _open(args: argparse.Namespace):
    """(model, vocabulary, config) that the words of evaluate and sample name."""
    if (args.run is None) == (args.config is None):
        raise CharlmError("name a run directory, or --config for its config")
    given = parse(["--config", args.config]) if args.config else None
    import torch

    from charlm.trained import open_trained

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CharlmError(f"--device {device}: {str(error).splitlines()[0]}") from error
    model, vocab, config = open_trained(given.run_dir if given else args.run, device)
    return model, vocab, given or config


def _evaluate(argv: list[str]) -> None:
    parser = _run_parser("evaluate", "One stateful pass over held-out text.")
    parser.add_argument("--split", help="split of the run's corpus (default: test)")
    parser.add_argument("--text", metavar="FILE", help="a text file instead of a split")
    parser.add_argument("--lanes", type=int, help="parts read side by side; 1 is the exact single pass")
    parser.add_argument("--context", type=int, help="characters that warm up the carry of a lane")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse_args(argv)
    if args.split is not None and args.text is not None:
        raise CharlmError("name --split or --text, not both")
    model, vocab, config = _open(args)
    import dataclasses

    import numpy as np

    from charlm.evaluate import evaluate
    from charlm.prepared import prepare

    if args.text is not None:
        what, ids = args.text, _encode_file(Path(args.text), vocab)
    else:
        corpus = prepare(config)
        if corpus.vocab != vocab:
            raise CharlmError(
                f"{corpus.folder}: its vocabulary ({len(corpus.vocab)} symbols) does not fit the model "
                f"({len(vocab)} symbols); "
                f"name the config the model was trained with, or score a file with --text"
            )
        what = args.split or "test"
        if what not in corpus.splits:
            has = ", ".join(corpus.splits)
            raise CharlmError(
                f"the run's text has no split {what!r} (it has {has}): name another, or --text FILE"
            )
        ids = np.asarray(corpus[what])
    changed = {k: getattr(args, k) for k in ("lanes", "context") if getattr(args, k) is not None}
    figures = evaluate(model, vocab, ids, dataclasses.replace(config.evaluate, **changed))
    if args.json:
        print(json.dumps({"text": what} | figures))
        return
    print(
        f"{what}: {figures['nats_per_character']:.4f} nats/char, {figures['bpc']:.4f} bpc, "
        f"{figures['bpb']:.4f} bpb, perplexity {figures['perplexity']:.6g}\n"
        f"over {figures['characters']:,} characters, {figures['bytes']:,} bytes "
        f"({figures['lanes']} lanes, {figures['context']} characters of warm-up context)"
    )


def _encode_file(path: Path, vocab):
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CharlmError(f"--text {path}: {error.strerror}") from error
    if not content:
        raise CharlmError(f"--text {path}: the file is empty")
    try:
        return vocab.encode(content)
    except UnicodeDecodeError as error:
        raise CharlmError(f"--text {path}: byte {error.start:,} is not UTF-8 ({error.reason})") from error
    except CharlmError as error:
        raise CharlmError(f"--text {path}: {error}") from error


def _sample(argv: list[str]) -> None:
    parser = _run_parser("sample", "Draw text; what is not given comes from the run's config.")
    parser.add_argument("--prompt", help="text that the sample goes on from")
    parser.add_argument("--length", type=int, help="symbols to draw")
    parser.add_argument("--temperature", type=float, help="divides the logits; 0 takes the likeliest always")
    parser.add_argument("--top_k", type=int, help="draw from the k likeliest symbols only")
    parser.add_argument(
        "--top_p", type=float, help="draw from the fewest symbols that reach this probability"
    )
    parser.add_argument("--seed", type=int, help="seed of the draw")
    parser.add_argument("--num_samples", type=int, default=1, help="samples to draw, with seeds one apart")
    args = parser.parse_args(argv)
    model, vocab, config = _open(args)
    import dataclasses

    import torch

    from charlm.generate import generate_ids, visible

    names = ("prompt", "length", "temperature", "top_k", "top_p", "seed")
    given = {k: getattr(args, k) for k in names if getattr(args, k) is not None}
    options = dataclasses.replace(config.sample, **given)
    if model.device.type == "cpu" and args.num_samples < 16:
        torch.set_num_threads(1)  # a step is too small to share
    texts = [vocab.stream(end="\n") for _ in range(args.num_samples)]
    pieces: list[list[str]] = [[] for _ in texts]
    drawn = generate_ids(model, vocab, options, args.num_samples)
    shown = visible if sys.stdout.isatty() else str
    if len(texts) == 1:
        first = next(drawn)  # errors come before the prompt is echoed
        print(shown(options.prompt + texts[0](first[0])), end="", flush=True)
        for (symbol,) in drawn:
            print(shown(texts[0](symbol)), end="", flush=True)
        print(texts[0](None))
        return
    for ids in drawn:
        for text, piece, symbol in zip(texts, pieces, ids, strict=True):
            piece.append(text(symbol))
    for i, (text, piece) in enumerate(zip(texts, pieces, strict=True)):
        whole = shown(options.prompt + "".join([*piece, text(None)]))
        print(f"--- sample {i + 1}, seed {options.seed + i} ---\n{whole}")


def _hello(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("charlm hello", description=COMMANDS["hello"].__doc__)
    parser.add_argument(
        "--explain", action="store_true", help="show vocabulary, one-hot matrix, weights, model"
    )
    parser.add_argument("--debug", action="store_true", help="show the shapes at every stage")
    args = parser.parse_args(argv)
    from charlm.hello import hello

    hello(args.explain, args.debug)


COMMANDS = {
    "hello": _hello,
    "prepare": _prepare,
    "train": _train,
    "doctor": _doctor,
    "evaluate": _evaluate,
    "sample": _sample,
}

if __name__ == "__main__":
    main()
