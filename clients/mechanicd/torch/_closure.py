"""Closures: what evaluates the model, once before the reductions, and again as BASE asks for it."""

from collections.abc import Callable

import torch


def evaluate(closure: Callable[[], float] | None) -> tuple[float | None, Callable[[], float] | None]:
    """The loss now, and a closure for BASE whose first call returns it; later calls evaluate."""
    if closure is None:
        return None, None
    with torch.enable_grad():
        loss = closure()
    known = [loss]

    def replay() -> float:
        if known:
            return known.pop()
        with torch.enable_grad():
            return closure()

    return loss, replay
