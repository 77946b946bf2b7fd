"""The hooks that torch calls around the step of every optimizer: once a step, with the mechanized optimizer.

BASE's step, and those of the optimizers in it, are parts of that step: while they run the hooks are away. A hook then sees the
parameters where S has placed them, not where BASE has left them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import optimizer

_PRE: dict[int, Callable[..., Any]] = getattr(optimizer, "_global_optimizer_pre_hooks", {})
_POST: dict[int, Callable[..., Any]] = getattr(optimizer, "_global_optimizer_post_hooks", {})


@contextmanager
def held() -> Iterator[None]:
    """No such hook is called in this block."""
    if not _PRE and not _POST:
        yield
        return
    kept = [(hooks, dict(hooks)) for hooks in (_PRE, _POST)]
    for hooks, _ in kept:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in kept:
            added = dict(hooks)  # by BASE
            hooks.clear()
            hooks.update(before)
            hooks.update(added)
