"""Values of this package as messages of the contract, and back. Knows no transport."""

from typing import Final, cast

from mechanicd.tuner import CONVENTIONS, TunerConfig
from mechanicd.v1 import resources_pb2

STATUS: Final = {
    "finished": resources_pb2.RUN_STATUS_FINISHED,
    "failed": resources_pb2.RUN_STATUS_FAILED,
    "preempted": resources_pb2.RUN_STATUS_PREEMPTED,
}
"""The statuses that a session is closed with."""


def config_out(config: TunerConfig) -> resources_pb2.TunerConfig:
    """The config as the wire has it, every field set."""
    return resources_pb2.TunerConfig(
        convention=cast(resources_pb2.TunerConfig.Convention, CONVENTIONS[config.convention].wire),
        betas=config.betas,
        s_decay=config.s_decay,
        s_init=config.s_init,
        eps=config.eps,
        initial_wealth=config.initial_wealth,
        scale_groups=config.scale_groups,
    )


def config_in(message: resources_pb2.TunerConfig) -> TunerConfig:
    """The config that `config_out` was given.

    Raises:
        InvalidArgument: INVALID_CONFIG; a newer version wrote it.
    """
    convention = {spec.wire: name for name, spec in CONVENTIONS.items()}.get(message.convention)
    return TunerConfig(
        convention,  # type: ignore[arg-type]  # None, for one of a newer version, is refused
        tuple(message.betas),
        s_decay=message.s_decay,
        s_init=message.s_init,
        eps=message.eps,
        initial_wealth=message.initial_wealth,
        scale_groups=tuple(message.scale_groups),
    )
