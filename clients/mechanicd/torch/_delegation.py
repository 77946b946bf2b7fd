"""What a mechanized optimizer shares with BASE: what it does not have itself is BASE's, and setting it here sets BASE's.

Two kinds of attributes stay behind `opt.base`: an optimizer inside BASE, and a method that takes a step by itself (SAM's
`first_step`). Whoever found them here would move the weights without S.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final, NoReturn

from torch import Tensor
from torch.optim import Optimizer

from mechanicd.client import InvalidArgument

TELLS: Final = frozenset({"count", "current", "get", "has", "is", "num", "number", "register", "reset", "set", "size"})
"""Words in the names of methods that have to do with steps, but take none."""


class DelegatingOptimizer(Optimizer):
    """Delegates `param_groups`, `state`, `defaults`, `zero_grad` and every attribute of BASE's own to `base`.

    Attributes:
        base: BASE.
    """

    base: Optimizer

    _step_supports_amp_scaling = False
    """GradScaler unscales the gradients before the step, whatever BASE could do: h needs them unscaled."""

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
        """BASE's; some wrappers of optimizers have none."""
        if not hasattr(self.base, "defaults"):
            self.base.defaults = {}
        return self.base.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.base.defaults = value

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Calls BASE's."""
        self.base.zero_grad(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """BASE's attribute; called for names that this optimizer does not have.

        Raises:
            AttributeError: BASE does not have it either, or it is an optimizer.
        """
        base = self.__dict__.get("base")
        if base is None or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        found = getattr(base, name)
        if isinstance(found, Optimizer):
            raise AttributeError(
                f"{name!r} of {type(base).__name__} is an optimizer that would step without S; it is at opt.base.{name}"
            )
        words = set(name.split("_"))
        if "step" in words and not words & TELLS and callable(found):
            return _refusal(base, name)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets BASE's attribute if it is BASE's alone, such as a radius or a period that BASE reads in each step."""
        mine = self.__dict__
        if "_stepper" in mine and name not in mine and name[:1] != "_" and not hasattr(type(self), name):
            base = mine["base"]
            if hasattr(base, name):
                setattr(base, name, value)
                return
        super().__setattr__(name, value)


def _refusal(base: Optimizer, name: str) -> Callable[..., NoReturn]:
    """What takes the place of a method that steps BASE."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise InvalidArgument(
            "BASE_STEPS_ITSELF",
            f"{type(base).__name__}.{name}() would move the weights without S; call opt.step(closure), with a closure that "
            f"zeroes the gradients, evaluates the model and calls backward, and let BASE call {name}() itself",
        )

    return refuse
