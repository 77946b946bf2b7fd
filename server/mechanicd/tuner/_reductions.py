"""The four scalars of a step."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mechanicd.tuner._errors import InvalidArgument


class ReductionsError(InvalidArgument):
    """Reductions that no step can have: GROUP_COUNT_MISMATCH, NEGATIVE_SQUARE or INVALID_REDUCTIONS. `facts` are the numbers in
    the message."""

    def __init__(self, reason: str, message: str, facts: Mapping[str, object] | None = None) -> None:
        self.facts = dict(facts or {})
        super().__init__(reason, message, {key: str(value) for key, value in self.facts.items()})

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.reason, self.message, self.facts))


class Reductions(NamedTuple):
    """The four scalars of one step and one scale group, each a float64. A tuner converts other numbers, such as a float32, a
    NumPy scalar or a tensor of one element, and computes in float64.

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


def checked(groups: object, expected: int) -> Sequence[Reductions]:
    """One `Reductions` of Python floats per scale group. NaN and ±inf pass: the tuner skips such a step.

    Other numbers are converted, because the tuner must compute in float64: a float32 would make it compute in float32.

    Args:
        groups: one `Reductions` per scale group; for one group, it alone.

    Raises:
        ReductionsError: GROUP_COUNT_MISMATCH, NEGATIVE_SQUARE or INVALID_REDUCTIONS.
    """
    if isinstance(groups, Reductions):
        groups = (groups,)
    elif not isinstance(groups, (tuple, list)):
        raise _no_reductions(groups)
    if len(groups) != expected:
        raise ReductionsError(
            "GROUP_COUNT_MISMATCH",
            f"got the reductions of {len(groups)} scale groups, expected {expected}; "
            "send one set of four scalars for each name in scale_groups",
            {"expected": expected, "received": len(groups)},
        )
    for group in groups:  # one pass finds that all is well, as it nearly always is
        if type(group) is not Reductions:
            break
        g, x, gg, xx = group
        if not (type(g) is float and type(x) is float and type(gg) is float and type(xx) is float and gg >= 0.0 and xx >= 0.0):
            break
    else:
        return groups
    floats = [_of_floats(group) for group in groups]
    for index, group in enumerate(floats):
        if group.g_norm_sq < 0.0 or group.x_norm_sq < 0.0:
            field = "g_norm_sq" if group.g_norm_sq < 0.0 else "x_norm_sq"
            raise ReductionsError(
                "NEGATIVE_SQUARE",
                f"{field} of scale group {index} is {getattr(group, field)!r}; a squared norm is 0 or more: "
                "send ‖·‖², not an inner product",
                {"field": field, "value": getattr(group, field)},
            )
    return floats


def _of_floats(group: object) -> Reductions:
    if not isinstance(group, Reductions):
        raise _no_reductions(group)
    return Reductions(*map(_float, group._fields, group))


def _float(field: str, value: object) -> float:
    try:
        if isinstance(value, (bool, str, bytes, bytearray)):
            raise TypeError
        return float(value)  # type: ignore[arg-type]  # NumPy and torch scalars too
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ReductionsError(
            "INVALID_REDUCTIONS",
            f"{field} is {value!r}; each scalar is a real number: a float, or a NumPy or torch scalar",
            {"field": field},
        ) from None


def _no_reductions(given: object) -> ReductionsError:
    return ReductionsError(
        "INVALID_REDUCTIONS",
        f"got {given!r}; give Reductions(delta_dot_g, delta_dot_x, g_norm_sq, x_norm_sq), or a list of one per scale group",
    )
