"""What to expect of training on GPUs: computed from a few measured figures and assumptions.

A step takes as long as its matrix products, or as its recurrence, which cannot go faster than the recurrent
weights are read once per character and pass, whichever is longer; then the gradients are averaged. They all
come at the end of the window, so that nothing hides their way.
"""

from __future__ import annotations

import torch

from charlm.config.fields import Config
from charlm.config.parse import load_config

PEAK = 790e12  # FLOP/s: bf16 matrix products as measured on an H100, and on an H200
USED = 0.57  # share of it that training reached on an H100: 3 × LSTM 2048, 1,024 lanes × 256
MEMORY = 4.8e12  # bytes/s of an H200, by its data sheet
LAUNCH = 7e-6  # seconds that a step of a small recurrence took on an H100, each way
GPUS = (1, 8, 64)
NODE = 8  # GPUs
WITHIN, BETWEEN = 300e9, 40e9  # bytes/s of an all-reduce on each GPU, in a node and across nodes: assumptions
LANES = 512  # per GPU, where the batch is not the config's

ASSUMED = (
    f"computed, not measured: {PEAK / 1e12:.0f} TFLOP/s (bf16 products on an H100), {USED:.0%} of it used, "
    f"{MEMORY / 1e12:g} TB/s of memory,\n{LAUNCH * 1e6:g} µs per step of a recurrence, gradients in fp32 "
    f"at {WITHIN / 1e9:.0f} GB/s in a node of {NODE} GPUs, {BETWEEN / 1e9:.0f} GB/s across nodes"
)


def sizes_of(config: Config) -> tuple[int, int]:
    """(weights that are multiplied, all parameters) of a config whose vocabulary is full."""
    from charlm import CharLM

    with torch.device("meta"):  # shapes alone: the weights of the largest would take seconds to draw
        model = CharLM(config.model, config.vocab.max_size)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    lookup = sizes.get("input.weight", 0)
    biases = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    return sum(sizes.values()) - lookup - biases, sum(sizes.values())


def row(name: str, config: Config, gpus: int, lanes: int) -> dict:
    """Times in seconds of a step on so many GPUs with so many lanes on each."""
    multiplied, parameters = sizes_of(config)
    from charlm.model.cells import cell_of

    model, bptt = config.model, config.train.bptt
    products = 6 * multiplied * lanes * bptt / (USED * PEAK)
    gates = cell_of(model).gates
    weights = 2 * gates * model.hidden_size**2  # bytes of a layer's recurrent weights in bf16
    recurrence = 2 * bptt * model.num_layers * max(LAUNCH, weights / MEMORY)  # there and back
    sent = 4 * parameters
    pace = WITHIN if gpus <= NODE else BETWEEN
    reduce = 2 * (gpus - 1) / gpus * sent / pace
    seconds = max(products, recurrence) + reduce
    speed = gpus * lanes * bptt / seconds
    everything = config.train.steps * config.train.batch_size * bptt
    return {
        "config": name,
        "gpus": gpus,
        "lanes_per_gpu": lanes,
        "parameters": parameters,
        "gradient_bytes": sent,
        "products_s": products,
        "recurrence_s": recurrence,
        "all_reduce_s": reduce,
        "characters_per_second": speed,
        "hours": everything / speed / 3600,
        "computed": True,
    }


def rows() -> list[dict]:
    """The shipped Wikipedia configs on 1, 8 and 64 GPUs: their own batch, and as many lanes as fill a GPU."""
    told = []
    for name in ("wikipedia-simple", "wikipedia-en"):
        config = load_config(name)
        for fixed in (True, False):
            lanes = [config.train.batch_size // gpus if fixed else LANES for gpus in GPUS]
            some = [row(name, config, *both) for both in zip(GPUS, lanes, strict=True)]
            one = some[0]["characters_per_second"]
            told += [r | {"times_one": r["characters_per_second"] / one} for r in some]
    return told


def print_table(told: list[dict]) -> None:
    print(ASSUMED)
    heads = ("lanes/GPU", "products", "recurrence", "all-reduce", "characters/s", "× 1 GPU", "hours")
    print(f"{'ms per step':<18}{'GPUs':>5}" + "".join(f"{h:>{max(10, len(h) + 2)}}" for h in heads))
    for r in told:
        ms = [f"{1000 * r[k]:.1f}" for k in ("products_s", "recurrence_s", "all_reduce_s")]
        cells = [str(r["lanes_per_gpu"]), *ms, f"{r['characters_per_second']:,.0f}"]
        cells += [f"{r['times_one']:.1f}", f"{r['hours']:.2f}"]
        line = "".join(f"{c:>{max(10, len(h) + 2)}}" for c, h in zip(cells, heads, strict=True))
        print(f"{r['config']:<18}{r['gpus']:>5}{line}")
