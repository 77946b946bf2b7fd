"""The optimizers that an optimizer holds: wrappers keep another one, or several, in an attribute."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import Optimizer


def optimizers(base: Optimizer) -> list[Optimizer]:
    """BASE and every optimizer in its attributes, in their lists and dicts, and so on; each once, BASE first."""
    found: list[Optimizer] = [base]
    for optimizer in found:  # grows while it is walked
        for value in vars(optimizer).values():
            found += [inner for inner in _in(value) if not any(inner is known for known in found)]
    return found


def _in(value: Any) -> Iterator[Optimizer]:
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else (value,)
    for item in values:
        if isinstance(item, Optimizer):
            yield item
