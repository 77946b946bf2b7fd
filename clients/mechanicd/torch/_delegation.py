"""What a mechanized optimizer shares with BASE: setting it here sets BASE's."""

from collections import defaultdict
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class DelegatingOptimizer(Optimizer):
    """Delegates `param_groups`, `state`, `defaults` and `zero_grad` to `base`.

    Attributes:
        base: BASE.
    """

    base: Optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """BASE's."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.base.param_groups = value

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """BASE's."""
        return self.base.state

    @state.setter
    def state(self, value: defaultdict[Tensor, Any]) -> None:
        self.base.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """BASE's."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.base.defaults = value

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Calls BASE's."""
        self.base.zero_grad(set_to_none)
