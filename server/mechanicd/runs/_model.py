"""The rows: a run, its sessions, its events. Plain, frozen, and independent of any database."""

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

from mechanicd.runs._run_stats import RunStats
from mechanicd.runs._values import RunStatus
from mechanicd.tuner import TunerConfig


def session_key(session: int) -> int:
    """What is stored of a session's id, 1…2⁶³ − 1: 63 bits of its SHA-256.

    Who knows the id can step the run, so only the trainer has it, and its server while the session lives. A store has the key,
    which recognizes the id and does not give it away. Rows, commits and claims have keys; the id is on the wire alone.
    """
    return int.from_bytes(hashlib.sha256(session.to_bytes(8)).digest()[:8]) & (2**63 - 1) or 1


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

    `session` is the key of the session that holds the run, 0 if none does, or a number of no session in the place of one that
    was fenced by hand.
    (`epoch`, `session`, `last_step`) is what a commit is conditional on: a writer that does not know them has lost the run.
    `epoch` grows whenever a session or a server takes hold of the run, `session_count` with each new session alone.
    `interval` is the usual time between two steps in nanoseconds, 0 if it is not known yet. `command` is how the last
    session's trainer was started. `archive_time` is 0 unless the run is archived.
    `damaged` tells of a run that is only listed what of its row can't be read; defaults stand in for it.
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
    damaged: str = ""
    revision: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """A session as stored, by its key. It started after step `after_step`."""

    session: int
    run_id: int
    after_step: int
    open_time: int
