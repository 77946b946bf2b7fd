"""The S of a finished run, for another run to start with. Pure."""

from mechanicd.client._errors import InvalidArgument
from mechanicd.v1 import resources_pb2


def finished_scale(run: resources_pb2.Run, group: str | None) -> float:
    """The last S of a run that has finished, of its only scale group or of the named one.

    Raises:
        InvalidArgument: RUN_NOT_FINISHED, SEVERAL_SCALES, NO_SCALE.
    """
    if run.status != resources_pb2.RUN_STATUS_FINISHED:
        status = resources_pb2.RunStatus.Name(run.status).removeprefix("RUN_STATUS_").lower()
        raise InvalidArgument(
            "RUN_NOT_FINISHED",
            f"{run.name} is {status}, at step {run.durable_step}, so its S may still change; wait until it finishes, or pass "
            "s_init as a number (`mechanicd runs list` shows S)",
        )
    groups = list(run.config.scale_groups)
    chosen = [place for place, name in enumerate(groups) if group in (None, name)]
    if len(chosen) != 1:
        asked = "group= is not set" if group is None else f"none is named {group!r}"
        some = ", ".join(groups[:8]) + (", …" if len(groups) > 8 else "")
        raise InvalidArgument(
            "SEVERAL_SCALES", f"{run.name} has {len(groups)} scale groups, but {asked}; set group= to one of {some}"
        )
    scale = run.scale[chosen[0]] if run.scale else 0.0
    if scale <= 0.0:
        raise InvalidArgument("NO_SCALE", f"{run.name} still has S = 0 after {run.durable_step} steps; pass s_init as a number")
    return float(scale)
