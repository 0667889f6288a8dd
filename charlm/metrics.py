"""Figures: nats, characters and bytes are summed, over lanes, windows and ranks, and divided once."""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass

import torch

LN2 = math.log(2)


@dataclass
class Sums:
    """What a pass over text adds up. nats: the loss; the others: what it was counted on."""

    nats: float = 0.0
    symbols: float = 0
    characters: float = 0
    bytes: float = 0

    def figures(self) -> dict[str, float]:
        """nats/char, bits per character (bpc), bits per byte (bpb), perplexity per character, and counts.

        The cost of end-of-document symbols is in the nats; they count as no character and no byte.
        """
        characters, size = max(self.characters, 1), max(self.bytes, 1)
        nats = self.nats / characters
        return {
            "nats_per_character": nats,
            "bpc": nats / LN2,
            "bpb": self.nats / size / LN2,
            "perplexity": math.exp(min(nats, 700.0)),
            "symbols": int(self.symbols),
            "characters": int(self.characters),
            "bytes": int(self.bytes),
        }


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
