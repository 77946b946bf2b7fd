"""torch's ASGD as BASE: its average of the weights, state["ax"], is one of the weights as S places them.

ASGD takes the average in its step, of x_t + u_t. Nothing that it does depends on it, so it can be taken again of x_{t+1}.
"""

from collections.abc import Callable

import torch
from torch.optim import ASGD, Optimizer


def keep(base: Optimizer) -> Callable[[], None]:
    """To be called before BASE's step; returns what to call once the parameters are placed."""
    if not isinstance(base, ASGD):
        return _nothing
    taking_part = [p for group in base.param_groups for p in group["params"] if p.grad is not None]
    before = {p: (base.state[p]["ax"].clone(), float(base.state[p]["mu"])) for p in taking_part if base.state[p]}

    @torch.no_grad()
    def take_again() -> None:
        for p in taking_part:
            average, weight = before.get(p, (p, 1.0))
            base.state[p]["ax"].copy_(torch.lerp(average, p, weight))

    return take_again


def _nothing() -> None:
    """Any other BASE keeps no such average."""
