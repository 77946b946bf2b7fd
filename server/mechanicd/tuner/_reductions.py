"""The four scalars of a step."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mechanicd.tuner._errors import InvalidArgument


class ReductionsError(InvalidArgument):
    """Reductions that no step can have: GROUP_COUNT_MISMATCH or NEGATIVE_SQUARE. `facts` are the numbers in the message."""

    def __init__(self, reason: str, message: str, facts: Mapping[str, object] | None = None) -> None:
        self.facts = dict(facts or {})
        super().__init__(reason, message, {key: str(value) for key, value in self.facts.items()})

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.reason, self.message, self.facts))


class Reductions(NamedTuple):
    """The four scalars of one step and one scale group, each a float64.

    Δ_t, g_t and x_t are those before BASE runs; g_t is the gradient after the user's clipping.

    Attributes:
        delta_dot_g: ⟨Δ_t, g_t⟩
        delta_dot_x: ⟨Δ_t, x_t⟩
        g_norm_sq: ‖g_t‖² ≥ 0
        x_norm_sq: ‖x_t‖² ≥ 0
    """

    delta_dot_g: float
    delta_dot_x: float
    g_norm_sq: float
    x_norm_sq: float

    def is_finite(self) -> bool:
        """Whether no scalar is NaN or infinite."""
        return math.isfinite(self[0]) and math.isfinite(self[1]) and math.isfinite(self[2]) and math.isfinite(self[3])


def check(groups: Sequence[Reductions], expected: int) -> None:
    """Refuses a wrong number of groups and negative squares. NaN and ±inf pass: the tuner skips such a step.

    Raises:
        ReductionsError: GROUP_COUNT_MISMATCH or NEGATIVE_SQUARE.
    """
    if len(groups) != expected:
        raise ReductionsError(
            "GROUP_COUNT_MISMATCH",
            f"got the reductions of {len(groups)} scale groups, expected {expected}; "
            "send one set of four scalars for each name in scale_groups",
            {"expected": expected, "received": len(groups)},
        )
    for index, group in enumerate(groups):
        if group.g_norm_sq < 0.0 or group.x_norm_sq < 0.0:
            field = "g_norm_sq" if group.g_norm_sq < 0.0 else "x_norm_sq"
            raise ReductionsError(
                "NEGATIVE_SQUARE",
                f"{field} of scale group {index} is {getattr(group, field)!r}; a squared norm is 0 or more: "
                "send ‖·‖², not an inner product",
                {"field": field, "value": getattr(group, field)},
            )
