"""model.size: one word for what belongs together when a model grows.

Width, depth, lanes, window, learning rate and regularisation: a wider model learns at a lower rate, more
lanes bear a higher one (see optim.learning_rate). small is near what was measured (configs/LOG.md); the
others follow from it by those rules, and are not yet run in full.
"""

from __future__ import annotations

from typing import Any


def _size(
    embedding: int, hidden: int, layers: int, dropout: float, rate: float, warmup: int, lanes: int, bptt: int
) -> dict[str, dict[str, Any]]:
    """Section → field → value; every size sets the same fields."""
    return {
        "model": {
            "embedding_size": embedding,
            "hidden_size": hidden,
            "num_layers": layers,
            "dropout": dropout,
            "input_dropout": 0.0,
            "output_dropout": dropout,
            "locked_dropout": True,
        },
        "optim": {"learning_rate": rate, "warmup_steps": warmup, "weight_decay": 0.1, "average": 0.998},
        "train": {"batch_size": lanes, "bptt": bptt},
    }


SIZES = {
    "tiny": _size(32, 128, 1, 0.0, 1e-2, 100, 16, 64),
    "small": _size(64, 384, 1, 0.1, 6e-3, 200, 16, 64),
    "base": _size(128, 768, 2, 0.1, 3e-3, 500, 64, 128),
    "large": _size(256, 2048, 3, 0.2, 2e-3, 1000, 256, 256),
    "xl": _size(512, 4096, 3, 0.1, 1e-3, 2000, 1024, 256),
}


def expanded(tree: dict[str, Any]) -> dict[str, Any]:
    """A config's tree with what its model.size stands for, beneath what the tree says itself."""
    size = (tree.get("model") or {}).get("size")
    preset = SIZES.get(size, {}) if isinstance(size, str) else {}
    return tree | {section: values | (tree.get(section) or {}) for section, values in preset.items()}


def spelled_out(words: list[str]) -> list[str]:
    """Command-line words with what a --model.size among them stands for.

    Its fields come after every --config, over the fields of the files, and leave out those that have words
    of their own, wherever these stand.
    """
    size, others, rest = None, [], iter(words)
    for word in rest:
        if word.startswith("--model.size="):
            size = word.partition("=")[2]
        elif word == "--model.size":
            size = next(rest, None)
            if size is None:
                return words  # for the parser to refuse
        else:
            others.append(word)
    if size is None:
        return words
    named = {word[2:].partition("=")[0] for word in others if word.startswith("--")}
    fields = {f"{s}.{name}": v for s, values in SIZES.get(size, {}).items() for name, v in values.items()}
    added = [f"--{key}={str(value).lower()}" for key, value in fields.items() if key not in named]
    at = max((i for i, word in enumerate(others, 1) if word.startswith("--config=")), default=0)
    return [*others[:at], f"--model.size={size}", *added, *others[at:]]
