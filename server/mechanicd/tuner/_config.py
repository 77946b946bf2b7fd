"""The tuner's settings, checked when they are made."""

import math
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from mechanicd.tuner._conventions import CONVENTIONS, Convention
from mechanicd.tuner._errors import InvalidArgument

MAX_BETAS: Final = 64
MAX_SCALE_GROUPS: Final = 65_536
MAX_GROUP_NAME: Final = 256
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


def _floats(field: str, values: object) -> tuple[float, ...]:
    return tuple([_float(field, value) for value in _listed(field, values, "numbers", MAX_BETAS)])


def _names(values: object) -> tuple[str, ...]:
    names = _listed("scale_groups", values, "names", MAX_SCALE_GROUPS)
    texts = all(type(name) is str and 0 < len(name) <= MAX_GROUP_NAME for name in names)
    if texts and len(set(names)) == len(names) and _is_unicode("".join(names)):  # as it nearly always is
        return names
    seen = set[str]()
    for name in names:
        if not isinstance(name, str) or not name or len(name) > MAX_GROUP_NAME:
            raise ConfigError("scale_groups", f"got {name!r}; each must be a string of 1 to {MAX_GROUP_NAME} characters")
        if not _is_unicode(name):
            raise ConfigError("scale_groups", f"got {name!r}, which is not Unicode text; a name must be encodable as UTF-8")
        if name in seen:
            raise ConfigError("scale_groups", f"{name!r} appears twice; each group needs its own name")
        seen.add(name)
    return names


def _is_unicode(text: str) -> bool:
    """Whether the text can be stored and sent: bytes that were no UTF-8 leave lone surrogates in a str."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(field: str, values: object, kind: str, most: int) -> tuple[Any, ...]:
    """The values as a tuple. They are counted before anything looks at them: a list of millions is refused at once."""
    given = None if isinstance(values, str | bytes | bytearray) else _taken(values, most + 1)
    if given is None:
        raise ConfigError(field, f"got {values!r}; it must be a list of {kind}")
    if not 1 <= len(given) <= most:
        count = len(given) if len(given) <= most else f"more than {most:,}"
        raise ConfigError(field, f"got {count} {kind}; give 1 to {most:,}")
    return given


def _taken(values: object, most: int) -> tuple[Any, ...] | None:
    """At most the first values of an iterable; None for what can't be iterated, such as a tensor of no dimensions."""
    try:
        return tuple(islice(values, most))  # type: ignore[call-overload]
    except TypeError:
        return None
