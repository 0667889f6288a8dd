"""What followed the same symbols before, in the training text or in this one, corrects a prediction.

One pass over a text counts in seconds what a network needs hours to learn. Shapes: T window, B lanes, V
vocabulary, S slots of a line.
"""

from collections.abc import Iterable, Iterator, Sequence
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


class Evidence(nn.Module):
    """What followed the last few symbols before, as evidence that corrects a network's prediction.

    From the shortest to the longest context, the probability p of a symbol becomes (count + g p) / (total +
    g): a Dirichlet prior (MacKay & Peto 1995) of strength g. That is learned: ln g = weight · output +
    bias[kind], for every length, where a kind says something of how sure the evidence is.
    """

    def __init__(self, lengths: Sequence[int], bias: Tensor, hidden_size: int):
        super().__init__()
        self.lengths = lengths
        self.weight = nn.Parameter(torch.zeros(len(lengths), hidden_size))
        self.bias = nn.Parameter(bias.repeat(len(lengths), 1))

    def combine(self, log_p: Tensor, found: Iterable, h: Tensor) -> Tensor:
        """ln p after the evidence, float32. log_p: the network's, [T, B] of the targets or [T, B, V]. found:
        from forward. h: [T, B, H], the network's output."""
        strength, p = F.linear(h.float(), self.weight.float()), log_p.exp()
        for i, (count, total, kinds) in enumerate(found):
            bias = F.embedding(kinds, self.bias[i].float()[:, None])[..., 0]  # its gradient has a fixed order
            g = (strength[..., i] + bias).clamp(-12, 12).exp()
            g = g if p.ndim == g.ndim else g[..., None]
            p = torch.where(total > 0, (count + g * p) / (total + g), p)  # exactly: else g learns from noise
        return p.clamp(min=1e-30).log()


