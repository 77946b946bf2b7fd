"""Closures: they evaluate the model, once before the reductions and again whenever BASE asks."""

from collections.abc import Callable

import torch


def evaluate(closure: Callable[[], float] | None) -> tuple[float | None, Callable[[], float] | None]:
    """Evaluates once; returns the loss and a closure for BASE whose first call returns that loss, and whose later calls
    evaluate again."""
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
