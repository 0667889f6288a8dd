"""A step on tensors that stay where they are, so that a GPU can record it once and replay it (a CUDA graph).

For small models the kernels of a step run shorter than it takes to launch them one by one; a replay launches
them all at once. On a CPU the same step runs from the same tensors, without a recording.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from charlm.model.device import record_cuda_graph

Carry = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, Carry], tuple[Tensor, Tensor, Carry]]


class Recorded:
    """step(x, y, carry) → (loss, norm, carry), with gradients left in the model's parameters.

    x, y: int64[B, T]; carry: [L, B, H] each, as every later call will have them. The step may not wait for
    the GPU. Of random numbers a recording takes as many as the step itself would.
    """

    def __init__(self, step: Step, model: nn.Module, x: Tensor, y: Tensor, carry: Carry):
        self.step, self.model = step, model
        self.inputs = [t.clone(memory_format=torch.contiguous_format) for t in (x, y, *carry)]
        self.graph = record_cuda_graph(self._run, x.device) if x.is_cuda else None

    def __call__(self, x: Tensor, y: Tensor, carry: Carry) -> tuple[Tensor, Tensor, Carry]:
        """The carry is overwritten by the next call, loss and norm are not."""
        for into, value in zip(self.inputs, (x, y, *carry), strict=True):
            into.copy_(value)
        if self.graph is None:
            self._run()
        else:
            self.graph.replay()
        loss, norm, carry = self.outputs
        return loss.clone(), norm.clone(), carry

    def _run(self) -> None:
        """Gradients start at None: what a recording writes then are always the same tensors."""
        self.model.zero_grad(set_to_none=True)
        x, y, *carry = self.inputs
        self.outputs = self.step(x, y, tuple(carry))
