"""What a store is asked to change: plain, frozen requests, each conditional on who holds the run."""

from dataclasses import dataclass, field
from typing import NamedTuple

from mechanicd.runs import EventRow, RunRow, RunStats, RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A new session takes the run: the next epoch, and where its tuner starts.

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
    stats: RunStats = field(default_factory=RunStats)
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
    stats: RunStats = field(default_factory=RunStats)
    events: tuple[EventRow, ...] = ()
    records: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The end of a session, with the reason. Conditional on (epoch, session).

    `successor` is 0, or a number of no session that takes its place, so that it counts as fenced.
    """

    run_id: int
    epoch: int
    session: int
    status: RunStatus
    message: str
    successor: int = 0
    events: tuple[EventRow, ...] = ()


class SummaryRequest(NamedTuple):
    """The arguments of `Store.summary`."""

    run: RunRow
    branch: int
    first: int
    last: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewind:
    """Rewinds a run to an earlier step and leaves it without a session; `message` tells people so. Conditional on the epoch.

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
class Rename:
    """Gives a run another name. Conditional on the epoch.

    `session` is 0, or, where a session held the run, a number of no session, which that one finds in its place; `message` then
    tells people so.
    """

    run_id: int
    expected_epoch: int
    project: str
    run: str
    session: int = 0
    message: str = ""
    events: tuple[EventRow, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """Creates a run as another one was after a step; `message` tells people so. Conditional on the source's epoch."""

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
