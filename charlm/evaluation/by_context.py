"""How the loss falls with the number of characters that the model has read since its carry was reset.

For every distance 1, 2 to 3, 4 to 7, … the text is read again, from a carry of zeros at many places, so that
every character is scored exactly once at such a distance. 2 to 3 characters after a reset:

    text   a b c d e f g h i
           a→b b→c c→d
               c→d d→e e→f          the first prediction after a reset is too near and not counted,
                   e→f f→g g→h      the next two are: c d, e f, g h

So all rows score the same characters, but for the first few of the text, and each has the cost of these
characters in one pass from the start of the text, too: the carry differs, not the text. Distances are in
symbols: a character that is spelled in bytes is several.
"""

import numpy as np
import torch

from charlm.config.fields import EvaluateConfig
from charlm.corpus.vocabulary import Vocab
from charlm.evaluation.evaluate import counts, nats_of, side_by_side, targets_of
from charlm.model.char_lm import CharLM

AT_ONCE = 1 << 14  # symbols in one forward call


@torch.inference_mode()
def by_context(
    model: CharLM, vocab: Vocab, ids: np.ndarray, config: EvaluateConfig, longest: int = 4096
) -> list[dict]:
    """The loss at growing distances from a reset of the carry.

    ids: uint8[n] or uint16[n]. longest: the last row starts at this distance at most, and where every row
    still holds half of the text. Of config only bptt is used. Reads the text about 2 log2(longest) times.

    Returns rows in the order of their distance, each a dict:
        characters_from, characters_to   the distance from the reset, both ends included
        nats_per_character               at that distance
        carried_nats_per_character       of the same characters, without a reset since the start of the text
        windows_nats_per_character       of windows of characters_to predictions, each from a carry of zeros:
                                         the mean over all distances so far
        characters                       how many were counted
    Raises CharlmError for a text of fewer than 2 symbols.
    """
    targets, rows, total = targets_of(ids), [], 0.0
    with model.evaluating():
        carried = nats_of(model, ids, np.zeros(1, np.int64), targets, config.bptt)[0]
        for width in (1 << k for k in range(longest.bit_length())):
            if width > max(1, targets // 2):
                break
            starts, length = np.arange(0, targets - width + 1, width), 2 * width - 1
            lanes = side_by_side(model, AT_ONCE, min(length, config.bptt))
            parts = np.split(starts, range(lanes, len(starts), lanes))
            costs = [nats_of(model, ids, part, length, config.bptt)[:, width - 1 :].ravel() for part in parts]
            both = np.concatenate(costs)[: targets - width + 1], carried[width - 1 :]
            _, characters, _ = counts(vocab, ids[width:])
            ours, theirs = (float(nats.sum(dtype=np.float64)) / max(characters, 1) for nats in both)
            total += width * ours
            row = {"characters_from": width, "characters_to": length, "nats_per_character": ours}
            row |= {"carried_nats_per_character": theirs, "windows_nats_per_character": total / length}
            rows.append(row | {"characters": characters})
    return rows


def table(rows: list[dict]) -> str:
    """The rows of by_context as text, 80 columns wide."""
    lines = [
        "characters read   of the text       state carried from             windows this",
        "since the reset       counted       reset    the start       lost   long, reset",
    ]
    for row in rows:
        low, high = row["characters_from"], row["characters_to"]
        ours, theirs = row["nats_per_character"], row["carried_nats_per_character"]
        lines.append(
            f"{f'{low:,}' if low == high else f'{low:,} to {high:,}':<16}{row['characters']:>13,}"
            f"{ours:>12.4f}{theirs:>13.4f}{ours - theirs:>+11.4f}{row['windows_nats_per_character']:>14.4f}"
        )
    return "\n".join(lines)
