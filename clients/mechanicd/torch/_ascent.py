"""BASEs that ascend (`maximize=True`): MECHANIC sees the gradient of what is minimised, which is −g for their parameters.

Of the four scalars only ⟨Δ,g⟩ changes its sign. Parameters that ascend are reduced apart from those that descend, and `signed`
puts the two together, so a scale group may hold both.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from mechanicd.torch._nested import optimizers
from mechanicd.tuner import Reductions


def ascends_everywhere(base: Optimizer) -> bool:
    """Whether BASE says so for all of its param groups, as an attribute; it is looked up once."""
    return any(getattr(optimizer, "maximize", False) is True for optimizer in optimizers(base))


def split(groups: Sequence[Sequence[Tensor]], ascending: set[Tensor]) -> list[list[Tensor]]:
    """The scale groups without the parameters that ascend, then what was taken out of each."""
    down = [[p for p in group if p not in ascending] for group in groups]
    return [*down, *([p for p in group if p in ascending] for group in groups)]


def signed(sums: Sequence[Reductions]) -> list[Reductions]:
    """The scalars of each scale group from those of `split`'s parts."""
    half = len(sums) // 2
    return [
        Reductions(down[0] - up[0], down[1] + up[1], down[2] + up[2], down[3] + up[3])
        for down, up in zip(sums[:half], sums[half:], strict=True)
    ]
