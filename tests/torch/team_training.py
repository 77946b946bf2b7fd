"""What the small trainings of a team share: the model, its data, and the loop."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mechanicd.client import MechanicdError
from mechanicd.torch import mechanize

Outcome = dict[str, Any]
STEPS, BATCH = 12, 16


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def new_model(seed: int = 0, hidden: int = 10) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(8, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 3)).double()


def batches(seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    make = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(BATCH, 8, generator=make, dtype=torch.float64)
        yield x, torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 2], x[:, 3]], 1)


def mine(x: Tensor) -> Tensor:
    """This rank's part of a batch."""
    return x[rank() * BATCH // world() : (rank() + 1) * BATCH // world()]


def average(params: Sequence[Tensor], group: Any = None) -> None:
    for p in params:
        if p.grad is not None:
            dist.all_reduce(p.grad, group=group)
            p.grad /= dist.get_world_size(group)


def optimizer(params: Any, lr: float = 1.0, **settings: Any) -> Any:
    return mechanize(torch.optim.AdamW(params, lr=lr), **{"s_init": 1e-4, "rank_timeout": 30.0, **settings})


class Failure(Exception):
    """Of the trainer's own."""


class Refused(Exception):
    """Carries an outcome out of a block that must end by an error."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


def train(
    model: Any,
    opt: Any,
    data: Iterator[tuple[Tensor, Tensor]],
    *,
    share: bool = True,
    averaged: bool = False,
    before: Callable[[int], None] = lambda step: None,
    after: Callable[[int], None] = lambda step: None,
    steps: int = STEPS,
) -> Outcome:
    """Trains; S after each step, or the error that ended it.

    Args:
        share: each rank sees its part of a batch, else all of it.
        averaged: the gradients are averaged by hand.
        before: is called between backward() and step(), with the number of the step.
    """
    params = list(model.parameters())
    start = [p.detach().clone() for p in params]
    scales: list[float] = []
    try:
        for step in range(1, steps + 1):
            x, y = next(data)
            opt.zero_grad()
            torch.nn.functional.mse_loss(model(mine(x) if share else x), mine(y) if share else y).backward()
            if averaged:
                average(params)
            before(step)
            opt.step()
            after(step)
            scales.append(opt.scale)
    except MechanicdError as error:
        moved = any(not torch.equal(local(p), local(q)) for p, q in zip(params, start, strict=True))
        return {"error": error.reason, "said": error.message, "at": len(scales) + 1, "moved": moved, "scales": scales}
    return {"scales": scales, "norm": norm([p for p in params if p.grad is not None])}


def local(p: Any) -> Tensor:
    return getattr(p, "_local_tensor", p).detach()


def norm(params: Sequence[Any]) -> float:
    return sum(float((p.full_tensor() if hasattr(p, "full_tensor") else p).detach().square().sum()) for p in params) ** 0.5


def at(step: int, do: Callable[[], object], who: int = 1) -> Callable[[int], None]:
    def maybe(now: int) -> None:
        if now == step and rank() == who:
            do()

    return maybe
