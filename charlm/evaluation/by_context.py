"""How the loss falls with the number of characters that the model has read since its state was reset.

For every distance 1, 2 to 3, 4 to 7, … the text is read anew, from a state of zeros at many places, so that
every character is scored exactly once at such a distance. 2 to 3 characters after a reset:

    text   a b c d e f g h i
           a→b b→c c→d
               c→d d→e e→f          the first prediction after a reset is too near and not counted,
                   e→f f→g g→h      the next two are: c d, e f, g h

So all rows hold the same characters, but for the first few of the text, and beside each stands what the same
characters cost in one pass with the state carried from the start of the text: what differs is the state, not
the text. Distances are in symbols: a character that is spelled in bytes is several.
"""

from __future__ import annotations

import numpy as np
import torch

from charlm.config.fields import EvaluateConfig
from charlm.corpus.vocabulary import Vocab
from charlm.errors import CharlmError
from charlm.evaluation.evaluate import Sums, sizes, take
from charlm.model.char_lm import CharLM

AT_ONCE = 1 << 14  # symbols in one forward call


@torch.inference_mode()
def by_context(
    model: CharLM, vocab: Vocab, ids: np.ndarray, config: EvaluateConfig, longest: int = 4096
) -> list[dict]:
    """The loss at growing distances from a reset of the state.

    ids: uint8[n] or uint16[n]. longest: the last row starts at this distance at most, and where every row
    still holds half of the text. Of config only bptt is used. Reads the text about 2 log2(longest) times.

    Returns rows in the order of their distance, each a dict:
        characters_from, characters_to   the distance from the reset, both ends included
        nats_per_character               at that distance
        carried_nats_per_character       of the same characters, the state carried from the start of the text
        windows_nats_per_character       of windows of characters_to predictions, each from a state of zeros:
                                         the mean over all distances so far
        characters                       how many were counted
    Raises CharlmError for a text of fewer than 2 symbols.
    """
    targets = len(ids) - 1
    if targets < 1:
        raise CharlmError(f"a text of {len(ids)} symbol(s) cannot be evaluated: predicting takes 2 or more")
    training = model.training
    model.eval()
    try:
        carried = _nats(model, ids, np.zeros(1, np.int64), 0, targets, config.bptt)  # of ids[1:]
        rows, sofar = [], 0.0
        for width in (1 << k for k in range(longest.bit_length())):
            if width > max(1, targets // 2):
                break
            starts = np.arange(0, targets - width + 1, width)
            reset = _nats(model, ids, starts, width - 1, width, config.bptt)[: targets - width + 1]
            counted = sizes(vocab, ids[width:])
            ours, theirs = (
                Sums(float(nats.sum(dtype=np.float64)), *counted).figures()
                for nats in (reset, carried[width - 1 :])
            )
            sofar += width * ours["nats_per_character"]
            rows.append(
                {
                    "characters_from": width,
                    "characters_to": 2 * width - 1,
                    "nats_per_character": ours["nats_per_character"],
                    "carried_nats_per_character": theirs["nats_per_character"],
                    "windows_nats_per_character": sofar / (2 * width - 1),
                    "characters": ours["characters"],
                }
            )
    finally:
        model.train(training)
    return rows


def _nats(model: CharLM, ids: np.ndarray, starts: np.ndarray, skip: int, count: int, bptt: int) -> np.ndarray:
    """What predictions cost that follow a state of zeros.

    At each of starts, int64[N], the state is reset; skip predictions are not counted, the next count are.
    Returns float32[N * count] in the order of the starts; what lies behind the end of the text is to be cut.
    """
    length = skip + count
    lanes = max(1, AT_ONCE // min(length, bptt))
    told = np.empty((len(starts), count), np.float32)
    for first in range(0, len(starts), lanes):
        some = starts[first : first + lanes, None]
        carry = None
        for low in range(0, length, bptt):
            at = some + np.arange(low, min(low + bptt, length))
            x, y = take(ids, at, model.device), take(ids, at + 1, model.device)
            nats, carry = model(x, carry, y, reduction="none")
            unread = max(skip - low, 0)
            if unread < at.shape[1]:
                of = slice(max(low - skip, 0), max(low - skip, 0) + at.shape[1] - unread)
                told[first : first + lanes, of] = nats[:, unread:].float().cpu().numpy()
    return told.reshape(-1)


def table(rows: list[dict]) -> str:
    """The rows of by_context for people, 80 columns wide."""
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
