"""`mechanize`: its settings and their checks."""

from collections.abc import Mapping, Sequence
from typing import Final

from torch.optim import Optimizer

from mechanicd.client import InvalidArgument
from mechanicd.client.framework import OnOutage, Run
from mechanicd.torch._optimizer import Mechanized
from mechanicd.tuner import TunerConfig

BETAS: Final = TunerConfig().betas
DELTA_LAYOUTS: Final = ("delta", "delta+ref", "ref")
"""What is kept of each parameter; see `_memory`."""
DEADLINE: Final = 2.0
"""Seconds that a step may wait for its result."""


def mechanize(
    base: Optimizer,
    run: str = "",
    target: str | None = None,
    *,
    project: str | None = None,
    labels: Mapping[str, str] | None = None,
    s_decay: float = 0.01,
    betas: Sequence[float] = BETAS,
    s_init: float = 1e-8,
    eps: float = 1e-8,
    convention: str = "paper",
    scale_groups: str = "all",
    delta_layout: str = "delta",
    on_outage: OnOutage = "local",
    deadline: float = DEADLINE,
    max_scale: float | None = None,
    ahead: bool = True,
) -> Mechanized:
    """Wraps an optimizer so that MECHANIC tunes the scale of its updates.

    Source: Cutkosky, Defazio, Mehta (2023), "Mechanic: A Learning Rate Tuner", Algorithm 1.

    Args:
        base: BASE, an instance, its lr usually 1.0 times a schedule.
        run: the run's name, needed with a target.
        target: the server's address; None keeps the tuner in this process, with the same bits and no server.
        project: the run's project; None is $MECHANICD_PROJECT, or "default".
        labels: what the run can be found by.
        s_decay: λ, the strength of MECHANIC's own weight decay.
        betas: the recency factors β, one s each.
        s_init: the first s other than zero, summed over the βs; `mechanicd.client.scale_of` gives the S of another run.
        eps: ε, for numerical stability.
        convention: which reading of the algorithm; see `mechanicd.tuner.TunerConfig`.
        scale_groups: what shares one S: "all", "param_group" or "tensor".
        delta_layout: what is kept beside x: "delta" (Δ: one slot, and one more during a step) or "delta+ref" (Δ and x_ref:
            two slots, an exact way back to x_ref); "ref" (x_ref alone, Δ recomputed from x, for comparison: its rounding errors
            have been seen to move S by up to 18 %). Parameters in bfloat16 or float16 always have both, Δ in float32.
        on_outage: what a step does without its server: "local" goes on with this process's tuner, "hold" keeps the last S,
            "raise" raises.
        deadline: seconds that a step may wait for its result before the server counts as away.
        max_scale: parameters are placed with no larger S; None for no cap. The tuner itself goes on without one, and its S is
            what the server keeps.
        ahead: whether a CUDA device may take steps before the host has their scalars, with the same bits (with a fused BASE,
            on_outage="local"); what the server refuses is raised up to two steps later then. False: each step waits for them.

    Raises:
        InvalidArgument: BASE_NOT_AN_OPTIMIZER, INVALID_CONFIG, INVALID_SETTING, INVALID_OUTAGE_POLICY, RUN_NAME_MISSING,
            COMPLEX_PARAMETER.
    """
    if not isinstance(base, Optimizer) or isinstance(base, Mechanized):
        what = "a mechanized optimizer already" if isinstance(base, Mechanized) else "no torch.optim.Optimizer"
        raise InvalidArgument(
            "BASE_NOT_AN_OPTIMIZER",
            f"{base!r} is {what}; wrap an instance: mechanize(torch.optim.SGD(model.parameters(), lr=1.0))",
        )
    if delta_layout not in DELTA_LAYOUTS:
        raise InvalidArgument("INVALID_SETTING", f"delta_layout={delta_layout!r}; choose one of {', '.join(DELTA_LAYOUTS)}")
    if max_scale is not None and not max_scale > 0:
        raise InvalidArgument("INVALID_SETTING", f"max_scale={max_scale!r}; give a number above 0, or None for no cap")
    settings = {"convention": convention, "betas": tuple(betas), "s_decay": s_decay, "s_init": s_init, "eps": eps}
    where = Run(run, target, project, labels, on_outage, deadline)
    return Mechanized(base, settings, scale_groups, delta_layout, where, max_scale, ahead)