class NGrams(Evidence):
    """Counts from the training text, after contexts of half of `longest` symbols to all of them. A kind is
    how many kinds of symbols followed the context, which is what Witten & Bell (1991) took for g.

    A context is hashed to a line of a table, whose slots hold what followed it, and how often. Where a line
    is full, what occurred least makes way, so that the table need not grow with the text. Of contexts that
    never occurred about one in a hundred is taken for another.
    """

    def __init__(self, longest: int, lines: int, vocab_size: int, hidden_size: int):
        if vocab_size > SYMBOLS:
            advice = f"set vocab.max_size={SYMBOLS}, or model.ngrams=0"
            raise CharlmError(f"model.ngrams: at most {SYMBOLS} symbols, not {vocab_size}; {advice}")
        kinds = torch.arange(SLOTS + 1.0).clamp(min=1)
        super().__init__(range((longest + 1) // 2, longest + 1), kinds.log(), hidden_size)
        self.vocab_size, self.carried = vocab_size, longest - 1
        self.table = nn.Parameter(torch.zeros(lines, SLOTS, dtype=torch.int32), requires_grad=False)

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


class Recall(Evidence):
    """What followed the same 2 to 8 symbols the last time, in the text that is being read: names and phrases
    come again. A kind is how many predictions in a row have been right.

    A hash table of so many slots for every length holds what followed; what comes later takes the place of
    what was there. It is part of the carry, with what the next window has to know of this one:

        float32[B, K · slots + 1 + 8 + K]    K lengths

    what followed, and a check of its context; 0 for what is not kept; the last symbols, each plus 1; for
    every length, how many predictions in a row were right.
    """

    def __init__(self, slots: int, vocab_size: int, hidden_size: int):
        super().__init__((2, 3, 4, 5, 6, 8), 2 - torch.arange(16.0).log1p(), hidden_size)
        self.slots, self.vocab_size = slots, vocab_size
        self.parts = [len(self.lengths) * slots, 1, self.lengths[-1], len(self.lengths)]
        self.carried = sum(self.parts)

    def forward(self, ids: Tensor, memory: Tensor, targets: Tensor | None = None) -> tuple[Iterable, Tensor]:
        """As NGrams.forward, with the part of the carry that is described above as memory."""
        (T, B), longest, symbols = ids.shape, self.lengths[-1], self.vocab_size + 1
        table, _, last, right = memory.split(self.parts, -1)
        codes = torch.cat([last.long(), ids.t() + 1], 1)  # [B, longest + T]
        # Of every context that ends with the symbol before the window or one in it: [B, K, T + 1].
        hashed, contexts = torch.zeros_like(codes[:, longest - 1 :]), []
        for n in range(1, longest + 1):
            hashed = (hashed * _FACTOR + codes[:, longest - n :][:, : T + 1]) % _PRIME
            contexts += [hashed] * (n in self.lengths)
        hashed = torch.stack(contexts, 1)
        check = hashed % (2**24 // symbols)  # float32 holds 24 bits
        slot = hashed * _LINE % _PRIME % self.slots
        slot = slot + self.slots * torch.arange(len(contexts), device=ids.device)[:, None]
        entry = check[..., :T] * symbols + codes[:, None, longest:]
        # The context before with the same slot: in the window, else in the table.
        order = (slot * (T + 1) + torch.arange(T + 1, device=ids.device)).sort(-1).values
        same = F.pad(order[..., 1:] // (T + 1) == order[..., :-1] // (T + 1), (1, 0))
        order = order % (T + 1)
        before = torch.where(same, order.roll(1, -1), -1)
        before = torch.empty_like(order).scatter(-1, order, before)
        found = table.gather(-1, slot.flatten(1)).long().view(slot.shape)
        found = torch.where(before < 0, found, entry.gather(-1, before.clamp(min=0)))
        # What comes next, plus 1; 0: unknown.
        found = torch.where(found // symbols == check, found % symbols, 0)
        hit = found[..., :-1] == codes[:, None, longest:]
        most = len(self.bias[0]) - 1
        hits = torch.cat([torch.arange(most, 0, -1, device=ids.device) <= right[..., None], hit], -1)
        row, right = torch.ones_like(hit), torch.zeros_like(entry)
        for back in range(most):  # ONNX has no cummax
            row = row & hits[..., most - back :][..., :T]
            right = right + row
        # Of the contexts of one slot, the last one stays. All is written at once: the memory is large.
        replaced = torch.where(before < 0, T, before)[..., :T]
        stays = torch.ones_like(order).scatter(-1, replaced, 0)[..., :T] > 0
        at = torch.where(stays, slot[..., :T], self.parts[0]).flatten(1)
        rest = torch.arange(self.parts[0] + 1, self.carried, device=ids.device).expand(B, -1)
        new = [(entry * stays).flatten(1), codes[:, -longest:], right[..., -1]]
        memory = memory.scatter(-1, torch.cat([at, rest], 1), torch.cat(new, 1).float())
        return self._evidence(found[..., 1:].permute(1, 2, 0), right.permute(1, 2, 0), targets), memory

    def memories(self, ids: np.ndarray, places: np.ndarray) -> Tensor:
        """float32[N, ·], the memory at each of these places in a text, int64[N], in order: of all that comes
        before, or of the last 16 · slots symbols."""
        memory = empty = torch.zeros(1, self.carried, device=self.weight.device)
        at, found, enough = 0, [], 16 * self.slots
        for place in places.tolist():
            if place - at > enough:
                at, memory = place - enough, empty
            for low in range(at, place, 4095):  # a GPU sorts 4096 contexts in one small kernel
                part = torch.from_numpy(ids[low : min(low + 4095, place)].astype(np.int64)).to(empty.device)
                memory = self(part[:, None], memory)[1]
            found.append(memory)
            at = place
        return torch.cat(found)

    def _evidence(self, codes: Tensor, kinds: Tensor, targets: Tensor | None) -> Iterator[tuple]:
        """For every length (count, total, kind): one at a time, as counts of all symbols are large."""
        for code, kind in zip(codes, kinds, strict=True):
            known = (code > 0).float()
            if targets is None:
                count = torch.zeros(*code.shape, self.vocab_size + 1, device=code.device)
                yield count.scatter(-1, code[..., None], 1.0)[..., 1:], known[..., None], kind
            else:
                yield (code == targets + 1).float(), known, kind


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
