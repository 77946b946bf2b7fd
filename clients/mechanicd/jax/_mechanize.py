"""`mechanize`: its settings and their checks."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

import jax

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
    check_settings,
    close_on_sigterm,
)
from mechanicd.jax import _bases
from mechanicd.jax._axes import AxisName
from mechanicd.jax._groups import Labels
from mechanicd.jax._transform import Mechanized, transform
from mechanicd.jax._tuner import NOT_SUPPORTED
from mechanicd.tuner import CONVENTIONS, Convention

Report: TypeAlias = Literal["callback", "loop"]
"""How the server learns of a step."""
REPORTS: Final[tuple[Report, ...]] = get_args(Report)


def mechanize(
    base: Any,
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
    scale_groups: Labels = "all",
    delta_layout: DeltaLayout = "delta",
    on_outage: OnOutage = "local",
    deadline: float = DEADLINE,
    spill: "str | os.PathLike[str] | None" = None,
    max_scale: float | None = None,
    report: Report = "callback",
    axis_name: AxisName = None,
    distributed: bool = True,
) -> Mechanized:
    """Wraps an optax optimizer so that MECHANIC tunes the scale of its updates.

    Put it last in a chain: what stands before it changes gradients, BASE and its schedule stand inside. A transformation after
    it that changes the update, as in `optax.chain(mechanize(…), optax.scale_by_schedule(…))`, makes S run away: x then moves
    otherwise than S and Δ say.

    Source: Cutkosky, Defazio, Mehta (2023), "Mechanic: A Learning Rate Tuner", Algorithm 1.

    The state is a plain tree of arrays (`MechanicState`), so orbax and flax.serialization can save it. Together with the
    parameters it is enough to resume bit for bit: pass in a restored state, and the run rewinds to it.

    Args:
        base: BASE, its learning rate usually 1.0 times a schedule.
        run: the run's name; required with a target.
        target: the server's address; None runs the tuner in the program only, with the same bits.
        project, labels, s_decay, betas, s_init, eps, convention, deadline, spill: as in `mechanicd.torch.mechanize`.
        scale_groups: what shares one S: "all", "tensor", or labels as optax.multi_transform takes them.
        delta_layout: what to keep in addition to x: "delta" (Δ), "delta+ref" (Δ and x_ref), or "ref" (only x_ref; each step
            recomputes Δ = (x − x_ref)/(S + ε), as the paper's line 8 and optax.contrib.mechanize do; for comparison, and only
            for conventions whose S starts above 0). bfloat16 and float16 parameters need both; if any parameter is of
            such a type, all keep both. Where x_ref is kept, it follows a weight that something else changed between steps.
        max_scale: a cap on the S that places the parameters; None for no cap.
        on_outage: "local" computes S on the device and reports to the server without waiting; with "hold" and "raise" each step
            waits for the host.
        report: how steps reach the server: "callback" sends them from inside the program and needs no other change; "loop"
            needs `tx.report(state)` after each step, and keeps a GPU's queue full (a callback costs it about 2 ms a step).
        axis_name: for `update` inside `jax.shard_map` or `jax.pmap`: the mesh axes that the parameters are split over. A name,
            a tuple of names, or a tree of these (or of PartitionSpecs) over the parameters; () where every device holds all
            parameters and gets the averaged gradients. None reads it from the types where JAX tracks what differs between
            devices (`check_vma=True`), and is an error where it does not. Under jit alone nothing is needed.
        distributed: False inside `shard_map` or `pmap` if each device trains a model of its own, with its own S.

    Raises:
        InvalidArgument: BASE_NOT_AN_OPTIMIZER, BASE_KEEPS_WEIGHTS, INVALID_CONFIG, INVALID_SETTING, INVALID_OUTAGE_POLICY,
            RUN_NAME_MISSING, INVALID_TARGET. `init` and `update` raise BASE_KEEPS_WEIGHTS, BASE_NOT_AN_OPTIMIZER,
            COMPLEX_PARAMETER, INVALID_SETTING, PARAMS_MISSING, GRADIENTS_MISMATCH, DELTA_MISMATCH, NOT_DIFFERENTIABLE,
            AXIS_NAME_MISSING, AXIS_MISMATCH, VMAP.
    """
    if not (hasattr(base, "init") and hasattr(base, "update")) or isinstance(base, Mechanized):
        what = "is already mechanized" if isinstance(base, Mechanized) else "is not an optax transformation"
        raise InvalidArgument("BASE_NOT_AN_OPTIMIZER", f"{base!r} {what}; wrap one: mechanize(optax.adamw(1.0))")
    _bases.check(base)
    for name, value in {"s_decay": s_decay, "s_init": s_init, "eps": eps, "deadline": deadline, "max_scale": max_scale}.items():
        if isinstance(value, jax.Array):
            raise InvalidArgument(
                "INVALID_SETTING",
                f"{name} is an array of JAX; the tuner's settings are constants of the compiled step, plain numbers. To inject "
                "hyperparameters, inject BASE's: mechanize(optax.inject_hyperparams(optax.adamw)(learning_rate=1.0))",
            )
    if axis_name is not None and not distributed:
        raise InvalidArgument(
            "INVALID_SETTING",
            "axis_name says how devices train one model, distributed=False that each trains its own; choose one",
        )
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
    check_choice("report", report, REPORTS)
    if convention in NOT_SUPPORTED:
        raise InvalidArgument("INVALID_SETTING", f"convention={convention!r} does not run in JAX; use mechanicd.torch")
    if delta_layout == "ref" and CONVENTIONS[convention].needs_delta:
        usable = " or ".join(f'convention="{name}"' for name, spec in CONVENTIONS.items() if not spec.needs_delta)
        raise InvalidArgument(
            "INVALID_SETTING",
            f'delta_layout="ref" recomputes Δ from x, which cannot start from S = 0, where convention={convention!r} starts: '
            f'use delta_layout="delta", or {usable}',
        )
    if report == "loop" and target is not None and on_outage != "local":
        raise InvalidArgument(
            "INVALID_SETTING",
            f'on_outage={on_outage!r} needs the host in each step, but report="loop" reports later: use on_outage="local", or '
            'report="callback"',
        )
    if target is not None:
        close_on_sigterm()  # here, on the main thread: JAX opens the session from a callback's thread
    cap = math.inf if settings.max_scale is None else settings.max_scale
    told = report == "loop" and target is not None
    return transform(base, settings, scale_groups, cap, loop=told, axis_name=axis_name, distributed=distributed)
