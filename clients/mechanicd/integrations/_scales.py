"""What every logger is told of a mechanized optimizer, and how the optimizer is found inside what wraps it."""

from typing import Any, Final

from mechanicd.client import InvalidArgument
from mechanicd.torch import Mechanized

PREFIX: Final = "mechanic"
MOST: Final = 16
"""Scale groups that are named one by one; of more, the smallest and the largest S are told."""


def unwrapped(optimizer: Any) -> Mechanized:
    """The mechanized optimizer in wrappers that keep it as `optimizer` (Accelerate, Lightning).

    Raises:
        InvalidArgument: NOT_MECHANIZED.
    """
    inner = optimizer
    while not isinstance(inner, Mechanized):
        inner = getattr(inner, "optimizer", None)
        if inner is None:
            raise InvalidArgument(
                "NOT_MECHANIZED", f"{type(optimizer).__name__} holds no mechanized optimizer; make it with mechanize(…)"
            )
    return inner


def told(optimizer: Any) -> dict[str, float]:
    """S and the effective learning rate S·lr by the names that they are logged under.

    "mechanic/S" and "mechanic/effective_lr" for one S; with several "mechanic/S/0" … in the order of `Mechanized.scale`, or, of
    more than 16, "mechanic/S/min" and "mechanic/S/max"; likewise for the learning rates, one per param group.

    Raises:
        InvalidArgument: NOT_MECHANIZED.
    """
    opt = unwrapped(optimizer)
    scale = opt.scale
    lrs = [lr for group in opt.effective_lr() for lr in (group if isinstance(group, tuple) else (group,))]
    return {**_named("S", list(scale) if isinstance(scale, tuple) else [scale]), **_named("effective_lr", lrs)}


def _named(name: str, values: list[float]) -> dict[str, float]:
    if len(set(values)) == 1:
        return {f"{PREFIX}/{name}": values[0]}
    if len(values) > MOST:
        return {f"{PREFIX}/{name}/min": min(values), f"{PREFIX}/{name}/max": max(values)}
    return {f"{PREFIX}/{name}/{i}": value for i, value in enumerate(values)}
