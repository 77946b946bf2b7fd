"""Closures: they evaluate the model, and BASE decides when.

torch's own optimizers call the closure first of all, at x_t: `evaluate` does that for them, and the sums are taken before BASE
starts. Another BASE may do otherwise. SAM moves x away from x_t first, and the closure is for its second gradient: then the
gradients that were there when the step began are those at x_t. `FirstCall` finds out which it is when BASE calls.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mechanicd.torch import _reference

Closure = Callable[[], Any]


class NotFinite(BaseException):
    """Unwinds BASE's step from within its first call of the closure: a sum is not finite, and the step must change nothing.

    Args:
        loss: what the closure returned, if it was evaluated.
    """

    def __init__(self, loss: Any) -> None:
        self.loss = loss


def evaluates_first(base: Optimizer) -> bool:
    """Whether BASE is known to call its closure first of all, with the parameters still at x_t."""
    return type(base).__module__.startswith("torch.optim.")


def with_gradients(closure: Closure) -> Closure:
    """The closure, with gradients enabled however it is called."""

    def evaluate() -> Any:
        with torch.enable_grad():
            return closure()

    return evaluate


def evaluate(closure: Closure) -> tuple[Any, Closure]:
    """Evaluates once; returns the loss and a closure for BASE whose first call returns that loss, and whose later calls
    evaluate again."""
    evaluated = with_gradients(closure)
    loss = evaluated()
    known = [loss]
    return loss, lambda: known.pop() if known else evaluated()


class FirstCall:
    """The closure for a BASE that may do anything before it calls it.

    At its first call, exactly one gradient at x_t is reported, before BASE can use another one:
    - x has not moved: the fresh one. Those that were there before are the last step's, which a closure zeroes.
    - x has moved and gradients were there: `at_start`.
    - x has moved and there were none: the model is evaluated once more, at x_t.

    Args:
        closure: the user's.
        params: what this process holds of the parameters.
        at_start: reports the gradients that were there when the step began; None if there were none.
        fresh: reports those that are there now.
        agree: whether x has moved for any process of the team; all of them must report the same gradient.

        Both reports raise `NotFinite`, given the loss, where the step must not go on.
    """

    def __init__(
        self,
        closure: Closure,
        params: Sequence[Tensor],
        at_start: Callable[[Any], None] | None,
        fresh: Callable[[Any], None],
        agree: Callable[[bool], bool],
    ) -> None:
        self._evaluate = with_gradients(closure)
        self._params = params
        self.x = _reference.save(params)
        self._at_start = at_start
        self._fresh = fresh
        self._agree = agree
        self.called = False

    def __call__(self) -> Any:
        if self.called:
            return self._evaluate()
        self.called = True
        if not self._agree(any(not torch.equal(p, x) for p, x in zip(self._params, self.x, strict=True))):
            loss = self._evaluate()
            self._fresh(loss)
            return loss
        if self._at_start is not None:
            self._at_start(None)
        else:
            elsewhere = _reference.save(self._params)
            _reference.restore(self._params, self.x)
            self._fresh(self._evaluate())
            _reference.restore(self._params, elsewhere)
        return self._evaluate()
