"""A moving average of the weights, which is what is evaluated, sampled and kept (Polyak & Juditsky 1992).

The last weights of a run jitter around where they are heading; their average does not. A young average would
still be full of the first weights, so that its decay rises with the steps: min(decay, (1 + n) / (10 + n))
after n steps.
"""

from __future__ import annotations

import torch

from charlm.model import CharLM


class Average:
    """The exponential moving average of a model's weights, in a model of its own."""

    def __init__(self, model: CharLM, decay: float):
        """Begins with the weights of the moment. Takes random numbers of torch."""
        self.decay = decay
        self.model = CharLM(model.config, model.vocab_size).to(model.device).eval()
        self.model.compute_dtype = model.compute_dtype
        self._into = [p.requires_grad_(False) for p in self.model.parameters()]
        self.begin(model)

    @torch.no_grad()
    def begin(self, model: CharLM) -> None:
        """Begin anew from the weights of a model."""
        torch._foreach_copy_(self._into, list(model.parameters()))

    @torch.no_grad()
    def update(self, model: CharLM, step: int) -> None:
        """Take the weights after a step in; 1 is the first."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._into, list(model.parameters()), 1 - decay)
