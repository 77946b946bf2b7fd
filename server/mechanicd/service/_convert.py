"""Converts between the contract's messages and the plain values of the tuner and the store. Makes no decisions."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar, cast

import numpy as np
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from mechanicd import runs, store
from mechanicd.service import _limits
from mechanicd.service._errors import BadField, ServiceError, every
from mechanicd.tuner import CONVENTIONS, ConfigError, Reductions, StateError, TunerConfig, TunerState
from mechanicd.v1 import errors_pb2, names, resources_pb2, run_service_pb2, tuner_service_pb2

M = TypeVar("M", bound=Message)

STATUS_OUT: Final = {
    runs.RunStatus.RUNNING: resources_pb2.RUN_STATUS_RUNNING,
    runs.RunStatus.SILENT: resources_pb2.RUN_STATUS_SILENT,
    runs.RunStatus.PREEMPTED: resources_pb2.RUN_STATUS_PREEMPTED,
    runs.RunStatus.FAILED: resources_pb2.RUN_STATUS_FAILED,
    runs.RunStatus.FINISHED: resources_pb2.RUN_STATUS_FINISHED,
}
MAX_INTEGER: Final = 2**62
"""The largest step or session accepted from a client: stores keep signed 64-bit integers, and steps count up from here."""
MAX_COMMAND: Final = 4096
_MOST_HEAD: Final = 11
"""The most bytes of a field before its values."""
MOST_CELLS: Final = 2**19
"""The most betas times scale groups: 40 bytes each make a state of 20 MiB, which is written at each commit. It leaves room for
as many scale groups as a run may have, with the default betas."""
MOST_PATHS: Final = 128
"""The most paths of a read mask: more than any response has fields."""
CLOSING_STATUS: Final = {
    value: name for name, value in STATUS_OUT.items() if name not in (runs.RunStatus.RUNNING, runs.RunStatus.SILENT)
}


def config_in(message: resources_pb2.TunerConfig) -> TunerConfig:
    """The config, with defaults for unset fields. Raises ServiceError INVALID_CONFIG, with each field out of its range."""
    names_of = {spec.wire: name for name, spec in CONVENTIONS.items()}
    convention = names_of.get(message.convention or CONVENTIONS["paper"].wire)  # unset is "paper"
    given: dict[str, object] = {"convention": convention}
    for field in ("s_decay", "s_init", "eps", "initial_wealth"):
        if message.HasField(field):
            given[field] = getattr(message, field)
    if message.betas:
        given["betas"] = message.betas
    if message.scale_groups:
        given["scale_groups"] = message.scale_groups
    try:
        config = TunerConfig(**given)  # type: ignore[arg-type]
    except ConfigError:  # it tells of the first field alone, so each is tried by itself
        every(*(partial(_setting_in, message, field, value) for field, value in given.items()))
        raise
    betas, groups = len(config.betas), len(config.scale_groups)
    if betas * groups > MOST_CELLS:
        told = (
            f"{betas} betas times {groups} scale groups is more than {MOST_CELLS:,}: the tuner's state, which is "
            "written at each commit, would be too large; use fewer betas or larger groups"
        )
        bad = [BadField(field, "INVALID_CONFIG", told) for field in ("config.betas", "config.scale_groups")]
        raise ServiceError("INVALID_CONFIG", told, bad_fields=bad)
    return config


def _setting_in(message: resources_pb2.TunerConfig, field: str, value: object) -> None:
    """Refuses one setting that is out of its range, whatever the others are."""
    if value is None:
        known = f"this server does not know convention {message.convention}"
        raise ServiceError("INVALID_CONFIG", known, field="config.convention")
    try:
        TunerConfig(**{field: value})  # type: ignore[arg-type]
    except ConfigError as error:
        raise ServiceError("INVALID_CONFIG", error.message, field=f"config.{error.field}") from None


def config_out(config: TunerConfig) -> resources_pb2.TunerConfig:
    """The message, with every field set."""
    return resources_pb2.TunerConfig(
        convention=cast(resources_pb2.TunerConfig.Convention, CONVENTIONS[config.convention].wire),
        betas=config.betas,
        s_decay=config.s_decay,
        s_init=config.s_init,
        eps=config.eps,
        initial_wealth=config.initial_wealth,
        scale_groups=config.scale_groups,
    )


def reductions_in(message: resources_pb2.Reductions, groups: int) -> list[Reductions]:
    """One `Reductions` per scale group. Raises ServiceError GROUP_COUNT_MISMATCH."""
    g, x, gg, xx = message.delta_dot_g, message.delta_dot_x, message.g_norm_sq, message.x_norm_sq
    if not len(g) == len(x) == len(gg) == len(xx) == groups:
        raise reductions_refused(message, groups)
    if groups == 1:
        return [Reductions(g[0], x[0], gg[0], xx[0])]
    return list(map(Reductions, g, x, gg, xx))


def columns_in(message: resources_pb2.Reductions, groups: int) -> NDArray[np.float64]:
    """The same of very many scale groups, as an array of shape (4, G). Raises ServiceError, as `reductions_refused` says."""
    if any(len(getattr(message, field)) != groups for field in Reductions._fields):
        raise reductions_refused(message, groups)
    # Their bytes are the array's; taking them as numbers of Python's first takes sixty times as long.
    data, end, columns = message.SerializeToString(), 0, np.empty((4, groups))
    for place, (number, size) in enumerate(islice(_limits.fields(data), 4)):  # after them is what nobody knows
        end += size
        if number != place + 1 or not 0 < size - 8 * groups <= _MOST_HEAD:
            columns[:] = [getattr(message, field) for field in Reductions._fields]
            break
        columns[place] = np.frombuffer(data, "<f8", groups, end - 8 * groups)
    if (columns[2:] < 0.0).any():
        raise reductions_refused(message, groups)
    return columns


def reductions_refused(message: resources_pb2.Reductions, groups: int) -> ServiceError:
    """Why reductions are refused: GROUP_COUNT_MISMATCH or NEGATIVE_SQUARE, with each of the four fields that is at fault."""
    counts = {field: len(getattr(message, field)) for field in Reductions._fields}
    bad = [
        BadField(f"reductions.{field}", "GROUP_COUNT_MISMATCH", f"got {count} values, expected {groups}")
        for field, count in counts.items()
        if count != groups
    ]
    negative: dict[str, float] = {}
    for field in ("g_norm_sq", "x_norm_sq"):
        group, value = next(((at, each) for at, each in enumerate(getattr(message, field)) if each < 0.0), (0, 0.0))
        if value < 0.0:
            negative[field] = value
            told = f"{field} of scale group {group} is {value!r}; a squared norm is 0 or more: send ‖·‖², not an inner product"
            bad.append(BadField(f"reductions.{field}", "NEGATIVE_SQUARE", told))
    if bad[0].reason == "NEGATIVE_SQUARE":
        field = next(iter(negative))
        facts = {"field": field, "value": negative[field]}
        return ServiceError(bad[0].reason, "; ".join(each.message for each in bad), facts, bad_fields=bad)
    *most, last = counts.values()
    return ServiceError(
        "GROUP_COUNT_MISMATCH",
        f"the reductions have {', '.join(map(str, most))} and {last} values, but the run has {groups} scale "
        f"group{'s' if groups > 1 else ''}; send one value per group in each of the four fields",
        {"expected": groups, "received": max(counts.values())},
        bad_fields=bad,
    )


def state_in(data: bytes, config: TunerConfig | None) -> TunerState:
    """A tuner state; without a config of any shape. Raises ServiceError INVALID_TUNER_STATE."""
    try:
        state = TunerState.from_bytes(data, config)
    except StateError as error:
        raise ServiceError("INVALID_TUNER_STATE", error.message, field="tuner_state") from None
    if state.step > _limits.MOST_STEP:
        told = f"the tuner state is at step {state.step}; the most is {_limits.MOST_STEP}: send the state of a training"
        raise ServiceError("INVALID_TUNER_STATE", told, field="tuner_state")
    return state


def run_name_in(name: str, field: str = "name") -> names.RunName:
    """Raises ServiceError MALFORMED_NAME."""
    try:
        return names.parse_run(name)
    except names.MalformedName as error:
        raise ServiceError(error.reason, str(error), field=field) from None


def project_in(parent: str) -> str | None:
    """Raises ServiceError MALFORMED_NAME."""
    try:
        return names.parse_project(parent)
    except names.MalformedName as error:
        raise ServiceError(error.reason, str(error), field="parent") from None


def filter_in(text: str) -> runs.Filter:
    """A list filter. Raises ServiceError INVALID_FILTER, with the position."""
    try:
        return runs.parse_filter(text)
    except runs.FilterError as error:
        metadata = {"filter": error.text, "position": error.position}
        raise ServiceError("INVALID_FILTER", str(error), metadata, field="filter") from None


def labels_in(labels: Mapping[str, str], field: str = "labels") -> dict[str, str]:
    """Raises ServiceError INVALID_LABELS. It counts a message's labels before it copies them: there may be millions."""
    try:
        return names.check_labels(labels)
    except names.MalformedName as error:
        raise ServiceError(error.reason, str(error), field=field) from None


