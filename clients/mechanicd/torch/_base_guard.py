"""BASE takes no step by itself: `base.step()`, called by anyone but the mechanized optimizer, would move the weights without S.

A hook of BASE's own refuses it, and those of the optimizers inside BASE. It lets them step again once everyone who has
mechanized BASE has closed, or is gone.
"""

from typing import Any, Final, Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from mechanicd.client import InvalidArgument
from mechanicd.client.framework import Run
from mechanicd.torch._nested import optimizers


class Driver(Protocol):
    """Who steps BASE.

    Attributes:
        run: its run.
        stepping: whether BASE steps for it now.
    """

    run: Run
    stepping: bool


_DRIVERS: Final[WeakKeyDictionary[Optimizer, list[ReferenceType[Driver]]]] = WeakKeyDictionary()


def guard(base: Optimizer, driver: Driver) -> None:
    """From now on `base` and the optimizers in it step for `driver` only (and for others who have called this)."""
    for optimizer in optimizers(base):
        hooks: dict[int, Any] | None = getattr(optimizer, "_optimizer_step_pre_hooks", None)
        if hooks is None:  # a wrapper that has not initialized what it inherits
            continue
        known = _DRIVERS.setdefault(optimizer, [])
        known[:] = [one for one in known if one() is not None] + [ref(driver)]
        if not any(hook is _refuse for hook in hooks.values()):
            optimizer.register_step_pre_hook(_refuse)


@_disable_dynamo  # BASE's step may be compiled; this is no part of the graph
def _refuse(optimizer: Optimizer, *_: Any) -> None:
    drivers = [driver for one in _DRIVERS.get(optimizer, ()) if (driver := one()) is not None and not driver.run.closed]
    if drivers and not any(driver.stepping for driver in drivers):
        raise InvalidArgument(
            "BASE_STEPS_ITSELF",
            f"step() of {type(optimizer).__name__} was called, which is mechanized: it would move the weights without S. Call "
            "step() of what mechanize() returned, also through a GradScaler, a trainer or accelerator.prepare(); to train "
            "without S, close() that first",
        )
