"""What every logger shows of a mechanized optimizer, and how to find the optimizer inside its wrappers."""

from typing import Any, Final

from mechanicd.client import InvalidArgument
from mechanicd.torch import Mechanized

PREFIX: Final = "mechanic"
MAX_NAMED: Final = 16
"""Up to this many scale groups are logged one by one; of more, only the smallest and the largest S."""


def unwrapped(optimizer: Any) -> Mechanized:
    """The mechanized optimizer inside wrappers that hold it as `optimizer` (Accelerate, Lightning).

    Raises:
        InvalidArgument: NOT_MECHANIZED.
    """
    inner = optimizer
    while not isinstance(inner, Mechanized):
        inner = getattr(inner, "optimizer", None)
        if inner is None:
            raise InvalidArgument(
                "NOT_MECHANIZED", f"{type(optimizer).__name__} holds no mechanized optimizer; create it with mechanize(…)"
            )
    return inner


def logged_values(optimizer: Any) -> dict[str, float]:
    """S and the effective learning rate S·lr, by the names under which they are logged.

    "mechanic/S" and "mechanic/effective_lr" for one S; with several, "mechanic/S/0" … in the order of `Mechanized.scales`; with
    more than 16, "mechanic/S/min" and "mechanic/S/max". Likewise for the learning rates, in the order of the param groups.

    Raises:
        InvalidArgument: NOT_MECHANIZED.
    """
    opt = unwrapped(optimizer)
    lrs = [lr for group in opt.effective_lrs() for lr in group]
    return {**_named("S", list(opt.scales)), **_named("effective_lr", lrs)}


def _named(name: str, values: list[float]) -> dict[str, float]:
    if len(set(values)) == 1:
        return {f"{PREFIX}/{name}": values[0]}
    if len(values) > MAX_NAMED:
        return {f"{PREFIX}/{name}/min": min(values), f"{PREFIX}/{name}/max": max(values)}
    return {f"{PREFIX}/{name}/{i}": value for i, value in enumerate(values)}
