"""Which parameters share one S, what each such scale group is called, and which parameters can't be in one."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from mechanicd.client import InvalidArgument

ScaleGroups: TypeAlias = Literal["all", "param_group", "tensor"]
"""One S for all parameters, one per param group of BASE, or one per tensor."""

SCALE_GROUPS: Final[tuple[ScaleGroups, ...]] = get_args(ScaleGroups)

ParamGroups = Sequence[dict[str, Any]]


def names(kind: ScaleGroups, param_groups: ParamGroups) -> tuple[str, ...]:
    """The name of each scale group: "all", "param_group/0" …, or "param_group/0/tensor/3" …"""
    if kind == "all":
        return ("all",)
    if kind == "param_group":
        return tuple(f"param_group/{i}" for i in range(len(param_groups)))
    return tuple(f"param_group/{i}/tensor/{j}" for i, group in enumerate(param_groups) for j in range(len(group["params"])))


def members(kind: ScaleGroups, param_groups: ParamGroups) -> list[list[Tensor]]:
    """The parameters of each scale group, in the order of `names`."""
    if kind == "all":
        return [flat(param_groups)]
    if kind == "param_group":
        return [list(group["params"]) for group in param_groups]
    return [[p] for p in flat(param_groups)]


def flat(param_groups: ParamGroups) -> list[Tensor]:
    """All parameters in BASE's order; a parameter's index in this list is its index in a state_dict."""
    return [p for group in param_groups for p in group["params"]]


def per_param_group(
    kind: ScaleGroups, param_groups: ParamGroups, scales: Sequence[float], factors: Sequence[float]
) -> list[tuple[float, ...]]:
    """The S of each param group times a factor of its own: one, or one per tensor where each tensor has its S."""
    if kind == "all":
        return [(scales[0] * factor,) for factor in factors]
    if kind == "param_group":
        return [(S * factor,) for S, factor in zip(scales, factors, strict=True)]
    rest = iter(scales)
    return [
        tuple(S * factor for S in islice(rest, len(group["params"])))
        for group, factor in zip(param_groups, factors, strict=True)
    ]


def count(kind: ScaleGroups, param_groups: ParamGroups) -> int:
    """How many scale groups there are."""
    if kind == "all":
        return 1
    return len(param_groups) if kind == "param_group" else sum(len(group["params"]) for group in param_groups)


def lost(kind: ScaleGroups, before: Sequence[str], now: Sequence[str]) -> InvalidArgument:
    """The error for a run that has started and no longer has all of its scale groups."""
    return InvalidArgument(
        "GROUP_COUNT_MISMATCH",
        f'with scale_groups="{kind}" this run began with {len(before)} scale groups, and the optimizer has only '
        f"{len(now)} now, so it is not known whose S is whose; keep all of them (lr = 0 or no gradient rests one), or use "
        'scale_groups="all"',
    )


def refuse_moved(before: Mapping[str, Sequence[Tensor]], now: Mapping[str, Sequence[Tensor]]) -> None:
    """Checks that no scale group has taken the place of another: S belongs to the place, and the groups would swap theirs.

    A parameter that moves between groups takes the S of where it is, and one that is replaced leaves its S to the new one.

    Args:
        before, now: the parameters of each scale group, by its name.

    Raises:
        InvalidArgument: SCALE_GROUP_MOVED; the parameters of a group have left it, and another's have come.
    """
    if len(before) < 2:
        return
    owners = {p: name for name, params in before.items() for p in params}
    for name, params in now.items():
        came = {owners.get(p, "") for p in params}
        if before.get(name) and name not in came and any(came):
            raise InvalidArgument(
                "SCALE_GROUP_MOVED",
                f"{name} has other parameters than at the last step, those of {max(came)}: the param groups, or the parameters "
                "in them, are in another order. The server knows each S by its place, so keep the order; lr = 0 or no gradient "
                "rests a group",
            )


def refuse_complex(param_groups: ParamGroups) -> None:
    """Checks that all parameters are real.

    Raises:
        InvalidArgument: COMPLEX_PARAMETER.
    """
    for p in flat(param_groups):
        if p.is_complex():
            raise InvalidArgument(
                "COMPLEX_PARAMETER",
                f"a parameter of shape {tuple(p.shape)} is {p.dtype}; store it as a real tensor (torch.view_as_real)",
            )


def with_gradient(params: Sequence[Tensor]) -> list[Tensor]:
    """Those that have a gradient.

    Raises:
        InvalidArgument: SPARSE_GRADIENT; a gradient is not dense.
    """
    found = []
    for p in params:
        g = p.grad  # once: in a step of small tensors such accesses count
        if g is None:
            continue
        if g.layout is not torch.strided:
            raise InvalidArgument(
                "SPARSE_GRADIENT",
                f"a parameter of shape {tuple(p.shape)} has a gradient of layout {g.layout}; "
                "use dense gradients (sparse=False for an embedding)",
            )
        found.append(p)
    return found
