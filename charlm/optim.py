"""The optimizer, and the learning rate at a step: a pure function, so that there is no schedule to save."""

from __future__ import annotations

import math

import torch
from torch import nn

from charlm.adam import AdamW
from charlm.config import OptimConfig


def learning_rate(step: int, optim: OptimConfig, steps: int) -> float:
    """Learning rate of a step (0 is the first) in a run of `steps`.

    Linear warm-up to optim.learning_rate, then cosine (Loshchilov & Hutter 2017), linear or no decay to
    final_ratio of it at the last step.
    """
    if step < optim.warmup_steps:
        return optim.learning_rate * (step + 1) / optim.warmup_steps
    last = steps - 1 - optim.warmup_steps
    done = min(1.0, (step - optim.warmup_steps) / last) if last > 0 else 1.0 if steps > 1 else 0.0
    fall = {"constant": 0.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}[optim.schedule]
    return optim.learning_rate * (1 - (1 - optim.final_ratio) * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """The same learning rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices that are multiplied decay; biases and the embedding do not. Without decay: one group."""
    if not weight_decay:
        return [{"params": list(model.parameters()), "weight_decay": 0.0}]
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters = list(model.parameters())
    decays = [p for p in parameters if p.ndim > 1 and id(p) not in embeddings]
    others = [p for p in parameters if p.ndim <= 1 or id(p) in embeddings]
    groups = [{"params": decays, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, optim: OptimConfig) -> AdamW:
    """AdamW, or Adam, which is the same without decay."""
    groups = parameter_groups(model, optim.weight_decay)
    return AdamW(groups, lr=optim.learning_rate, betas=optim.betas, eps=optim.eps)
