"""The optimizers of the arms. All have the same BASE, weight decay and schedule; they differ in what sets the learning rate."""

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from experiments import _models
from experiments._catalogue import Training, schedule
from mechanicd.demo.lion import Lion
from mechanicd.torch import mechanize

MOMENTUM: Final = 0.9
WEIGHT_DECAY: Final[Mapping[tuple[str, str], float]] = {
    ("vision", "sgd"): 5e-4,
    ("vision", "adamw"): 1e-2,
    ("language", "adamw"): 1e-2,
    ("language", "lion"): 1e-1,
    ("translation", "adamw"): 1e-2,
}
"""By family and BASE; 0 for the others."""

Params = list[dict[str, Any]]


BASES: Final[Mapping[str, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,
    "lion": Lion,
}


@dataclass(frozen=True)
class Where:
    """The server of mechanized trainings (None: a tuner in the process), and their project."""

    target: str | None
    project: str


@dataclass(frozen=True)
class Tuned:
    """An optimizer, ready to step.

    Attributes:
        optimizer: the optimizer.
        scale: the current factor of BASE's updates at lr 1 that the method has found; one per scale group.
        scheduled: whether the schedule drives its lr.
        resumable: whether its state_dict restores it exactly.
    """

    optimizer: torch.optim.Optimizer
    scale: Callable[[], tuple[float, ...]]
    scheduled: bool = True
    resumable: bool = False


def equip(training: Training, model: torch.nn.Module, where: Where) -> Tuned:
    """The optimizer of a training.

    Raises:
        ModuleNotFoundError: the peer's package is not installed.
    """
    task, settings = training.row.task, dict(training.arm.settings)
    options: dict[str, Any] = {"weight_decay": WEIGHT_DECAY.get((task.family, training.row.base), 0.0)}
    if training.row.base == "sgd":
        options["momentum"] = MOMENTUM
    in_groups = settings.get("scale_groups") == "param_group"
    params = _models.groups(model) if in_groups else [{"params": list(model.parameters())}]
    return _METHODS[training.arm.method](training, params, options, settings, where)


def _sweep(training: Training, params: Params, options: dict[str, Any], settings: dict[str, Any], _: Where) -> Tuned:
    rate = float(settings["lr"])
    return Tuned(BASES[training.row.base](params, lr=rate, **options), lambda: (rate,), resumable=True)


def _mechanic(training: Training, params: Params, options: dict[str, Any], settings: dict[str, Any], where: Where) -> Tuned:
    base = BASES[training.row.base](params, lr=float(settings.pop("base_lr", 1.0)), **options)
    if settings.pop("warm_start", None) and training.start is not None:
        settings["s_init"] = training.start
    if "n" in settings:
        settings["betas"] = [1.0 - 0.1**i for i in range(1, int(settings.pop("n")) + 1)]
    optimizer = mechanize(
        base, run=training.key, target=where.target, project=where.project, labels=training.labels, **settings
    )
    return Tuned(optimizer, lambda: optimizer.scales, resumable=True)


def _mechanic_pytorch(training: Training, params: Params, options: dict[str, Any], _: Any, __: Where) -> Tuned:
    from mechanic_pytorch import mechanize as authors

    optimizer = authors(BASES[training.row.base])(params, lr=1.0, **options)
    return Tuned(optimizer, lambda: (float(optimizer.state["_mechanic"]["s"].sum()),))


def _dadaptation(training: Training, params: Params, options: dict[str, Any], _: Any, __: Where) -> Tuned:
    import dadaptation

    kinds = {"sgd": "DAdaptSGD", "adamw": "DAdaptAdam", "lion": "DAdaptLion"}
    if training.row.base == "adamw":
        options["decouple"] = True
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = getattr(dadaptation, kinds[training.row.base])(params, lr=1.0, **options)
    return Tuned(optimizer, lambda: (float(optimizer.param_groups[0]["d"]),))


def _prodigy(training: Training, params: Params, options: dict[str, Any], _: Any, __: Where) -> Tuned:
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = Prodigy(params, lr=1.0, decouple=True, use_bias_correction=True, safeguard_warmup=True, **options)
    return Tuned(optimizer, lambda: (float(optimizer.param_groups[0]["d"]),))


def _schedulefree(training: Training, params: Params, options: dict[str, Any], _: Any, __: Where) -> Tuned:
    """At its package's default learning rate: it needs no schedule, but it needs a rate."""
    import schedulefree

    kinds = {"sgd": schedulefree.SGDScheduleFree, "adamw": schedulefree.AdamWScheduleFree}
    steps = training.row.task.steps
    warmup = sum(schedule(step, steps) < schedule(step + 1, steps) for step in range(steps)) + 1
    optimizer = kinds[training.row.base](params, warmup_steps=warmup, **options)
    rate = float(optimizer.param_groups[0]["lr"])
    return Tuned(optimizer, lambda: (rate,), scheduled=False)


_METHODS: Final[Mapping[str, Callable[..., Tuned]]] = {
    "sweep": _sweep,
    "mechanic": _mechanic,
    "mechanic-pytorch": _mechanic_pytorch,
    "dadaptation": _dadaptation,
    "prodigy": _prodigy,
    "schedulefree": _schedulefree,
}


def averaged(optimizer: torch.optim.Optimizer, on: bool) -> bool:
    """Switches to the averaged parameters, or back. Returns whether the optimizer has both, as schedule-free does."""
    switch = getattr(optimizer, "eval" if on else "train", None)
    if switch is not None:
        switch()
    return switch is not None
