"""Which parameters share one S, and what each such scale group is called."""

from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

from torch import Tensor

from mechanicd.client import InvalidArgument

KINDS: Final = ("all", "param_group", "tensor")
"""One S for all parameters, one per BASE's param group, or one per tensor."""

ParamGroups = Sequence[dict[str, Any]]


def check(kind: str) -> None:
    """Refuses what is none of `KINDS`.

    Raises:
        InvalidArgument: INVALID_SETTING.
    """
    if kind not in KINDS:
        raise InvalidArgument("INVALID_SETTING", f"scale_groups={kind!r}; choose one of {', '.join(KINDS)}")


def names(kind: str, param_groups: ParamGroups) -> tuple[str, ...]:
    """The name of each scale group: "all", "param_group/0" …, or "param_group/0/tensor/3" …"""
    if kind == "all":
        return ("all",)
    if kind == "param_group":
        return tuple(f"param_group/{i}" for i in range(len(param_groups)))
    return tuple(f"param_group/{i}/tensor/{j}" for i, group in enumerate(param_groups) for j in range(len(group["params"])))


def members(kind: str, param_groups: ParamGroups) -> list[list[Tensor]]:
    """The parameters of each scale group, in the order of `names`."""
    if kind == "all":
        return [flat(param_groups)]
    if kind == "param_group":
        return [list(group["params"]) for group in param_groups]
    return [[p] for p in flat(param_groups)]


def flat(param_groups: ParamGroups) -> list[Tensor]:
    """All parameters in BASE's order; a parameter's place in this list is its index in a state_dict."""
    return [p for group in param_groups for p in group["params"]]


def per_param_group(
    kind: str, param_groups: ParamGroups, scales: Sequence[float], factors: Sequence[float]
) -> list[float | tuple[float, ...]]:
    """S of each param group times a factor of its own; a tuple, one per tensor, where each tensor has its S."""
    if kind == "all":
        return [scales[0] * factor for factor in factors]
    if kind == "param_group":
        return [S * factor for S, factor in zip(scales, factors, strict=True)]
    rest = iter(scales)
    return [
        tuple(S * factor for S in islice(rest, len(group["params"])))
        for group, factor in zip(param_groups, factors, strict=True)
    ]


def too_many(kind: str) -> InvalidArgument:
    """The error of a run that has begun and gets more scale groups."""
    return InvalidArgument(
        "GROUP_COUNT_MISMATCH",
        f'scale_groups="{kind}" gives a new group an S of its own, but a run that has begun keeps its number of them; '
        'add all groups before the first step, or use scale_groups="all"',
    )
