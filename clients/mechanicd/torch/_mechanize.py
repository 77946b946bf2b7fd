"""`mechanize`: the public entry point, its keywords and their checks."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from mechanicd.client import InvalidArgument
from mechanicd.client.framework import (
    BETAS,
    DEADLINE,
    EPS,
    S_DECAY,
    S_INIT,
    DeltaLayout,
    OnOutage,
    check_choice,
    check_flag,
    check_settings,
)
from mechanicd.torch import _bases, _groups, _sharding
from mechanicd.torch._groups import SCALE_GROUPS, ScaleGroups
from mechanicd.torch._membership import Distributed, Together
from mechanicd.torch._optimizer import Mechanized
from mechanicd.tuner import Convention

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # not there in every build of torch


def mechanize(
    base: Optimizer,
    run: str = "",
    target: str | None = None,
    *,
    project: str | None = None,
    labels: Mapping[str, str] | None = None,
    s_decay: float = S_DECAY,
    betas: Sequence[float] = BETAS,
    s_init: float = S_INIT,
    eps: float = EPS,
    convention: Convention = "paper",
    scale_groups: ScaleGroups = "all",
    delta_layout: DeltaLayout = "delta",
    on_outage: OnOutage = "local",
    deadline: float = DEADLINE,
    spill: "str | os.PathLike[str] | None" = None,
    max_scale: float | None = None,
    ahead: bool = True,
    distributed: Distributed = None,
    process_group: "ProcessGroup | None" = None,
    rank_timeout: float = 60.0,
) -> Mechanized:
    """Wraps an optimizer so that MECHANIC tunes the scale of its updates.

    Source: Cutkosky, Defazio, Mehta (2023), "Mechanic: A Learning Rate Tuner", Algorithm 1.

    Args:
        base: BASE, an instance; its lr is usually 1.0 times a schedule.
        run: the run's name; required with a target.
        target: the server's address; None keeps the tuner in this process, with the same bits and no server.
        project: the run's project; None means $MECHANICD_PROJECT, or "default".
        labels: key-value pairs to find the run by.
        s_decay: λ, the strength of MECHANIC's own weight decay.
        betas: the recency factors β, one s each.
        s_init: the first s other than zero, summed over the βs; `mechanicd.client.scale_of` gives the S of another run.
        eps: ε, for numerical stability.
        convention: which reading of the algorithm; see `mechanicd.tuner.TunerConfig`.
        scale_groups: which parameters share one S: "all", those of a "param_group", or one S per "tensor".
        delta_layout: what is kept beside x: "delta" (Δ: one slot, and one more during a step); "delta+ref" (Δ and x_ref: two
            slots, and an exact way back to x_ref); "ref" (x_ref alone, Δ recomputed from x; for comparison only: its rounding
            errors have been seen to move S by up to 18 %). bfloat16 and float16 parameters always keep both, with Δ in float32.
        on_outage: what a step does while the server is unreachable: "local" continues with this process's tuner, "hold" keeps
            the last S, "raise" raises.
        deadline: seconds that a step may wait for its result before the server counts as unreachable.
        spill: a folder for the steps of an outage beyond 64 MiB, up to 16 GiB; without it the oldest are dropped. None takes
            MECHANICD_SPILL from the environment.
        max_scale: parameters are placed with no larger S; None for no cap. The cap does not enter the tuner: the server keeps
            the S without it.
        ahead: whether a CUDA device may take steps before the host has their scalars, with the same bits (needs a fused BASE
            and on_outage="local"). An error from the server is then raised up to two steps late. False: every step waits.
        distributed: who trains together. None: the ranks of the process group, if there is one; they must hold replicas or
            DTensor shards of one model, which the first step checks. "parts": they hold different parts of one model as plain
            parameters (pipeline stages, tensor or expert parallelism by hand); all sums are added. False: nobody; this process
            trains a model of its own.
        process_group: the ranks that train together; None for the default group, once torch.distributed has one.
        rank_timeout: seconds that a step waits for the other ranks. With NCCL the group's own time-out holds from the second
            step on.

    Raises:
        InvalidArgument: BASE_NOT_AN_OPTIMIZER, INVALID_CONFIG, INVALID_SETTING, INVALID_OUTAGE_POLICY, RUN_NAME_MISSING,
            INVALID_TARGET, COMPLEX_PARAMETER, SHARDING_NOT_SUPPORTED; BASE_DIFFERENTIABLE, BASE_STEPS_IN_BACKWARD,
            BASE_KEEPS_WEIGHTS, SPARSE_GRADIENT: BASE would be wrong under S.
    """
    if not isinstance(base, Optimizer) or isinstance(base, Mechanized):
        what = "already a mechanized optimizer" if isinstance(base, Mechanized) else "not a torch.optim.Optimizer"
        raise InvalidArgument(
            "BASE_NOT_AN_OPTIMIZER",
            f"{base!r} is {what}; wrap an instance: mechanize(torch.optim.SGD(model.parameters(), lr=1.0))",
        )
    if not isinstance(getattr(base, "param_groups", None), list):
        raise InvalidArgument(
            "BASE_NOT_AN_OPTIMIZER",
            f"{type(base).__name__} has no list param_groups; wrap the optimizer inside it, which has one",
        )
    together = Together(distributed, process_group, rank_timeout)
    together.check()
    _sharding.refuse(base, _groups.flat(base.param_groups), distributed)
    _bases.check(base)
    settings = check_settings(
        run=run,
        target=target,
        project=project,
        labels=labels,
        s_decay=s_decay,
        betas=betas,
        s_init=s_init,
        eps=eps,
        convention=convention,
        delta_layout=delta_layout,
        on_outage=on_outage,
        deadline=deadline,
        spill=spill,
        max_scale=max_scale,
    )
    ahead = check_flag("ahead", ahead)
    check_choice("scale_groups", scale_groups, SCALE_GROUPS)
    return Mechanized(
        base, settings.config, scale_groups, settings.delta_layout, settings.run, settings.max_scale, ahead, together
    )
