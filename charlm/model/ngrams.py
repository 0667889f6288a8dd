"""Counts of what follows the contexts of the training text, which the network's prediction is combined with.

One pass over a text counts in seconds what a network needs hours to learn. Shapes: T window, B lanes, V
vocabulary, S slots of a line.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from charlm.errors import CharlmError

BLOCK = 1 << 20  # symbols that are counted without a stop
SLOTS = 16  # of a line: 64 bytes, which a processor reads at once
COUNTS, SYMBOLS, CHECKS = 1 << 10, 1 << 11, 1 << 10  # a slot is (check · SYMBOLS + symbol) · COUNTS + count
_PRIME, _FACTOR = 2**31 - 1, 92821  # of the hash; products stay below 2^63
_LINE, _CHECK = 40503, 69621


class NGrams(nn.Module):
    """Counts of what followed the last few symbols, as evidence that corrects a network's prediction.

    From the shortest to the longest context, half of `longest` symbols to all of them, the probability p of a
    symbol becomes (count + g p) / (total + g): a Dirichlet prior (MacKay & Peto 1995) of strength g. That is
    learned: it depends on the network's output, and on how many kinds of symbols followed the context, which
    is what Witten & Bell (1991) took for it.

    A context is hashed to a line of a table, whose slots hold what followed it, and how often. Where a line
    is full, what occurred least makes way, so that the table need not grow with the text. Of contexts that
    never occurred about one in a hundred is taken for another.
    """

    def __init__(self, longest: int, lines: int, vocab_size: int, hidden_size: int):
        super().__init__()
        if vocab_size > SYMBOLS:
            advice = f"set vocab.max_size={SYMBOLS}, or model.ngrams=0"
            raise CharlmError(f"model.ngrams: at most {SYMBOLS} symbols, not {vocab_size}; {advice}")
        self.lengths, self.vocab_size = range((longest + 1) // 2, longest + 1), vocab_size
        self.table = nn.Parameter(torch.zeros(lines, SLOTS, dtype=torch.int32), requires_grad=False)
        # ln g = weight · output + bias[kinds], for every length
        self.weight = nn.Parameter(torch.zeros(len(self.lengths), hidden_size))
        kinds = torch.arange(SLOTS + 1.0).clamp(min=1)
        self.bias = nn.Parameter(kinds.log().repeat(len(self.lengths), 1))

    @torch.no_grad()
    def count(self, ids: np.ndarray) -> None:
        """Fill the table from a text, uint8[n] or uint16[n]; the same whatever the number of threads."""
        from charlm.corpus.kernels import compiled  # here: numba, which other models need not wait for

        table, loop = np.zeros(self.table.shape, np.int32), compiled(_count)
        parts = pairwise(np.linspace(0, len(table), torch.get_num_threads() + 1).astype(int))
        parts = [(self.lengths.start, self.lengths.stop, len(table), a, table[a:b]) for a, b in parts]
        with ThreadPoolExecutor(len(parts)) as pool:
            for low in range(0, len(ids) - 1, BLOCK):  # between two blocks a signal can end it
                list(pool.map(lambda part, low=low: loop(ids, low, low + BLOCK, *part), parts))
        self.table.copy_(torch.from_numpy(table))

    def forward(self, ids: Tensor, last: Tensor, targets: Tensor | None = None) -> tuple[list, Tensor]:
        """What followed the contexts that end with each symbol.

        ids: int64[T, B]. last: float32[B, longest - 1], the symbols before them, each plus 1, or 0 for none.
        Returns, for every length, (how often the targets, int64[T, B], followed: [T, B]; or all symbols: [T,
        B, V]; the sum over all symbols, [T, B] or [T, B, 1]; the kinds of symbols, int64[T, B]); and last of
        the next window.
        In training the text is the one that was counted: the occurrence that is to be predicted is left out.
        """
        longest = self.lengths[-1]
        codes = torch.cat([last.t().long(), ids + 1])
        found, hashed = [], torch.zeros_like(ids)
        for n in range(1, longest + 1):
            hashed = (hashed * _FACTOR + codes[longest - n : 1 - n or None]) % _PRIME
            if n not in self.lengths:
                continue
            slots = self.table[hashed * (2 * n + _LINE) % _PRIME % len(self.table)]  # [T, B, S]
            check = (hashed * _CHECK % _PRIME % CHECKS)[..., None]
            counts = torch.where(slots // (COUNTS * SYMBOLS) == check, slots % COUNTS, 0)
            symbols = slots // COUNTS % SYMBOLS
            total, kinds = counts.sum(-1), (counts > 0).sum(-1)
            if targets is None:
                count = torch.zeros(*ids.shape, self.vocab_size, device=ids.device)
                count = count.scatter_add(-1, symbols.long(), counts.float())
                total = total[..., None]
            else:
                count = torch.where(symbols == targets[..., None], counts, 0).sum(-1)
                if self.training:
                    own = (count > 0).long()
                    count, total, kinds = count - own, total - own, kinds - own * (count == own)
            found.append((count, total, kinds))
        return found, codes[1 - longest :].t().float()

    def combine(self, log_p: Tensor, found: list, h: Tensor) -> Tensor:
        """ln p after the evidence, float32. log_p: the network's, [T, B] of the targets or [T, B, V]. found:
        from forward. h: [T, B, H], the network's output."""
        strength, p = F.linear(h.float(), self.weight.float()), log_p.exp()
        for i, (count, total, kinds) in enumerate(found):
            bias = F.embedding(kinds, self.bias[i].float()[:, None])[..., 0]  # its gradient has a fixed order
            g = (strength[..., i] + bias).clamp(-12, 12).exp()
            g = g if p.ndim == g.ndim else g[..., None]
            p = (count + g * p) / (total + g)
        return p.clamp(min=1e-30).log()


def _count(ids, low, high, shortest, stop, lines, first, table):
    """Count the contexts of `shortest` to stop - 1 symbols that end in ids[low:high], if their lines are in
    table[m, S], which begins with line `first` of so many lines."""
    for t in range(low, min(high, len(ids) - 1)):
        hashed = 0
        for n in range(1, min(stop, t + 2)):
            hashed = (hashed * _FACTOR + np.int64(ids[t + 1 - n]) + 1) % _PRIME
            if n < shortest:
                continue
            line = hashed * (2 * n + _LINE) % _PRIME % lines - first
            if not 0 <= line < len(table):
                continue
            slots, check = table[line], hashed * _CHECK % _PRIME % CHECKS
            key, rarest = check * SYMBOLS + np.int64(ids[t + 1]), 0
            for k in range(SLOTS):
                if slots[k] // COUNTS == key and slots[k]:
                    rarest = k
                    break
                if slots[k] % COUNTS < slots[rarest] % COUNTS:
                    rarest = k
            known = slots[rarest] and slots[rarest] // COUNTS == key
            slots[rarest] = slots[rarest] + 1 if known else key * COUNTS + 1
            if slots[rarest] % COUNTS == COUNTS - 1:  # full: keep the proportions
                for k in range(SLOTS):
                    if slots[k] // (COUNTS * SYMBOLS) == check:
                        slots[k] -= slots[k] % COUNTS // 2
