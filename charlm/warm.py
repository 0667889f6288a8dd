"""A warm start: the weights of another model, its symbols matched with ours by what they spell."""

from __future__ import annotations

import torch

from charlm.config import CharlmError, flatten
from charlm.model import CharLM
from charlm.trained import open_trained
from charlm.vocab import Vocab, name_of

SAME = (
    "cell",
    "nonlinearity",
    "embedding_size",
    "hidden_size",
    "num_layers",
    "tie_weights",
    "norm",
    "residual",
)


def warm_start(model: CharLM, vocab: Vocab, where: str) -> str:
    """Copy the weights of a trained model into a fresh one; returns what was done, for people.

    where: a run directory, a model folder or a hub id. Rows of embedding and output (or columns of the first
    layer, when the input is one-hot) go to the symbol that spells the same bytes: a character, or the byte
    symbol of a bytes-only vocabulary. Symbols the other model does not know keep their fresh rows.
    Raises CharlmError when sizes differ, naming them, or no symbol is common.
    """
    other, known, _ = open_trained(where, "cpu")
    ours, theirs = flatten(model.config), flatten(other.config)
    differ = [
        f"model.{key} is {ours[key]!r}, there {theirs[key]!r}" for key in SAME if ours[key] != theirs[key]
    ]
    if differ:
        raise CharlmError(
            f"train.init_from={where}: its weights do not fit: {', '.join(differ)}; take those values"
        )
    place = {spelled: index for index, spelled in enumerate(known.spelling)}
    pairs = [(i, place[s]) for i, s in enumerate(vocab.spelling) if s in place]
    if not any(vocab.spelling[i] for i, _ in pairs):
        raise CharlmError(
            f"train.init_from={where}: its vocabulary ({known}) has no character of ours ({vocab})"
        )
    to, source = (torch.tensor(index) for index in zip(*pairs, strict=True))
    rows = {"input.weight", "output.weight", "output.bias"}
    weights = dict(other.named_parameters())
    with torch.no_grad():
        for name, p in model.named_parameters():
            theirs = weights[name].to(p.device)
            if name in rows:
                p[to.to(p.device)] = theirs[source.to(p.device)]
            elif name == "layers.0.weight_ih_l0" and not model.config.embedding_size:
                p[:, to.to(p.device)] = theirs[:, source.to(p.device)]
            else:
                p.copy_(theirs)
    new = [i for i in range(len(vocab)) if i not in set(to.tolist())]
    lost = [i for i in range(len(known)) if i not in set(source.tolist())]
    return (
        f"warm start from {where}: {len(pairs)} of {len(vocab)} symbols have its rows; "
        f"{len(new)} new, with fresh rows{_named(vocab, new)}; "
        f"{len(lost)} of its own dropped{_named(known, lost)}"
    )


def _named(vocab: Vocab, ids: list[int], most: int = 10) -> str:
    """The first few of some symbols, as people know them."""

    def name(i: int) -> str:
        if i < len(vocab.characters):
            return name_of(vocab.characters[i])
        return "the end of a document" if i == vocab.end else f"byte {vocab.spelling[i].hex()}"

    names = [name(i) for i in ids[:most]] + (["…"] if len(ids) > most else [])
    return f" ({', '.join(names)})" if names else ""
