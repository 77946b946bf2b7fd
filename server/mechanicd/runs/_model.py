"""The rows: a run, its sessions, its events. Plain, frozen, and independent of any database."""

from dataclasses import dataclass, field
from typing import NamedTuple

from mechanicd.runs._run_stats import RunStats
from mechanicd.runs._values import RunStatus
from mechanicd.tuner import TunerConfig


class EventRow(NamedTuple):
    """Something that happened to a run at `time` (ns since 1970), when its last step was `step`.

    `kind` is an EventKind, or a value from a newer mechanicd.
    """

    time: int
    step: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run as stored. `state` is TunerState.to_bytes() after `last_step`; times are nanoseconds since 1970.

    (`epoch`, `session`, `last_step`) is what a commit is conditional on: a writer that does not know them has lost the run.
    `epoch` grows whenever a session or a server takes hold of the run, `session_count` with each new session alone.
    `interval` is the usual time between two steps in nanoseconds, 0 if it is not known yet. `command` is how the last
    session's trainer was started. `archive_time` is 0 unless the run is archived.
    `revision` grows whenever anything else here changes.
    """

    id: int
    project: str
    run: str
    labels: dict[str, str]
    config: TunerConfig
    status: RunStatus
    status_message: str
    epoch: int
    session: int
    last_step: int
    state: bytes
    scale: tuple[float, ...]
    create_time: int
    open_time: int
    step_time: int
    interval: int
    session_count: int
    rewinds: int
    command: str = ""
    archive_time: int = 0
    stats: RunStats = field(default_factory=RunStats)
    revision: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """A session as stored. It started after step `after_step`."""

    session: int
    run_id: int
    after_step: int
    open_time: int
