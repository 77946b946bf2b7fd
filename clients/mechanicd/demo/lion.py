"""Lion as a plain torch.optim.Optimizer. MECHANIC wraps it like any other."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Moves each parameter by the sign of an interpolation between its momentum and its gradient.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, Algorithm 2:

        c ← β₁ m + (1 − β₁) g
        x ← x − lr·(sign(c) + weight_decay·x)
        m ← β₂ m + (1 − β₂) g

    Args:
        params: as for every optimizer.
        lr: a third to a tenth of AdamW's.
        betas: (β₁, β₂).
        weight_decay: decoupled from the gradient.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0.0:
            raise ValueError(f"lr is {lr}; expected 0 or more")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas are {betas}; expected two numbers in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is not None:
                    self._update(x, x.grad, group)
        return loss

    def _update(self, x: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        state = self.state[x]
        if not state:
            state["m"] = torch.zeros_like(x)
        m = state["m"]
        c = torch.lerp(g, m, beta1)
        x.mul_(1.0 - lr * group["weight_decay"]).add_(c.sign_(), alpha=-lr)
        m.lerp_(g, 1.0 - beta2)
