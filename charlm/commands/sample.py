"""charlm sample: draw text from a model."""

from __future__ import annotations

import json
import sys

from charlm.commands.words import open_named, run_parser
from charlm.terminal import visible


def run(argv: list[str]) -> None:
    """charlm sample."""
    parser = run_parser("sample", "Draw text; what is not given comes from the run's config.")
    parser.add_argument("--prompt", help="text that the sample goes on from")
    parser.add_argument("--length", type=int, help="symbols to draw")
    parser.add_argument("--temperature", type=float, help="divides the logits; 0 takes the likeliest always")
    parser.add_argument("--top_k", type=int, help="draw from the k likeliest symbols only")
    parser.add_argument(
        "--top_p", type=float, help="draw from the fewest symbols that reach this probability"
    )
    parser.add_argument("--seed", type=int, help="seed of the draw")
    parser.add_argument("--num_samples", type=int, default=1, help="samples to draw, with seeds one apart")
    parser.add_argument("--json", action="store_true", help="print every sample as a line of JSON")
    args = parser.parse_args(argv)
    model, vocab, config = open_named(args)
    import dataclasses

    import torch

    from charlm.sampling.generate import stream_text

    names = ("prompt", "length", "temperature", "top_k", "top_p", "seed")
    given = {k: getattr(args, k) for k in names if getattr(args, k) is not None}
    options = dataclasses.replace(config.sample, **given)
    if model.device.type == "cpu" and args.num_samples < 16:
        torch.set_num_threads(1)  # a step is too small to share
    pieces = stream_text(model, vocab, options, args.num_samples)
    shown = visible if sys.stdout.isatty() else str
    if args.num_samples == 1 and not args.json:
        (first,) = next(pieces)  # errors come before the prompt is echoed
        print(shown(options.prompt + first), end="", flush=True)
        for (piece,) in pieces:
            print(shown(piece), end="", flush=True)
        print()
        return
    for i, sample in enumerate(zip(*pieces, strict=True)):
        text, seed = "".join(sample), options.seed + i
        if args.json:
            print(json.dumps({"prompt": options.prompt, "text": text, "seed": seed}, ensure_ascii=False))
        else:
            print(f"--- sample {i + 1}, seed {seed} ---\n{shown(options.prompt + text)}")
