"""Drawing one symbol per row of logits: temperature, then top-k, then top-p, then a uniform number.

The symbol is where the uniform number falls among the cumulated probabilities. Compiled, because a row is so
small that calls of array libraries would take longer than the work.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from charlm.config.fields import SampleConfig
from charlm.corpus.kernels import compiled
from charlm.errors import CharlmError

BLOCK = 256  # uniform numbers drawn at a time


@compiled
def _draw(logits, order, temperature, top_k, top_p, uniform, shares, ids):
    """ids[N] from logits float32[N, V] and uniform float64[N]. Returns -1, or a row that is not finite.

    order: int64[N, V], the likeliest symbols first; int64[0, V] when neither top_k nor top_p leaves out any.
    shares: float64[V], overwritten.
    """
    size = logits.shape[1]
    for row in range(len(logits)):
        best = 0
        for i in range(size):
            if not math.isfinite(logits[row, i]):
                return row
            if logits[row, i] > logits[row, best]:
                best = i
        ids[row] = best
        if temperature == 0.0:
            continue
        total = 0.0
        for i in range(size):  # the likeliest at 0: a temperature near 0 overflows nothing
            shares[i] = math.exp((np.float64(logits[row, i]) - np.float64(logits[row, best])) / temperature)
            total += shares[i]
        if len(order) == 0:
            point, seen = uniform[row] * total, 0.0
            for i in range(size):
                seen += shares[i]
                if seen > point:
                    ids[row] = i
                    break
            continue
        total = 0.0
        for k in range(top_k):
            total += shares[order[row, k]]
        kept, seen = 0, 0.0
        while kept < top_k and (kept == 0 or seen < top_p * total):
            seen += shares[order[row, kept]]
            kept += 1
        point, seen = uniform[row] * seen, 0.0
        for k in range(kept):
            i = order[row, k]
            seen += shares[i]
            if seen > point:
                ids[row] = i
                break
    return -1


class Drawing:
    """Draws for so many samples, each with random numbers of its own seed: config.seed, and one up for each.

    They are torch's on the CPU, so that a seed draws the same on every device.
    """

    def __init__(self, config: SampleConfig, num_samples: int, vocab_size: int):
        self.generators = [torch.Generator().manual_seed(config.seed + i) for i in range(num_samples)]
        top_k = vocab_size if config.top_k is None else min(config.top_k, vocab_size)
        top_p = 1.0 if config.top_p is None else config.top_p
        self.options = (float(config.temperature), top_k, float(top_p))
        self._sorts = top_k < vocab_size or top_p < 1
        self._unsorted = np.empty((0, vocab_size), np.int64)
        self.ids, self.shares = np.zeros(num_samples, np.int64), np.empty(vocab_size)
        self._uniform, self._next = np.empty((BLOCK, num_samples)), BLOCK

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """logits float32[N, V] → int64[N], overwritten by the next draw. Raises CharlmError if not finite."""
        if self._next == BLOCK:
            for i, generator in enumerate(self.generators):
                self._uniform[:, i] = torch.rand(BLOCK, generator=generator, dtype=torch.float64).numpy()
            self._next = 0
        # Stable: of equally likely symbols the first counts as likelier.
        order = np.argsort(-logits, axis=1, kind="stable") if self._sorts else self._unsorted
        bad = _draw(logits, order, *self.options, self._uniform[self._next], self.shares, self.ids)
        if bad >= 0:
            raise CharlmError("the model's logits are not finite: take weights from before it diverged")
        self._next += 1
        return self.ids