def check_read_mask(mask: FieldMask, response: type[Message]) -> None:
    """Refuses paths that the response does not have. Raises ServiceError INVALID_READ_MASK."""
    if len(mask.paths) > MOST_PATHS:
        told = f"the read mask has {len(mask.paths)} paths; name at most {MOST_PATHS}"
        raise ServiceError("INVALID_READ_MASK", told, {"path": mask.paths[0]}, field="read_mask")
    described: Any = response.DESCRIPTOR
    bad = [path for path in mask.paths if not FieldMask(paths=[path]).IsValidForDescriptor(described)]
    if bad:
        told = f"{response.__name__} has no {', '.join(map(repr, bad))}; name fields that it has"
        raise ServiceError("INVALID_READ_MASK", told, {"path": bad[0]}, field="read_mask")


def masked(message: M, mask: FieldMask) -> M:
    """The message with the fields that the mask names; all of it where the mask is empty."""
    if not mask.paths:
        return message
    kept = type(message)()
    mask.MergeMessage(message, kept)
    return kept


def text_in(text: str, most: int) -> str:
    """Text for people, cut to `most` characters and without NUL, which PostgreSQL can't store."""
    return text[:most].replace("\0", "\ufffd")


def command_in(text: str) -> str:
    """The command that started the trainer."""
    return text_in(text, MAX_COMMAND)


