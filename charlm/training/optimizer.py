"""The learning rate at a step (a pure function: nothing to save), the optimizer, the average of weights."""

import copy
import math

import torch
from torch import nn

from charlm.config.fields import OptimConfig
from charlm.model.char_lm import CharLM
from charlm.model.evidence import Evidence


def learning_rate(step: int, optim: OptimConfig, steps: int | None) -> float:
    """Learning rate of a step (0 is the first) in a run of `steps`; None: not known yet.

    Linear warm-up to optim.learning_rate, then cosine (Loshchilov & Hutter 2017), linear or no decay to
    final_ratio of it at the last step. While the last step is not known, it does not fall.
    """
    if step < optim.warmup_steps:
        return optim.learning_rate * (step + 1) / optim.warmup_steps
    if steps is None:
        return optim.learning_rate
    last = steps - 1 - optim.warmup_steps
    done = min(1.0, (step - optim.warmup_steps) / last) if last > 0 else 1.0 if steps > 1 else 0.0
    fall = {"constant": 0.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}[optim.schedule]
    return optim.learning_rate * (1 - (1 - optim.final_ratio) * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """The same learning rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = value


def make_optimizer(model: nn.Module, optim: OptimConfig) -> "AdamW":
    """The optimizer of a config: AdamW, or Adam, which is AdamW without decay. Matrices that are multiplied
    decay; biases and the embedding do not, and form a group without."""
    others = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    others |= {id(m.bias) for m in model.modules() if isinstance(m, Evidence)}
    parts = {optim.weight_decay: [], 0.0: []}
    for p in model.parameters():
        if p.requires_grad:
            parts[optim.weight_decay if p.ndim > 1 and id(p) not in others else 0.0].append(p)
    groups = [{"params": group, "weight_decay": decay} for decay, group in parts.items() if group]
    return AdamW(groups, {"lr": optim.learning_rate, "betas": optim.betas, "eps": optim.eps})


class AdamW(torch.optim.Optimizer):
    """Decoupled weight decay (Loshchilov & Hutter 2019) on Adam (Kingma & Ba 2015); without decay it is Adam.

    Computes what torch.optim.AdamW(fused=True) does, to the bit, by the same kernel, with the same names of
    state and groups. torch.optim's own class imports torch's compiler in its first call, which takes longer
    than the rest of a start (2 s), and checks in every step what is checked once here.

    AdamW(groups, {"lr": …, "betas": …, "eps": …}): groups of parameters of one device, each with its
    weight_decay. A parameter without a gradient is skipped; its state is made with its first gradient.
    """

    _step_supports_amp_scaling = True  # the kernel skips a step whose gradients overflowed

    def add_param_group(self, param_group: dict) -> None:
        """A group of parameters; options that it does not set are the defaults."""
        self.param_groups.append(self.defaults | param_group)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update of all parameters, one kernel per group."""
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = [self.state[p] or self._new_state(p) for p in parameters]
            moments, squares, steps = ([s[k] for s in states] for k in ("exp_avg", "exp_avg_sq", "step"))
            torch._foreach_add_(steps, 1)
            tensors = (parameters, [p.grad for p in parameters], moments, squares, [], steps)
            options = {k: group[k] for k in ("lr", "weight_decay", "eps")}
            options |= dict(zip(("beta1", "beta2"), group["betas"], strict=True))
            options |= {"amsgrad": False, "maximize": False, "grad_scale": scale, "found_inf": overflow}
            torch._fused_adamw_(*tensors, **options)
            if overflow is not None:
                torch._foreach_sub_(steps, [overflow] * len(steps))

    def _new_state(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        step = torch.zeros((), dtype=torch.float32, device=p.device)
        self.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return self.state[p]


def averaged(model: CharLM) -> dict[str, nn.Parameter]:
    """The parameters that are trained and averaged, by name: all but the counts of n-grams."""
    return {name: p for name, p in model.named_parameters() if p.is_floating_point()}


class Average:
    """The exponential moving average of a model's weights (Polyak & Juditsky 1992), in a model of its own.

    The last weights of a run jitter around where they are heading; their average does not. An average of few
    steps would still be full of the first weights, so the decay rises with the steps: min(decay, (1 + n) /
    (10 + n)) after n steps. The two share the counts of n-grams.
    """

    def __init__(self, model: CharLM, decay: float):
        """Starts from the model's weights."""
        self.decay = decay
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.model = copy.deepcopy(model, shared).eval().to(model.device)  # lays the weights out for cuDNN
        self._weights = [p.requires_grad_(False) for p in averaged(self.model).values()]

    @torch.no_grad()
    def update(self, model: CharLM, step: int) -> None:
        """Include the weights after a step; 1 is the first."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._weights, list(averaged(model).values()), 1 - decay)
