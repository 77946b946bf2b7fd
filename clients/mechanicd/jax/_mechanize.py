"""`mechanize`: its settings and their checks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mechanicd.client import InvalidArgument, make_config
from mechanicd.client.framework import OnOutage, Run, close_on_sigterm
from mechanicd.jax._groups import Labels
from mechanicd.jax._transform import Mechanized, transform
from mechanicd.tuner import TunerConfig

BETAS: Final = TunerConfig().betas
DELTA_LAYOUTS: Final = ("delta", "delta+ref", "ref")
DEADLINE: Final = 2.0
REPORTS: Final = ("callback", "loop")
STARTS_ABOVE_ZERO: Final = ("pytorch", "optax")


def mechanize(
    base: Any,
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
    scale_groups: Labels = "all",
    delta_layout: str = "delta",
    on_outage: OnOutage = "local",
    deadline: float = DEADLINE,
    max_scale: float | None = None,
    report: str = "callback",
) -> Mechanized:
    """Wraps an optax optimizer so that MECHANIC tunes the scale of its updates.

    Source: Cutkosky, Defazio, Mehta (2023), "Mechanic: A Learning Rate Tuner", Algorithm 1.

    Its state is a plain tree of arrays (`MechanicState`), so orbax and flax.serialization save it, and with the parameters it
    is enough to resume bit for bit: a state that does not follow the last step is where the run goes on.

    Args:
        base: BASE, its learning rate usually 1.0 times a schedule.
        run: the run's name, needed with a target.
        target: the server's address; None keeps the tuner in the program, with the same bits and no server.
        project, labels, s_decay, betas, s_init, eps, convention, deadline: as in `mechanicd.torch.mechanize`.
        scale_groups: what shares one S: "all", "tensor", or labels as optax.multi_transform takes them.
        delta_layout: what is kept beside x: "delta" (Δ), "delta+ref" (Δ and x_ref), or "ref" (x_ref alone, and
            Δ = (x − x_ref)/(S + ε) made anew in each step, as the paper's line 8 and optax.contrib.mechanize do: for
            comparison, with conventions that start above 0). Parameters in bfloat16 or float16 need both; with one such, all
            have both.
        max_scale: parameters are placed with no larger S; None for no cap.
        on_outage: "local" computes S on the device and tells the server beside; "hold" and "raise" ask the host in each step.
        report: how the server hears of a step: "callback" from within the program, so that no other line changes; "loop" from
            `tx.report(state)` after each step, which leaves a GPU's queue full (a callback costs it about 2 ms a step).

    Raises:
        InvalidArgument: BASE_NOT_AN_OPTIMIZER, INVALID_CONFIG, INVALID_SETTING, INVALID_OUTAGE_POLICY, RUN_NAME_MISSING.
    """
    if not (hasattr(base, "init") and hasattr(base, "update")) or isinstance(base, Mechanized):
        what = "mechanized already" if isinstance(base, Mechanized) else "no optax transformation"
        raise InvalidArgument("BASE_NOT_AN_OPTIMIZER", f"{base!r} is {what}; wrap one: mechanize(optax.adamw(1.0))")
    if delta_layout not in DELTA_LAYOUTS:
        raise InvalidArgument("INVALID_SETTING", f"delta_layout={delta_layout!r}; choose one of {', '.join(DELTA_LAYOUTS)}")
    if delta_layout == "ref" and convention not in STARTS_ABOVE_ZERO:
        raise InvalidArgument(
            "INVALID_SETTING",
            f'delta_layout="ref" makes Δ from x, which needs an S above 0 from the start; convention={convention!r} starts '
            'at 0: use "delta", or convention="optax" or "pytorch"',
        )
    if max_scale is not None and not max_scale > 0:
        raise InvalidArgument("INVALID_SETTING", f"max_scale={max_scale!r}; give a number above 0, or None for no cap")
    if report not in REPORTS:
        raise InvalidArgument("INVALID_SETTING", f"report={report!r}; choose one of {', '.join(REPORTS)}")
    if report == "loop" and target is not None and on_outage != "local":
        raise InvalidArgument(
            "INVALID_SETTING",
            f'on_outage={on_outage!r} asks the host within each step, report="loop" tells it later: use on_outage="local", or '
            'report="callback"',
        )
    settings = {"convention": convention, "betas": tuple(betas), "s_decay": s_decay, "s_init": s_init, "eps": eps}
    make_config(**settings, scale_groups=("all",))
    where = Run(run, target, project, labels, on_outage, deadline)
    if target is not None:
        close_on_sigterm()  # from the main thread; the session itself is opened from another
    cap = math.inf if max_scale is None else max_scale
    return transform(base, settings, scale_groups, delta_layout, cap, where, report == "loop" and target is not None)