def run_out(row: runs.RunRow, needs: Sequence[runs.Alert] = (), *, command: bool = False) -> resources_pb2.Run:
    """A stored run with its alerts, and its command if asked for."""
    run = resources_pb2.Run(
        name=str(names.RunName(row.project, row.run)),
        labels=row.labels,
        config=config_out(row.config),
        status=STATUS_OUT[row.status],
        status_message=row.status_message,
        durable_step=row.last_step,
        scale=row.scale,
        create_time=time_out(row.create_time),
        session_count=row.session_count,
        rewind_count=row.rewinds,
        needs=map(need_out, needs),
        base_lr=row.stats.base_lr,
        command=row.command if command else "",
    )
    if row.step_time:
        run.step_time.CopyFrom(time_out(row.step_time))
    if row.archive_time:
        run.archive_time.CopyFrom(time_out(row.archive_time))
    return run


def need_out(need: runs.Alert) -> resources_pb2.Need:
    """An alert."""
    return resources_pb2.Need(kind=f"NEED_KIND_{need.kind.upper()}", message=need.message, step=need.step)


def event_out(event: runs.EventRow) -> resources_pb2.RunEvent:
    """A stored event; its kind is unspecified if the contract does not have it."""
    name = f"EVENT_KIND_{event.kind.upper()}"
    known = name if name in resources_pb2.EventKind.keys() else "EVENT_KIND_UNSPECIFIED"  # noqa: SIM118
    return resources_pb2.RunEvent(
        time=time_out(event.time),
        step=event.step,
        kind=known,
        message=event.message,
    )


def step_out(row: runs.StepRow) -> resources_pb2.StepRecord:
    """A stored step."""
    return resources_pb2.StepRecord(
        step=row.step,
        time=time_out(row.time),
        outcome=cast(resources_pb2.StepOutcome, row.outcome),
        reductions=resources_pb2.Reductions(
            delta_dot_g=row.delta_dot_g, delta_dot_x=row.delta_dot_x, g_norm_sq=row.g_norm_sq, x_norm_sq=row.x_norm_sq
        ),
        h=row.h,
        scale=row.scale,
        base_lr=row.base_lr,
        branch=row.branch,
    )


def columns_out(steps: runs.StepColumns) -> resources_pb2.StepColumns:
    """Stored steps as columns."""
    values = steps._asdict()
    time, lr = values.pop("time"), values.pop("base_lr")
    return resources_pb2.StepColumns(
        **values,
        time_ns=time,
        has_base_lr=[value is not None for value in lr],
        base_lr=[0.0 if value is None else value for value in lr],
    )


def buckets_out(groups: int, buckets: store.Buckets) -> Iterator[run_service_pb2.SeriesBucket]:
    """Stored buckets."""
    places = {name: slice(index * groups, (index + 1) * groups) for index, name in enumerate(store.SERIES)}
    places["base_lr"] = slice(len(store.SERIES) * groups, None)
    for bucket in buckets:
        low, high, last = bucket["min"].tolist(), bucket["max"].tolist(), bucket["last"].tolist()
        extremes = {
            name: run_service_pb2.Extremes(min=low[place], max=high[place], last=last[place]) for name, place in places.items()
        }
        yield run_service_pb2.SeriesBucket(
            first_step=int(bucket["first_step"]),
            last_step=int(bucket["last_step"]),
            count=int(bucket["count"]),
            non_finite_count=int(bucket["non_finite"]),
            held_count=int(bucket["held"]),
            first_time=time_out(int(bucket["first_time"])),
            last_time=time_out(int(bucket["last_time"])),
            **extremes,
        )


def error_out(session: int, step: int, error: ServiceError) -> tuner_service_pb2.StepResult:
    """A refused step of a stream."""
    return tuner_service_pb2.StepResult(
        session=session,
        step=step,
        error=tuner_service_pb2.StepError(
            code=error.code,
            reason=cast(errors_pb2.ErrorReason, errors_pb2.ErrorReason.Value(error.reason)),
            message=error.message,
            metadata=error.metadata,
            bad_fields={bad.field: bad.message for bad in error.bad_fields},
        ),
    )


def error_in(error: tuner_service_pb2.StepError) -> ServiceError:
    """The refusal that `error_out` told of."""
    reason = errors_pb2.ErrorReason.Name(error.reason)
    bad_fields = [BadField(field, reason, message) for field, message in sorted(error.bad_fields.items())]
    return ServiceError(reason, error.message, error.metadata, bad_fields=bad_fields)


def time_out(nanoseconds: int) -> Timestamp:
    """A timestamp of the server's clock."""
    return Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)
