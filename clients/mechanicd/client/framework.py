"""The entry point for framework adapters: what `mechanicd.torch` and `mechanicd.jax` need besides the client's public names.

    settings = check_settings(run=run, target=target, …)    # in `mechanize`: every keyword that the adapters share
    session = settings.run.open(replace(settings.config, scale_groups=names))    # when the first step needs it

An adapter for another framework needs this module, `mechanicd.client` and `mechanicd.tuner`, and no private module of either.
"""

import importlib
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast, get_args

from mechanicd.client import _arguments, _signals
from mechanicd.client._arguments import error_text
from mechanicd.client._client import close_sessions
from mechanicd.client._deferred import deferred, exposed, postponed
from mechanicd.client._errors import InvalidArgument, PackageMissing
from mechanicd.client._exit import failure_of
from mechanicd.client._leftovers import do_later
from mechanicd.client._run import Run
from mechanicd.client._session import ON_OUTAGE, OnOutage, only_scale
from mechanicd.tuner import Convention, TunerConfig

__all__ = [
    "BETAS",
    "DEADLINE",
    "DELTA_LAYOUTS",
    "EPS",
    "ON_OUTAGE",
    "S_DECAY",
    "S_INIT",
    "DeltaLayout",
    "OnOutage",
    "PackageMissing",
    "Run",
    "Settings",
    "check_cap",
    "check_choice",
    "check_flag",
    "check_settings",
    "check_status",
    "close_on_sigterm",
    "close_sessions",
    "deferred",
    "do_later",
    "error_text",
    "exposed",
    "failure_of",
    "only_scale",
    "postponed",
    "require_package",
]

DeltaLayout: TypeAlias = Literal["delta", "delta+ref", "ref"]
"""What an adapter keeps beside x: Δ, Δ and x_ref, or x_ref alone."""

DELTA_LAYOUTS: Final[tuple[DeltaLayout, ...]] = get_args(DeltaLayout)

# The defaults of `mechanize`, the same in every framework.
BETAS: Final = TunerConfig().betas
S_DECAY: Final = TunerConfig().s_decay
S_INIT: Final = TunerConfig().s_init
EPS: Final = TunerConfig().eps
DEADLINE: Final = 2.0
"""Seconds that a step may wait for its result before the server counts as unreachable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The keywords that every `mechanize` takes, checked.

    Attributes:
        config: the tuner's settings, with the one scale group "all"; `dataclasses.replace` puts in the real ones.
        run: the run; its session is opened when the first step needs it.
        delta_layout: what is kept beside x.
        max_scale: parameters are placed with no larger S; None for no cap.
    """

    config: TunerConfig
    run: Run
    delta_layout: DeltaLayout
    max_scale: float | None


def check_settings(
    *,
    run: str,
    target: str | None,
    project: str | None,
    labels: Mapping[str, str] | None,
    s_decay: float,
    betas: Sequence[float],
    s_init: float,
    eps: float,
    convention: Convention,
    delta_layout: str,
    on_outage: str,
    deadline: float,
    spill: "str | os.PathLike[str] | None" = None,
    max_scale: float | None,
) -> Settings:
    """Checks the keywords that every `mechanize` takes.

    Raises:
        InvalidArgument: INVALID_CONFIG, INVALID_SETTING, INVALID_OUTAGE_POLICY, RUN_NAME_MISSING, INVALID_TARGET,
            MALFORMED_NAME, INVALID_LABELS.
    """
    check_choice("delta_layout", delta_layout, DELTA_LAYOUTS)
    return Settings(
        config=TunerConfig(convention, cast("tuple[float, ...]", betas), s_decay=s_decay, s_init=s_init, eps=eps),
        run=Run(run, target, project, labels, cast(OnOutage, on_outage), deadline, spill),  # which checks them
        delta_layout=cast(DeltaLayout, delta_layout),
        max_scale=check_cap(max_scale),
    )


def check_cap(max_scale: object, least: float = math.ulp(0.0)) -> float | None:
    """`max_scale` as a float, or None for no cap.

    Raises:
        InvalidArgument: INVALID_SETTING.
    """
    return _arguments.cap(max_scale, least)


def check_flag(setting: str, value: object) -> bool:
    """A setting that is True or False.

    Raises:
        InvalidArgument: INVALID_SETTING.
    """
    return _arguments.flag(setting, value)


def check_status(status: object) -> None:
    """The status that a run is closed with; None is the default.

    Raises:
        InvalidArgument: INVALID_STATUS.
    """
    _arguments.status(status)


def check_choice(setting: str, value: object, choices: Collection[str]) -> None:
    """Checks a setting that has a few named values.

    Raises:
        InvalidArgument: INVALID_SETTING.
    """
    if value not in choices:
        raise InvalidArgument("INVALID_SETTING", f"{setting}={value!r}; choose one of {', '.join(choices)}")


def close_on_sigterm() -> None:
    """From now on a SIGTERM closes the open sessions as preempted before the process ends.

    Opening a session does this too. An adapter that opens its sessions on another thread calls it on the main thread, where
    alone Python installs signal handlers; elsewhere it does nothing.
    """
    _signals.watch(close_sessions)


def require_package(
    *packages: str, extra: str, reason: str, error: type[PackageMissing] = PackageMissing, needed_by: str | None = None
) -> None:
    """Imports the packages that an adapter needs.

    Args:
        packages: their import names.
        extra: the extra of mechanicd that installs them.
        reason: the error's stable reason, such as "TORCH_MISSING".
        error: the class to raise.
        needed_by: the package that needs them; None for `mechanicd.{extra}`.

    Raises:
        PackageMissing: one is not installed. An error raised inside a package that is installed passes through.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as missing:
            if missing.name not in packages:
                raise
            raise error(
                reason,
                f"{needed_by or f'mechanicd.{extra}'} needs {missing.name}, which is not installed: "
                f"pip install 'mechanicd[{extra}]'",
            ) from missing
