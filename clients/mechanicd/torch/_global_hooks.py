"""The hooks that torch calls around the step of every optimizer: once a step, with the mechanized optimizer.

BASE's step, and those of the optimizers in it, are parts of that step: while they run the hooks are away. A hook then sees the
parameters where S has placed them, not where BASE has left them.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch.optim import optimizer

_PRE: dict[int, Callable[..., Any]] = getattr(optimizer, "_global_optimizer_pre_hooks", {})
_POST: dict[int, Callable[..., Any]] = getattr(optimizer, "_global_optimizer_post_hooks", {})


def held() -> AbstractContextManager[None]:
    """No such hook is called in this block."""
    return _held() if _PRE or _POST else _NONE


_NONE = nullcontext()


@contextmanager
def _held() -> Iterator[None]:
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
