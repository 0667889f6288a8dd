"""AdamW by torch's fused kernel and nothing else: what torch.optim.AdamW(fused=True) computes, to the bit.

torch.optim's own classes import torch's compiler in their first call, which takes longer than all the rest of
a start, and ask in every step what might be asked of them. State and groups have the same names, so that
checkpoints fit both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class AdamW(torch.optim.Optimizer):
    """Decoupled weight decay (Loshchilov & Hutter 2019) on Adam (Kingma & Ba 2015); without decay it is Adam.

    groups: of parameters of one device, each group with its weight_decay. A parameter without a gradient is
    passed over, and state is made with the first gradient.
    """

    _step_supports_amp_scaling = True  # torch's gradient scaler leaves skipping a step to the kernel then

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def add_param_group(self, param_group: dict) -> None:
        """A group of parameters; what it does not say is as everywhere."""
        self.param_groups.append(self.defaults | param_group)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """One update of all parameters, one kernel per group."""
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for group in self.param_groups:
            some = [p for p in group["params"] if p.grad is not None]
            if not some:
                continue
            states = [self.state[p] or self._begin(p) for p in some]
            moments, squares, steps = ([s[k] for s in states] for k in ("exp_avg", "exp_avg_sq", "step"))
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                some,
                [p.grad for p in some],
                moments,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=scale,
                found_inf=overflow,
            )
            if overflow is not None:
                torch._foreach_sub_(steps, [overflow] * len(steps))

    def _begin(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[p]
        state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        return state
