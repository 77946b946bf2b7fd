"""The tuner's settings, checked when they are made."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mechanicd.tuner._conventions import CONVENTIONS, Convention
from mechanicd.tuner._errors import InvalidArgument

MAX_BETAS: Final = 64
MAX_SCALE_GROUPS: Final = 65_536
MAX_S_DECAY: Final = 1e6


class ConfigError(InvalidArgument):
    """A setting is out of its range. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__("INVALID_CONFIG", f"{field}: {message}", {"field": field})
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.field, self.message.removeprefix(f"{self.field}: ")))


@dataclass(frozen=True, slots=True)
class TunerConfig:
    """Settings of a tuner; fixed for the life of a run.

    Attributes:
        convention: `paper` is Algorithm 1 as its theory needs it (the default); `pytorch` is mechanic-pytorch 0.0.1, where
            m starts at 1e-6; `optax` is optax.contrib.mechanize, where s starts at s_init per β, m takes |h| + ε, and h is
            clipped to ±m_{t−1} in the reward; `theory` is Algorithm 2 (appendix D) with its wealth W_0 and its clipping.
        betas: the recency factors β, one copy of the tuner each (section 3.1); each in (0, 1].
        s_decay: λ ≥ 0 (section 3.2), at most 1e6.
        s_init: the first s other than zero, in (0, 1e6]. (The package optax uses 1e-6; set it to compare with that.)
        eps: ε > 0, for numerical stability.
        initial_wealth: W_0 in (0, 1e6], used by `theory` alone, where each β bets with W_0/n.
        scale_groups: a name for each scale group: the parameters that share one S. The reductions come in this order.

    Raises:
        ConfigError: a setting is out of its range.
    """

    convention: Convention = "paper"
    betas: tuple[float, ...] = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
    s_decay: float = 0.01
    s_init: float = 1e-8
    eps: float = 1e-8
    initial_wealth: float = 1e-8
    scale_groups: tuple[str, ...] = ("all",)

    def __post_init__(self) -> None:
        if self.convention not in tuple(CONVENTIONS):  # a tuple, for values that have no hash
            raise ConfigError("convention", f"got {self.convention!r}; choose one of {', '.join(CONVENTIONS)}")
        object.__setattr__(self, "betas", _floats("betas", self.betas))
        object.__setattr__(self, "scale_groups", _names(self.scale_groups))
        if not 1 <= len(self.betas) <= MAX_BETAS:
            raise ConfigError("betas", f"got {len(self.betas)} values; give 1 to {MAX_BETAS}")
        for beta in self.betas:
            if not 0.0 < beta <= 1.0:
                raise ConfigError("betas", f"got {beta!r}; each must be in (0, 1]")
        for field, high, zero_allowed in (
            ("s_decay", MAX_S_DECAY, True),
            ("s_init", 1e6, False),
            ("eps", 1.0, False),
            ("initial_wealth", 1e6, False),
        ):
            value = _float(field, getattr(self, field))
            object.__setattr__(self, field, value)
            if not (0.0 <= value <= high) or (value == 0.0 and not zero_allowed):
                bounds = f"[0, {high:g}]" if zero_allowed else f"(0, {high:g}]"
                raise ConfigError(field, f"got {value!r}; it must be in {bounds}")


def _float(field: str, value: object) -> float:
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]  # numpy and torch scalars too
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ConfigError(field, f"got {value!r}; it must be a number") from None
    if not math.isfinite(number):
        raise ConfigError(field, f"got {value!r}; it must be finite")
    return number


def _floats(field: str, values: Iterable[object]) -> tuple[float, ...]:
    try:
        return tuple(_float(field, value) for value in values)
    except TypeError:
        raise ConfigError(field, f"got {values!r}; it must be a list of numbers") from None


def _names(values: object) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError("scale_groups", f"got {values!r}; it must be a list of names")
    names = tuple(values)
    if not 1 <= len(names) <= MAX_SCALE_GROUPS:
        raise ConfigError("scale_groups", f"got {len(names)} names; give 1 to {MAX_SCALE_GROUPS:,}")
    for name in names:
        if not isinstance(name, str) or not name or len(name) > 256:
            raise ConfigError("scale_groups", f"got {name!r}; each must be a string of 1 to 256 characters")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError("scale_groups", f"{twice!r} appears twice; each group needs its own name")
    return names
