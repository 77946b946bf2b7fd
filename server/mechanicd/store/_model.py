"""What a store keeps: plain, frozen, and free of any database."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mechanicd.store._vitals import Vitals
from mechanicd.tuner import TunerConfig

RUNNING: Final = "running"
SILENT: Final = "silent"
"""Never stored: a running run that no step has come for in a long time."""
PREEMPTED: Final = "preempted"
FAILED: Final = "failed"
FINISHED: Final = "finished"

TUNED: Final = 1
NON_FINITE: Final = 2
HELD: Final = 3

OPENED: Final = "opened"
RESUMED: Final = "resumed"
REATTACHED: Final = "reattached"
REWOUND: Final = "rewound"
ADOPTED: Final = "adopted"
FENCED: Final = "fenced"
CLOSED: Final = "closed"
OUTAGE: Final = "outage"
FORKED: Final = "forked"
REWOUND_BY_HAND: Final = "rewound_by_hand"


class EventRow(NamedTuple):
    """Something that happened to a run at `time` (ns since 1970), its last step then `step`; `kind` is one of those above."""

    time: int
    step: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run as stored. `state` is TunerState.to_bytes() after `last_step`; times are nanoseconds since 1970.

    (`epoch`, `session`, `last_step`) is what a commit is conditional on: a writer that does not know them has lost the run.
    `epoch` grows whenever a session or a server takes hold of the run, `session_count` with each new session alone.
    `interval` is the usual time between two steps in nanoseconds, 0 where it is not known yet. `command` is how the last
    session's trainer was started. `revision` grows whenever anything else here changes.
    """

    id: int
    project: str
    run: str
    labels: dict[str, str]
    config: TunerConfig
    status: str
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
    vitals: Vitals = field(default_factory=Vitals)
    revision: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """One session as stored: it began after `after_step`."""

    session: int
    run_id: int
    after_step: int
    open_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A new hold on a run: the next epoch, a new session, and where its tuner starts.

    Where `after_step` is below the stored last step, the steps above it become branch `rewinds + 1`.
    """

    run_id: int
    expected_epoch: int
    session: int
    after_step: int
    state: bytes
    scale: tuple[float, ...]
    labels: dict[str, str]
    time: int
    command: str = ""
    vitals: Vitals = field(default_factory=Vitals)
    events: tuple[EventRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The steps of one run since its last commit, or its events alone. Conditional on (epoch, session, after_step)."""

    run_id: int
    epoch: int
    session: int
    after_step: int
    last_step: int
    state: bytes
    scale: tuple[float, ...]
    step_time: int
    interval: int = 0
    vitals: Vitals = field(default_factory=Vitals)
    events: tuple[EventRow, ...] = ()
    records: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The end of a session, with the reason. Conditional on (epoch, session)."""

    run_id: int
    epoch: int
    session: int
    status: str
    message: str
    events: tuple[EventRow, ...] = ()


class SummaryRequest(NamedTuple):
    """Which summary is wanted; see `Store.summary`."""

    run: RunRow
    branch: int
    first: int
    last: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewind:
    """A run goes back to an earlier step, and nobody holds it then; `message` says so to people. Conditional on the epoch.

    `session` is 0, or, where a session held the run, a number of no session, which that one finds in its place.
    """

    run_id: int
    expected_epoch: int
    after_step: int
    session: int = 0
    state: bytes
    scale: tuple[float, ...]
    message: str
    events: tuple[EventRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """A new run that begins as another one was after a step; `message` says so to people. Conditional on the other's epoch."""

    source_id: int
    expected_epoch: int
    after_step: int
    project: str
    run: str
    state: bytes
    scale: tuple[float, ...]
    time: int
    message: str
    events: tuple[EventRow, ...] = ()
